"""The movies of the benchmark: simulated movies with their truth, movies of noise alone, real recordings.

Real recordings have no truth. Two substitutes are measured; only differences between methods mean something:

- Hidden voxels: 0.5% of the voxels are replaced by the value two pixels away along y, and the output there is
  compared with the hidden value. Where the detector correlates neighbours in a row, runs of five voxels are
  replaced and only the middle one is compared, so that no neighbour contains a part of its noise.
- Photon thinning: value / gain photons are split at random into two movies, one to denoise and one to compare
  with. Their noise is independent voxel by voxel if the gain is right (FMI movie: correlation 0.001). But noise
  that is correlated along rows is also correlated between the halves (0.11, against 0.25 within the movie). That
  favours methods that average along rows, so compare with the result for hidden voxels.

Recordings: `fmi_2p_first800.tif`, two-photon GCaMP at 10 Hz, (c) Friedrich Miescher Institute, MIT licence
(fmi-basel/2Photon_Analysis); `thunder_mouse_500.tif`, thunder-project/thunder, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from evaluation.cells import score_cells, score_noise
from evaluation.metrics import linearity, score
from evaluation.score import read
from simulation import (
    DIFFERENT_KINDS,
    FIRST_EVALUATION_SEED,
    LEVELS,
    Scene,
    challenge_scene,
    different_scene,
    digitize,
    noisy,
)

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "data"  # not part of this repository
SCENES = 8  # like the challenge's, at each noise level
LENGTHS = (100, 1500)  # frames of the short and the long movies
SCENES_PER_LENGTH = 2
FEW_SCENES = 2  # challenge scenes on which slow methods run too
FEW_LEVEL = 2  # noise level at which slow methods run on scenes of other kinds too
SPANS = 20  # equal spans of frames, for the standard error of a held-out error
FRAMES, SIZE = 500, 128
BRIGHTNESS = 204.0  # mean of the challenge's movies
HIDDEN_SHARE = 0.005  # of the voxels
DISTANCE = 2  # pixels along y between a hidden voxel and the one that replaces it
FMI_GAIN = 237.0  # counts a photon, from the photon transfer curve

Measure = Callable[[np.ndarray], dict[str, float]]
Quality = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Sample:
    """A movie (T, Y, X) to denoise, and how outputs for it are measured."""

    movie: np.ndarray
    measure: Measure  # of an output
    tuning_movie: np.ndarray  # part of the movie on which parameters are tuned
    quality: Quality  # of an output for `tuning_movie`; higher is better
    clean: np.ndarray | None = None
    span_errors: Callable[[np.ndarray], list[float]] | None = (
        None  # of an output: its error in each span of frames
    )


@dataclass(frozen=True)
class Case:
    """How to make a sample. Level 0: a real recording. Size "few": slow methods run on it too."""

    group: str
    name: str
    level: int
    make: Callable[[], Sample]
    size: str = ""


def cases(quick: bool) -> Iterator[Case]:
    """Yield the cases of the whole benchmark; quick: of two scenes and of noise alone, at each level."""
    for number in range(2 if quick else SCENES):
        size = "few" if number < FEW_SCENES and not quick else ""
        yield from _levels("challenge", f"scene {number}", partial(challenge, number, FRAMES), size)
    yield from _levels("noise", "pure noise", pure_noise)
    if quick:
        return
    for kind in DIFFERENT_KINDS:
        for case in _levels("different", kind, partial(different, kind)):
            yield replace(case, size="few" if case.level == FEW_LEVEL else "")
    for frames in LENGTHS:
        for number in range(SCENES_PER_LENGTH):
            yield from _levels(
                "length", f"{frames} frames, scene {number}", partial(challenge, number, frames)
            )
    for name, make in {
        "FMI, hidden": fmi_hidden,
        "FMI, thinned": fmi_thinned,
        "mouse, hidden": mouse_hidden,
    }.items():
        yield Case("real", name, 0, make, "few" if name.startswith("mouse") else "")


def _levels(group: str, name: str, make: Callable[[int], Sample], size: str = "") -> Iterator[Case]:
    for level in LEVELS:
        yield Case(group, name, level, partial(make, level), size)


# ---- simulated


def challenge(number: int, frames: int, level: int) -> Sample:
    """Make a sample of held-out scene `number` with the challenge's statistics."""
    return simulated(challenge_scene(FIRST_EVALUATION_SEED + number, frames, SIZE), level, number)


def different(kind: str, level: int) -> Sample:
    """Make a sample of a kind that training never uses; tuned on the whole field, since its middle may be empty."""
    return simulated(different_scene(kind, FIRST_EVALUATION_SEED, FRAMES, SIZE), level, 0, tune_on_all=True)


