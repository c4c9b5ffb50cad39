"""What a checkpoint's UNet predicts, and all that follows from it: sigmas, timesteps, scales, and the clean picture.

Four kinds of checkpoint, told apart by marker tensors of a single file or by a folder's scheduler config:

- ``epsilon``: the noise, over the sigmas of 1000 training timesteps (Ho et al. 2020; SDXL).
- ``v_prediction``: the velocity (Salimans and Ho 2022, arXiv 2202.00512), marker ``v_pred``; with ``ztsnr`` its sigmas
  are rescaled to zero terminal signal-to-noise (Lin et al. 2023, arXiv 2305.08891).
- ``v_prediction`` over continuous sigmas, marker ``edm_vpred.sigma_max``.
- ``edm``: Karras et al. 2022 (arXiv 2206.00364), markers ``edm_mean`` and ``edm_std``: Playground 2.5.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from claygraph.diffusion.schedules import Table, ramp, sigma_table, single, timestep_of
from claygraph.errors import WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from claygraph.values import Checkpoint

Marks = Mapping[str, tuple[float, ...]]
KINDS = ("epsilon", "v_prediction", "edm")
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
NOISIEST = 4.8973451890853435e-08
"""Signal power of the last timestep of a rescaled schedule, where 0 would make its sigma infinite: 4518.8."""
EDM_SIGMAS, EDM_DATA, EDM_SCALE = (0.002, 80.0), 0.5, 0.5
V_EDM_SIGMAS = (0.002, 120.0)
log = logging.getLogger(__name__)


def marked(marks: Marks, notes: Mapping[str, str]) -> dict[str, Any]:
    """Fields of ``Checkpoint`` that a single file's marker tensors and header notes decide; none where it has none."""
    if "edm_mean" in marks and "edm_std" in marks:
        latent = {"latent_mean": marks["edm_mean"], "latent_std": marks["edm_std"], "scaling_factor": EDM_SCALE}
        return {"prediction": "edm", **_continuous(*EDM_SIGMAS, EDM_DATA), **latent}
    if "edm_vpred.sigma_max" in marks:
        low, high = (marks.get(f"edm_vpred.{end}", (V_EDM_SIGMAS[end == "sigma_max"],)) for end in _ENDS)
        return {"prediction": "v_prediction", **_continuous(low[0], high[0], 1.0)}
    if "v_pred" in marks:
        return {"prediction": "v_prediction", "zero_snr": "ztsnr" in marks}
    return {"prediction": "v_prediction"} if notes.get("modelspec.prediction_type") == "v" else {}


_ENDS = ("sigma_min", "sigma_max")


def _continuous(low: float, high: float, data: float) -> dict[str, float]:
    if not 0 < low < high < math.inf:
        raise WeightsError(f"the checkpoint names sigmas from {low:g} to {high:g}, which is no range; fetch it again.")
    return {"sigma_min": low, "sigma_max": high, "sigma_data": data}


