"""The built wheel, in a fresh environment, away from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.test_custom_stage import check_poster, folder

ROOT = Path(__file__).parents[1]
__all__ = ["folder"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what the wheel depends on is lent to it from this one."""
    home = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    site = subprocess.check_output([str(python), "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    (Path(site.strip()) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_everything_a_run_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.check_output(["git", "ls-files", "claygraph", "stages", "conf"], cwd=ROOT, text=True).split()
    moved = {name if name.startswith("claygraph/") else f"claygraph/{name}" for name in tracked}
    expected = {name.replace("claygraph/hydra_plugins/", "hydra_plugins/") for name in moved}
    assert expected - names == set()
    assert {name.split("/")[0] for name in names} == {"claygraph", "hydra_plugins", "claygraph-0.1.0.dist-info"}


def test_a_stage_of_ones_own_runs_with_the_wheel(folder: Path, python: Path) -> None:
    command = [str(python), "-c", "import claygraph; print(claygraph.__file__)"]
    where = subprocess.check_output(command, cwd=folder, text=True)
    assert ROOT not in Path(where).parents
    check_poster(folder, python)
