"""Compare planish with its peers on the zoo: nodes left, wall time, peak memory and the error of the result.

Every measurement is one fresh process that imports its tool, loads a model, optimizes it and saves it with external
data. The tools take turns, so that a slow moment of the machine falls on all of them. This process stays on the
standard library: a child's peak memory as the kernel reports it starts at that of the process that spawned it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import PEERS
from tables import cell, geometric_mean, markdown, median_and_spread

HERE = Path(__file__).parent
TOOLS = ["planish", *PEERS]
TIMEOUT = 300  # seconds for one run of one tool
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss

Record = dict[str, Any]  # one tool on one model: the lists of run_tool, the facts of evaluate.py, or a failure
Results = dict[str, dict[str, Record]]  # model -> tool -> record


def command(tool: str, model: Path, out: Path) -> list[str]:
    """The command line that optimizes ``model`` into ``out``."""
    if tool == "planish":
        script = str(Path(sys.executable).with_name("planish"))
        return [script, "optimize", str(model), "-o", str(out), "-p", "simplify", "--verify", "off", "--no-measure"]
    return [sys.executable, str(HERE / "peers.py"), tool, str(model), str(out)]


def last_line(text: str) -> str:
    """The last line that says something: where Python and the tools put their error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def run_tool(arguments: list[str]) -> Record:
    """Run one process: its wall ``seconds``, ``cpu_seconds`` and ``peak_mb`` (10^6 bytes), or its ``failure``."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        except OSError as error:
            return {"failure": f"does not start: {error.strerror}"}
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        watchdog.cancel()
        process.returncode = code = os.waitstatus_to_exitcode(status)
        log.seek(0)
        message = last_line(log.read())
    if seconds >= TIMEOUT:
        return {"failure": f"time-out after {TIMEOUT} s"}
    if code:
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return {"failure": f"{reason}: {message}"}
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": usage.ru_maxrss * MAXRSS_BYTES / 1e6}


def evaluate(*paths: Path) -> Record:
    """Run evaluate.py on inputs, raw model and result, in its own process."""
    arguments = [sys.executable, str(HERE / "evaluate.py"), *map(str, paths)]
    child = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if child.returncode:
        return {"failure": f"result does not load: {last_line(child.stderr)}"}
    facts: Record = json.loads(child.stdout)
    return facts


def measure(model: Path, tools: list[str], repeats: int, results: Path) -> dict[str, Record]:
    """Run the tools in turn on one model folder, ``repeats`` times, and evaluate what each of them leaves."""
    inputs, raw = model / "inputs.npz", model / "model.onnx"
    records: dict[str, Record] = {"raw": evaluate(inputs, raw)}
    runs: dict[str, list[Record]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            if any("failure" in run for run in runs[tool]):
                continue
            folder = results / model.name / tool
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.sync()  # or the write-back of the last result falls into this run
            runs[tool].append(run_tool(command(tool, raw, folder / "model.onnx")))
    for tool in tools:
        failure = next((run for run in runs[tool] if "failure" in run), None)
        out = results / model.name / tool / "model.onnx"
        if failure:
            records[tool] = failure
        elif not out.exists():
            records[tool] = {"failure": "ended well but wrote no model"}
        else:
            samples = {key: [run[key] for run in runs[tool]] for key in runs[tool][0]}
            records[tool] = samples | evaluate(inputs, raw, out)
        say(model.name, tool, records[tool])
    return records


def say(model: str, tool: str, record: Record) -> None:
    """Report one record on standard error while the work goes on."""
    if "failure" in record:
        line = record["failure"]
    else:
        line = f"{record['nodes']} nodes, {statistics.median(record['seconds']):.2f} s, error {record['error']:.1e}"
    print(f"{model} {tool}: {line}", file=sys.stderr, flush=True)


# --- the report ------------------------------------------------------------------------------------------------------


def table(results: Results, tools: list[str], title: str, show: Callable[[Record], str], raw: bool = False) -> str:
    """One markdown table, models down and tools across."""
    columns = ["raw", *tools] if raw else tools
    rows = [[model, *(show(row[tool]) if tool in row else "-" for tool in columns)] for model, row in results.items()]
    return markdown(title, ["model", *columns], rows)


def show_nodes(record: Record) -> str:
    """Standard nodes, and behind a plus those of other domains."""
    if not is_sound(record):
        return "failed"
    standard = cell(record["nodes"] - record["other"])
    return f"{standard} + {record['other']}" if record["other"] else standard


def show_samples(key: str, digits: int) -> Callable[[Record], str]:
    """Median and spread of a repeated measurement."""

    def show(record: Record) -> str:
        samples = record.get(key)
        return median_and_spread(statistics.median(samples), samples, digits) if samples else "failed"

    return show


def show_error(record: Record) -> str:
    """The relative error in the power-of-ten notation."""
    return f"{record['error']:.1e}" if "error" in record else "failed"


def is_sound(record: Record | None) -> bool:
    """Whether the tool ran on the model and its result runs."""
    return record is not None and "failure" not in record


def summary(results: Results, tools: list[str]) -> str:
    """Geometric means against the first tool that has results, each over the models where both have a sound one."""
    base = next((tool for tool in tools if any(is_sound(row.get(tool)) for row in results.values())), tools[0])

    def ratio(tool: str, value: Callable[[Record], float], against: str = base) -> str:
        rows = [row for row in results.values() if is_sound(row.get(tool)) and is_sound(row.get(against))]
        return cell(geometric_mean(value(row[tool]) / value(row[against]) for row in rows))

    rows = [
        [
            tool,
            ratio(tool, lambda record: record["nodes"], "raw"),
            ratio(tool, lambda record: statistics.median(record["seconds"])),
            ratio(tool, lambda record: statistics.median(record["cpu_seconds"])),
            ratio(tool, lambda record: statistics.median(record["peak_mb"])),
            str(sum(is_sound(row.get(tool)) for row in results.values())),
        ]
        for tool in tools
    ]
    header = ["tool", "nodes / raw", f"seconds / {base}", f"CPU s / {base}", f"peak MB / {base}", "sound results"]
    return markdown(f"Geometric means over {len(results)} models", header, rows)


def report(results: Results, tools: list[str]) -> str:
    """The whole comparison as markdown."""
    failures = [
        f"- {model}, {tool}: {row[tool]['failure']}"
        for model, row in results.items()
        for tool in tools
        if "failure" in row.get(tool, {})
    ]
    parts = [
        summary(results, tools),
        table(results, tools, "Nodes left (without Constant; + nodes of other domains)", show_nodes, raw=True),
        table(results, tools, "Wall time of the process in s (median ± half the range)", show_samples("seconds", 2)),
        table(results, tools, "CPU time of the process in s", show_samples("cpu_seconds", 2)),
        table(results, tools, "Peak resident memory in MB", show_samples("peak_mb", 0)),
        table(results, tools, "Largest error relative to the output's range", show_error),
        "### Failures\n\n" + ("\n".join(failures) or "None.") + "\n",
    ]
    return "\n".join(parts)


def versions() -> dict[str, str]:
    """The versions of Python and of every tool, and the machine."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for package in ("planish", "onnx", "onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "onnxruntime"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


