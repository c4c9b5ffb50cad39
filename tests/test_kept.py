"""What is kept between the steps of a batch: no more than a few things, and nothing that is wrong."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any
from weakref import ref

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.kept import LIMIT, Recent, recent, same
from tests.controls import control
from tests.denoising import base, call, error, image_prompt, memory, picture, prompt, run


class Thing:
    """May be referred to weakly."""


def unet() -> Any:
    return memory().get(("unet", base().weights, None), lambda: load_unet(base(), memory()))


def test_the_oldest_of_a_kind_goes() -> None:
    made: list[int] = []
    kept = Recent(2)
    for key in (1, 2, 1, 3, 1, 2):
        kept.get("a", key, lambda key=key: made.append(key))  # type: ignore[misc]
    kept.get("b", 1, lambda: made.append(9))
    assert made == [1, 2, 3, 2, 9]


def test_a_key_is_of_living_objects_and_keeps_none() -> None:
    one, other = Thing(), Thing()
    key, gone = same([one, other]), ref(other)
    assert key == same([one, other]) != same([other, one])
    del other
    assert gone() is None
    assert key != same([one, Thing()])


def test_a_batch_is_told_once_and_others_are_told_their_own() -> None:
    one = call(2.0, image_prompts=(image_prompt(0.7),))
    made = [run(replace(one, sigma=sigma))[0] for sigma in (2.0, 1.0)]
    before = recent(unet()).kinds["conditions"].copy(), recent(unet()).kinds["images"].copy()
    again = [run(replace(one, sigma=sigma))[0] for sigma in (2.0, 1.0)]
    assert all(error(a, b) == 0 for a, b in zip(made, again, strict=True))
    assert (recent(unet()).kinds["conditions"], recent(unet()).kinds["images"]) == before
    other = replace(one, prompt=prompt(5))
    assert error(run(other)[0], made[0]) > 1e-3
    assert error(run(replace(one, model=replace(one.model, image_prompts=())))[0], made[0]) > 1e-3


def test_what_is_kept_does_not_grow_and_holds_no_request() -> None:
    gone: list[ref[Any]] = []
    for seed in range(8):
        one = call(
            1.0, seed=seed, image_prompts=(image_prompt(0.5, seed),), controls=(control(hint=picture(seed, 64, 64)),)
        )
        Denoise.run_batch([one], memory())
        gone += [ref(one.prompt.positive), ref(one.model.image_prompts[0]), ref(one.model.controls[0].hint), ref(one)]
        del one
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)
    assert {kind: len(found) <= LIMIT for kind, found in recent(unet()).kinds.items()} == {
        "conditions": True,
        "images": True,
    }
