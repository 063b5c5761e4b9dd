"""``planish optimize``."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planish.cli import echo_json, model_argument, pipeline_option, progress, standard_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from planish.optimizer import Mode
    from planish.passes import Observer

__all__ = ["command"]


@click.command("optimize")
@model_argument
@click.option("-o", "--output", required=True, metavar="OUT", help="Where the result goes.")
@pipeline_option
@click.option(
    "--target", default="onnxruntime", show_default=True, help="What is to run the result, such as onnxruntime:arm64."
)
@click.option("--data", metavar="DATA", help="Sample inputs; by default some are made up.")
@click.option(
    "--metric",
    metavar="FUNC",
    help="module.py:function that scores the outputs for all of DATA, for passes with an accuracy budget.",
)
@click.option(
    "--expect",
    multiple=True,
    metavar="COND",
    help="Such as 'Attention>=12': operators of the result, or rules that fired.",
)
@click.option(
    "--verify",
    type=click.Choice(["each", "end", "off"]),
    default="end",
    show_default=True,
    help="When to compare with the original.",
)
@click.option("--no-measure", is_flag=True, help="Do not measure latency.")
@click.option("--report", metavar="HTML", help="Also write the report as a web page.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "link", "reference"]),
    default="copy",
    show_default=True,
    help="What becomes of weights in files of their own.",
)
@click.option("--sparse", is_flag=True, help="Write weights as sparse tensors where that saves bytes.")
@click.option(
    "--sizes", metavar="NAME=N,…", help="Numbers for named sizes, or ranges such as batch=1:8:32 for TensorRT."
)
@click.option("--mesh", metavar="AXIS=N,…", help="How several chips are arranged, such as data=2,model=2.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the program, such as workspace=2GB."
)
@click.option("--dump-ir", metavar="DIR", help="Write the graph as text after each pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(
    model: str,
    output: str,
    pipeline: str,
    target: str,
    data: str | None,
    metric: str | None,
    expect: tuple[str, ...],
    verify: Mode,
    no_measure: bool,
    report: str | None,
    dump_ir: str | None,
    weights: str,
    sparse: bool,
    sizes: str | None,
    mesh: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Optimize MODEL, compare the result with it, and measure both.

    Writes OUT unless an expectation or the comparison fails.
    """
    if verify == "off" and no_measure:
        from planish.light_onnx import install

        gc.disable()  # nearly all that this short process makes lives to its end
        install()
    from planish.optimizer import optimize

    options = _options(output, report, target, weights, sparse, sizes, mesh, settings)
    written = None
    with progress() as show:
        result = optimize(
            model, pipeline, target=target, data=data, verify=verify, measure=not no_measure, expect=expect,
            metric=metric, observers=_observers(show, dump_ir), progress=show,
        )  # fmt: skip
        if result.report.ok:
            if show is not None:
                show(f"writing {output}")
            written = result.save(output, **options)
    if report is not None:
        from planish.html import write_report

        write_report(result.report, report, title=f"{model} -> {output}")
    if as_json:
        facts = {} if written is None else {"written": written.facts}
        echo_json({"model": model, "output": output if result.report.ok else None, **result.report.to_dict(), **facts})
    else:
        click.echo(f"{model} -> {output}: {result.report.pipeline} for {target}\n\n{result.report}")
        if written is not None:
            click.echo(f"\n{written.text}")
    if not result.report.ok:
        click.echo(f"planish: {result.report.failure}; {output} was not written", err=True)
        for outcome in result.report.expectations:
            for miss in outcome.misses:
                click.echo(f"  {miss}", err=True)
        raise click.exceptions.Exit(1)


def _options(
    output: str,
    report: str | None,
    target: str,
    weights: str,
    sparse: bool,
    sizes: str | None,
    mesh: str | None,
    settings: tuple[str, ...],
) -> dict[str, Any]:
    """The options for writing ``output``; complains now rather than after all the work."""
    from planish.backends.base import backend
    from planish.ir.errors import PlanishError

    for path in (output, report):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise PlanishError(f"no such folder: {Path(path).parent}")
    suffix = Path(output).suffix.lower()
    engine = None if suffix == ".onnx" and target == "onnxruntime" else backend(target)
    suffixes = (".onnx",) if engine is None else engine.suffixes
    if suffix not in suffixes:
        raise PlanishError(f"{output}: for {target}, call it something{' or something'.join(suffixes)}")
    if engine is not None and suffix != ".onnx":
        if sparse:
            raise PlanishError("--sparse is for ONNX files")
        own = {"sizes": sizes if engine.takes_ranges else _sizes(sizes), "mesh": mesh, **_settings(settings)}
        options = {name: value for name, value in own.items() if value is not None and value != {}}
        engine.check(options)
        return options
    if sizes or mesh or settings:
        raise PlanishError("--sizes, --mesh and --set are for programs, not for ONNX files")
    return {"weights": weights, "sparse": sparse}


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Options by name: truth values and whole numbers as such, all else as text."""
    from planish.ir.errors import PlanishError

    known = {"true": True, "false": False}
    found: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals or not value:
            raise PlanishError(f"--set {text!r}: write NAME=VALUE")
        found[name] = int(value) if value.isdecimal() else known.get(value.lower(), value)
    return found


def _sizes(text: str | None) -> dict[str, int]:
    from planish.ir.errors import PlanishError

    found: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        name, _, number = part.strip().rpartition("=")
        if not name or not number.isdecimal() or int(number) < 1:
            raise PlanishError(f"--sizes {text!r}: write name=number, with commas between")
        found[name] = int(number)
    return found


def _observers(show: Callable[[str], None] | None, dump_ir: str | None) -> list[Observer]:
    observers: list[Observer] = []
    if show is not None:
        from planish.passes.observers.progress import Progress

        observers.append(Progress(show))
    if dump_ir is not None:
        from planish.passes.observers.dump_ir import DumpIR

        observers.append(DumpIR(dump_ir))
    return observers
