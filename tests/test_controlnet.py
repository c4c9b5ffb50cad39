"""ControlNets, against diffusers' ControlNetModel and UNet asked by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from claygraph import files
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.controlnet import fit
from claygraph.errors import WeightsError
from claygraph.values import Control, Weights
from tests import tiny, tiny_adapters
from tests.denoising import FOLDER, by_hand, call, diffusers_unet, error, picture, run, weights
from tests.tiny_layouts import ldm_unet

CLOSE = 5e-5
HINT = picture(7, 64, 64)


def canny() -> Weights:
    return weights(tiny_adapters.controlnet, "canny")


def control(strength: float = 1.0, start: float = 0.0, end: float = 1.0, **other: Any) -> Control:
    return replace(Control(canny(), HINT, strength, start, end), **other)


@cache
def diffusers_network(folder: str) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel.from_pretrained(folder).float().requires_grad_(False)


def diffusers_result(one: Denoise, hints: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    """A call with controls, as a pipeline of several ControlNets computes it; hints are given at their final size."""

    def add_residuals(arguments: dict[str, Any], negative: bool) -> None:
        shared = dict(arguments)
        total: list[torch.Tensor] = []
        for each, hint in zip(one.model.controls, hints, strict=True):
            picture = torch.from_numpy(hint / np.float32(255)).permute(2, 0, 1)[None]
            network, scale = diffusers_network(each.weights.path), each.strength
            down, middle = network(**shared, controlnet_cond=picture, conditioning_scale=scale, return_dict=False)
            total = [a + b for a, b in zip(total, [*down, middle], strict=True)] if total else [*down, middle]
        arguments["down_block_additional_residuals"] = tuple(total[:-1])
        arguments["mid_block_additional_residual"] = total[-1]

    return by_hand(diffusers_unet(), one, add_residuals)


@pytest.mark.parametrize("strength", [1.0, 0.35])
def test_controlled_result_is_that_of_diffusers(strength: float) -> None:
    one = call(controls=(control(strength),))
    assert error(run(one)[0], diffusers_result(one, [HINT.pixels])) < CLOSE
    assert error(run(one)[0], run(call())[0]) > 100 * CLOSE


def test_controls_add() -> None:
    other = picture(8, 64, 64)
    one = call(controls=(control(0.7), control(0.4, hint=other)))
    assert error(run(one)[0], diffusers_result(one, [HINT.pixels, other.pixels])) < CLOSE


def test_a_hint_of_another_shape_is_cropped_to_the_middle() -> None:
    wide = np.pad(HINT.pixels, ((0, 0), (20, 20), (0, 0)))
    found = run(call(controls=(control(hint=type(HINT)(wide)),)))[0]
    assert torch.equal(found, run(call(controls=(control(),)))[0])


def test_fitting_takes_the_nearest_pixels_of_the_middle() -> None:
    rows = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    assert (fit(rows, 3, 3)[0, :, 0] * 255).round().tolist() == [2, 3, 4]
    assert (fit(rows, 14, 6)[0, :, 0] * 255).round().tolist() == [n // 2 for n in range(14)]
    columns = np.arange(71, dtype=np.uint8)[None, :, None] * np.ones((54, 1, 3), np.uint8)
    centres = 8 + (np.arange(128) + 0.5) * 55 / 128
    assert (fit(columns, 128, 128)[0, 5] * 255).round().tolist() == np.floor(centres).tolist()


def test_hints_have_a_size_of_the_networks_own_stride(tmp_path: Path) -> None:
    config = json.loads((Path(canny().path) / "config.json").read_text())
    config["conditioning_embedding_out_channels"] = [16, 32, 64]
    tensors = tiny.draw(tiny.shapes_of("controlnet", config), 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    quarter = Weights(str(tmp_path), files.digest(tmp_path))
    small = picture(9, 32, 32)
    one = call(controls=(control(weights=quarter, hint=small),))
    assert error(run(one)[0], diffusers_result(one, [small.pixels])) < CLOSE


def single_file(layout: str) -> Weights:
    tensors = load_file(Path(canny().path) / "diffusion_pytorch_model.safetensors")
    path = Path(FOLDER.name) / f"{layout}.safetensors"
    rename = (lambda name: name) if layout == "diffusers" else ldm_controlnet
    save_file({rename(name): tensor for name, tensor in tensors.items()}, path)
    return Weights(str(path), files.digest(path))


def ldm_controlnet(name: str) -> str:
    """The name a ControlNet's tensor has in the original layout."""
    part, _, rest = name.partition(".")
    if part == "controlnet_cond_embedding":
        kind, _, rest = rest.partition(".")
        number, _, rest = rest.partition(".") if kind == "blocks" else ({"conv_in": -1, "conv_out": 6}[kind], "", rest)
        return f"control_model.input_hint_block.{2 * int(number) + 2}.{rest}"
    number, _, rest = rest.partition(".")
    if part == "controlnet_down_blocks":
        return f"control_model.zero_convs.{number}.0.{rest}"
    if part == "controlnet_mid_block":
        return f"control_model.middle_block_out.0.{number}"
    return f"control_model.{ldm_unet(name)}"


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_single_files_are_the_same_network(layout: str) -> None:
    found = run(call(controls=(control(weights=single_file(layout)),)))[0]
    assert torch.equal(found, run(call(controls=(control(),)))[0])


