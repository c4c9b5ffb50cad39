"""The miniature's recipe: one step of every training, its resuming, and its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from claygraph.miniature import (
    WEIGHTS,
    diffusion,
    family,
    lora,
    muon,
    networks,
    rollout,
    train_base,
    train_lora,
    train_vae,
)
from claygraph.miniature.reuse import reuse
from claygraph.miniature.training import Group, Trainer, load_average

CHECKPOINT = WEIGHTS / "checkpoint/clay_mini.safetensors"


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "CROPS", {(16, 8): (2, 1.0, 1.0)})


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


def test_places_with_a_line_count_three_times() -> None:
    hint = torch.zeros(1, 3, 32, 32)
    hint[:, :, 9, 17] = 1
    weight = train_lora.lines(diffusion.Batch(hint, hint, hint, hint, []))
    assert weight.shape == (1, 1, 4, 4)
    assert weight.mean().item() == pytest.approx(1)
    assert weight[0, 0, 1, 2] == weight.max() == 3 * weight[0, 0, 0, 0]


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
