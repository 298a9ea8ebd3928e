"""Make the movie of --demo, which lies in the image: `python -m simulation.example example/example.tif`.

A scene as the challenge's, at its noise level 2, in steps of 100 units so that it stays below 2 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile

from simulation.noise import LEVELS, digitize, noisy
from simulation.scene import FIRST_EVALUATION_SEED, challenge_scene

SEED = FIRST_EVALUATION_SEED + 200  # neither trained on nor used by the benchmark
FRAMES, SIZE, LEVEL, STEP = 200, 128, 2, 100
PIXEL, INTERVAL = 1.0, 0.1  # micrometres, seconds


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = noisy(
        challenge_scene(SEED, FRAMES, SIZE).clean(), *LEVELS[LEVEL], np.random.default_rng(SEED)
    )
    told = {"axes": "TYX", "TimeIncrement": INTERVAL, "TimeIncrementUnit": "s"}
    tifffile.imwrite(
        path,
        digitize(recording / np.float32(STEP), np.int16, clip_at_zero=False),
        photometric="minisblack",
        compression="zlib",
        compressionargs={"level": 9},
        resolution=(1e4 / PIXEL, 1e4 / PIXEL),
        resolutionunit="CENTIMETER",
        metadata=told,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
