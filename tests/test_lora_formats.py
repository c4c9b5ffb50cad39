"""One change of a whole UNet written in every format and kind gives one picture; peft's own modules agree too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from claygraph.diffusion import lora
from claygraph.diffusion.checkpoint import load_text_encoders, load_unet
from claygraph.diffusion.describe import describe
from claygraph.memory import Memory
from claygraph.values import Checkpoint
from tests import tiny
from tests.loras import error, everywhere, outputs, weights

MEMORY = Memory("cpu", "float32")
Tensors = dict[str, torch.Tensor]
ALPHA, RANK = 2.0, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return describe(weights(tiny.checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")))


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint) -> Any:
    """In float64, as these random weights make 1e-4 of float32's rounding."""
    return load_unet(checkpoint, MEMORY).double()


@pytest.fixture
def unet(loaded: Any) -> Iterator[Any]:
    yield loaded
    lora.detach(loaded)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """down and up of every layer of the UNet that a LoCon covers, by diffusers' names."""
    path = tiny.lora(tmp_path_factory.mktemp("pairs") / "x.safetensors", layout="peft", parts=("unet",), conv=True)
    tensors = {name.removeprefix("unet."): tensor.double() for name, tensor in load_file(path).items()}
    stems = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")]
    return {stem: (tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]) for stem in stems}


@pytest.fixture(scope="module")
def wanted(loaded: Any, pairs: dict[str, Any]) -> torch.Tensor:
    """The outputs at strength 0.7 with the change merged into the weights."""
    original = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    changed = {f"{name}.weight": original[f"{name}.weight"] + 0.7 * delta(*pair) for name, pair in pairs.items()}
    loaded.load_state_dict(original | changed)
    result = outputs(loaded)
    loaded.load_state_dict(original)
    return result


def delta(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The change of one weight at strength 1."""
    return ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def kohya(name: str) -> str:
    return "lora_unet_" + tiny.ldm_unet(name).replace(".", "_")


def old_diffusers(name: str) -> str:
    head, _, last = name.rpartition(".to_")
    return f"{head}.processor.to_{last.removesuffix('.0')}_lora" if head else f"{name}.lora"


def as_pair(stem: str, names: tuple[str, str], alpha: bool = True) -> Callable[..., Tensors]:
    def tensors(name: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> Tensors:
        layer = stem.format(name=name, flat=name.replace(".", "_"), ldm=tiny.ldm_unet(name), kohya=kohya(name))
        layer = layer.replace("OLD", old_diffusers(name))
        up = up if alpha else up * ALPHA / RANK
        return {f"{layer}.{names[0]}": down, f"{layer}.{names[1]}": up} | (
            {f"{layer}.alpha": torch.tensor(ALPHA)} if alpha else {}
        )

    return tensors


def as_loha(name: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """The second factor is a matrix of ones, so that the product is the first."""
    ones = {"hada_w2_a": torch.ones(len(up), 1), "hada_w2_b": torch.ones(1, down[0].numel())}
    found = {"hada_w1_a": up.flatten(1), "hada_w1_b": down.flatten(1), **ones, "alpha": torch.tensor(ALPHA)}
    return {f"{kohya(name)}.{role}": tensor for role, tensor in found.items()}


def as_lokr(name: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """The first factor is the number one."""
    found = {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": up.flatten(1), "lokr_w2_b": down.flatten(1)}
    found |= {"alpha": torch.tensor(ALPHA)}
    return {f"{kohya(name)}.{role}": tensor for role, tensor in found.items()}


def as_difference(name: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> Tensors:
    return {f"diffusion_model.{tiny.ldm_unet(name)}.diff": delta(down, up)}


def as_dora(axis: str) -> Callable[..., Tensors]:
    """A magnitude that is the very norm it divides, so that a DoRA is its LoRA."""

    def tensors(name: str, down: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> Tensors:
        changed = weight + delta(down, up)
        rest = (1,) * (weight.ndim - 2)
        if axis == "peft":
            names = f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight", f"unet.{name}.lora_magnitude_vector"
            return dict(zip(names, (down, up * ALPHA / RANK, changed.flatten(1).norm(dim=1)), strict=True))
        norm = weight.flatten(1).norm(dim=1) if axis == "out" else changed.transpose(0, 1).flatten(1).norm(dim=1)
        scale = norm.view((-1, 1, *rest) if axis == "out" else (1, -1, *rest))
        found = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA), "dora_scale": scale}
        return {f"{kohya(name)}.{role}": tensor for role, tensor in found.items()}

    return tensors


FORMATS: dict[str, Callable[..., Tensors]] = {
    "kohya, sgm names": as_pair("{kohya}", ("lora_down.weight", "lora_up.weight")),
    "kohya, diffusers names": as_pair("lora_unet_{flat}", ("lora_down.weight", "lora_up.weight")),
    "generic": as_pair("diffusion_model.{ldm}", ("lora_down.weight", "lora_up.weight")),
    "generic, peft's letters": as_pair("diffusion_model.{ldm}", ("lora_A.weight", "lora_B.weight")),
    "lycoris": as_pair("lycoris_{flat}", ("lora_down.weight", "lora_up.weight")),
    "peft": as_pair("unet.{name}", ("lora_A.weight", "lora_B.weight"), alpha=False),
    "peft, one adapter's name": as_pair("unet.{name}", ("lora_A.default.weight", "lora_B.default.weight"), alpha=False),
    "peft's own": as_pair("base_model.model.{name}", ("lora_A.weight", "lora_B.weight"), alpha=False),
    "old diffusers": as_pair("unet.OLD", ("down.weight", "up.weight"), alpha=False),
    "old diffusers, bare": as_pair("OLD", ("down.weight", "up.weight"), alpha=False),
    "LoHa": as_loha,
    "LoKr": as_lokr,
    "difference": as_difference,
    "DoRA, output axis": as_dora("out"),
    "DoRA, input axis": as_dora("in"),
    "DoRA, peft": as_dora("peft"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_twins_of_one_change_give_one_output(
    form: str, unet: Any, pairs: dict[str, Any], wanted: torch.Tensor, tmp_path: Path
) -> None:
    tensors: Tensors = {}
    for name, (down, up) in pairs.items():
        tensors |= FORMATS[form](name, down, up, unet.get_submodule(name).weight)
    save_file(tiny.contiguous({name: tensor.double() for name, tensor in tensors.items()}), tmp_path / "x.safetensors")
    given = weights(tmp_path / "x.safetensors")
    assert lora.attach(unet, "unet", given, MEMORY) == len(pairs)
    lora.set_strengths(unet, [{given.digest: everywhere(0.7)}, {given.digest: everywhere(0.0)}])
    found = outputs(unet)
    assert error(found[0], wanted[0]) <= 1e-6
    assert error(found[1], wanted[1]) >= 0.05


@pytest.mark.parametrize(
    ("part", "te", "clip"), [("text_encoder", "te1", "clip_l"), ("text_encoder_2", "te2", "clip_g")]
)
def test_text_encoders_read_generic_names(
    part: str, te: str, clip: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    encoder: Any = load_text_encoders(checkpoint, MEMORY)[part == "text_encoder_2"]
    path = tiny.lora(tmp_path / "kohya.safetensors", parts=(part,))
    tensors = load_file(path)
    stems = {name.removesuffix(".weight") for name in tiny.shapes()[part]}
    renamed = {f"lora_{te}_{stem.replace('.', '_')}": f"text_encoders.{clip}.transformer.{stem}" for stem in stems}
    generic = {f"{renamed[name.split('.')[0]]}.{name.split('.', 1)[1]}": tensor for name, tensor in tensors.items()}
    save_file(generic, tmp_path / "generic.safetensors")
    ids, results = torch.tensor([[49406, 320, 1125, 49407]]), []
    for file in ("kohya", "generic"):
        given = weights(tmp_path / f"{file}.safetensors")
        lora.attach(encoder, part, given, MEMORY)
        lora.set_strengths(encoder, [{given.digest: (0.6,)}])
        results.append(encoder(ids).last_hidden_state)
    lora.set_strengths(encoder, [{}])
    assert torch.equal(*results)
    assert error(encoder(ids).last_hidden_state, results[0]) > 0.01


def _peft(kind: str, net: torch.nn.Module) -> Any:
    """The same net under a random adapter made by peft."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

    targets = ["conv_in", "linear_1"]
    configs: dict[str, Callable[[], Any]] = {
        "LoRA": lambda: LoraConfig(r=3, lora_alpha=6, target_modules=targets),
        "rsLoRA": lambda: LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_rslora=True),
        "DoRA": lambda: LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=True),
        "LoHa": lambda: LoHaConfig(r=3, alpha=3, target_modules=targets),
        "LoHa, CP": lambda: LoHaConfig(r=3, alpha=3, target_modules=targets, use_effective_conv2d=True),
        "LoKr": lambda: LoKrConfig(r=2, alpha=2, target_modules=targets),
        "LoKr, both": lambda: LoKrConfig(r=2, alpha=2, target_modules=targets, decompose_both=True),
        "LoKr, Tucker": lambda: LoKrConfig(r=2, alpha=2, target_modules=targets, use_effective_conv2d=True),
    }
    return get_peft_model(net, configs[kind]())


