"""The figures of the evaluation, part by part, each with the least it should be."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from claygraph.miniature import WEIGHTS, measures
from claygraph.miniature import tags as vocabulary
from claygraph.miniature.rig import Run, make, write

Pixels = npt.NDArray[np.uint8]
SMALL = ("photo=area", "photo.size=128")
HALF = (*SMALL, "sampler.denoise=0.5")
NOTHING = ("lora=none", "ip_adapter=none", "edges=none", "controlnet=none", "tagger=none")
TAGGERS = {"colour": 0.85, "style": 0.95, "group": 0.4, "agree": 0.6}
LEAN = """import os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen([sys.executable, "-m", "claygraph", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - begun, usage.ru_maxrss)"""
"""Starts a process and measures it: a child's peak begins with what its parent takes, so that must be little."""
FREE = (*SMALL, "sampler.denoise=1.0", "prompt=plain")


@dataclass(frozen=True)
class Figure:
    """A measured value and the least or most it should be (None where it is only reported)."""

    part: str
    what: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it keeps its bounds."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        """The bounds in words."""
        least = "" if self.least is None else f">= {self.least:g}"
        return " ".join(filter(None, (least, "" if self.most is None else f"<= {self.most:g}")))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"part": self.part, "what": self.what, "value": self.value, "bound": self.bound, "met": self.met}


@dataclass
class Bench:
    """Held-out photographs [N,128,128,3] with their clay versions, and what has been made of them so far."""

    work: Path
    photos: Pixels
    clay: Pixels
    seeds: int = 3
    pictures: dict[str, Pixels] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[str]:
        """The photographs as files."""
        return write(self.photos, Path(tempfile.mkdtemp()), "photo")

    @cached_property
    def style(self) -> measures.StyleScore:
        """The style classifier."""
        return measures.StyleScore(WEIGHTS / "classifier")

    def made(self, title: str, *overrides: str) -> Pixels:
        """Every photograph with every seed through the graph; made once for each title."""
        if title not in self.pictures:
            runs = [Run(file, overrides, seed) for seed in range(self.seeds) for file in self.files]
            self.pictures[title] = make(runs)
        return self.pictures[title]

    def repeated(self, pictures: Pixels) -> Pixels:
        """The pictures once for each seed, as `made` orders them."""
        return np.concatenate([pictures] * self.seeds)


def vae(bench: Bench) -> list[Figure]:
    """Encoded and decoded, with nothing between: at denoise 0 the sampler gives back what it gets."""
    plain = (*NOTHING, "prompt=plain", "sampler.denoise=0", "photo=area")
    found = []
    for side in (128, 256):
        held = np.load(bench.work / f"held_out/{side}x{side}.npz")
        for kind, name in (("picture", "photos"), ("clay", "clay")):
            files = write(held[kind][: len(bench.photos)], Path(tempfile.mkdtemp()), kind)
            out = make([Run(file, (*plain, f"photo.size={side}")) for file in files])
            value = measures.psnr(out, held[kind][: len(files)])
            found.append(Figure("VAE", f"PSNR of {name}, {side} px", value, least=30))
    return found


def clay(bench: Bench) -> list[Figure]:
    """The clay LoRA at three strengths with the ControlNet on, and how near the whole run comes to its target."""
    score = {s: bench.style.of("claymation", _at(bench, s)) for s in (0.0, 0.5, 1.0)}
    soft = measures.blurred(bench.photos)
    return [
        Figure("classifier", "clay score of photos", bench.style.of("claymation", bench.photos)),
        Figure("classifier", "clay score of the rendered clay", bench.style.of("claymation", bench.clay)),
        Figure("classifier", "clay score of blurred photos", bench.style.of("claymation", soft)),
        Figure("clay LoRA", "clay score at 1", score[1.0], least=0.8),
        Figure("clay LoRA", "clay score at 0.5", score[0.5], least=score[0.0], most=score[1.0]),
        Figure("clay LoRA", "clay score at 0", score[0.0], most=0.45),
        Figure("clay LoRA", "clay score, 1 minus 0", score[1.0] - score[0.0], least=0.3),
        Figure("whole run", "PSNR to the clay", measures.psnr(_at(bench, 1.0), bench.repeated(bench.clay)), least=23),
        Figure("whole run", "PSNR of the photo to the clay", measures.psnr(bench.photos, bench.clay)),
    ]


def _at(bench: Bench, strength: float) -> Pixels:
    both = (f"lora.clay.model={strength}", f"lora.clay.clip={strength}")
    return bench.made(f"clay LoRA {strength:g}, denoise 0.5", *HALF, *both)


def toy(bench: Bench) -> list[Figure]:
    """Whether the classifier tells the two LoRAs' pictures apart."""
    toys = bench.made("toy LoRA 1, denoise 0.5", *HALF, "lora=toy")
    columns = [bench.style.classes.index(name) for name in ("claymation", "3d")]
    right = [bench.style(p)[:, columns].argmax(1) == wanted for wanted, p in enumerate((_at(bench, 1.0), toys))]
    return [Figure("toy LoRA", "told apart from clay", float(np.concatenate(right).mean()), least=0.85)]


def controlnet(bench: Bench) -> list[Figure]:
    """What the hint adds to the agreement of edges, with the LoRA and without."""
    found = []
    for name, lora in (("on", ()), ("off", ("lora=none",))):
        on, off = (
            bench.made(f"ControlNet {s}, LoRA {name}, denoise 0.7", *SMALL, "sampler.denoise=0.7", *lora, strength)
            for s, strength in ((1, "controlnet.strength=1"), (0, "controlnet.strength=0"))
        )
        with_hint, without = (measures.edge_f1(p, bench.repeated(bench.photos)) for p in (on, off))
        found.append(Figure("ControlNet", f"edge F1 with the hint, LoRA {name}", with_hint))
        found.append(Figure("ControlNet", f"edge F1 gained, LoRA {name}", with_hint - without, least=0.35))
    return found


def ip_adapter(bench: Bench) -> list[Figure]:
    """Pictures drawn from noise under another photograph as style or composition."""
    plain = (*FREE, "lora=none", "edges=none", "controlnet=none", "tagger=none", "prompt.text=photo")
    weights = {"style": "style transfer", "composition": "composition"}
    without = bench.made("from noise", *plain, "ip_adapter=none")
    drawn = {
        name: bench.made(f"from noise, {name} of the photo", *plain, f"ip_adapter.weight_type={kind}", strength)
        for name, kind in weights.items()
        for strength in [f"ip_adapter.{name}=1"]
    }
    photos = bench.repeated(bench.photos)
    error = measures.colour_error(drawn["style"], photos) / measures.colour_error(without, photos)
    gain = measures.layout_agreement(drawn["composition"], photos) - measures.layout_agreement(without, photos)
    return [
        Figure("IP-Adapter", "colour error with the style picture, share of without", error, most=0.65),
        Figure("IP-Adapter", "layout agreement gained by the composition picture", gain, least=0.1),
    ]


def text(bench: Bench) -> list[Figure]:
    """How often the style or colour of a picture drawn from noise is the one the prompt names."""
    plain = (*FREE, *NOTHING, "sampler.cfg=3")
    styles = {name: _drawn(bench, plain, name) for name in ("photo", "3d", "flat")}
    named = [bench.style(p).argmax(1) == bench.style.classes.index(n) for n, p in styles.items()]
    hues = [hue in vocabulary.colour_tags(p) for hue in vocabulary.HUES for p in _drawn(bench, plain, f"photo, {hue}")]
    return [
        Figure("text", "style words obeyed", float(np.concatenate(named).mean()), least=0.75),
        Figure("text", "colour words obeyed", float(np.mean(hues)), least=0.75),
    ]


def _drawn(bench: Bench, plain: Sequence[str], words: str) -> Pixels:
    """A tenth of the pictures, drawn under these words."""
    files, title = bench.files[: max(1, len(bench.files) // 10)], f"from noise: {words}"
    runs = [Run(f, (*plain, f"prompt.text='{words}'"), seed) for seed in range(bench.seeds) for f in files]
    bench.pictures[title] = make(runs)
    return bench.pictures[title]


def taggers(bench: Bench) -> list[Figure]:
    """Mean average precision on pictures of every kind from held-out sources, and how often the two agree."""
    from claygraph.miniature.judge_taggers import judge

    judged = judge(bench.work, WEIGHTS / "tagger")
    return [Figure("taggers", what, value, least=TAGGERS[what.split()[-1]]) for what, value in judged.items()]


def speed(_bench: Bench) -> list[Figure]:
    """One picture at the default settings from a cold process, nothing kept of earlier ones, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", LEAN, f"out={folder}", "store=null"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if told[0] != "0":
        raise RuntimeError("python -m claygraph failed; run it by itself to see why.")
    gigabytes = int(told[2]) * 1024 / 1e9
    return [Figure("speed", "seconds", float(told[1]), most=10), Figure("speed", "memory, GB", gigabytes, most=1.2)]


def size(_bench: Bench) -> list[Figure]:
    """All weights as a wheel packs them."""
    packed = sum(len(zlib.compress(f.read_bytes(), 6)) for f in WEIGHTS.rglob("*") if f.is_file())
    return [Figure("size", "weights compressed, MB", packed / 1e6, most=48)]
