"""A stack of LoRAs on the UNet and the text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from claygraph.diffusion.lora_blocks import block_weights
from claygraph.diffusion.lora_files import held
from claygraph.diffusion.lora_fit import fit
from claygraph.errors import SettingError, check_range, nearest
from claygraph.files import locate, weights
from claygraph.stage import Stage, makes, ports
from claygraph.values import Checkpoint, Lora, Model

SETTINGS = ("path", "model", "clip", "blocks")


class Entry(NamedTuple):
    """One LoRA of the stack: its file, its strengths on the UNet and the text encoders, multipliers of UNet blocks."""

    name: str
    path: str
    model: float = 1.0
    clip: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class LoraStack(Stage):
    """Any number of LoRAs, applied in order: LoRA, LoCon, LoHa, LoKr, DoRA or whole differences, in any usual layout.

    Each has a strength ``model`` on the UNet and ``clip`` on the text encoders (-10 to 10, 1 where nothing is said),
    and ``blocks``, which multiply ``model`` in parts of the UNet, as in ``{IN: 0, MID: 0.5, OUT01: 1.2}``: IN00 to IN08
    on the way down, MID, OUT00 to OUT08 on the way up, IN and OUT for a whole side, BASE for what is in no block.
    """

    stack: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, **loras: Mapping[str, Any]) -> LoraStack:
        """The stack as configs spell it: ``lora.NAME.path``, ``.model``, ``.clip`` and ``.blocks.BLOCK``."""
        return cls(tuple(_entry(name, settings) for name, settings in loras.items()))

    def files(self) -> Sequence[str]:
        """The paths; raises ``WeightsError`` for a file that is missing or no LoRA for SDXL."""
        found = [weights(f"lora.{entry.name}.path", entry.path).path for entry in self.stack]
        for path in found:
            held(locate(path))
        return found

    def notes(self, upstream: Mapping[str, Stage]) -> Sequence[str]:
        """Which of its files' layers the checkpoint does not have."""
        bases = [stage for stage in upstream.values() if makes(type(stage)) is Model and not ports(type(stage))]
        used = [entry for entry in self.stack if entry.model or entry.clip]
        return [note for base in bases for entry in used for note in _unused(entry, base.run().checkpoint)]

    def run(self, checkpoint: Model) -> Model:
        loras = [_lora(entry, checkpoint.checkpoint) for entry in self.stack if entry.model or entry.clip]
        return replace(checkpoint, loras=(*checkpoint.loras, *loras))


def _entry(name: str, settings: Mapping[str, Any]) -> Entry:
    if not isinstance(settings, Mapping) or "path" not in settings:
        raise SettingError(f"lora.{name} needs a path; give lora.{name}.path=FILE.safetensors.")
    for setting in settings:
        if setting not in SETTINGS:
            raise SettingError(f"lora.{name}.{setting} is not a setting{nearest(setting, SETTINGS)}")
    model, clip = settings.get("model", 1.0), settings.get("clip", 1.0)
    check_range(f"lora.{name}.model", model, -10, 10)
    check_range(f"lora.{name}.clip", clip, -10, 10)
    blocks = settings.get("blocks") or {}
    if not isinstance(blocks, Mapping):
        raise SettingError(
            f"lora.{name}.blocks={blocks!r} is no mapping; give multipliers by block, as in {{MID: 0.5}}."
        )
    return Entry(name, str(settings["path"]), float(model), float(clip), block_weights(f"lora.{name}.blocks", blocks))


def _unused(entry: Entry, checkpoint: Checkpoint) -> Iterator[str]:
    for part, done, missed in _lora(entry, checkpoint).layers:
        if missed:
            yield (
                f"lora.{entry.name}.path: {missed} of {done + missed} layers of the file are not in the checkpoint's "
                f"{part} and change nothing."
            )


def _lora(entry: Entry, checkpoint: Checkpoint) -> Lora:
    file = weights(f"lora.{entry.name}.path", entry.path)
    parts = (("unet",) if entry.model else ()) + (("text_encoder", "text_encoder_2") if entry.clip else ())
    return Lora(file, entry.model, entry.clip, entry.blocks, fit(file, checkpoint, parts))
