"""Detail of the scene that denoising removed with the noise: estimated from the residual, and given back.

The variance of noise depends on the scene's brightness alone. Where displacements are wrong, or were not found, and
where frames are interpolated, the residual is strongest at and beside the finest structure:

    variance of (recording - output) = read variance + gain * brightness + lost * squared curvature around

Nonnegative least squares over the voxels separate the three. The last one is an error of the output, so by inverse
variances the recording gets a share in the output. In recordings with much noise the share is negligible; in those with
hardly any it keeps the output from being worse than the recording.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import BLACK_QUANTILE

MAX_VOXELS = 1 << 16  # that the fit uses
ROUNDS = 15  # of least squares, each weighted by the variances of the one before
MAX_RATIO = 256.0  # of a squared residual to its variance: what exceeds it is an outlier
MAX_LOST = 0.004  # variance per squared curvature, unless that is more than the noise: else no detail
WINDOW = 3  # pixels a side, over which squared curvature is averaged, since interpolation rings
TOLERANCE = 1.0  # error, in units of the noise's variance, up to which nothing is given back
MIN_VARIANCE = 1e-12  # expected variance of any voxel, as part of the mean variance
TINY = 1e-30  # replaces zero in denominators


@dataclass(frozen=True)
class Detail:
    """Model of the variance of the residual, recording - output, as above."""

    dark: float = 0.0  # level from which brightness is counted
    read_variance: float = 0.0
    gain: float = 0.0  # variance per brightness
    lost: float = 0.0  # variance per squared curvature

    def give_back(self, frames: Tensor, recording: Tensor) -> Tensor:
        """Return denoised frames (n, Y, X), mixed with the recording (n, Y, X) where that is not missing (NaN)."""
        noise = self.read_variance + self.gain * (frames - self.dark).clamp(min=0)
        excess = (1 + self.lost * squared_curvature(frames) / noise.clamp(min=TINY)) / (1 + TOLERANCE)
        share = 1 - 1 / excess.clamp(min=1)
        return frames + (share * (recording - frames)).nan_to_num(0.0)


NO_DETAIL = Detail()


def estimate_detail(frames: Tensor, recording: Tensor) -> Detail:
    """Estimate what denoised frames (n, Y, X) lost of a recording (n, Y, X), NaN where missing."""
    step = math.ceil(frames.numel() / MAX_VOXELS) | 1  # odd, so that all columns are sampled
    images = (frames, squared_curvature(frames), (recording - frames).square())
    brightness, curvature, residual = (image.flatten()[::step] for image in images)
    dark = brightness.quantile(BLACK_QUANTILE)
    valid = residual.isfinite()
    terms = torch.stack([torch.ones_like(brightness), (brightness - dark).clamp(min=0), curvature])
    terms, residual = terms[:, valid].double(), residual[valid].double()
    if not bool(residual.any()):
        return NO_DETAIL
    coefficients = fit_variance(terms, residual)
    *noise, excess = (coefficients * terms.mean(1)).tolist()  # mean variances
    read_variance, gain, lost = coefficients.tolist()
    return Detail(float(dark), read_variance, gain, lost if excess > sum(noise) else min(lost, MAX_LOST))


def fit_variance(terms: Tensor, squares: Tensor) -> Tensor:
    """Return coefficients (K,) of terms (K, N) whose sum is the variance of a residual, by its squares (N,)."""
    mean = squares.mean()
    coefficients = terms.new_zeros(len(terms))
    coefficients[0] = mean
    for _ in range(ROUNDS):
        variance = (coefficients @ terms).clamp(min=float(mean) * MIN_VARIANCE)
        coefficients = nonnegative_least_squares(terms / variance, (squares / variance).clamp(max=MAX_RATIO))
    return coefficients


def squared_curvature(frames: Tensor) -> Tensor:
    """Return the squared second differences of frames (n, Y, X) along y plus those along x, averaged over a WINDOW.

    The outermost pixels continue beyond the edges.
    """
    padded = F.pad(frames, [1] * 4, mode="replicate")
    along_y = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] - 2 * frames
    along_x = padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - 2 * frames
    squared = F.pad(along_y.square_() + along_x.square_(), [WINDOW // 2] * 4, mode="replicate")
    return F.avg_pool2d(squared, WINDOW, 1)


def nonnegative_least_squares(terms: Tensor, target: Tensor) -> Tensor:
    """Return the coefficients (K,) >= 0 of terms (K, N) whose sum is nearest to a target (N,).

    All subsets of the terms are tried, since there are few: the best one without negative coefficients is the answer.
    """
    gram, projection = terms @ terms.T, terms @ target
    scale = gram.diagonal().sqrt().clamp(min=TINY)
    gram, projection = gram / scale[:, None] / scale, projection / scale
    best, min_error = torch.zeros_like(projection), 0.0
    for count in range(1, len(terms) + 1):
        for subset in map(list, combinations(range(len(terms)), count)):
            trial = torch.zeros_like(projection)
            trial[subset] = torch.linalg.pinv(gram[subset][:, subset], hermitian=True) @ projection[subset]
            error = float(trial @ gram @ trial - 2 * trial @ projection)
            if bool((trial >= 0).all()) and error < min_error:
                best, min_error = trial, error
    return best / scale
