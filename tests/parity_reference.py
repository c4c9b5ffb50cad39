"""A recorded reference set on disk, and how a claygraph result is compared with it.

``FOLDER/index.json`` lists ``sections``, each with ``cases``: ``id``, ``inputs``, ``settings``, ``outputs``. A string
that names an array of ``FOLDER/SECTION.npz`` stands for it. ``FOLDER/weights`` holds ``base/*.safetensors`` with
``base/config``, ``lora/``, ``ip_adapter/`` with ``image_encoder``, ``controlnet/`` and ``tagger/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LATENT = CONDITIONING = 2e-5  # of the largest recorded value: another attention kernel moves it by 4e-6
PROBE = 5e-5  # raw UNet outputs: the recorded ones and ours each lie 2e-5 from the same in float64
SIGMA = 2e-6  # of each sigma: single precision along its way makes up to 1e-6
BROWNIAN = 1e-5  # absolute
PICTURE = 2e-3  # absolute, of pictures 0..1 stored in half precision
LEVEL = 1 / 255  # one step of a picture of whole levels
EDGES = 0.005  # of the pixels
MASKED = 1e-3  # of the largest value, where a float mask had to become a picture of 256 levels
EXACT = 0.0

DELIBERATE = {
    "step noise seed": "step noise is of seed + 1, as in newer versions: compared with recorded draws replayed",
    "noise per picture": "a picture's noise does not depend on its batch: later items compared with theirs replayed",
    "middle block": "image prompts reach the middle block: compared with block 4 switched off, as recorded",
    "peft": "peft files load whole and their alpha counts: compared at the strengths the recorded tool reached",
    "tucker lokr": "Tucker LoKr works: compared with the numbers recorded with the tool mended",
    "kl_optimal": "kl_optimal with one step is [sigma_max, 0], where the recorded tool made NaN",
    "kaomoji": "kaomoji keep their underscores: compared after the recorded spelling of them is put back",
    "alpha on white": "transparent pixels show white, not what lies under them",
}
"""Where claygraph means to differ from what was recorded, and what is compared instead."""


class Unsupported(Exception):  # noqa: N818 - it reports a missing feature, not a fault
    """claygraph has no setting for what a case asks."""


class Compared(NamedTuple):
    """One output of a case: how far it lies from the recorded one, and how far it may."""

    what: str
    deviation: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether it is close enough; NaN is not."""
        return self.deviation <= self.tolerance


@dataclass(frozen=True)
class Case:
    """One recorded case, with access to its section's arrays."""

    section: str
    record: Mapping[str, Any]
    arrays: Mapping[str, Array]
    peers: Mapping[str, Mapping[str, Any]] = field(repr=False, default_factory=dict)

    @property
    def id(self) -> str:
        """Its name within the section."""
        return str(self.record["id"])

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What it was given."""
        found: Mapping[str, Any] = self.record.get("inputs", {})
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was sampled."""
        found: Mapping[str, Any] = self.record.get("settings") or {}
        return found

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Names of what came out, and of their arrays."""
        found: Mapping[str, Any] = self.record.get("outputs", {})
        return found

    def array(self, name: str) -> Array:
        """An array of the section by its name in the file."""
        return np.array(self.arrays[name])

    def wanted(self, output: str) -> Array:
        """The recorded array of an output."""
        return self.array(self.outputs[output])

    def peer(self, name: str) -> Case | None:
        """Another case of the section, if the set has it."""
        return Case(self.section, self.peers[name], self.arrays, self.peers) if name in self.peers else None

    def near(self, output: str, found: Any, tolerance: float = LATENT) -> Compared:
        """An output against the recorded one, in shares of the largest recorded value."""
        return Compared(output, relative(found, self.wanted(output)), tolerance)


def relative(found: Any, wanted: Array) -> float:
    """The largest difference as a share of the largest wanted value; infinite where shapes differ or NaN is found."""
    return absolute(found, wanted) / (float(np.abs(wanted).max(initial=0)) or 1.0)


def absolute(found: Any, wanted: Array) -> float:
    """The largest difference; infinite where shapes differ or either side is not finite."""
    there = np.asarray(found, np.float64)
    if there.shape != wanted.shape:
        return float("inf")
    worst = float(np.abs(there - np.asarray(wanted, np.float64)).max(initial=0))
    return worst if np.isfinite(worst) else float("inf")


def each_relative(found: Any, wanted: Array) -> float:
    """The largest difference as a share of the very value it lies at; zeros must be zeros."""
    there = np.asarray(found, np.float64)
    if there.shape != wanted.shape or ((wanted == 0) != (there == 0)).any():
        return float("inf")
    return absolute(there / np.where(wanted == 0, 1, wanted), (wanted != 0).astype(np.float64))


@dataclass(frozen=True)
class Reference:
    """A set in a folder; ``weights`` may lie elsewhere."""

    folder: Path
    weights: Path

    @cached_property
    def index(self) -> dict[str, Any]:
        """What ``index.json`` holds."""
        found: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        return found

    def cases(self, section: str) -> Iterator[Case]:
        """The cases of a section, in order."""
        records = self.index["sections"][section]["cases"]
        file = self.folder / f"{section}.npz"
        arrays = dict(np.load(file, allow_pickle=False)) if file.is_file() else {}
        peers = {str(record["id"]): record for record in records}
        for record in records:
            yield Case(section, record, arrays, peers)
