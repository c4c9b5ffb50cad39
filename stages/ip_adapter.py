"""Style and composition from pictures, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from claygraph.diffusion.calls import EmbedImage
from claygraph.diffusion.weight_types import WEIGHT_TYPES, block_scales
from claygraph.errors import SettingError, check_choice, check_range
from claygraph.files import weights
from claygraph.stage import Stage
from claygraph.values import Image, ImagePrompt, Model

BLOCKS = 11


@dataclass(frozen=True)
class IpAdapter(Stage):
    """An IP-Adapter (plain or Plus) whose style and composition may come from different pictures.

    ``weight_type`` spreads ``style`` and ``composition`` (strengths, -1 to 5) over the eleven blocks; ``blocks`` gives
    blocks a strength of their own, as in ``{6: 0.5}``. ``start`` and ``end`` are fractions of the training schedule.
    With no ``style_image`` or ``composition_image`` wired, the photo serves as both.
    """

    path: str
    encoder: str
    weight_type: str = "style and composition"
    style: float = 1.0
    composition: float = 1.0
    blocks: tuple[tuple[int, float], ...] = ()
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_choice("ip_adapter.weight_type", self.weight_type, WEIGHT_TYPES)
        check_range("ip_adapter.style", self.style, -1, 5)
        check_range("ip_adapter.composition", self.composition, -1, 5)
        check_range("ip_adapter.start", self.start, 0, 1)
        check_range("ip_adapter.end", self.end, self.start, 1)
        for block, scale in self.blocks:
            if block not in range(BLOCKS):
                raise SettingError(f"ip_adapter.blocks={block!r} is no block; blocks are numbered 0 to {BLOCKS - 1}.")
            check_range(f"ip_adapter.blocks.{block}", scale, -1, 5)

    @classmethod
    def of(cls, blocks: dict[int, float] | None = None, **settings: object) -> IpAdapter:
        """The stage as configs spell it, with ``blocks`` a mapping of block number to strength."""
        pairs = tuple((int(block), float(scale)) for block, scale in (blocks or {}).items())
        return cls(blocks=pairs, **settings)  # type: ignore[arg-type]

    def files(self) -> Sequence[str]:
        return [weights("ip_adapter.path", self.path).path, weights("ip_adapter.encoder", self.encoder).path]

    def scales(self) -> tuple[float, ...]:
        """The strength of each block, in call order."""
        named = block_scales(self.weight_type, self.style, self.composition)
        own = dict(self.blocks)
        return tuple(own.get(block, scale) for block, scale in enumerate(named))

    async def run(
        self, lora: Model, photo: Image, style_image: Image | None = None, composition_image: Image | None = None
    ) -> Model:
        adapter, encoder = weights("ip_adapter.path", self.path), weights("ip_adapter.encoder", self.encoder)
        style, composition = style_image or photo, composition_image or photo
        prompts = []
        for image, scales in _shares(self.scales(), style, composition):
            tokens, negative = await EmbedImage(adapter, encoder, image)
            prompts.append(ImagePrompt(adapter, tokens, negative, scales, self.start, self.end))
        return replace(lora, image_prompts=(*lora.image_prompts, *prompts))


def _shares(scales: tuple[float, ...], style: Image, composition: Image) -> list[tuple[Image, tuple[float, ...]]]:
    """Which picture speaks in which block: the composition picture in block 3, the style picture in all others."""
    if style is composition:
        return [(style, scales)] if any(scales) else []
    only = tuple(scale if block == 3 else 0.0 for block, scale in enumerate(scales))
    rest = tuple(0.0 if block == 3 else scale for block, scale in enumerate(scales))
    return [(image, share) for image, share in ((style, rest), (composition, only)) if any(share)]
