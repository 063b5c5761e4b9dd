"""docs/write-a-rule.md does what it says, block by block, and examples/plugin is what it ends with.

Comments in front of its blocks say what to do with them: `write FILE`, `do` (a shell or Python block; `do fails`
if the last command must fail), and what that `prints` or `fails with`, where … stands for anything.
"""

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "write-a-rule.md"
PLUGIN = ROOT / "examples" / "plugin"
BLOCK = re.compile(
    r"^<!-- (write|do|prints|fails with)(?: ([\w.]+))? -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
FILES = ("planish_scales.py", "test_planish_scales.py", "pyproject.toml")


def install(folder):
    """What `pip install .` does for planish: the module can be imported, and its entry points are known."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


class Reader:
    """Somebody who follows the page in an empty folder."""

    def __init__(self, folder):
        self.folder = folder
        self.namespace = {}
        self.output = ""
        self.failed = False
        tools = folder / ".bin"
        tools.mkdir()
        for name, code in {"planish": "-c 'from planish.cli import main; main()'", "python": ""}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@"\n')
            (tools / name).chmod(0o755)
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "120",
        }

    def shell(self, text, fails):
        self.output = ""
        for line in text.strip().splitlines():
            if line == "python -m pip install .":
                install(self.folder)
                continue
            done = subprocess.run(
                line, shell=True, cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False
            )
            self.output += done.stdout + done.stderr
            self.failed = done.returncode != 0
            assert not fails or self.failed, f"{line} was to fail:\n{self.output}"
            assert fails is not False or not self.failed, f"{line} failed:\n{self.output}"

    def python(self, code):
        with contextlib.chdir(self.folder):
            exec(compile(code, str(PAGE), "exec"), self.namespace)


def is_shown(expected, output):
    """Whether the lines of ``expected`` come in this order, whatever is between them and however they are indented."""
    lines = [re.sub(r"^(E )?\s*", "", line) for line in output.splitlines()]
    patterns = [".*".join(map(re.escape, line.strip().split("…"))) for line in expected.strip().splitlines()]
    at = 0
    for pattern in patterns:
        while at < len(lines) and not re.search(pattern, lines[at]):
            at += 1
        if at == len(lines):
            return False
        at += 1
    return True


def test_page(tmp_path):
    reader = Reader(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = [(m.group(1), m.group(2), m.group(3), text[m.start() : m.end()]) for m in BLOCK.finditer(text)]
    assert len(blocks) == text.count("\n<!-- "), "a marker that is not understood"
    for i, (kind, argument, content, whole) in enumerate(blocks):
        following = blocks[i + 1][0] if i + 1 < len(blocks) else ""
        if kind == "write":
            (tmp_path / argument).write_text(content)
        elif kind == "do" and "```python" in whole:
            reader.python(content)
        elif kind == "do":
            reader.shell(content, argument == "fails" or following == "fails with")
        else:
            assert is_shown(content, reader.output), f"{content}\nis not in\n{reader.output}"
    for name in FILES:
        assert (tmp_path / name).read_text() == (PLUGIN / name).read_text(), (
            f"examples/plugin/{name} differs from the page"
        )


def test_user_writes_few_lines():
    code = (PLUGIN / "planish_scales.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) < 20


def test_example_has_no_other_files():
    found = {p.name for p in PLUGIN.iterdir() if p.name != "__pycache__" and not p.name.startswith(".")}
    assert found == set(FILES)


@pytest.mark.parametrize(
    ("expected", "output", "found"),
    [
        ("a … c\n…\ne", "x\na b c\n  d\n  e\n", True),
        ("a b", "a c", False),
        ("a\nb", "a\nx\nb", True),
        ("a\nb", "b\na", False),
    ],
)
def test_comparison_of_what_is_shown(expected, output, found):
    assert is_shown(expected, output) is found
