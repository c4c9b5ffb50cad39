"""``python -m claygraph stages``: every stage there is, built in or of one's own, in a table, in lines or in full."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from claygraph.catalogue import catalogue, settings_of
from claygraph.errors import SettingError, check_choice, check_range, check_whole, noting_checks
from claygraph.help import choices, groups
from claygraph.stage import Stage
from tests.test_cli import run
from tests.test_custom_stage import folder

__all__ = ["folder"]


def line_of(name: str, lines: list[str]) -> list[str]:
    """The columns of the one line about a class."""
    (found,) = [line.split("\t") for line in lines if line.split("\t")[0].rpartition(".")[2] == name]
    return found


def built_in() -> set[str]:
    """Every public stage that can be made, by the module of ``stages`` that defines it."""
    files = (Path(__file__).parents[1] / "stages").glob("*.py")
    modules = [import_module(f"claygraph.stages.{file.stem}") for file in files if file.stem != "__init__"]
    kinds = [kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)]
    made = [kind for kind in kinds if issubclass(kind, Stage) and not inspect.isabstract(kind)]
    return {f"{kind.__module__}.{kind.__name__}" for kind in made if kind is not Stage and kind.__name__[0] != "_"}


def test_every_stage_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys, "stages")
    assert (code, said) == (0, "")
    assert {line.split("\t")[0] for line in lines} == built_in()
    assert all(len(line.split("\t")) == 5 for line in lines)


def test_a_line_tells_purpose_ports_settings_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run(capsys, "stages")
    target, purpose, signature, settings, made_by = line_of("KSampler", lines)
    assert target == "claygraph.stages.sampler.KSampler"
    assert purpose == "Noise the latent, then denoise it."
    assert signature.startswith("(controlnet: Model, prompt: Prompt, encode: Latent")
    assert signature.endswith("-> Latent")
    told = settings.split("; ")
    assert "steps: int = 20 (1 to 1000)" in told
    assert "cfg: float = 7.0 (0 to 100)" in told
    assert any(each.startswith("scheduler: str = 'normal' (") and "karras" in each for each in told)
    assert made_by == f"sampler={','.join(choice for choice in choices('sampler') if choice != 'advanced')}"


def test_an_optional_input_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run(capsys, "stages")
    assert "(lora: Model, tagger?: Tags) -> Prompt" in line_of("EncodePrompt", lines)


def test_every_choice_is_told_with_the_stage_it_makes() -> None:
    told = {choice for entry in catalogue() for choice, _ in entry.choices}
    without = {f"{group}=none" for group in groups()} | {
        f"{g}={c}"
        for g in groups()
        for c in choices(g)
        if g in ("preset", "controlnet_2", "ablation", "sweep")  # made of other choices, or no part of the graph
    }
    assert told == {f"{group}={choice}" for group in groups() for choice in choices(group)} - without


def test_every_setting_a_config_uses_is_told() -> None:
    for entry in catalogue():
        assert entry.kind
        known = {setting.name for setting in settings_of(entry.kind)}
        for choice, node in entry.choices:
            used = set(node) - {"_target_", "inputs"}
            assert used <= known or known == {"NAME"}, choice


def test_ranges_are_those_of_the_stages_own_checks() -> None:
    """What lies beyond a bound that is told is refused."""
    probed = 0
    for entry in catalogue():
        assert entry.kind
        blanks = {item.name: "x" for item in fields(entry.kind) if item.default is item.default_factory}
        for setting in settings_of(entry.kind):
            low, _, high = setting.allowed.partition(" to ")
            if not high or setting.kind not in ("int", "float"):
                continue
            number = int if setting.kind == "int" else float
            entry.kind(**blanks)
            for beyond in (number(low) - 1, number(high) + 1):
                with pytest.raises(SettingError, match=setting.name):
                    entry.kind(**blanks | {setting.name: beyond})
            probed += 1
    assert probed > 20


@pytest.mark.parametrize(
    "name", ["KSampler", "ksampler", "claygraph.stages.sampler.KSampler", "sampler", "sampler=heun"]
)
def test_one_stage_is_shown_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "stages", name)
    text = "\n".join(lines)
    assert code == 0
    assert lines[0] == "claygraph.stages.sampler.KSampler"
    assert "its last ``steps`` are run" in text  # the second paragraph of its docstring
    assert "    denoise: float = 1.0 (0 to 1)" in lines
    assert any(line.startswith("    sampler=heun: sampler_name=heun, scheduler=") for line in lines)


def test_a_group_names_all_that_its_choices_make(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run(capsys, "stages", "edges")
    shown = {line.rpartition(".")[2] for line in lines if line.startswith("claygraph.stages.edges.")}
    assert shown >= {"Canny", "Scharr", "LaplacianOfGaussian", "DifferenceOfGaussians"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("KSampelr",), "'KSampelr' is no stage; did you mean 'KSampler'?"),
        (("edges=cany",), "did you mean 'edges=canny'?"),
        (("--plain",), "stages has no flag '--plain'"),
        (("--config-dir", "gone"), "--config-dir='gone' is not a folder"),
        (("--config-dir",), "--config-dir needs a folder"),
    ],
)
def test_a_wrong_name_is_explained(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys, "stages", *arguments)
    assert (code, lines) == (2, [])
    assert says in said
    assert said.count("\n") == 1


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    from claygraph.cli import main

    assert main(["stages"]) == 0
    told = capsys.readouterr().out
    assert "inputs -> output" in told
    assert "steps: int = 20 (1 to 1000)" in told
    assert "\t" not in told


def python(home: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m claygraph`` in a user's folder."""
    around = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "claygraph", *arguments]
    return subprocess.run(command, cwd=home, env=around, capture_output=True, text=True, check=False)


