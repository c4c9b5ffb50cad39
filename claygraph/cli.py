"""Command line. Nothing heavier than Hydra is imported until a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from claygraph.errors import ClaygraphError, RequestError, nearest
from claygraph.help import SUBCOMMANDS, help_text

Command = Callable[[Sequence[Any]], int]


def main(argv: Sequence[str]) -> int:
    """Run one command line; its exit code: 0 all done, 1 some pictures failed, 2 the request was wrong."""
    arguments = list(argv)
    if {"-h", "--help"} & set(arguments) or arguments[:1] == ["help"]:
        print(help_text())
        return 0
    try:
        command = _command(arguments)
        return _compose_and_run(command, arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        return _explain(error, arguments)


def _command(arguments: list[str]) -> Command:
    """Take the sub-command off the front of the arguments; ``run`` where there is none."""
    from claygraph import commands

    name = "run"
    if arguments and arguments[0][:1] not in "-+~" and "=" not in arguments[0]:
        name = arguments.pop(0)
    if name not in SUBCOMMANDS:
        close = nearest(name, SUBCOMMANDS)
        raise RequestError(f"'{name}' is neither a sub-command nor an override (KEY=VALUE){close}")
    return getattr(commands, name)  # type: ignore[no-any-return]


def _compose_and_run(command: Command, arguments: list[str]) -> int:
    """Let Hydra compose one config, or one for each job of ``-m``, and run the command on them."""
    import hydra
    from omegaconf import DictConfig

    codes, failures = [0], list[Exception]()

    @hydra.main(version_base="1.3", config_path="pkg://claygraph.conf", config_name="config")
    def task(configs: Any) -> Any:
        try:
            codes.append(command([configs] if isinstance(configs, DictConfig) else configs))
        except Exception as error:  # told below: Hydra would print it in its own way
            failures.append(error)
        return codes[-1]

    full, program = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"], sys.argv = "1", [program[0], *arguments]  # errors come to us, not to sys.exit
    try:
        task()
    finally:
        sys.argv = program
        _restore("HYDRA_FULL_ERROR", full)
    if failures:
        raise failures[0]
    return max(codes)


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        del os.environ[variable]
    else:
        os.environ[variable] = value


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
