"""``planish reduce``."""

from __future__ import annotations

import click

from planish.cli import echo_json, model_argument, pipeline_option, standard_options

__all__ = ["command"]


@click.command("reduce")
@model_argument
@pipeline_option
@click.option(
    "-o", "--output", "folder", default="reduced", show_default=True, metavar="DIR", help="Where the small model goes."
)
@click.option("--check", metavar="MODULE.PY:FUNCTION", help="Called with a model's path: true if that one fails, too.")
@click.option("--data", metavar="DATA", help="Sample inputs; by default some are made up.")
@click.option("--tolerance", type=float, help="The difference to accept, relative to an output's range.")
@click.option("--target", default="onnxruntime", show_default=True, help="What runs the graphs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(
    model: str,
    pipeline: str,
    folder: str,
    check: str | None,
    data: str | None,
    tolerance: float | None,
    target: str,
    as_json: bool,
) -> None:
    """Find the smallest part of MODEL that still fails, and write it to DIR. Exit code 1 if nothing fails."""
    from planish.explanation import reduce
    from planish.functions import load_function

    function = None if check is None else load_function(check)
    found = reduce(model, pipeline, data, check=function, tolerance=tolerance, target=target)
    if found is not None:
        found.save(folder)
    if as_json:
        echo_json(
            {"found": found is not None}
            | ({} if found is None else {"folder": folder, "nodes": len(found.graph), "of": found.nodes})
        )
    elif found is not None:
        click.echo(f"{folder}: a model of {len(found.graph)} of {found.nodes} nodes that fails\n\n{found.graph}")
    if found is None:
        click.echo("planish: the whole model does not fail", err=True)
        raise click.exceptions.Exit(1)
