"""Textual inversion: the grammar, the files, and the encoders' states against transformers with a larger vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from claygraph import files
from claygraph.diffusion.calls import EncodeText
from claygraph.diffusion.describe import describe
from claygraph.diffusion.embeddings import find
from claygraph.diffusion.text import encode
from claygraph.diffusion.tokens import BOS, EOS, Learned, chunks, mentions
from claygraph.errors import WeightsError
from claygraph.memory import Memory
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Checkpoint, Weights
from tests import tiny

MEMORY = Memory("cpu", "float32")
VECTORS = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)}
A = (Learned(Weights("a", "a"), "clip_l", 0), Learned(Weights("a", "a"), "clip_l", 1))
STAND_INS = [1000, 1001]
"""Words that the reference has the learned vectors for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return describe(Weights(str(folder), files.digest(folder)))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embeddings")
    save_file(VECTORS, path / "soft_clay.safetensors")
    return path


def words(text: str) -> list[int]:
    """A tokeniser whose ids are the lengths of words."""
    return [len(word) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "tokens", "weights"),
    [
        ("a embedding:a cat", [1, *A, 3], [1, 1, 1, 1]),
        ("embedding:a", [*A], [1, 1]),
        ("one (embedding:a:0.5) two", [3, *A, 3], [1, 0.5, 0.5, 1]),
        ("(embedding:a)", [*A], [1.1, 1.1]),
        ("embedding:a, cat", [*A, 1, 3], [1, 1, 1, 1]),
        ("x\nembedding:a", [1, *A], [1, 1, 1]),
        ("x,embedding:a", [len("x,embedding:a")], [1]),
        ("embedding:b cat", [len("embedding:b"), 3], [1, 1]),
    ],
)
def test_grammar(text: str, tokens: list[Any], weights: list[float]) -> None:
    (row,) = chunks(text, words, {"a": A})
    assert list(row.tokens) == [BOS, *tokens, EOS]
    assert list(row.weights) == pytest.approx([1, *weights, 1])


def test_an_embedding_of_less_than_8_vectors_is_not_torn_apart() -> None:
    rows = chunks(" ".join("x" * 74) + " embedding:a", words, {"a": A})
    assert [len(row.tokens) for row in rows] == [76, 4]
    long = [Learned(Weights("b", "b"), "clip_l", row) for row in range(8)]
    rows = chunks(" ".join("x" * 74) + " embedding:b", words, {"b": long})
    assert [len(row.tokens) for row in rows] == [77, 9]


def test_mentions_are_found_in_every_segment() -> None:
    assert mentions("embedding:a, (b embedding:c/d:1.2), (embedding:e)") == ["a,", "c/d", "e"]


def expected(folder: Path, ids: list[int]) -> tuple[Any, Any, Any]:
    """States of both encoders and the pooled vector, from tables that hold the learned vectors as words."""
    first: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float()
    second: Any = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2").float()
    outputs = []
    for model, key, pad in ((first, "clip_l", EOS), (second, "clip_g", 0)):
        model.get_input_embeddings().weight.data[STAND_INS] = VECTORS[key]
        row = torch.tensor([[BOS, *ids, EOS, *[pad] * (75 - len(ids))]])
        with torch.inference_mode():
            outputs.append(model(row, output_hidden_states=True))
    return outputs[0].hidden_states[-2][0], outputs[1].hidden_states[-2][0], outputs[1].text_embeds[0]


def call(checkpoint: Checkpoint, text: str, folder: Path) -> EncodeText:
    return EncodeText(checkpoint, (), text, embeddings=tuple(find("e", str(folder), [text]).items()))


def test_learned_vectors_are_read_as_words_of_the_vocabulary(
    checkpoint: Checkpoint, folder: Path, embeddings: Path
) -> None:
    texts = ("a embedding:soft_clay, cat", "a cat", "embedding:soft_clay")
    found, plain, alone = encode([call(checkpoint, text, embeddings) for text in texts], MEMORY)
    for conditioning, ids in ((found, [320, *STAND_INS, 267, 2368]), (plain, [320, 2368]), (alone, STAND_INS)):
        left, right, pooled = expected(folder, ids)
        np.testing.assert_allclose(conditioning.hidden, torch.cat([left, right], 1), atol=2e-5)
        np.testing.assert_allclose(conditioning.pooled, pooled, atol=2e-5)


def test_a_single_tensor_serves_the_encoder_of_its_width_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(3, 32)}, tmp_path / "old.safetensors")
    with pytest.raises(WeightsError, match=r"embedding:old holds \[3, 32\] numbers for OpenCLIP bigG, .* of 48"):
        encode([call(checkpoint, "embedding:old", tmp_path)], MEMORY)


def test_a_file_without_tensors_for_an_encoder_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file({"clip_g": torch.randn(3, 48), "other": torch.zeros(1)}, tmp_path / "half.safetensors")
    with pytest.raises(WeightsError, match="embedding:half holds nothing for CLIP-L, which has vectors of 32"):
        encode([call(checkpoint, "embedding:half", tmp_path)], MEMORY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("embedding:soft_cly", "did you mean 'soft_clay'"),
        ("embedding:../model/x", "no .safetensors file"),
        ("embedding:/etc/passwd", "no .safetensors file"),
        ("embedding:" + "x" * 5000, "no .safetensors file"),
        ("embedding:,", "no .safetensors file"),
    ],
)
def test_a_name_without_a_file_is_told(text: str, said: str, embeddings: Path) -> None:
    with pytest.raises(WeightsError, match=said):
        EncodePrompt(text, embeddings=str(embeddings)).files()


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(VECTORS, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=r"'old.pt' is a pickle"):
        EncodePrompt("embedding:old", embeddings=str(tmp_path)).files()


def test_files_that_a_prompt_names_are_part_of_its_key(embeddings: Path) -> None:
    named = EncodePrompt(text_l="embedding:soft_clay", embeddings=str(embeddings))
    assert named.files() == [str(embeddings / "soft_clay.safetensors")]
    assert EncodePrompt("soft_clay", embeddings=str(embeddings)).files() == []
