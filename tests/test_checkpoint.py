"""Loading checkpoints: against diffusers' own loaders, on small random files in the real layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from claygraph import files
from claygraph.diffusion import checkpoint as loaders
from claygraph.diffusion import describe
from claygraph.errors import WeightsError
from claygraph.memory import Memory
from claygraph.values import Checkpoint, Weights
from tests import tiny

MEMORY = Memory("cpu", "float32")


def weights(path: Path) -> Weights:
    return Weights(str(path), files.digest(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("single") / "model.safetensors")


def unet_output(unet: UNet2DConditionModel) -> torch.Tensor:
    """In double precision: in single, how a machine rounds shows in the sixth digit."""
    torch.manual_seed(0)
    added = {"text_embeds": torch.randn(2, 48).double(), "time_ids": torch.full((2, 6), 64.0).double()}
    sample, times, text = torch.randn(2, 4, 8, 8).double(), torch.tensor([999, 3]), torch.randn(2, 77, 80).double()
    with torch.inference_mode():
        output: torch.Tensor = unet.double()(sample, times, text, added_cond_kwargs=added, return_dict=False)[0]
    return output


def test_unet_of_a_single_file_computes_what_diffusers_makes_of_it(single: Path, folder: Path) -> None:
    expected = UNet2DConditionModel.from_single_file(single, config=str(folder), subfolder="unet").float()
    found = loaders.load_unet(describe.describe(weights(single)), MEMORY)
    assert (unet_output(found) - unet_output(expected)).abs().max() <= 1e-12


def test_unet_of_a_folder_computes_what_diffusers_makes_of_it(folder: Path) -> None:
    expected = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()
    found = loaders.load_unet(describe.describe(weights(folder)), MEMORY)
    assert (unet_output(found) - unet_output(expected)).abs().max() <= 1e-12


@pytest.mark.parametrize("layout", ["single", "folder"])
def test_vae_decodes_what_diffusers_decodes(layout: str, folder: Path, request: pytest.FixtureRequest) -> None:
    expected = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    found = loaders.load_vae(describe.describe(weights(request.getfixturevalue(layout))), MEMORY)
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    picture = torch.tanh(torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(2)))
    with torch.inference_mode():
        assert (found.decode(latent).sample - expected.decode(latent).sample).abs().max() <= 1e-6
        assert (found.encode(picture)[0].mode() - expected.encode(picture)[0].mode()).abs().max() <= 1e-6


@pytest.mark.parametrize("layout", ["single", "folder"])
def test_text_encoders_compute_what_transformers_computes(
    layout: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    found = loaders.load_text_encoders(describe.describe(weights(request.getfixturevalue(layout))), MEMORY)
    ids = torch.tensor([[49406, 320, 2368, 49407, *[0] * 73]])
    for encoder, kind, name in zip(
        found, (CLIPTextModel, CLIPTextModelWithProjection), ("text_encoder", "text_encoder_2"), strict=True
    ):
        expected: Any = kind.from_pretrained(folder, subfolder=name)
        with torch.inference_mode():
            difference = encoder(ids)[0] - expected.float()(ids)[0]
        assert difference.abs().max() <= 1e-6


def states(checkpoint: Checkpoint) -> list[dict[str, torch.Tensor]]:
    """The tensors of every part."""
    unet, vae = loaders.load_unet(checkpoint, MEMORY), loaders.load_vae(checkpoint, MEMORY)
    return [model.state_dict() for model in (unet, vae, *loaders.load_text_encoders(checkpoint, MEMORY))]


def test_a_single_file_and_a_folder_are_the_same_in_every_part(single: Path, folder: Path) -> None:
    """What is said of both, every tensor of every part, and both tokenizers."""
    one, other = (describe.describe(weights(path)) for path in (single, folder))
    assert replace(one, weights=other.weights) == other
    for ours, theirs in zip(states(one), states(other), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for part in ("text_encoder", "text_encoder_2"):
        places = [loaders.tokenizer_folder(checkpoint, part) for checkpoint in (one, other)]
        assert places[0] != places[1]
        ids = [loaders.load_tokenizer(place)("polymer clay, it's 8K")["input_ids"] for place in places]
        assert ids[0] == ids[1]


def test_a_linear_text_projection_is_taken_as_it_is(single: Path, tmp_path: Path) -> None:
    tensors = load_file(single)
    bare = tensors.pop(f"{describe.CLIP_G}text_projection")
    tensors[f"{describe.CLIP_G}text_projection.weight"] = bare.T.contiguous()
    save_file(tensors, tmp_path / "a.safetensors", describe.metadata(single))
    _, second = loaders.load_text_encoders(describe.describe(weights(tmp_path / "a.safetensors")), MEMORY)
    assert torch.equal(second.text_projection.weight, bare.T.float())


def test_models_are_ready_for_inference_in_the_wanted_dtype(single: Path) -> None:
    checkpoint, memory = describe.describe(weights(single)), Memory("cpu", "bfloat16")
    for model in (loaders.load_unet(checkpoint, memory), *loaders.load_text_encoders(checkpoint, memory)):
        assert not model.training
        assert {(p.dtype, p.requires_grad, p.is_meta) for p in model.parameters()} == {(torch.bfloat16, False, False)}


def test_loading_asks_no_network(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    checkpoint = describe.describe(weights(single))
    loaders.load_unet(checkpoint, MEMORY)
    loaders.load_text_encoders(checkpoint, MEMORY)
    for part in ("text_encoder", "text_encoder_2"):
        tokenizer = loaders.load_tokenizer(loaders.tokenizer_folder(checkpoint, part))
        assert tokenizer("a cat", add_special_tokens=False)["input_ids"] == [320, 2368]


def test_sizes_are_read_from_shapes_where_nothing_declares_them(tmp_path: Path) -> None:
    path = tiny.checkpoint(tmp_path / "plain.safetensors", tiny.PLAIN, metadata=False)
    checkpoint = describe.describe(weights(path))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        found = describe.component(checkpoint, part)
        wanted = tiny.configs(tiny.PLAIN)[part]
        assert {name: found[name] for name in wanted} == wanted
    loaders.load_unet(checkpoint, MEMORY)
    loaders.load_text_encoders(checkpoint, MEMORY)


def test_sizes_read_from_sdxl_shapes_are_those_of_sdxl() -> None:
    from claygraph.diffusion.dimensions import text_2_config, text_config, unet_config, vae_config

    shipped = {part: json.loads((describe.SHIPPED / part / "config.json").read_text()) for part in tiny.configs()
               if part != "scheduler"}  # fmt: skip
    sdxl = tiny.Dims((320, 640, 1280), (1, 2, 10), 64, (768, 12), (1280, 32), 256, (128, 256, 512, 512))
    meta = {part: {name: torch.empty(shape, device="meta") for name, shape in tiny.shapes(sdxl)[part].items()}
            for part in shipped}  # fmt: skip
    found = {name: tuple(tensor.shape) for name, tensor in tiny.single_file(meta).items()}
    measured = {
        "unet": unet_config(describe.below(found, describe.UNET), 1280),
        "vae": vae_config(describe.below(found, *describe.VAE)),
        "text_encoder": text_config(describe.below(found, describe.CLIP_L)),
        "text_encoder_2": text_2_config(describe.below(found, describe.CLIP_G)),
    }
    for part, config in measured.items():
        assert config == {name: shipped[part][name] for name in config}, part


def test_a_folder_of_configs_wins_over_the_header(single: Path, tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    settings = {"prediction_type": "v_prediction", "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    found = describe.describe(weights(single), weights(tmp_path))
    assert (found.prediction, found.beta_start, found.beta_end) == ("v_prediction", 0.001, 0.02)
    assert found.beta_schedule == "linear"
    assert (found.scaling_factor, found.downscale) == (0.13025, 8)
    assert describe.component(found, "unet")["cross_attention_dim"] == 80


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_another_vae_replaces_the_one_inside(layout: str, single: Path, tmp_path: Path) -> None:
    tensors = tiny.components(seed=5)["vae"]
    save_file(tiny.contiguous(tiny.ldm_vae(tensors) if layout == "ldm" else tensors), tmp_path / "vae.safetensors")
    checkpoint = describe.describe(weights(single), vae=weights(tmp_path / "vae.safetensors"))
    found = loaders.load_vae(checkpoint, MEMORY).state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())


OTHERS = {
    "a LoRA": ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"],
    "a ControlNet": ["controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight"],
    "a VAE": ["decoder.conv_in.weight", "encoder.conv_in.weight"],
    "an IP-Adapter": ["image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"],
    "the SDXL refiner": ["model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.model.ln_final.weight"],
    "Stable Diffusion 1.x": ["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"],
    "the UNet of a diffusers folder": ["add_embedding.linear_1.weight", "conv_in.weight"],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_that_is_no_checkpoint_is_named(kind: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1, 768) for name in OTHERS[kind]}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"looks like {kind}"):
        describe.describe(weights(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(("without", "remedy"), [("vae", "checkpoint.vae=FILE"), ("text_encoder_2", "full checkpoint")])
def test_a_missing_part_is_named_with_its_remedy(without: str, remedy: str, tmp_path: Path) -> None:
    path = tiny.checkpoint(tmp_path / "part.safetensors", without=without)
    with pytest.raises(WeightsError, match=rf"holds no {without} .*{remedy}"):
        describe.describe(weights(path))


def test_a_file_cut_short_is_refused(single: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(single.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"'cut.safetensors' is cut short by 1000 of \d+ bytes"):
        describe.describe(weights(tmp_path / "cut.safetensors"))


def test_shapes_that_do_not_fit_the_config_are_shown(single: Path, tmp_path: Path) -> None:
    tiny.folder(tmp_path / "other", tiny.PLAIN)
    checkpoint = Checkpoint(weights(single), weights(tmp_path / "other"))
    with pytest.raises(WeightsError, match=r"\(32, 4, 3, 3\) in the file and \(64, 4, 3, 3\) in the config"):
        loaders.load_unet(checkpoint, MEMORY)


def test_describing_needs_no_torch() -> None:
    code = "import sys, claygraph.diffusion.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stacked_queries_keys_and_values_are_taken_apart_without_a_copy(single: Path) -> None:
    _, second = loaders.load_text_encoders(describe.describe(weights(single)), Memory("cpu", "float16"))
    attention = second.text_model.encoder.layers[0].self_attn
    query, key, value = (getattr(attention, f"{part}_proj").weight for part in "qkv")
    assert key.data_ptr() - query.data_ptr() == value.data_ptr() - key.data_ptr() == query.nbytes


def test_empty_models_are_not_filled_and_others_are() -> None:
    empty = loaders._empty(lambda: torch.nn.Linear(3, 2))
    assert empty.weight.is_meta
    assert torch.nn.Linear(300, 200).weight.std() > 0.01
