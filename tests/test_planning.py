"""What ``plan`` tells: nodes by stage, batches, memory, time, and what a user should know."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from claygraph.cli import main
from claygraph.diffusion.counting import rows_of
from claygraph.files import BUNDLED
from claygraph.forecast import _passes, last_run
from claygraph.pictures import size_of
from claygraph.stages.photo import Photo


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def columns(line: str) -> list[str]:
    return [each.strip() for each in line.split("  ") if each.strip()]


def row(lines: list[str], stage: str) -> list[str]:
    return next(columns(line) for line in lines if line.startswith(f"{stage} "))


def test_a_sweep_is_told_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("metric=[]", f"out={tmp_path}/o", "store=null")
    lines = planned(capsys, "-m", *out, "sampler.seed=range(0,1000)", "photo.size=64,128")
    assert len(lines) < 25
    assert row(lines, "photo")[1:6] == ["Photo", "2", "2000", "2", "0"]
    assert row(lines, "checkpoint")[1:6] == ["LoadCheckpoint", "1", "2000", "1", "0"]
    assert row(lines, "sampler")[1:6] == ["KSampler", "2000", "2000", "2000", "0"]
    assert "pictures: 2000; nodes: 6016, of 24000 before equal ones became one; 6016 to run, 0 need not" in lines


def test_batches_are_those_that_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("metric=[]", f"out={tmp_path}/o", "store=null", "batch=4")
    lines = planned(capsys, "-m", *out, "sampler.steps=2,3", "sampler.seed=range(0,3)", "photo.size=64,256")
    batches = [columns(line) for line in lines if line.startswith("clay_mini.safetensors")]
    assert batches == [
        ["clay_mini.safetensors", "80 x 48", "6", "2 of 4, 1 of 3, 2 of 2"],
        ["clay_mini.safetensors", "304 x 208", "6", "2 of 4, 1 of 3, 2 of 2"],
    ]


@pytest.mark.parametrize(
    ("steps", "most", "passes"),
    [([8], 8, {1: 8}), ([2, 2, 2], 2, {2: 2, 1: 2}), ([1, 3], 8, {2: 1, 1: 2}), ([2] * 16, 8, {8: 4})],
)
def test_passes_are_full_first(steps: list[int], most: int, passes: dict[int, int]) -> None:
    assert _passes(steps, most) == passes
    assert sum(rows * count for rows, count in passes.items()) == sum(steps)


def test_what_was_run_is_told_as_cached_and_gives_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ("photo.size=64", "sampler.steps=1", "device=cpu", f"store={tmp_path}/store", "tagger=none")
    before = planned(capsys, *fixed, f"out={tmp_path}/outs/a")
    assert "time: not known before a first run" in before
    assert main([*fixed, f"out={tmp_path}/outs/a"]) == 0
    after = planned(capsys, *fixed, f"out={tmp_path}/outs/b", "sampler.seed=1")
    assert row(after, "encode")[2:6] == ["1", "1", "0", "1"]
    assert row(after, "sampler")[2:6] == ["1", "1", "1", "0"]
    told = next(line for line in after if line.startswith("time: about"))
    assert f"{tmp_path}/outs/a/run.json" in told
    run = json.loads((tmp_path / "outs/a/run.json").read_text())
    seconds = {each["name"]: each["seconds"] for each in run["nodes"]}
    wanted = sum(seconds[name] for name in ("sampler", "decode", "save"))
    assert f"about {wanted:.1f} s" in told


def test_the_newest_run_that_can_be_read_counts(tmp_path: Path) -> None:
    import os

    for name, text in {"a": '{"nodes": []}', "b": '{"nodes": [1]}', "c": "broken"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
        os.utime(tmp_path / name / "run.json", (0, ord(name)))
    found = last_run(tmp_path)
    assert found is not None
    assert found[0] == tmp_path / "b" / "run.json"
    assert last_run(tmp_path / "nowhere") is None


def test_lora_layers_that_do_not_match_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(BUNDLED / "lora" / "clay.safetensors")
    odd = next(name for name in tensors if name.startswith("lora_unet") and name.endswith("lora_down.weight"))
    layer = odd.partition(".")[0]
    extra = {name.replace(layer, f"{layer}_elsewhere"): value for name, value in tensors.items() if layer in name}
    save_file(tensors | extra, tmp_path / "more.safetensors")
    lines = planned(capsys, f"lora.clay.path={tmp_path}/more.safetensors", f"out={tmp_path}/o")
    [note] = [line for line in lines if line.startswith("note: lora")]
    assert "lora.clay.path: 1 of" in note
    assert "unet and change nothing" in note
    assert not [line for line in planned(capsys, f"out={tmp_path}/o") if line.startswith("note: lora")]


def test_long_prompts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(["clay"] * 80)
    lines = planned(capsys, f"prompt.text='{words}'", f"out={tmp_path}/o")
    assert "note: prompt.text has more than 77 tokens: it is read in 2 rows, of which the first decides most." in lines
    assert not [line for line in planned(capsys, f"out={tmp_path}/o") if "77 tokens" in line]


TEXTS = (
    "",
    "a photo of clay",
    "It's (CLAY:1.2), 12345!  don't \n stop",
    "héllo wörld 日本語 🙂",
    " ".join(["x9"] * 100),
)


def test_tokens_are_counted_as_they_are_read() -> None:
    from transformers import CLIPTokenizer

    from claygraph.diffusion.describe import SHIPPED
    from claygraph.diffusion.tokens import chunks

    slow = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer", local_files_only=True, model_max_length=2**31)
    for text in TEXTS:
        rows = chunks(text, lambda words: slow(words, add_special_tokens=False)["input_ids"])
        assert rows_of(text) == len(rows)


def test_a_photos_size_is_told_without_reading_it(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((120, 300, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert size_of(tmp_path / "turned.jpg") == (120, 300)
    for fit in ("bucket", "area", "none"):
        photo = Photo(str(tmp_path / "turned.jpg"), 128, fit)
        assert photo.picture_size() == photo.run().size


def test_missing_files_are_told_in_one_sentence_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = ("checkpoint.path=gone.safetensors", "lora.clay.path=lost.safetensors")
    assert main(["plan", *gone, f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "checkpoint.path='gone.safetensors' does not exist" in said
    assert "lora.clay.path='lost.safetensors' does not exist" in said


def test_on_a_terminal_it_is_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = planned(capsys, f"out={tmp_path}/o")
    assert any("━" in line or "┃" in line for line in lines)
