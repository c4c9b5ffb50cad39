import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claygraph import sources
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


@dataclass(frozen=True)
class Reader(Stage):
    """Reads two files, and a folder of them."""

    first: str = ""
    pairs: tuple[tuple[str, float], ...] = ()
    folder: str = ""
    note: str = ""

    def files(self) -> Sequence[str]:
        below = sorted(str(file) for file in Path(self.folder).iterdir()) if self.folder else []
        return [path for path in (self.first, *(path for path, _ in self.pairs)) if path] + below

    def run(self) -> Number:
        return Number(0)


def key(**settings: Any) -> str:
    return str(build({"reader": Reader(**settings)}).graph["nodes"]["reader"].key)


def test_where_a_file_lies_is_no_part_of_the_key_but_what_it_is_for_is(tmp_path: Path) -> None:
    one, two, copy = (str(tmp_path / name) for name in ("one", "two", "copy"))
    for path, text in ((one, "1"), (two, "2"), (copy, "1")):
        Path(path).write_text(text)
    assert key(first=one) == key(first=copy) != key(first=two)
    assert key(first=one, pairs=((two, 0.5),)) == key(first=copy, pairs=((two, 0.5),))
    assert key(pairs=((one, 0.5), (two, 1.0))) != key(pairs=((two, 0.5), (one, 1.0)))
    assert key(first=one, note=two) != key(first=one, note="other")
    before = key(first=one, pairs=((two, 0.5),))
    Path(one).write_text("2")
    Path(two).write_text("1")
    assert key(first=one, pairs=((two, 0.5),)) != before
    assert key(first=two, pairs=((one, 0.5),)) == before


def test_a_folder_counts_by_the_names_and_contents_in_it(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "xy"), ("c", "yx")):
        (tmp_path / folder).mkdir()
        for name, text in zip(names, "12", strict=True):
            (tmp_path / folder / name).write_text(text)
    a, b, c = (key(folder=str(tmp_path / name)) for name in "abc")
    assert a == b != c


PLUGIN = """
from dataclasses import dataclass
from claygraph.stage import Stage
from claygraph.values import Tags

@dataclass(frozen=True)
class Plugin(Stage):
    def run(self) -> Tags:
        return Tags({tags})
"""


def test_an_edited_plug_in_has_other_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    keys = []
    for tags in ("()", "(('clay', 1.0),)", "()"):
        (tmp_path / "some_plugin.py").write_text(PLUGIN.format(tags=tags))
        for cached in (sources.code_of, sources._module):
            cached.cache_clear()
        importlib.invalidate_caches()
        sys.modules.pop("some_plugin", None)
        plugin = importlib.import_module("some_plugin").Plugin()
        keys.append(build({"plugin": plugin}).graph["nodes"]["plugin"].key)
    sys.modules.pop("some_plugin", None)
    assert keys[0] == keys[2] != keys[1]


def test_code_that_stages_build_on_is_part_of_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.code_of(Source)
    sources.code_of.cache_clear()
    monkeypatch.setattr(sources, "_shared", lambda: "edited")
    assert sources.code_of(Source) != before
    sources.code_of.cache_clear()


def test_a_stage_without_a_source_file_is_other_code_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [type("Typed", (Source,), {"__module__": f"typed{number}"}) for number in range(2)]
    before = [sources.code_of(kind) for kind in kinds]
    for cached in (sources.code_of, sources._module):
        cached.cache_clear()
    monkeypatch.setattr(sources, "UNKNOWN", "of another process")
    assert sources.code_of(kinds[0]) != before[0]
    sources.code_of.cache_clear()
    sources._module.cache_clear()


def test_the_context_is_part_of_every_key() -> None:
    keys = [build(chain(), context=context).graph["nodes"]["source"].key for context in ("cpu", "cuda", "cpu")]
    assert keys[0] == keys[2] != keys[1]
