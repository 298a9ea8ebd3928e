"""What the benchmark denoises: simulated movies with their truth, movies of noise alone, real recordings.

Real recordings have no truth. Two stand-ins, of which only differences between methods mean something:

- Hidden voxels: 0.5% of the voxels are replaced by the value two pixels away along y, and the output there is
  compared with what was hidden. Where the detector correlates neighbours in a row, runs of five voxels are
  replaced and only the middle one counts, so that no neighbour betrays its noise.
- Photon thinning: value / gain photons are dealt to two movies by coin flips, one to denoise and one to
compare
  with. Their noise is independent voxel by voxel if the gain is right (FMI movie: correlation 0.001). But
  noise that neighbours in a row share is also shared by the halves (0.11, against 0.25 within the movie),
  and that flatters methods that average along rows: read it beside the hidden voxels.

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
SCENES = 8
LENGTHS = (100, 1500)  # frames, beside the 500 of the other scenes
SCENES_OF_A_LENGTH = 2
FEW, FEW_LEVEL = 2, 2  # challenge scenes, and level of the other kinds, that slow methods get
SPANS = 20  # of frames, for the standard error of a held-out error
FRAMES, SIZE = 500, 128
BRIGHTNESS = 204.0  # mean of the challenge's movies
HIDDEN = 0.005  # of the voxels
DISTANCE = 2  # pixels along y from where a hidden voxel gets its stand-in
FMI_GAIN = 237.0  # counts a photon, by photon transfer

Measure = Callable[[np.ndarray], dict[str, float]]
Quality = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Sample:
    """A movie (T, Y, X) to denoise, and what can be said about an output of its shape."""

    movie: np.ndarray
    measure: Measure
    part: np.ndarray  # of the movie: parameters are tuned on it
    quality: Quality  # of an output for `part`; the higher the better
    clean: np.ndarray | None = None
    parts: Callable[[np.ndarray], list[float]] | None = None  # of an output: errors in equal spans of frames


@dataclass(frozen=True)
class Case:
    """A sample that is not made yet. Level 0 is a real recording. size "few": one that slow methods get too."""

    group: str
    name: str
    level: int
    make: Callable[[], Sample]
    size: str = ""


def cases(quick: bool) -> Iterator[Case]:
    """The whole benchmark; quick: two scenes and the noise alone, at each level."""
    for number in range(2 if quick else SCENES):
        size = "few" if number < FEW and not quick else ""
        yield from _levels("challenge", f"scene {number}", partial(challenge, number, FRAMES), size)
    yield from _levels("noise", "pure noise", pure_noise)
    if quick:
        return
    for kind in DIFFERENT_KINDS:
        for case in _levels("different", kind, partial(different, kind)):
            yield replace(case, size="few" if case.level == FEW_LEVEL else "")
    for frames in LENGTHS:
        for number in range(SCENES_OF_A_LENGTH):
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
    """Held-out scene `number` of the challenge's statistics."""
    return simulated(challenge_scene(FIRST_EVALUATION_SEED + number, frames, SIZE), level, number)


def different(kind: str, level: int) -> Sample:
    """A scene of a kind that training never sees; its middle may be empty, so the whole of it is tuned on."""
    return simulated(different_scene(kind, FIRST_EVALUATION_SEED, FRAMES, SIZE), level, 0, whole=True)


def simulated(scene: Scene, level: int, seed: int, *, whole: bool = False) -> Sample:
    """A scene at a noise level; parameters are tuned on its middle, or on the whole."""
    clean = scene.clean()
    footprints = [footprint for footprint, _ in scene.cells]

    def measure(output: np.ndarray) -> dict[str, float]:
        return {**score(clean, output), **linearity(clean, output), **score_cells(clean, output, footprints)}

    movie = exposed(clean, level, seed)
    place = slice(None) if whole else middle_of(movie)
    return Sample(movie, measure, movie[place], partial(_stsnr, clean[place]), clean)


def _stsnr(clean: np.ndarray, output: np.ndarray) -> float:
    return score(clean, output)["stsnr"]


