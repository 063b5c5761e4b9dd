"""A site: one operation that is about to be built, with what is fixed of it and what its sampler may choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from planish.ir import DType
from planish.ir.schema import default_attribute, schema_of

from .draw import Draw, Reject

__all__ = ["OPEN", "Site", "Slot", "formal_types"]

Array = np.ndarray
# operators for which a one-element operand may stand for any other
_ONE_ELEMENT = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Min",
        "Max",
        "Clip",
        "Where",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
    ]
)


@dataclass(frozen=True)
class Formal:
    """What an operator's schema says of an operand or a result: type variable, admissible dtypes, and kind."""

    variable: str
    dtypes: frozenset[DType]
    kind: str  # "single", "optional" or "variadic"


@cache
def formal_types(op: str) -> tuple[tuple[Formal, ...], tuple[Formal, ...]]:
    """The formal operands and results of ``op``; empty for an operator that onnx does not define."""
    schema = schema_of(op)
    if schema is None:
        return (), ()

    def formal(parameter: Any) -> Formal:
        names = [t[len("tensor(") : -1].upper() for t in parameter.types if t.startswith("tensor(")]
        dtypes = frozenset(DType[n] for n in names if n in DType.__members__)
        return Formal(parameter.type_str, dtypes, parameter.option.name.lower())

    return tuple(formal(p) for p in schema.inputs), tuple(formal(p) for p in schema.outputs)


@dataclass
class Slot:
    """An operand position: ``array`` if it is given, ``absent`` if it must be left out, else open to choice.

    Attributes:
        fill: the number that all elements must equal, if any.
        accept: whether a proposed array will do.
        menu: numbers worth trying as contents.
        role: what the sampler said it is: "data", "weight" or "param" (mostly constant), "shape" (its elements matter).
    """

    array: Array | None = None
    absent: bool = False
    fill: Any = None
    accept: Callable[[Array], bool] | None = None
    menu: tuple[float, ...] = ()
    role: str = "data"
    filler: bool = False  # open, before one that the sampler has asked for: absent unless it asks for this one too


def OPEN() -> Slot:
    """A slot that is open to choice."""
    return Slot()


