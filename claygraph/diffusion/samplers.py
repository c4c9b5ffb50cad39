"""The samplers by their ComfyUI names, with what each needs of its schedule and its noise."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from claygraph.diffusion import samplers_ode as ode
from claygraph.diffusion import samplers_sde as sde
from claygraph.diffusion.samplers_ode import Denoise, Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAMPLERS", "Denoise", "Noise", "NoiseKind", "Sampler"]

NoiseKind: TypeAlias = Literal["none", "white", "brownian"]


@dataclass(frozen=True)
class Sampler:
    """``run``, the kind of step noise it draws, and whether it wants the schedule without its last sigma above 0."""

    run: Callable[[Denoise, Tensor, Sequence[float], Noise], Coroutine[Any, Any, Tensor]]
    noise: NoiseKind = "none"
    drop_penultimate: bool = False


SAMPLERS: Mapping[str, Sampler] = {
    "euler": Sampler(ode.euler),
    "heun": Sampler(ode.heun),
    "heunpp2": Sampler(ode.heunpp2),
    "dpm_2": Sampler(ode.dpm_2, drop_penultimate=True),
    "lms": Sampler(ode.lms),
    "ipndm": Sampler(ode.ipndm),
    "gradient_estimation": Sampler(ode.gradient_estimation),
    "dpmpp_2m": Sampler(ode.dpmpp_2m),
    "res_multistep": Sampler(ode.res_multistep),
    "ddim": Sampler(ode.euler),
    "euler_ancestral": Sampler(sde.euler_ancestral, "white"),
    "dpm_2_ancestral": Sampler(sde.dpm_2_ancestral, "white", drop_penultimate=True),
    "dpmpp_2s_ancestral": Sampler(sde.dpmpp_2s_ancestral, "white"),
    "ddpm": Sampler(sde.euler_ancestral, "white"),
    "lcm": Sampler(sde.lcm, "white"),
    "dpmpp_sde": Sampler(sde.dpmpp_sde, "brownian"),
    "dpmpp_2m_sde": Sampler(sde.dpmpp_2m_sde, "brownian"),
    "dpmpp_2m_sde_heun": Sampler(sde.dpmpp_2m_sde_heun, "brownian"),
    "dpmpp_3m_sde": Sampler(sde.dpmpp_3m_sde, "brownian"),
}
"""``ddim`` is Euler and ``ddpm`` is ancestral Euler, written for another scale of ``x``."""
