"""Parity of schedules, noise and the sampler stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from claygraph import values
from claygraph.diffusion import noise
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.schedules import SCHEDULES, sigma_table, sigmas_for
from claygraph.stages.sampler import KSampler
from claygraph.values import Model, Prompt
from tests.parity_reference import (
    BROWNIAN,
    EXACT,
    LATENT,
    SIGMA,
    Array,
    Case,
    Compared,
    Unsupported,
    absolute,
    relative,
)
from tests.parity_reference import each_relative as by_value
from tests.parity_world import (
    World,
    has_port,
    known_inputs,
    latents,
    make,
    one_of,
    prompt,
    replayed,
)

ADVANCED = "claygraph.stages.sampler_advanced"
ADAPTIVE = 1e-4  # sigmas of steps whose length is chosen by a measured error
CORRECTED = ("uni_pc", "uni_pc_bh2")
"""Samplers whose recorded ``x`` is that after the corrector, which the model is never given."""

FLAGS = {"enable": True, "disable": False}


def schedules(case: Case, world: World) -> Iterator[Compared]:
    """``sigmas_for`` against recorded schedules."""
    asked, wanted = case.inputs, case.wanted("sigmas")
    if asked["scheduler"] not in SCHEDULES:
        raise Unsupported(f"no schedule {asked['scheduler']!r}")
    drop = asked.get("sampler_group", "plain") != "plain"
    found = sigmas_for(asked["scheduler"], asked["steps"], asked["denoise"], drop)
    if np.isnan(wanted).any():
        world.differs("kl_optimal")
        wanted = np.array([sigma_table()[-1], 0.0])
    yield Compared("sigmas", by_value(found, wanted), SIGMA)


def noises(case: Case, world: World) -> Iterator[Compared]:
    """Initial, ancestral and Brownian noise against recorded draws."""
    kind = case.id.partition("/")[0]
    if kind == "init":
        yield from _initial(case, world)
    elif kind == "ancestral":
        yield _ancestral(case, world)
    elif kind == "brownian":
        yield _brownian(case)
    else:
        raise Unsupported(f"nothing here knows noise of the kind {kind!r}")


def _initial(case: Case, world: World) -> Iterator[Compared]:
    wanted = case.wanted("noise")
    found = noise.initial(case.inputs["seed"], wanted[:1].shape)
    yield Compared("noise", absolute(found.numpy(), wanted[:1]), EXACT)
    if len(wanted) > 1:
        world.differs("noise per picture")


def _ancestral(case: Case, world: World) -> Compared:
    """Our step noise for the seed before: the rule differs by that one, the numbers do not."""
    wanted = case.wanted("draws")
    world.differs("step noise seed")
    draw = noise.white((case.inputs["seed"] - 1) % 2**64, wanted[0].shape)
    return Compared("draws", absolute(np.stack([draw(1.0, 0.5).numpy() for _ in wanted]), wanted), EXACT)


def _brownian(case: Case) -> Compared:
    wanted, asked = case.wanted("noise"), case.inputs
    draw = noise.brownian(asked["seed"], wanted[0].shape, asked["sigma_min"], asked["sigma_max"])
    found = np.stack([draw(*pair).numpy() for pair in asked["pairs"]])
    return Compared("noise", absolute(found, wanted), BROWNIAN)


@dataclass
class Seen:
    """The evaluations of one run: their sigmas, and each ``x`` with its denoised x0."""

    sigmas: list[float] = field(default_factory=list)
    x: list[Array] = field(default_factory=list)
    x0: list[Array] = field(default_factory=list)

    def __call__(self, call: Any, value: Any) -> None:
        if isinstance(call, Denoise):
            self.sigmas.append(call.sigma)
            self.x.append(call.x.cpu().numpy())
            self.x0.append(value[:1].cpu().numpy())  # a second one is the negative half's


def ksampler(case: Case, world: World) -> Iterator[Compared]:
    """The sampler stage on the bare checkpoint."""
    known_inputs(case, "photo", "photo_array", "latent", "say")
    yield from sampled(case, world, world.model, prompt(case))


def sampled(case: Case, world: World, model: Model, text: Prompt, tolerance: float = LATENT) -> Iterator[Compared]:
    """The sampler stage with the case's settings, each picture of the batch by itself."""
    stage = stage_of(case)
    pictures, seen = [], Seen()
    for item, latent in enumerate(latents(case)):
        start, steps = _to_replay(case, world, item)
        with replayed(case, item, start, steps):
            ports = {"controlnet": model, "prompt": text, "encode": latent, **_mask(case)}
            pictures.append(world.run(stage, seen if item == 0 else None, **ports).samples)
    yield case.near("latent", np.stack(pictures), tolerance)
    yield from _passed(case, seen)


