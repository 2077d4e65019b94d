#!/usr/bin/env python3
"""Changes of the corpus for as long as you like. Needs root (it unpacks tars), in the suite's environment.

Usage: sudo build/venv/bin/python tests/fuzz/longer.py [--target NAME] [--seconds N] [--seed N]

What fails is written to a file, whose name is printed: put it into the corpus.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "guest-agent")]

from fuzz.mutation import mutated  # noqa: E402
from fuzz.targets import TARGETS, corpus  # noqa: E402

SLOW = 5.0  # seconds for one input that are told


def main() -> int:
    """1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    asked = parser.parse_args()
    return max(fuzz(target, asked.seconds, asked.seed) for target in asked.target or list(TARGETS))


def fuzz(target: str, seconds: float, seed: int) -> int:
    """Until the time is over or something fails."""
    files, dice = corpus(target), random.Random(seed)
    count, read, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data, start = mutated(files, dice), time.monotonic()
        try:
            read += TARGETS[target](data)
        except Exception:
            traceback.print_exc()
            with tempfile.NamedTemporaryFile(prefix=f"{target}-", delete=False) as kept:
                kept.write(data)
            print(f"{target}: failed, seed {seed}, input {count}: {kept.name}")
            return 1
        count += 1
        if time.monotonic() - start > SLOW:
            print(f"{target}: slow, seed {seed}, input {count}: {data[:200]!r}")
    print(f"{target}: {count} inputs, {read} of them read, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
