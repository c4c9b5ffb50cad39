"""A ControlNet that holds the picture to its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from claygraph.errors import check_range
from claygraph.files import weights
from claygraph.stage import Stage
from claygraph.values import Control, Image, Model


@dataclass(frozen=True)
class ControlNet(Stage):
    """Adds a ControlNet (a diffusers folder) to the model.

    ``strength`` is 0 to 10. ``start`` and ``end`` are fractions of the training schedule (0 pure noise, 1 the clean
    picture), so at denoise 0.5 the sampler begins near 0.5 and a window that ends before never acts.
    """

    path: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_range("controlnet.strength", self.strength, 0, 10)
        check_range("controlnet.start", self.start, 0, 1)
        check_range("controlnet.end", self.end, self.start, 1)

    def files(self) -> Sequence[str]:
        return [weights("controlnet.path", self.path).path]

    def run(self, ip_adapter: Model, edges: Image) -> Model:
        if not self.strength:
            return ip_adapter
        control = Control(weights("controlnet.path", self.path), edges, self.strength, self.start, self.end)
        return replace(ip_adapter, controls=(*ip_adapter.controls, control))
