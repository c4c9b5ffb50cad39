"""A ControlNet that holds the picture to its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from claygraph.diffusion.keyframes import EASINGS, interpolated
from claygraph.errors import SettingError, check_choice, check_range, check_whole, nearest
from claygraph.files import weights
from claygraph.stage import Stage
from claygraph.values import Control, Image, Keyframe, LayerWeights, Model

RESIDUALS = 9
LAYER_SETTINGS = ("soft", "layers", "middle", "uncond")
KEYFRAME_SETTINGS = ("start", "strength", "inherit_missing", "guarantee_steps")
RAMP_SETTINGS = ("end", "to", "interpolation", "intervals")


@dataclass(frozen=True)
class ControlNet(Stage):
    """Adds a ControlNet for SDXL to the model: a diffusers folder, a single file, or a Control-LoRA.

    ``strength`` is 0 to 10. ``start`` and ``end`` are fractions of the training schedule (0 pure noise, 1 the clean
    picture), so at denoise 0.5 the sampler begins near 0.5 and a window that ends before never acts.

    Its nine residuals, from the highest resolution down, are multiplied by ``layers`` (nine numbers, 0 to 10, or none)
    and by ``soft ** 9`` to ``soft ** 1`` (0.825 leaves the prompt more say), the tenth in the middle by ``middle``, and
    all of them in the negative half of the guidance by ``uncond`` (0 to 1).

    ``keyframes`` change strength and weights on the way: a list of mappings with a ``start``, a ``strength`` (times
    that of the ControlNet), any of ``soft``, ``layers``, ``middle``, ``uncond``, and ``guarantee_steps`` (1);
    ``inherit_missing: false`` drops earlier weights where it names none. With ``end`` and ``to`` a keyframe becomes
    ``intervals`` (50) of them, up to ``end``, their strengths going to ``to`` by ``interpolation`` (linear, ease-in,
    ease-out, ease-in-out).

    Where a stage or wire called ``control_mask`` gives a picture, the hint counts where that is white.

    Another ControlNet is another stage: its input ``ip_adapter`` is wired to this one and the sampler's ``controlnet``
    to it, as ``controlnet_2=...`` does. What they add is summed, in whatever order they stand.
    """

    path: str
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    soft: float = 1.0
    layers: tuple[float, ...] = ()
    middle: float = 1.0
    uncond: float = 1.0
    keyframes: tuple[Keyframe, ...] = ()

    def __post_init__(self) -> None:
        check_range("controlnet.strength", self.strength, 0, 10)
        check_range("controlnet.start", self.start, 0, 1)
        check_range("controlnet.end", self.end, self.start, 1)
        _check_layers("controlnet", self.layer_weights)
        for place, keyframe in enumerate(self.keyframes):
            _check_keyframe(f"controlnet.keyframes.{place}", keyframe)

    @classmethod
    def of(
        cls,
        layers: Sequence[float] | None = None,
        keyframes: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> ControlNet:
        """The stage as configs spell it, with lists, and ``keyframes`` as mappings."""
        return cls(layers=tuple(layers or ()), keyframes=tuple(_keyframes(keyframes or ())), **settings)

    @property
    def layer_weights(self) -> LayerWeights:
        """The layer weights it begins with."""
        return LayerWeights(self.soft, self.layers, self.middle, self.uncond)

    def files(self) -> Sequence[str]:
        return [weights("controlnet.path", self.path).path]

    def run(self, ip_adapter: Model, edges: Image, control_mask: Image | None = None) -> Model:
        if not self.strength:
            return ip_adapter
        file = weights("controlnet.path", self.path)
        window = (self.strength, self.start, self.end)
        control = Control(file, edges, *window, self.layer_weights, self.keyframes, control_mask)
        return replace(ip_adapter, controls=(*ip_adapter.controls, control))


def _check_layers(setting: str, layers: LayerWeights) -> None:
    check_range(f"{setting}.soft", layers.soft, 0, 1)
    check_range(f"{setting}.middle", layers.middle, 0, 10)
    check_range(f"{setting}.uncond", layers.uncond, 0, 1)
    if layers.layers and len(layers.layers) != RESIDUALS:
        raise SettingError(f"{setting}.layers has {len(layers.layers)} numbers; give {RESIDUALS}, or none.")
    for place, factor in enumerate(layers.layers):
        check_range(f"{setting}.layers.{place}", factor, 0, 10)


def _keyframes(entries: Sequence[Mapping[str, Any]]) -> Iterator[Keyframe]:
    for place, entry in enumerate(entries):
        name = f"controlnet.keyframes.{place}"
        known = (*KEYFRAME_SETTINGS, *LAYER_SETTINGS, *RAMP_SETTINGS)
        if not isinstance(entry, Mapping):
            raise SettingError(f"{name}={entry!r} is no mapping; give one such as {{start: 0.5, strength: 0.3}}.")
        for setting in entry:
            if setting not in known:
                raise SettingError(f"{name}.{setting} is not a setting{nearest(setting, known)}")
        yield from _ramp(name, entry)


def _ramp(name: str, entry: Mapping[str, Any]) -> tuple[Keyframe, ...]:
    """The keyframe an entry stands for, or those that interpolate to its ``end``."""
    plain = {key: entry[key] for key in KEYFRAME_SETTINGS if key in entry}
    first = Keyframe(weights=_layers(entry), **plain)
    _check_keyframe(name, first)
    if not any(key in entry for key in RAMP_SETTINGS):
        return (first,)
    end, to = entry.get("end", 1.0), entry.get("to", first.strength)
    easing, intervals = entry.get("interpolation", "linear"), entry.get("intervals", 50)
    check_range(f"{name}.end", end, first.start, 1)
    check_range(f"{name}.to", to, 0, 10)
    check_choice(f"{name}.interpolation", easing, EASINGS)
    check_whole(f"{name}.intervals", intervals, 2, 100)
    return interpolated(first, end, to, easing, intervals)


def _layers(entry: Mapping[str, Any]) -> LayerWeights | None:
    """The layer weights an entry names, or None where it names none."""
    found: dict[str, Any] = {
        key: tuple(entry[key]) if key == "layers" else entry[key] for key in LAYER_SETTINGS if key in entry
    }
    return LayerWeights(**found) if found else None


def _check_keyframe(name: str, keyframe: Keyframe) -> None:
    check_range(f"{name}.start", keyframe.start, 0, 1)
    check_range(f"{name}.strength", keyframe.strength, 0, 10)
    check_whole(f"{name}.guarantee_steps", keyframe.guarantee_steps, 0, 1000)
    if not isinstance(keyframe.inherit_missing, bool):
        raise SettingError(f"{name}.inherit_missing={keyframe.inherit_missing!r} is neither true nor false.")
    if keyframe.weights:
        _check_layers(name, keyframe.weights)
