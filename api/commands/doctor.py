"""``planish doctor``."""

from __future__ import annotations

from typing import Any

import click

from planish.cli import echo_json, standard_options

__all__ = ["command"]


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(as_json: bool) -> None:
    """Say what is installed, what is missing, and how to get it."""
    import platform
    import sys

    from planish import __version__
    from planish.report import table

    facts: dict[str, Any] = {
        "planish": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.system()} {platform.machine()}, {_cores()} cores",
        "packages": _packages(""),
        "extras": {extra: _packages(extra) for extra in _extras()},
        "backends": _backends(),
    }
    if as_json:
        echo_json(facts)
        return
    rows = [(name, str(facts[name])) for name in ("planish", "python", "platform")]
    rows += [(name, version or f"missing: pip install {name}") for name, version in facts["packages"].items()]
    for extra, packages in facts["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        found = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
        hint = f"missing {', '.join(missing)}: pip install 'planish[{extra}]'" if missing else ""
        rows.append((f"extra {extra}", "; ".join(part for part in (found, hint) if part)))
    rows += [(f"backend {name}", problem or "ready") for name, problem in facts["backends"].items()]
    click.echo(table(rows, "ll"))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _requirements() -> list[str]:
    from importlib import metadata

    try:
        return metadata.requires("planish") or []
    except metadata.PackageNotFoundError:  # run from a source tree
        return []


def _extras() -> list[str]:
    from importlib import metadata

    try:
        return metadata.metadata("planish").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _packages(extra: str) -> dict[str, str | None]:
    """The installed versions of what planish (or one of its extras) requires; None for what is missing."""
    import re
    from importlib import metadata

    found: dict[str, str | None] = {}
    for requirement in _requirements():
        name, _, marker = requirement.partition(";")
        belongs = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if (belongs.group(1) if belongs else "") != extra or name.startswith("planish"):
            continue
        package = re.split(r"[\s<>=!~\[(]", name.strip())[0]
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _backends() -> dict[str, str | None]:
    from planish.backends.base import backend, backends
    from planish.ir.errors import PlanishError

    found: dict[str, str | None] = {}
    for name in backends():
        try:
            backend(name)
            found[name] = None
        except PlanishError as error:
            found[name] = str(error)
    return found
