"""``python -m planish.testing [RULE ...]``: the generated test of all rules, or of those that are named."""

from __future__ import annotations

import argparse
import sys
import time

from .check import RuleError, check_rule
from .discover import all_rules


def main() -> int:
    """Check, one line per rule; 1 if any is wrong."""
    parser = argparse.ArgumentParser(prog="python -m planish.testing", description=main.__doc__)
    parser.add_argument("rules", nargs="*", metavar="RULE", help="names or parts of names; all if none is given")
    parser.add_argument("--examples", type=int, default=50, help="in how many graphs a rule has to fire (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-q", "--quiet", action="store_true", help="failures in one line")
    parser.add_argument("-v", "--verbose", action="store_true", help="say where inference and evaluation disagree")
    options = parser.parse_args()
    failed = 0
    for rule in all_rules():
        if options.rules and not any(name in rule.name for name in options.rules):
            continue
        started = time.perf_counter()
        try:
            report = check_rule(rule, examples=options.examples, seed=options.seed)
            line = f"ok    {report}"
            if options.verbose:
                line += f" ({report.rejected.total()} rejected)"
                line += "".join(f"\n      {n} x rejected: {why}" for why, n in report.rejected.most_common(3))
                line += "".join(f"\n      contradiction: {c}" for c in list(report.contradictions)[:5])
        except RuleError as error:
            failed += 1
            text = str(error)
            line = f"FAIL  {text.splitlines()[0] if options.quiet else text}"
        print(f"{line}  [{time.perf_counter() - started:.1f}s]", flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
