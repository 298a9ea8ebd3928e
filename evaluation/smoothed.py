"""What knowing how voxels share noise, how the sample moves and how its light flickers brings.

`python -m evaluation.smoothed` prints stSNR without and with it.

Held-out scenes, recorded as the challenge's movies are, then smoothed as detectors, programs and registration do; what
that does to the clean movie is the truth. Those that move are the middle of larger ones. Line noise is added to all
voxels of a row, or of a column. The last lines tell the error at single hidden voxels, where neighbours share noise: a
method wins there by keeping it, and the truth itself may lose.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from scipy.ndimage import convolve1d, map_coordinates, shift

from denoise import inference, survey
from denoise.lines import Lines
from denoise.smoothing import NO_MEMORY, SmoothingEstimator
from denoise.tracking import Tracker
from evaluation.benchmark import WEIGHTS, denoised
from evaluation.metrics import score
from evaluation.samples import hidden
from model import UNet3D, load_model
from simulation import (
    DIFFERENT_KINDS,
    FIRST_EVALUATION_SEED,
    LEVELS,
    challenge_scene,
    different_scene,
    digitize,
    noisy,
)
from simulation.activity import wander

FRAMES, SIZE = 500, 128
SHAKEN = 0.5  # pixels to each side, by which frames are displaced before they are registered
EXACT = 5  # order of the splines that displace a clean movie
LINEAR, CUBIC = 1, 3  # orders of those that registration uses
LENS = 54  # pixels, its radius
BEYOND = 16  # pixels at each side of what moves, which come into the field


def unchanged(frames: np.ndarray) -> np.ndarray:
    return frames


def filtered(weights: list[float], frames: np.ndarray) -> np.ndarray:
    """Every frame filtered along Y and X alike."""
    along_y = convolve1d(frames, weights, axis=1, mode="nearest")
    return convolve1d(along_y, weights, axis=2, mode="nearest")


def displaced(order: int, sign: int, frames: np.ndarray) -> np.ndarray:
    """Each frame displaced by its own random part of a pixel, or brought back, by splines of an order."""
    by = sign * np.random.default_rng(FIRST_EVALUATION_SEED).uniform(-SHAKEN, SHAKEN, (len(frames), 2))
    return moved(frames, by, order, "nearest")


def moving(jitter: float, drift: float, frames: np.ndarray) -> np.ndarray:
    """Frames of a sample that moves: pixels, jitter with rare bouts on a slow drift."""
    return moved(frames, wander(np.random.default_rng(FIRST_EVALUATION_SEED), len(frames), jitter, drift))


def through_lens(frames: np.ndarray) -> np.ndarray:
    """As a lens shows them that ends inside of the field, and stays where it is; beyond it is a tenth of the light."""
    y, x = (np.arange(size) - (size - 1) / 2 for size in frames.shape[1:])
    light = 1 / (1 + np.exp((np.hypot(y[:, None], x) - LENS) / 2))
    return frames * (0.1 + 0.9 * light).astype(np.float32)


def under_columns(by: float, frames: np.ndarray) -> np.ndarray:
    """As a camera records them whose columns differ by parts of the light, root mean square."""
    random = np.random.default_rng(FIRST_EVALUATION_SEED)
    return frames * np.float32(1 + by * random.standard_normal(frames.shape[2]))


def inner(frames: np.ndarray) -> np.ndarray:
    """Frames without BEYOND pixels at each side."""
    return frames[:, BEYOND:-BEYOND, BEYOND:-BEYOND]


def moved(frames: np.ndarray, by: np.ndarray, order: int = EXACT, mode: str = "reflect") -> np.ndarray:
    """Each frame of (T, Y, X) displaced by its own (T, 2) pixels; order and mode as in scipy.ndimage.shift."""
    return np.stack([shift(frame, its, order=order, mode=mode) for frame, its in zip(frames, by)])


def scanned(jitter: float, frames: np.ndarray) -> np.ndarray:
    """Frames of a sample that moves while their rows are scanned, from one frame's place to the next one's."""
    places = wander(np.random.default_rng(FIRST_EVALUATION_SEED), len(frames) + 1, jitter, 0)
    share = np.arange(frames.shape[1])[:, None] / frames.shape[1]
    by = places[:-1, None] + share * np.diff(places, axis=0)[:, None]  # (T, Y, 2)
    return bent(frames, by[:, :, None])


def turning(degrees: float, jitter: float, frames: np.ndarray) -> np.ndarray:
    """Frames of a sample that turns around their middle and moves: degrees and pixels, as in `moving`."""
    random = np.random.default_rng(FIRST_EVALUATION_SEED)
    by, angles = (wander(random, len(frames), its, 0) for its in (jitter, np.deg2rad(degrees)))
    y, x = (np.arange(size) - (size - 1) / 2 for size in frames.shape[1:])
    around = np.stack(np.broadcast_arrays(x, -y[:, None]), 2)  # (Y, X, 2)
    return bent(frames, by[:, None, None] + angles[:, None, None, :1] * around)


def bent(frames: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Frames (T, Y, X), each with what was so many pixels (T, Y, X or 1, 2) before each place."""
    grid = np.indices(frames.shape[1:])
    return np.stack(
        [
            map_coordinates(frame, grid - np.moveaxis(its, 2, 0), order=EXACT, mode="reflect")
            for frame, its in zip(frames, by)
        ]
    )


