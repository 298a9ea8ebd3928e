"""Does denoising ever make a movie worse? `python -m evaluation.harm` prints raw and denoised stSNR from -10 to 40 dB.

Held-out scenes are recorded with the noise of the challenge's level 1, made weaker or stronger. In two scenes the
brightness of the whole field jumps to about five times its mean, for one frame or for all later ones. In one recording
a voxel in 200 shows another place. One scene jitters by a pixel, and one of axons moves as much while its rows are
scanned. The table is for docs/quality.md. The exit status is 1 if an output scores below its recording.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from evaluation.benchmark import WEIGHTS, denoised
from evaluation.metrics import score
from evaluation.smoothed import BEYOND, inner, moving, scanned
from model import UNet3D, load_model
from simulation import FIRST_EVALUATION_SEED, LEVELS, challenge_scene, different_scene, noisy

FRAMES, SIZE = 500, 128
TARGETS = range(-10, 41, 5)  # stSNR of the recordings, dB
LEVEL_1_STSNR = 7.3  # dB, of a recording at the challenge's level 1
JUMP = 1000.0  # counts
GLITCHES, GLITCH_SHARE = "challenge with glitches", 0.005  # of the voxels
Clean = Callable[[int, int], np.ndarray]  # frames and pixels a side -> (T, Y, X)


def challenge(frames: int, size: int) -> np.ndarray:
    return challenge_scene(FIRST_EVALUATION_SEED, frames, size).clean()


def different(kind: str, frames: int, size: int) -> np.ndarray:
    return different_scene(kind, FIRST_EVALUATION_SEED, frames, size).clean()


def jump(lasting: bool, frames: int, size: int) -> np.ndarray:
    """Make the challenge scene brighter by JUMP in its middle frame, or from there on."""
    clean, middle = challenge(frames, size), frames // 2
    clean[middle : frames if lasting else middle + 1] += JUMP
    return clean


def moving_scene(
    scene: Clean, move: Callable[[np.ndarray], np.ndarray], frames: int, size: int
) -> np.ndarray:
    """Apply a motion to a scene that is larger than the field, so that new parts of it move in."""
    return inner(np.maximum(move(scene(frames, size + 2 * BEYOND)), 0))


SCENES: dict[str, Clean] = {
    "challenge": challenge,
    "fast, 60 Hz": partial(different, "fast-60hz"),
    "one-photon": partial(different, "one-photon"),
    "challenge with a flash": partial(jump, False),
    "challenge with a step": partial(jump, True),
    GLITCHES: challenge,
    "challenge that moves": partial(moving_scene, challenge, partial(moving, 1, 0)),
    "axons whose rows move": partial(moving_scene, partial(different, "axons"), partial(scanned, 1)),
}


def with_glitches(movie: np.ndarray, share: float) -> np.ndarray:
    """Let a share of the voxels of a movie (T, Y, X) show what is two rows further on, as in a mirror at the edge."""
    damaged = np.random.default_rng(FIRST_EVALUATION_SEED).random(movie.shape) < share
    rows = np.pad(np.arange(movie.shape[1]), (0, 2), mode="reflect")[2:]
    return np.where(damaged, movie[:, rows], movie)


def scores(clean: np.ndarray, target: int, model: UNet3D, glitch_share: float = 0.0) -> tuple[float, float]:
    """Return the stSNR in dB of a recording of about `target` dB, without its glitches, and of its denoised movie."""
    factor = 10 ** ((LEVEL_1_STSNR - target) / 10)
    gain, read_variance = (factor * value for value in LEVELS[1])
    movie = noisy(clean, gain, read_variance, np.random.default_rng([FIRST_EVALUATION_SEED, target + 100]))
    movie = with_glitches(movie, glitch_share)
    return score(clean, movie)["stsnr"], score(clean, denoised(movie, model))["stsnr"]


def rows(scenes: list[str], targets: list[int], model: UNet3D) -> Iterator[tuple[str, float, float]]:
    for name in scenes:
        clean = SCENES[name](FRAMES, SIZE)
        for target in targets:
            yield name, *scores(clean, target, model, GLITCH_SHARE if name == GLITCHES else 0.0)


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
