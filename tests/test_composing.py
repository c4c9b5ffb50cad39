"""What is composed by setting values equals what Hydra composes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from claygraph.composer import Composer, read
from claygraph.variants import Base


@pytest.fixture(autouse=True)
def hydra_is_ready() -> Iterator[None]:
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        yield


def by_hydra(*overrides: str) -> dict[str, Any]:
    return dict(OmegaConf.to_container(compose("config", ["out=o", *overrides]), resolve=True))  # type: ignore[arg-type]


def fresh() -> Composer:
    return Composer(lambda overrides: compose("config", overrides, return_hydra_config=True))


COMPOSER = fresh()  # one for all cases: each meets what those before it left
CASES = (
    "",
    "sampler.seed=3",
    "sampler.seed=4 sampler.seed=5",
    "sampler.cfg=2.50 sampler.steps=007",
    "sampler.cfg=-0.0 sampler.steps=1_000 sampler.seed=1e3",
    "prompt.text=inf prompt.negative=nan",
    "lora.clay.model=0.5 sampler=heun sampler.steps=2",
    "sampler.steps=2 sampler=heun",
    "+lora.clay.blocks.MID=0.5",
    "+lora.clay.blocks.MID=0.7 sampler.seed=1",
    "++lora.clay.blocks.MID=0.8 ++lora.clay.model=2",
    "+lora.clay.blocks={MID:0.5,OUT01:[1,2]}",
    "lora.clay.model=2 +lora={clay:{model:3}}",
    "+lora={clay:{model:3}} lora.clay.model=2",
    "models=abc ip_adapter=plus",
    "ip_adapter=plus",
    "image=[a.png,b.png]",
    "image='a b, c=d' name=null",
    'prompt.text="it\'s (clay:1.2), \\\\(x\\\\)"',
    "prompt.text= prompt.negative='' device=TRUE dtype=null",
    "controlnet.layers=[1,2,3]",
    "controlnet.keyframes=[{start:0.5,strength:0.3}]",
    "photo.size=${sampler.steps} sampler.steps=7",
    "name=x-${sampler.seed} sampler.seed=7",
    "prompt.text='\\${x}'",
    "edges=none controlnet=none",
    "~mask",
    "~lora.clay ++lora.toy.path=p",
    "controlnet_2=miniature controlnet_2.strength=0.3 edges@edges_2=lineart",
    "controlnet_2=miniature controlnet_2.strength=0.4 edges@edges_2=lineart",
    "preset=juggernaut_x_hyper sampler.cfg=3 models=w",
    "+ablation=random ablation.n=3 sampler.seed=1",
)


@pytest.mark.parametrize("case", CASES)
def test_a_variant_equals_what_hydra_composes(case: str) -> None:
    overrides = case.split() if "'" not in case and '"' not in case else _quoted(case)
    found = COMPOSER.variant(["out=o", *overrides])
    wanted = {key: value for key, value in by_hydra(*overrides).items() if key != "ablation"}
    assert found.json() == json.dumps(wanted, sort_keys=True, default=str)
    assert [*found] == [*wanted]
    assert {name: found[name] for name in found} == wanted or "nan" in case


def _quoted(case: str) -> list[str]:
    """The overrides of a case in which spaces are quoted."""
    parts, open_quote = [""], ""
    for character in case:
        if character in "'\"" and (not open_quote or character == open_quote):
            open_quote = "" if open_quote else character
        if character == " " and not open_quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


WRONG = (
    "sampler.stesp=6",
    "sampler.steps.deep=6",
    "egdes=canny",
    "edges=cany",
    "~sampler.stesp",
    "+sampler.steps=3",
    "+lora.clay.blocks.MID=1 +lora.clay.blocks.MID=2",
    "ip_adapter.blocks={6:0.5}",
    "sampler.cfg=1,2",
    "sampler.cfg=[1",
    "edges@edges_2=lineart",
)


@pytest.mark.parametrize("case", WRONG)
def test_what_hydra_refuses_is_refused_in_its_words(case: str) -> None:
    with pytest.raises(Exception) as wanted:  # noqa: PT011 - whatever Hydra raises
        by_hydra(*case.split())
    with pytest.raises(type(wanted.value)) as found:
        COMPOSER.variant(["out=o", *case.split()])
    assert isinstance(found.value, HydraException)
    assert str(found.value) == str(wanted.value)


def test_hydra_composes_once_for_each_choice_of_groups() -> None:
    made: list[list[str]] = []

    def counted(overrides: list[str]) -> DictConfig:
        made.append(overrides)
        return compose("config", overrides, return_hydra_config=True)

    composer = Composer(counted)
    for sampler in ("euler", "heun"):
        for seed in range(50):
            variant = composer.variant([f"sampler.seed={seed}", f"sampler={sampler}", f"+lora.clay.blocks.MID={seed}"])
            assert variant.sampler["seed"] == variant.lora["clay"]["blocks"]["MID"] == seed
    assert [[each.partition("=")[0] for each in overrides] for overrides in made if len(overrides) == 2] == [
        ["sampler", "+lora.clay.blocks.MID"],
        ["sampler", "+lora.clay.blocks.MID"],
    ]
    assert len(made) <= 4


def test_a_config_composed_before_is_used_only_by_jobs_that_set_what_it_sets() -> None:
    master = compose("config", ["out=o", "sampler.steps=9", "image=x.png"], return_hydra_config=True)
    composed: list[list[str]] = []

    def noted(overrides: list[str]) -> DictConfig:
        composed.append(overrides)
        return compose("config", overrides, return_hydra_config=True)

    composer = Composer(noted, master, ["out=o", "sampler.steps=9", "image=x.png"])
    assert composer.variant(["out=p", "sampler.steps=2", "image=y.png"]).sampler["steps"] == 2
    assert not composed
    assert composer.variant(["out=o", "image=x.png"]).sampler["steps"] == by_hydra()["sampler"]["steps"]
    assert len(composed) == 1


def test_sections_that_nothing_reaches_are_shared() -> None:
    base = Base(compose("config", ["out=o"]))
    one, two = base.variant({("sampler", "seed"): 1}).sections(), base.variant({("out",): "x"}).sections()
    assert one["lora"] is two["lora"]
    assert one["sampler"] is not two["sampler"]
    assert (one["save"].value["folder"], two["save"].value["folder"]) == ("o", "x")
    assert base.variant({("sampler", "seed"): 1}).sections()["sampler"] is one["sampler"]
    assert base.variant({("sampler", "seed"): 1.0}).sections()["sampler"] is not one["sampler"]


def test_links_are_followed_as_omegaconf_does() -> None:
    raw = {
        "a": {"x": 1, "y": "${.x}", "z": "${a.x}"},
        "b": "${c}",
        "c": {"deep": ["${a.x}", "v-${d}", None]},
        "d": "text",
        "e": "${d}/${d}",
        "f": None,
        "g": "${f}",
        "h": "n=${a.x}",
        "i": "\\${d}",
        "j": "${oc.select:d,none}",
    }
    variant = Base(OmegaConf.create(raw)).variant({("d",): "new", ("a", "x"): 2.5})
    wanted = OmegaConf.to_container(OmegaConf.create({**raw, "d": "new", "a": {**raw["a"], "x": 2.5}}), resolve=True)  # type: ignore[dict-item]
    assert {name: variant[name] for name in variant} == wanted


def test_a_typed_node_converts_as_omegaconf_does() -> None:
    from dataclasses import dataclass, field

    @dataclass
    class Inner:
        steps: float = 1.0

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)
        free: Any = 1

    base = Base(OmegaConf.structured(Outer))
    assert not base.settable(("inner", "steps"), 2)
    assert base.settable(("free",), 2)


@pytest.mark.parametrize("text", ["a.b=1", "a.b=-12", "a.b=0.50", "a.b=-3.0", "a.b=10000000000"])
def test_numbers_are_read_as_hydra_reads_them(text: str) -> None:
    from claygraph.composer import parser

    value = parser().parse_override(text).value()
    assert (read(text).value, type(read(text).value)) == (value, type(value))
