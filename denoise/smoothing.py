"""The smoothing that frames have been through: undone before they are denoised, done again afterwards.

Registration by parts of a pixel interpolates, each frame in its own way; slow detectors smear; programs smooth. Then
neighbouring voxels share noise, which looks like structure, to a network as to singular values. Each frame is taken for
one that has been filtered by (w, 1 - 2w, w) along its rows and columns. How neighbours share its noise tells the
weights w, and the filter is undone: what comes is a sharper movie in white noise, for which everything else is made.
What is made of that goes through the filters again: the output is as sharp as the recording.

Neighbouring frames share noise too, where some are repeated, or a program averages or interpolates over time. That is
not undone, but known: such noise is stronger in slow changes than it looks from frame to frame.

Sources: the inverse of such a filter is a two-sided exponential (Unser, Aldroubi and Eden, IEEE Trans. Signal Process.
1993); interpolation correlates noise (Rohde et al., NeuroImage 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CORRELATED = 0.05  # correlation of neighbours' noise from which it counts
STRONGEST = 0.46  # that is undone, which amplifies the finest waves by three
LAGS = 4  # pixels: no smoothing makes voxels share noise over LAGS - 1, but a signal does
SIGNAL = 2.5  # times what it shares at a distance of two, is shared by signal at a distance of one
CELL = 16  # pixels a side of cells in which correlations are measured
CELLS = 4  # of which at least a median is taken
QUIET = 0.25  # quantile of the cells: in others fast signals add to it
MEASURED = 256  # pixels a side are enough
FEWEST = 3  # frames from whose mean one of them can be told
CHANCE = 8.0  # over the voxels: variance of a measured correlation by chance
SURE = 3.0  # deviations by chance that a correlation has to exceed
AROUND = 5  # pixels a side, from which a missing voxel is filled
PLACES = 1 << 16  # of so many at once
SHARED = 0.04  # correlation of neighbouring frames' noise from which it counts: what seems one by chance is below 0.03
LOUDER = 1.5  # such noise passes for so many times its power: the networks were made for white noise
CHANGING = 0.3  # of the noise's variance, by which neighbouring frames differ more where light changes fast
FAR = 4  # frames apart, at which noise is shared no more,
LASTING = 0.25  # of what neighbours share, at most
ROUGH = 4.0  # times as much by chance as all of it varies the rough part of noise
FARTHEST = 10.0  # times the median of differences, seven deviations of noise
MEMORY = 6  # frames that are so far apart share no noise
REACH = 12  # pixels to each side of an inverse filter: beyond, the strongest one is below 3e-7


class Gauge:
    """Tells by its first frames (n, Y, X) how a movie has been smoothed, and of others each one."""

    def __init__(self, frames: Tensor) -> None:
        chance = CHANCE / middle(frames)[0].numel()
        self.typical = torch.tensor(neighbour_correlations(frames))  # along (y, x)
        self.smooth = self.typical > max(CORRELATED, SURE * (chance / len(frames)) ** 0.5)
        self.mean = self.trust = torch.zeros(2)
        if bool(self.smooth.any()):
            own = frame_correlations(frames)
            self.mean = own.mean(0)
            # how much more they differ than by chance
            self.trust = (1 - chance / own.var(0, correction=0).clamp(min=chance)) * self.smooth

    @property
    def differs(self) -> bool:
        """Whether each frame has been smoothed in its own way."""
        return bool(self.trust.any())

    def weights(self, frames: Tensor) -> Tensor:
        """Of frames (n, Y, X): those of neighbours along (y, x), (n, 2), 0 where nothing has been smoothed."""
        correlations = torch.where(self.smooth, self.typical, 0).expand(len(frames), 2)
        if len(frames) >= FEWEST and self.differs:
            correlations = correlations + self.trust * (frame_correlations(frames) - self.mean)
        return neighbour_weights(correlations)


def neighbour_weights(correlations: Tensor) -> Tensor:
    """The weights w of filters (w, 1 - 2w, w) that make white noise correlated so much at a distance of one."""
    shared = correlations.clamp(0, STRONGEST)
    ratio = shared / (1 + (1 - 2 * shared.square()).sqrt())  # of w to 1 - 2w
    return ratio / (1 + 2 * ratio)


def variance_left(weights: Tensor) -> float:
    """Of white noise of variance 1 that has been smoothed by weights (n, 2), in the mean over the frames."""
    return float(((1 - 2 * weights).square() + 2 * weights.square()).prod(1).mean())


# ---- how neighbours share noise


def middle(frames: Tensor, most: int = MEASURED) -> Tensor:
    """The middle of frames (n, Y, X), so many pixels a side at most."""
    y, x = (centre(size, most) for size in frames.shape[1:])
    return frames[:, y, x]


def centre(size: int, most: int) -> slice:
    """The middle of so many, `most` at most."""
    return slice(max(0, size - most) // 2, (size + most) // 2)


def neighbour_correlations(frames: Tensor) -> tuple[float, float]:
    """Correlation of the noise of voxels that are neighbours along (y, x), measured on frame differences (T, Y, X)."""
    steps = torch.nan_to_num(middle(frames).diff(dim=0))
    if not len(steps):
        return 0.0, 0.0
    along_y, along_x = (float(shared_noise(steps, axis, pooled=True)) for axis in (1, 2))
    return along_y, along_x


def frame_correlations(frames: Tensor) -> Tensor:
    """The same of each of n frames (n, Y, X) by itself, measured on its difference to their mean: (n, 2)."""
    frames = middle(frames)
    rest = torch.nan_to_num(frames - frames.nanmean(0))
    return torch.stack([shared_noise(rest, axis, pooled=False) for axis in (1, 2)], 1)


def shared_noise(rest: Tensor, axis: int, pooled: bool) -> Tensor:
    """How neighbours along an axis correlate in frames (n, Y, X) of noise and little else: in all (1,), or in each (n,).

    Measured in cells, of which some are quiet. Signal reaches further than smoothing does: what pixels share that are
    LAGS - 1 apart is left out, and what those share that are two apart, beyond what the filter explains, tells how much
    more of it there is.
    """
    size = rest.shape[axis] - LAGS + 1
    if size < 1:
        return rest.new_zeros(1 if pooled else len(rest))
    own = rest.narrow(axis, 0, size)
    cells = (max(1, own.shape[1] // CELL), max(1, own.shape[2] // CELL))
    products = (own * rest.narrow(axis, lag, size) for lag in range(LAGS))
    images = (product.mean(0, keepdim=True) if pooled else product for product in products)
    variance, first, second, far = (F.adaptive_avg_pool2d(image, cells).flatten(1) for image in images)
    noise = variance - far
    first, second = (torch.where(noise > 0, (shared - far) / noise, torch.nan) for shared in (first, second))
    weight = neighbour_weights(first)
    explained = weight.square() / ((1 - 2 * weight).square() + 2 * weight.square())
    return (first - SIGNAL * (second - explained).clamp(min=0)).nanquantile(QUIET, 1).nan_to_num()


# ---- how neighbouring frames share noise


@dataclass(frozen=True)
class Memory:
    """The noise of voxels whose frames share some, against what differences between neighbouring frames tell of it."""

    variance: float = 1.0  # of it, over half the variance of differences
    slow: float = 1.0  # variance of what is white and as strong in slow changes, over its own


NO_MEMORY = Memory()


def memory_of(frames: Tensor, interpolated: bool = False) -> Memory:
    """Of frames (n, Y, X) without smoothing along Y and X.

    Noise is rough along Y and X, light is not. So the rough part of differences between frames that are MEMORY apart
    tells the noise's variance V; differences between neighbours tell (1 - r) V and the signal's changes: r, the
    correlation of their noise, is at least that by which they fall short. What frames share that are further apart is
    measured in the rough part alone. All in the median over cells; no voxel counts for more than FARTHEST usual ones.

    interpolated: between pixels, which weakens the roughest waves: then neighbours are compared in these, too, unless
    light changes so fast that they differ by far more than noise does, or so slowly that frames that are further apart
    have as much in common.
    """
    seen = middle(frames)
    cells = max(1, (seen.shape[1] - 2) // CELL), max(1, (seen.shape[2] - 2) // CELL)
    if len(seen) <= MEMORY or min(seen.shape[1:]) < 3 or cells[0] * cells[1] < CELLS:
        return NO_MEMORY
    steps = [seen[lag:] - seen[:-lag] for lag in range(1, MEMORY + 1)]
    most = FARTHEST * float(steps[-1].abs().nanmedian())
    steps = [its.clamp_(-most, most) for its in steps]
    rough = [its.diff(n=2, dim=1).diff(n=2, dim=2) / 6 for its in steps]  # white noise keeps its variance
    # of frames that are there: where they are missing at intervals, fewer are one frame apart than three
    images = torch.stack([its.square().nanmean(0) for its in (steps[0][:, 1:-1, 1:-1], *rough)])
    images = images.where(images.isfinite().all(0), 0)
    *apart, variance = F.adaptive_avg_pool2d(images, cells).flatten(1)
    known = variance > 0
    if not bool(known.any()):
        return NO_MEMORY
    whole, *shared = (float((1 - its / variance)[known].median()) for its in apart)
    if not interpolated:
        shared[0] = whole
    least = max(SHARED, SURE * ((ROUGH if interpolated else 1) * CHANCE / steps[0].numel()) ** 0.5)
    if whole < -CHANGING or shared[0] < least or (interpolated and shared[FAR - 1] > LASTING * shared[0]):
        return NO_MEMORY
    return Memory(1 / (1 - shared[0]), LOUDER * (1 + 2 * sum(max(0.0, its) for its in shared)))


# ---- the filters


def undo(frames: Tensor, weights: Tensor) -> Tensor:
    """Frames (n, Y, X) before they were smoothed by weights (n, 2).

    Missing voxels, NaN, stay so; for their neighbours they are as bright as those around.
    """
    if not bool(weights.any()):
        return frames
    missing = frames.isnan()
    if bool(missing.any()):
        places = missing.nonzero()
        frames = frames.index_put(places.unbind(1), mean_around(frames, places))
    own = 1 - 2 * weights
    # the inverse filter: powers of its pole, -1 < pole <= 0, to both sides
    pole = -2 * weights / (own + (own.square() - 4 * weights.square()).sqrt())
    powers = pole[..., None] ** torch.arange(-REACH, REACH + 1, device=pole.device).abs()
    kernels = powers * ((1 - pole) / (1 + pole))[..., None]
    return filtered(frames, kernels).masked_fill_(missing, torch.nan)


def redo(frames: Tensor, weights: Tensor) -> Tensor:
    """Frames (n, Y, X) smoothed by weights (n, 2)."""
    if not bool(weights.any()):
        return frames
    return filtered(frames, torch.stack([weights, 1 - 2 * weights, weights], -1))


def filtered(frames: Tensor, kernels: Tensor) -> Tensor:
    """Frames (n, Y, X) filtered along Y and X by kernels (n, 2, taps), borders mirrored."""
    reach = kernels.shape[-1] // 2
    for axis, taps in enumerate(kernels.unbind(1), 1):
        places = np.pad(np.arange(frames.shape[axis]), reach, mode="symmetric")
        padded = frames.index_select(axis, torch.from_numpy(places).to(frames.device))
        frames = correlated(padded, taps, axis)
    return frames


def correlated(frames: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Frames (n, Y, X), each correlated along Y or X with taps (n, L) of its own: shorter by L - 1."""
    if len(frames) == 1:  # which torch would add up in another order
        return correlated(frames.expand(2, -1, -1), taps.expand(2, -1), axis)[:1]
    kernels = taps.unsqueeze(1).unsqueeze(4 - axis)  # (n, 1, L, 1) or (n, 1, 1, L)
    return F.conv2d(frames[None], kernels, groups=len(frames))[0]


def mean_around(frames: Tensor, places: Tensor) -> Tensor:
    """Of frames (n, Y, X) at places (N, 3), t, y and x: the mean of the pixels around that are not NaN, (N,).

    Of AROUND x AROUND pixels, or of the frame, where all of those are NaN; 0 where it has no other.
    """
    whole = frames.nanmean((1, 2)).nan_to_num()
    steps = torch.arange(AROUND, device=frames.device) - AROUND // 2
    found = []
    for some in places.split(PLACES):
        t, y, x = some[:, :, None, None].unbind(1)
        y, x = y + steps[:, None], x + steps
        inside = (y >= 0) & (y < frames.shape[1]) & (x >= 0) & (x < frames.shape[2])
        values = frames[t, y.clamp(0, frames.shape[1] - 1), x.clamp(0, frames.shape[2] - 1)]
        mean = values.where(inside, torch.nan).nanmean((1, 2))
        found.append(torch.where(mean.isnan(), whole[some[:, 0]], mean))
    return torch.cat(found)