def test_a_stage_of_ones_own_is_listed_with_its_config(folder: Path) -> None:
    plain = python(folder, "stages")
    assert "Posterize" not in plain.stdout
    done = python(folder, "stages", "--config-dir", "my_conf")
    target, purpose, signature, settings, made_by = line_of("Posterize", done.stdout.splitlines())
    assert (target, purpose) == ("my_stages.Posterize", "Leaves only a few levels of each colour.")
    assert (signature, settings) == ("(photo: Image) -> Image", "levels: int = 4 (2 to 256)")
    assert made_by == "+experiment=poster"
    full = python(folder, "stages", "--config-dir=my_conf", "posterize").stdout.splitlines()
    assert full[0] == "my_stages.Posterize"
    assert "    +experiment=poster: levels=3" in full


def test_a_stage_of_an_installed_package_is_listed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    site = tmp_path_factory.mktemp("site")
    info = site / "clay_posters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clay-posters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[claygraph.conf]\nposters = clay_posters_conf\n")
    (site / "my_stages.py").write_text((folder / "my_stages.py").read_text())
    (folder / "my_conf").rename(site / "clay_posters_conf")
    (site / "clay_posters_conf" / "__init__.py").touch()
    (folder / "my_stages.py").unlink()
    done = python(folder, "stages", path=site)
    assert line_of("Posterize", done.stdout.splitlines())[4] == "+experiment=poster"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("raise RuntimeError('broken')", "cannot be imported: RuntimeError: broken"),
        ("Other = 1", "cannot be imported: AttributeError"),
        ("class Posterize: pass", "is no claygraph.stage.Stage"),
    ],
)
def test_a_broken_stage_of_ones_own_is_told_beside_the_others(folder: Path, code: str, fault: str) -> None:
    (folder / "my_stages.py").write_text(code)
    done = python(folder, "stages", "--config-dir", "my_conf")
    assert done.returncode == 0
    assert fault in line_of("Posterize", done.stdout.splitlines())[1]
    assert len(done.stdout.splitlines()) > 10
    assert fault in python(folder, "stages", "--config-dir", "my_conf", "Posterize").stdout


def test_the_list_comes_at_once() -> None:
    """Counted in the processor's time, so that a busy machine does not matter."""
    begun = os.times()
    assert python(Path.cwd(), "stages").returncode == 0
    ended = os.times()
    assert ended.children_user + ended.children_system - begun.children_user - begun.children_system < 0.8


def test_checks_are_noted_and_refuse_nothing_only_meanwhile() -> None:
    with noting_checks() as noted:
        check_choice("a", "x", ["y", "z"])
        check_range("b", 9, 0, 1)
        check_whole("c", 0.5, 1, 2)
    assert noted == {"a": "y, z", "b": "0 to 1", "c": "1 to 2"}
    with pytest.raises(SettingError):
        check_choice("a", "x", ["y", "z"])


def test_a_stage_without_checks_has_settings_all_the_same() -> None:
    (entry,) = [entry for entry in catalogue() if entry.target.endswith(".Save")]
    assert entry.kind
    found = [str(setting) for setting in settings_of(entry.kind)]
    assert found == ["folder: str = 'outputs'", "name: str = 'picture'"]
