"""``planish explain``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from planish.cli import echo_json, model_argument, pipeline_option, standard_options

if TYPE_CHECKING:
    from planish.explanation import Explanation
    from planish.passes.observers.explain import NearMiss

__all__ = ["command"]

_MISSES, _SITES = 15, 3  # groups of misses, and sites per rule, that are shown without --all


@click.command("explain")
@model_argument
@pipeline_option
@click.option(
    "--target", default="onnxruntime", show_default=True, help="What is to run the result, such as onnxruntime:arm64."
)
@click.option("--data", metavar="DATA", help="Sample inputs; by default some are made up.")
@click.option("--rule", metavar="NAME", help="Only this rule, with every near miss.")
@click.option("--all", "show_all", is_flag=True, help="Every site and every near miss, however far.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@standard_options
def command(
    model: str, pipeline: str, target: str, data: str | None, rule: str | None, show_all: bool, as_json: bool
) -> None:
    """Say which rules fired on MODEL and where, which nearly did, and why they did not.

    Of a quantized model or pipeline, also: what became of each layer, what stays in floating point, and which fusions
    quantizers keep from happening.
    """
    from planish.explanation import explain

    found = explain(model, pipeline, rule=rule, target=target, data=data)
    show_all = show_all or rule is not None
    if as_json:
        echo_json(_facts(model, pipeline, found))
        return
    click.echo(_fired(found, show_all))
    click.echo("\n" + _missed(found.misses, show_all))
    for text in (_layers(found, show_all), _floats(found, show_all), _blocked(found)):
        if text:
            click.echo("\n" + text)
    for name, problem in found.problems.items():
        click.echo(f"\n{name}: {problem}")


def _facts(model: str, pipeline: str, found: Explanation) -> dict[str, Any]:
    return {
        "model": model,
        "pipeline": pipeline,
        "fired": found.fired,
        "tidied": found.tidied,
        "sites": [{"rule": s.rule, "nodes": s.nodes, "made": s.made, "origin": s.origin} for s in found.sites],
        "near_misses": [_miss_facts(m) for m in found.misses],
        "problems": found.problems,
        "layers": found.layers,
        "floats": [{"node": node, "reason": reason} for node, reason in found.floats],
        "blocked": [{"rule": b.rule, "site": b.site, "quantizers": b.quantizers} for b in found.blocked],
    }


def _miss_facts(miss: NearMiss) -> dict[str, Any]:
    return {
        "rule": miss.rule,
        "anchor": miss.anchor_text,
        "origin": str(miss.anchor.origin),
        "matched": miss.reached,
        "pattern": miss.size,
        "reason": miss.reason,
        "ended_at": miss.end_text,
    }


def _fired(found: Explanation, show_all: bool) -> str:
    if not found.fired:
        return "Nothing fired."
    lines = ["Fired:"]
    for rule, times in found.fired.items():
        lines.append(f"  {rule}: {times} time{'s' if times > 1 else ''}")
        sites = [s for s in found.sites if s.rule == rule]
        shown = sites if show_all else sites[:_SITES]
        lines += [f"      at {site}" for site in shown]
        if len(sites) > _SITES and not show_all:
            lines.append(f"      … and {len(sites) - _SITES} more")
    if found.tidied:
        lines.append("Besides: " + ", ".join(f"{rule} ({times})" for rule, times in found.tidied.items()))
    return "\n".join(lines)


def _missed(misses: list[NearMiss], show_all: bool) -> str:
    from planish.passes.observers.explain import grouped

    groups = grouped(m for m in misses if show_all or m.is_close)
    if not groups:
        far = Counter(m.rule for m in misses)
        return "No near misses" + (f" (--all shows {len(misses)} far ones, of {len(far)} rules)." if far else ".")
    shown = groups if show_all else groups[:_MISSES]
    lines = [
        "Near misses, closest first:",
        *(f"  {miss}" + (f" ({times} times)" if times > 1 else "") for miss, times in shown),
    ]
    if len(shown) < len(groups):
        lines.append(f"  … and {len(groups) - len(shown)} more kinds (--all)")
    return "\n".join(lines)


def _layers(found: Explanation, show_all: bool) -> str:
    from planish.report import layer_table

    return layer_table(found.layers, None if show_all else _MISSES)


def _floats(found: Explanation, show_all: bool) -> str:
    """What stays in floating point, grouped by the reason."""
    if not found.floats:
        return ""
    groups: dict[str, list[str]] = {}
    for node, reason in found.floats:
        groups.setdefault(reason, []).append(node)
    lines = ["In floating point:"]
    for reason, nodes in sorted(groups.items(), key=lambda item: -len(item[1])):
        shown = nodes if show_all else nodes[:_SITES]
        more = f" … and {len(nodes) - len(shown)} more" if len(shown) < len(nodes) else ""
        lines.append(f"  {reason}: {', '.join(shown)}{more}")
    return "\n".join(lines)


def _blocked(found: Explanation) -> str:
    if not found.blocked:
        return ""
    return "\n".join(["Fusions that quantizers keep from happening:", *(f"  {b}" for b in found.blocked)])
