"""Imports point one way, and what is imported while planning stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = {"claygraph", "claygraph.errors", "claygraph.digests"}
VALUES = BOTTOM | {"claygraph.values", "claygraph.files", "claygraph.pictures", "claygraph.recipes"}
MEMORY = {"claygraph.memory", "claygraph.devices", "claygraph.limits", "claygraph.sizes", "claygraph.weighing"}
STAGE = VALUES | MEMORY | {"claygraph.stage"}
DIFFUSION = STAGE | {f"claygraph.diffusion.{file.stem}" for file in (ROOT / "claygraph/diffusion").glob("*.py")}
GRAPH = STAGE | {"claygraph.keys", "claygraph.graph", "claygraph.sources"}
STORE = {"claygraph.packing", "claygraph.locks", "claygraph.sizes", "claygraph.store"}
RUN = (GRAPH | STORE) | {
    "claygraph.kept",
    "claygraph.merged",
    "claygraph.flow",
    "claygraph.jobs",
    "claygraph.admission",
    "claygraph.batches",
    "claygraph.scheduler",
    "claygraph.plan",
    "claygraph.progress",
    "claygraph.record",
    "claygraph.results",
    "claygraph.execute",
}
ALLOWED = {
    "claygraph/errors.py": set(),
    "claygraph/values.py": set(),
    "claygraph/digests.py": set(),
    "claygraph/files.py": {"claygraph.digests", "claygraph.errors", "claygraph.values"},
    "claygraph/pictures.py": {"claygraph.errors", "claygraph.files"},
    "claygraph/recipes.py": {"claygraph.errors", "claygraph.values"},
    "claygraph/weighing.py": set(),
    "claygraph/devices.py": {"claygraph.errors"},
    "claygraph/limits.py": {"claygraph.errors", "claygraph.stage"},
    "claygraph/memory.py": {"claygraph.errors", "claygraph.stage", *MEMORY},
    "claygraph/stage.py": {"claygraph.memory"},
    "claygraph/sources.py": {"claygraph.stage"},
    "claygraph/keys.py": STAGE | {"claygraph.sources"},
    "claygraph/graph.py": STAGE | {"claygraph.keys"},
    "claygraph/packing.py": {"claygraph", "claygraph.values"},
    "claygraph/locks.py": set(),
    "claygraph/sizes.py": {"claygraph.errors"},
    "claygraph/store.py": {"claygraph.locks", "claygraph.packing", "claygraph.sizes"},
    "claygraph/kept.py": GRAPH | STORE,
    "claygraph/merged.py": GRAPH,
    "claygraph/flow.py": GRAPH | {"claygraph.admission", "claygraph.kept", "claygraph.merged"},
    "claygraph/housekeeping.py": STORE | {"claygraph.composing", "claygraph.errors", "claygraph.jobs"},
    "claygraph/status.py": {"claygraph.errors"},
    "claygraph/batches.py": STAGE,
    "claygraph/admission.py": GRAPH,
    "claygraph/scheduler.py": GRAPH | {"claygraph.batches", "claygraph.admission", "claygraph.flow", "claygraph.kept"},
    "claygraph/progress.py": GRAPH | {"claygraph.scheduler"},
    "claygraph/jobs.py": {"claygraph.variants"},
    "claygraph/plain.py": set(),
    "claygraph/variants.py": {"claygraph.plain"},
    "claygraph/composer.py": {"claygraph.plain", "claygraph.variants"},
    "claygraph/sweeps.py": {"claygraph.composer", "claygraph.errors", "claygraph.variants"},
    "claygraph/ablation.py": {"claygraph.errors", "claygraph.sweeps", "claygraph.variants"},
    "claygraph/objective.py": {"claygraph.errors", "claygraph.jobs"},
    "claygraph/making.py": {"claygraph.errors", "claygraph.stage"},
    "claygraph/plan.py": GRAPH | {"claygraph.jobs", "claygraph.making", "claygraph.variants"},
    "claygraph/results.py": {"claygraph.files"},
    "claygraph/record.py": GRAPH | {"claygraph.results", "claygraph.jobs", "claygraph.plan", "claygraph.variants"},
    "claygraph/execute.py": RUN,
    "claygraph/reporting.py": {"claygraph.errors", "claygraph.report"},
    "claygraph/replay.py": RUN | {"claygraph.catalogue"},
    "claygraph/forecast.py": GRAPH | {"claygraph.plan"},
    "claygraph/planning.py": RUN | STORE | {"claygraph.forecast", "claygraph.kept", "claygraph.variants"},
    "claygraph/layout.py": set(),
    "claygraph/drawing.py": RUN | {"claygraph.layout", "claygraph.planning"},
    "claygraph/commands.py": RUN | {"claygraph.reporting"},
    "claygraph/help.py": set(),
    "claygraph/catalogue.py": {"claygraph.errors", "claygraph.help", "claygraph.stage"},
    "claygraph/listing.py": {"claygraph.catalogue", "claygraph.errors", "claygraph.stage"},
    "claygraph/explain.py": {"claygraph.errors", "claygraph.help"},
    "claygraph/composing.py": {
        "claygraph.errors",
        "claygraph.jobs",
        "claygraph.objective",
        "claygraph.sweeps",
        "claygraph.variants",
    },
    "claygraph/cli.py": RUN
    | {"claygraph.composing", "claygraph.listing", "claygraph.commands", "claygraph.help", "claygraph.explain"}
    | {"claygraph.planning", "claygraph.drawing"},
    **{f"claygraph/diffusion/{file.name}": DIFFUSION for file in (ROOT / "claygraph/diffusion").glob("*.py")},
    **{f"stages/{file.name}": DIFFUSION for file in (ROOT / "stages").glob("*.py")},
}


def ours(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    seen = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in package if (ROOT / (name.replace(".", "/") + ".py")).is_file()}
            seen |= modules or {node.module}
    return {name for name in seen if name.split(".")[0] in {"claygraph", "stages", "conf"}}


@pytest.mark.parametrize("file", ALLOWED)
def test_imports_point_down(file: str) -> None:
    assert ours(file) <= ALLOWED[file]


def test_every_core_module_has_a_place() -> None:
    modules = {f"claygraph/{file.name}" for file in (ROOT / "claygraph").glob("*.py")}
    assert modules - set(ALLOWED) == {"claygraph/__init__.py", "claygraph/__main__.py"}


@pytest.mark.parametrize("arguments", [["--help"], ["sampler.stesp=6"], ["plan"], ["stages"]])
def test_nothing_heavy_is_imported_before_a_run(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom claygraph.cli import main\nmain(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'cv2', 'onnxruntime', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
