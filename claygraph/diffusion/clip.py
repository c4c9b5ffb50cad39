"""CLIP's text and vision encoders (Radford et al. 2021, arXiv 2103.00020), and the tokenizer of the former.

Parameters have the names that transformers gives them, which are those of files and LoRAs. They are here because
importing transformers' takes longer than a picture of the bundled model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class ClipConfig:
    """What config.json says of an encoder; the defaults are those of transformers (of its vision config: 224, 32)."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    image_size: int = 224
    patch_size: int = 32

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ClipConfig:
        """The entries that matter; raises ``WeightsError`` for an activation that CLIP does not have."""
        made = cls(**{item.name: config[item.name] for item in fields(cls) if config.get(item.name) is not None})
        if made.hidden_act not in ACTIVATIONS:
            raise WeightsError(f"hidden_act={made.hidden_act!r} is no activation of CLIP's; it has gelu or quick_gelu.")
        return made


class Encoded(NamedTuple):
    """All hidden states ``[B, tokens, channels]`` from the embeddings on, the last normalised, and the two vectors.

    ``pooled`` is the normalised state at the end of the text (``[B, channels]``), ``embedded`` its projection.
    """

    hidden_states: tuple[Tensor, ...]
    last_hidden_state: Tensor
    pooled: Tensor
    embedded: Tensor | None


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        parts = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        heard = scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2).flatten(2)
        projected: Tensor = self.out_proj(heard)
        return projected


class Feed(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(self.activation(self.fc1(x)))
        return made


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to what came in."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn, self.layer_norm1 = Attention(config), _norm(config)
        self.mlp, self.layer_norm2 = Feed(config), _norm(config)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        added: Tensor = x + self.mlp(self.layer_norm2(x))
        return added


class Layers(nn.Module):
    """The layers one after another."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, causal: bool) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], causal))
        return tuple(states)


class TextEmbeddings(nn.Module):
    """Tokens and their places as vectors."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        placed: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return placed


class TextLayers(nn.Module):
    """What transformers calls the text model."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = TextEmbeddings(config), Layers(config)
        self.final_layer_norm = _norm(config)


class _Placed(nn.Module):
    """Says where it is and of which kind its numbers are."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class TextEncoder(_Placed):
    """Text to states; with ``projection`` also to a vector that pictures are compared with."""

    def __init__(self, config: ClipConfig, projection: bool) -> None:
        super().__init__()
        self.config, self.text_model = config, TextLayers(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False) if projection else None

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token vectors."""
        return self.text_model.embeddings.token_embedding

    def forward(self, input_ids: Tensor) -> Encoded:
        """``input_ids`` int64 ``[B, tokens]``; the text ends at its first highest id, which is the end token's."""
        states = self.text_model.encoder(self.text_model.embeddings(input_ids), True)
        last = self.text_model.final_layer_norm(states[-1])
        pooled = last[torch.arange(len(input_ids), device=last.device), input_ids.argmax(1)]
        return Encoded(states, last, pooled, None if self.text_projection is None else self.text_projection(pooled))


class VisionEmbeddings(nn.Module):
    """A vector for the whole, then one for each patch, with their places."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class VisionLayers(nn.Module):
    """What transformers calls the vision model, its spelling included."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = VisionEmbeddings(config), Layers(config)
        self.pre_layrnorm, self.post_layernorm = _norm(config), _norm(config)


class ImageEncoder(_Placed):
    """Pictures ``[B, 3, image_size, image_size]``, normalised, to states and a projected vector."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config, self.vision_model = config, VisionLayers(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Encoded:
        vision = self.vision_model
        states = vision.encoder(vision.pre_layrnorm(vision.embeddings(pixels)), False)
        pooled = vision.post_layernorm(states[-1][:, 0])
        return Encoded(states, states[-1], pooled, self.visual_projection(pooled))


def _norm(config: ClipConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt: lower case, byte pairs within a word, no length limit.

    ``encode(text, add_special_tokens=False).ids`` are a text's ids.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    made = Tokenizer(BPE.from_file(*files, unk_token=SPECIAL[1], end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.add_special_tokens([AddedToken(token, normalized=True, special=True) for token in SPECIAL])
    return made
