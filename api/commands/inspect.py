"""``planish inspect``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from planish.cli import echo_json, model_argument, standard_options

if TYPE_CHECKING:
    from planish.summary import Summary

__all__ = ["command"]


@click.command("inspect")
@model_argument
@click.option("--data", metavar="DATA", help="Sample inputs: their sizes count in FLOPs, instead of 1.")
@click.option("--text", is_flag=True, help="Print the whole graph in ONNX's textual syntax.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(model: str, data: str | None, text: bool, as_json: bool) -> None:
    """Say what MODEL is made of."""
    if text:
        from planish.models import load

        click.echo(str(load(model)))
        return
    from planish.report import count, table
    from planish.summary import inspect

    summary = inspect(model, data)
    if as_json:
        echo_json({"model": model, **asdict(summary)})
        return
    size = summary.size
    rows = [
        *(("input", f"{name}: {type_}") for name, type_ in summary.inputs.items()),
        *(("output", f"{name}: {type_}") for name, type_ in summary.outputs.items()),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in summary.opsets.items())),
        ("producer", summary.producer or "unknown"),
        ("nodes", count(size.nodes)),
        ("parameters", count(size.parameters)),
        ("weight bytes", count(size.bytes)),
        ("FLOPs", count(size.flops) + _sizes(summary)),
    ]
    click.echo(table(rows, "ll"))
    click.echo("\n" + table([(op, str(times)) for op, times in summary.ops.items()], "lr"))


def _sizes(summary: Summary) -> str:
    """For which sizes the FLOPs hold."""
    known = ", ".join(f"{name}={size}" for name, size in summary.sizes.items())
    return f" ({known})" if known else " (every symbolic size 1)" if summary.is_symbolic else ""
