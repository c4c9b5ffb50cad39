"""A stack of LoRAs on the UNet and the text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from claygraph.errors import SettingError, check_range, nearest
from claygraph.files import weights
from claygraph.stage import Stage
from claygraph.values import Lora, Model

SETTINGS = ("path", "model", "clip")


@dataclass(frozen=True)
class LoraStack(Stage):
    """Any number of LoRAs; ``stack`` holds ``(name, path, model strength, clip strength)`` for each."""

    stack: tuple[tuple[str, str, float, float], ...] = ()

    @classmethod
    def of(cls, **loras: Mapping[str, Any]) -> LoraStack:
        """The stack as configs spell it: ``lora.NAME.path``, ``lora.NAME.model`` and ``lora.NAME.clip``."""
        return cls(tuple(_entry(name, settings) for name, settings in loras.items()))

    def files(self) -> Sequence[str]:
        return [weights(f"lora.{name}.path", path).path for name, path, _, _ in self.stack]

    def run(self, checkpoint: Model) -> Model:
        loras = [_lora(*entry) for entry in self.stack]
        return replace(checkpoint, loras=(*checkpoint.loras, *(lora for lora in loras if lora.model or lora.clip)))


def _entry(name: str, settings: Mapping[str, Any]) -> tuple[str, str, float, float]:
    if not isinstance(settings, Mapping) or "path" not in settings:
        raise SettingError(f"lora.{name} needs a path; give lora.{name}.path=FILE.safetensors.")
    for setting in settings:
        if setting not in SETTINGS:
            raise SettingError(f"lora.{name}.{setting} is not a setting{nearest(setting, SETTINGS)}")
    model, clip = settings.get("model", 1.0), settings.get("clip", 1.0)
    check_range(f"lora.{name}.model", model, -10, 10)
    check_range(f"lora.{name}.clip", clip, -10, 10)
    return name, str(settings["path"]), float(model), float(clip)


def _lora(name: str, path: str, model: float, clip: float) -> Lora:
    return Lora(weights(f"lora.{name}.path", path), model, clip)