MISSING = Weights("nowhere.safetensors", "missing")


def test_strength_zero_is_no_control_bit_for_bit_and_loads_nothing() -> None:
    assert torch.equal(run(call(controls=(control(0.0, weights=MISSING),)))[0], run(call())[0])


def test_outside_its_window_a_control_does_nothing() -> None:
    for sigma, window in ((5.0, (0.5, 1.0)), (0.5, (0.0, 0.5))):
        silent = control(1.0, *window, weights=MISSING)
        assert torch.equal(run(call(sigma, controls=(silent,)))[0], run(call(sigma))[0])


def test_strength_zero_beside_others_is_no_control() -> None:
    found = run(call(controls=(control(0.0),)), call(seed=1, controls=(control(1.0),)))
    alone = run(call(), call(seed=1))
    assert torch.equal(found[0], alone[0])
    assert error(found[1], alone[1]) > 100 * CLOSE


def test_a_mixed_batch_is_its_calls_alone() -> None:
    controls = [control(1.0), control(0.3, hint=picture(5, 80, 50)), control(2.0, start=0.5), control(0.9, end=0.3)]
    calls = [call(0.5 + 2 * n, 1.5 + n, n, controls=(each,)) for n, each in enumerate(controls)]
    for together, one in zip(run(*calls), calls, strict=True):
        assert error(together, run(one)[0]) < CLOSE


def changed(tmp_path: Path, **config: Any) -> Weights:
    folder = tmp_path / "changed"
    shutil.copytree(canny().path, folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return Weights(str(folder), files.digest(folder))


def test_a_control_for_another_family_is_refused(tmp_path: Path) -> None:
    config = json.loads((Path(canny().path) / "config.json").read_text()) | {"cross_attention_dim": 48}
    save_file(tiny.draw(tiny.shapes_of("controlnet", config), 3), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = Weights(str(tmp_path), files.digest(tmp_path))
    with pytest.raises(WeightsError, match=r"another kind of checkpoint: it reads text of width 48, this .* 80"):
        run(call(controls=(control(weights=other),)))


def test_a_union_network_is_refused(tmp_path: Path) -> None:
    union = changed(tmp_path, _class_name="ControlNetUnionModel")
    with pytest.raises(WeightsError, match=r"controlnet='changed' is ControlNetUnionModel; give"):
        run(call(controls=(control(weights=union),)))


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    deeper = changed(tmp_path, transformer_layers_per_block=[1, 1, 3])
    with pytest.raises(WeightsError, match=r"'changed' does not hold the weights of the model in its config.json"):
        run(call(controls=(control(weights=deeper),)))


@pytest.mark.parametrize(("name", "said"), [("task_embedding", "a union ControlNet"), ("x", "not a ControlNet")])
def test_other_files_are_refused(tmp_path: Path, name: str, said: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "file.safetensors")
    other = Weights(str(tmp_path / "file.safetensors"), name)
    with pytest.raises(WeightsError, match=rf"controlnet='file.safetensors' is {said}.*give a ControlNet for SDXL"):
        run(call(controls=(control(weights=other),)))
