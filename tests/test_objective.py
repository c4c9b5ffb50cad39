"""What a searching sweeper is told: the value of the metric that is named."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode

from claygraph.cli import main
from claygraph.commands import run
from claygraph.composing import _Task
from claygraph.errors import PictureError, RequestError
from claygraph.execute import Result
from claygraph.jobs import Job
from claygraph.objective import returned
from claygraph.values import Score

BARE = ("photo.size=64", "tagger=none", "ip_adapter=none", "controlnet=none", "edges=none", "device=cpu")


def job(*results: Result, objective: str | None = "m") -> Job:
    made = Job({"objective": objective})  # type: ignore[arg-type]
    made.results.extend(results)
    return made


def scored(value: float, name: str = "m", stage: str = "metric") -> Result:
    return Result("x.png", scores={stage: Score(name, value)})


def test_the_value_is_the_mean_over_the_pictures_of_a_job() -> None:
    assert returned(job(scored(1.0), scored(2.0)), 0) == 1.5


def test_a_metric_may_be_named_by_its_stage() -> None:
    assert returned(job(scored(3.0, "other", "m")), 0) == 3.0


def test_without_an_objective_it_is_the_exit_code() -> None:
    assert returned(job(scored(1.0), objective=None), 1) == 1


def test_a_job_that_failed_has_its_error_for_a_value() -> None:
    error = PictureError("gone")
    assert returned(job(scored(1.0), Result("y.png", error=error)), 1) is error


def test_an_unknown_objective_is_told_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="objective='mm' is none of the metrics that ran; did you mean 'm'"):
        returned(job(scored(1.0, "m"), objective="mm"), 0)


def launched(*overrides: str, jobs: list[list[str]]) -> list[JobReturn]:
    """What the launcher gives a sweeper that asks for these jobs."""
    with initialize_config_module("claygraph.conf", version_base="1.3", job_name="claygraph"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("config", list(overrides), RunMode.MULTIRUN)
        context = HydraContext(hydra.config_loader, callbacks=None)  # type: ignore[arg-type]
        task: Any = _Task(run, ())
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
        return list(launcher.launch([[*overrides, *each] for each in jobs], 0))


def test_the_launcher_returns_each_jobs_metric_or_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = (*BARE, f"out={tmp_path}", "metric=sharpness", "objective=sharpness", "sampler.steps=1", "store=null")
    jobs = [["sampler.denoise=0.2"], ["sampler.denoise=0.9"], [f"image={tmp_path}/gone.png"]]
    ended = launched(*fixed, jobs=jobs)
    written = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    values = [each.return_value for each in ended[:2]]
    assert values == [entry["metrics"]["sharpness"] for entry in written[:2]]
    assert values[0] != values[1]
    with pytest.raises(PictureError, match="gone"):
        _ = ended[2].return_value


@pytest.mark.skipif(find_spec("optuna") is None, reason="the extra 'optuna' is not installed")
def test_optuna_finds_the_knob_that_makes_the_metric_highest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=6")
    sampler = ("hydra.sweeper.n_jobs=3", "hydra.sweeper.sampler.seed=1", "sampler.denoise=interval(0.05,0.95)")
    fixed = (*BARE, f"out={tmp_path}", "metric=sharpness", "objective=sharpness", "sampler.steps=1")
    assert main(["-m", *fixed, *optuna, *sampler]) == 0
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    jobs = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert len(jobs) == 6
    highest = max(jobs, key=lambda each: float(each["metrics"]["sharpness"]))
    assert best["best_value"] == highest["metrics"]["sharpness"]
    assert f"sampler.denoise={best['best_params']['sampler.denoise']}" in highest["overrides"]
