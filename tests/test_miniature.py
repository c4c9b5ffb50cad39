"""The bundled miniature: its file formats, their numeric round trips, and one step of every training."""

from __future__ import annotations

import csv
import json
import re
import struct
import subprocess
import sys
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
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from claygraph.miniature import (
    WEIGHTS,
    clayify,
    diffusion,
    export,
    family,
    ip_adapter,
    latents,
    lora,
    muon,
    networks,
    pairs,
    rcc,
    rollout,
    train_base,
    train_lora,
    train_taggers,
    train_vae,
)
from claygraph.miniature import image_encoder as images
from claygraph.miniature.credits import write_credits
from claygraph.miniature.licences import licence_of, read_copyright
from claygraph.miniature.measures import average_precision
from claygraph.miniature.reuse import reuse
from claygraph.miniature.training import Group, Trainer, load_average
from claygraph.values import Image as Photo

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


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sources as the recipe writes them, of synthetic pictures, with pairs and latents."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    photos = []
    for index in range(13):
        tiles = random.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((360, 320), Image.Resampling.BICUBIC).save(folder / f"photos/{index}.png")
        photos.append({"file": f"{index}.png", "package": "synthetic", "caption": "tiles"})
    sticker = np.zeros((13, 160, 160, 4), np.uint8)
    sticker[:, 40:120, 40:120] = random.integers(0, 256, (13, 1, 1, 4)) | np.array([0, 0, 0, 255])
    np.savez(folder / "emoji.npz", solid=sticker, flat=sticker[..., [2, 1, 0, 3]], paired=np.ones(13, bool))
    emoji = [{"name": f"red fish {i}", "group": "Animals & Nature", "tags": ["fish"]} for i in range(13)]
    (folder / "sources.json").write_text(json.dumps({"photos": photos, "emoji": emoji}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "_statistics", lambda *_: None)
        for make in (pairs.pictures, pairs.pairs, pairs.twins, pairs.held_out):
            make(folder, {(128, 128): 3})
        latents.latents(folder)
    return folder


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "CROPS", {(16, 8): (2, 1.0, 1.0)})


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


def test_folding_makes_latents_standard() -> None:
    vae, pictures = networks.make_vae().eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        raw = vae.encode(pictures).latent_dist.mode().transpose(0, 1).flatten(1)
        family.fold_latents(vae, raw.mean(1), raw.std(1))
        latent = vae.encode(pictures).latent_dist.mode()
        scaled = (latent * vae.config.scaling_factor).transpose(0, 1).flatten(1)
        after = vae.decode(latent).sample
    assert torch.allclose(scaled.mean(1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.std(1), torch.ones(4), atol=1e-3)
    assert torch.allclose(before, after, atol=1e-3)


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


def test_clay_of_a_picture_depends_on_the_seed_alone() -> None:
    picture = np.asarray(Image.open(WEIGHTS / "photos/coffee.jpg").resize((96, 64)))
    first, again, other = (clayify.clayify(picture, seed) for seed in (1, 1, 2))
    assert first.shape == picture.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_clay_creases_are_darker_than_the_bodies_between_them() -> None:
    picture = np.full((96, 96, 3), (40, 90, 200), np.uint8)
    picture[:, 48:] = (220, 60, 40)
    clay = clayify.clayify(picture, lumps=0).astype(float).mean(2)
    assert clay[20:76, 46:50].mean() < min(clay[20:76, 20:30].mean(), clay[20:76, 66:76].mean()) - 10


def test_edges_are_twice_the_picture() -> None:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, 32:] = 255
    found = clayify.edges(picture)
    assert found.shape == (80, 128)
    assert set(np.unique(found)) == {0, 255}


def test_the_default_graph_finds_the_edges_that_training_used() -> None:
    """The clay's creases lie on the hint's lines only if both are found alike."""
    photo = np.asarray(Image.open(WEIGHTS / "photos/coffee.jpg").convert("RGB").resize((160, 128)))
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        stage = instantiate(compose("config").edges, _convert_="all")
    hint = stage.run(Photo(photo)).pixels[:, :, 0]
    assert np.mean(hint != clayify.edges(photo)) < 0.01


