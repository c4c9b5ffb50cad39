"""The text of ``--help``, made from the shipped configs. Imports nothing heavier than YAML."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"

SUBCOMMANDS = {
    "run": "make the pictures (this is what happens without a sub-command)",
    "plan": "show what would run, in which batches, how long and with what; loads no weights",
    "graph": "print the wiring; graph --format mermaid, dot or svg",
    "stages": "print every stage there is; stages NAME prints one in full",
    "status": "status DIR tells how far the run or sweep in a folder got",
    "store": "store [ls|gc|gc all|verify]: what is kept of earlier runs; make room; check all of it",
    "report": "report DIR makes the report of a sweep again: report.html, contact_sheet.png, results.csv",
    "replay": "replay PICTURE [out=DIR] makes a picture again by the recipe in it, and compares",
    "help": "print this",
}

ADDED = ("ablation", "sweep")
"""Config groups that say what a sweep is."""

KNOBS = {
    "image": "a file, a folder, a glob, or a list of them",
    "out": "the folder for pictures and run.json",
    "sampler.steps": "denoising steps",
    "sampler.denoise": "how much of the picture is made anew, 0 to 1",
    "sampler.cfg": "classifier-free guidance; 1 leaves the negative prompt out",
    "sampler.seed": "the noise",
    "lora.clay.model": "strength of a LoRA on the UNet (lora.clay.clip: on the text encoders)",
    "ip_adapter.style": "strength of the style picture (ip_adapter.composition: of the composition)",
    "controlnet.strength": "how strictly edges are kept",
    "prompt.text": "words after the tags; (word:1.2) weighs one",
    "device": "auto, cpu, cuda, mps",
    "store": "the folder that results are kept in; null keeps none",
    "batch": "the most calls that share one forward pass",
}

EXAMPLES = {
    "python -m claygraph": "the bundled photo through the bundled miniature model",
    "python -m claygraph image=me.jpg out=clay": "your photo; the result goes to the folder clay",
    "python -m claygraph image=holiday/ tagger=vit edges=scharr sampler.steps=6": "a folder, other parts",
    "python -m claygraph image=me.jpg preset=juggernaut_x_hyper models=weights": "real SDXL weights",
    "python -m claygraph -m sampler.cfg=1,2,4 lora.clay.model=0.4,1": "a sweep: six pictures, one graph",
}


def help_text() -> str:
    """Sub-commands, config groups with their choices, the main knobs and five examples."""
    return "\n".join(
        [
            "claygraph: pictures into clay, through a graph of typed stages.",
            "",
            "usage: python -m claygraph [sub-command] [-m] [GROUP=CHOICE] [KEY=VALUE] [+NEW=VALUE] ...",
            "",
            *_section("sub-commands", SUBCOMMANDS),
            *_section("config groups", {spelled(group): ", ".join(choices(group)) for group in groups()}),
            *_section("main knobs", KNOBS),
            *_section("examples", EXAMPLES),
            "flags: -m (--multirun) runs every combination; --config-dir DIR adds your own configs; --cfg job prints",
            "the composed config. Flags stand before overrides. exit codes: 0 all done, 1 some pictures failed (the",
            "others are written), 2 the request was wrong. HYDRA_FULL_ERROR=1 shows where an error came from.",
        ]
    )


def _section(title: str, entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries))
    if width > 40:
        return [f"{title}:", *(f"  {name}\n      {text}" for name, text in entries.items()), ""]
    return [f"{title}:", *(f"  {name:{width}}  {text}" for name, text in entries.items()), ""]


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted(folder.name for folder in conf_folder().iterdir() if folder.is_dir() and list(folder.glob("*.yaml")))


def spelled(group: str) -> str:
    """A group as an override names it: with ``+`` where the default graph has none of it."""
    return f"+{group}" if group in ADDED else group


def choices(group: str) -> list[str]:
    """Names of a group's choices."""
    return sorted(file.stem for file in (conf_folder() / group).glob("*.yaml"))


def conf_folder() -> Path:
    """Where the shipped configs lie: beside this package in a wheel, at the top of a checkout."""
    beside = Path(__file__).parent / "conf"
    return beside if beside.is_dir() else CONF
