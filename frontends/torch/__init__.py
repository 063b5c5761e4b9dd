"""PyTorch modules, exported programs and ``.pt2`` files -> `Graph`, sharing the weights with torch.

Needs the extra ``planish[torch]``; torch is imported when one of the functions is called.
"""

from .archive import load_pt2
from .export import from_exported, from_torch
from .tensor import TorchTensor

__all__ = ["TorchTensor", "from_exported", "from_torch", "load_pt2"]
