"""Style and composition from pictures, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from claygraph.diffusion.adapter_files import COMBINATIONS, CROPS, check_fit, check_kind
from claygraph.diffusion.adapter_presets import check_preset, find_adapter, find_encoder
from claygraph.diffusion.calls import EmbedImages
from claygraph.diffusion.describe import shapes
from claygraph.diffusion.weight_types import (
    COMPOSITION,
    MOST,
    SCALINGS,
    SWAPPED,
    WEIGHT_TYPES,
    WITH_COMPOSITION,
    block_scales,
    check_block,
    listed_scales,
)
from claygraph.errors import SettingError, check_choice, check_range
from claygraph.files import locate, weights
from claygraph.stage import Stage
from claygraph.values import Image, ImagePrompt, Model, Pictures, Weights

if TYPE_CHECKING:
    from claygraph.values import Floats


@dataclass(frozen=True)
class IpAdapter(Stage):
    """An IP-Adapter (plain, plus or full) whose style, composition and negative may come from different pictures.

    ``path`` and ``encoder`` name the files; what they leave open a ``preset`` of IPAdapter_plus finds below the folder
    ``models``. ``weight_type`` spreads ``style`` and ``composition`` (strengths, -1 to 5) over the eleven blocks;
    ``boost`` (-5 to 5, by default ``style``) is for the precise types, which also push the negative half towards the
    picture. ``layer_weights`` ("3:2.5, 6:1", each times ``style``) takes the place of the type's table, and ``blocks``
    gives single blocks a strength of their own, as in ``{6: 0.5}``. ``embeds_scaling`` is what the strengths multiply,
    ``combine`` how several pictures on one port are joined. ``start`` and ``end`` are fractions of the training
    schedule. ``crop`` cuts pictures to a square before CLIP sees them, ``sharpening`` (0 to 1) goes with it.

    Ports: the photo stands in for ``style_image``, and for ``composition_image`` in the types "style and composition"
    and "strong ..."; in others the style image is for all blocks. ``negative_image`` is what the negative half
    attends to; ``attention_mask`` is a picture, white where the adapter acts, stretched over the result.
    Adapters stack by wiring one's ``lora`` to another.
    """

    path: str | None = None
    encoder: str | None = None
    preset: str | None = None
    models: str = "models"
    weight_type: str = "style and composition"
    style: float = 1.0
    composition: float = 1.0
    boost: float | None = None
    layer_weights: str = ""
    blocks: tuple[tuple[int, float], ...] = ()
    embeds_scaling: str = "V only"
    combine: str = "concat"
    start: float = 0.0
    end: float = 1.0
    crop: str = "none"
    sharpening: float = 0.0

    def __post_init__(self) -> None:
        self._check_files()
        choices = {
            "weight_type": WEIGHT_TYPES,
            "embeds_scaling": SCALINGS,
            "combine": COMBINATIONS,
            "crop": CROPS,
        }
        for setting, known in choices.items():
            check_choice(f"ip_adapter.{setting}", getattr(self, setting), known)
        check_range("ip_adapter.style", self.style, -1, 5)
        check_range("ip_adapter.composition", self.composition, -1, 5)
        check_range("ip_adapter.boost", 0 if self.boost is None else self.boost, -5, 5)
        check_range("ip_adapter.start", self.start, 0, 1)
        check_range("ip_adapter.end", self.end, self.start, 1)
        check_range("ip_adapter.sharpening", self.sharpening, 0, 1)
        self._check_crop()
        self._check_blocks()

    def _check_files(self) -> None:
        if self.preset is not None:
            check_preset(self.preset)
        elif not (self.path and self.encoder):
            missing = "encoder" if self.path else "path"
            raise SettingError(f"ip_adapter.{missing} is not given; name a file, or a preset in ip_adapter.preset.")

    def _check_crop(self) -> None:
        if self.sharpening and self.crop == "none":
            raise SettingError(
                f"ip_adapter.sharpening={self.sharpening!r} needs a picture cut to a square; give ip_adapter.crop too, "
                f"one of {', '.join(CROPS[1:])}."
            )

    def _check_blocks(self) -> None:
        for block, scale in self.blocks:
            check_block("ip_adapter.blocks", block)
            check_range(f"ip_adapter.blocks.{block}", scale, -MOST, MOST)
        self.scales()

    @classmethod
    def of(cls, blocks: dict[int, float] | None = None, **settings: object) -> IpAdapter:
        """The stage as configs spell it, with ``blocks`` a mapping of block number to strength."""
        pairs = tuple((int(block), float(scale)) for block, scale in (blocks or {}).items())
        return cls(blocks=pairs, **settings)  # type: ignore[arg-type]

    def weights(self) -> tuple[Weights, Weights]:
        """The adapter and the image encoder; raises ``WeightsError`` where one is missing or of a refused kind."""
        path = self.path or find_adapter(self.preset or "", self.models)
        adapter = weights("ip_adapter.path", path)
        check_kind(locate(path).name, shapes(locate(path)))
        encoder = self.encoder or find_encoder(self.preset or "", self.models)
        return adapter, weights("ip_adapter.encoder", encoder)

    def files(self) -> Sequence[str]:
        return [each.path for each in self.weights()]

    def scales(self) -> tuple[float, ...]:
        """The strength of each block, in call order."""
        named = block_scales(self.weight_type, self.style, self.composition, self.boost)
        if self.layer_weights:
            named = listed_scales("ip_adapter.layer_weights", self.layer_weights, self.style)
        own = dict(self.blocks)
        return tuple(own.get(block, scale) for block, scale in enumerate(named))

    async def run(
        self,
        lora: Model,
        photo: Image,
        style_image: Image | Pictures | None = None,
        composition_image: Image | Pictures | None = None,
        negative_image: Image | None = None,
        attention_mask: Image | None = None,
    ) -> Model:
        style = style_image or photo
        other = photo if self.weight_type in WITH_COMPOSITION else style
        shares = _shares(self.scales(), style, composition_image or other)
        if not shares:
            return lora
        adapter, encoder = self.weights()
        check_fit(adapter, lora.checkpoint)
        negative = await self._embed(adapter, encoder, negative_image)
        mask = None if attention_mask is None else brightness(attention_mask)
        prompts = []
        for picture, scales in shares:
            tokens = await self._embed(adapter, encoder, picture)
            prompts.append(self._prompt(adapter, tokens, negative, scales, mask))
        return replace(lora, image_prompts=(*lora.image_prompts, *prompts))

    def _embed(self, adapter: Weights, encoder: Weights, picture: Image | Pictures | None) -> EmbedImages:
        images = picture.images if isinstance(picture, Pictures) else (picture,) if picture else ()
        return EmbedImages(adapter, encoder, images, self.combine, self.crop, self.sharpening)

    def _prompt(
        self, adapter: Weights, tokens: Floats, negative: Floats, scales: tuple[float, ...], mask: Floats | None
    ) -> ImagePrompt:
        swapped = SWAPPED.get(self.weight_type, frozenset())
        window = self.start, self.end
        return ImagePrompt(adapter, tokens, negative, scales, *window, self.embeds_scaling, swapped, mask)


def brightness(picture: Image) -> Floats:
    """A picture as a mask: float32 ``[H, W]`` from 0 black to 1 white."""
    import numpy as np

    mask: Floats = picture.pixels.mean(2, dtype=np.float32) / np.float32(255)
    return mask


def _shares(
    scales: tuple[float, ...], style: Image | Pictures, composition: Image | Pictures
) -> list[tuple[Image | Pictures, tuple[float, ...]]]:
    """Which picture speaks in which block: the composition picture in block 3, the style picture in all others."""
    if style is composition:
        return [(style, scales)] if any(scales) else []
    only = tuple(scale if block == COMPOSITION else 0.0 for block, scale in enumerate(scales))
    rest = tuple(0.0 if block == COMPOSITION else scale for block, scale in enumerate(scales))
    return [(image, share) for image, share in ((style, rest), (composition, only)) if any(share)]
