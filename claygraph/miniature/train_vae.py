"""Step `vae`: the f4 autoencoder. The whole is trained first; then the encoder stands and the decoder goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from claygraph.miniature.networks import Vae, make_vae
from claygraph.miniature.pictures import Pool
from claygraph.miniature.training import Group, Trainer, device, load_average
from claygraph.miniature.vae_start import linear_start

SIDE, BATCH = 64, 4


def train_vae(work: Path, minutes: float) -> None:
    """Train encoder and decoder for 40% of `minutes`."""
    torch.manual_seed(0)
    vae, crops = make_vae(), Crops(work, seed=1)
    linear_start(vae, torch.cat([crops.batch(SIDE, BATCH) for _ in range(16)]))
    vae.to(device())
    trainer = Trainer(work / "checkpoints/vae.safetensors", vae, [Group(list(vae.parameters()), 4e-4)])
    trainer.run(lambda _: _loss(vae, crops.batch(SIDE, BATCH)), 0.4 * minutes)


def train_decoder(work: Path, minutes: float) -> None:
    """Train the decoder alone for the other 60%, on larger crops; latents made by the encoder stay valid."""
    torch.manual_seed(1)
    vae, crops = load_vae(work).to(device()), Crops(work, seed=2)
    vae.requires_grad_(False)
    parameters = [
        *vae.decoder.requires_grad_(True).parameters(),
        *vae.post_quant_conv.requires_grad_(True).parameters(),
    ]
    trainer = Trainer(work / "checkpoints/decoder.safetensors", vae, [Group(parameters, 4e-4)])
    trainer.run(lambda _: _loss(vae, crops.batch(96, 3)), 0.6 * minutes)


def load_vae(work: Path) -> Vae:
    """The trained autoencoder; its encoder is final as soon as step `vae` is done."""
    vae = make_vae()
    for name in ("vae", "decoder"):
        if (file := work / f"checkpoints/{name}.safetensors").exists():
            load_average(file, vae)
    return vae.eval()


class Crops:
    """Random square crops of pictures of every kind and of clay."""

    def __init__(self, work: Path, seed: int, clay_share: float = 0.4) -> None:
        self.pool, self.share = Pool(work, seed), clay_share
        files = sorted((work / "pairs").glob("?*x???.npz")) if (work / "pairs").exists() else []
        self.clay = [np.load(f)["clay"] for f in files if ".part" not in f.name]

    def batch(self, side: int, count: int) -> torch.Tensor:
        """[count,3,side,side] in -1..1 on the training device."""
        return to_tensor(np.stack([self._one(side) for _ in range(count)])).to(device())

    def _one(self, side: int) -> npt.NDArray[np.uint8]:
        random = self.pool.random
        if self.clay and random.random() < self.share:
            shape = self.clay[random.integers(len(self.clay))]
            picture = shape[random.integers(len(shape))]
        else:
            picture = self.pool.any(*((128, 128) if random.random() < 0.6 else (224, 224))).pixels
        top, left = random.integers(picture.shape[0] - side + 1), random.integers(picture.shape[1] - side + 1)
        return np.asarray(picture[top : top + side, left : left + side])


def to_tensor(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N,H,W,3] to float [N,3,H,W] in -1..1."""
    return torch.tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    """float [N,3,H,W] in -1..1 to uint8 [N,H,W,3]."""
    scaled = ((values.detach().clamp(-1, 1) + 1) * 127.5).round()
    return np.asarray(scaled.byte().permute(0, 2, 3, 1).cpu().numpy())


def _loss(vae: Vae, pictures: torch.Tensor) -> torch.Tensor:
    """L1 of pixels, gradients and 4x4 means; a little latent noise so that nearby latents decode alike."""
    mean = vae.encode(pictures).latent_dist.mean
    rebuilt = vae.decode(mean + 0.06 * torch.randn_like(mean)).sample
    error = rebuilt - pictures
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    means = F.avg_pool2d(error, 4).abs().mean()
    total: torch.Tensor = error.abs().mean() + 0.5 * slopes + 0.5 * means + 2e-3 * mean.square().mean()
    return total
