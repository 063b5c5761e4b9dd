"""``planish demo``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from planish.cli import echo_json, pipeline_option, progress, standard_options

__all__ = ["command"]

_SAMPLE = 64  # images of the held-out ones that verification and measurement use


@click.command("demo")
@click.option("-o", "--output", metavar="OUT", help="Keep the optimized model.")
@pipeline_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(output: str | None, pipeline: str, as_json: bool) -> None:
    """Optimize a bundled digit classifier and check it on digits that it has never seen."""
    import numpy as np

    import planish
    from planish.backends.base import backend

    folder = Path(planish.__file__).parent / "demo"
    model = folder / "digits.onnx"
    with np.load(folder / "digits_heldout.npz") as heldout:
        images, labels = heldout["images"], heldout["labels"]
    data = {planish.load(model).inputs[0].name: images[:_SAMPLE]}
    with TemporaryDirectory(prefix="planish-") as scratch, progress() as show:
        result = planish.optimize(model, pipeline, data=data, progress=show)
        path = output or str(Path(scratch) / "digits.onnx")
        result.save(path)
        sizes = [model.stat().st_size, Path(path).stat().st_size]
        correct = [_correct(backend("onnxruntime").load(str(p)), images, labels) for p in (model, path)]
    report = result.report
    facts: dict[str, Any] = {"images": len(labels), "correct": correct, "file_bytes": sizes, **report.to_dict()}
    if as_json:
        echo_json(facts)
    else:
        click.echo(_text(facts, report, len(labels), output))
    if not report.ok or correct[1] < correct[0]:
        raise click.exceptions.Exit(1)


def _correct(program: Any, images: Any, labels: Any) -> int:
    logits = program(images)[0]
    return int((logits.argmax(-1) == labels).sum())


def _text(facts: dict[str, Any], report: Any, images: int, output: str | None) -> str:
    from planish.report import count, table

    before, after = facts["correct"]
    file_before, file_after = facts["file_bytes"]
    rows = [
        ("", "before", "after", ""),
        (f"right, of {images} unseen digits", str(before), str(after), f"{after / images:.1%}"),
        ("file bytes", count(file_before), count(file_after), f"{(file_after - file_before) / file_before:+.1%}"),
        *report.size_rows(),
    ]
    fired = ", ".join(f"{rule} {times}" for rule, times in report.fired.most_common())
    text = f"{table(rows, 'lrrl')}\n\n{table(report.check_rows(), 'll')}\n\nrules that fired: {fired or 'none'}"
    return text + (f"\n\nThe optimized model is {output}." if output else "")
