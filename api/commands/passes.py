"""``planish passes``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from planish.cli import echo_json, standard_options

if TYPE_CHECKING:
    from planish.passes import Pass

__all__ = ["command"]


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(name: str | None, as_json: bool) -> None:
    """List the passes and recipes; with NAME, one pass with its options and rules."""
    from planish.ir.errors import PlanishError
    from planish.passes.registry import RECIPES, find_pass, pass_names

    if name in RECIPES:
        found = {"name": name, "pipeline": RECIPES[name]}
        echo_json(found) if as_json else click.echo(f"{name}: {RECIPES[name]}")
        return
    try:
        passes = [find_pass(n) for n in ([name] if name else pass_names())]
    except LookupError as error:
        raise PlanishError(str(error)) from error
    facts = [_facts(p) for p in passes]
    if as_json:
        echo_json(facts[0] if name else {"passes": facts, "recipes": RECIPES})
    elif name:
        click.echo(_detail(facts[0]))
    else:
        click.echo("\n".join(_line(f) for f in facts))
        click.echo("\nRecipes: " + "; ".join(f"{k} = {v}" for k, v in RECIPES.items()))


def _doc(p: type[Pass]) -> str:
    """What the pass says of itself, and what its base classes say of the options that it shares with others."""
    import inspect

    from planish.passes import Pass

    bases = [inspect.cleandoc(b.__doc__ or "") for b in p.__mro__[1:] if issubclass(b, Pass) and b is not Pass]
    return "\n\n".join([inspect.getdoc(p) or "", *(doc for doc in bases if "Attributes:" in doc)])


def _facts(p: type[Pass]) -> dict[str, Any]:
    from planish.passes.observers.explain import rules_of

    fields = dataclasses.fields(p)
    options = [{"name": f.name, "type": str(f.type), "default": _default(f)} for f in fields]
    required = any(o["default"] == "required" for o in options)
    rules = [] if required else rules_of(p())
    described = [{"name": r.name, "ops": sorted(r.ops or ()), "numerics": str(r.numerics), "doc": r.doc} for r in rules]
    return {
        "name": p.pass_name(),
        "doc": _doc(p),
        "numerics": str(p.numerics),
        "options": options,
        "rules": described,
    }


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else "required"


def _options(facts: dict[str, Any]) -> str:
    return "{" + ",".join(f"{o['name']}={o['default']}" for o in facts["options"]) + "}" if facts["options"] else ""


def _line(facts: dict[str, Any]) -> str:
    summary = " ".join(facts["doc"].split("\n\n")[0].split())
    return f"{facts['name']}{_options(facts)}\n    {summary}"


def _detail(facts: dict[str, Any]) -> str:
    from planish.report import table

    lines = [f"{facts['name']}{_options(facts)}: {facts['numerics']}", "", facts["doc"]]
    if facts["options"]:
        rows = [("option", "takes", "default"), *((o["name"], o["type"], str(o["default"])) for o in facts["options"])]
        lines += ["", table(rows, "lll")]
    if facts["rules"]:
        rules = [
            (r["name"], _shortened(",".join(r["ops"])), " ".join(r["doc"].split("\n\n")[0].split()))
            for r in facts["rules"]
        ]
        lines += ["", table([("rule", "operators", ""), *rules], "lll")]
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
