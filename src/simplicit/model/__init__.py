"""ImplicitModel: solved, certified, saved, written as torch's modules."""

from .implicit import ImplicitModel as ImplicitModel
from .implicit import Structure as Structure
