"""How long a newcomer waits for help and for a wiring error, beside what importing a diffusers pipeline costs.

python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

CASES = {
    "import a diffusers pipeline": ["-c", "from diffusers import StableDiffusionXLControlNetImg2ImgPipeline"],
    "python -m claygraph --help": ["-m", "claygraph", "--help"],
    "misspelt key": ["-m", "claygraph", "sampler.stesp=6"],
    "unknown choice": ["-m", "claygraph", "edges=cany"],
    "missing input": ["-m", "claygraph", "~encode"],
    "wrong type": ["-m", "claygraph", "+edges.inputs.photo=prompt"],
    "cycle": ["-m", "claygraph", "+encode.inputs.photo=decode"],
}


def seconds(arguments: list[str]) -> float:
    """Wall-clock seconds of one fresh process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - begun


def main() -> None:
    """Print medians, and each as a ratio of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {runs}")
    base = None
    for name, arguments in CASES.items():
        median = statistics.median(seconds(arguments) for _ in range(runs))
        base = base or median
        print(f"{name:30} {median:6.2f} s   {median / base:5.2f} x")


if __name__ == "__main__":
    main()
