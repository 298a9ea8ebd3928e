"""Does denoising ever make a movie worse? `python -m evaluation.harm` prints raw and denoised stSNR from -10 to 40 dB.

Held-out scenes, the noise of the challenge's level 1 made weaker or stronger; a table for docs/quality.md. Exit status 1
where an output scores below its recording.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from denoise.inference import Settings, denoise_movie
from evaluation.benchmark import WEIGHTS, ArrayMovie
from evaluation.metrics import score
from model import UNet3D, load_model
from simulation import FIRST_EVALUATION_SEED, LEVELS, challenge_scene, different_scene, noisy

FRAMES, SIZE = 500, 128
TARGETS = range(-10, 41, 5)  # dB, of the recording
LEVEL_1 = 7.3  # dB, of a recording of the challenge's level 1
SCENES = {
    "challenge": partial(challenge_scene, FIRST_EVALUATION_SEED),
    "fast, 60 Hz": partial(different_scene, "fast-60hz", FIRST_EVALUATION_SEED),
    "one-photon": partial(different_scene, "one-photon", FIRST_EVALUATION_SEED),
}


def scores(clean: np.ndarray, target: int, model: UNet3D) -> tuple[float, float]:
    """stSNR in dB of a recording of about `target` dB, and of its denoised movie."""
    factor = 10 ** ((LEVEL_1 - target) / 10)
    gain, read_variance = (factor * value for value in LEVELS[1])
    movie = noisy(clean, gain, read_variance, np.random.default_rng([FIRST_EVALUATION_SEED, target + 100]))
    parts: list[np.ndarray] = []
    denoise_movie(ArrayMovie(movie), model, Settings(), parts.append, lambda *_: None)
    return score(clean, movie)["stsnr"], score(clean, np.concatenate(parts))["stsnr"]


def rows(scenes: list[str], targets: list[int], model: UNet3D) -> Iterator[tuple[str, float, float]]:
    for name in scenes:
        clean = SCENES[name](FRAMES, SIZE).clean()
        for target in targets:
            yield name, *scores(clean, target, model)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.harm", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--targets", nargs="+", type=int, default=list(TARGETS), help="dB of the recordings")
    options = parser.parse_args()
    model = load_model(WEIGHTS, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    worst = float("inf")
    print("| scene | recording | denoised | gain |\n|---|---|---|---|")
    for name, before, after in rows(options.scenes, options.targets, model):
        print(f"| {name} | {before:.2f} | {after:.2f} | {after - before:+.2f} |", flush=True)
        worst = min(worst, after - before)
    print(f"\nleast gain: {worst:+.2f} dB")
    return 0 if worst >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
