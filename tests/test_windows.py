"""Windows that no step of a run falls into."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
from hydra import compose, initialize_config_module

from claygraph import planning
from claygraph.diffusion import windows
from claygraph.diffusion.schedules import Table, sigma_at_percent, sigma_table
from claygraph.diffusion.windows import never_act, percent_of, windows_of
from claygraph.jobs import Job
from claygraph.stages.controlnet import ControlNet
from claygraph.stages.sampler import KSampler
from claygraph.values import Model
from tests.controls import control, sampled, schedule
from tests.denoising import base, image_prompt

TABLE = sigma_table()


@dataclass(frozen=True)
class Part:
    start: float = 0.0
    end: float = 1.0


def said(start: float, end: float, sigmas: list[float]) -> list[str]:
    return never_act({"controlnet": Part(start, end)}, sigmas, TABLE)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.2505, 0.5, 0.77, 0.999])
def test_percent_is_the_inverse_of_its_sigma(share: float) -> None:
    assert percent_of(sigma_at_percent(share, TABLE), TABLE) == pytest.approx(share, abs=1e-5)


def test_percent_of_what_the_table_does_not_reach_is_an_end() -> None:
    assert (percent_of(100.0, TABLE), percent_of(0.001, TABLE)) == (0.0, 1.0)


def test_a_window_that_ends_before_the_run_is_told_with_its_numbers() -> None:
    assert said(0.0, 0.4, schedule(0.6)) == [
        "controlnet never acts: start 0 to end 0.4 is sigma inf to 2.28, and the 6 steps begin at sigma 2.28 to 0.342, "
        "which is 0.400 to 0.901 of the training schedule; give an end of at least 0.401, or more denoise."
    ]


def test_a_window_that_begins_after_the_last_step_is_told() -> None:
    [found] = said(0.9, 1.0, schedule())
    assert "give a start of at most 0.833, or more steps" in found


def test_a_window_between_two_steps_is_told() -> None:
    [found] = said(0.2, 0.3, schedule())
    assert "it lies between two steps: widen it, or take more steps" in found


@pytest.mark.parametrize(("start", "end", "denoise"), [(0, 1, 1), (0.5, 0.5, 1), (0, 0.41, 0.6), (0.3, 0.35, 1)])
def test_a_window_with_a_step_in_it_is_not(start: float, end: float, denoise: float) -> None:
    middle = [sigma_at_percent(0.5, TABLE)]
    assert said(start, end, schedule(denoise)[:1] + middle + schedule(denoise)[1:]) == []


def test_a_run_without_steps_has_nothing_to_tell() -> None:
    assert said(0.0, 0.1, []) == []


def test_controls_and_image_prompts_have_windows() -> None:
    model = Model(base(), image_prompts=(image_prompt(end=0.2),), controls=(control(start=0.9),))
    found = windows_of(model)
    assert [(part.start, part.end) for part in found.values()] == [(0.9, 1.0), (0.0, 0.2)]
    assert list(found) == ["controlnet canny", "ip_adapter plain.safetensors"]


def test_a_run_warns_once_and_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    windows.warn_once.cache_clear()
    stage = KSampler(steps=2, denoise=0.5, cfg=1.0)
    with caplog.at_level(logging.WARNING):
        results = [sampled(stage, Model(base(), controls=(control(end=0.3),))) for _ in range(2)]
    assert [record.getMessage()[:27] for record in caplog.records] == ["controlnet canny never acts"]
    assert (results[0].samples == sampled(stage, Model(base())).samples).all()


def test_a_run_whose_windows_meet_its_steps_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    windows.warn_once.cache_clear()
    sampled(KSampler(steps=2, cfg=1.0), Model(base(), controls=(control(end=0.6),)))
    assert not caplog.records


PLANS = [
    (["controlnet.end=0.3", "sampler.denoise=0.6"], "note: controlnet never acts: start 0 to end 0.3"),
    (["ip_adapter.start=0.97"], "note: ip_adapter never acts: start 0.97 to end 1"),
    (["controlnet.end=0.3", "sampler.denoise=1"], ""),
    (["controlnet=none", "sampler.denoise=0.6"], ""),
]


@pytest.mark.parametrize(("overrides", "note"), PLANS)
def test_plan_tells_what_never_acts(overrides: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        configs = [compose("config", [*overrides, "out=nowhere", f"sampler.seed={seed}"]) for seed in (1, 2)]
    assert planning.plan([Job(config) for config in configs]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == bool(note)
    assert all(line.startswith(note) for line in notes)


def test_full_windows_need_no_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: KSampler, table: Table) -> list[float]:
        raise LookupError("sigmas")

    monkeypatch.setattr(KSampler, "sigmas", refused)
    assert KSampler().notes({"controlnet": ControlNet("x")}) == []
    with pytest.raises(LookupError, match="sigmas"):
        KSampler().notes({"controlnet": ControlNet("x", end=0.9)})