# --- the command line ------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare planish with its peers on the zoo.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models to run (default: all in the zoo)")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="tools to run (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool on each model (default: 3)")
    parser.add_argument("--out", type=Path, help="keep the optimized models as OUT/MODEL/TOOL/model.onnx")
    parser.add_argument("--json", type=Path, help="write all numbers here, and the tables next to it as .md")
    parser.add_argument("--known", type=Path, help="an earlier --json file, whose results join the tables")
    args = parser.parse_args()
    present = sorted(folder.name for folder in args.zoo.iterdir() if (folder / "model.onnx").exists())
    args.models = args.models or present
    if unknown := sorted(set(args.models) - set(present)):
        parser.error(f"not in the zoo: {', '.join(unknown)}")
    return args


@contextmanager
def results_folder(kept: Path | None) -> Iterator[Path]:
    """The folder for one model's results: ``kept``, or a temporary one."""
    if kept is not None:
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="planish-peers-") as folder:
            yield Path(folder)


def main() -> None:
    args = parse()
    document: dict[str, Any] = json.loads(args.known.read_text()) if args.known else {"results": {}}
    document["versions"] = document.get("versions", {}) | versions()
    results: Results = document["results"]
    for name in args.models:
        with results_folder(args.out) as folder:
            records = measure(args.zoo / name, args.tools, args.repeats, folder)
        results[name] = results.get(name, {}) | records
        if args.json:
            args.json.write_text(json.dumps(document, indent=1))
    text = report(results, [tool for tool in TOOLS if any(tool in row for row in results.values())])
    print(text)
    if args.json:
        args.json.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
