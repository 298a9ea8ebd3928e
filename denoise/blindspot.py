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

from denoise.context import Context, ContextSums, inpainted

DENSITY = 0.04  # share of the patch's voxels that are hidden
REACH = (2, 2, 2)  # (T, Y, X) a replacement comes from at most this far
RUN = 5  # voxels hidden along an axis of correlated noise; the centre is scored


@dataclass
class Samples:
    """A batch of training samples: what the network sees and what it has to predict, in units of the noise."""

    residual: Tensor  # (B, 1, T, Y, X) of the patches, masked
    images: Tensor  # (B, K, Y, X) of the masked movies
    standard_error: Tensor  # (B, 1, Y, X)
    target: Tensor  # (B, 1, T, Y, X) of the patches as recorded
    scored: Tensor  # (B, 1, T, Y, X) bool: hidden voxels that count


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


def draw_centres(patches: Tensor, correlated: tuple[bool, bool], generator: torch.Generator) -> Tensor:
    """Which voxels of patches (B, T, Y, X) are to be predicted (bool): runs hide more for each one that is scored."""
    density = DENSITY * 3 / (sum(run_lengths(correlated)) + 1)
    return torch.rand(patches.shape, device=patches.device, generator=generator) < density


def run_lengths(correlated: tuple[bool, bool]) -> list[int]:
    """Voxels hidden along Y and along X around a centre."""
    return [RUN if shared else 1 for shared in correlated]


def blind(
    patches: Tensor, centres: Tensor, correlated: tuple[bool, bool], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide the centres of patches (B, T, Y, X), and what shares their noise: the masked patches, and what is hidden.

    Each hidden voxel takes the value of a neighbour (wrapping around the patch at its border), drawn uniformly.
    """
    offsets = neighbour_offsets(tuple(patches.shape[1:]), correlated, patches.device)
    if not len(offsets):
        return patches, torch.zeros_like(centres)
    hidden = dilate(centres, run_lengths(correlated))
    batch, *where = hidden.nonzero().unbind(-1)
    choice = torch.randint(len(offsets), (len(batch),), device=patches.device, generator=generator)
    source = [
        (at + step) % size for at, step, size in zip(where, offsets[choice].unbind(-1), patches.shape[1:])
    ]
    masked = patches.clone()
    masked[batch, where[0], where[1], where[2]] = patches[batch, source[0], source[1], source[2]]
    return masked, hidden


def dilate(mask: Tensor, run: list[int]) -> Tensor:
    """Grow a mask (B, T, Y, X) along Y and along X to runs of odd lengths."""
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
    """Hide voxels in frames [start, start + frames) of movies (B, T, Y, X) float32, and compute their context without.

    Missing voxels are NaN. The context leaves hidden voxels out, except in a pixel that has no other frame: there the
    replacement stands. `centres` (B, frames, Y, X) says which voxels to predict; None draws them.
    """
    patches = movies[:, start : start + frames]
    if centres is None:
        centres = draw_centres(patches, correlated, generator)
    masked, hidden = blind(patches, centres, correlated, generator)
    left_out = hidden & (hidden.sum(1, keepdim=True) < movies.shape[1])
    seen = movies.clone()
    seen[:, start : start + frames] = torch.where(left_out, torch.nan, masked)
    context = context_of(seen)
    return Samples(
        residual=context.whiten(masked)[:, None],
        images=context.images,
        standard_error=context.standard_error,
        target=context.whiten(patches)[:, None],
        scored=(centres & hidden & torch.isfinite(patches))[:, None],
    )


def context_of(movie: Tensor) -> Context:
    """The context of a movie (..., T, Y, X) that is at hand as a whole."""
    sums = ContextSums(inpainted(movie.nanmean(-3)))
    sums.update(movie)
    return sums.context()


def blind_errors(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Mean squared error of each sample (B,) over its hidden voxels alone, in noise variances; all (B, 1, T, Y, X)."""
    error = ((prediction - target).square() * scored).sum((1, 2, 3, 4))
    return error / scored.sum((1, 2, 3, 4)).clamp(min=1)
