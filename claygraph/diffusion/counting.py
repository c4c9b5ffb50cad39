"""How many tokens a prompt has, without torch or transformers: for what is told before a run."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from claygraph.diffusion.describe import SHIPPED
from claygraph.diffusion.tokens import chunks

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@lru_cache(maxsize=4096)
def rows_of(text: str) -> int:
    """How many rows of 77 tokens a prompt takes, by SDXL's own vocabulary; embeddings count as their names do."""
    return len(chunks(text, lambda words: _tokenizer().encode(words).ids))


@cache
def _tokenizer() -> Tokenizer:
    """CLIP's byte-pair encoding (Radford et al. 2021), from the vocabulary that is shipped."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    folder = SHIPPED / "tokenizer"
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    made = Tokenizer(models.BPE.from_file(*files, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return made
