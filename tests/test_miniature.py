"""The bundled miniature: its file formats and their numeric round trips."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from claygraph.miniature import (
    WEIGHTS,
    export,
    family,
    ip_adapter,
    networks,
    train_taggers,
    train_vae,
)
from claygraph.miniature import image_encoder as images

CHECKPOINT = WEIGHTS / "checkpoint/clay_mini.safetensors"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(CHECKPOINT).items()}


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    with safe_open(CHECKPOINT, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["diffusers_config"])
    return found


@pytest.fixture(scope="module")
def unet(tensors: dict[str, torch.Tensor], configs: dict[str, Any]) -> UNet2DConditionModel:
    model = UNet2DConditionModel.from_config(configs["unet"])
    model.load_state_dict(convert_ldm_unet_checkpoint(dict(tensors), configs["unet"]), strict=True)
    return model.eval()


def test_all_weights_together_stay_below_forty_eight_megabytes() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) < 48e6


def test_checkpoint_has_sdxl_keys_in_half_precision(configs: dict[str, Any]) -> None:
    with safe_open(CHECKPOINT, "pt") as file:
        names = set(file.keys())
        assert file.get_slice("model.diffusion_model.out.2.weight").get_dtype() == "F16"
    assert "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight" in names
    assert "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight" in names
    assert "first_stage_model.decoder.mid.attn_1.q.weight" in names
    assert "model.diffusion_model.label_emb.0.0.weight" in names
    assert "v_pred" in names
    assert configs["scheduler"]["prediction_type"] == "v_prediction"


def test_checkpoint_has_eleven_spatial_transformers(tensors: dict[str, torch.Tensor]) -> None:
    assert sum(name.endswith("proj_in.weight") for name in tensors) == 11


def test_unet_of_a_fresh_base_survives_the_original_names(work: Path) -> None:
    base, vae = family.load_base(work), networks.make_vae().eval()
    flat = export.checkpoint_tensors(base, vae)
    config = dict(base.unet.config)
    again = UNet2DConditionModel.from_config(config)
    again.load_state_dict(convert_ldm_unet_checkpoint(dict(flat), config), strict=True)
    x, hidden, pooled = torch.randn(2, 4, 8, 12), torch.randn(2, 77, 80), torch.randn(2, 40)
    with torch.no_grad():
        expected = base.unet(x, 7, hidden, added_cond_kwargs=networks.added(pooled, x)).sample
        found = again(x, 7, hidden, added_cond_kwargs=networks.added(pooled, x)).sample
    assert torch.allclose(expected, found, atol=1e-5)


def test_vae_survives_the_original_names() -> None:
    vae = networks.make_vae().eval()
    flat = {f"first_stage_model.{n}": t for n, t in export.names.vae_tensors(vae.state_dict(), 3).items()}
    again = AutoencoderKL.from_config(dict(vae.config)).eval()
    again.load_state_dict(convert_ldm_vae_checkpoint(flat, dict(vae.config)), strict=True)
    picture = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(vae(picture).sample, again(picture).sample, atol=1e-5)


def test_text_encoders_survive_the_original_names_with_clips_own_token_numbers(work: Path) -> None:
    base = family.load_base(work)
    flat = export.checkpoint_tensors(base, networks.make_vae())
    shapes = export.component_configs(base, networks.make_vae())
    first = CLIPTextModel(CLIPTextConfig(**shapes["text_encoder"])).eval()
    names = {n.removeprefix("text_model."): t for n, t in convert_ldm_clip_checkpoint(dict(flat)).items()}
    first.load_state_dict(names, strict=True)
    second = CLIPTextModelWithProjection(CLIPTextConfig(**shapes["text_encoder_2"])).eval()
    opened = convert_open_clip_checkpoint(second, dict(flat), "conditioner.embedders.1.model.")
    second.load_state_dict(opened, strict=True)
    ids = base.text.vocabulary.tokenizer("photo, red fish").input_ids
    with torch.no_grad():
        hidden, pooled = base.text(["photo, red fish"])
        one = first(torch.tensor([ids + [49407] * (77 - len(ids))]), output_hidden_states=True).hidden_states[-2]
        two = second(torch.tensor([ids + [0] * (77 - len(ids))]), output_hidden_states=True)
    assert torch.allclose(hidden, torch.cat([one, two.hidden_states[-2]], -1), atol=1e-5)
    assert torch.allclose(pooled, two.text_embeds, atol=1e-5)


def test_shipped_vae_has_unit_latents_and_rebuilds_a_photo(
    tensors: dict[str, torch.Tensor], configs: dict[str, Any]
) -> None:
    vae = AutoencoderKL.from_config(configs["vae"]).eval()
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(tensors), configs["vae"]), strict=True)
    photo = np.asarray(Image.open(WEIGHTS / "photos/coffee.jpg").resize((192, 128)))[None]
    with torch.no_grad():
        latent = vae.encode(train_vae.to_tensor(photo)).latent_dist.mode() * configs["vae"]["scaling_factor"]
        rebuilt = train_vae.to_pictures(vae.decode(latent / configs["vae"]["scaling_factor"]).sample)
    assert 0.4 < latent.std() < 2.0
    assert 10 * np.log10(255**2 / np.square(rebuilt.astype(float) - photo).mean()) > 25


@pytest.mark.parametrize("name", ["clay", "toy"])
def test_diffusers_maps_every_lora_key(name: str, unet: UNet2DConditionModel) -> None:
    state = load_file(WEIGHTS / f"lora/{name}.safetensors")
    modules = sum(n.endswith(".lora_down.weight") for n in state)
    assert len(state) == 3 * modules
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(converted) == 2 * modules
    assert len(alphas) == modules
    targets = {n.removeprefix("unet.").split(".lora")[0] for n in converted if n.startswith("unet.")}
    plain = {t.replace(".processor", "").replace("to_out_lora", "to_out.0").replace("_lora", "") for t in targets}
    known = {n for n, _ in unet.named_modules()}
    assert {t.rsplit(".down", 1)[0].rsplit(".up", 1)[0] for t in plain} <= known


def test_clay_lora_also_changes_both_text_encoders() -> None:
    state = load_file(WEIGHTS / "lora/clay.safetensors")
    assert {n.split("_text_model")[0] for n in state if n.startswith("lora_te")} == {"lora_te1", "lora_te2"}


def test_controlnet_folder_loads_and_takes_hints_of_eight_pixels_a_latent() -> None:
    model = ControlNetModel.from_pretrained(WEIGHTS / "controlnet/canny")
    x, pooled = torch.randn(1, 4, 8, 12), torch.randn(1, 40)
    hint = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        down, middle = model(
            x, 5, torch.randn(1, 77, 80), hint, added_cond_kwargs=networks.added(pooled, x), return_dict=False
        )
    assert len(down) == 9
    assert middle.shape == (1, 128, 2, 3)


def test_ip_adapter_file_is_of_the_full_type_and_numbers_its_layers_oddly(unet: UNet2DConditionModel) -> None:
    state = load_file(WEIGHTS / "ip_adapter/ip-adapter_mini.safetensors")
    layers = {int(n.split(".")[1]) for n in state if n.startswith("ip_adapter.")}
    assert layers == set(range(1, 23, 2))
    assert state["image_proj.proj.0.weight"].shape == (images.HIDDEN, images.HIDDEN)
    assert state["image_proj.proj.2.weight"].shape == (80, images.HIDDEN)
    mid = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    assert state["ip_adapter.21.to_k_ip.weight"].shape == mid.shape
    assert state["ip_adapter.1.to_k_ip.weight"].shape[0] == 96


def test_the_patch_that_lies_at_a_position() -> None:
    whole = ip_adapter.nearest_patches(8, 8)
    assert whole.tolist() == list(range(1, 65))
    assert ip_adapter.nearest_patches(2, 3).tolist() == [18, 21, 23, 50, 53, 55]


def test_image_encoder_folder_loads_and_tells_pictures_apart() -> None:
    encoder = CLIPVisionModelWithProjection.from_pretrained(WEIGHTS / "ip_adapter/image_encoder").eval().float()
    photos = [np.asarray(Image.open(f).resize((64, 64))) for f in sorted((WEIGHTS / "photos").glob("*.jpg"))]
    embeddings = images.embed(encoder, np.stack(photos))
    assert embeddings.shape == (3, images.WIDTH)
    assert torch.cosine_similarity(embeddings[0], embeddings[1], dim=0) < 0.99


@pytest.mark.parametrize("name", ["moat", "vit"])
def test_tagger_is_wd14_shaped_with_a_dynamic_batch(name: str) -> None:
    with (WEIGHTS / "tagger" / name / "selected_tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows[:4]] == ["general", "sensitive", "questionable", "explicit"]
    assert [r["category"] for r in rows] == sorted((r["category"] for r in rows), key="904".index)
    session = onnxruntime.InferenceSession(str(WEIGHTS / "tagger" / name / "model.onnx"))
    wanted = session.get_inputs()[0].shape
    assert wanted[1:] == [96, 96, 3]
    pictures = np.random.default_rng(0).uniform(0, 255, (3, 96, 96, 3)).astype(np.float32)
    found = session.run(None, {"input": pictures})[0]
    assert found.shape == (3, len(rows))
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.allclose(found[1:2], session.run(None, {"input": pictures[1:2]})[0], atol=1e-4)


def test_the_two_taggers_are_different_architectures() -> None:
    moat, vit = (train_taggers.make_tagger(n, 5) for n in ("moat", "vit"))
    assert any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in moat.modules())
    assert not any(isinstance(m, torch.nn.Conv2d) and m.groups > 1 for m in vit.modules())


def test_sample_photos_are_small() -> None:
    files = sorted((WEIGHTS / "photos").iterdir())
    assert [f.name for f in files] == ["astronaut.jpg", "chelsea_cat.jpg", "coffee.jpg"]
    assert all(f.stat().st_size <= 100_000 for f in files)
