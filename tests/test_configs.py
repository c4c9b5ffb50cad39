"""Every config composes, builds and says what it is for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from claygraph import plan
from claygraph.explain import settings
from claygraph.help import KNOBS, choices, groups, help_text, spelled
from claygraph.jobs import Job

ADAPTERS = ("standard", "vit_g", "plus", "plus_face", "composition")
MISSING = ("juggernaut_x_hyper", "sdxl", "control_lora", "claymation", "wd14", *ADAPTERS)
"""Choices whose weights are not shipped."""


@pytest.fixture(autouse=True)
def hydra_is_ready() -> Iterator[None]:
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", [*overrides, "out=nowhere"])


CHOICES = [(group, choice) for group in groups() for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[1] not in MISSING])
def test_every_choice_builds(group: str, choice: str) -> None:
    [job] = plan.plan_all([Job(composed(f"{spelled(group)}={choice}"))])
    assert job.graph is not None
    assert "save" in job.graph.graph["nodes"]


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[1] in MISSING])
def test_configs_of_other_weights_compose_and_say_what_is_missing(group: str, choice: str) -> None:
    with pytest.raises(Exception, match=r"='models/.*' does not exist; the folder|not in models/ipadapter \(no such"):
        plan.plan_all([Job(composed(f"{group}={choice}"))])


def test_switching_a_stage_off_leaves_the_others_wired() -> None:
    off = composed("lora=none", "ip_adapter=none", "controlnet=none", "tagger=none", "edges=none")
    [job] = plan.plan_all([Job(off)])
    assert job.graph is not None
    nodes = job.graph.graph["nodes"]
    assert nodes["sampler"].inputs["controlnet"] is nodes["checkpoint"]
    assert set(nodes) == {"photo", "checkpoint", "prompt", "encode", "sampler", "decode", "save"}


def test_the_five_stages_are_wired_as_in_the_workflow() -> None:
    [job] = plan.plan_all([Job(composed())])
    assert job.graph is not None
    wired = {(a.name, b.name) for a, b in job.graph.edges}
    chain = [("checkpoint", "lora"), ("lora", "ip_adapter"), ("ip_adapter", "controlnet"), ("controlnet", "sampler")]
    assert {*chain, ("tagger", "prompt"), ("edges", "controlnet"), ("photo", "encode"), ("decode", "save")} <= wired


def test_help_names_every_choice_and_only_knobs_that_exist() -> None:
    text = help_text()
    assert all(choice in text for _, choice in CHOICES)
    assert set(KNOBS) <= set(settings())


def test_a_folder_becomes_one_graph_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("b.png", "a.jpg", "note.txt"):
        (tmp_path / name).write_text("x")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    jobs = plan.plan_all([Job(composed(f"image={tmp_path}"))])
    assert [Path(job.image).name for job in jobs] == ["a.jpg", "b.png"]


def test_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    from PIL import Image

    paths = [tmp_path / folder / "cat.png" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        Image.new("RGB", (64, 64)).save(path)
    jobs = plan.plan_all([Job(composed(f"image=[{paths[0]},{paths[1]}]"))])
    assert [job.graph.graph["nodes"]["save"].stage.name for job in jobs if job.graph] == ["cat", "cat-2"]
