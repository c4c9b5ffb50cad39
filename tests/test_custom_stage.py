"""A stage of one's own: twenty lines in one's own folder, wired between built-in stages by YAML alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import SMALL, paint

STAGE = '''
from dataclasses import dataclass

from claygraph.errors import check_range
from claygraph.stage import Stage
from claygraph.values import Image


@dataclass(frozen=True)
class Posterize(Stage):
    """Leaves only a few levels of each colour."""

    levels: int = 4

    def __post_init__(self) -> None:
        check_range("posterize.levels", self.levels, 2, 256)

    def run(self, photo: Image) -> Image:
        step = 256 // self.levels
        return Image(photo.pixels // step * step)
'''

CONFIG = """
# @package _global_
posterize:
  _target_: my_stages.Posterize
  levels: 3
encode:
  inputs:
    photo: posterize
edges:
  inputs:
    photo: posterize
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user has: a stage, a config, a photo."""
    (tmp_path / "my_stages.py").write_text(STAGE)
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "poster.yaml").write_text(CONFIG)
    paint(tmp_path / "photo.png")
    for name in ("stages", "conf"):  # a user's own packages of these names must not get in the way
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not this one')")
    return tmp_path


def run_in(folder: Path, python: str | Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "claygraph", "--config-dir", "my_conf", "image=photo.png", *SMALL, *overrides]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, check=False)


def check_poster(folder: Path, python: str | Path) -> None:
    """The stage runs, feeds what its YAML says, and changes the picture."""
    plain = run_in(folder, python, "out=plain")
    poster = run_in(folder, python, "out=poster", "+experiment=poster")
    assert (plain.returncode, poster.returncode) == (0, 0), plain.stderr + poster.stderr
    pictures = [(folder / done.stdout.splitlines()[-1]).read_bytes() for done in (plain, poster)]
    assert pictures[0] != pictures[1]
    nodes = {node["name"]: node for node in json.loads((folder / "poster" / "run.json").read_text())["nodes"]}
    before = {node["name"]: node for node in json.loads((folder / "plain" / "run.json").read_text())["nodes"]}
    assert nodes["posterize"]["stage"] == "my_stages.Posterize"
    changed = {name for name in before if before[name]["key"] != nodes[name]["key"]}
    assert changed == {"edges", "controlnet", "encode", "sampler", "decode", "save"}


def test_a_stage_of_ones_own_runs_by_yaml_alone(folder: Path) -> None:
    check_poster(folder, sys.executable)


def test_its_faults_are_told_like_those_of_a_built_in_stage(folder: Path) -> None:
    done = run_in(folder, sys.executable, "+experiment=poster", "posterize.levels=1")
    assert done.returncode == 2
    assert (
        done.stderr
        == "claygraph: stage 'posterize': posterize.levels=1 is out of range; give a number from 2 to 256.\n"
    )
