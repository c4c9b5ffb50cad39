"""`python -m claygraph.miniature [step ...]`: make the miniature from nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from claygraph.miniature import WEIGHTS

MINUTES = {
    "vae": 22.0,
    "base": 26.0,
    "controlnet": 17.0,
    "lora": 22.0,
    "toy": 4.0,
    "image_encoder": 7.0,
    "ip_adapter": 8.0,
    "taggers": 10.0,
}
"""Training time in minutes of one CPU core for each part; more helps everywhere."""
Minutes = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen steps in order; finished parts are kept, unfinished ones resumed."""
    options = _parser().parse_args(arguments)
    minutes = MINUTES | dict(options.minutes)
    options.work.mkdir(parents=True, exist_ok=True)
    for step in options.step or STEPS:
        STEPS[step](options.work, options.weights, minutes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m claygraph.miniature", description=__doc__)
    steps, parts = ", ".join(STEPS), ", ".join(f"{k}={v:g}" for k, v in MINUTES.items())
    parser.add_argument("step", nargs="*", choices=[[], *STEPS], metavar="step", help=f"default all: {steps}")
    work = Path("miniature-work")
    parser.add_argument(
        "--work", type=Path, default=work, help=f"folder for data and checkpoints, 2 GB (default {work})"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that export writes to")
    parser.add_argument(
        "--minutes", type=_budget, action="append", default=[], metavar="PART=N", help=f"training time; default {parts}"
    )
    return parser


def _budget(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=MINUTES; parts are {', '.join(MINUTES)}")
    return name, float(value)


def _fetch(work: Path, _weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.fetch import fetch
    from claygraph.miniature.pairs import pairs, twins
    from claygraph.miniature.sources import sources

    fetch(work)
    sources(work)
    pairs(work)
    pairs(work, count=48, seed=99, held_out=True)
    twins(work)


def _vae(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.latents import latents
    from claygraph.miniature.train_vae import train_decoder, train_vae

    train_vae(work, minutes["vae"])
    latents(work)
    train_decoder(work, minutes["vae"])


def _base(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_base import train_base

    train_base(work, minutes["base"])


def _taggers(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_taggers import NAMES, train_tagger

    for name in NAMES:
        train_tagger(work, name, minutes["taggers"])


def _controlnet(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_controlnet import train_controlnet

    train_controlnet(work, minutes["controlnet"])


def _lora(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_lora import train_lora

    train_lora(work, "clay", minutes["lora"])
    train_lora(work, "toy", minutes["toy"])


def _ip_adapter(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.image_encoder import train_image_encoder
    from claygraph.miniature.train_ip_adapter import train_ip_adapter

    train_image_encoder(work, minutes["image_encoder"])
    train_ip_adapter(work, minutes["ip_adapter"])


def _export(work: Path, weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.export import export

    export(work, weights)


def _credits(work: Path, weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.credits import write_credits

    write_credits(work, weights.parent / "CREDITS.md")


def _evaluate(work: Path, weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.evaluate import evaluate

    evaluate(work, weights)


STEPS: dict[str, Callable[[Path, Path, Minutes], None]] = {
    "fetch": _fetch,
    "vae": _vae,
    "base": _base,
    "taggers": _taggers,
    "controlnet": _controlnet,
    "lora": _lora,
    "ip_adapter": _ip_adapter,
    "export": _export,
    "credits": _credits,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    raise SystemExit(main())
