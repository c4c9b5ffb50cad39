"""Values as bytes: every class comes back equal to the bit, and nothing else comes of hostile bytes."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from claygraph import values
from claygraph.packing import ALIGN, VALUES, DamagedError, kinds_in, pack, stage_of, unpack
from claygraph.values import (
    Checkpoint,
    Conditioning,
    Control,
    Image,
    ImagePrompt,
    Keyframe,
    Latent,
    LayerWeights,
    Lora,
    Mask,
    Model,
    Pictures,
    Prompt,
    Recipe,
    Saved,
    Score,
    Size,
    Tags,
    Weights,
)

DICE = np.random.default_rng(7)
FILE = Weights("models/clay.safetensors", "ab" * 32)
IMAGE = Image(DICE.integers(0, 256, (5, 7, 3), np.uint8))
EDGES = Image(np.zeros((300, 200, 3), np.uint8))
CONDITIONING = Conditioning(
    DICE.standard_normal((77, 8), np.float32), DICE.standard_normal(8, np.float32), Size(512, None, 1)
)
CHECKPOINT = Checkpoint(FILE, None, FILE, "v_prediction", latent_mean=(0.1, -0.0), latent_std=(1 / 3, 1e-300))
LORA = Lora(FILE, 0.1, -0.2, (("MID", 0.5),), (("unet", 10, 2),))
PROMPT = ImagePrompt(
    FILE,
    DICE.standard_normal((16, 8), np.float32),
    np.zeros((0, 8), np.float32),
    (0.0, 1.0),
    swapped=frozenset({3, 5}),
    mask=np.eye(3, dtype=np.float32),
)
KEYFRAME = Keyframe(0.5, 0.1, LayerWeights(0.825, (0.1,) * 9), False, 2)
CONTROL = Control(FILE, EDGES, 0.5, keyframes=(KEYFRAME, Keyframe()), mask=IMAGE)
SAMPLES = [
    IMAGE,
    EDGES,
    Pictures((IMAGE, EDGES)),
    Tags((("long hair", 0.1 + 0.2), ("粘土 \udc80\0", 1e-9)), True),
    Size(1, None, 2),
    CONDITIONING,
    Prompt(CONDITIONING, CONDITIONING, "clay", "(bad:1.2)"),
    Latent(np.array([[[math.nan, -0.0, math.inf, 1e-45]]], np.float32)),
    Mask(DICE.random((4, 4), np.float32)),
    FILE,
    CHECKPOINT,
    LORA,
    PROMPT,
    LayerWeights(),
    KEYFRAME,
    CONTROL,
    Model(CHECKPOINT, (LORA, LORA), (PROMPT,), (CONTROL,)),
    Recipe('{"a": 1}', (("torch", "2.6"),)),
    Saved("out/cat.png", "cd" * 32),
    Score("ssim", 0.1 + 0.2),
]


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, in type and in everything that is compared or not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return (str(one.dtype), one.shape, one.tobytes()) == (str(other.dtype), other.shape, other.tobytes())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return bool(one.hex() == other.hex())
    if is_dataclass(one):
        return all(same(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))
    equal: bool = one == other
    return equal


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: type(value).__name__)
def test_every_value_comes_back_to_the_bit(value: Any) -> None:
    back = unpack(pack(value, "a stage"))
    assert same(back, value)
    assert stage_of(pack(value, "a stage")) == "a stage"


def test_every_value_class_has_a_sample() -> None:
    kinds = {kind for kind in vars(values).values() if isinstance(kind, type) and is_dataclass(kind)}
    assert kinds == {type(value) for value in SAMPLES}
    assert set(VALUES.values()) == kinds


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "a", (), (1, (2, None)), frozenset({"a"}), np.float32(0.1)])
def test_plain_values_do_too(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i8", "f2", "f4", "f8", "c8", ">f4"])
def test_arrays_of_every_number_do_too(dtype: str) -> None:
    array = DICE.integers(0, 2, (3, 4, 5)).astype(dtype)
    assert same(unpack(pack(array)), array)
    assert same(unpack(pack(array.T)), array.T)


def test_arrays_are_aligned_and_read_only() -> None:
    packed = pack((np.ones(3, np.float32), np.ones(5)))
    size = 8 + int.from_bytes(packed[:8], "little")
    assert (size % ALIGN, len(packed)) == (0, size + 2 * ALIGN)
    assert not unpack(packed)[0].flags.writeable


def test_an_edge_picture_takes_little_room() -> None:
    assert len(pack(EDGES)) < EDGES.pixels.nbytes / 50


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, b"a", object(), 1j, np.array(["a"]), np.array([object()]), int])
def test_what_cannot_be_stored_says_so(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        pack((value,))


@dataclass
class Loose:
    a: int = 1


@dataclass(frozen=True)
class Mine:
    a: int = 1


def test_only_frozen_classes_are_stored() -> None:
    with pytest.raises(TypeError):
        pack(Loose())


def test_a_class_that_is_not_among_those_in_use_is_never_made() -> None:
    import tests.test_packing as here

    assert unpack(pack(Mine(2)), kinds_in([here])) == Mine(2)
    with pytest.raises(DamagedError, match=r"'tests.test_packing.Mine' is no value class"):
        unpack(pack(Mine(2)))


def forged(value: Any, arrays: Any = (), tail: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps({"stage": "", "value": value, "arrays": arrays}).encode()
    return len(text).to_bytes(8, "little") + text + tail


SAVED = {"class": "claygraph.values.Saved", "fields": {"path": "a", "digest": ""}}
HOSTILE = {
    "empty": b"",
    "short": b"\1\2",
    "a length beyond the end": (2**63).to_bytes(8, "little") + b"{}",
    "no JSON": forged(b"{"),
    "no object": forged(b"[1]"),
    "nothing in it": forged(b"{}"),
    "a pickle": pickle.dumps(SAMPLES[3]),
    "very deep": forged(b'{"value":' + b'{"tuple":[' * 50_000),
    "a class of another module": forged({"class": "os.system", "fields": {"command": "true"}}),
    "a builtin": forged({"class": "builtins.eval", "fields": {}}),
    "a private class": forged({"class": "claygraph.values._Arrays", "fields": {}}),
    "a field too many": forged({**SAVED, "fields": {"path": "a", "digest": "", "x": 1}}),
    "a field too few": forged({**SAVED, "fields": {"path": "a"}}),
    "a bare list": forged([1]),
    "an unknown tag": forged({"list": [1]}),
    "two tags": forged({"tuple": [], "array": 0}),
    "an array that is not there": forged({"array": 0}),
    "an array before the first": forged({"array": -1}, [["|u1", [1], 0, 1, False]] * 0),
    "objects": forged({"array": 0}, [["|O", [1], 0, 8, False]], b"8" * 8),
    "a made-up dtype": forged({"array": 0}, [["f4,f4", [1], 0, 8, False]], b"8" * 8),
    "a shape too large": forged({"array": 0}, [["<f4", [2**40, 2**40], 0, 8, False]], b"8" * 8),
    "a shape below nothing": forged({"array": 0}, [["<f4", [-1, -2], 0, 8, False]], b"8" * 8),
    "a place before the arrays": forged({"array": 0}, [["|u1", [8], -8, 8, False]], b"8" * 8),
    "a place beyond the end": forged({"array": 0}, [["|u1", [8], 4, 8, False]], b"8" * 8),
    "deflated rubbish": forged({"array": 0}, [["|u1", [8], 0, 8, True]], b"8" * 8),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_damage_and_nothing_else(what: str) -> None:
    with pytest.raises(DamagedError):
        unpack(HOSTILE[what])


def test_no_truncation_goes_unnoticed() -> None:
    packed = pack(SAMPLES[5])
    for length in range(0, len(packed) - ALIGN, 97):
        with pytest.raises(DamagedError):
            unpack(packed[:length])


def test_what_is_deflated_is_not_inflated_beyond_its_shape() -> None:
    import zlib

    bomb = zlib.compress(bytes(10**7), 9)
    with pytest.raises(DamagedError, match="cut short"):
        unpack(forged({"array": 0}, [["|u1", [8], 0, len(bomb), True]], bomb))
