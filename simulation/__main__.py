"""Writes a simulated recording and its truth: python -m simulation --out movie.tif --clean clean.tif."""

import argparse
import sys
from pathlib import Path

import numpy as np
import tifffile

from simulation import DIFFERENT_KINDS, LEVELS, challenge_scene, different_scene, digitize, noisy


def main(arguments: list[str] | None = None) -> int:
    """Simulate a movie as the command line says; return 0."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="noisy movie, int16 TIFF")
    parser.add_argument("--clean", type=Path, help="clean movie, float32 TIFF")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument(
        "--level", type=int, default=1, choices=sorted(LEVELS), help="noise level of the challenge"
    )
    parser.add_argument("--kind", default="challenge", choices=("challenge", *DIFFERENT_KINDS))
    options = parser.parse_args(arguments)
    if options.frames < 1 or options.size < 1 or options.seed < 0:
        parser.error("--frames and --size must be at least 1, --seed at least 0")
    _simulate(options)
    return 0


def _simulate(options: argparse.Namespace) -> None:
    if options.kind == "challenge":
        scene = challenge_scene(options.seed, options.frames, options.size)
    else:
        scene = different_scene(options.kind, options.seed, options.frames, options.size)
    clean = scene.clean()  # (T, Y, X)
    gain, read_variance = LEVELS[options.level]
    movie = noisy(clean, gain, read_variance, np.random.default_rng([options.seed, options.level]))
    _write(options.out, digitize(movie, np.int16, clip_at_zero=False))
    if options.clean:
        _write(options.clean, clean)


def _write(path: Path, movie: np.ndarray) -> None:
    # The challenge's platform needs a resolution unit; one micrometre a pixel
    tifffile.imwrite(path, movie, photometric="minisblack", metadata={"axes": "TYX"}, resolution=(1e4, 1e4),
                     resolutionunit="CENTIMETER")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
