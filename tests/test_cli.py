"""The command line from end to end, on the bundled miniature."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from claygraph.cli import main

SMALL = ("photo.size=64", "sampler.steps=3", "device=cpu")


def paint(path: Path, width: int = 96, height: int = 96, seed: int = 0) -> Path:
    """A picture with some shapes in it."""
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 3) ** 2
    pixels = np.stack([200 - rows % 90, 60 + columns % 120, np.full_like(rows, 40 * seed % 255)], -1)
    pixels[disc] = (230, 160 - 20 * seed, 60)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, stderr."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return paint(tmp_path / "photo.png")


def test_a_photo_becomes_a_picture_with_its_recipe_inside(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.parent / "out"
    code, lines, _ = run(capsys, f"image={photo}", f"out={out}", *SMALL)
    assert code == 0
    assert lines[-1] == str(out / "photo.png")
    made = Image.open(lines[-1])
    assert made.size == (64, 64)
    assert json.loads(made.text["claygraph"])["sampler"]["steps"] == 3
    assert pixels(lines[-1]).std() > 10


def test_the_same_command_makes_the_same_pixels_and_every_knob_others(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*knobs: str) -> np.ndarray:
        code, lines, _ = run(capsys, f"image={photo}", f"out={photo.parent / 'out'}", *SMALL, *knobs)
        assert code == 0
        return pixels(lines[-1])

    plain = made()
    assert np.array_equal(plain, made())
    knobs = ("tagger=vit", "edges=scharr", "sampler.steps=6", "lora.clay.model=0.4", "lora=none", "controlnet=none")
    for knob in (*knobs, "ip_adapter=none", "sampler=heun", "sampler.seed=1", "sampler.cfg=3", "prompt=plain"):
        assert not np.array_equal(plain, made(knob)), knob


def test_a_folder_is_one_process_with_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(96, 96), (130, 120), (64, 64), (160, 120), (120, 160)]
    for number, (width, height) in enumerate(sizes):
        paint(tmp_path / f"{number}.png", width, height, number)
    out = tmp_path / "out"
    code, lines, _ = run(capsys, f"image={tmp_path}", f"out={out}", *SMALL)
    assert code == 0
    assert [Path(line).name for line in lines] == [f"{number}.png" for number in range(5)]
    nodes = json.loads((out / "run.json").read_text())["nodes"]
    samplers = [node for node in nodes if node["name"] == "sampler"]
    assert len(samplers) == 5
    assert sorted(node["batch_size"] for node in samplers)[-3:] == [3, 3, 3]
    assert len([node for node in nodes if node["name"] == "checkpoint"]) == 1


def test_run_json_tells_what_was_used(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.parent / "out"
    run(capsys, f"image={photo}", f"out={out}", *SMALL)
    record = json.loads((out / "run.json").read_text())
    node = next(node for node in record["nodes"] if node["name"] == "sampler")
    assert {"name", "stage", "key", "seconds", "batch_size"} <= set(node)
    assert node["batches"] == {"denoise": {"1": 3}}
    assert record["versions"]["torch"]
    weights = {Path(path).name for path in record["files"]}
    assert {"clay_mini.safetensors", "clay.safetensors", "model.onnx", "ip-adapter_mini.safetensors"} <= weights
    assert all(len(sha) == 64 for sha in record["files"].values())


def test_bad_pictures_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "good.jpg")
    whole = paint(tmp_path / "cut.jpg", 400, 400).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    code, lines, said = run(capsys, f"image=[{tmp_path},{tmp_path}/gone.png]", f"out={tmp_path / 'out'}", *SMALL)
    assert code == 1
    assert [Path(line).name for line in lines] == ["good.png"]
    told = [line for line in said.splitlines() if line.startswith("claygraph: ")]
    assert len(told) == 4
    for name in ("cut.jpg", "empty.png", "text.png", "gone.png"):
        assert any(name in line for line in told)
    assert "Traceback" not in said


WRONG = {
    "egdes=canny": "did you mean 'edges'?",
    "edges=cany": "did you mean 'canny'?",
    "sampler.stesp=6": "did you mean 'sampler.steps'?",
    "sampler.sampler_name=eular": "did you mean 'euler'?",
    "sampler.denoise=1.5": "give a number from 0 to 1",
    "+edges.inputs.photo=phtoo": "did you mean 'photo'?",
    "+edges.inputs.foto=photo": "did you mean 'photo'?",
    "+edges.inputs.photo=prompt": "takes Image on its input 'photo', but stage 'prompt' makes Prompt",
    "+encode.inputs.photo=decode": "stages form a cycle",
    "~encode": "stage 'sampler' needs 'encode', but no stage has that name",
    "edges._target_=claygraph.stages.edges.Cany": "did you mean 'Canny'?",
    "+edges.strength=2": "stage 'edges' has no setting 'strength'",
    "image=gone.jpg": "gone.jpg",
    "image=*.gone": "matches no file",
    "checkpoint.path=gone.safetensors": "does not exist",
    "device=gpu9": "gpu9",
    "rnu": "did you mean 'run'?",
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_request_is_explained_in_one_sentence(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys, argument)
    assert (code, lines) == (2, [])
    assert WRONG[argument] in said
    assert said.count("\n") == 1
    assert said.startswith("claygraph: ")


def test_every_fault_is_told_in_one_go(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "+edges.strength=2", "sampler.steps=0", "+prompt.txet=x")
    assert code == 2
    assert all(part in said for part in ("'strength'", "sampler.steps=0", "did you mean 'text'?"))


def test_a_pickle_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    code, _, said = run(capsys, f"checkpoint.path={tmp_path / 'model.safetensors'}")
    assert code == 2
    assert "is a pickle, which can run code when it is opened and is refused" in said


def test_a_sweep_is_one_graph(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.parent / "sweep"
    code, lines, _ = run(
        capsys, "-m", f"image={photo}", f"out={out}", *SMALL, "sampler.cfg=2,3", "sampler.denoise=0.4,0.6"
    )
    assert code == 0
    assert len({pixels(line).tobytes() for line in lines}) == 4
    nodes = json.loads((out / "run.json").read_text())["nodes"]
    assert sorted(node["name"] for node in nodes).count("ip_adapter") == 1
    assert [node["batch_size"] for node in nodes if node["name"] == "sampler"] == [4] * 4


@pytest.mark.parametrize("command", ["plan", "graph"])
def test_the_other_commands_tell_about_the_graph(command: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, command, f"image={photo}")
    assert code == 0
    assert any("ip_adapter" in line for line in lines)


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "--help")
    assert code == 0
    assert sum("python -m claygraph" in line for line in lines) >= 5