def _passed(case: Case, seen: Seen) -> Iterator[Compared]:
    """Where the model was evaluated and, where a step is one evaluation, what it was given and gave."""
    sampler = case.settings["sampler"]
    if "eval_sigmas" in case.outputs:
        tolerance = ADAPTIVE if sampler == "dpm_adaptive" else SIGMA
        yield Compared("eval_sigmas", by_value(seen.sigmas, case.wanted("eval_sigmas")), tolerance)
    for output, found in (("steps_x", seen.x), ("steps_x0", seen.x0)):
        told_later = output == "steps_x" and sampler in CORRECTED
        if output in case.outputs and len(case.wanted(output)) == len(found) and not told_later:
            wanted = _distinct(case.wanted(output))
            yield Compared(output, relative(np.stack(found[: len(wanted)]).reshape(wanted.shape), wanted), LATENT)


def _distinct(recorded: Array) -> Array:
    """Recorded steps; the first alone where all are equal: the recorder then kept hold of one array."""
    return recorded[:1] if len(recorded) > 1 and (recorded == recorded[:1]).all() else recorded


def stage_of(case: Case) -> Any:
    """The sampler stage with the settings of a recorded KSampler or KSamplerAdvanced."""
    recorded = dict(case.settings)
    if recorded["sampler"] not in SAMPLERS:
        raise Unsupported(f"no sampler {recorded['sampler']!r}")
    shared = {name: recorded[name] for name in ("steps", "cfg", "scheduler")} | {"sampler_name": recorded["sampler"]}
    if recorded.get("node") != "KSamplerAdvanced":
        return make(KSampler, seed=recorded["seed"], denoise=recorded["denoise"], **shared)
    if find_spec(ADVANCED) is None:
        raise Unsupported("no stage KSamplerAdvanced")
    named = ("add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise")
    own = {name: FLAGS.get(recorded[name], recorded[name]) for name in named}
    return make(import_module(ADVANCED).KSamplerAdvanced, noise_seed=recorded["seed"], **shared, **own)


def _to_replay(case: Case, world: World, item: int) -> tuple[bool, bool]:
    """Whether the recorded initial noise and the recorded step noise are put in the place of claygraph's."""
    later = item > 0
    if later:
        world.differs("noise per picture")
    drawn = case.record.get("step_noise") or {}
    maker: dict[str, Any] = next(iter(drawn.get("made_by", [])), {})
    old_rule = maker.get("kind") == "randn" and maker["seed"] == case.settings["seed"] and drawn.get("draws")
    uses = SAMPLERS[case.settings["sampler"]].noise != "none"
    if old_rule and uses:
        world.differs("step noise seed")
    return later, bool(uses and (old_rule or later))


def _mask(case: Case) -> dict[str, Any]:
    """The sampler's mask input for a case recorded with a noise mask."""
    if not case.id.endswith("noise_mask"):
        return {}
    if not has_port(KSampler, "mask"):
        raise Unsupported("KSampler has no input mask")
    share = case.array(one_of(case.inputs, ["mask"], "inputs/mask"))
    mask: Any = vars(values)["Mask"]
    return {"mask": mask(np.array(share.reshape(share.shape[-2:]), np.float32))}
