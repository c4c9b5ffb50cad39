"""A closed-form start of the autoencoder: a nearly linear down- and up-sampler whose latents are patch components.

Training from random weights stays at a grey blur for minutes; from here the first step already shows the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from claygraph.miniature.networks import Vae

_MEAN_POOL = {(y, x): 0.25 for y in (0, 1) for x in (0, 1)}


@torch.no_grad()
def linear_start(vae: Vae, pictures: torch.Tensor) -> None:
    """Set weights so that latents are leading PCA components of 4x4 patches of `pictures` [N,3,H,W] in -1..1."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            _calm(name, module)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[:, :, None, None])
        conv.bias.zero_()
    _fit_read_outs(vae, pictures)


def _calm(name: str, conv: nn.Conv2d) -> None:
    if name.endswith("conv2"):
        conv.weight.mul_(0.1)
        _zero_bias(conv)
    elif "downsamplers.0.conv" in name:
        _orthogonal(conv, _MEAN_POOL)
    elif "upsamplers.0.conv" in name or name.endswith(".conv_in"):
        _orthogonal(conv, {(1, 1): 1.5 if name == "encoder.conv_in" else 1.0})
    elif name.endswith("conv_shortcut"):
        _orthogonal(conv, {(0, 0): 1.0})


def _orthogonal(conv: nn.Conv2d, taps: dict[tuple[int, int], float]) -> None:
    """An orthogonal channel map at the given kernel positions, plus a little noise."""
    out, into = conv.weight.shape[:2]
    square = nn.init.orthogonal_(torch.empty(max(out, into), max(out, into)))
    channels = torch.eye(out) if out == into else square[:out, :into]
    conv.weight.copy_(torch.randn_like(conv.weight) * 0.01 / into**0.5)
    for (y, x), value in taps.items():
        conv.weight[:, :, y, x] += channels * value
    _zero_bias(conv)


def _zero_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        conv.bias.zero_()


def _fit_read_outs(vae: Vae, pictures: torch.Tensor) -> None:
    latent = vae.config.latent_channels
    target = _components(pictures, 2 ** (len(vae.config.block_out_channels) - 1), latent)
    _least_squares(vae.encoder.conv_out, _input_of(vae.encoder.conv_out, lambda: vae.encode(pictures)), target)
    vae.encoder.conv_out.weight[latent:] *= 0.05
    vae.encoder.conv_out.bias[latent:] = -5
    codes = vae.encode(pictures).latent_dist.mode()
    _least_squares(vae.decoder.conv_out, _input_of(vae.decoder.conv_out, lambda: vae.decode(codes)), pictures)


def _components(pictures: torch.Tensor, factor: int, count: int) -> torch.Tensor:
    patches = F.pixel_unshuffle(pictures, factor)
    flat = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
    centred = flat - flat.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count]
    codes = centred @ axes
    scale = torch.tensor([1.0] + [0.7] * (count - 1)) / codes.std(0).clamp_min(1e-3)
    height, width = patches.shape[-2:]
    rows: torch.Tensor = (codes * scale).reshape(len(pictures), height, width, count)
    return rows.permute(0, 3, 1, 2)


def _input_of(conv: nn.Conv2d, call: Callable[[], object]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    call()
    handle.remove()
    return seen[0]


def _least_squares(conv: nn.Conv2d, hidden: torch.Tensor, target: torch.Tensor) -> None:
    """The ridge-regression weights that map `hidden` to `target` through this convolution."""
    count, kernel = target.shape[1], conv.kernel_size[0]
    columns = F.unfold(hidden, kernel, padding=kernel // 2).permute(0, 2, 1).reshape(-1, hidden.shape[1] * kernel**2)
    wanted = target.flatten(2).permute(0, 2, 1).reshape(-1, count)
    rows = torch.randperm(len(columns))[:60000]
    system = torch.cat([columns[rows], torch.ones(len(rows), 1)], 1)
    gram = system.T @ system
    gram += 1e-5 * gram.diag().mean() * torch.eye(len(gram))
    solved = torch.linalg.solve(gram, system.T @ wanted[rows])
    conv.weight[:count] = solved[:-1].T.reshape(count, hidden.shape[1], kernel, kernel)
    if conv.bias is not None:
        conv.bias[:count] = solved[-1]