@pytest.mark.parametrize("kind", ["LoRA", "rsLoRA", "DoRA", "LoHa", "LoHa, CP", "LoKr", "LoKr, both", "LoKr, Tucker"])
def test_pefts_own_modules_agree(kind: str, tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict

    torch.manual_seed(0)
    linear, conv = torch.nn.Linear(16, 24), torch.nn.Conv2d(16, 24, 3, padding=1)
    nets = [torch.nn.ModuleDict({"time_embedding": torch.nn.ModuleDict({"linear_1": linear}), "conv_in": conv})]
    nets[0].double().requires_grad_(False)
    nets.append(torch.nn.ModuleDict({"time_embedding": torch.nn.ModuleDict({"linear_1": deepcopy(linear)})}))
    nets[1]["conv_in"] = deepcopy(conv)
    model = _peft(kind, nets[1])
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).abs() / 2 + 0.1
        for name, tensor in sorted(get_peft_model_state_dict(model).items())
    }
    _load(model, state)
    settings = {"unet.lora_alpha": 6, "unet.r": 3, "unet.use_rslora": kind == "rsLoRA"}
    metadata = {"lora_adapter_metadata": json.dumps(settings)} if kind in ("LoRA", "rsLoRA", "DoRA") else None
    save_file(state, tmp_path / "x.safetensors", metadata)
    given = weights(tmp_path / "x.safetensors")
    assert lora.attach(nets[0], "unet", given, MEMORY) == 2
    lora.set_strengths(nets[0], [{given.digest: everywhere(1.0)}] * 2)
    for x, mine, theirs in (
        (torch.randn(2, 3, 16, dtype=torch.float64), linear, nets[1].get_submodule("time_embedding.linear_1")),
        (torch.randn(2, 16, 5, 5, dtype=torch.float64), conv, nets[1].get_submodule("conv_in")),
    ):
        with torch.no_grad():
            assert error(mine(x), theirs(x)) <= 1e-6
            assert error(mine.forward(x), theirs(x)) > 0.05


def _load(model: Any, state: Tensors) -> None:
    from peft import set_peft_model_state_dict

    model.double()
    set_peft_model_state_dict(model, state)
