"""ControlNet files: layouts, kinds, and those that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from claygraph import files
from claygraph.diffusion.controlnet_files import load
from claygraph.errors import WeightsError
from claygraph.values import Image, LayerWeights, Lora, Weights
from tests import tiny, tiny_adapters
from tests.controls import CLOSE, HINT, canny, control, diffusers_network, diffusers_result
from tests.denoising import FOLDER, base, call, diffusers_unet, error, memory, picture, run, weights
from tests.tiny_adapters import control_lora_parts, controlnet_config, ldm_controlnet


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


def single_file(layout: str, source: Weights | None = None) -> Weights:
    """A ControlNet's folder as one file: ``diffusers`` or ``ldm``, or ``bare``, which is ``ldm`` without a prefix."""
    tensors = load_file(Path((source or canny()).path) / "diffusion_pytorch_model.safetensors")
    path = Path(FOLDER.name) / f"{layout}-{(source or canny()).digest[:6]}.safetensors"
    prefix = "control_model." if layout == "ldm" else ""
    rename = (lambda name: name) if layout == "diffusers" else (lambda name: prefix + ldm_controlnet(name))
    save_file({rename(name): tensor for name, tensor in tensors.items()}, path)
    return Weights(str(path), files.digest(path))


@pytest.mark.parametrize("layout", ["diffusers", "ldm", "bare"])
def test_single_files_are_the_same_network(layout: str) -> None:
    found = run(call(controls=(control(weights=single_file(layout)),)))[0]
    assert torch.equal(found, run(call(controls=(control(),)))[0])


def test_the_size_embedding_of_a_single_file_counts(tmp_path: Path) -> None:
    file = Path(single_file("ldm").path)
    tensors = load_file(file)
    assert "control_model.label_emb.0.0.weight" in tensors
    tensors["control_model.label_emb.0.2.bias"] += 3
    save_file(tensors, tmp_path / "other.safetensors")
    other = Weights(str(tmp_path / "other.safetensors"), files.digest(tmp_path / "other.safetensors"))
    found, plain = (run(call(controls=(control(weights=each),)))[0] for each in (other, canny()))
    assert error(found, plain) > 100 * CLOSE


