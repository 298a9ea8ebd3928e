"""Score recordings with faults: `python -m evaluation.odd` prints their stSNR before and after denoising.

A held-out scene is recorded as the challenge's movies are. Some faults are in the illumination and are divided out of
the recording, which makes its noise uneven. Others replace some frames, and the score is that of all other frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.benchmark import WEIGHTS, denoised
from evaluation.metrics import score
from model import UNet3D, load_model
from simulation import FIRST_EVALUATION_SEED, LEVELS, challenge_scene, noisy

FRAMES, SIZE = 500, 128
TIMES = np.arange(FRAMES, dtype=np.float32)[:, None, None]
# (Y, X), distance from the centre, 1 in the corners
FROM_CENTRE = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]).astype(np.float32) / 2**0.5
IN_40_ROWS = (abs(np.arange(SIZE) - 63.5) < 20).astype(np.float32)[:, None]
ONE_IN_30 = np.arange(FRAMES) % 30 == 15  # (T,)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recording (T, Y, X)."""

    light: np.ndarray | float = 1.0  # the clean scene is multiplied by it, the noisy recording divided by it
    offset: np.ndarray | float = 0.0  # added to the recording and to the truth
    bad_frames: np.ndarray | None = None  # (T,) bool; they are replaced, and left out of the score
    replacement: Callable[[np.ndarray], np.ndarray | float] = lambda frames: frames  # of the bad frames


FAULTS = {
    "none": Fault(),
    "light in the corners a half, corrected": Fault(light=1 / (1 + FROM_CENTRE**2)),
    "light in the corners a quarter, corrected": Fault(light=1 / (1 + 3 * FROM_CENTRE**2)),
    "bleached to 0.4, corrected": Fault(light=0.4 + 0.6 * np.exp(-TIMES / 100)),
    "bleached to 0.2, corrected": Fault(light=0.2 + 0.8 * np.exp(-TIMES / 100)),
    "offset drifts by the mean brightness": Fault(offset=200 * TIMES / FRAMES),
    "one frame in 30 lit up, by 5 times the mean": Fault(
        bad_frames=ONE_IN_30, replacement=lambda frames: frames + 1000
    ),
    "one frame in 30 lit up, by 100 times the mean": Fault(
        bad_frames=ONE_IN_30, replacement=lambda frames: frames + 20000
    ),
    "40 rows of one frame in 30 lit up, by 7 times the mean": Fault(
        bad_frames=ONE_IN_30, replacement=lambda frames: frames + 1500 * IN_40_ROWS
    ),
    "shutter closed for 70 frames at first": Fault(
        bad_frames=np.arange(FRAMES) < 70, replacement=lambda frames: (frames - frames.mean(0)) / 5
    ),
    "nothing recorded for 100 frames": Fault(
        bad_frames=abs(np.arange(FRAMES) - 250) < 50, replacement=lambda _: 0.0
    ),
}


def scores(fault: Fault, level: int, model: UNet3D) -> tuple[float, float]:
    """Return the stSNR in dB of a recording with a fault, and of its denoised movie."""
    clean = challenge_scene(FIRST_EVALUATION_SEED, FRAMES, SIZE).clean()
    light = np.broadcast_to(np.float32(1) * fault.light, clean.shape).astype(np.float32)
    rng = np.random.default_rng([FIRST_EVALUATION_SEED, level])
    movie = (noisy(clean * light, *LEVELS[level], rng) / light + fault.offset).astype(np.float32)
    truth = (clean + fault.offset).astype(np.float32)
    scored = np.ones(FRAMES, bool)
    if fault.bad_frames is not None:
        movie[fault.bad_frames] = fault.replacement(movie[fault.bad_frames])
        scored = ~fault.bad_frames
    output = denoised(movie, model)
    before = score(truth[scored], movie[scored])["stsnr"]
    after = score(truth[scored], output[scored])["stsnr"]
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.odd", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    model = load_model(WEIGHTS, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print("| fault |" + "".join(f" level {level} |" for level in LEVELS))
    print("|---" * (1 + len(LEVELS)) + "|")
    for name in options.faults:
        pairs = [scores(FAULTS[name], level, model) for level in LEVELS]
        print(
            f"| {name} |" + "".join(f" {before:.2f} -> {after:.2f} |" for before, after in pairs), flush=True
        )


if __name__ == "__main__":
    main()
