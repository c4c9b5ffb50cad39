"""Step `fetch`: download the openly licensed packages and unpack them below the work folder."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

NPM = (
    "@lobehub/fluent-emoji-3d@1.1.0",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "unicode-emoji-json@0.9.0",
    "emojibase-data@17.0.0",
)
DEBIAN = ("gcompris-qt-data", "opencv-doc", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers")
WHEELS = ("scikit-image==0.26.0", "scikit-learn==1.9.1")


def fetch(work: Path) -> None:
    """Download every source package that is not yet below `work/data`; needs npm, apt-get and dpkg-deb."""
    for kind, packages, get in (("npm", NPM, _npm), ("deb", DEBIAN, _debian), ("pip", WHEELS, _wheel)):
        for package in packages:
            _once(work / "data" / kind / _folder(package), package, get)


def _folder(package: str) -> str:
    return package.strip("@").replace("/", "-").replace("==", "-").replace("@", "-")


def _once(into: Path, package: str, get: Callable[[str, Path], None]) -> None:
    """Run `get` into a folder beside `into` and rename it, so that a half-done download is never taken for a whole."""
    if into.exists():
        return
    part = into.with_name(into.name + ".part")
    subprocess.run(["rm", "-rf", str(part)], check=True)
    part.mkdir(parents=True)
    print(f"fetch: {into.name}", flush=True)
    get(package, part)
    part.rename(into)


def _npm(package: str, into: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", package], cwd=into, check=True)
    for archive in into.glob("*.tgz"):
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")


def _debian(package: str, into: Path) -> None:
    subprocess.run(["apt-get", "download", package], cwd=into, check=True)
    for archive in into.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(into)], check=True)


def _wheel(package: str, into: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", package, "-d", str(into)], check=True)
    for archive in into.glob("*.whl"):
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(into, [n for n in wheel.namelist() if "/data/" in n or "/images/" in n])
