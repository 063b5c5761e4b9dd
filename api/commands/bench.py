"""``planish bench``."""

from __future__ import annotations

from dataclasses import asdict

import click

from planish.cli import echo_json, model_argument, standard_options

__all__ = ["command"]


@click.command("bench")
@model_argument
@click.argument("other", required=False)
@click.option("--data", metavar="DATA", help="Sample inputs, of which the first is used; by default one is made up.")
@click.option("--target", default="onnxruntime", show_default=True, help="What runs the models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(model: str, other: str | None, data: str | None, target: str, as_json: bool) -> None:
    """Measure the latency of MODEL; with OTHER, of both in interleaved pairs."""
    from planish.measure import Comparison
    from planish.report import table
    from planish.summary import bench

    found = bench(model, other, data, target=target)
    if as_json:
        echo_json(asdict(found))
    elif isinstance(found, Comparison):
        rows = [(model, str(found.before)), (str(other), str(found.after))]
        click.echo(table(rows, "ll"))
        click.echo(
            f"\nthe second is {found.speedup:.2f}x as fast (±{2 * found.uncertainty:.0%}), {found.before.runs} pairs"
        )
    else:
        click.echo(f"{model}  {found}, {found.runs} runs")
