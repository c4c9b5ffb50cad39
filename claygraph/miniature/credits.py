"""Step `credits`: one line of credit for every training photo, beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

HEAD = """# Credits

Every photo the bundled weights were trained on: where it is packaged, its licence, its author, where it came from. What
else was used, and for what, is in [CARD.md](CARD.md). Written by `python -m claygraph.miniature.train credits`.

| picture | licence | author | origin |
|---|---|---|---|
"""


def write_credits(work: Path, file: Path) -> None:
    """Write the table from the `sources.json` of a work folder."""
    photos = json.loads((work / "sources.json").read_text(encoding="utf-8"))["photos"]
    rows = [" | ".join(_cell(photo[key]) for key in ("package", "licence", "author", "origin")) for photo in photos]
    file.write_text(HEAD + "".join(f"| {row} |\n" for row in rows), encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "/").strip() or "not stated"
