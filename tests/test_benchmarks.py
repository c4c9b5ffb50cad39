"""The benchmarks' harness, and each benchmark at a size at which it takes seconds: what they report, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest

from benchmarks import full_size, one_image
from benchmarks.__main__ import listed
from benchmarks.measure import Row, alternately, fresh, table
from benchmarks.mixed import axes_for as mixed_axes
from benchmarks.mixed import variants_of
from benchmarks.sides import MODELS
from benchmarks.sweep import axes_for
from tests.tiny import PLAIN, shapes
from tests.tiny_adapters import VISION

ROOT = Path(__file__).parents[1]
TINY = ["--runs=1", "--size=64"]
CASES = {
    "one_image": [],
    "cold": ["--steps=1"],
    "sweep": ["--count=2", "--steps=1"],
    "folder": ["--count=2", "--steps=1"],
}
CASES |= {"mixed": ["--count=2"]}


def test_sides_take_turns_and_medians_count() -> None:
    seen: list[str] = []

    def side(name: str, *seconds: float) -> Any:
        rest = iter(seconds)
        return lambda: (seen.append(name), next(rest))[1]

    row = alternately("x", side("ours", 1, 9, 2), side("theirs", 4, 4, 5), 3)
    assert (row.ours, row.theirs, row.ratio) == (2, 4, 2)
    assert seen == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]


def test_a_row_with_one_side_has_no_ratio() -> None:
    assert Row("alone", 2.0).ratio is None
    assert (
        table([Row("alone", 2.0), Row("both", 1.0, 3.0, notes={"psnr": 40.25})])
        .splitlines()[2]
        .endswith("3.00 x  psnr 40.2")
    )


def test_a_fresh_process_tells_seconds_memory_and_output() -> None:
    ended = fresh(["-c", "x = bytearray(200_000_000); print('said')"])
    assert ended.output == "said\n"
    assert ended.peak > 200_000_000
    assert 0 < ended.seconds < 60
    with pytest.raises(RuntimeError, match=r"ended with 3: (.|\n)*why"):
        fresh(["-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])


def test_axes_shrink_to_the_number_asked_for() -> None:
    assert [len(values) for values in axes_for(64).values()] == [4, 4, 2, 2]
    assert [len(values) for values in axes_for(1).values()] == [1, 1, 1, 1]
    assert [len(variants_of(mixed_axes(number))) for number in (32, 16, 8, 4, 1)] == [32, 16, 8, 4, 1]


def test_every_benchmark_is_listed() -> None:
    assert set(CASES) | {"startup", "samplers"} <= set(listed())


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_compares_both_sides(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *TINY, *CASES[name], f"--json={tmp_path / 'x.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["ratio"] == found["rows"][0]["ratio"] == found["rows"][0]["theirs"] / found["rows"][0]["ours"]
    assert found["command"].startswith(f"python -m benchmarks.{name} ")
    assert {"cpu", "cores", "torch"} <= set(found["machine"])
    if name == "one_image":
        assert found["rows"][0]["notes"]["psnr"] > 25  # the same picture


def test_full_size_has_the_parameters_of_sdxl() -> None:
    """As counted in stabilityai/stable-diffusion-xl-base-1.0."""
    found = {part: sum(map(prod, named.values())) for part, named in shapes(full_size.FULL).items()}
    assert (found["unet"], found["vae"]) == (2_567_463_684, 83_653_863)
    assert (found["text_encoder"], found["text_encoder_2"]) == (123_060_480, 694_659_840)


@pytest.mark.long
def test_both_sides_agree_on_random_sdxl_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the way of ``--model sdxl``, with all widths and depths small."""
    monkeypatch.setitem(MODELS, "sdxl", partial(full_size.weights, dims=PLAIN, vision=VISION))
    kept, report = tmp_path / "weights", tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["one_image", "--model=sdxl", *TINY, f"--weights={kept}", f"--json={report}"])
    one_image.main()
    row = json.loads(report.read_text())["rows"][0]
    assert 0 < row["ratio"] < float("inf")
    psnr = row["notes"]["psnr"]  # seen: 48; of ours without IP-Adapter 39, LoRA 29, ControlNet 19; both black: infinite
    assert 43 < psnr < float("inf")
    written = (kept / "sdxl" / "checkpoint.safetensors").stat()
    assert MODELS["sdxl"](kept).parts.folder == str(kept / "sdxl" / "pipeline")
    assert (kept / "sdxl" / "checkpoint.safetensors").stat() == written  # found, not made again
