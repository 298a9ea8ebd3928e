"""Noise2Void's blind spot: hide voxels of a movie, and learn to predict them from everything else.

Sources: Noise2Void (Krull et al., CVPR 2019): masked voxels are replaced by a random neighbour, the loss looks at them
alone. Structured Noise2Void (Broaddus et al., ISBI 2020): where noise is correlated along an axis, the mask covers a
run along it.

The context (mean, activity, ...) is computed from the masked movie, so that it cannot tell the hidden value either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import Context, ContextSums, dropped_rows

DENSITY = 0.04  # share of the patch's voxels that are hidden
REACH = (2, 2, 2)  # (T, Y, X) a replacement comes from at most this far
RUN = 5  # voxels hidden along an axis of correlated noise; the centre is scored
CORRELATED = 0.08  # lag-1 correlation of the noise from which an axis counts as correlated


@dataclass
class Sample:
    """One training sample: what the network sees and what it has to predict, in units of the noise."""

    residual: Tensor  # (1, T, Y, X) of the patch, masked
    images: Tensor  # (K, Y, X) of the masked movie
    standard_error: Tensor  # (1, Y, X)
    target: Tensor  # (1, T, Y, X) of the patch as recorded
    scored: Tensor  # (1, T, Y, X) bool: hidden voxels that count


def correlated_axes(frames: Tensor) -> tuple[bool, bool]:
    """Along which of (y, x) neighbouring voxels share noise: frames (T, Y, X), measured on frame differences."""
    if frames.shape[0] < 2:
        return False, False
    steps = torch.nan_to_num(frames.diff(dim=0))
    power = steps.square().mean().clamp(min=1e-30)
    along_y = (steps[:, 1:] * steps[:, :-1]).mean() / power if steps.shape[1] > 1 else power.new_zeros(())
    along_x = (steps[..., 1:] * steps[..., :-1]).mean() / power if steps.shape[2] > 1 else power.new_zeros(())
    return bool(along_y > CORRELATED), bool(along_x > CORRELATED)


def neighbour_offsets(shape: tuple[int, ...], correlated: tuple[bool, bool], device: torch.device) -> Tensor:
    """Candidate displacements (N, 3) to a replacement: never the voxel itself, nor one that shares its noise."""
    reach = [min(r, size - 1) for r, size in zip(REACH, shape)]
    axes = [torch.arange(-r, r + 1, device=device) for r in reach]
    offsets = torch.cartesian_prod(*axes)  # (N, 3)
    shares_noise = torch.ones(len(offsets), dtype=torch.bool, device=device)
    for axis, shared in enumerate((False, *correlated)):
        if not shared:
            shares_noise &= offsets[:, axis] == 0
    return offsets[~shares_noise]


def blind(
    patch: Tensor, correlated: tuple[bool, bool], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Hide voxels of a patch (T, Y, X): the masked patch, what is hidden and what of it is scored (both bool).

    Each hidden voxel takes the value of a neighbour (wrapping around the patch at its border), drawn uniformly.
    """
    offsets = neighbour_offsets(tuple(patch.shape), correlated, patch.device)
    if not len(offsets):
        nothing = torch.zeros_like(patch, dtype=torch.bool)
        return patch, nothing, nothing
    run = [1, *(RUN if shared else 1 for shared in correlated)]
    density = DENSITY * 3 / (run[1] + run[2] + 1)  # runs hide more voxels for each one that is scored
    centres = torch.rand(patch.shape, device=patch.device, generator=generator) < density
    hidden = centres
    for axis, length in zip((1, 2), run[1:]):
        if length > 1:
            hidden = hidden | dilate(centres, axis, length)
    where = hidden.nonzero()  # (M, 3)
    choice = torch.randint(len(offsets), (len(where),), device=patch.device, generator=generator)
    size = torch.tensor(patch.shape, device=patch.device)
    t, y, x = ((where + offsets[choice]) % size).unbind(-1)
    masked = patch.clone()
    masked[hidden] = patch[t, y, x]
    return masked, hidden, centres


def dilate(mask: Tensor, axis: int, length: int) -> Tensor:
    """Grow a mask (T, Y, X) along one axis to runs of odd length."""
    kernel = [1, 1, 1]
    kernel[axis] = length
    return F.max_pool3d(mask[None, None].float(), kernel, 1, [k // 2 for k in kernel])[0, 0] > 0


def make_sample(
    movie: Tensor, start: int, frames: int, correlated: tuple[bool, bool], generator: torch.Generator
) -> Sample:
    """Hide voxels in frames [start, start + frames) of a movie (T, Y, X) float32 and compute its context without them."""
    movie = torch.where(dropped_rows(movie)[..., None], torch.nan, movie)
    patch = movie[start : start + frames]
    masked, hidden, centres = blind(patch, correlated, generator)
    known = torch.isfinite(patch)
    # the context leaves hidden voxels out, except in a pixel that has no other frame: there the replacement stands
    left_out = hidden & (hidden.sum(0) < len(movie))
    seen = torch.where(left_out, torch.nan, masked)
    context = context_of(torch.cat([movie[:start], seen, movie[start + frames :]]))
    return Sample(
        residual=context.whiten(masked)[None],
        images=context.images,
        standard_error=context.standard_error,
        target=context.whiten(patch)[None],
        scored=(centres & known)[None],
    )


def context_of(movie: Tensor) -> Context:
    """The context of a movie (T, Y, X) that is at hand as a whole."""
    sums = ContextSums(torch.nan_to_num(movie.nanmean(0)))
    sums.update(movie)
    return sums.context()


def loss_of(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean squared error over the hidden voxels alone, in units of the noise variance. All (B, 1, T, Y, X)."""
    return ((prediction - target).square() * scored).sum() / scored.sum().clamp(min=1)