def out_of_phase(by: float, frames: np.ndarray) -> np.ndarray:
    """Odd rows lie so many pixels further on along x, as a scanner writes them that is out of phase."""
    frames = frames.copy()
    frames[:, 1::2] = shift(frames[:, 1::2], (0, 0, by), order=EXACT, mode="reflect")
    return frames


def flickering(by: float, frames: np.ndarray) -> np.ndarray:
    """In light that differs from frame to frame, by parts of it, root mean square."""
    light = 1 + by * np.random.default_rng(FIRST_EVALUATION_SEED).standard_normal((len(frames), 1, 1))
    return frames * light.astype(np.float32)


def mean_of_frames(count: int, frames: np.ndarray) -> np.ndarray:
    """Every frame is the mean of so many, as a running average over time leaves it."""
    return convolve1d(frames, [1 / count] * count, axis=0, mode="nearest")


def repeated(every: int, frames: np.ndarray) -> np.ndarray:
    """One frame of so many is the one before once more."""
    frames = frames.copy()
    lost = slice(every - 1, None, every)
    frames[lost] = frames[every - 2 : -1 : every][: len(frames[lost])]
    return frames


@dataclass(frozen=True)
class Smoothing:
    """What happens to frames (T, Y, X) before they are recorded, and afterwards; correlation of noise along rows.

    lines, columns: what rows share, and columns, in standard deviations of a voxel's own noise. moves: parts of the
    scene come into the field.
    """

    before: Callable[[np.ndarray], np.ndarray] = unchanged
    after: Callable[[np.ndarray], np.ndarray] = unchanged
    rows: float = 0.0
    lines: float = 0.0
    columns: float = 0.0
    moves: bool = False


SMOOTHINGS = {
    "none": Smoothing(),
    "slow detector, rows": Smoothing(rows=0.25),
    "filter 0.15, 0.7, 0.15": Smoothing(after=partial(filtered, [0.15, 0.7, 0.15])),
    "half a pixel, linear": Smoothing(after=partial(filtered, [0.5, 0.5, 0.0])),
    "shaken, not registered": Smoothing(partial(displaced, EXACT, 1)),
    "moves by 0.1 pixels": Smoothing(partial(moving, 0.1, 0), moves=True),
    "moves by 1 pixel": Smoothing(partial(moving, 1, 0), moves=True),
    "moves by 1 pixel, seen through a lens": Smoothing(
        lambda frames: through_lens(moving(1, 0, frames)), moves=True
    ),
    "moves by 1 pixel, columns differ by 5%": Smoothing(
        lambda frames: under_columns(0.05, moving(1, 0, frames)), moves=True
    ),
    "drifts by 2 pixels": Smoothing(partial(moving, 0, 2), moves=True),
    "moves by 1 pixel, rows in turn": Smoothing(partial(scanned, 1), moves=True),
    "turns by half a degree": Smoothing(partial(turning, 0.5, 0.5), moves=True),
    "odd rows out of phase by 1.3 pixels": Smoothing(partial(out_of_phase, 1.3)),
    "light flickers by 2%": Smoothing(partial(flickering, 0.02)),
    "light flickers by 10%": Smoothing(partial(flickering, 0.1)),
    "registered, linear": Smoothing(partial(displaced, EXACT, 1), partial(displaced, LINEAR, -1)),
    "registered, cubic": Smoothing(partial(displaced, EXACT, 1), partial(displaced, CUBIC, -1)),
    "one frame in ten repeated": Smoothing(after=partial(repeated, 10)),
    "every frame twice": Smoothing(after=partial(repeated, 2)),
    "moves by 1 pixel, one frame in ten repeated": Smoothing(
        partial(moving, 1, 0), partial(repeated, 10), moves=True
    ),
    "registered, linear, one frame in ten repeated": Smoothing(
        partial(displaced, EXACT, 1), lambda frames: repeated(10, displaced(LINEAR, -1, frames))
    ),
    "filter 0.15, 0.7, 0.15, odd rows out of phase by 1.3 pixels": Smoothing(
        partial(out_of_phase, 1.3), partial(filtered, [0.15, 0.7, 0.15])
    ),
    "line noise, a tenth": Smoothing(lines=0.1),
    "line noise, three tenths": Smoothing(lines=0.3),
    "line noise, as strong": Smoothing(lines=1.0),
    "line noise of rows and of columns, three tenths": Smoothing(lines=0.3, columns=0.3),
    "mean of three frames": Smoothing(after=partial(mean_of_frames, 3)),
}


