"""Measure what the handling of correlated noise, motion, flicker and line noise contributes to the score.

`python -m evaluation.smoothed` prints stSNR without ("unaware") and with it ("aware").

Held-out scenes are recorded as the challenge's movies are, then smoothed as detectors, programs and registration do; the
clean movie, smoothed in the same way, is the truth. Moving scenes are cut from the middle of larger ones. Line noise is
added to all voxels of a row, or of a column. The last lines show the error at single hidden voxels. Where neighbours
share noise, a method gains there by keeping the noise, and even the truth may score worse.
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
from denoise.lines import LineNoise
from denoise.smoothing import UNCORRELATED, SmoothingEstimator
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
MAX_SHIFT = 0.5  # pixels to each side, by which frames are displaced before they are registered
EXACT = 5  # order of the splines that displace a clean movie
LINEAR, CUBIC = 1, 3  # orders of the splines that registration uses
LENS_RADIUS = 54  # pixels
BEYOND = 16  # pixels by which a moving scene is larger on each side, so that motion brings in new parts of it


def unchanged(frames: np.ndarray) -> np.ndarray:
    return frames


def filtered(weights: list[float], frames: np.ndarray) -> np.ndarray:
    """Filter every frame (T, Y, X) with the same weights along Y and along X."""
    along_y = convolve1d(frames, weights, axis=1, mode="nearest")
    return convolve1d(along_y, weights, axis=2, mode="nearest")


def displaced(order: int, sign: int, frames: np.ndarray) -> np.ndarray:
    """Displace each frame by a random fraction of a pixel (sign 1), or back (sign -1), by splines of this order."""
    shifts = sign * np.random.default_rng(FIRST_EVALUATION_SEED).uniform(
        -MAX_SHIFT, MAX_SHIFT, (len(frames), 2)
    )
    return moved(frames, shifts, order, "nearest")


def moving(jitter: float, drift: float, frames: np.ndarray) -> np.ndarray:
    """Move the frames rigidly: jitter with rare bouts on a slow drift, in pixels as in activity.wander."""
    return moved(frames, wander(np.random.default_rng(FIRST_EVALUATION_SEED), len(frames), jitter, drift))


def through_lens(frames: np.ndarray) -> np.ndarray:
    """Dim the frames to a tenth of the light outside a lens of LENS_RADIUS that does not move."""
    y, x = centred_coordinates(frames)
    light = 1 / (1 + np.exp((np.hypot(y[:, None], x) - LENS_RADIUS) / 2))
    return frames * (0.1 + 0.9 * light).astype(np.float32)


def under_columns(deviation: float, frames: np.ndarray) -> np.ndarray:
    """Multiply each column by its own random sensitivity, as of a camera; mean 1, with this standard deviation."""
    random = np.random.default_rng(FIRST_EVALUATION_SEED)
    return frames * np.float32(1 + deviation * random.standard_normal(frames.shape[2]))


def inner(frames: np.ndarray) -> np.ndarray:
    """Cut BEYOND pixels off each side of the frames."""
    return frames[:, BEYOND:-BEYOND, BEYOND:-BEYOND]


def moved(frames: np.ndarray, shifts: np.ndarray, order: int = EXACT, mode: str = "reflect") -> np.ndarray:
    """Displace each frame of (T, Y, X) by shifts (T, 2) in pixels; order and mode as in scipy.ndimage.shift."""
    return np.stack([shift(frame, pixels, order=order, mode=mode) for frame, pixels in zip(frames, shifts)])


def scanned(jitter: float, frames: np.ndarray) -> np.ndarray:
    """Move the sample while its rows are scanned: from row to row on a line between two frames' displacements."""
    motion = wander(np.random.default_rng(FIRST_EVALUATION_SEED), len(frames) + 1, jitter, 0)
    row_times = np.arange(frames.shape[1])[:, None] / frames.shape[1]  # (Y, 1), in frames
    shifts = motion[:-1, None] + row_times * np.diff(motion, axis=0)[:, None]  # (T, Y, 2)
    return warp(frames, shifts[:, :, None])


def turning(degrees: float, jitter: float, frames: np.ndarray) -> np.ndarray:
    """Rotate the frames about their centre and move them, with random jitter in degrees and in pixels."""
    random = np.random.default_rng(FIRST_EVALUATION_SEED)
    shifts = wander(random, len(frames), jitter, 0)  # (T, 2)
    angles = wander(random, len(frames), np.deg2rad(degrees), 0)[:, :1]  # (T, 1), radians
    y, x = centred_coordinates(frames)
    tangent = np.stack(np.broadcast_arrays(x, -y[:, None]), 2)  # (Y, X, 2), displacement for each radian
    return warp(frames, shifts[:, None, None] + angles[:, None, None] * tangent)