def simulated(scene: Scene, level: int, seed: int, *, tune_on_all: bool = False) -> Sample:
    """Make a sample of a scene at a noise level; parameters are tuned on its middle, or on the whole field."""
    clean = scene.clean()
    footprints = [footprint for footprint, _ in scene.cells]

    def measure(output: np.ndarray) -> dict[str, float]:
        return {**score(clean, output), **linearity(clean, output), **score_cells(clean, output, footprints)}

    movie = record(clean, level, seed)
    region = slice(None) if tune_on_all else middle_of(movie)
    return Sample(movie, measure, movie[region], partial(_stsnr, clean[region]), clean)


def _stsnr(clean: np.ndarray, output: np.ndarray) -> float:
    return score(clean, output)["stsnr"]


def record(clean: np.ndarray, level: int, seed: int) -> np.ndarray:
    """Add the noise of a level of the challenge to a clean movie; int16 as in the challenge."""
    rng = np.random.default_rng([FIRST_EVALUATION_SEED, level, seed])
    return digitize(noisy(clean, *LEVELS[level], rng), np.int16, clip_at_zero=False)


def pure_noise(level: int) -> Sample:
    """Make a sample of noise on a constant; parameters are tuned on the first scene at this level."""
    clean = np.full((FRAMES, SIZE, SIZE), BRIGHTNESS, np.float32)
    scene = challenge(0, FRAMES, level)
    return Sample(record(clean, level, 0), score_noise, scene.tuning_movie, scene.quality)


# ---- real


def fmi_hidden() -> Sample:
    return hidden(read(RECORDINGS / "fmi_2p_first800.tif"), run=5)


def mouse_hidden() -> Sample:
    return hidden(read(RECORDINGS / "thunder_mouse_500.tif"), run=1)


def fmi_thinned() -> Sample:
    return thinned(read(RECORDINGS / "fmi_2p_first800.tif"), FMI_GAIN)


def hidden(recording: np.ndarray, run: int) -> Sample:
    """Replace HIDDEN_SHARE of a recording's voxels (T, Y, X), in runs of `run` along x.

    heldout_error: mean squared difference between the output and the recording at the runs' middle voxels, in the
    movie's units squared.
    """
    movie = recording.copy()
    rng = np.random.default_rng(FIRST_EVALUATION_SEED)
    frames, height, width = movie.shape
    count = round(HIDDEN_SHARE / run * movie.size)
    half = run // 2
    t, y = rng.integers(0, frames, count), rng.integers(0, height, count)
    x = rng.integers(half, width - half, count)
    source_y = np.where(
        (rng.random(count) < 0.5) & (y >= DISTANCE) | (y + DISTANCE >= height), y - DISTANCE, y + DISTANCE
    )
    for step in range(-half, half + 1):
        movie[t, y, x + step] = recording[t, source_y, x + step]
    scored = np.zeros(movie.shape, bool)
    scored[t, y, x] = True
    return heldout_sample(movie, recording, scored)


def thinned(recording: np.ndarray, gain: float) -> Sample:
    """Split a recording's photons at random into a movie to denoise and a target.

    heldout_error: mean squared difference between the output and the target.
    """
    rng = np.random.default_rng(FIRST_EVALUATION_SEED)
    photons = np.maximum(recording.astype(np.float32), 0) / np.float32(gain)
    counts = np.floor(photons)
    counts += rng.random(photons.shape, np.float32) < photons - counts  # stochastic rounding, unbiased
    half = rng.binomial(counts.astype(np.int64), 0.5).astype(np.float32)
    return heldout_sample(gain * half, gain * (counts - half), np.ones(half.shape, bool))


def heldout_sample(movie: np.ndarray, target: np.ndarray, scored: np.ndarray) -> Sample:
    """Make a sample measured by the mean squared difference to `target` where `scored` (bool); (T, Y, X) each."""

    def error(target: np.ndarray, scored: np.ndarray, output: np.ndarray) -> float:
        return float(np.mean((output[scored] - target[scored].astype(np.float64)) ** 2))

    def measure(output: np.ndarray) -> dict[str, float]:
        return {"heldout_error": error(target, scored, output)}

    def span_errors(output: np.ndarray) -> list[float]:
        indices = np.array_split(np.arange(len(target)), SPANS)
        spans = [slice(frames[0], frames[-1] + 1) for frames in indices]
        return [error(target[span], scored[span], output[span]) for span in spans]

    def quality(output: np.ndarray) -> float:
        return -error(target[middle], scored[middle], output)

    middle = middle_of(movie)
    return Sample(movie, measure, movie[middle], quality, span_errors=span_errors)


def middle_of(movie: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the region of all frames and the middle half of each side."""
    _, height, width = movie.shape
    rows, columns = (slice(n // 4, n - n // 4) for n in (height, width))
    return slice(None), rows, columns
