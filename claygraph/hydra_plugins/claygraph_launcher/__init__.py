"""Hydra plug-ins: run a whole ``--multirun`` as one graph, and find the configs of installed stage packages.

Hydra executes this module while it scans, before it is in ``sys.modules``: no dataclass here, nothing slow to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class FusedLauncher(Launcher):
    """Plans every job first, so that a fault in one shows before any weight is loaded; then runs all as one graph."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.task = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        jobs = [(self._compose(list(each), idx), each) for idx, each in enumerate(job_overrides, initial_job_idx)]
        code = self.task(jobs)
        done = [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
        for job in done:
            job.return_value = code
        return done

    def _compose(self, overrides: list[str], idx: int) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        out = config.out
        with open_dict(config):
            config.out = f"{out}/{idx}"
            del config["hydra"]
        return config


class FusedSweeper(BasicSweeper):
    """The basic sweeper without its dry run: the launcher plans all jobs before it runs any."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing to do here: the launcher composes each job once."""


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
