"""Any `nn.Module` read into state equations."""

from .read import capture as capture
