"""Observers: one per file, each a subclass of `planish.passes.Observer`, asked in the order of the context."""

from .dump_ir import DumpIR
from .explain import Explain
from .limit import Limit
from .progress import Progress
from .timing import Timing
from .verify import Verify

__all__ = ["DumpIR", "Explain", "Limit", "Progress", "Timing", "Verify"]