def test_a_network_without_cross_attention_fits(tmp_path: Path) -> None:
    """As the small SDXL ControlNets: nine residuals of the same widths, from plain blocks."""
    kinds = {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D", "cross_attention_dim": 1280}
    small = weights(tiny_adapters.controlnet, "small", seed=43, **kinds)
    one = call(controls=(control(weights=small),))
    assert error(run(one)[0], diffusers_result(one)) < CLOSE


def test_colours_may_be_in_the_other_order() -> None:
    bgr = weights(tiny_adapters.controlnet, "bgr", controlnet_conditioning_channel_order="bgr")
    swapped = Image(HINT.pixels[:, :, ::-1].copy())
    found = run(call(controls=(control(weights=bgr, hint=swapped),)))[0]
    assert torch.equal(found, run(call(controls=(control(),)))[0])


def changed(tmp_path: Path, **config: Any) -> Weights:
    folder = tmp_path / "changed"
    shutil.copytree(canny().path, folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return Weights(str(folder), files.digest(folder))


FAMILIES = [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (48, "another kind of checkpoint")]


@pytest.mark.parametrize(("width", "family"), FAMILIES)
def test_a_control_for_another_family_is_refused_by_its_name(width: int, family: str) -> None:
    folder = weights(tiny_adapters.controlnet, f"wide-{width}", cross_attention_dim=width)
    for other in (folder, single_file("ldm", folder), single_file("diffusers", folder)):
        with pytest.raises(WeightsError, match=rf"was made for {family}: it reads text of width {width}, .* 80; give"):
            run(call(controls=(control(weights=other),)))


def test_a_control_of_other_widths_is_refused() -> None:
    other = weights(tiny_adapters.controlnet, "narrow", block_out_channels=[32, 32, 32])
    with pytest.raises(
        WeightsError, match=r"its block_out_channels is \(?\[?32, 32, 32.*this checkpoint's \(?\[?32, 64, 32"
    ):
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


def lora_weights() -> Weights:
    return weights(tiny_adapters.control_lora, "control-lora.safetensors")


@cache
def merged(strength: float = 0.0) -> tuple[Any, Any]:
    """The UNet with a LoRA of this strength merged, and the ControlNet a Control-LoRA makes of it, by the formulas."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    unet = diffusers_unet()
    merge_lora(unet, strength)
    base = unet.state_dict()
    network = ControlNetModel.from_config(controlnet_config())
    tensors = {name: base[name].clone() for name in network.state_dict() if name in base}
    for layer, (parts, low) in control_lora_parts().items():
        floats = {kind: tensor.float() for kind, tensor in parts.items()}
        if low:
            update = floats.pop("up").flatten(1) @ floats.pop("down").flatten(1)
            floats["weight"] = base[f"{layer}.weight"] + update.reshape(base[f"{layer}.weight"].shape)
        tensors |= {f"{layer}.{kind}": tensor for kind, tensor in floats.items()}
    network.load_state_dict(tensors)
    return unet, network.eval().requires_grad_(False)


def merge_lora(unet: Any, strength: float) -> None:
    found = load_file(weights(tiny.lora, "style.safetensors", layout="diffusers", parts=("unet",)).path)
    for name, layer in unet.named_modules():
        stem = f"lora_unet_{name.replace('.', '_')}"
        if f"{stem}.alpha" in found:
            down, up = (found[f"{stem}.lora_{side}.weight"].float() for side in ("down", "up"))
            layer.weight += strength * found[f"{stem}.alpha"].float() / len(down) * (up @ down)


def test_a_control_lora_is_the_formulas_network() -> None:
    one = call(controls=(control(0.8, weights=lora_weights()),))
    unet, network = merged()
    assert error(run(one)[0], diffusers_result(one, networks=[network], unet=unet)) < CLOSE
    assert error(run(one)[0], run(call())[0]) > 100 * CLOSE


def test_a_control_lora_borrows_layers_with_the_loras_of_each_row() -> None:
    style = weights(tiny.lora, "style.safetensors", layout="diffusers", parts=("unet",))
    stacks = [(0.0, 1.0), (0.6, 0.5), (1.2, 0.0), (0.9, 0.7)]
    calls = [
        call(1.0 + n, 2.0, n, controls=(control(strength, weights=lora_weights()),), loras=(Lora(style, lora),))
        for n, (lora, strength) in enumerate(stacks)
    ]
    for found, one, (lora, _) in zip(run(*calls), calls, stacks, strict=True):
        unet, network = merged(lora)
        assert error(found, diffusers_result(one, networks=[network], unet=unet)) < CLOSE


def test_control_loras_and_networks_stack() -> None:
    one = call(controls=(control(0.5, weights=lora_weights()), control(0.7)))
    unet, network = merged()
    networks = [network, diffusers_network(canny().path)]
    assert error(run(one)[0], diffusers_result(one, [HINT.pixels] * 2, networks=networks, unet=unet)) < CLOSE


def test_soft_weights_of_a_control_lora_are_its_ten_step_ramp() -> None:
    one = call(controls=(control(weights=lora_weights(), layers=LayerWeights(soft=0.825)),))
    unet, network = merged()
    ramp = [0.825 ** (9 - i) for i in range(10)]

    def weigh(place: int, negative: bool, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        return [part * factor for part, factor in zip(parts, ramp, strict=True)]

    assert error(run(one)[0], diffusers_result(one, weigh=weigh, networks=[network], unet=unet)) < CLOSE


def test_a_control_lora_takes_no_memory_for_the_layers_it_borrows() -> None:
    run(call(controls=(control(weights=lora_weights()),)))
    unet: Any = memory().get(("unet", base().weights, None), lambda: None)
    network = load(lora_weights(), unet, memory()).model
    assert network.down_blocks[0].resnets[0].conv1.layer is unet.down_blocks[0].resnets[0].conv1
    assert network.add_embedding.linear_1 is unet.add_embedding.linear_1


def odd_control_lora(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Weights:
    tensors = load_file(lora_weights().path)
    change(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")
    return Weights(str(tmp_path / "odd.safetensors"), files.digest(tmp_path / "odd.safetensors"))


ODD: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda found: found.update({"input_blocks.9.0.in_layers.2.bias": torch.zeros(1)}), "no layer is called 'input_b"),
    (lambda found: found.update({"input_blocks.0.0.up": torch.zeros(7, 4)}), "input_blocks.0.0 has another shape"),
    (lambda found: found.pop("input_blocks.1.0.in_layers.2.down"), "input_blocks.1.0.in_layers.2 has another shape"),
    (lambda found: found.update({"input_blocks.1.0.in_layers.0.weight": torch.zeros(5)}), "in_layers.0 has another sh"),
    (lambda found: [found.pop(f"zero_convs.3.0.{kind}") for kind in ("weight", "bias")], "it lacks zero_convs.3.0"),
]


@pytest.mark.parametrize(("change", "said"), ODD)
def test_a_control_lora_that_does_not_fit_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    odd = odd_control_lora(tmp_path, change)
    with pytest.raises(WeightsError, match=rf"'odd.safetensors' is a Control-LoRA that does not fit .*{said}"):
        run(call(controls=(control(weights=odd),)))
