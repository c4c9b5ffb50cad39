"""Hydra plug-ins: run a whole ``--multirun`` as one graph, and find the configs of installed stage packages.

Hydra executes this module while it scans, before it is in ``sys.modules``: no dataclass here, nothing slow to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from claygraph.errors import RequestError

if TYPE_CHECKING:
    from claygraph.composer import Composer

SETTINGS = ("ablation", "skip", "zip")
"""Top-level keys that say how to sweep."""


class FusedLauncher(Launcher):
    """Plans every job first, so that a fault in one shows before any weight is loaded; then runs all as one graph."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task = task_function
        self.composer = _composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        variants = enumerate(map(self.composer.variant, job_overrides), initial_job_idx)
        jobs = [(each.having(out=f"{each.out}/{index}"), index) for index, each in variants]
        values = self.task([(config, given, index) for (config, index), given in zip(jobs, job_overrides, strict=True)])
        return [self._ended(*each) for each in zip(job_overrides, values, strict=True)]

    @staticmethod
    def _ended(overrides: Sequence[str], value: Any) -> JobReturn:
        status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
        ended = JobReturn(overrides=overrides, status=status)
        ended.return_value = value
        return ended


def _composer(loader: ConfigLoader, config: DictConfig) -> Composer:
    from claygraph.composer import Composer

    return Composer(partial(loader.load_sweep_config, config), config, config.hydra.overrides.task)


class FusedSweeper(Sweeper):
    """All jobs at once: combinations as the basic sweeper makes them, axes that advance together, skips, designs."""

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.most, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.composed = hydra_context.config_loader, config
        self.runs = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        jobs = [list(cell.values()) for cell in self._cells(given)]
        if not jobs:
            raise RequestError("skip leaves no job to make; take a level out of it.")
        most = self.most or max(1, len(jobs))
        parts = ((place, jobs[place : place + most]) for place in range(0, len(jobs), most))
        return [self.runs.launch(part, initial_job_idx=place) for place, part in parts]

    def _cells(self, given: list[str]) -> Iterator[dict[str, str]]:
        from claygraph.ablation import cells_of
        from claygraph.sweeps import sweep_of

        composer = getattr(self.runs, "composer", None) or _composer(self.loader, self.composed)
        own = OmegaConf.masked_copy(self.composed, [key for key in SETTINGS if key in self.composed])
        settings: Any = OmegaConf.to_container(own)
        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(given)
        told = [each for each in overrides if not _only_tells_what_to_sweep(str(each.input_line), composer)]
        return cells_of(sweep_of(told, settings), settings.get("ablation", {}), composer.variant, self._choices)

    def _choices(self, group: str) -> Sequence[str]:
        return list(self.loader.get_group_options(group))


def _only_tells_what_to_sweep(override: str, composer: Composer) -> bool:
    """Whether it names a config of axes, which changes nothing in a job."""
    return override.startswith("+sweep=") and composer.variant([override]).json() == composer.variant([]).json()


class StageConfigs(SearchPathPlugin):
    """An installed package brings the configs of its stages by an entry point of the group ``claygraph.conf``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group="claygraph.conf"):
            search_path.append(provider=point.name, path=f"pkg://{point.value}")


def _register() -> None:
    store = ConfigStore.instance()
    launcher = {"_target_": f"{__name__}.FusedLauncher"}
    sweeper = {"_target_": f"{__name__}.FusedSweeper", "max_batch_size": None, "params": None}
    store.store(group="hydra/launcher", name="fused", node=launcher, provider="claygraph")
    store.store(group="hydra/sweeper", name="fused", node=sweeper, provider="claygraph")


_register()
