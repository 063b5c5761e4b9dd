"""What `optimize` has to tell: facts, as text for people and as a dictionary for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planish.expectations import Outcome
    from planish.ir.flops import Size
    from planish.measure import Comparison
    from planish.passes import PassResult

__all__ = ["LAYER_HEAD", "Report", "Verification", "count", "facts_rows", "layer_rows", "layer_table", "table"]

LAYER_HEAD = ("layer", "operator", "weight", "activation", "range", "SQNR", "of loss", "alone, ms", "runs as")
_LAYERS = 10  # in the text; the web page and JSON have all


@dataclass
class Verification:
    """How the result was compared with the original.

    Attributes:
        mode: ``each``, ``end`` or ``off``.
        verdict: ``passed``, ``failed``, ``structure`` (well formed, but never run) or ``off``.
        samples: the number of samples compared.
        source: where they come from: ``data`` or ``synthesized``.
        difference: the largest one, relative to the range of its output.
        output: the name of that output.
        tolerance: what the rules and passes that fired may change together; None for no bound.
        note: what else the reader must know, in one line.
    """

    mode: str = "off"
    verdict: str = "off"
    samples: int = 0
    source: str = ""
    difference: float = 0.0
    output: str = ""
    tolerance: float | None = None
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        if self.verdict == "off":
            return "no"
        if self.verdict == "structure":
            return f"structure only{note}"
        of = f" (output {self.output!r})" if self.output else ""
        allowed = "" if self.tolerance is None else f", allowed {self.tolerance:.0e}"
        samples = f"{self.samples} {self.source} sample{'s' if self.samples != 1 else ''}"
        is_free = self.verdict == "passed" and self.tolerance is None
        verdict = "compared (a lossy pass sets no limit)" if is_free else self.verdict
        return f"{verdict}: largest difference {self.difference:.1e} of the range{of} on {samples}{allowed}{note}"


@dataclass
class Report:
    """Everything that happened. ``ok`` is False if an expectation or the verification failed."""

    pipeline: str
    target: str
    before: Size
    after: Size
    passes: list[PassResult] = field(default_factory=list)
    verification: Verification = field(default_factory=Verification)
    latency: Comparison | None = None
    fallback: str = ""
    near_misses: list[str] = field(default_factory=list)
    expectations: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every expectation holds and nothing is known to be wrong."""
        missed = any(r.missed for r in self.passes)
        return self.verification.verdict != "failed" and not missed and all(e.holds for e in self.expectations)

    @property
    def failure(self) -> str:
        """What makes it not ok, in one line."""
        missed = [str(e) for e in self.expectations if not e.holds]
        missed += [f"{r.name}: {r.missed}" for r in self.passes if r.missed]
        if self.verification.verdict == "failed":
            missed.insert(0, f"the result is wrong: {self.verification.note or self.verification}")
        return "; ".join(missed)

    @property
    def fired(self) -> Counter[str]:
        """How often each rule fired."""
        return sum((r.fired for r in self.passes), Counter())

    @property
    def rolled_back(self) -> list[tuple[str, str]]:
        """Passes and rules that were taken back, with the reason."""
        found = []
        for r in self.passes:
            found += [(f"rule {rule} of {r.name}", reason) for rule, reason in r.disabled.items()]
            if r.problem:
                found.append((r.name, r.problem.removeprefix("rolled back: ")))
        return found

    @property
    def changed(self) -> bool:
        """Whether any pass changed anything."""
        return any(r.edits for r in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """The facts, ready for JSON."""
        latency = None
        if self.latency is not None:
            latency = {**asdict(self.latency), "is_slower": self.latency.is_slower}
        return {
            "ok": self.ok,
            "changed": self.changed,
            "pipeline": self.pipeline,
            "target": self.target,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "fired": dict(self.fired.most_common()),
            "passes": [
                {
                    "name": r.name,
                    "seconds": r.seconds,
                    "edits": r.edits,
                    "fired": dict(r.fired.most_common()),
                    "problem": r.problem,
                    "table": r.table,
                    "notes": r.notes,
                }
                for r in self.passes
            ],
            "rolled_back": [{"what": what, "reason": reason} for what, reason in self.rolled_back],
            "verification": asdict(self.verification),
            "latency": latency,
            "fallback": self.fallback,
            "near_misses": self.near_misses,
            "expectations": [asdict(e) for e in self.expectations],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return "\n\n".join(
            block for block in (self._sizes(), self._checks(), self._passes(), self._layers(), self._misses()) if block
        )

    def size_rows(self) -> list[tuple[str, str, str, str]]:
        """Rows of what it was before, what it is after, and the change."""
        rows = [
            _size_row("nodes", self.before.nodes, self.after.nodes),
            _size_row("parameters", self.before.parameters, self.after.parameters),
            _size_row("weight bytes", self.before.bytes, self.after.bytes),
            _size_row("FLOPs", self.before.flops, self.after.flops),
        ]
        if self.latency is not None:
            change = f"{self.latency.speedup:.2f}x as fast (±{2 * self.latency.uncertainty:.0%})"
            rows.append(("latency", str(self.latency.before), str(self.latency.after), change))
        return rows

    def _sizes(self) -> str:
        return table([("", "before", "after", ""), *self.size_rows()], "lrrl")

    def check_rows(self) -> list[tuple[str, str]]:
        """Rows of what was checked, and what it led to."""
        rows = [("verified", str(self.verification))]
        rows += [("rolled back", f"{what}: {reason}") for what, reason in self.rolled_back]
        if self.fallback:
            rows.append(("fell back", self.fallback))
        rows += [("expected", str(e)) for e in self.expectations]
        rows += [("note", note) for note in self.notes]
        return rows

    def _checks(self) -> str:
        return table(self.check_rows(), "ll")

    def pass_rows(self) -> list[tuple[str, str, str]]:
        """Rows of passes with their time, each followed by the rules that fired in it."""
        rows = []
        for r in self.passes:
            rows.append((r.name, f"{r.seconds:.3f} s", f"{r.edits} edits" if r.edits else "no change"))
            rows += [(f"  {rule}", str(times), "") for rule, times in r.fired.most_common()]
        return rows

    def _passes(self) -> str:
        return table(self.pass_rows(), "lrl")

    @property
    def layers(self) -> list[dict[str, Any]]:
        """What passes say of single layers, a dictionary of facts for each."""
        return [row for r in self.passes for row in r.table]

    def _layers(self) -> str:
        tables = [f"{name}:\n{facts_table(rows, _LAYERS)}" for name, rows in self.facts()]
        return "\n\n".join(text for text in (layer_table(self.layers, _LAYERS), *tables) if text)

    def facts(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The tables of passes whose rows are not of `LAYER_HEAD`, by pass."""
        return [(r.name, r.table) for r in self.passes if r.table and not _is_layer(r.table[0])]

    def _misses(self) -> str:
        if self.changed or self.fallback:
            return ""
        if not self.near_misses:
            return "Nothing changed, and no rule came near."
        return "\n".join(["Nothing changed. The nearest misses:", *(f"  {miss}" for miss in self.near_misses)])


def _size_row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    change = f"{(after - before) / before:+.1%}" if before else ""
    if change in ("+0.0%", "-0.0%"):
        change = ""
    return name, count(before), count(after), change


def count(n: int) -> str:
    """``n`` with a unit: ``12.3 M``; whole below ten thousand."""
    if abs(n) < 10_000:
        return str(n)
    for unit in ("k", "M", "G", "T"):
        n_scaled = n / 1000 ** ("kMGT".index(unit) + 1)
        if abs(n_scaled) < 999.5 or unit == "T":
            return f"{n_scaled:.3g} {unit}"
    raise AssertionError


def layer_rows(layers: Sequence[dict[str, Any]], limit: int | None = None) -> list[tuple[str, ...]]:
    """Rows for `LAYER_HEAD`, those with the largest share of the loss first, ``limit`` at most."""
    return [
        (
            row["layer"],
            row["operator"],
            row["weight"],
            row["activation"],
            "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}",
            "" if row["sqnr"] is None else f"{row['sqnr']:.1f} dB",
            f"{row['share']:.1%}",
            "" if row["seconds"] is None else " -> ".join(f"{1e3 * s:.2g}" for s in row["seconds"]),
            row["kernel"],
        )
        for row in sorted(filter(_is_layer, layers), key=lambda row: -row["share"])[:limit]
    ]


def _is_layer(row: dict[str, Any]) -> bool:
    """Whether a row has the facts for `LAYER_HEAD`."""
    return "share" in row


def facts_rows(rows: Sequence[dict[str, Any]], limit: int | None = None) -> list[tuple[str, ...]]:
    """A head and rows of any facts, as text, ``limit`` rows at most; columns without a fact are left out."""
    names = [
        name for name in dict.fromkeys(n for row in rows for n in row) if any(_fact(row.get(name)) for row in rows)
    ]
    return [tuple(names), *(tuple(_fact(row.get(name)) for name in names) for row in rows[:limit])]


def _fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " -> ".join(map(_fact, value))
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def facts_table(rows: Sequence[dict[str, Any]], limit: int | None) -> str:
    """The same as one text."""
    found = facts_rows(rows, limit)
    text = table(found, "l" * len(found[0]))
    return text + (f"\n… and {len(rows) - len(found) + 1} rows more" if len(rows) >= len(found) else "")


def layer_table(layers: Sequence[dict[str, Any]], limit: int | None) -> str:
    """The same as text; "" if there are none."""
    rows = layer_rows(layers, limit)
    if not rows:
        return ""
    text = table([LAYER_HEAD, *rows], "llllrrrrl")
    more = sum(map(_is_layer, layers)) - len(rows)
    return text + (f"\n… and {more} layers more" if more else "")


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """``rows`` in columns, each aligned left (``l``) or right (``r``)."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(row, widths, align, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
