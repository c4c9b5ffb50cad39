"""From the arguments of a command line to composed configs, by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from claygraph.errors import RequestError
from claygraph.jobs import Job
from claygraph.objective import returned
from claygraph.sweeps import root
from claygraph.variants import NOT_SETTINGS

CHEAP_METRICS = "metric=[ssim,edge_f1,sharpness,clay]"
Command = Callable[[Sequence[Job]], int]
MULTIRUN = ("-m", "--multirun")


def compose_and_run(command: Command, arguments: Sequence[str]) -> int:
    """Compose one config, or one for each job of ``-m``, and run the command on them; its exit code.

    Raises:
        RequestError, HydraException: the request cannot be met as it is written.
    """
    arguments = with_metrics(arguments)
    task = _Task(command, _flags(arguments))
    if set(arguments).isdisjoint(MULTIRUN):
        _check_one_job(arguments)
    if not any(argument.startswith("-") for argument in arguments):
        _plain(task, list(arguments))
    elif arguments[0] in MULTIRUN and not any(argument.startswith("-") for argument in arguments[1:]):
        _sweep(task, list(arguments[1:]))
    else:
        _as_application(task, arguments)
    return max(task.codes, default=0)


class _Task:
    """What Hydra calls with one composed config, or our launcher with several; it keeps the exit codes."""

    def __init__(self, command: Command, flags: tuple[str, ...]) -> None:
        self.command, self.flags = command, flags
        self.codes: list[int] = []

    def __call__(self, composed: Sequence[tuple[Any, Sequence[str], int | None]]) -> list[Any]:
        """Run the command on configs with their overrides and places in a sweep; what each job returns."""
        jobs = [Job(config, tuple(overrides), self.flags, index) for config, overrides, index in composed]
        self.codes.append(self.command(jobs))
        return [returned(job, self.codes[-1]) for job in jobs]


def _check_one_job(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if root(argument) in NOT_SETTINGS and argument[:1] == "+":
            raise RequestError(f"{argument} is for a sweep; put -m before it.")


def _plain(task: _Task, overrides: list[str]) -> None:
    """Overrides alone need no more of Hydra than this, which takes half the time of an application's start."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("claygraph.conf", version_base="1.3"):
        config = compose("config", overrides)
    task([(config, overrides, None)])


def _sweep(task: _Task, overrides: list[str]) -> None:
    """A sweep without further flags; an application would compose the config once more to learn that it is one."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("claygraph.conf", version_base="1.3", job_name="claygraph"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.multirun("config", task, [*overrides, "hydra.mode=MULTIRUN"])


def _as_application(task: _Task, arguments: Sequence[str]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    failures = list[Exception]()

    @hydra.main(version_base="1.3", config_path="pkg://claygraph.conf", config_name="config")
    def application(composed: Any) -> Any:
        if isinstance(composed, DictConfig):
            composed = [(composed, HydraConfig.get().overrides.task, None)]
        try:
            return task(composed)
        except Exception as error:  # told by the caller: Hydra would print it in its own way
            failures.append(error)
            return [error for _ in composed]

    with _arguments(arguments):
        application()
    if failures:
        raise failures[0]


def with_metrics(arguments: Sequence[str]) -> list[str]:
    """The arguments, and for a sweep that chooses no metrics the ones that cost next to nothing."""
    sweep = not set(arguments).isdisjoint(MULTIRUN)
    chosen = any(argument.lstrip("+~").partition("=")[0] == "metric" for argument in arguments)
    return [*arguments, *([CHEAP_METRICS] if sweep and not chosen else [])]


def _flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """The flags, which stand before all overrides, without the one that asks for a sweep."""
    before = takewhile(lambda argument: argument.startswith("-") or "=" not in argument, arguments)
    return tuple(argument for argument in before if argument not in MULTIRUN and argument[:1] not in "+~")


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Give Hydra these arguments, and have it raise its errors instead of leaving with an exit code."""
    program, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [program[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = program
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)