def test_bridge_share_is_one_at_the_start_and_falls_with_the_noise() -> None:
    torch.manual_seed(0)
    clean, noise = torch.zeros(400, 4, 1, 1), diffusion.Noise()
    batch = diffusion.Batch(clean + 1000, clean, clean, clean, [])
    noised, x = train_lora.bridge(noise, batch, np.random.default_rng(0))
    share = ((x - noised.sigma * noised.noise) / noised.signal).mean((1, 2, 3)) / 1000
    assert share.max() <= 1 + 1e-4
    assert 0.15 < (share > 1 - 1e-4).float().mean() < 0.3
    assert 0.08 < (share.abs() < 1e-6).float().mean() < 0.25
    assert share[noised.timesteps < 100].mean() < share[noised.timesteps > 300].mean()


def test_a_rollout_of_a_network_that_knows_the_picture_follows_its_noise_down() -> None:
    torch.manual_seed(0)
    noise, clean = diffusion.Noise(), torch.randn(6, 4, 8, 8)
    start = noise.like(clean, low=0.4)

    def knowing(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        level = noise.at(timesteps, start.noise)
        assert torch.allclose(x, level.add(clean), atol=1e-4)
        return level.signal * level.noise - level.sigma * clean

    until = rollout.below(start.timesteps)
    assert (until >= 0).all()
    assert (until < start.timesteps).all()
    level, x = rollout.rollout(noise, start, start.add(clean), until, knowing)
    assert torch.equal(level.timesteps, until)
    assert torch.allclose(x, noise.at(until, start.noise).add(clean), atol=1e-4)


def one_step(name: str, work: Path) -> torch.Tensor:
    """The loss of one random batch of this part's training."""
    noise, joint = diffusion.Noise(), train_lora.load_joint(work)
    if name == "base":
        return train_base.base_loss(joint, diffusion.Latents(work, 0, "pictures", "pairs"), noise, 0.0)
    joint.requires_grad_(False)
    lora.add_lora(joint.base, name)
    data = diffusion.Latents(work, 0, train_lora.KINDS[name])
    return train_lora.lora_loss(joint, data, noise, 0.0, train_lora.WORDS[name])


@pytest.mark.parametrize("name", ["base", "clay", "toy"])
def test_one_step_of_a_diffusion_training(name: str, work: Path) -> None:
    loss = one_step(name, work)
    torch.autograd.backward(loss)
    assert 0.01 < loss.item() < 20


def test_a_fresh_lora_leaves_the_base_alone_and_a_trained_one_is_kohyas_product(work: Path) -> None:
    base = family.load_base(work)
    x, hidden, pooled = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 80), torch.randn(1, 40)

    def velocity() -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = base.unet(x, 7, hidden, added_cond_kwargs=networks.added(pooled, x)).sample
        return out

    before = velocity()
    lora.add_lora(base, "clay")
    assert torch.equal(velocity(), before)
    for product in lora.products(base).values():
        torch.nn.init.normal_(product.up, std=0.02)
    adapted, tensors = velocity(), lora.lora_tensors(base)
    again = family.load_base(work)
    for layer, module in lora.adapted(again).items():
        key = layer.replace(".", "_")
        up, down = (tensors[f"{key}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
        module.weight.data += (up @ down).view_as(module.weight)  # type: ignore[operator, union-attr, arg-type]
    base = again
    assert not torch.allclose(adapted, before, atol=1e-3)
    assert torch.allclose(velocity(), adapted, atol=1e-4)


def test_muon_makes_every_direction_equally_long() -> None:
    spread = torch.linalg.svdvals(muon.orthogonal(torch.randn(24, 200) * torch.logspace(0, -1, 24)[:, None]))
    assert 0.5 < spread.min() <= spread.max() < 1.5


def test_reused_vae_is_the_bundled_one_with_normal_latents(tmp_path: Path) -> None:
    reuse(tmp_path, WEIGHTS, "vae")
    stored, vae = load_file(CHECKPOINT), family.final_vae(tmp_path)
    assert torch.allclose(vae.decoder.conv_in.weight, stored["first_stage_model.decoder.conv_in.weight"].float())
    assert torch.allclose(vae.quant_conv.bias[:4], stored["first_stage_model.quant_conv.bias"][:4].float(), atol=1e-5)


def test_training_the_vae_resumes_where_it_stopped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, crops = networks.make_vae(), train_vae.Crops(work, 0)
    file = work / "checkpoints/resumed.safetensors"
    losses: list[float] = []

    def loss(_: float) -> torch.Tensor:
        value = train_vae._loss(vae, crops.batch(16, 2))
        losses.append(value.item())
        return value

    for steps in (2, 3):
        trainer = Trainer(file, vae, [Group(list(vae.parameters()), 1e-3, muon=True)])
        trainer.run(loss, minutes=1, max_steps=steps)
    assert (trainer.step, len(losses)) == (3, 3)
    other = networks.make_vae()
    load_average(file, other)
    assert torch.equal(other.decoder.conv_out.weight, vae.decoder.conv_out.weight)


def test_closed_form_start_already_shows_the_picture() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    pictures = torch.stack([ramp, -ramp, ramp.transpose(1, 2), ramp * torch.tensor([1.0, -1.0, 0.2]).view(3, 1, 1)])
    vae = networks.make_vae()
    train_vae.linear_start(vae, pictures)
    with torch.no_grad():
        assert (vae(pictures).sample - pictures).abs().mean() < 0.15


def test_tagger_examples_carry_style_and_colour(work: Path) -> None:
    pictures, wanted = train_taggers.Examples(work, seed=0).batch(6)
    assert pictures.shape == (6, 96, 96, 3)
    styles = [train_taggers.TAGS.index(t) for t in ("photo", "3d", "flat", "claymation")]
    assert (wanted[:, styles].sum(1) >= 1).all()
    assert (wanted[:, train_taggers.TAGS.index("general")] == 1).all()


def test_average_precision_of_a_perfect_and_a_reversed_ranking() -> None:
    wanted, scores = np.array([1, 1, 0, 0], np.float32), np.array([0.9, 0.8, 0.2, 0.1], np.float32)
    assert average_precision(wanted, scores) == 1
    assert average_precision(wanted, -scores) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_only_open_licences_are_taken(tmp_path: Path) -> None:
    text = (
        "Format: x\n\nFiles: *\nCopyright: A\nLicense: GPL-3+\n\nFiles: a/b.jpg\nCopyright: B\nLicense: CC-BY-SA-3.0\n"
    )
    (tmp_path / "copyright").write_text(text)
    stanzas = read_copyright(tmp_path / "copyright")
    named, other = licence_of("a/b.webp", stanzas, any_suffix=True), licence_of("a/c.webp", stanzas, any_suffix=True)
    assert (named.open, named.author) == (True, "B")
    assert not other.open


def test_files_are_found_in_a_qt_resource_container(tmp_path: Path) -> None:
    name = struct.pack(">HI", 5, 0) + "a.png".encode("utf-16-be")
    content = struct.pack(">I", 3) + b"abc"
    root = struct.pack(">IHIIQ", 0, 2, 1, 1, 0)
    leaf = struct.pack(">IHHHIQ", 0, 0, 0, 0, 0, 0)
    head = struct.pack(">4sIIIII", b"qres", 3, 24, 24 + 44, 24 + 44 + len(content), 0)
    (tmp_path / "x.rcc").write_bytes(head + root + leaf + content + name)
    assert list(rcc.entries(tmp_path / "x.rcc")) == [("a.png", b"abc")]


def test_recipe_help_names_every_step() -> None:
    out = subprocess.run([sys.executable, "-m", "claygraph.miniature.train", "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    steps = ("fetch", "vae", "image_encoder", "base", "clay", "toy", "taggers", "classifier", "export")
    assert all(step in out.stdout for step in steps)


def test_recipe_refuses_an_unknown_part() -> None:
    command = [sys.executable, "-m", "claygraph.miniature.train", "all", "--minutes", "vea=3"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    assert "parts are vae, image_encoder" in out.stderr


def test_every_photo_is_credited(tmp_path: Path) -> None:
    photo = {"package": "p: a|b.jpg", "licence": "CC0-1.0", "author": "Ann", "origin": "", "file": "1", "caption": "x"}
    (tmp_path / "sources.json").write_text(json.dumps({"photos": [photo]}))
    write_credits(tmp_path, tmp_path / "CREDITS.md")
    assert (tmp_path / "CREDITS.md").read_text().endswith("| p: a/b.jpg | CC0-1.0 | Ann | not stated |\n")


def test_only_open_licences_are_credited() -> None:
    rows = (WEIGHTS.parent / "CREDITS.md").read_text(encoding="utf-8").splitlines()[8:]
    licences = {row.split(" | ")[1] for row in rows}
    assert len(rows) > 100
    assert all(re.match(r"CC0|CC-BY(-SA)?-\d|public-domain|BSD|MIT", licence) for licence in licences)
