"""List the benchmarks, each with the first line of what it says of itself."""

from __future__ import annotations

import ast
from pathlib import Path

SHARED = ("__init__", "__main__", "full_size", "measure", "by_hand", "models", "photos", "ours", "sides")


def listed() -> dict[str, str]:
    """First lines of the modules that can be run, by name; read, not imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items() if name not in SHARED}


def main() -> None:
    """Print the list."""
    for name, about in listed().items():
        print(f"python -m benchmarks.{name:10} {about}")


if __name__ == "__main__":
    main()