def centred_coordinates(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the y (Y,) and x (X,) of the pixels of frames (T, Y, X), relative to the centre."""
    height, width = frames.shape[1:]
    return np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2


def warp(frames: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Displace every pixel of frames (T, Y, X) by its own shift (T, Y, X or 1, 2) in pixels."""
    grid = np.indices(frames.shape[1:])
    return np.stack(
        [
            map_coordinates(frame, grid - np.moveaxis(pixels, 2, 0), order=EXACT, mode="reflect")
            for frame, pixels in zip(frames, shifts)
        ]
    )


def out_of_phase(pixels: float, frames: np.ndarray) -> np.ndarray:
    """Shift odd rows along x, as a bidirectional scanner does that is out of phase."""
    frames = frames.copy()
    frames[:, 1::2] = shift(frames[:, 1::2], (0, 0, pixels), order=EXACT, mode="reflect")
    return frames


def flickering(deviation: float, frames: np.ndarray) -> np.ndarray:
    """Multiply each frame by a random brightness of mean 1 and this standard deviation."""
    light = 1 + deviation * np.random.default_rng(FIRST_EVALUATION_SEED).standard_normal((len(frames), 1, 1))
    return frames * light.astype(np.float32)


def mean_of_frames(count: int, frames: np.ndarray) -> np.ndarray:
    """Average over `count` frames around each frame."""
    return convolve1d(frames, [1 / count] * count, axis=0, mode="nearest")


def repeated(every: int, frames: np.ndarray) -> np.ndarray:
    """Replace every `every`-th frame by the one before it."""
    frames = frames.copy()
    lost = slice(every - 1, None, every)
    frames[lost] = frames[every - 2 : -1 : every][: len(frames[lost])]
    return frames


@dataclass(frozen=True)
class Smoothing:
    """How a recording is distorted: its clean frames (T, Y, X), its noise, and its noisy frames."""

    before: Callable[[np.ndarray], np.ndarray] = unchanged  # applied to the clean frames
    after: Callable[[np.ndarray], np.ndarray] = unchanged  # applied to the noisy frames, and to the truth
    row_correlation: float = 0.0  # of the noise of neighbouring pixels along x
    row_noise: float = 0.0  # standard deviation of the noise that a row shares, relative to that of a voxel
    column_noise: float = 0.0  # the same for columns
    moves: bool = False  # the scene is larger than the field by BEYOND


SMOOTHINGS = {
    "none": Smoothing(),
    "slow detector, rows": Smoothing(row_correlation=0.25),
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
    "line noise, a tenth": Smoothing(row_noise=0.1),
    "line noise, three tenths": Smoothing(row_noise=0.3),
    "line noise, as strong": Smoothing(row_noise=1.0),
    "line noise of rows and of columns, three tenths": Smoothing(row_noise=0.3, column_noise=0.3),
    "mean of three frames": Smoothing(after=partial(mean_of_frames, 3)),
}
# these are also measured on the scenes of DIFFERENT_KINDS
SMOOTHINGS_OF_ALL_KINDS = {
    "registered, linear",
    "moves by 1 pixel",
    "moves by 1 pixel, seen through a lens",
    "moves by 1 pixel, columns differ by 5%",
}


def recorded(
    kind: str, smoothing: Smoothing, level: int, frames: int = FRAMES, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a recording (T, Y, X), int16, of a held-out scene; return it with its truth."""
    scene_size = size + 2 * BEYOND if smoothing.moves else size
    if kind == "challenge":
        scene = challenge_scene(FIRST_EVALUATION_SEED, frames, scene_size)
    else:
        scene = different_scene(kind, FIRST_EVALUATION_SEED, frames, scene_size)
    clean = smoothing.before(replace(scene, row_shift=0.0).clean())
    clean = inner(clean) if smoothing.moves else clean
    clean = np.maximum(out_of_phase(scene.row_shift, clean) if scene.row_shift else clean, 0)
    random = np.random.default_rng([FIRST_EVALUATION_SEED, level])
    movie = noisy(clean, *LEVELS[level], random, row_correlation=smoothing.row_correlation)
    voxel_noise = float((movie - clean).std())
    if smoothing.row_noise:
        row_noise = random.standard_normal((*movie.shape[:2], 1), np.float32)
        movie += smoothing.row_noise * voxel_noise * row_noise
    if smoothing.column_noise:
        column_noise = random.standard_normal((len(movie), 1, movie.shape[2]), np.float32)
        movie += smoothing.column_noise * voxel_noise * column_noise
    movie = smoothing.after(movie)
    return digitize(movie, np.int16, clip_at_zero=False), smoothing.after(clean)


def unaware(movie: np.ndarray, model: UNet3D) -> np.ndarray:
    """Denoise with the handling of correlated noise, line noise, motion, flicker and scan phase switched off."""
    with (
        patch.object(SmoothingEstimator, "weights", lambda _, frames: torch.zeros(len(frames), 2)),
        patch.object(survey, "estimate_frame_correlation", lambda *_: UNCORRELATED),
        patch.object(survey, "estimate_row_and_column_noise", lambda _: (LineNoise(1), LineNoise(2))),
        patch.object(Tracker, "moves", lambda *_: False),
        patch.object(survey, "flickers", lambda _: False),
        patch.object(inference, "estimate_phase", lambda _: 0.0),
    ):
        return denoised(movie, model)


def compare(kind: str, name: str, level: int, model: UNet3D) -> None:
    """Print a row of the table: stSNR in dB."""
    movie, clean = recorded(kind, SMOOTHINGS[name], level)
    before = score(clean, unaware(movie, model))["stsnr"]
    after = score(clean, denoised(movie, model))["stsnr"]
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
        if name in SMOOTHINGS_OF_ALL_KINDS:
            for kind in DIFFERENT_KINDS:
                compare(kind, name, 2, model)
    for name in options.smoothings:
        movie, clean = recorded("challenge", SMOOTHINGS[name], 1)
        sample = hidden(movie, run=1)
        outputs = {
            "truth": clean,
            "unaware": unaware(sample.movie, model),
            "aware": denoised(sample.movie, model),
        }
        errors = ", ".join(
            f"{label} {sample.measure(output)['heldout_error']:.0f}" for label, output in outputs.items()
        )
        print(f"error at hidden voxels, level 1, {name}: {errors}", flush=True)


if __name__ == "__main__":
    main()
