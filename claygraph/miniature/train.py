"""`python -m claygraph.miniature.train PART|all`: make the miniature, each part on those before it.

Finished parts are kept and unfinished ones resumed; `--reuse PART` takes a part from the bundled weights instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from claygraph.miniature import WEIGHTS

MINUTES = {
    "vae": 22.0,
    "image_encoder": 8.0,
    "base": 100.0,
    "clay": 60.0,
    "toy": 15.0,
    "taggers": 8.0,
    "classifier": 6.0,
}
"""Training time in minutes of one CPU core for each part; more helps everywhere."""
REUSABLE = ("vae", "image_encoder", "base", "lora_clay", "lora_toy")
Minutes = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts in their order."""
    options = _parser().parse_args(arguments)
    minutes = MINUTES | dict(options.minutes)
    options.work.mkdir(parents=True, exist_ok=True)
    for part, run in PARTS.items():
        if part in options.part or "all" in options.part:
            run(options.work, options.weights, minutes)
            if part in MINUTES:
                _plot(options.work)
        if part == "fetch":  # what is reused builds on its words
            _reuse(options.work, options.weights, options.reuse)
    return 0


def _reuse(work: Path, weights: Path, parts: Sequence[str]) -> None:
    if parts:
        from claygraph.miniature.reuse import reuse

        for part in parts:
            reuse(work, weights, part)


def _plot(work: Path) -> None:
    from claygraph.miniature.losses import plot

    plot(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m claygraph.miniature.train", description=__doc__)
    parts, budgets = ", ".join(PARTS), ", ".join(f"{k}={v:g}" for k, v in MINUTES.items())
    parser.add_argument("part", nargs="+", choices=["all", *PARTS], metavar="part", help=f"all, or any of {parts}")
    work = Path("miniature-work")
    parser.add_argument(
        "--work", type=Path, default=work, help=f"folder for data and checkpoints, 3 GB (default {work})"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that export writes to")
    parser.add_argument(
        "--reuse",
        action="append",
        default=[],
        choices=REUSABLE,
        metavar="PART",
        help=f"take a part from the weights, as it is or to train on from there: {', '.join(REUSABLE)}",
    )
    parser.add_argument(
        "--minutes",
        type=_budget,
        action="append",
        default=[],
        metavar="PART=N",
        help=f"training time; default {budgets}",
    )
    return parser


def _budget(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=MINUTES; parts are {', '.join(MINUTES)}")
    return name, float(value)


def _fetch(work: Path, _weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature import pairs
    from claygraph.miniature.fetch import fetch
    from claygraph.miniature.sources import sources

    fetch(work)
    sources(work)
    for make in (pairs.pictures, pairs.pairs, pairs.held_out, pairs.twins):
        make(work)


def _vae(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_vae import train_decoder, train_vae

    train_vae(work, minutes["vae"])
    train_decoder(work, minutes["vae"])


def _latents(work: Path, _weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.latents import latents

    latents(work)


def _image_encoder(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.image_encoder import train_image_encoder

    train_image_encoder(work, minutes["image_encoder"])


def _base(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_base import train_base

    train_base(work, minutes["base"])


def _lora(name: str) -> Callable[[Path, Path, Minutes], None]:
    def run(work: Path, _weights: Path, minutes: Minutes) -> None:
        from claygraph.miniature.train_lora import train_lora

        train_lora(work, name, minutes[name])

    return run


def _taggers(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.train_taggers import NAMES, train_tagger

    for name in NAMES:
        train_tagger(work, name, minutes["taggers"])


def _classifier(work: Path, _weights: Path, minutes: Minutes) -> None:
    from claygraph.miniature.classifier import train_classifier

    train_classifier(work, minutes["classifier"])


def _export(work: Path, weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.export import export

    export(work, weights)


def _credits(work: Path, weights: Path, _minutes: Minutes) -> None:
    from claygraph.miniature.credits import write_credits

    write_credits(work, weights.parent / "CREDITS.md")


PARTS: dict[str, Callable[[Path, Path, Minutes], None]] = {
    "fetch": _fetch,
    "vae": _vae,
    "latents": _latents,
    "image_encoder": _image_encoder,
    "base": _base,
    "clay": _lora("clay"),
    "toy": _lora("toy"),
    "taggers": _taggers,
    "classifier": _classifier,
    "export": _export,
    "credits": _credits,
}

if __name__ == "__main__":
    raise SystemExit(main())
