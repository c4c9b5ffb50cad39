"""Command line. Nothing heavier than Hydra is imported until a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from claygraph.composing import Command, compose_and_run
from claygraph.errors import ClaygraphError, RequestError, nearest
from claygraph.help import SUBCOMMANDS, help_text

DIRECT = {  # sub-commands that take words instead of a config: where their function is
    "stages": "claygraph.listing",
    "store": "claygraph.housekeeping",
    "status": "claygraph.status",
    "report": "claygraph.reporting",
    "replay": "claygraph.replay",
}


def main(argv: Sequence[str]) -> int:
    """Run one command line; its exit code: 0 all done, 1 some pictures failed, 2 the request was wrong."""
    arguments = list(argv)
    if {"-h", "--help"} & set(arguments) or arguments[:1] == ["help"]:
        print(help_text())
        return 0
    try:
        name = _subcommand(arguments)
        if name in DIRECT:
            return int(getattr(import_module(DIRECT[name]), name)(arguments))
        command = _command(name, arguments)
        return compose_and_run(command, arguments)
    except BrokenPipeError:  # whoever read our lines has seen enough; the interpreter's own flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        return _explain(error, arguments)


def _subcommand(arguments: list[str]) -> str:
    """Take the sub-command off the front of the arguments, ``run`` where there is none."""
    name = "run"
    if arguments and arguments[0][:1] not in "-+~" and "=" not in arguments[0]:
        name = arguments.pop(0)
    if name not in SUBCOMMANDS:
        close = nearest(name, SUBCOMMANDS)
        raise RequestError(f"'{name}' is neither a sub-command nor an override (KEY=VALUE){close}")
    return name


def _command(name: str, arguments: list[str]) -> Command:
    """What a sub-command does with composed configs; its own flags are taken out of the arguments."""
    if name == "graph":
        from claygraph.drawing import command

        return command(arguments)
    from claygraph import commands, planning

    return planning.plan if name == "plan" else commands.run


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    if isinstance(error, ClaygraphError):
        return _fail(str(error), 2)
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        from claygraph.explain import explain

        return _fail(explain(error, arguments), 2)
    return _fail(f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)", 1)


def _fail(sentence: str, code: int) -> int:
    print(f"claygraph: {sentence}", file=sys.stderr)
    return code
