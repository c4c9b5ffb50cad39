"""The samplers by their ComfyUI names, with what each needs of its schedule, its noise and the model."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from claygraph.diffusion import samplers_cfg_pp as cfg_pp
from claygraph.diffusion import samplers_dpm as dpm
from claygraph.diffusion import samplers_multistep as multistep
from claygraph.diffusion import samplers_ode as ode
from claygraph.diffusion import samplers_sde as sde
from claygraph.diffusion import samplers_stochastic as stochastic
from claygraph.diffusion import samplers_unipc as unipc
from claygraph.diffusion.samplers_step import Denoise, Noise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAMPLERS", "Denoise", "Noise", "NoiseKind", "Sampler"]

NoiseKind: TypeAlias = Literal["none", "white", "brownian"]


@dataclass(frozen=True)
class Sampler:
    """``run``, the kind of step noise it draws, and what it wants.

    ``drop_penultimate``: the schedule without its last sigma above 0. ``both``: of ``denoise``, ``[2, C, H, W]``, the
    guided prediction and after it the negative half's.
    """

    run: Callable[[Denoise, Tensor, Sequence[float], Noise], Coroutine[Any, Any, Tensor]]
    noise: NoiseKind = "none"
    drop_penultimate: bool = False
    both: bool = False


SAMPLERS: Mapping[str, Sampler] = {
    "euler": Sampler(ode.euler),
    "euler_cfg_pp": Sampler(cfg_pp.euler_cfg_pp, both=True),
    "euler_ancestral": Sampler(sde.euler_ancestral, "white"),
    "euler_ancestral_cfg_pp": Sampler(cfg_pp.euler_ancestral_cfg_pp, "white", both=True),
    "heun": Sampler(ode.heun),
    "heunpp2": Sampler(ode.heunpp2),
    "dpm_2": Sampler(ode.dpm_2, drop_penultimate=True),
    "dpm_2_ancestral": Sampler(sde.dpm_2_ancestral, "white", drop_penultimate=True),
    "lms": Sampler(multistep.lms),
    "dpm_fast": Sampler(dpm.dpm_fast),
    "dpm_adaptive": Sampler(dpm.dpm_adaptive),
    "dpmpp_2s_ancestral": Sampler(sde.dpmpp_2s_ancestral, "white"),
    "dpmpp_2s_ancestral_cfg_pp": Sampler(cfg_pp.dpmpp_2s_ancestral_cfg_pp, "white", both=True),
    "dpmpp_sde": Sampler(sde.dpmpp_sde, "brownian"),
    "dpmpp_sde_gpu": Sampler(sde.dpmpp_sde, "brownian"),
    "dpmpp_2m": Sampler(multistep.dpmpp_2m),
    "dpmpp_2m_cfg_pp": Sampler(cfg_pp.dpmpp_2m_cfg_pp, both=True),
    "dpmpp_2m_sde": Sampler(sde.dpmpp_2m_sde, "brownian"),
    "dpmpp_2m_sde_gpu": Sampler(sde.dpmpp_2m_sde, "brownian"),
    "dpmpp_2m_sde_heun": Sampler(sde.dpmpp_2m_sde_heun, "brownian"),
    "dpmpp_2m_sde_heun_gpu": Sampler(sde.dpmpp_2m_sde_heun, "brownian"),
    "dpmpp_3m_sde": Sampler(sde.dpmpp_3m_sde, "brownian"),
    "dpmpp_3m_sde_gpu": Sampler(sde.dpmpp_3m_sde, "brownian"),
    "ddpm": Sampler(sde.euler_ancestral, "white"),
    "lcm": Sampler(sde.lcm, "white"),
    "ipndm": Sampler(multistep.ipndm),
    "ipndm_v": Sampler(multistep.ipndm_v),
    "deis": Sampler(multistep.deis),
    "res_multistep": Sampler(multistep.res_multistep),
    "res_multistep_cfg_pp": Sampler(cfg_pp.res_multistep_cfg_pp, both=True),
    "res_multistep_ancestral": Sampler(sde.res_multistep_ancestral, "white"),
    "res_multistep_ancestral_cfg_pp": Sampler(cfg_pp.res_multistep_ancestral_cfg_pp, "white", both=True),
    "gradient_estimation": Sampler(multistep.gradient_estimation),
    "gradient_estimation_cfg_pp": Sampler(cfg_pp.gradient_estimation_cfg_pp, both=True),
    "er_sde": Sampler(stochastic.er_sde, "white"),
    "seeds_2": Sampler(stochastic.seeds_2, "white"),
    "seeds_3": Sampler(stochastic.seeds_3, "white"),
    "sa_solver": Sampler(stochastic.sa_solver, "white"),
    "sa_solver_pece": Sampler(stochastic.sa_solver_pece, "white"),
    "ddim": Sampler(ode.euler),
    "uni_pc": Sampler(unipc.uni_pc, drop_penultimate=True),
    "uni_pc_bh2": Sampler(unipc.uni_pc_bh2, drop_penultimate=True),
}
"""``ddim`` is Euler and ``ddpm`` is ancestral Euler, written for another scale of ``x``.

The names in ``_gpu`` mean the same as those without: noise is drawn on the CPU always, so that a seed means one picture
on every device.
"""
