"""The report as one self-contained web page."""

from __future__ import annotations

import os
import tempfile
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from planish.ir.errors import PlanishError
from planish.report import LAYER_HEAD, facts_rows, layer_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from planish.report import Report

__all__ = ["html", "write_report"]

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
tr + tr td { border-top: 1px solid #ddd } .n { text-align: right; font-variant-numeric: tabular-nums }
.verdict { padding: .4rem .8rem; border-radius: .3rem; background: $colour }
code { font-size: .92em }
</style>
</head>
<body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
<p>Pipeline <code>$pipeline</code> for <code>$target</code>.</p>
<h2>Size and speed</h2>
$sizes
<h2>Checks</h2>
$checks
<h2>Passes and rules</h2>
$passes
$layers
$misses
</body>
</html>
""")


def _table(rows: Iterable[Sequence[str]], numbers: frozenset[int] = frozenset(), head: Sequence[str] = ()) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        parts = (
            f"<{tag}{' class=n' if i in numbers else ''}>{escape(cell.strip())}</{tag}>" for i, cell in enumerate(row)
        )
        return f"<tr>{''.join(parts)}</tr>"

    return "\n".join(
        ["<table>", *([cells(head, "th")] if head else []), *(cells(row, "td") for row in rows), "</table>"]
    )


def html(report: Report, title: str) -> str:
    """``report`` as a page without scripts or anything from elsewhere."""
    misses = "".join(f"<li>{escape(miss)}</li>" for miss in report.near_misses)
    nothing = f"<h2>Nothing changed</h2><p>The nearest misses:</p><ul>{misses or '<li>none</li>'}</ul>"
    return _PAGE.substitute(
        title=escape(title),
        colour="#e4f5e6" if report.ok else "#fde3e1",
        verdict=escape("Everything checked holds." if report.ok else report.failure),
        pipeline=escape(report.pipeline),
        target=escape(report.target),
        sizes=_table(report.size_rows(), frozenset({1, 2}), ("", "before", "after", "")),
        checks=_table(report.check_rows()),
        passes=_table(report.pass_rows(), frozenset({1})),
        layers=_layers(report),
        misses="" if report.changed else nothing,
    )


def _layers(report: Report) -> str:
    rows = layer_rows(report.layers)
    head = "<h2>Layers</h2><p>The largest share of the predicted loss first.</p>"
    layers = head + _table(rows, frozenset({4, 5, 6, 7}), LAYER_HEAD) if rows else ""
    return layers + "".join(_facts(name, rows) for name, rows in report.facts())


def _facts(name: str, rows: Sequence[dict[str, Any]]) -> str:
    head, *found = facts_rows(rows)
    return f"<h2>{escape(name)}</h2>" + _table(found, head=head)


def write_report(report: Report, path: str | Path, title: str) -> None:
    """Write the page to ``path``, completely or not at all.

    Raises:
        PlanishError: it cannot be written.
    """
    path = Path(path)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(html(report, title))
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PlanishError(f"{path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
