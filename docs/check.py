"""Run every code block that is marked `<!-- run -->` in README.md and docs/, so that what readers copy works.

The blocks of a page run in order and together: Python blocks share one namespace, and all share one temporary folder.
`python docs/check.py` checks every page, each in a process of its own; `python docs/check.py PAGE` checks one.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^<!-- run -->\n+```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def check(page: Path) -> None:
    """Run the marked blocks of one page in a temporary folder; the first failure propagates."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in BLOCK.finditer(text):
            language, code = block.groups()
            before = text.count("\n", 0, block.start(2))
            print(f"{page.relative_to(ROOT)}:{before + 1} ({language})", flush=True)
            if language == "python":  # padded, so that tracebacks show the page's own lines
                exec(compile("\n" * before + code, page, "exec"), namespace)  # noqa: S102
            elif language in ("sh", "bash"):
                subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
            else:
                raise ValueError(f"{page}: cannot run a block in {language!r}")
        os.chdir(ROOT)


def main(arguments: list[str]) -> str | None:
    """Check the named page or all of them; return what failed, if anything did."""
    if arguments:
        return check(Path(arguments[0]).resolve())
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    marked = [page for page in pages if BLOCK.search(page.read_text(encoding="utf-8"))]
    if not marked:
        return "no code block is marked <!-- run -->"
    failed = [str(page) for page in marked if subprocess.call([sys.executable, __file__, page])]
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
