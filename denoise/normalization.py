"""Percentile normalization of a whole recording; the percentiles are found in one pass and in constant memory.

Source: percentile normalization as in CSBDeep (Weigert et al., Nature Methods 2018), without clipping.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

MIN_PEAK = 4.0  # a detector cuts off at a value that so many times as many voxels have as any of
VALUES_BELOW = 8  # the values below it
MAX_SAMPLES = 4_000_000  # voxels, about, kept for the percentiles of movies without a 16-bit histogram


@dataclass(frozen=True)
class PercentileNormalization:
    """Maps intensities x to (x - low) / scale, and back."""

    low: float  # the lower percentile
    high: float  # the upper one
    spread: float  # high - low; where they coincide, the difference of the extremes: 0 for a constant movie

    @property
    def scale(self) -> float:
        return self.spread or 1.0

    def normalize(self, frames: np.ndarray) -> np.ndarray:
        """Normalize frames (n, Y, X) of any real dtype to float32, dimensionless. The difference is exact."""
        # float32 holds a 16-bit integer exactly
        wide: np.ndarray = frames.astype("f8" if frames.dtype.itemsize >= 4 else "f4")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold counts as missing
            return np.asarray((wide - self.low) / self.scale, np.float32)

    def denormalize(self, frames: np.ndarray, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
        """Convert normalized frames (n, Y, X) to the input's units, in a float dtype; beyond its range to infinity."""
        with np.errstate(over="ignore", invalid="ignore"):  # the writer refuses frames that are not finite
            return (frames.astype(np.float64) * self.scale + self.low).astype(dtype, copy=False)


def normalization_of(low: float, high: float, smallest: float, largest: float) -> PercentileNormalization:
    """Return the normalization by a movie's percentiles or, if they coincide, by its extremes; all are finite."""
    return PercentileNormalization(low, high, high - low or largest - smallest)


def lattice_step(least: int, size: int, max_factor: int) -> int:
    """Return the smallest step from `least` on whose greatest common factor with `size` is at most `max_factor`.

    A lattice of that step over rows of `size` voxels reaches at least one in `max_factor` columns. A step that divides
    the size would always come to the same few columns.

    >>> lattice_step(111, 333, 1), lattice_step(3, 96, 3)
    (112, 3)
    """
    return next(step for step in itertools.count(least) if math.gcd(step, size) <= max_factor)


class Percentiles:
    """Percentiles of the finite voxels of a movie, which is fed in blocks.

    Exact for integers of 8 and 16 bits (a histogram) and for any movie of up to MAX_SAMPLES voxels. Longer movies of
    other dtypes are sampled on a regular lattice that reaches every column, and in time every pixel: at most twice
    MAX_SAMPLES voxels, and more than a tenth of it. The rank of the result is then off by less than 0.1 percentage
    points (three standard deviations of a sample of 300,000).
    """

    def __init__(self, dtype: np.dtype, voxels: int) -> None:
        self.dtype = np.dtype(dtype)
        self.counts = (
            np.zeros(1 << 16, np.int64) if self.dtype.kind in "iu" and self.dtype.itemsize <= 2 else None
        )
        self.min_step = max(1, voxels // MAX_SAMPLES) | 1  # of the lattice
        self.position = 0  # voxels before the next block
        self.samples: list[np.ndarray] = []
        self.extremes = (np.inf, -np.inf)

    def update(self, frames: np.ndarray) -> None:
        """Add frames (n, Y, X) in the movie's dtype."""
        values = frames.reshape(-1)
        if self.counts is not None:
            codes = values.view(f"u{values.itemsize}").astype(np.intp)
            self.counts += np.bincount(codes, minlength=self.counts.size)
            return
        finite = values[np.isfinite(values)]
        if finite.size:
            self.extremes = (
                min(self.extremes[0], float(finite.min())),
                max(self.extremes[1], float(finite.max())),
            )
        step = lattice_step(self.min_step, math.prod(frames.shape[1:]), 1)
        sample = values[-self.position % step :: step]
        self.samples.append(sample[np.isfinite(sample)].astype(np.float64))
        self.position += values.size

    def skip(self, voxels: int) -> None:
        """Skip voxels that are fed to another object; see `add`."""
        self.position += voxels

    def add(self, other: Percentiles) -> None:
        """Add the voxels that another object was fed, of the same movie."""
        if self.counts is not None and other.counts is not None:
            self.counts += other.counts
        self.samples.extend(other.samples)
        self.extremes = (
            min(self.extremes[0], other.extremes[0]),
            max(self.extremes[1], other.extremes[1]),
        )

    def result(self, percentiles: tuple[float, float]) -> PercentileNormalization:
        """Return the normalization by these percentiles; it is (x - 0) / 1 for a movie without a finite voxel."""
        values, weights = self._distribution()
        if not values.size:
            return PercentileNormalization(0.0, 0.0, 0.0)
        low, high = (weighted_percentile(values, weights, p) for p in percentiles)
        extremes = (float(values[0]), float(values[-1])) if self.counts is not None else self.extremes
        return normalization_of(low, high, *extremes)

    def saturated(self) -> float:
        """Return the share of voxels at which the detector was saturated; 0 if the dtype is not an 8 or 16-bit integer.

        They have the largest value of all. It is the largest one of the type, or far more frequent than those below it,
        as that of 12 bits in 16.
        """
        if self.counts is None:
            return 0.0
        values, counts = self._distribution()
        below = counts[-1 - VALUES_BELOW : -1]
        if values[-1] < np.iinfo(self.dtype).max and not (len(below) and counts[-1] > MIN_PEAK * below.max()):
            return 0.0
        return float(counts[-1] / counts.sum())

    def wrapped(self) -> float:
        """Return the share of voxels that seem to be negative values written as unsigned 16-bit integers, else 0.

        They are in the top quarter of the range if all others are in the bottom quarter.
        """
        if self.dtype != np.uint16 or self.counts is None:
            return 0.0
        low, *middle, high = np.add.reduceat(self.counts, np.arange(0, 1 << 16, 1 << 14)).tolist()
        several = np.count_nonzero(self.counts[3 << 14 :]) > 1
        return float(high / self.counts.sum()) if low and several and not any(middle) else 0.0

    def _distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sorted distinct values and how many voxels have each."""
        if self.counts is None:
            samples = np.concatenate(self.samples) if self.samples else np.zeros(0)
            return np.unique(samples, return_counts=True)
        kind = np.dtype(f"{self.dtype.kind}{self.dtype.itemsize}")
        codes = np.flatnonzero(self.counts)
        values = codes.astype(f"u{kind.itemsize}").view(kind).astype(np.float64)
        order = np.argsort(values)
        return values[order], self.counts[codes[order]]


def weighted_percentile(values: np.ndarray, weights: np.ndarray, percentile: float) -> float:
    """Return what numpy.percentile (linear interpolation) gives for sorted values repeated weights times."""
    ends = np.cumsum(weights)
    rank = percentile / 100 * (ends[-1] - 1)
    below, above = np.searchsorted(ends, [np.floor(rank), np.ceil(rank)], side="right")
    return float(values[below] + (values[above] - values[below]) * (rank - np.floor(rank)))
