"""Line noise: what all voxels of a row, or of a column, share in one frame.

Electronics hum while a row is scanned, and a camera's amplifiers drift while it is read. A blind spot does not hide such
noise, since the other voxels of the row reveal it; but they also allow to measure it. Line noise differs from light by
its roughness: it changes from each row to the next and from each frame to the next, alike in distant parts of the row.
Where it is found, the means of all rows of all frames go through a Wiener filter, whose output is subtracted. Light
lasts and spreads, so it exceeds the noise in low frequencies of these means, while line noise is white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from denoise.waves import dct_matrix, octave_membership

PARTS = 3  # of a line, which have to agree
GAP = 8  # pixels between two parts: noise that neighbours share does not reach that far
MIN_WIDTH = 8  # pixels of a part
MIN_LINES = 16
MAX_LINES = 256  # that are measured
MIN_SHARE = 1e-3  # of the variance of a voxel's noise: less does no harm
MIN_SIGNIFICANCE = 5.0  # standard errors of the variance
ROUGHNESS_GAIN = 12  # variance of white noise's differences in time of second differences in space
LIGHT_SIGNIFICANCE = 3.0  # standard errors by which a power exceeds that of noise where there is light
LIGHT_PENALTY = 10.0  # harm of light that is removed relative to noise that is left: light lasts
MAX_FRAMES = 1024  # that are filtered together
TINY = torch.finfo().tiny


@dataclass(frozen=True)
class LineNoise:
    """Noise that the lines of a movie share: rows (axis 1) or columns (axis 2)."""

    axis: int
    variance: float = 0.0  # of the noise that is added to a line, in the movie's units squared; 0: none
    share: float = 0.0  # of this variance in that of a voxel's noise
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))  # (lines, voxels): in the mean of a line
    common_variance: float = 0.0  # of the noise in the mean of all lines, times their number

    def means(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Return weighted means of the lines of frames (n, Y, X) relative to an image (Y, X): (n, lines).

        (n, 0) if there is no line noise. Missing voxels (NaN) are replaced by those of the image.
        """
        if not self.variance:
            return frames.new_zeros(len(frames), 0)
        residual = torch.nan_to_num(frames - reference).movedim(self.axis, 1)
        return (residual * self.weights).sum(2)

    def offsets(self, means: Tensor) -> Tensor:
        """Estimate the noise of each line from the means (n, lines) of all lines of successive frames: (n, lines)."""
        if not self.variance:
            return means
        sections = means.tensor_split(math.ceil(len(means) / MAX_FRAMES))
        return torch.cat(
            [extract_noise(section, self.variance, self.common_variance) for section in sections]
        )


def estimate_row_and_column_noise(frames: Tensor) -> tuple[LineNoise, LineNoise]:
    """Measure the noise of rows and that of columns of a movie, by its first frames (n, Y, X), NaN where missing."""
    rows, columns = (estimate_line_noise(frames, axis) for axis in (1, 2))
    if rows.variance and columns.variance:
        # the mean of all rows contains noise of columns, too: both are removed as noise of rows
        height, width = frames.shape[1:]
        rows = replace(rows, common_variance=rows.variance + height / width * columns.variance)
        columns = replace(columns, common_variance=0.0)
    return rows, columns


def estimate_line_noise(frames: Tensor, axis: int) -> LineNoise:
    """Measure the line noise of a movie, by its first frames (n, Y, X), NaN where missing; axis as in `LineNoise`.

    Its variance is the covariance of distant parts of a line, after the removal of what is smooth in time or space.
    """
    lines = frames.movedim(axis, 1)
    sample = varying_lines(lines)
    n, count, voxels = sample.shape
    width = (voxels - (PARTS - 1) * GAP) // PARTS
    if n < 2 or count < MIN_LINES or width < MIN_WIDTH:
        return LineNoise(axis)
    rough = torch.nan_to_num(roughness(sample))
    parts = [rough.narrow(2, part * (width + GAP), width).mean(2) for part in range(PARTS)]
    products = [parts[i] * parts[j] for i in range(PARTS) for j in range(i)]  # (n - 1, lines - 2) each
    smallest = min(products, key=lambda product: float(product.mean()))
    total, shared = float(rough.square().mean()), float(smallest.mean())
    error = float(smallest.mean(0).std()) / smallest.shape[1] ** 0.5
    if not shared > max(MIN_SHARE * total, MIN_SIGNIFICANCE * error):
        return LineNoise(axis)
    return LineNoise(axis, shared, shared / total, voxel_weights(lines), shared)


def varying_lines(lines: Tensor) -> Tensor:
    """Return the middle of lines (n, lines, voxels), MAX_LINES at most, without borders and masks that never change."""
    sample = lines[:, max(0, lines.shape[1] - MAX_LINES) // 2 :][:, :MAX_LINES]
    varies = (torch.nan_to_num(sample.diff(dim=0)) != 0).any(0)
    return sample[:, varies.any(1)][..., varies.any(0)]


def voxel_weights(lines: Tensor) -> Tensor:
    """Return weights of the voxels of lines (n, lines, voxels) by inverse variances, of sum 1: (lines, voxels)."""
    residual = lines - lines.nanmean(0)
    variance = torch.stack([line.square().nanmean(0) for line in residual.unbind(1)])
    weights = torch.where(variance > 0, 1 / variance, 0)
    return weights / weights.sum(1, keepdim=True).clamp(min=TINY)


def roughness(lines: Tensor) -> Tensor:
    """Return differences in time of second differences between neighbouring lines (n, lines, ...).

    They are scaled so that white noise keeps its variance.
    """
    return lines.diff(dim=0).diff(n=2, dim=1) / ROUGHNESS_GAIN**0.5


def extract_noise(means: Tensor, variance: float, common_variance: float) -> Tensor:
    """Estimate white noise of this variance in line means (n, lines), by a Wiener filter of their DCT in octaves.

    What is the same in all n frames is left out. common_variance: variance in the mean of all lines of a frame.
    """
    frames, lines = means.shape
    dct_time, dct_space = dct_matrix(frames), dct_matrix(lines)
    spectrum = dct_time @ means @ dct_space.T
    octaves_time, octaves_space = octave_membership(frames), octave_membership(lines)
    counts = octaves_time.sum(0)[:, None] * octaves_space.sum(0)
    power = octaves_time.T @ spectrum.square() @ octaves_space / counts
    shared = torch.full_like(power, variance)
    shared[:, 0] = common_variance
    noise = roughness(means).square().mean() + shared - variance  # of voxels and of lines
    noise = noise * (1 + LIGHT_SIGNIFICANCE * (2 / counts).sqrt())
    light = (power - noise).clamp(min=0)
    gain = shared / (power + LIGHT_PENALTY * light).clamp(min=shared.clamp(min=TINY))
    gain[0] = 0
    return dct_time.T @ (spectrum * (octaves_time @ gain @ octaves_space.T)) @ dct_space
