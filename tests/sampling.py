"""What the tests of samplers share: denoisers with known answers; drivers for ours, k-diffusion's and plain loops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from claygraph.diffusion.noise import step_noise
from claygraph.diffusion.samplers import SAMPLERS, Denoise, Noise
from tests import plain_samplers

Model = Callable[[Tensor, Any], Tensor]

IN_K_DIFFUSION = {
    "euler": "euler",
    "ddim": "euler",
    "heun": "heun",
    "dpm_2": "dpm_2",
    "lms": "lms",
    "dpm_fast": "dpm_fast",
    "dpm_adaptive": "dpm_adaptive",
    "dpmpp_2m": "dpmpp_2m",
    "euler_ancestral": "euler_ancestral",
    "ddpm": "euler_ancestral",
    "dpm_2_ancestral": "dpm_2_ancestral",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
}
"""Our names, and k-diffusion's for the same."""


def drive(coroutine: Coroutine[Any, Any, Tensor]) -> Tensor:
    """The result of a coroutine that never has to wait."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    result: Tensor = done.value.value
    return result


def awaited(model: Model) -> Denoise:
    """A denoiser as samplers call it."""

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        return model(x, sigma)

    return denoise


def run(name: str, model: Model, x: Tensor, sigmas: Sequence[float], seed: int = 0) -> Tensor:
    """One sampler's result, with the step noise it asks for."""
    sampler = SAMPLERS[name]
    return drive(sampler.run(awaited(model), x, sigmas, step_noise(sampler.noise, seed, x, sigmas)))


def two_hills(x: Tensor, sigma: Any) -> Tensor:
    """The exact denoiser of data that lie at -1 or 1, each with deviation 0.3."""
    spread = 0.09 + sigma**2
    denoised: Tensor = (0.09 * x + sigma**2 * torch.tanh(x / spread)) / spread
    return denoised


def one_hill(x: Tensor, sigma: Any) -> Tensor:
    """The exact denoiser of Gaussian data of mean 0.5 and deviation 0.3."""
    denoised: Tensor = (0.09 * x + sigma**2 * 0.5) / (0.09 + sigma**2)
    return denoised


def guided(x: Tensor, sigma: Any) -> Tensor:
    """Guidance of 2 from one hill to two hills, and one hill beside it."""
    negative = one_hill(x, sigma)
    return torch.cat([negative + 2 * (two_hills(x, sigma) - negative), negative])


def model_of(name: str, single: Model = two_hills) -> Model:
    """What a sampler is tried on: one prediction, or two."""
    return guided if SAMPLERS[name].both else single


def reference(name: str, model: Model, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """The same run by an independent program: k-diffusion where it has the sampler, else a plain loop."""
    if name in IN_K_DIFFUSION:
        return k_diffusion_run(name, model, x, sigmas, noise)
    return plain_samplers.run(name, model, x, sigmas, noise)


def k_diffusion_run(name: str, model: Model, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """The run by k-diffusion in double precision; where its ends differ from ComfyUI's, ComfyUI's are put on."""
    x, theirs = x.double(), getattr(k_diffusion(), f"sample_{IN_K_DIFFUSION[name]}")
    if name in ("dpm_fast", "dpm_adaptive"):
        return k_diffusion_ends(name, model, x, sigmas)
    options: dict[str, Any] = {"solver_type": "heun"} if "2m_sde_heun" in name else {}
    if SAMPLERS[name].noise != "none":
        options["noise_sampler"] = lambda sigma, lower: noise(float(sigma), float(lower)).double()
    if sigmas[1:] == [0.0]:  # dpmpp_2m_sde fails there
        return model(x, sigmas[0])
    if name == "lms" and sigmas[-1] == 0:  # theirs integrates to 0
        return model(theirs(model, x, torch.tensor(sigmas[:-1]).double(), disable=True), sigmas[-2])
    result: Tensor = theirs(model, x, torch.tensor(sigmas, dtype=torch.float64), disable=True, **options)
    return result


def k_diffusion_ends(name: str, model: Model, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The samplers of k-diffusion that take both ends instead of a schedule, and lay it out in the default type."""
    theirs, lowest = getattr(k_diffusion(), f"sample_{name}"), sigmas[-1] or sigmas[-2]
    if lowest == sigmas[0]:
        return model(x, lowest)
    steps = {"n": len(sigmas) - 1} if name == "dpm_fast" else {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        result: Tensor = theirs(model, x, lowest, sigmas[0], disable=True, **steps)
    finally:
        torch.set_default_dtype(before)
    return result


@cache
def k_diffusion() -> ModuleType:
    """k-diffusion's ``sampling.py`` on its own: its package would import torchvision, its ODE solver is not needed."""
    package = find_spec("k_diffusion")
    if package is None or not package.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    patch = pytest.MonkeyPatch()
    parent, utils, odes = ModuleType("k_lone"), ModuleType("k_lone.utils"), ModuleType("torchdiffeq")
    parent.__path__ = []
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    odes.odeint = None  # type: ignore[attr-defined]
    for module in (parent, utils, odes):
        patch.setitem(sys.modules, module.__name__, module)
    file = Path(package.submodule_search_locations[0]) / "sampling.py"
    spec = spec_from_file_location("k_lone.sampling", file)
    if spec is None or spec.loader is None:
        pytest.fail(f"cannot load {file}")
    sampling = module_from_spec(spec)
    spec.loader.exec_module(sampling)
    patch.undo()
    return sampling
