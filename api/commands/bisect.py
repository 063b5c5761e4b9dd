"""``planish bisect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from planish.cli import echo_json, model_argument, pipeline_option, standard_options

if TYPE_CHECKING:
    from planish.explanation import Bisection

__all__ = ["command"]


@click.command("bisect")
@model_argument
@pipeline_option
@click.option("--data", metavar="DATA", help="Sample inputs; by default some are made up.")
@click.option("--tolerance", type=float, help="The difference to accept, relative to an output's range.")
@click.option("--target", default="onnxruntime", show_default=True, help="What runs the graphs.")
@click.option("--reduce", "folder", metavar="DIR", help="Also write the smallest model that shows it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(
    model: str, pipeline: str, data: str | None, tolerance: float | None, target: str, folder: str | None, as_json: bool
) -> None:
    """Find the single rewrite that makes MODEL compute something else. Exit code 1 if there is one."""
    from planish.explanation import bisect, reduce_bisection

    found = bisect(model, pipeline, data, tolerance=tolerance, target=target)
    if found is None:
        if as_json:
            echo_json({"found": False})
        else:
            click.echo("The outputs do not differ after any pass.")
        return
    reduced = None
    if folder is not None:
        reduction = reduce_bisection(found, data, tolerance=tolerance, target=target)
        reduction.save(folder)
        reduced = {"folder": folder, "nodes": len(reduction.graph), "of": reduction.nodes}
    if as_json:
        echo_json({"found": True, **_facts(found), "reduced": reduced})
    else:
        click.echo(_text(found))
        if reduced is not None:
            click.echo(f"{folder}: a model of {reduced['nodes']} of {reduced['of']} nodes that shows it")
    raise click.exceptions.Exit(1)


def _facts(found: Bisection) -> dict[str, Any]:
    culprit = found.culprit
    nodes = culprit.replacement.roots if culprit.replacement is not None else []
    return {
        "pass": str(culprit.pass_),
        "rule": culprit.replacement.rule.name if culprit.replacement is not None else None,
        "number": culprit.number,
        "rewrites": culprit.total,
        "nodes": [{"op": n.op, "name": n.name, "origin": str(n.origin), "text": repr(n)[1:-1]} for n in nodes],
        "difference": found.difference,
        "error": culprit.error,
    }


def _text(found: Bisection) -> str:
    from planish.report import table

    facts = _facts(found)
    rows = [("pass", facts["pass"])]
    if facts["error"]:
        rows.append(("raises", facts["error"]))
    elif facts["rule"] is None:
        rows.append(("rule", "none: the pass differs by an edit that is no rewrite"))
    else:
        rows += [("rule", facts["rule"]), ("rewrite", f"number {facts['number']} of {facts['rewrites']}")]
    for node in facts["nodes"]:
        rows.append(("at", node["text"]))
        if node["origin"]:
            rows.append(("from", node["origin"]))
    if found.difference is not None:
        rows.append(("difference", f"{found.difference:.1e} of the output's range"))
    elif not facts["error"]:
        rows.append(("result", "the graph is malformed or does not run"))
    return table(rows, "ll")