OF_ALL_KINDS = {
    "registered, linear",
    "moves by 1 pixel",
    "moves by 1 pixel, seen through a lens",
    "moves by 1 pixel, columns differ by 5%",
}


def recorded(
    kind: str, smoothing: Smoothing, level: int, frames: int = FRAMES, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """A recording (T, Y, X), int16, and its truth."""
    wide = size + 2 * BEYOND if smoothing.moves else size
    if kind == "challenge":
        scene = challenge_scene(FIRST_EVALUATION_SEED, frames, wide)
    else:
        scene = different_scene(kind, FIRST_EVALUATION_SEED, frames, wide)
    before = smoothing.before(replace(scene, row_shift=0.0).clean())
    before = inner(before) if smoothing.moves else before
    clean = np.maximum(out_of_phase(scene.row_shift, before) if scene.row_shift else before, 0)
    random = np.random.default_rng([FIRST_EVALUATION_SEED, level])
    movie = noisy(clean, *LEVELS[level], random, row_correlation=smoothing.rows)
    own = float((movie - clean).std())
    for share, axis in ((smoothing.lines, 2), (smoothing.columns, 1)):
        if share:
            shape = [1 if number == axis else size for number, size in enumerate(movie.shape)]
            movie += share * own * random.standard_normal(shape, np.float32)
    movie = smoothing.after(movie)
    return digitize(movie, np.int16, clip_at_zero=False), smoothing.after(clean)


def unaware(movie: np.ndarray, model: UNet3D) -> np.ndarray:
    """Denoised as if no voxels shared noise, nothing moved, and light was steady."""
    with (
        patch.object(SmoothingEstimator, "weights", lambda _, frames: torch.zeros(len(frames), 2)),
        patch.object(survey, "estimate_memory", lambda *_: NO_MEMORY),
        patch.object(survey, "rows_and_columns", lambda _: (Lines(1), Lines(2))),
        patch.object(Tracker, "moves", lambda *_: False),
        patch.object(survey, "flickers", lambda _: False),
        patch.object(inference, "phase_of", lambda _: 0.0),
    ):
        return denoised(movie, model)


def compare(kind: str, name: str, level: int, model: UNet3D) -> None:
    """Print a row of scores in dB."""
    movie, clean = recorded(kind, SMOOTHINGS[name], level)
    before, after = (score(clean, way(movie, model))["stsnr"] for way in (unaware, denoised))
    raw = score(clean, movie.astype(np.float32))["stsnr"]
    print(
        f"| {kind} | {name} | {level} | {raw:.2f} | {before:.2f} | {after:.2f} | {after - before:+.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.smoothed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--smoothings", nargs="+", choices=list(SMOOTHINGS), default=list(SMOOTHINGS))
    options = parser.parse_args()
    model = load_model(WEIGHTS, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print("| scene | smoothing | level | recording | unaware | aware | gain |\n" + "|---" * 7 + "|")
    for name in options.smoothings:
        for level in LEVELS:
            compare("challenge", name, level, model)
        if name in OF_ALL_KINDS:
            for kind in DIFFERENT_KINDS:
                compare(kind, name, 2, model)
    for name in options.smoothings:
        movie, clean = recorded("challenge", SMOOTHINGS[name], 1)
        sample = hidden(movie, run=1)
        errors = {
            "truth": clean,
            "unaware": unaware(sample.movie, model),
            "aware": denoised(sample.movie, model),
        }
        told = ", ".join(
            f"{way} {sample.measure(output)['heldout_error']:.0f}" for way, output in errors.items()
        )
        print(f"error at hidden voxels, level 1, {name}: {told}", flush=True)


if __name__ == "__main__":
    main()