def exposed(clean: np.ndarray, level: int, seed: int) -> np.ndarray:
    """A recording of a clean movie at a noise level of the challenge, int16 as there."""
    rng = np.random.default_rng([FIRST_EVALUATION_SEED, level, seed])
    return digitize(noisy(clean, *LEVELS[level], rng), np.int16, clip_at_zero=False)


def pure_noise(level: int) -> Sample:
    """Noise on a constant; parameters are those for the first scene at this level."""
    clean = np.full((FRAMES, SIZE, SIZE), BRIGHTNESS, np.float32)
    scene = challenge(0, FRAMES, level)
    return Sample(exposed(clean, level, 0), score_noise, scene.part, scene.quality)


# ---- real


def fmi_hidden() -> Sample:
    return hidden(read(RECORDINGS / "fmi_2p_first800.tif"), run=5)


def mouse_hidden() -> Sample:
    return hidden(read(RECORDINGS / "thunder_mouse_500.tif"), run=1)


def fmi_thinned() -> Sample:
    return thinned(read(RECORDINGS / "fmi_2p_first800.tif"), FMI_GAIN)


def hidden(recording: np.ndarray, run: int) -> Sample:
    """A recording (T, Y, X) with HIDDEN of its voxels hidden in runs of `run` along x; the middle ones count.

    heldout_error: mean squared difference between the output and the hidden values, in the movie's units
    squared.
    """
    movie = recording.copy()
    rng = np.random.default_rng(FIRST_EVALUATION_SEED)
    frames, height, width = movie.shape
    count = round(HIDDEN / run * movie.size)
    half = run // 2
    t, y = rng.integers(0, frames, count), rng.integers(0, height, count)
    x = rng.integers(half, width - half, count)
    other = np.where(
        (rng.random(count) < 0.5) & (y >= DISTANCE) | (y + DISTANCE >= height), y - DISTANCE, y + DISTANCE
    )
    for step in range(-half, half + 1):
        movie[t, y, x + step] = recording[t, other, x + step]
    marked = np.zeros(movie.shape, bool)
    marked[t, y, x] = True
    return compared(movie, recording, marked)


def thinned(recording: np.ndarray, gain: float) -> Sample:
    """One half of a recording's photons; heldout_error: mean squared difference to the other half."""
    rng = np.random.default_rng(FIRST_EVALUATION_SEED)
    photons = np.maximum(recording.astype(np.float32), 0) / np.float32(gain)
    whole = np.floor(photons)
    whole += rng.random(photons.shape, np.float32) < photons - whole  # rounded at random: right on average
    half = rng.binomial(whole.astype(np.int64), 0.5).astype(np.float32)
    return compared(gain * half, gain * (whole - half), np.ones(half.shape, bool))


def compared(movie: np.ndarray, target: np.ndarray, counts: np.ndarray) -> Sample:
    """A sample judged by the mean squared difference to `target` where `counts`; (T, Y, X) each."""

    def error(target: np.ndarray, counts: np.ndarray, output: np.ndarray) -> float:
        return float(np.mean((output[counts] - target[counts].astype(np.float64)) ** 2))

    def measure(output: np.ndarray) -> dict[str, float]:
        return {"heldout_error": error(target, counts, output)}

    def parts(output: np.ndarray) -> list[float]:
        spans = np.array_split(np.arange(len(target)), SPANS)
        return [
            error(target[s[0] : s[-1] + 1], counts[s[0] : s[-1] + 1], output[s[0] : s[-1] + 1]) for s in spans
        ]

    middle = middle_of(movie)
    worse = partial(error, target[middle], counts[middle])
    return Sample(movie, measure, movie[middle], lambda output: -worse(output), parts=parts)


def middle_of(movie: np.ndarray) -> tuple[slice, slice, slice]:
    """All frames of the middle half of each side."""
    _, height, width = movie.shape
    rows, columns = (slice(n // 4, n - n // 4) for n in (height, width))
    return slice(None), rows, columns
