"""What travels on the wires: small, frozen, typed. Weights never do; a ``Model`` only says which."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


class _Arrays:
    """Makes the array fields of a frozen value read-only, and contiguous as they come from the store."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if hasattr(value, "setflags"):
                value = value if value.flags.c_contiguous else value.copy(order="C")
                value.setflags(write=False)
                object.__setattr__(self, item.name, value)


@dataclass(frozen=True, eq=False)
class Image(_Arrays):
    """A picture: ``pixels`` uint8 RGB ``[H, W, 3]``."""

    pixels: Bytes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


@dataclass(frozen=True)
class Pictures:
    """Several pictures for one port, in order."""

    images: tuple[Image, ...]


@dataclass(frozen=True)
class Tags:
    """What a tagger saw: ``(tag, probability)`` in the order they are to be written, not yet escaped.

    With ``trailing_comma`` the last tag is followed by a comma as well.
    """

    tags: tuple[tuple[str, float], ...] = ()
    trailing_comma: bool = False


@dataclass(frozen=True)
class Size:
    """What SDXL is told of a picture, in pixels: its own size, where it was cropped, and the size it is to have.

    ``None`` is 8 pixels per latent pixel, for the target the size before.
    """

    width: int | None = None
    height: int | None = None
    crop_w: int = 0
    crop_h: int = 0
    target_width: int | None = None
    target_height: int | None = None


@dataclass(frozen=True, eq=False)
class Conditioning(_Arrays):
    """One encoded prompt: ``hidden`` float32 ``[tokens, channels]`` and ``pooled`` float32 ``[channels]``."""

    hidden: Floats
    pooled: Floats
    size: Size = Size()


@dataclass(frozen=True)
class Prompt:
    """Positive and negative conditioning, with the texts they came from."""

    positive: Conditioning
    negative: Conditioning
    text: str = ""
    negative_text: str = ""


@dataclass(frozen=True, eq=False)
class Latent(_Arrays):
    """VAE latents ``samples`` float32 ``[C, h, w]``, not multiplied by the VAE's scaling factor."""

    samples: Floats


@dataclass(frozen=True, eq=False)
class Mask(_Arrays):
    """Which part of a picture is made anew: ``share`` float32 ``[H, W]``, 1 anew, 0 kept, at any resolution."""

    share: Floats


@dataclass(frozen=True)
class Weights:
    """A weight file or folder: where it lies, and the digest of its content, which is its identity."""

    path: str = field(compare=False)
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and what must be known of it before its weights are loaded.

    ``config`` is a folder of component configs that wins over what the file says, ``vae`` a replacement.
    ``prediction`` is ``epsilon``, ``v_prediction`` or ``edm``; the sigmas are those of the betas, with ``zero_snr``
    rescaled, or where ``sigma_max`` is not 0 all from ``sigma_min`` to it. On their way into the sampler latents lose
    ``latent_mean``, are divided by ``latent_std`` (one number a channel) and multiplied by ``scaling_factor``.
    ``downscale`` is pixels per latent pixel.
    """

    weights: Weights
    config: Weights | None = None
    vae: Weights | None = None
    prediction: str = "epsilon"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    zero_snr: bool = False
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    sigma_data: float = 1.0
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    scaling_factor: float = 0.13025
    downscale: int = 8


@dataclass(frozen=True)
class Lora:
    """One LoRA of the stack, with its strength on the UNet (``model``) and on the text encoders (``clip``).

    ``blocks`` are multipliers of ``model`` for blocks of the UNet by name (IN04, MID, OUT ...). ``layers`` says for
    each component how many layers the file changes, and how many of its layers the component does not have.
    """

    weights: Weights
    model: float = 1.0
    clip: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()
    layers: tuple[tuple[str, int, int], ...] = field(default=(), compare=False)


@dataclass(frozen=True, eq=False)
class ImagePrompt(_Arrays):
    """Image tokens for the UNet's cross-attention, through the key and value weights of ``adapter``.

    ``tokens`` and ``negative`` are float32 ``[T, channels]`` (after the adapter's projection); ``scales`` has one
    strength for each of the spatial transformers in call order (0 first, 4 the middle, 3 composition, 6 style);
    ``start`` and ``end`` are fractions of the training schedule, 0 = pure noise, 1 = the clean picture.
    ``scaling`` is what a strength multiplies (one of ``weight_types.SCALINGS``). In the ``swapped`` blocks the
    negative half attends to ``tokens`` and the positive half to nothing. ``mask`` is float32 ``[H, W]``, 0 to 1 over
    the whole picture: where the tokens are attended to.
    """

    adapter: Weights
    tokens: Floats
    negative: Floats
    scales: tuple[float, ...]
    start: float = 0.0
    end: float = 1.0
    scaling: str = "V only"
    swapped: frozenset[int] = frozenset()
    mask: Floats | None = None


@dataclass(frozen=True)
class LayerWeights:
    """What a ControlNet's residuals are multiplied by, counted from the highest resolution down, the middle apart.

    Residual i of n counts ``layers[i]`` (1 where none are given) times ``soft ** (n - i)``, the middle ``middle``;
    in the negative half of the guidance all of them count ``uncond`` times as much.
    """

    soft: float = 1.0
    layers: tuple[float, ...] = ()
    middle: float = 1.0
    uncond: float = 1.0


@dataclass(frozen=True)
class Keyframe:
    """From ``start`` (a fraction of the training schedule) on, a ControlNet's strength is multiplied by ``strength``.

    ``weights`` replace those in force; where None, these stay, or end if ``inherit_missing`` is off. The keyframe lasts
    ``guarantee_steps`` steps at least, even if the next one's start has passed by then.
    """

    start: float = 0.0
    strength: float = 1.0
    weights: LayerWeights | None = None
    inherit_missing: bool = True
    guarantee_steps: int = 1


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet with its hint picture, strength, and window (fractions of the training schedule).

    ``layers`` weigh its residuals, ``keyframes`` change strength and weights on the way, and ``mask`` says where the
    hint counts: white fully, black not at all (red channel, any size).
    """

    weights: Weights
    hint: Image
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    layers: LayerWeights = LayerWeights()
    keyframes: tuple[Keyframe, ...] = ()
    mask: Image | None = None


@dataclass(frozen=True)
class Model:
    """Which weights denoise, and what steers them. Strengths are data: models that differ in them share batches."""

    checkpoint: Checkpoint
    loras: tuple[Lora, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """The resolved configuration of a run, saved inside every picture: JSON text and software versions.

    ``files`` are the paths of the weights and inputs behind the picture, with the sha256 of their content.
    """

    config: str
    versions: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Saved:
    """A picture on disk, and the sha256 of the file."""

    path: str
    digest: str = ""


@dataclass(frozen=True)
class Score:
    """One number about a picture, under a name that is the metric's own: what a metric stage makes.

    ``value`` is finite. Its unit, its range and whether higher is better are the metric's to document, in the first
    sentence of its docstring, which goes into the report.
    """

    name: str
    value: float
