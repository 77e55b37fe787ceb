"""What `import pyro_arbuf` costs above `import pyro`.

    python benchmarks/imports.py

CPU seconds, user and system, of fresh processes that import one of them and end; runs of both take turns, and the
median of each is taken. Prints a table with the libraries that each loads, then one JSON line.
"""

import json
import os
import resource
import statistics
import subprocess
import sys

import tyro

PACKAGES = ("pyro", "pyro_arbuf")
HEAVY = ("accelerate", "arviz", "huggingface_hub", "matplotlib", "pandas", "scipy", "tyro", "xarray")  # not for import


def cpu_seconds(code: str) -> float:
    """CPU seconds of a fresh process that runs some code with one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def loaded(package: str) -> tuple[int, list[str]]:
    """How many modules a package loads, and which heavy libraries."""
    code = f"import sys, {package}; print(len(sys.modules), *(name for name in {HEAVY} if name in sys.modules))"
    number, *names = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(number), names


def main(repeats: int = 5) -> None:
    """Measures imports.

    Args:
        repeats: Processes of each package; one more of each, which fills the caches of files, is not counted.
    """
    times: dict[str, list[float]] = {package: [] for package in PACKAGES}
    for _ in range(repeats + 1):
        for package in PACKAGES:
            times[package].append(cpu_seconds(f"import {package}"))
    medians = {package: statistics.median(seconds[1:]) for package, seconds in times.items()}
    print(f"CPU seconds of a fresh process, median of {repeats} (least to most)")
    for package, median in medians.items():
        number, names = loaded(package)
        spread = f"{min(times[package][1:]):.2f} to {max(times[package][1:]):.2f}"
        print(
            f"import {package:12s}{median:6.2f} ({spread}), {number} modules; heavy ones: {', '.join(names) or 'none'}"
        )
    ratio = medians["pyro_arbuf"] / medians["pyro"]
    print(f"ratio{ratio:20.3f}")
    print(
        json.dumps(
            {f"import {package}": round(median, 3) for package, median in medians.items()} | {"ratio": round(ratio, 3)}
        )
    )


if __name__ == "__main__":
    tyro.cli(main)
