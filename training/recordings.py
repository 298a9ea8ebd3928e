"""Noisy data to train on: an endless, seeded stream of simulated recordings, or the files of a folder.

An item is one recording (T, Y, X), float16, normalized by the code that inference uses, or one recording reduced to
several noisy versions of an image or of time courses, one for each of several groups of its frames or pixels. No item
contains the clean truth.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from denoise.missing import without_missing
from denoise.normalization import Percentiles
from denoise.reading import open_movie
from denoise.readout import BLOCK_SIZE, noise_edge, significant_patterns
from denoise.smoothing import SmoothingEstimator, undo
from simulation import (
    Footprints,
    FrameMeans,
    random_footprints,
    random_frame_means,
    random_recording,
    random_scene,
)

RECORDING_FRAMES = (64, 700)  # least and most frames of a simulated recording
RECORDING_SIDES = (96, 160)  # least and most pixels of its sides
GROUPS = 8  # groups into which the frames of a recording, or the pixels of a block, are divided
GROUP_FRAMES = (1, 1500)  # least and most frames in each group
IMAGE_SIDE = 128  # pixels
FOOTPRINT_SHARE = 0.5  # share of the images that are footprints; the others are mean images
MIN_FOOTPRINT_FRAMES = 16  # shorter recordings have no footprints
FIELD_SIDE = 64  # pixels of the scene from which a block is cut for time courses
COURSE_FRAMES = (16, 800)  # least and most frames of time courses
STRENGTH_RANGE = (10.0, 3000.0)  # norm of a block's strongest time course, in noise standard deviations
MIN_STRENGTH = 0.25  # relative to the read-out's threshold, since noise lifts some weaker courses above it
# noise variance of time courses at rest, drawn log-uniformly; above 1, as pixels are brighter than their surroundings
VARIANCE_RANGE = (0.9, 1.4)
MAX_EXTRA_VARIANCE = 1.0  # most that is added at a time course's peak, relative to the variance at rest
EPSILON = 1e-6  # avoids division by zero
CHUNK_FRAMES = 512  # frames of a file that make one item

ImageGroups = FrameMeans | Footprints
Item = TypeVar("Item")


def normalize_recording(frames: np.ndarray) -> Tensor:
    """Normalize raw frames (T, Y, X) by their 3rd and 97th percentile and undo smoothing; float16, NaN where missing."""
    percentiles = Percentiles(frames.dtype, frames.size)
    percentiles.update(frames)
    values, _ = without_missing(percentiles.result((3.0, 97.0)).normalize(frames))
    return undo(values, SmoothingEstimator(values).weights(values)).half()


class Simulated(Dataset[Item]):
    """Simulated items; item i of a seed is always the same. The seeds of the evaluation's scenes are never used."""

    frame_range: tuple[int, int]  # least and most frames, drawn log-uniformly

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        return self.make_item(rng, int(np.exp(rng.uniform(*np.log(self.frame_range)))))

    def make_item(self, rng: np.random.Generator, frames: int) -> Item:
        """Simulate one item from a recording with this number of frames."""
        raise NotImplementedError


class SimulatedRecordings(Simulated[Tensor]):
    """Simulated recordings (T, Y, X), float16, normalized."""

    frame_range = RECORDING_FRAMES

    def make_item(self, rng: np.random.Generator, frames: int) -> Tensor:
        height, width = (int(n) for n in rng.integers(RECORDING_SIDES[0], RECORDING_SIDES[1] + 1, 2))
        return normalize_recording(random_recording(rng, frames, (height, width)))


class SimulatedMeans(Simulated[ImageGroups]):
    """Simulated recordings reduced to one mean image or footprint for each of GROUPS groups of frames."""

    frame_range = GROUP_FRAMES

    def make_item(self, rng: np.random.Generator, frames: int) -> ImageGroups:
        if rng.random() < FOOTPRINT_SHARE:
            return random_footprints(rng, GROUPS, max(MIN_FOOTPRINT_FRAMES, frames), IMAGE_SIDE)
        return random_frame_means(rng, GROUPS, frames, IMAGE_SIDE)


class SimulatedCourses(Simulated[Tensor]):
    """Simulated blocks of pixels reduced to their time courses, one noisy version for each of GROUPS groups of pixels.

    An item is (GROUPS, K, T): the K temporal patterns that the read-out would keep and some weaker ones, in noise whose
    variance is about 1 and grows with brightness; one course of noise alone where no pattern is strong enough. The
    groups differ in their noise alone, as if pixels were assigned to groups at random.
    """

    frame_range = COURSE_FRAMES

    def make_item(self, rng: np.random.Generator, frames: int) -> Tensor:
        courses = clean_courses(rng, frames)
        brightness = (courses - courses.median(1, keepdim=True).values).abs()
        brightness = brightness / brightness.amax(1, keepdim=True).clamp(min=EPSILON)
        variance = np.exp(rng.uniform(*np.log(VARIANCE_RANGE)))
        extra_variance = rng.uniform(0, MAX_EXTRA_VARIANCE)
        noise = torch.from_numpy(rng.standard_normal((GROUPS, *courses.shape), np.float32))
        sign = int(rng.choice([-1, 1]))
        return courses * sign + noise * (variance * (1 + extra_variance * brightness)).sqrt()


def clean_courses(rng: np.random.Generator, frames: int) -> Tensor:
    """Simulate the time courses (K, T) of a block's strongest patterns, in units of the noise; zeros where none is."""
    movie = random_scene(rng, frames, FIELD_SIDE).clean()
    top, left = rng.integers(0, FIELD_SIDE - BLOCK_SIZE + 1, 2)
    block = torch.from_numpy(movie[:, top : top + BLOCK_SIZE, left : left + BLOCK_SIZE]).flatten(
        1
    )  # (T, pixels)
    block = block / block.mean(0).clamp(min=EPSILON).sqrt()  # equal photon noise in all pixels
    block -= block.mean(0)
    strongest = float(torch.linalg.matrix_norm(block, 2))
    block *= np.exp(rng.uniform(*np.log(STRENGTH_RANGE))) / max(strongest, EPSILON)
    _, footprints = significant_patterns(
        block, block, MIN_STRENGTH * noise_edge(frames, BLOCK_SIZE, BLOCK_SIZE)
    )
    courses = (block @ footprints).mT
    return courses if len(courses) else torch.zeros(1, frames)


class FileRecordings(Dataset[Tensor]):
    """The movies of a glob pattern in chunks of CHUNK_FRAMES frames, in a seeded random order, over and over."""

    def __init__(self, pattern: str, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.chunks: list[tuple[Path, int, int]] = []  # path, first frame, end
        for name in sorted(glob.glob(pattern, recursive=True)):
            with open_movie(Path(name)) as movie:
                frames = movie.info.shape[0]
            starts = range(0, max(1, frames - CHUNK_FRAMES // 2), CHUNK_FRAMES)
            self.chunks += [(Path(name), start, min(frames, start + CHUNK_FRAMES)) for start in starts]
        if not self.chunks:
            raise FileNotFoundError(
                f"{pattern}: expected movies to train on, found no file; quote the pattern"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        epoch, position = divmod(index, len(self.chunks))
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        path, start, stop = self.chunks[rng.permutation(len(self.chunks))[position]]
        with open_movie(path) as movie:
            return normalize_recording(movie.read(start, stop))
