"""How recordings with a fault come out: `python -m evaluation.odd` prints stSNR beside that of one without it.

A held-out scene, recorded as the challenge's movies are. Some faults are in the light, and divided out of the
recording, so that its noise is uneven; others are in some frames or pixels, and the score is that of all others.
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
FROM_CENTRE = (
    np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]).astype(np.float32) / 2**0.5
)  # 1 in corners
IN_40_ROWS = (abs(np.arange(SIZE) - 63.5) < 20).astype(np.float32)[:, None]
ONE_IN_30 = np.arange(FRAMES) % 30 == 15  # (T,)


@dataclass(frozen=True)
class Fault:
    """light: by which the scene is multiplied and the recording divided. added: to the recording, and its truth.

    spoilt: frames (T,) that become `instead` of them, and do not count.
    """

    light: np.ndarray | float = 1.0
    added: np.ndarray | float = 0.0
    spoilt: np.ndarray | None = None
    instead: Callable[[np.ndarray], np.ndarray | float] = lambda frames: frames


FAULTS = {
    "none": Fault(),
    "light in the corners a half, corrected": Fault(light=1 / (1 + FROM_CENTRE**2)),
    "light in the corners a quarter, corrected": Fault(light=1 / (1 + 3 * FROM_CENTRE**2)),
    "bleached to 0.4, corrected": Fault(light=0.4 + 0.6 * np.exp(-TIMES / 100)),
    "bleached to 0.2, corrected": Fault(light=0.2 + 0.8 * np.exp(-TIMES / 100)),
    "offset drifts by the mean brightness": Fault(added=200 * TIMES / FRAMES),
    "one frame in 30 lit up, by 5 times the mean": Fault(
        spoilt=ONE_IN_30, instead=lambda frames: frames + 1000
    ),
    "one frame in 30 lit up, by 100 times the mean": Fault(
        spoilt=ONE_IN_30, instead=lambda frames: frames + 20000
    ),
    "40 rows of one frame in 30 lit up, by 7 times the mean": Fault(
        spoilt=ONE_IN_30, instead=lambda frames: frames + 1500 * IN_40_ROWS
    ),
    "shutter closed for 70 frames at first": Fault(
        spoilt=np.arange(FRAMES) < 70, instead=lambda frames: (frames - frames.mean(0)) / 5
    ),
    "nothing recorded for 100 frames": Fault(spoilt=abs(np.arange(FRAMES) - 250) < 50, instead=lambda _: 0.0),
}


def scores(fault: Fault, level: int, model: UNet3D) -> tuple[float, float]:
    """stSNR of a recording with that fault, and of its denoised movie, in dB."""
    clean = challenge_scene(FIRST_EVALUATION_SEED, FRAMES, SIZE).clean()
    light = np.broadcast_to(np.float32(1) * fault.light, clean.shape).astype(np.float32)
    rng = np.random.default_rng([FIRST_EVALUATION_SEED, level])
    movie = (noisy(clean * light, *LEVELS[level], rng) / light + fault.added).astype(np.float32)
    truth = (clean + fault.added).astype(np.float32)
    counted = np.ones(FRAMES, bool)
    if fault.spoilt is not None:
        movie[fault.spoilt] = fault.instead(movie[fault.spoilt])
        counted = ~fault.spoilt
    output = denoised(movie, model)
    before, after = (score(truth[counted], its[counted])["stsnr"] for its in (movie, output))
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.odd", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    model = load_model(WEIGHTS, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(
        "| fault |"
        + "".join(f" level {level} |" for level in LEVELS)
        + "\n"
        + "|---" * (1 + len(LEVELS))
        + "|"
    )
    for name in options.faults:
        row = (scores(FAULTS[name], level, model) for level in LEVELS)
        print(f"| {name} |" + "".join(f" {before:.2f} -> {after:.2f} |" for before, after in row), flush=True)


if __name__ == "__main__":
    main()
