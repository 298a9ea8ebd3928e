"""Noisy movies to train on: an endless, seeded stream of simulated ones, or the files of a folder.

Every item is one recording (T, Y, X), float16, prepared by the code that inference uses, or what groups of the frames or
pixels of one show. No item holds clean truth: all that it shows is noisy.
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
from denoise.readout import BLOCK, noise_edge, significant_patterns
from denoise.smoothing import SmoothingEstimator, undo
from simulation import (
    Footprints,
    FrameMeans,
    random_footprints,
    random_frame_means,
    random_recording,
    random_scene,
)

LENGTHS = (64, 700)  # frames of a simulated recording
SIZES = (96, 160)  # pixels of its sides
GROUPS = 8  # of the frames of a recording of which means are taken, or of a block's pixels
GROUP_FRAMES = (1, 1500)  # in each
SIDE = 128  # pixels of a mean image
FOOTPRINTS = 0.5  # share of the images that are footprints, not the mean
FEWEST = 16  # frames of a recording of which footprints are known
FIELD = 64  # pixels of the scene around a block of which time courses are taken
COURSE_LENGTHS = (16, 800)  # frames of a recording of which time courses are taken
STRENGTHS = (10.0, 3000.0)  # of a block's strongest time course: root of the sum of squares, in its noise
WEAKEST = 0.25  # times the edge of the read-out: some of what it keeps is weaker than it seems
VARIANCES = (0.9, 1.4)  # of their noise at rest, drawn log-uniformly: more in bright pixels than around them
BRIGHTEST = 1.0  # times that may be added where they are brightest
TINY = 1e-6
CHUNK = 512  # frames of a file that make one item

Means = FrameMeans | Footprints
Item = TypeVar("Item")


def normalized(frames: np.ndarray) -> Tensor:
    """(T, Y, X) as recorded -> float16, by its own 3rd and 97th percentile, its smoothing undone, NaN where missing."""
    percentiles = Percentiles(frames.dtype, frames.size)
    percentiles.update(frames)
    values, _ = without_missing(percentiles.result((3.0, 97.0)).normalize(frames))
    return undo(values, SmoothingEstimator(values).weights(values)).half()


class Simulated(Dataset[Item]):
    """Item i of a seed is always the same. Seeds of the evaluation's scenes are not among them."""

    lengths: tuple[int, int]  # frames, drawn log-uniformly

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        return self.make(rng, int(np.exp(rng.uniform(*np.log(self.lengths)))))

    def make(self, rng: np.random.Generator, frames: int) -> Item:
        """An item of a recording of so many frames."""
        raise NotImplementedError


class SimulatedRecordings(Simulated[Tensor]):
    """Recordings as they are."""

    lengths = LENGTHS

    def make(self, rng: np.random.Generator, frames: int) -> Tensor:
        height, width = (int(n) for n in rng.integers(SIZES[0], SIZES[1] + 1, 2))
        return normalized(random_recording(rng, frames, (height, width)))


class SimulatedMeans(Simulated[Means]):
    """Recordings reduced to what GROUPS groups of their frames show of an image; `frames` in each group."""

    lengths = GROUP_FRAMES

    def make(self, rng: np.random.Generator, frames: int) -> Means:
        if rng.random() < FOOTPRINTS:
            return random_footprints(rng, GROUPS, max(FEWEST, frames), SIDE)
        return random_frame_means(rng, GROUPS, frames, SIDE)


class SimulatedCourses(Simulated[Tensor]):
    """Blocks of recordings reduced to what GROUPS groups of their pixels show of time courses.

    (GROUPS, K, T): the K patterns that the read-out would keep, and some weaker ones, in noise of a variance about 1
    that grows with the light; nothing but noise where there is none. Of all but their noise the groups hold the same,
    as if pixels were dealt out at random.
    """

    lengths = COURSE_LENGTHS

    def make(self, rng: np.random.Generator, frames: int) -> Tensor:
        movie = random_scene(rng, frames, FIELD).clean()
        top, left = rng.integers(0, FIELD - BLOCK + 1, 2)
        block = torch.from_numpy(movie[:, top : top + BLOCK, left : left + BLOCK]).flatten(1)
        block = block / block.mean(0).clamp(min=TINY).sqrt()  # the noise of photons
        block -= block.mean(0)
        strongest = float(torch.linalg.matrix_norm(block, 2))
        block *= np.exp(rng.uniform(*np.log(STRENGTHS))) / max(strongest, TINY)
        _, footprints = significant_patterns(block, block, WEAKEST * noise_edge(frames, BLOCK, BLOCK))
        courses = (block @ footprints).mT  # (K, T)
        if not len(courses):
            courses = torch.zeros(1, frames)
        light = (courses - courses.median(1, keepdim=True).values).abs()
        light = light / light.amax(1, keepdim=True).clamp(min=TINY)
        usual, more = np.exp(rng.uniform(*np.log(VARIANCES))), rng.uniform(0, BRIGHTEST)
        noise = torch.from_numpy(rng.standard_normal((GROUPS, *courses.shape), np.float32))
        return courses * int(rng.choice([-1, 1])) + noise * (usual * (1 + more * light)).sqrt()


class FileRecordings(Dataset[Tensor]):
    """The movies of a glob pattern in chunks of CHUNK frames, in a seeded random order, over and over."""

    def __init__(self, pattern: str, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.chunks: list[tuple[Path, int, int]] = []
        for name in sorted(glob.glob(pattern, recursive=True)):
            with open_movie(Path(name)) as movie:
                frames = movie.info.shape[0]
            starts = range(0, max(1, frames - CHUNK // 2), CHUNK)
            self.chunks += [(Path(name), start, min(frames, start + CHUNK)) for start in starts]
        if not self.chunks:
            raise FileNotFoundError(
                f"{pattern}: expected movies to train on, found no file; quote the pattern"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        epoch, position = divmod(index, len(self.chunks))
        order = np.random.default_rng(np.random.SeedSequence([self.seed, epoch])).permutation(
            len(self.chunks)
        )
        path, start, stop = self.chunks[order[position]]
        with open_movie(path) as movie:
            return normalized(movie.read(start, stop))
