"""Detail of the scene that is lost with the noise: found in what was taken away, and given back.

Of the scene noise knows how bright it is, and no more. Where displacements are wrong, or were not found, and where
frames are interpolated between their pixels, what is taken away is strongest where the scene is finest, and beside it:

    variance of (recording - output) = read variance + gain * brightness + lost * curvature^2 around

Nonnegative least squares over the voxels tell the three apart. The last one is an error of the output, and by inverse
variances the recording has a share in it. In recordings with much noise that is next to nothing, in those with hardly
any it is what keeps them from coming out worse than they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import DARKEST

TOLD_BY = 1 << 16  # voxels at most
ROUNDS = 15  # of least squares, each by the variances found before
HIGHEST = 256.0  # times its variance: what was taken away, squared, and is more, is one odd voxel
MOST = 0.004  # of the squared curvature may be lost, unless all that is more than the noise: else it is no detail
AROUND = 3  # pixels a side, over which curvature is averaged: what is interpolated rings
TOLERANCE = 1.0  # of the noise's variance: what is lost is left so far
NEARLY_NONE = 1e-12  # of the mean variance: none is expected to be less
TINY = 1e-30  # for zero, where something is divided by it


@dataclass(frozen=True)
class Detail:
    """The variance of what was taken away, as above; brightness counts from `dark` on."""

    dark: float = 0.0
    read_variance: float = 0.0
    gain: float = 0.0
    lost: float = 0.0

    def give_back(self, frames: Tensor, recording: Tensor) -> Tensor:
        """Frames (n, Y, X) with what they lack of the recording (n, Y, X); nothing where that is missing, NaN."""
        noise = self.read_variance + self.gain * (frames - self.dark).clamp(min=0)
        excess = (1 + self.lost * squared_curvature(frames) / noise.clamp(min=TINY)) / (1 + TOLERANCE)
        share = 1 - 1 / excess.clamp(min=1)
        return frames + (share * (recording - frames)).nan_to_num(0.0)


NO_DETAIL = Detail()


def detail_of(frames: Tensor, recording: Tensor) -> Detail:
    """What frames (n, Y, X) lack of a recording (n, Y, X), NaN where missing."""
    step = math.ceil(frames.numel() / TOLD_BY) | 1  # odd, so that voxels of all columns tell
    told, curved, taken = (
        its.flatten()[::step] for its in (frames, squared_curvature(frames), (recording - frames).square())
    )
    dark = told.quantile(DARKEST)
    known = taken.isfinite()
    terms = torch.stack([torch.ones_like(told), (told - dark).clamp(min=0), curved])[:, known].double()
    taken = taken[known].double()
    if not bool(taken.any()):
        return NO_DETAIL
    mean = taken.mean()
    amounts = terms.new_zeros(len(terms))
    amounts[0] = mean
    for _ in range(ROUNDS):
        expected = (amounts @ terms).clamp(min=float(mean) * NEARLY_NONE)
        amounts = nonnegative(terms / expected, (taken / expected).clamp(max=HIGHEST))
    *noise, detail = (amounts * terms.mean(1)).tolist()
    read_variance, gain, lost = amounts.tolist()
    return Detail(float(dark), read_variance, gain, lost if detail > sum(noise) else min(lost, MOST))


def squared_curvature(frames: Tensor) -> Tensor:
    """Of frames (n, Y, X), along y and x together, mean of those around; the outermost go on beyond the edges."""
    beyond = F.pad(frames, [1] * 4, mode="replicate")
    along_y = beyond[:, 2:, 1:-1] + beyond[:, :-2, 1:-1] - 2 * frames
    along_x = beyond[:, 1:-1, 2:] + beyond[:, 1:-1, :-2] - 2 * frames
    squared = F.pad(along_y.square_() + along_x.square_(), [AROUND // 2] * 4, mode="replicate")
    return F.avg_pool2d(squared, AROUND, 1)


def nonnegative(terms: Tensor, target: Tensor) -> Tensor:
    """Amounts (K,) of terms (K, N), none of them negative, whose sum is nearest to a target (N,).

    The best of all choices of terms whose own least squares are not negative: there are few.
    """
    power, shared = terms @ terms.T, terms @ target
    scale = power.diagonal().sqrt().clamp(min=TINY)
    power, shared = power / scale[:, None] / scale, shared / scale
    best, error = torch.zeros_like(shared), 0.0
    for count in range(1, len(terms) + 1):
        for chosen in map(list, combinations(range(len(terms)), count)):
            amounts = torch.zeros_like(shared)
            amounts[chosen] = torch.linalg.pinv(power[chosen][:, chosen], hermitian=True) @ shared[chosen]
            its = float(amounts @ power @ amounts - 2 * amounts @ shared)
            if bool((amounts >= 0).all()) and its < error:
                best, error = amounts, its
    return best / scale
