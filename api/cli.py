"""The command line: the group, what its commands share, and what becomes of errors. The commands are in `commands/`."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

__all__ = ["echo_json", "main", "model_argument", "pipeline_option", "planish", "progress", "standard_options"]

COMMANDS = {
    "optimize": "optimize",
    "inspect": "inspect",
    "compare": "compare",
    "bench": "bench",
    "passes": "passes",
    "explain": "explain",
    "bisect": "bisect",
    "reduce": "reduce",
    "doctor": "doctor",
    "demo": "demo",
}  # command -> module in planish.commands
F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """Loads a command when it is used, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"planish.commands.{COMMANDS[cmd_name]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}; " + (f"did you mean {near[0]}?" if near else "see planish --help"))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            _complain(error.format_message())
        except Exception as error:
            if "--debug" in sys.argv or ctx.find_root().meta.get("planish.debug"):
                raise
            _complain(_message(error))
        return ctx.exit(2)


def _complain(message: str) -> None:
    click.echo(f"planish: {message}", err=True)


def _message(error: Exception) -> str:
    """What to say about ``error``: its own words if they are meant for users, else that it is a bug."""
    from planish.ir.errors import PlanishError

    if isinstance(error, PlanishError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    from planish.functions import one_line

    return f"internal error: {one_line(error)} (--debug shows the traceback)"


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from planish import __version__

        click.echo(f"planish {__version__}")
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def planish() -> None:
    """Make neural-network graphs smaller and faster, and check every step.

    MODEL is an .onnx, .pt2, .keras, .h5 or .pb file, the folder of a SavedModel (folder:signature), or
    module.py:function that returns a model. DATA is an .npz file, a folder of them,
    or module.py:function that returns samples. Exit codes: 0 done, 1 an expectation or check failed, 2 bad usage or
    input.
    """


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().meta["planish.debug"] = value


def standard_options(function: F) -> F:
    """``--debug``."""
    return click.option("--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show tracebacks.")(
        function
    )


def model_argument(function: F) -> F:
    """The argument MODEL."""
    return click.argument("model")(function)


def pipeline_option(function: F) -> F:
    """``-p``."""
    text = "Passes, such as 'simplify' (see planish passes)."
    return click.option("-p", "--pipeline", default="default", show_default=True, help=text)(function)


def echo_json(value: Any) -> None:
    """Print ``value`` as the one JSON object on stdout; what JSON lacks (NaN, infinity) becomes null."""
    click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


@contextmanager
def progress() -> Iterator[Callable[[str], None] | None]:
    """A function that shows what is going on, if stderr is a terminal; else None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda message: status.update(Text(message))


def main() -> None:
    """The entry point of the ``planish`` command."""
    planish(prog_name="planish")
