"""Our side: the command line's own path, with weights kept from run to run and nothing kept of results."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.by_hand import Settings
from claygraph.composing import compose_and_run
from claygraph.execute import execute, exit_code
from claygraph.jobs import Job
from claygraph.memory import Memory

KNOBS = {
    "lora": "lora.clay.model",
    "control": "controlnet.strength",
    "image": "ip_adapter.style",
    "cfg": "sampler.cfg",
    "steps": "sampler.steps",
    "denoise": "sampler.denoise",
    "seed": "sampler.seed",
    "sampler": "sampler.sampler_name",
    "text": "prompt.text",
}
SAME = [  # what diffusers does without more ado: no weights of tags, one strength for both of the adapter's blocks
    "prompt.weigh_tags=false",
    "ip_adapter.composition=${ip_adapter.style}",
]


def knob(name: str, *values: object) -> str:
    """The override that gives a setting of ``Settings`` these values."""
    return f"{KNOBS[name]}={','.join(_quoted(value) for value in values)}"


def _quoted(value: object) -> str:
    return "'" + value.replace("'", "\\'") + "'" if isinstance(value, str) else str(value)


def overrides(settings: Settings) -> list[str]:
    """The overrides that make our picture the one made by hand with these settings."""
    return [*SAME, *(knob(name, getattr(settings, name)) for name in KNOBS)]


class Ours:
    """claygraph in this process, its weights kept."""

    def __init__(self, size: int, device: str = "cpu", model: Sequence[str] = (), batch: int = 8) -> None:
        self.memory = Memory(device, batch=batch)
        alike = ("store=null", "metric=none")  # by hand nothing is kept and nothing scored
        self.fixed = [f"photo.size={size}", f"device={device}", f"batch={batch}", *alike, *model]

    def make(self, arguments: Sequence[str], out: Path) -> Path:
        """Compose, plan and run a request; raise if a picture of it fails. The folder of the pictures."""

        def command(jobs: Sequence[Job]) -> int:
            results = execute(jobs, self.memory)
            if errors := [result.error for result in results if result.error is not None]:
                raise errors[0]
            return exit_code(results)

        flags, rest = [each for each in arguments if each == "-m"], [each for each in arguments if each != "-m"]
        with contextlib.redirect_stderr(io.StringIO()):
            compose_and_run(command, [*flags, f"out={out}", *self.fixed, *rest])
        return out


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="claygraph-benchmark-") as folder:
        yield Path(folder)