class Site:
    """One operation to be built.

    Samplers ask it for operands and attributes: what is given comes back as it is, what is open is made by the sampler,
    and what must be absent comes back as None.

    Args:
        op: the operator.
        draw: the source of choices.
        slots: the operands that the left side states.
        more: whether there may be further operands.
        attrs: attributes that are fixed (None: absent).
        free: whether an attribute that is not fixed may be chosen; otherwise it has its default.
        want: the dtype that the first result should have, if any.
        rank: the rank that the first result should have, for samplers that can choose one.
    """

    def __init__(
        self,
        op: str,
        draw: Draw,
        slots: Iterable[Slot] = (),
        *,
        more: bool = False,
        attrs: dict[str, Any] | None = None,
        free: Callable[[str], bool] = lambda name: False,
        want: DType | None = None,
        rank: int | None = None,
        outputs: int | None = None,
    ):
        self.op = op
        self.draw = draw
        self.slots = list(slots)
        self.more = more
        self.fixed = attrs or {}
        self.free = free
        self.attrs: dict[str, Any] = {}
        self.outputs = outputs
        self.least_outputs = 1
        self.rank = rank
        self._dtypes: dict[str, DType] = {}
        self.inputs_, self.results_ = formal_types(op)
        for i, slot in enumerate(self.slots):
            if slot.array is not None:
                self._bind(i, DType.from_numpy(slot.array.dtype))
        if want is not None and self.results_ and self.results_[0].variable not in self._dtypes:
            if want not in self.results_[0].dtypes:
                raise Reject(f"{op} gives no {want.text}")
            self._dtypes[self.results_[0].variable] = want

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, i: int) -> Array | None:
        """Operand ``i`` as far as it is known."""
        return self.slots[i].array if i < len(self.slots) else None

    def _formal(self, i: int) -> Formal | None:
        if not self.inputs_:
            return None
        return self.inputs_[min(i, len(self.inputs_) - 1)]

    def _bind(self, i: int, dtype: DType) -> None:
        formal = self._formal(i)
        if formal is None:
            return
        if dtype not in formal.dtypes:
            raise Reject(f"{self.op} takes no {dtype.text}")
        if self._heterogeneous(formal):
            return
        if self._dtypes.setdefault(formal.variable, dtype) != dtype:
            raise Reject(f"operands of {self.op} differ in dtype")

    def _heterogeneous(self, formal: Formal) -> bool:
        return formal.kind == "variadic" and self.op in ("Loop", "Scan", "If", "SequenceConstruct")

    def dtype(self, i: int = 0, allowed: Iterable[DType] | None = None) -> DType:
        """The dtype of operand ``i``: that of its type variable if bound, else chosen now."""
        formal = self._formal(i)
        if formal is None:
            return self.draw.dtype(allowed or (DType.FLOAT,))
        if formal.variable not in self._dtypes:
            choices = formal.dtypes & set(allowed) if allowed is not None else formal.dtypes
            self._dtypes[formal.variable] = self.draw.dtype(choices)
        return self._dtypes[formal.variable]

    def is_open(self, i: int) -> bool:
        """Whether operand ``i`` is the sampler's to choose."""
        if i < len(self.slots):
            slot = self.slots[i]
            return slot.array is None and not slot.absent
        return self.more

    def operand(self, i: int, make: Callable[[], Array], role: str = "data") -> Array | None:
        """Operand ``i``: as given, or made; None where it must be absent."""
        if not self.is_open(i):
            return self[i]
        while len(self.slots) <= i:
            self.slots.append(Slot(filler=len(self.slots) < i))
        slot = self.slots[i]
        slot.role, slot.filler = role, False
        slot.array = self._accepted(slot, make)
        return slot.array

    def data(self, i: int, make: Callable[[], Array], role: str = "data") -> Array:
        """Operand ``i``, which must be there."""
        array = self.operand(i, make, role)
        if array is None:
            raise Reject(f"{self.op} needs operand {i}")
        return array

    def optional(self, i: int, make: Callable[[], Array], role: str = "data", probability: float = 0.5) -> Array | None:
        """Operand ``i``; where it is open beyond those that the left side states, present with ``probability``."""
        if i >= len(self.slots) and not (self.more and self.draw.chance(probability)):
            return None
        return self.operand(i, make, role)

    def _accepted(self, slot: Slot, make: Callable[[], Array]) -> Array:
        draw = self.draw
        for attempt in range(12):
            array = np.asarray(make())
            if slot.fill is not None:
                filled = np.full(array.shape, slot.fill).astype(array.dtype)
                if np.any(filled != slot.fill) and array.dtype.kind != "f":
                    raise Reject(f"no {array.dtype} equals {slot.fill}")
                array = filled
            if slot.accept is None:
                return array
            if slot.menu and draw.chance(0.6):
                whole = array.dtype.kind not in "fV"
                least = 0 if array.dtype.kind in "bu" else -np.inf
                menu = [n for n in slot.menu if n >= least and (not whole or n == int(n))]
                with np.errstate(over="ignore"):
                    array = np.full(array.shape, draw.pick(menu)).astype(array.dtype)
            if attempt > 3 and draw.chance(0.5) and self.op in _ONE_ELEMENT:
                array = array.reshape(-1)[:1].reshape(draw.pick([(), (), (1,)])) if array.size else array
            if slot.accept(array):
                return array
        raise Reject("no array that the capture accepts")

    def has_attr(self, name: str) -> bool:
        """Whether the operator has an attribute ``name``."""
        schema = schema_of(self.op)
        return schema is not None and name in schema.attributes

    def attr(self, name: str, *choices: Any) -> Any:
        """The value of attribute ``name`` (its default where it is absent); the choices are the sampler's."""
        if name in self.fixed:
            value = self.fixed[name]
        elif self.free(name) and not self.draw.chance(0.25):
            choice = self.draw.pick(choices)
            value = choice() if callable(choice) else choice
        else:
            value = None
        if value is None:
            return default_attribute(self.op, name)
        self.attrs[name] = value
        return value

    def required_attr(self, name: str, *choices: Any) -> Any:
        """Like `attr`, for an attribute that has no default."""
        value = self.attr(name, *choices)
        if value is None:
            if name in self.fixed or not self.free(name):
                raise Reject(f"{self.op} needs {name}")
            choice = self.draw.pick(choices)
            value = self.attrs[name] = choice() if callable(choice) else choice
        return value

    def finish(self) -> None:
        """Check that the sampler has chosen everything.

        Raises:
            Reject: it has not, or a fixed attribute was of no interest to it.
        """
        for slot in self.slots:
            slot.absent = slot.absent or (slot.filler and slot.array is None)
            if slot.array is None and not slot.absent:
                raise Reject(f"the sampler of {self.op} leaves an operand open")
        for name, value in self.fixed.items():
            if value is not None:
                self.attrs.setdefault(name, value)
        while self.slots and self.slots[-1].absent:
            self.slots.pop()
