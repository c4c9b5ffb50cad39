"""LoRAs: against weights merged by formula, ``W + strength * alpha / rank * up down``, and against diffusers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d

from claygraph.diffusion import lora, lora_changes
from claygraph.diffusion.checkpoint import load_text_encoders, load_unet
from claygraph.diffusion.describe import describe
from claygraph.errors import WeightsError
from claygraph.memory import Memory
from claygraph.values import Checkpoint, Weights
from tests import tiny
from tests.loras import error, everywhere, merged, outputs, weights

MEMORY = Memory("cpu", "float32")
Write = Callable[..., Weights]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return describe(weights(tiny.checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")))


@pytest.fixture
def unet(checkpoint: Checkpoint) -> Any:
    """In float64, as these random weights make 1e-4 of float32's rounding."""
    return load_unet(checkpoint, MEMORY).double()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str = "lora", **options: Any) -> Weights:
        return weights(tiny.lora(tmp_path / f"{name}.safetensors", **({"parts": ("unet",)} | options)))

    return written


def use(unet: Any, given: Weights, *strengths: float) -> torch.Tensor:
    lora.attach(unet, "unet", given, MEMORY)
    lora.set_strengths(unet, [{given.digest: everywhere(strength)} for strength in strengths])
    return outputs(unet, len(strengths))


@pytest.mark.parametrize("layout", ["sgm", "diffusers", "peft"])
@pytest.mark.parametrize("conv", [False, True])
def test_every_layout_equals_merged_weights(layout: str, conv: bool, unet: Any, write: Write) -> None:
    given = write(layout=layout, conv=conv, rank=4, alpha=2.0)
    wanted = merged(unet, given, 0.7 * 2 / 4, layout, conv)
    plain = outputs(unet)
    assert error(use(unet, given, 0.7, 0.7), wanted) <= 1e-9
    assert error(plain, wanted) >= 0.05


@pytest.mark.parametrize(("alpha", "factor"), [(None, 1), (0.0, 1), (4.0, 1), (8.0, 2), (1.0, 0.25)])
def test_alpha_over_rank_scales_and_its_absence_does_not(
    alpha: float | None, factor: float, unet: Any, write: Write
) -> None:
    given = write(alpha=alpha, rank=4)
    wanted = merged(unet, given, 0.5 * factor)
    assert error(use(unet, given, 0.5, 0.5), wanted) <= 1e-9


def test_a_peft_file_without_metadata_counts_fully(unet: Any, write: Write) -> None:
    given = write(layout="peft", alpha=None)
    wanted = merged(unet, given, 1.0, "peft")
    assert error(use(unet, given, 1.0, 1.0), wanted) <= 1e-9


def test_a_peft_alpha_of_one_layer_wins_over_the_usual_one(unet: Any, write: Write, tmp_path: Path) -> None:
    given, layer = write(layout="peft", alpha=4.0, rank=4), "mid_block.attentions.0.proj_in"
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 4.0, "unet.alpha_pattern": {f"^{layer}$": 0.4}})
    tensors = load_file(given.path)
    save_file(tensors, tmp_path / "pattern.safetensors", {"lora_adapter_metadata": settings})
    tensors[f"unet.{layer}.lora_B.weight"] = tensors[f"unet.{layer}.lora_B.weight"].double() / 10
    save_file(tensors, tmp_path / "scaled.safetensors")
    wanted = merged(unet, weights(tmp_path / "scaled.safetensors"), 1.0, "peft")
    assert error(use(unet, weights(tmp_path / "pattern.safetensors"), 1.0, 1.0), wanted) <= 1e-9


def test_diffusers_reads_the_same_file_to_the_same_effect(unet: Any, write: Write, checkpoint: Checkpoint) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    given, other = write(conv=True, alpha=2.0), load_unet(checkpoint, MEMORY).double()
    state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(given.path, unet_config=other.config)
    other.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    assert error(use(unet, given, 1.0, 1.0), outputs(other)) <= 1e-9


