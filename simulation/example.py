"""Make the movie of --demo, which lies in the image: `python -m simulation.example example/example.tif`.

A scene like the challenge's, at its noise level 2, divided by 100 so that the file stays below 2 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile

from simulation.noise import LEVELS, digitize, noisy
from simulation.scene import FIRST_EVALUATION_SEED, challenge_scene

SEED = FIRST_EVALUATION_SEED + 200  # neither trained on nor used by the benchmark
FRAMES, SIZE, LEVEL = 200, 128, 2
STEP = 100  # units of brightness for each step of the integers in the file
PIXEL_SIZE = 1.0  # micrometres
FRAME_INTERVAL = 0.1  # seconds


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = noisy(
        challenge_scene(SEED, FRAMES, SIZE).clean(), *LEVELS[LEVEL], np.random.default_rng(SEED)
    )
    metadata = {"axes": "TYX", "TimeIncrement": FRAME_INTERVAL, "TimeIncrementUnit": "s"}
    tifffile.imwrite(
        path,
        digitize(recording / np.float32(STEP), np.int16, clip_at_zero=False),
        photometric="minisblack",
        compression="zlib",
        compressionargs={"level": 9},
        resolution=(1e4 / PIXEL_SIZE, 1e4 / PIXEL_SIZE),
        resolutionunit="CENTIMETER",
        metadata=metadata,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
