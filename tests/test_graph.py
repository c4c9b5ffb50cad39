from pathlib import Path

import pytest

from claygraph.errors import GraphError
from claygraph.graph import build
from claygraph.stage import Stage
from tests.toys import Halver, Loop, Number, Source, Spell, Word


def chain(times: int = 1, **spell: str) -> dict[str, Stage]:
    return {"source": Source(), "halver": Halver(times), "spell": Spell(**spell)}


def test_ports_are_wired_by_name() -> None:
    nodes = build(chain()).graph["nodes"]
    assert nodes["spell"].inputs["halver"] is nodes["halver"]
    assert nodes["halver"].inputs["source"] is nodes["source"]


def test_an_optional_port_stays_open() -> None:
    assert set(build(chain()).graph["nodes"]["spell"].inputs) == {"halver"}


def test_inputs_override_the_name() -> None:
    stages = {**chain(), "other": Source(3.0)}
    nodes = build(stages, wires={"halver": {"source": "other"}}).graph["nodes"]
    assert nodes["halver"].inputs["source"] is nodes["other"]


def test_a_name_can_stand_for_another() -> None:
    stages = {"source": Source(), "spell": Spell()}
    nodes = build(stages, same_as={"halver": "middle", "middle": "source"}).graph["nodes"]
    assert nodes["spell"].inputs["halver"] is nodes["source"]


def test_a_given_value_feeds_a_port_and_is_part_of_the_key() -> None:
    keys = [build(chain(), {"note": Word(text)}).graph["nodes"]["spell"].key for text in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]


def test_equal_work_has_equal_keys() -> None:
    one, two = build(chain(times=1)).graph["nodes"], build(chain(times=2)).graph["nodes"]
    assert one["source"] == two["source"]
    assert one["halver"] != two["halver"]
    assert one["spell"] != two["spell"]


def test_the_version_of_a_stage_is_part_of_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(chain()).graph["nodes"]["source"].key
    monkeypatch.setattr(Source, "version", 2)
    assert build(chain()).graph["nodes"]["source"].key != before


def test_the_content_of_a_file_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    monkeypatch.setattr(Source, "files", lambda self: (str(file),))
    keys = []
    for text in ("one", "three"):
        file.write_text(text)
        keys.append(build(chain()).graph["nodes"]["source"].key)
    assert keys[0] != keys[1]


def test_every_fault_is_told_at_once_with_the_nearest_name() -> None:
    stages = {"source": Source(), "halver": Halver(), "spell": Spell(), "loop": Loop()}
    wires = {
        "halver": {"source": "sorce", "sauce": "source"},
        "spell": {"note": "source"},
        "loop": {"spell": "lop"},
    }
    with pytest.raises(GraphError) as caught:
        build(stages, wires=wires)
    assert list(caught.value.faults) == [
        "stage 'halver' has no input 'sauce'; did you mean 'source'?",
        "stage 'halver' needs 'sorce' (inputs.source), but no stage has that name; did you mean 'source'?",
        "stage 'spell' takes Word on its input 'note', but stage 'source' makes Number; "
        "wire another with spell.inputs.note=STAGE.",
        "stage 'loop' needs 'lop' (inputs.spell), but no stage has that name; did you mean 'loop'?",
    ]


def test_a_missing_stage_is_named() -> None:
    with pytest.raises(GraphError, match="stage 'spell' needs 'halver', but no stage has that name"):
        build({"spell": Spell()})


def test_a_cycle_is_spelt_out() -> None:
    stages = {**chain(), "loop": Loop()}
    with pytest.raises(GraphError, match=r"stages form a cycle: .*halver -> spell -> loop -> halver|cycle"):
        build(stages, wires={"halver": {"source": "loop"}})


def test_a_given_value_is_type_checked() -> None:
    with pytest.raises(GraphError, match="takes Word on its input 'note', but 'note' makes Number"):
        build(chain(), {"note": Number(1.0)})
