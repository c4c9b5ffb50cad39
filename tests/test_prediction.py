"""Kinds of checkpoint: told by their markers, and computed as diffusers' schedulers compute them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, rescale_zero_terminal_snr
from safetensors.torch import load_file, save_file

from claygraph import files
from claygraph.diffusion import describe
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.prediction import into_model, out_of_model, table_of, timestep, unet_input, x0
from claygraph.diffusion.schedules import sigma_at_percent, sigmas_for
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint, Weights
from tests import tiny
from tests.denoising import base, call, error, memory, run

BARE = Weights("", "")
EPSILON, VELOCITY = Checkpoint(BARE), Checkpoint(BARE, prediction="v_prediction")
ZERO_SNR = Checkpoint(BARE, prediction="v_prediction", zero_snr=True)
EDM = Checkpoint(BARE, prediction="edm", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
MEAN, STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
V_MARK: dict[str, torch.Tensor] = {"v_pred": torch.zeros(0)}


def weights(path: Path) -> Weights:
    return Weights(str(path), files.digest(path))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("single") / "model.safetensors")


def marked(single: Path, marks: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    """The checkpoint that the file makes with these tensors added."""
    save_file(load_file(single) | marks, path / "marked.safetensors", describe.metadata(single))
    return describe.describe(weights(path / "marked.safetensors"))


def test_a_file_without_markers_predicts_noise(single: Path) -> None:
    found = describe.describe(weights(single))
    assert (found.prediction, found.zero_snr, found.sigma_max) == ("epsilon", False, 0)


@pytest.mark.parametrize("ztsnr", [False, True])
def test_markers_of_v_prediction_and_zero_terminal_snr(ztsnr: bool, single: Path, tmp_path: Path) -> None:
    marks = V_MARK | ({"ztsnr": torch.zeros(0)} if ztsnr else {})
    found = marked(single, marks, tmp_path)
    assert (found.prediction, found.zero_snr, found.sigma_max) == ("v_prediction", ztsnr, 0)


def test_zero_terminal_snr_without_v_prediction_is_left_out(single: Path, tmp_path: Path) -> None:
    found = marked(single, {"ztsnr": torch.zeros(0)}, tmp_path)
    assert (found.prediction, found.zero_snr) == ("epsilon", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_markers_of_playground(dtype: torch.dtype, single: Path, tmp_path: Path) -> None:
    mean, std = torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype)
    found = marked(single, {"edm_mean": mean[None, :, None, None], "edm_std": std}, tmp_path)
    assert (found.prediction, found.sigma_min, found.sigma_max, found.sigma_data) == ("edm", 0.002, 80.0, 0.5)
    assert found.scaling_factor == 0.5
    assert (found.latent_mean, found.latent_std) == (tuple(mean.tolist()), tuple(std.tolist()))


def test_markers_of_v_prediction_over_continuous_sigmas(single: Path, tmp_path: Path) -> None:
    found = marked(single, V_MARK | {"edm_vpred.sigma_max": torch.tensor(200.0)}, tmp_path)
    assert (found.prediction, found.sigma_min, found.sigma_max, found.sigma_data) == ("v_prediction", 0.002, 200.0, 1.0)


MALFORMED = {
    "its latents as": {"edm_mean": torch.tensor(MEAN), "edm_std": torch.tensor([1.0, 2.0])},
    "no range": {"edm_vpred.sigma_max": torch.tensor(math.nan)},
}


@pytest.mark.parametrize("said", MALFORMED)
def test_markers_that_make_no_sense_are_refused(said: str, single: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=said):
        marked(single, MALFORMED[said], tmp_path)


def rewritten(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_says_it_in_its_configs(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    rewritten(folder / "scheduler/scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler", sigma_max=80.0)
    rewritten(folder / "vae/config.json", scaling_factor=0.5, latents_mean=list(MEAN), latents_std=list(STD))
    found = describe.describe(weights(folder))
    assert (found.prediction, found.sigma_min, found.sigma_max, found.sigma_data) == ("edm", 0.002, 80.0, 0.5)
    assert (found.scaling_factor, found.latent_mean, found.latent_std) == (0.5, MEAN, STD)


@pytest.mark.parametrize(("prediction", "kept"), [("v_prediction", True), ("epsilon", False)])
def test_a_folder_may_ask_for_zero_terminal_snr(prediction: str, kept: bool, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    config = folder / "scheduler/scheduler_config.json"
    rewritten(config, prediction_type=prediction, rescale_betas_zero_snr=True)
    found = describe.describe(weights(folder))
    assert (found.prediction, found.zero_snr) == (prediction, kept)


def test_an_unknown_prediction_type_is_refused(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    rewritten(folder / "scheduler/scheduler_config.json", prediction_type="v_predicton")
    with pytest.raises(WeightsError, match="did you mean 'v_prediction'"):
        describe.describe(weights(folder))


def test_a_folder_of_configs_wins_over_markers(single: Path, tmp_path: Path) -> None:
    marked(single, V_MARK, tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    found = describe.describe(weights(tmp_path / "marked.safetensors"), weights(tmp_path))
    assert found.prediction == "epsilon"


def test_another_vae_leaves_the_scale_of_latents_to_the_checkpoint(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    rewritten(folder / "vae/config.json", scaling_factor=0.4)
    save_file(tiny.contiguous(tiny.ldm_vae(tiny.components()["vae"])), tmp_path / "vae.safetensors")
    found = describe.describe(weights(folder), vae=weights(tmp_path / "vae.safetensors"))
    assert found.scaling_factor == 0.4


def test_zero_terminal_snr_sigmas_are_those_of_diffusers() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)[:-1]
    expected = ((1 - kept) / kept).sqrt()
    np.testing.assert_allclose(table_of(ZERO_SNR)[:-1], expected, rtol=2e-5)
    assert table_of(ZERO_SNR)[-1] == pytest.approx(4518.76, abs=0.01)
    assert table_of(ZERO_SNR)[0] == pytest.approx(table_of(EPSILON)[0], rel=1e-5)


def test_edm_sigmas_are_equal_steps_in_the_logarithm() -> None:
    table = np.array(table_of(EDM))
    assert (table[0], table[-1]) == pytest.approx((0.002, 80.0))
    np.testing.assert_allclose(np.diff(np.log(table)), math.log(40000) / 999, rtol=1e-3)
    sigmas = sigmas_for("normal", 5, table=table_of(EDM))
    np.testing.assert_allclose(sigmas[:-1], np.geomspace(80, 0.002, 5), rtol=1e-5)
    assert sigma_at_percent(0.25, table_of(EDM)) == pytest.approx(80 * 40000**-0.25, rel=1e-5)
    karras = (80 ** (1 / 7) + np.linspace(0, 1, 6) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas_for("karras", 6, table=table_of(EDM))[:-1], karras, rtol=1e-5)


def edm_reference(prediction: str, data: float) -> Any:
    return EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=data, prediction_type=prediction)


@pytest.mark.parametrize("sigma", [80.0, 3.0, 0.5, 0.002])
@pytest.mark.parametrize(("kind", "prediction", "data"), [("edm", "epsilon", 0.5), ("v_prediction", "v_prediction", 1)])
def test_continuous_kinds_are_preconditioned_as_in_diffusers(
    sigma: float, kind: str, prediction: str, data: float
) -> None:
    checkpoint = Checkpoint(BARE, prediction=kind, sigma_min=0.002, sigma_max=80.0, sigma_data=data)
    reference, at = edm_reference(prediction, data), torch.tensor(sigma)
    x, output = torch.randn(2, 1, 4, 4, 4)
    torch.testing.assert_close(unet_input(x, at, checkpoint), reference.precondition_inputs(x, at))
    torch.testing.assert_close(x0(x, at, output, checkpoint), reference.precondition_outputs(x, output, at))
    assert timestep(sigma, checkpoint) == pytest.approx(float(reference.precondition_noise(at)), rel=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_discrete_kinds_give_the_clean_picture_that_diffusers_gives(prediction: str) -> None:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    scheduler.set_timesteps(7)
    x, output = torch.randn(2, 1, 4, 4, 4)
    sigma = scheduler.sigmas[0]
    scaled = scheduler.scale_model_input(x, scheduler.timesteps[0])
    expected = scheduler.step(output, scheduler.timesteps[0], x, return_dict=True).pred_original_sample
    checkpoint = Checkpoint(BARE, prediction=prediction)
    torch.testing.assert_close(unet_input(x, sigma, checkpoint), scaled)
    assert error(x0(x, sigma, output, checkpoint), expected) < 1e-5


@pytest.mark.parametrize("checkpoint", [EPSILON, VELOCITY, ZERO_SNR, EDM], ids=["epsilon", "v", "ztsnr", "edm"])
def test_a_perfect_model_gives_the_clean_picture(checkpoint: Checkpoint) -> None:
    """The output that a model of unlimited skill would give, written out for each kind from its definition."""
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    sigma = torch.tensor(1.7)
    x, total = clean + sigma * noise, sigma**2 + checkpoint.sigma_data**2
    outputs = {
        "epsilon": noise,
        "v_prediction": (noise - sigma * clean) / total.sqrt(),  # arXiv 2202.00512: alpha noise - sigma' clean
        "edm": (clean - x * 0.25 / total) * total.sqrt() / (sigma * 0.5),  # arXiv 2206.00364, equation 8
    }
    assert error(x0(x, sigma, outputs[checkpoint.prediction], checkpoint), clean) < 1e-6


def test_latents_are_shifted_and_scaled_and_empty_ones_stay_empty() -> None:
    checkpoint = Checkpoint(BARE, prediction="edm", latent_mean=MEAN, latent_std=STD, scaling_factor=0.5)
    latent = torch.randn(1, 4, 3, 3) * 5
    expected = torch.stack([(latent[:, c] - MEAN[c]) / STD[c] * 0.5 for c in range(4)], 1)
    torch.testing.assert_close(into_model(latent, checkpoint), expected)
    torch.testing.assert_close(out_of_model(expected, checkpoint), latent)
    assert not into_model(torch.zeros(1, 4, 3, 3), checkpoint).any()
    assert torch.equal(into_model(latent, EPSILON), latent * 0.13025)


def test_the_denoiser_asks_an_edm_unet_at_its_own_timestep_and_scale() -> None:
    edm = replace(base(), prediction="edm", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    one = call(20.0, 1.0, checkpoint=edm)
    seen: dict[str, torch.Tensor] = {}
    unet: Any = memory().get(("unet", edm.weights, None), lambda: load_unet(edm, memory()))
    handle = unet.register_forward_hook(
        lambda _module, _args, kwargs, output: seen.update(kwargs, output=output[0]), with_kwargs=True
    )
    (found,) = run(one)
    handle.remove()
    reference, sigma = edm_reference("epsilon", 0.5), torch.tensor(20.0)
    torch.testing.assert_close(seen["sample"], reference.precondition_inputs(one.x, sigma))
    assert seen["timestep"].tolist() == pytest.approx([0.25 * math.log(20)])
    assert error(found, reference.precondition_outputs(one.x, seen["output"], sigma)) < 1e-6