def test_rows_of_one_batch_have_their_own_strengths(unet: Any, write: Write) -> None:
    first, second = write("a"), write("b", conv=True, rank=3, seed=9)
    pairs = [(0.5, -1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 0.3)]
    rows = [{first.digest: everywhere(a), second.digest: everywhere(b)} for a, b in pairs]
    for given in (first, second):
        lora.attach(unet, "unet", given, MEMORY)
    lora.set_strengths(unet, rows)
    together = outputs(unet, len(rows))
    for row, found in zip(rows, together, strict=True):
        lora.set_strengths(unet, [row])
        assert error(found, outputs(unet, 1)[0]) <= 1e-9
    assert error(together[0], together[2]) > 0.05


def test_a_row_without_lora_is_bit_for_bit_what_it_was(unet: Any, write: Write) -> None:
    before = outputs(unet, 3)
    given = write(conv=True)
    mixed = use(unet, given, 0.0, 1.0, 0.0)
    assert torch.equal(mixed[[0, 2]], before[[0, 2]])
    assert not torch.equal(mixed[1], before[1])
    assert torch.equal(use(unet, given, 0.0, 0.0, 0.0), before)


def test_rows_without_any_lora_run_no_update(unet: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    use(unet, write(), 1.0)

    def refuse(*_: object) -> None:
        raise AssertionError("an update was computed")

    monkeypatch.setattr(lora_changes.LowRank, "add", refuse)
    lora.set_strengths(unet, [{}, {}])
    assert outputs(unet).shape == (2, 4, 8, 8)


def test_detaching_leaves_the_module_as_it_was(unet: Any, write: Write) -> None:
    shown, before = repr(unet), outputs(unet)
    use(unet, write(), 1.0, 1.0)
    assert repr(unet) != shown
    lora.detach(unet)
    assert repr(unet) == shown
    assert torch.equal(outputs(unet), before)


def test_a_second_attach_adds_nothing(unet: Any, write: Write) -> None:
    given = write()
    layers = sum(tiny.targeted(name, conv=False) for name in tiny.shapes()["unet"])
    assert lora.attach(unet, "unet", given, MEMORY) == layers
    once = use(unet, given, 1.0, 1.0)
    assert lora.attach(unet, "unet", given, MEMORY) == layers
    assert torch.equal(outputs(unet), once)


def test_a_decomposed_convolution_equals_its_product(tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, middle, up = torch.randn(2, 5, 1, 1), torch.randn(3, 2, 3, 3), torch.randn(4, 3, 1, 1)
    names = ("lora_down.weight", "lora_mid.weight", "lora_up.weight")
    stem = "lora_unet_input_blocks_0_0"
    save_file({f"{stem}.{n}": t for n, t in zip(names, (down, middle, up), strict=True)}, tmp_path / "cp.safetensors")
    conv = torch.nn.Conv2d(5, 4, 3, padding=1, stride=2).requires_grad_(False)
    net = torch.nn.ModuleDict({"conv_in": conv})
    given, x = weights(tmp_path / "cp.safetensors"), torch.randn(1, 5, 8, 8)
    lora.attach(net, "unet", given, MEMORY)
    lora.set_strengths(net, [{given.digest: everywhere(0.5)}])
    wanted = conv.weight + 0.5 * torch.einsum("or,rshw,si->oihw", up[..., 0, 0], middle, down[..., 0, 0])
    assert error(conv(x), conv2d(x, wanted, conv.bias, stride=2, padding=1)) <= 1e-5


def test_the_older_diffusers_spelling_is_read(unet: Any, write: Write, tmp_path: Path) -> None:
    renamed = {}
    for name, tensor in load_file(write(layout="peft", alpha=None).path).items():
        layer, kind = name.split(".lora_A" if ".lora_A" in name else ".lora_B")[0], "down" if "_A" in name else "up"
        head, _, last = layer.rpartition(".attn1.")
        old = f"{head}.attn1.processor.{last.removesuffix('.0')}_lora" if head else f"{layer}.lora"
        renamed[f"{old}.{kind}.weight"] = tensor
    save_file(renamed, tmp_path / "old.safetensors")
    wanted = use(unet, write(layout="peft", alpha=None), 1.0, 1.0)
    assert error(use(unet, weights(tmp_path / "old.safetensors"), 1.0, 1.0), wanted) <= 1e-6


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("layout", ["sgm", "peft"])
def test_text_encoders_are_changed_by_the_formula(part: str, layout: str, checkpoint: Checkpoint, write: Write) -> None:
    encoder: Any = load_text_encoders(checkpoint, MEMORY)[part == "text_encoder_2"]
    given = write(layout=layout, alpha=2.0, rank=4, parts=("unet", "text_encoder", "text_encoder_2"))
    assert lora.attach(encoder, part, given, MEMORY) == {"text_encoder": 24, "text_encoder_2": 30}[part]
    stem = f"{part}.text_model.encoder.layers.1.mlp.fc1"
    if layout == "sgm":
        stem = f"lora_te{2 if part.endswith('2') else 1}_text_model_encoder_layers_1_mlp_fc1"
    names = ("lora_A", "lora_B") if layout == "peft" else ("lora_down", "lora_up")
    down, up = (load_file(given.path)[f"{stem}.{name}.weight"].float() for name in names)
    layer = getattr(encoder, "text_model", encoder).encoder.layers[1].mlp.fc1
    lora.set_strengths(encoder, [{given.digest: (0.4,)}, {}])
    x = torch.randn(2, 3, down.shape[1])
    wanted = x[0] @ (layer.weight + 0.4 * 0.5 * up @ down).T + layer.bias
    found = layer(x)
    assert error(found[0], wanted) <= 1e-5
    assert error(found[1], x[1] @ layer.weight.T + layer.bias) <= 1e-5


def test_another_familys_lora_is_named_by_its_context_width(unet: Any, write: Write) -> None:
    dims = tiny.Dims(text=(320, 1), text_2=(448, 1))
    with pytest.raises(WeightsError, match=r"Stable Diffusion 1.x LoRA: its context width is 768, .* wants 80"):
        lora.attach(unet, "unet", write(dims=dims), MEMORY)


def test_a_lora_of_no_known_layer_is_refused(unet: Any, tmp_path: Path) -> None:
    stem = "lora_unet_input_blocks_90_1_proj_in"
    pair = {f"{stem}.lora_down.weight": torch.zeros(4, 8), f"{stem}.lora_up.weight": torch.zeros(8, 4)}
    save_file(pair, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=rf"none of its 1 layers is known, such as '{stem}'"):
        lora.attach(unet, "unet", weights(tmp_path / "odd.safetensors"), MEMORY)


def test_a_lora_for_text_alone_is_no_fault_of_the_unet(unet: Any, write: Write) -> None:
    assert lora.attach(unet, "unet", write(parts=("text_encoder",)), MEMORY) == 0


def test_layers_left_over_are_counted(
    unet: Any, write: Write, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tensors = load_file(write().path) | {"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 8)}
    save_file(tensors, tmp_path / "more.safetensors")
    with caplog.at_level(logging.WARNING):
        lora.attach(unet, "unet", weights(tmp_path / "more.safetensors"), MEMORY)
    assert [record.getMessage() for record in caplog.records] == [
        "lora 'more.safetensors': 1 layers match none of the checkpoint's unet."
    ]


def test_a_lora_for_the_unet_alone_leaves_text_encoders_alone(checkpoint: Checkpoint, write: Write) -> None:
    first, _ = load_text_encoders(checkpoint, MEMORY)
    given, ids = write(), torch.tensor([[49406, 320, 49407]])
    before = first(ids)[0]
    assert lora.attach(first, "text_encoder", given, MEMORY) == 0
    lora.set_strengths(first, [{given.digest: (1.0,)}])
    assert torch.equal(first(ids)[0], before)
