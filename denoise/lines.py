"""Line noise: what all voxels of a row, or of a column, share in one frame.

Electronics hum while a row is scanned, and a camera's amplifiers drift while it is read. No blind spot hides such noise:
the row's other voxels betray it. But by the same token they tell what it was. It is told from light by its roughness:
it changes from each row to the next and from each frame to the next, alike in parts of the row that are far apart.
Where it is found, the means of all rows of all frames go through a Wiener filter, and what comes is subtracted: light
lasts and spreads, so it stands out in slow and wide waves of these means, and line noise is equally strong in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from denoise.waves import cosines, members

PARTS = 3  # of a line, which have to agree
GAP = 8  # pixels between two parts: noise that neighbours share reaches less far
NARROWEST = 8  # pixels of a part
FEWEST = 16  # lines
MEASURED = 256  # lines are enough
SHARED = 1e-3  # of the variance of a voxel's noise: less does no harm
SURE = 5.0  # deviations by chance
ROUGH = 12  # variance of white noise's differences in time of second differences in space, over its own
LIGHT = 3.0  # deviations by chance of a power, from which there is light in it
LASTING = 10.0  # times the harm of noise that is left does light that is taken for it, since it lasts
SECTION = 1024  # frames at most, whose waves are looked at together
TINY = torch.finfo().tiny


@dataclass(frozen=True)
class Lines:
    """What a movie's lines along an axis share: 1, y, where lines are rows; 2, x, where they are columns."""

    axis: int
    variance: float = 0.0  # of what is added to a line, in the movie's units squared; 0 where there is none
    share: float = 0.0  # of it in the variance of a voxel's noise
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))  # (lines, voxels): in a line's mean
    whole: float = 0.0  # variance of what is added to the mean of all lines, times their number

    def means(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Weighted means of lines of frames (n, Y, X) relative to an image (Y, X): (n, lines), or (n, 0) if not needed.

        Missing voxels, NaN, are as the image is.
        """
        if not self.variance:
            return frames.new_zeros(len(frames), 0)
        rest = torch.nan_to_num(frames - reference).movedim(self.axis, 1)
        return (rest * self.weights).sum(2)

    def offsets(self, means: Tensor) -> Tensor:
        """What noise added to each line, from the means (n, lines) of neighbouring frames: the same shape."""
        sections = means.tensor_split(math.ceil(len(means) / SECTION))
        if not self.variance:
            return means
        return torch.cat([line_noise(part, self.variance, self.whole) for part in sections])


def rows_and_columns(frames: Tensor) -> tuple[Lines, Lines]:
    """Of a movie, as `lines_of`."""
    rows, columns = (lines_of(frames, axis) for axis in (1, 2))
    if rows.variance and columns.variance:
        # noise of columns is in the mean of all rows: that is taken out with theirs
        height, width = frames.shape[1:]
        rows = replace(rows, whole=rows.variance + height / width * columns.variance)
        columns = replace(columns, whole=0.0)
    return rows, columns


def lines_of(frames: Tensor, axis: int) -> Lines:
    """Of a movie, by its first frames (n, Y, X) in which missing voxels are NaN; axis as in `Lines`."""
    lines = frames.movedim(axis, 1)
    some = lines[:, max(0, lines.shape[1] - MEASURED) // 2 :][:, :MEASURED]
    changes = (torch.nan_to_num(some.diff(dim=0)) != 0).any(0)  # borders and masks do not
    some = some[:, changes.any(1)][..., changes.any(0)]
    n, count, voxels = some.shape
    width = (voxels - (PARTS - 1) * GAP) // PARTS
    if n < 2 or count < FEWEST or width < NARROWEST:
        return Lines(axis)
    rough = torch.nan_to_num(roughness(some))
    parts = [rough.narrow(2, part * (width + GAP), width).mean(2) for part in range(PARTS)]
    products = [parts[i] * parts[j] for i in range(PARTS) for j in range(i)]  # (n - 1, lines - 2) each
    least = min(products, key=lambda product: float(product.mean()))
    own, shared = float(rough.square().mean()), float(least.mean())
    chance = float(least.mean(0).std()) / least.shape[1] ** 0.5
    if not shared > max(SHARED * own, SURE * chance):
        return Lines(axis)
    variance = torch.stack([its.square().nanmean(0) for its in (lines - lines.nanmean(0)).unbind(1)])
    weights = torch.where(variance > 0, 1 / variance, 0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=TINY)
    return Lines(axis, shared, shared / own, weights, shared)


def roughness(lines: Tensor) -> Tensor:
    """Of lines (n, lines, ...) how they change, in time, against their neighbours; white noise keeps its variance."""
    return lines.diff(dim=0).diff(n=2, dim=1) / ROUGH**0.5


def line_noise(means: Tensor, variance: float, whole: float) -> Tensor:
    """White noise of that variance among line means (n, lines), but for what is the same in all n frames.

    whole: the same of the wave that all lines of a frame have in common.
    """
    frames, lines = means.shape
    in_time, in_space = cosines(frames), cosines(lines)
    spectrum = in_time @ means @ in_space.T
    times, places = members(frames), members(lines)
    counts = times.sum(0)[:, None] * places.sum(0)
    power = times.T @ spectrum.square() @ places / counts
    added = torch.full_like(power, variance)
    added[:, 0] = whole
    noise = (roughness(means).square().mean() + added - variance) * (1 + LIGHT * (2 / counts).sqrt())
    gain = added / (power + LASTING * (power - noise).clamp(min=0)).clamp(min=added.clamp(min=TINY))
    gain[0] = 0
    return in_time.T @ (spectrum * (times @ gain @ places.T)) @ in_space
