"""How rows are solved: in tiles (`loop`, `tiles`), by stages (`stages`), one algorithm a file."""

from simplicit.solvers.loop import Callback, Progress, solve
from simplicit.solvers.settings import Settings

__all__ = ["Callback", "Progress", "Settings", "solve"]
