"""Parity of what turns pictures into something else and back: VAE, edge detectors, tagger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from claygraph.stages import edges as detectors
from claygraph.stages import photo
from claygraph.stages.decode import Decode
from claygraph.stages.encode import Encode
from claygraph.stages.prompt import EncodePrompt
from claygraph.stages.tagger import Tagger
from claygraph.values import Image, Latent
from tests.parity_reference import EDGES, EXACT, LEVEL, PICTURE, Case, Compared, Unsupported, absolute
from tests.parity_world import World, image, make, one_of, only

CANNY = "CannyFloat"
"""The edge stage with the recorded tool's Canny: Gaussian first, thresholds 0 to 1."""


def vae(case: Case, world: World) -> Iterator[Compared]:
    """Encode and decode, against latents and pictures."""
    if "uint8" in case.outputs:
        found = decoded(world, case.array(case.inputs["latent"])[0])
        yield Compared("uint8", absolute(found / 255, case.wanted("uint8").reshape(found.shape) / 255), LEVEL)
        return
    names = case.inputs.get("images") or [case.inputs["image_uint8"]]
    latents = [world.run(Encode(), checkpoint=world.model, photo=image(case, name)).samples for name in names]
    yield case.near("latent", np.stack(latents))
    if "decoded_f16" in case.outputs:
        yield picture(world, case, latents[0], "decoded_f16")


def decoded(world: World, samples: Any) -> Any:
    """The uint8 picture of a latent."""
    return world.run(Decode(), checkpoint=world.model, sampler=Latent(np.array(samples))).pixels


def picture(world: World, case: Case, samples: Any, output: str) -> Compared:
    """A decoded picture against one recorded in half precision: at most a level, and that precision, off."""
    wanted = np.asarray(case.wanted(output), np.float32)
    found = decoded(world, samples).reshape(wanted.shape) / 255
    return Compared(output, absolute(found, wanted), LEVEL + PICTURE)  # levels are cut off, not rounded


def edges(case: Case, world: World) -> Iterator[Compared]:
    """An edge picture as any detector of ``stages/edges.py`` makes it: ``inputs`` name ``detector`` and settings."""
    settings = {name: value for name, value in case.inputs.items() if name not in ("detector", "image", "image_uint8")}
    kind = getattr(detectors, str(case.inputs.get("detector", "Canny")), None)
    if kind is None:
        raise Unsupported(f"no edge detector {case.inputs['detector']!r}")
    given = image(case, one_of(case.inputs, ["image", "image_uint8"], "inputs/photo_uint8"))
    yield differing(case, world.run(make(kind, **settings), photo=given))


def differing(case: Case, found: Image) -> Compared:
    """The share of pixels in which an edge picture differs from the recorded one."""
    wanted = case.wanted("uint8")
    if found.pixels.shape != wanted.shape:
        return Compared("uint8", float("inf"), EDGES)
    return Compared("uint8", float((found.pixels != wanted).any(-1).mean()), EDGES)


def hint_of(world: World, given: Image, asked: Mapping[str, Any]) -> Image:
    """A picture's edges by the ``detector`` a case names, or else by the recorded tool's."""
    if "detector" in asked:
        settings = {name: value for name, value in asked.items() if name != "detector"}
        found: Image = world.run(make(getattr(detectors, asked["detector"]), **settings), photo=given)
        return found
    return recorded_canny(world, given, asked["low"], asked["high"])


def recorded_canny(world: World, given: Image, low: float, high: float) -> Image:
    """The picture's edges by the detector that works as the recorded tool's Canny does."""
    kind = getattr(detectors, CANNY, None)
    if kind is None:
        raise Unsupported("no Canny with the recorded tool's smoothing and thresholds 0 to 1")
    found: Image = world.run(make(kind, low=low, high=high), photo=given)
    return found


def tagger(case: Case, world: World) -> Iterator[Compared]:
    """The string a WD14 tagger node wrote: ``inputs`` name the picture and the model, or the section's only one."""
    settings = dict(one_of(case.inputs, ["tagger"], case.settings or case.inputs))
    given = photograph(case, world, one_of(case.inputs, ["image", "photo", "file"], ""))
    wanted = str(one_of(case.outputs, ["tags", "text", "string"], case.record.get("tags")))
    model = str(world.weights / "tagger" / settings["model"]) if "model" in settings else ""
    found = caption(world, given, model or only(world.weights / "tagger", "*/"), settings)
    if found != wanted:
        found = as_recorded(case, world, found, wanted)
    yield Compared(f"tags {found!r}, not {wanted!r}" if found != wanted else "tags", float(found != wanted), EXACT)


def as_recorded(case: Case, world: World, found: str, wanted: str) -> str:
    """Our string with kaomoji spelt as recorded, where that is all that differs."""
    faces = [word for word in found.split(", ") if "_" in word and not re.search(r"[^\W_]{2}", word)]
    if not faces or "_" in wanted:
        return found
    world.differs("kaomoji")
    return ", ".join(word.replace("_", " ") if word in faces else word for word in found.split(", "))


def photograph(case: Case, world: World, name: str) -> Image:
    """A recorded array, or a file of the set read as the photo stage reads it."""
    if name in case.arrays:
        return image(case, name)
    for folder in (world.weights, world.weights / "photos"):
        if (folder / name).is_file():
            found: Image = world.run(photo.Photo(str(folder / name), fit="none"))
            return found
    raise Unsupported(f"the set holds no picture {name!r}")


def caption(world: World, given: Image, path: str, settings: Any) -> str:
    """The picture's tags as one string, as the prompt would begin."""
    named = ("threshold", "character_threshold", "replace_underscore", "trailing_comma", "exclude_tags")
    stage = make(Tagger, path=path, **{name: settings[name] for name in named if name in settings})
    return str(EncodePrompt().written(world.run(stage, photo=given)))
