"""Which jobs a sweep makes, and that each one's overrides make it alone."""

import json
from collections.abc import Sequence

import pytest

from claygraph.cli import main
from claygraph.composing import compose_and_run
from claygraph.errors import ClaygraphError
from claygraph.jobs import Job
from claygraph.variants import variant_of


def jobs_of(*arguments: str) -> list[Job]:
    """The jobs of a sweep; nothing is run."""
    found: list[Job] = []

    def keep(jobs: Sequence[Job]) -> int:
        found.extend(jobs)
        return 0

    assert compose_and_run(keep, ["-m", "out=o", "metric=[]", *arguments]) == 0
    return found


def cells_of(*arguments: str) -> list[str]:
    return [" ".join(job.overrides[2:]) for job in jobs_of(*arguments)]


def config_of(job: Job) -> str:
    config = json.loads(variant_of(job.config).json())
    return json.dumps(config | {"out": "", "save": ""}, sort_keys=True)


def test_levels_ranges_globs_and_choices_are_combined_the_last_fastest() -> None:
    cells = cells_of("sampler.cfg=1,2.5", "tagger=glob(*,exclude=wd14)", "sampler.seed=range(0,10,5)")
    assert cells[:4] == [
        "sampler.cfg=1 tagger=moat sampler.seed=0",
        "sampler.cfg=1 tagger=moat sampler.seed=5",
        "sampler.cfg=1 tagger=none sampler.seed=0",
        "sampler.cfg=1 tagger=none sampler.seed=5",
    ]
    assert len(set(cells)) == 2 * 3 * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["sampler.cfg=1,2", "sampler.steps=range(2,5)", "tagger=moat,vit", "edges.low=50"],
        ["prompt.text='a b','c, d'", "+lora.clay.blocks.MID=0.5,1", "out=x,y"],
        ["lora.clay.model=choice(0,1)", "lora=clay,clay_toy", "ip_adapter.blocks={}"],
    ],
)
def test_plain_sweeps_are_those_of_hydras_basic_sweeper(arguments: list[str]) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(["out=o", "metric=[]", *arguments])
    [wanted] = BasicSweeper.split_arguments(parsed, None)
    assert [list(job.overrides) for job in jobs_of(*arguments)] == [list(each) for each in wanted]


