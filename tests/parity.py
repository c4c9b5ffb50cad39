"""Run every case of a recorded reference set through claygraph's stages: ``python -m tests.parity FOLDER``.

The exit code is 1 if any case deviates by more than its tolerance. Deliberate differences are no exemption: such a case
is compared under the condition that names the difference (``parity_reference.DELIBERATE``), and has to agree there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from tests import parity_models, parity_pictures, parity_sampling, parity_text
from tests.parity_reference import DELIBERATE, Case, Compared, Reference, Unsupported
from tests.parity_world import World

Section: TypeAlias = Callable[[Case, World], Iterator[Compared]]

SECTIONS: Mapping[str, Section] = {
    "schedules": parity_sampling.schedules,
    "noise": parity_sampling.noises,
    "ksampler": parity_sampling.ksampler,
    "ksampler_newer_cpu_seed": parity_sampling.ksampler,
    "text": parity_text.text,
    "lora": parity_text.lora,
    "ipadapter": parity_models.ip_adapter,
    "controlnet": parity_models.controlnet,
    "vae": parity_pictures.vae,
    "edges": parity_pictures.edges,
    "wd14": parity_pictures.tagger,
    "tagger": parity_pictures.tagger,
    "workflow": parity_models.workflow,
}


@dataclass
class Verdict:
    """How one case came out: ``agrees``, ``deviates``, ``unsupported`` or ``input`` (nothing to compute)."""

    section: str
    id: str
    status: str
    compared: list[Compared] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why: str = ""
    seconds: float = 0.0

    @property
    def worst(self) -> Compared | None:
        """The output that lies farthest from its recorded one, in tolerances; the sigmas only if nothing else came."""
        failed = [one for one in self.compared if not one.within]
        telling = [one for one in self.compared if one.what != "eval_sigmas"]
        return max(failed or telling or self.compared, key=share, default=None)


def share(one: Compared) -> float:
    """A deviation in tolerances."""
    return one.deviation / one.tolerance if one.tolerance else (float("inf") if one.deviation else 0.0)


def judge(run: Section, case: Case, world: World) -> Verdict:
    """Run one case and compare every output it can."""
    world.differences, world.notes = [], []
    start, compared = time.perf_counter(), list[Compared]()
    try:
        for one in run(case, world):
            compared.append(one)
        status, why = ("agrees" if all(one.within for one in compared) else "deviates"), ""
        status = status if compared else "input"
    except Unsupported as error:
        whole = all(one.within for one in compared)
        status, why = ("unsupported" if whole else "deviates"), str(error)
    except Exception as error:  # whatever a case raises is that case's result
        status, why = "deviates", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    return Verdict(case.section, case.id, status, compared, world.differences, world.notes, why, seconds)


def verdicts(reference: Reference, only: Iterable[str] = ()) -> Iterator[Verdict]:
    """One verdict for every case of the set, in its order; of the sections ``only``, if any are named."""
    world, wanted = World(reference.weights), set(only)
    for section in reference.index["sections"]:
        for case in reference.cases(section) if not wanted or section in wanted else ():
            if section in SECTIONS:
                yield judge(SECTIONS[section], case, world)
            else:
                yield Verdict(section, case.id, "unsupported", why=f"nothing here runs the section {section!r}")


def table(found: Sequence[Verdict]) -> Table:
    """One row for each section."""
    columns = ("section", "cases", "agree", "deviate", "not supported", "largest deviation", "of tolerance", "in case")
    made = Table(*columns, title="parity")
    for section in dict.fromkeys(one.section for one in found):
        mine = [one for one in found if one.section == section]
        counts = Counter(one.status for one in mine)
        counted = [counts["agrees"], counts["deviates"], counts["unsupported"]]
        made.add_row(section, str(sum(counted)), *map(str, counted), *_worst(mine))
    return made


def _worst(found: Sequence[Verdict]) -> tuple[str, str, str]:
    """The output nearest to, or farthest beyond, its tolerance."""
    worst = [(one.worst, one.id) for one in found if one.worst]
    if not worst:
        return "", "", ""
    most, name = max(worst, key=lambda pair: share(pair[0]))
    return f"{most.deviation:.2g}", f"{share(most):.2f}", f"{name} {most.what}"


def tell(found: Sequence[Verdict], console: Console) -> None:
    """Print the table, what deliberately differs, what is not supported, and every failure."""
    console.print(table(found))
    for name, says in DELIBERATE.items():
        mine = [one for one in found if name in one.differences]
        if mine:
            agree = sum(one.status == "agrees" for one in mine)
            console.print(f"deliberate: {name}: {agree} of {len(mine)} agree. {says}.", markup=False, highlight=False)
    for status in ("unsupported", "deviates"):
        for one in found:
            if one.status == status:
                console.print(f"{status}: {one.section} {one.id}: {_reason(one)}", markup=False, highlight=False)
    for note in dict.fromkeys(note for one in found for note in one.notes):
        console.print(f"note: {note}", markup=False)


def _reason(one: Verdict) -> str:
    if one.why:
        return one.why
    return ", ".join(f"{c.what} {c.deviation:.3g} (may be {c.tolerance:g})" for c in one.compared if not c.within)


def main(argv: Sequence[str]) -> int:
    """Run a set; 1 if any case deviates, 2 if the set cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds index.json, one .npz for each section, and weights/")
    parser.add_argument("--only", action="append", default=[], metavar="SECTION")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict there")
    parser.add_argument("--weights", type=Path, help="where the weights lie, if not in the folder")
    asked = parser.parse_args(argv)
    reference = Reference(asked.folder, asked.weights or asked.folder / "weights")
    if not (asked.folder / "index.json").is_file():
        parser.error(f"{asked.folder} holds no index.json")
    if odd := sorted(set(asked.only) - set(reference.index["sections"])):
        parser.error(f"the set has no section {odd[0]}; it has {', '.join(reference.index['sections'])}")
    found = list(verdicts(reference, asked.only))
    tell(found, Console(width=None if sys.stdout.isatty() else 160))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return int(any(one.status == "deviates" for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
