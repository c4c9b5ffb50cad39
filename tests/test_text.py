"""Prompts: grammar and rows against recorded ComfyUI tokens, encoding against transformers' own models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from claygraph import files
from claygraph.diffusion.calls import EncodeText
from claygraph.diffusion.checkpoint import load_tokenizer, tokenizer_folder
from claygraph.diffusion.describe import describe
from claygraph.diffusion.text import encode
from claygraph.diffusion.tokens import BOS, EOS, chunks, parse
from claygraph.memory import Memory
from claygraph.values import Checkpoint, Conditioning, Lora, Weights
from tests import tiny

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data/text/tokens.json").read_text())
LONG = ", ".join(f"a small clay figure number {n}" for n in range(16))


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory("cpu", "float32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return describe(weights(tiny.checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return weights(tiny.lora(tmp_path_factory.mktemp("lora") / "lora.safetensors"))


def weights(path: Path) -> Weights:
    return Weights(str(path), files.digest(path))


def near(a: Conditioning, b: Conditioning) -> bool:
    return bool(
        np.abs(a.hidden - b.hidden).max() <= 2e-6 * np.abs(b.hidden).max()
        and np.abs(a.pooled - b.pooled).max() <= 2e-6 * np.abs(b.pooled).max()
    )


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("((cat))", [("cat", 1.21)]),
        ("a (cat:1.3)", [("a ", 1), ("cat", 1.3)]),
        ("(a (cat:1.2) b:1.5)", [("a ", 1.5), ("cat", 1.2), (" b", 1.5)]),
        ("((cat:0.5))", [("cat", 0.5)]),
        (r"tower \(stone\)", [("tower (stone)", 1)]),
        (r"(clay \(soft\):1.4)", [("clay (soft)", 1.4)]),
        ("(dog:) (:1.2) (x:y)", [("dog:", 1.1), (" ", 1), (":1.2", 1.1), (" ", 1), ("x:y", 1.1)]),
        ("a (cat on (a mat", [("a ", 1), ("(cat on (a mat", 1)]),
        ("a) (cat:1.3)", [("a) (cat:1.3)", 1)]),
        ("[soft] BREAK", [("[soft] BREAK", 1)]),
        ("(x:nan)", [("x:nan", 1.1)]),
    ],
)
def test_prompt_grammar(text: str, segments: list[tuple[str, float]]) -> None:
    found = parse(text)
    assert [segment for segment, _ in found] == [segment for segment, _ in segments]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in segments])


@pytest.mark.parametrize("case", RECORDED)
def test_tokens_and_weights_are_those_comfyui_made(case: str) -> None:
    recorded = RECORDED[case]
    tokenizer = load_tokenizer(tokenizer_folder(Checkpoint(Weights("", ""))))
    rows = chunks(recorded["prompt"], lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    assert [token for row in rows for token in row.padded(EOS)] == recorded["ids_l"]
    assert [token for row in rows for token in row.padded(0)] == recorded["ids_g"]
    assert [weight for row in rows for weight in row.padded_weights()] == pytest.approx(recorded["weights"])


@pytest.mark.parametrize(("size", "rows"), [(0, [2]), (75, [77]), (76, [77, 3]), (150, [77, 77]), (151, [77, 77, 3])])
def test_a_long_segment_is_cut_at_the_end_of_a_row(size: int, rows: list[int]) -> None:
    found = chunks("x", lambda _: [5] * size)
    assert [len(row.tokens) for row in found] == rows
    assert all(row.tokens[0] == BOS and row.tokens[-1] == EOS for row in found)


def test_a_short_segment_moves_whole_to_the_next_row() -> None:
    sizes = {"first ": 72, "seven": 7}
    found = chunks("first (seven:1.5)", lambda text: [1] * sizes[text])
    assert [len(row.tokens) for row in found] == [74, 9]
    assert found[1].weights == (1.0, *[1.5] * 7, 1.0)


def models(folder: Path) -> tuple[Any, Any]:
    first: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    second: Any = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
    return first.float(), second.float()


def expected(folder: Path, ids: list[int], layer: int = -2) -> Conditioning:
    first, second = models(folder)
    rows = [torch.tensor([[BOS, *ids, EOS, *[pad] * (75 - len(ids))]]) for pad in (EOS, 0)]
    with torch.inference_mode():
        left, right = first(rows[0], output_hidden_states=True), second(rows[1], output_hidden_states=True)
    hidden = torch.cat([left.hidden_states[layer], right.hidden_states[layer]], dim=-1)
    return Conditioning(hidden[0].numpy(), right.text_embeds[0].numpy())


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_hidden_states_and_pooled_vector_are_those_of_transformers(
    layer: int, checkpoint: Checkpoint, folder: Path, memory: Memory
) -> None:
    found = encode([EncodeText(checkpoint, (), "a cat", layer)], memory)[0]
    assert (found.hidden.shape, found.pooled.shape) == ((77, 80), (48,))
    assert near(found, expected(folder, [320, 2368], layer))


def test_clip_skip_past_an_encoders_layers_gives_its_normalised_output(
    checkpoint: Checkpoint, folder: Path, memory: Memory
) -> None:
    found = encode([EncodeText(checkpoint, (), "a cat", -5)], memory)[0]
    first, second = models(folder)
    ids = [BOS, 320, 2368, EOS]
    with torch.inference_mode():
        left = first(torch.tensor([ids + [EOS] * 73])).last_hidden_state[0].numpy()
        right = second(torch.tensor([ids + [0] * 73]), output_hidden_states=True).hidden_states[-5][0].numpy()
    assert np.abs(found.hidden - np.concatenate([left, right], axis=1)).max() <= 2e-6 * np.abs(found.hidden).max()


def test_weights_move_states_from_the_empty_prompts(checkpoint: Checkpoint, folder: Path, memory: Memory) -> None:
    found = encode([EncodeText(checkpoint, (), "(a:1.3) (cat:-0.5)")], memory)[0]
    states, empty = expected(folder, [320, 2368]), expected(folder, [])
    strength = np.array([1, 1.3, -0.5, *[1] * 74], dtype=np.float32)[:, None]
    wanted = Conditioning(empty.hidden + strength * (states.hidden - empty.hidden), states.pooled)
    assert near(found, wanted)


def test_rows_of_a_long_prompt_are_encoded_apart_and_joined(checkpoint: Checkpoint, memory: Memory) -> None:
    words = " ".join(["cat"] * 75)
    first, second, both = encode([EncodeText(checkpoint, (), text) for text in (words, "cat", words + " cat")], memory)
    assert np.array_equal(both.hidden, np.concatenate([first.hidden, second.hidden]))
    assert np.array_equal(both.pooled, first.pooled)


def test_a_prompt_does_not_depend_on_its_batch(checkpoint: Checkpoint, lora: Weights, memory: Memory) -> None:
    prompts = [("a cat", 0.0), (LONG, 0.7), ("a (cat:1.4)", -0.5), ("", 1.0), ("a cat", 0.7)]
    calls = [EncodeText(checkpoint, (Lora(lora, 1.0, clip),), text) for text, clip in prompts]
    together = encode(calls, memory)
    alone = [encode([call], memory)[0] for call in calls]
    assert all(near(a, b) for a, b in zip(together, alone, strict=True))
    assert not near(together[0], together[4])


def test_prompts_with_other_loras_and_layers_share_a_pass(
    checkpoint: Checkpoint, lora: Weights, memory: Memory
) -> None:
    """Two files, one, none, and another ``clip_skip``."""
    other = weights(tiny.lora(Path(lora.path).parent / "other.safetensors", seed=99))
    stacks = [(Lora(lora, 1.0, 0.7),), (Lora(other, 1.0, 0.4), Lora(lora, 1.0, -0.5)), (), (Lora(other),)]
    calls = [EncodeText(checkpoint, loras, "a (cat:1.4)", -1 - n) for n, loras in enumerate(stacks)]
    assert len({call.batch_key for call in calls}) == 1
    together, alone = encode(calls, memory), [encode([call], memory)[0] for call in calls]
    assert all(near(a, b) for a, b in zip(together, alone, strict=True))
    plain = encode([EncodeText(checkpoint, (), "a (cat:1.4)", -1 - n) for n in range(4)], memory)
    assert [near(a, b) for a, b in zip(together, plain, strict=True)] == [False, False, True, False]


def test_a_lora_of_strength_0_changes_nothing(checkpoint: Checkpoint, lora: Weights, memory: Memory) -> None:
    without = encode([EncodeText(checkpoint, (), "a cat")], memory)[0]
    beside = [EncodeText(checkpoint, (Lora(lora, 1.0, clip),), "a cat") for clip in (0.0, 1.0)]
    unused, used = encode(beside, memory)
    assert np.abs(unused.hidden - without.hidden).max() <= 1e-6 * np.abs(without.hidden).max()
    assert np.abs(used.hidden - without.hidden).max() > 0.1


def test_equal_rows_are_computed_once(checkpoint: Checkpoint, memory: Memory) -> None:
    seen: list[int] = []
    encode([EncodeText(checkpoint, (), "load")], memory)
    encoders: Any = memory.get(("text_encoders", checkpoint.weights, checkpoint.config), lambda: None)
    handle = encoders[0].register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    encode([EncodeText(checkpoint, (), text) for text in ("a (cat:1.2)", "a (cat:1.3)", "", "a dog")], memory)
    handle.remove()
    assert seen == [3]


def test_each_encoder_may_read_a_text_of_its_own(checkpoint: Checkpoint, memory: Memory) -> None:
    calls = [EncodeText(checkpoint, (), text, text_l=text_l) for text, text_l in (("a cat", "a dog"), ("a dog", None))]
    mixed, dog = encode([*calls, EncodeText(checkpoint, (), "a cat")], memory)[:2]
    cat = encode([EncodeText(checkpoint, (), "a cat")], memory)[0]
    assert near(mixed, Conditioning(np.concatenate([dog.hidden[:, :32], cat.hidden[:, 32:]], axis=1), cat.pooled))


@pytest.mark.parametrize("longer", ["text", "text_l"])
def test_the_shorter_of_two_texts_is_followed_by_empty_rows(
    longer: str, checkpoint: Checkpoint, memory: Memory
) -> None:
    text, text_l = (LONG, "a cat") if longer == "text" else ("a cat", LONG)
    mixed = EncodeText(checkpoint, (), text, text_l=text_l)
    found, long, short, empty = encode(
        [mixed, *(EncodeText(checkpoint, (), text) for text in (LONG, "a cat", ""))], memory
    )
    followed = np.concatenate([short.hidden, empty.hidden])
    first, second = (followed, long.hidden) if longer == "text" else (long.hidden, followed)
    pooled = long.pooled if longer == "text" else short.pooled
    assert near(found, Conditioning(np.concatenate([first[:, :32], second[:, 32:]], axis=1), pooled))


def test_each_encoder_has_the_tokenizer_of_its_folder(folder: Path, tmp_path: Path, memory: Memory) -> None:
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    vocabulary = json.loads((other / "tokenizer_2/vocab.json").read_text())
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    (other / "tokenizer_2/vocab.json").write_text(json.dumps(vocabulary))
    swapped = encode([EncodeText(describe(weights(other)), (), "a cat")], memory)[0]
    cat, dog = (encode([EncodeText(describe(weights(folder)), (), text)], memory)[0] for text in ("a cat", "a dog"))
    assert near(swapped, Conditioning(np.concatenate([cat.hidden[:, :32], dog.hidden[:, 32:]], axis=1), dog.pooled))