def test_every_job_is_alone_what_it_is_in_the_sweep() -> None:
    jobs = jobs_of("+ablation=leave_one_out", "sampler.seed=1,2", "lora=clay_toy", "+lora.clay.blocks.MID=0.5")
    for job in jobs[:: len(jobs) // 3]:
        alone: list[Job] = []

        def keep(found: Sequence[Job], alone: list[Job] = alone) -> int:
            alone.extend(found)
            return 0

        compose_and_run(keep, job.overrides)
        assert config_of(alone[0]) == config_of(job)


def test_zipped_axes_advance_together() -> None:
    cells = cells_of("sampler.cfg=1,2", "photo.fit=area,none", "sampler.steps=4,8", "+zip=[sampler.steps,sampler.cfg]")
    assert cells == [
        "sampler.cfg=1 photo.fit=area sampler.steps=4",
        "sampler.cfg=1 photo.fit=none sampler.steps=4",
        "sampler.cfg=2 photo.fit=area sampler.steps=8",
        "sampler.cfg=2 photo.fit=none sampler.steps=8",
    ]


def test_several_groups_of_axes_can_be_zipped() -> None:
    axes = ("sampler.cfg=1,2", "sampler.steps=4,8", "photo.size=64,128", "edges.low=50,60")
    cells = cells_of(*axes, "+zip=[[sampler.cfg,sampler.steps],[photo.size,edges.low]]")
    assert len(cells) == 4
    assert cells[1] == "sampler.cfg=1 sampler.steps=4 photo.size=128 edges.low=60"


def test_skips_leave_out_what_has_all_their_levels() -> None:
    cells = cells_of(
        "tagger=moat,none", "sampler.cfg=1,2,3", "+skip=[{tagger:none,sampler.cfg:[2,3]},{sampler.cfg:1.0}]"
    )
    assert cells == ["tagger=moat sampler.cfg=2", "tagger=moat sampler.cfg=3"]


def test_the_settings_of_a_part_go_with_it_and_equal_jobs_are_made_once() -> None:
    cells = cells_of("controlnet=miniature,none", "controlnet.strength=0.4,0.8", "+controlnet.inputs.edges=photo")
    assert cells == [
        "controlnet=miniature controlnet.strength=0.4 +controlnet.inputs.edges=photo",
        "controlnet=miniature controlnet.strength=0.8 +controlnet.inputs.edges=photo",
        "controlnet=none",
    ]


def test_leave_one_out_begins_with_the_baseline() -> None:
    cells = cells_of("+ablation=leave_one_out", "lora=clay_toy", "sampler.seed=7", "controlnet.strength=0.5")
    fixed = "lora=clay_toy sampler.seed=7"
    assert cells[0] == f"{fixed} controlnet.strength=0.5"
    assert set(cells[1:]) == {
        f"{fixed} controlnet=none",
        f"{fixed} controlnet.strength=0.5 edges=none",
        f"{fixed} controlnet.strength=0.5 tagger=none",
        f"{fixed} controlnet.strength=0.5 ip_adapter=none",
        "lora=none sampler.seed=7 controlnet.strength=0.5",
        f"{fixed} controlnet.strength=0.5 lora.clay.model=0 lora.clay.clip=0",
        f"{fixed} controlnet.strength=0.5 lora.toy.model=0 lora.toy.clip=0",
    }
    assert len(cells) == 8


def test_leave_one_out_takes_out_parts_that_were_added_and_none_that_are_off() -> None:
    cells = cells_of("+ablation=leave_one_out", "controlnet_2=miniature", "tagger=none")
    assert "controlnet_2=none tagger=none" in cells
    assert "controlnet_2=miniature tagger=none edges@edges_2=none" in cells
    assert not [cell for cell in cells if "tagger=moat" in cell or "preset" in cell]


def test_one_factor_turns_one_knob_at_a_time() -> None:
    cells = cells_of("+ablation=one_factor", "sampler.cfg=1,1.5,3", "tagger=moat,none", "edges.low=60")
    assert cells == [
        "edges.low=60",
        "sampler.cfg=1 edges.low=60",
        "sampler.cfg=3 edges.low=60",
        "tagger=none edges.low=60",
    ]


def test_zipped_axes_are_one_factor() -> None:
    axes = ("sampler.cfg=1,2", "sampler.steps=4,5", "+zip=[sampler.cfg,sampler.steps]")
    assert cells_of("+ablation=one_factor", *axes) == [
        "",
        "sampler.cfg=1 sampler.steps=4",
        "sampler.cfg=2 sampler.steps=5",
    ]


def test_factorial_is_the_product() -> None:
    axes = ("sampler.cfg=1,2", "photo.size=64,128,256")
    assert cells_of("+ablation=factorial", *axes) == cells_of(*axes)


def test_random_draws_distinct_jobs_of_the_product_by_its_seed() -> None:
    axes = ("sampler.seed=range(0,40)", "sampler.cfg=1,2,3", "photo.size=64,128")
    drawn = cells_of("+ablation=random", *axes)
    assert len(set(drawn)) == len(drawn) == 20
    assert set(drawn) <= set(cells_of(*axes))
    assert drawn == cells_of("+ablation=random", *axes)
    assert drawn != cells_of("+ablation=random", "ablation.seed=1", *axes)
    assert len({cell.partition("cfg=")[2][0] for cell in drawn}) == 3


def test_random_of_more_than_there_are_is_all_of_them() -> None:
    axes = ("sampler.cfg=1,2", "controlnet=miniature,none", "controlnet.strength=0.5,1")
    assert sorted(cells_of("+ablation=random", *axes)) == sorted(cells_of(*axes))


def test_random_works_on_products_that_are_never_listed() -> None:
    axes = [f"edges.{name}=range(0,1000)" for name in ("low", "high", "blur", "resolution")]
    assert len(set(cells_of("+ablation=random", "ablation.n=50", *axes))) == 50


def test_ready_sweeps_hold_axes_and_leave_nothing_in_the_jobs() -> None:
    cells = cells_of("+sweep=strengths", "sampler.seed=1")
    assert len(cells) == 12
    assert not [cell for cell in cells if "+sweep" in cell]


def test_a_sweep_of_ones_own_may_hold_settings_too(tmp_path: "pytest.TempPathFactory") -> None:
    folder = tmp_path / "conf" / "sweep"  # type: ignore[operator]
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\nsampler: {seed: 9}\nhydra: {sweeper: {params: {sampler.cfg: '1,2'}}}\n"
    )
    found: list[Job] = []

    def keep(jobs: Sequence[Job]) -> int:
        found.extend(jobs)
        return 0

    compose_and_run(keep, ["--config-dir", str(folder.parent), "-m", "+sweep=mine", "metric=[]"])
    assert [(job.config.sampler["cfg"], job.config.sampler["seed"]) for job in found] == [(1, 9), (2, 9)]
    assert found[0].overrides == ("sampler.cfg=1", "+sweep=mine", "metric=[]")
    assert found[0].flags == ("--config-dir", str(folder.parent))


WRONG = {
    "sampler.cfg=1,2 sampler.steps=3,4,5 +zip=[sampler.cfg,sampler.steps]": "sampler.cfg has 2, sampler.steps has 3.",
    "sampler.cfg=1,2 +zip=[sampler.cfg,sampler.cgf]": "zip names 'sampler.cgf', which is not swept over; did you mean",
    "sampler.cfg=1,2 +zip=sampler.cfg": "zip='sampler.cfg' is no list",
    "sampler.cfg=1,2 +skip=[{sampler.cgf:1}]": "skip names 'sampler.cgf', which is not swept over; did you mean",
    "sampler.cfg=1,2 +skip=[sampler.cfg]": "skip has 'sampler.cfg'; say what is left out",
    "sampler.cfg=1,2 +skip=[{sampler.cfg:[1,2]}]": "skip leaves no job to make",
    "sampler.cfg=interval(1,2)": "an interval has no levels",
    "tagger=glob(x*)": "there is no such level",
    "sampler.stesp=1,2": "did you mean 'sampler.steps'?",
    "edges=cany,canny": "did you mean 'canny'?",
    "ablation=random sampler.cfg=1,2": "'ablation' is added to a sweep: -m +ablation=CHOICE",
    "+ablation=leave_one": "did you mean 'leave_one_out'?",
    "+ablation=one_factor": "there is none; add one",
    "+ablation=random ablation.n=0 sampler.cfg=1,2": "give a number from 1 to",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sweep_is_told_in_one_sentence(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", *case.split()]) == 2
    said = capsys.readouterr().err
    assert WRONG[case] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("argument", ["+ablation=leave_one_out", "+zip=[a,b]", "+skip=[{a:1}]"])
def test_a_design_without_a_sweep_is_told(argument: str) -> None:
    with pytest.raises(ClaygraphError, match="put -m before it"):
        compose_and_run(lambda jobs: 0, [argument])
