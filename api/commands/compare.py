"""``planish compare``."""

from __future__ import annotations

from dataclasses import asdict

import click

from planish.cli import echo_json, standard_options

__all__ = ["command"]


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--data", metavar="DATA", help="Sample inputs; by default some are made up.")
@click.option(
    "--tolerance", type=float, help="Fail where B differs from A by more than this, relative to the output's range."
)
@click.option("--target", default="onnxruntime", show_default=True, help="What runs both.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(first: str, second: str, data: str | None, tolerance: float | None, target: str, as_json: bool) -> None:
    """Run models A and B on the same inputs, and say how their outputs differ."""
    from planish.comparison import compare
    from planish.report import table

    found = compare(first, second, data, target=target)
    too_far = tolerance is not None and not found.largest <= tolerance
    if as_json:
        echo_json({"ok": not too_far, "largest": found.largest, **asdict(found)})
    else:
        rows = [("output", "type", "largest/range", "largest", "mean", "cosine", "not finite")]
        rows += [
            (
                o.name,
                o.type,
                f"{o.relative:.1e}",
                f"{o.absolute:.1e}",
                f"{o.mean:.1e}",
                f"{o.cosine:.6f}",
                str(o.non_finite),
            )
            for o in found.outputs
        ]
        click.echo(table(rows, "llrrrrr"))
        click.echo(f"\non {found.samples} {found.source} sample{'s' if found.samples != 1 else ''}")
    if too_far:
        click.echo(
            f"planish: the outputs differ by {found.largest:.1e} of their range, more than {tolerance:.1e}", err=True
        )
        raise click.exceptions.Exit(1)
