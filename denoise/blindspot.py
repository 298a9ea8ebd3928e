"""Noise2Void's blind spot: hide voxels of a movie, and learn to predict them from everything else.

Sources: Noise2Void (Krull et al., CVPR 2019): masked voxels are replaced by a random neighbour, and only they enter the
loss. Structured Noise2Void (Broaddus et al., ISBI 2020): where noise is correlated along an axis, the mask covers a
run along it.

The context (mean, activity, ...) is computed from the masked movie, so that it cannot leak the hidden value either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import Context, ContextSums, inpaint

DENSITY = 0.04  # share of the patch's voxels that are hidden
MAX_OFFSET = (2, 2, 2)  # (T, Y, X) voxels from a hidden voxel to its replacement, at most
RUN_LENGTH = 5  # voxels hidden along an axis of correlated noise; only the centre is scored


@dataclass
class Samples:
    """A batch of training samples: the network's input and the target of its output, in units of the noise."""

    residual: Tensor  # (B, 1, T, Y, X) of the patches, masked
    images: Tensor  # (B, K, Y, X) of the masked movies
    standard_error: Tensor  # (B, 1, Y, X)
    target: Tensor  # (B, 1, T, Y, X) of the patches as recorded
    scored: Tensor  # (B, 1, T, Y, X) bool: hidden voxels that enter the loss


def neighbour_offsets(shape: tuple[int, ...], correlated: tuple[bool, bool], device: torch.device) -> Tensor:
    """Return the candidate offsets (N, 3) of a replacement: never the voxel itself, nor one that shares its noise.

    shape: (T, Y, X) of the patch. correlated: whether neighbours along (y, x) share noise.
    """
    limits = [min(limit, size - 1) for limit, size in zip(MAX_OFFSET, shape)]
    axes = [torch.arange(-limit, limit + 1, device=device) for limit in limits]
    offsets = torch.cartesian_prod(*axes)  # (N, 3)
    shares_noise = torch.ones(len(offsets), dtype=torch.bool, device=device)
    for axis, shared in enumerate((False, *correlated)):
        if not shared:
            shares_noise &= offsets[:, axis] == 0
    return offsets[~shares_noise]


def draw_centres(patches: Tensor, correlated: tuple[bool, bool], generator: torch.Generator) -> Tensor:
    """Draw the mask of voxels of patches (B, T, Y, X) to predict: fewer where a run is hidden around each one."""
    density = DENSITY * 3 / (sum(run_lengths(correlated)) + 1)
    return torch.rand(patches.shape, device=patches.device, generator=generator) < density


def run_lengths(correlated: tuple[bool, bool]) -> list[int]:
    """Return the number of voxels hidden along Y and along X around a centre."""
    return [RUN_LENGTH if shared else 1 for shared in correlated]


def blind(
    patches: Tensor, centres: Tensor, correlated: tuple[bool, bool], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide the centres of patches (B, T, Y, X) and the voxels that share their noise.

    Returns the masked patches and the mask of hidden voxels. Each hidden voxel takes the value of a neighbour, drawn
    uniformly; neighbours wrap around at the border of the patch.
    """
    offsets = neighbour_offsets(tuple(patches.shape[1:]), correlated, patches.device)
    if not len(offsets):
        return patches, torch.zeros_like(centres)
    hidden = dilate(centres, run_lengths(correlated))
    batch, *place = hidden.nonzero().unbind(-1)
    choice = torch.randint(len(offsets), (len(batch),), device=patches.device, generator=generator)
    source = [
        (index + offset) % size
        for index, offset, size in zip(place, offsets[choice].unbind(-1), patches.shape[1:])
    ]
    masked = patches.clone()
    masked[batch, place[0], place[1], place[2]] = patches[batch, source[0], source[1], source[2]]
    return masked, hidden


def dilate(mask: Tensor, run: list[int]) -> Tensor:
    """Grow each voxel of a mask (B, T, Y, X) to runs of odd lengths along Y and along X."""
    grown = mask
    for kernel in ((1, run[0], 1), (1, 1, run[1])):
        if max(kernel) > 1:
            grown = grown | (F.max_pool3d(mask.float(), kernel, 1, [k // 2 for k in kernel]) > 0)
    return grown


def make_samples(
    movies: Tensor,
    start: int,
    frames: int,
    correlated: tuple[bool, bool],
    generator: torch.Generator,
    centres: Tensor | None = None,
) -> Samples:
    """Hide voxels in frames [start, start + frames) of movies (B, T, Y, X) float32, and compute the context without.

    Missing voxels are NaN. The context leaves hidden voxels out, except in a pixel that has no other frame, where it
    takes the replacement. centres (B, frames, Y, X): mask of the voxels to predict; None draws them.
    """
    patches = movies[:, start : start + frames]
    if centres is None:
        centres = draw_centres(patches, correlated, generator)
    masked, hidden = blind(patches, centres, correlated, generator)
    left_out = hidden & (hidden.sum(1, keepdim=True) < movies.shape[1])
    visible = movies.clone()
    visible[:, start : start + frames] = torch.where(left_out, torch.nan, masked)
    context = context_of(visible)
    return Samples(
        residual=context.whiten(masked)[:, None],
        images=context.images,
        standard_error=context.standard_error,
        target=context.whiten(patches)[:, None],
        scored=(centres & hidden & torch.isfinite(patches))[:, None],
    )


def context_of(movie: Tensor) -> Context:
    """Return the context of a movie (..., T, Y, X) in memory."""
    sums = ContextSums(inpaint(movie.nanmean(-3)))
    sums.update(movie)
    return sums.context()


def blind_errors(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Return the mean squared error (B,) over each sample's scored voxels, in noise variances; all (B, 1, T, Y, X)."""
    error = ((prediction - target).square() * scored).sum((1, 2, 3, 4))
    return error / scored.sum((1, 2, 3, 4)).clamp(min=1)
