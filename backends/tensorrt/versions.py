"""Which TensorRT: the variants of the target, and what the versions read.

TensorRT 10 and 11 and TensorRT for RTX are the same API but for details; 8.5 and 8.6 still run on Jetson devices with
JetPack 5 (8.5: opset 17 at most).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.errors import PlanishError

__all__ = ["Version", "version_of"]


@dataclass(frozen=True, order=True)
class Version:
    """One TensorRT.

    Attributes:
        name: what it is called as a variant of the target: ``tensorrt:10``.
        number: major and minor version of TensorRT; of TensorRT for RTX, those of the API that it has.
        opset: the newest operator set that its parser reads.
        rtx: whether it is TensorRT for RTX.
    """

    name: str
    number: tuple[int, int]
    opset: int
    rtx: bool = False

    @property
    def strongly_typed(self) -> bool:
        """Whether it computes in the types of the graph, and no others."""
        return self.number >= (10, 0)

    def __str__(self) -> str:
        return "TensorRT for RTX" if self.rtx else f"TensorRT {self.name}"


_VERSIONS = {
    v.name: v
    for v in (
        Version("8.5", (8, 5), 17),
        Version("8.6", (8, 6), 17),
        Version("10", (10, 15), 24),
        Version("11", (11, 0), 24),
        Version("rtx", (11, 0), 24, rtx=True),
    )
}


_NEWEST = max(v.number for v in _VERSIONS.values())


def version_of(variant: str) -> Version:
    """The version that a variant of the target names; "": the one that is installed, or else 11.

    Raises:
        PlanishError: there is none of that name.
    """
    if variant:
        if variant not in _VERSIONS:
            raise PlanishError(f"no target 'tensorrt:{variant}': there are tensorrt:{', tensorrt:'.join(_VERSIONS)}")
        return _VERSIONS[variant]
    from importlib.util import find_spec

    if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is not None:
        return _VERSIONS["rtx"]
    installed = _installed()
    known = [v for v in _VERSIONS.values() if not v.rtx and (v.number <= installed or v.number[0] == installed[0] > 8)]
    return max(known, key=lambda v: v.number)


def _installed() -> tuple[int, int]:
    """Major and minor version of the installed package ``tensorrt``; the newest if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        major, minor = map(int, version("tensorrt").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return _NEWEST
    return max((major, minor), (8, 5))
