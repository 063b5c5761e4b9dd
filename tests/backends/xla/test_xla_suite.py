"""ONNX's own backend tests on XLA: all pass but those that `docs/xla-suite.md` names, each with its reason.

``python tests/backends/xla/test_xla_suite.py`` writes that table anew.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # as `tests/conftest.py` has it, for the command
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
from test_onnx_suite import SHARDS, cases, model_of, passes, shard_of

from planish.backends import onnx_backend
from planish.frontends.onnx.upgrade import upgrade

TABLE = Path(__file__).resolve().parents[3] / "docs" / "xla-suite.md"
LEAST = 1960  # of 2,024, with onnx 1.23.2 and jax 0.10.2
_RANDOM = {"Bernoulli", "Dropout", "RandomNormal", "RandomUniform", "RandomUniformLike", "Multinomial"}


def failures(shard: int) -> dict[str, str]:
    """The reasons of the tests that do not pass, by name."""
    warnings.simplefilter("ignore")
    xla = onnx_backend("xla", upgrade)
    found = {}
    for case in cases():
        if shard_of(case) == shard:
            problem = passes(case, lambda model: xla.prepare(model).run)
            if problem:
                operators = {node.op_type for node in model_of(case).graph.node}
                found[case.name] = reason(problem.removeprefix(f"{case.name}: "), operators)
    return found


def reason(problem: str, operators: set[str]) -> str:
    """Why a test fails, in the words of the table."""
    refused = re.search(r"LoweringError: xla cannot run \d+ nodes?: (.*)", " ".join(problem.split()))
    if refused:
        return f"refused: {refused[1]}"
    if operators & _RANDOM:
        return "random: the numbers that the test expects are those of another generator"
    if "Unable to compare expected type" in problem:
        return "the test's own comparison fails: it has no rule for scalars in a sequence"
    return f"wrong: {problem[:200]}"


def table() -> dict[str, str]:
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_pass_but_those_in_the_table(shard: int) -> None:
    known = {
        name: why for name, why in table().items() if any(c.name == name and shard_of(c) == shard for c in cases())
    }
    assert failures(shard) == known


def test_no_test_gives_a_wrong_value() -> None:
    assert [name for name, why in table().items() if not why.startswith(("refused", "random", "the test's own"))] == []
    assert len(cases()) - len(table()) >= LEAST


def write_table() -> None:
    found = {name: why for shard in range(SHARDS) for name, why in failures(shard).items()}
    rows = "\n".join(f"| `{name}` | {why} |" for name, why in sorted(found.items(), key=lambda r: (r[1], r[0])))
    passed = len(cases()) - len(found)
    TABLE.write_text(
        f"""# ONNX's backend tests on XLA

{passed:,} of {len(cases()):,} tests of kind node, simple and operator pass (onnx 1.23.2, jax 0.10.2, on CPU). The
others are below, each with its reason; `python tests/backends/xla/test_xla_suite.py` writes this table, and a test
holds it. *Refused* means that the model is turned down with this message before anything runs.

| test | reason |
|---|---|
{rows}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    write_table()
