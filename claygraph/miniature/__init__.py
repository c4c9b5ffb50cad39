"""The bundled miniature: a small SDXL-shaped model family in real file formats, and the recipe that trains it."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weight files, in the layout that `CARD.md` lists."""
