"""Score a denoised movie against the clean one (`python -m evaluation.score clean.tif output.tif`)."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

import numpy as np

from denoise.movies import MovieError
from denoise.reading import open_movie
from evaluation.metrics import score


def read(path: Path) -> np.ndarray:
    """Read a whole movie (T, Y, X) in the file's dtype. Raises MovieError."""
    with open_movie(path) as movie:
        return movie.read(0, movie.info.shape[0])


def table(values: dict[str, float]) -> str:
    """Format a score as four lines of text, in dB, with standard deviations over frames (s) and pixels (t)."""
    lines = ["dB       spatial        temporal       mean"]
    for name in ("snr", "psnr"):
        spatial, temporal = (f"{values[a + name]:6.2f} ± {values[a + name + '_std']:<5.2f}" for a in "st")
        lines.append(f"{name.upper():<6} {spatial} {temporal} {values['st' + name]:6.2f}")
    return "\n".join([*lines, f"stSNR = {values['stsnr']:.4f} dB"])


def strict_json(values: dict[str, float]) -> str:
    """Return values as JSON; NaN and infinity, which the standard does not allow, become null."""
    return json.dumps(
        {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}, indent=2
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.score", description=__doc__)
    parser.add_argument("clean", type=Path, help="clean movie (T, Y, X)")
    parser.add_argument("output", type=Path, help="denoised movie of the same shape")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args(arguments)
    try:
        values = score(read(options.clean), read(options.output))
    except MovieError as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"{options.output}: cannot be scored against {options.clean}: {error}", file=sys.stderr)
        return 1
    try:
        print(strict_json(values) if options.json else table(values), flush=True)
    except BrokenPipeError:  # e.g. by `head`; without a new stdout Python would fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