def configured(scheduler: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields from the configs of a diffusers folder: its scheduler's, and its VAE's scale of latents."""
    found = str(scheduler.get("prediction_type", "epsilon"))
    if found not in KINDS[:2]:
        raise WeightsError(
            f"the checkpoint's scheduler has prediction_type={found!r}, which is not known{nearest(found, KINDS[:2])}"
        )
    if "EDM" in str(scheduler.get("_class_name")):
        low, high, data = (float(scheduler.get(key, default)) for key, default in _EDM_DEFAULTS)
        kind = {"prediction": "edm" if found == "epsilon" else found, **_continuous(low, high, data)}
    else:
        kind = {"prediction": found, "zero_snr": _rescaled(scheduler, found)}
    shift = {f"latent_{part}": _numbers(vae.get(f"latents_{part}")) for part in ("mean", "std")}
    return {**kind, **shift, "scaling_factor": float(vae.get("scaling_factor", 0.13025))}


_EDM_DEFAULTS = (("sigma_min", EDM_SIGMAS[0]), ("sigma_max", EDM_SIGMAS[1]), ("sigma_data", EDM_DATA))


def _rescaled(scheduler: Mapping[str, Any], prediction: str) -> bool:
    """Whether the sigmas are rescaled; the noise alone says nothing about a picture without any signal."""
    asked = bool(scheduler.get("rescale_betas_zero_snr"))
    if asked and prediction == "epsilon":
        log.warning("rescale_betas_zero_snr is left out: a model that predicts noise cannot start from noise alone.")
    return asked and prediction != "epsilon"


def _numbers(values: Sequence[float] | None) -> tuple[float, ...]:
    return tuple(float(value) for value in values or ())


def table_of(checkpoint: Checkpoint) -> Table:
    """The sigmas a checkpoint was trained at, ascending: of its timesteps, or 1000 of its continuous range."""
    if checkpoint.sigma_max:
        return _log_spaced(checkpoint.sigma_min, checkpoint.sigma_max)
    table = sigma_table(checkpoint.beta_start, checkpoint.beta_end, checkpoint.beta_schedule)
    return _zero_snr(table) if checkpoint.zero_snr else table


@cache
def _log_spaced(low: float, high: float) -> Table:
    return tuple(math.exp(log) for log in ramp(math.log(low), math.log(high), 1000))


@cache
def _zero_snr(table: Table) -> Table:
    """Signal shifted and scaled so that the last timestep has none and the first keeps its own (algorithm 1)."""
    signal = [1 / math.hypot(1, sigma) for sigma in table]
    scale = signal[0] / (signal[0] - signal[-1])
    power = [((each - signal[-1]) * scale) ** 2 for each in signal[:-1]]
    return tuple(single(*(math.sqrt((1 - p) / p) for p in (*power, NOISIEST))))


def timestep(sigma: float, checkpoint: Checkpoint) -> float:
    """What the UNet is told of ``sigma``: the nearest training timestep, or a quarter of its logarithm."""
    return 0.25 * math.log(sigma) if checkpoint.sigma_max else timestep_of(sigma, table_of(checkpoint))


def unet_input(x: Tensor, sigma: Tensor, checkpoint: Checkpoint) -> Tensor:
    """``x`` at the scale the UNet was trained on: of unit variance where the data have deviation ``sigma_data``."""
    return x / (sigma**2 + checkpoint.sigma_data**2).sqrt()


def x0(x: Tensor, sigma: Tensor, output: Tensor, checkpoint: Checkpoint) -> Tensor:
    """The clean picture the model sees in ``x = x0 + sigma * noise``, from its output for ``unet_input``."""
    if checkpoint.prediction == "epsilon":
        return x - sigma * output
    data, total = checkpoint.sigma_data, sigma**2 + checkpoint.sigma_data**2
    sign = 1 if checkpoint.prediction == "edm" else -1
    return x * data**2 / total + sign * output * sigma * data / total.sqrt()


def into_model(latent: Tensor, checkpoint: Checkpoint) -> Tensor:
    """VAE latents ``[1, C, h, w]`` at the sampler's scale; an empty latent, all zeros, stays empty."""
    if not latent.any():
        return latent
    mean, std = _shift(latent, checkpoint)
    return (latent - mean) * (checkpoint.scaling_factor / std)


def out_of_model(x: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Latents from the sampler's scale back to the VAE's."""
    mean, std = _shift(x, checkpoint)
    return x / (checkpoint.scaling_factor / std) + mean


def _shift(latent: Tensor, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents, ``[1, C, 1, 1]``: 0 and 1 where a checkpoint names none."""
    mean, std = checkpoint.latent_mean or (0.0,), checkpoint.latent_std or (1.0,)
    return latent.new_tensor(mean)[None, :, None, None], latent.new_tensor(std)[None, :, None, None]
