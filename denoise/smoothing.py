"""The smoothing that frames have been through: undone before they are denoised, redone afterwards.

Registration by parts of a pixel interpolates, each frame in its own way; slow detectors smear; programs smooth. Then
neighbouring voxels share noise, which looks like structure, to a network as to singular values. The model of a frame is
one filtered by (w, 1 - 2w, w) along its rows and columns. The weights w are estimated from how neighbours' noise is
correlated, and the filter is inverted: this gives a sharper movie in white noise, for which everything else is made.
The denoised frames are filtered again: the output is as sharp as the recording.

Neighbouring frames share noise too, where some are repeated, or a program averages or interpolates over time. That is
not undone, but measured: such noise is stronger in slow changes than it looks from frame to frame.

Sources: the inverse of such a filter is a two-sided exponential (Unser, Aldroubi and Eden, IEEE Trans. Signal Process.
1993); interpolation correlates noise (Rohde et al., NeuroImage 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEASURED_SIZE = 256  # pixels a side, in the middle of a frame, are enough to measure smoothing
REGION = 16  # pixels a side of the regions of the field in which correlations are measured
SURE = 3.0  # standard deviations by chance that a correlation has to exceed

# neighbouring voxels
MIN_CORRELATION = 0.05  # of neighbours' noise from which it counts
MAX_CORRELATION = 0.46  # that is undone, which amplifies the finest waves by three
LAGS = 4  # pixels: no smoothing makes voxels share noise over LAGS - 1, but a signal does
SIGNAL_RATIO = 2.5  # of the signal's correlation at a distance of one pixel, over that at two
QUIET_QUANTILE = 0.25  # of the regions: in others fast signals add to the correlation
MIN_FRAMES = 3  # from whose mean one of them can be told
CHANCE = 8.0  # variance of a measured correlation by chance, times the number of voxels
REACH = 12  # pixels to each side of an inverse filter: beyond, the strongest one is below 3e-7
AROUND = 5  # pixels a side, from which a missing voxel is filled

# neighbouring frames
UNCORRELATED_LAG = 6  # frames that are so far apart share no noise
MIN_REGIONS = 4  # of which a median is taken
MIN_FRAME_CORRELATION = (
    0.04  # correlation of neighbouring frames' noise that counts; by chance it is below 0.03
)
LOUDER = 1.5  # such noise passes for so many times its power: the networks were made for white noise
FAST_LIGHT = 0.3  # of the noise's variance, by which neighbouring frames differ more where light changes fast
DISTANT = 4  # frames apart, at which noise is hardly shared:
MAX_DISTANT = 0.25  # of what neighbours share, at most
ROUGH_CHANCE = 4.0  # variance by chance of the rough part's correlation, over that of all the noise
MAX_STEP = 10.0  # times the median of differences, seven deviations of noise


class SmoothingEstimator:
    """Estimates the smoothing of each frame of a movie, calibrated on its first frames (n, Y, X).

    Attributes along (y, x): typical, the correlation of neighbours' noise; smooth, whether it counts; mean, of the
    correlations measured in single frames; trust, the share of their variance that is not by chance.
    """

    def __init__(self, frames: Tensor) -> None:
        chance = CHANCE / central_part(frames)[0].numel()
        self.typical = torch.tensor(neighbour_correlations(frames))
        self.smooth = self.typical > max(MIN_CORRELATION, SURE * (chance / len(frames)) ** 0.5)
        self.mean = self.trust = torch.zeros(2)
        if bool(self.smooth.any()):
            correlations = frame_correlations(frames)
            self.mean = correlations.mean(0)
            self.trust = (1 - chance / correlations.var(0, correction=0).clamp(min=chance)) * self.smooth

    @property
    def varies(self) -> bool:
        """Whether each frame has been smoothed in its own way."""
        return bool(self.trust.any())

    def weights(self, frames: Tensor) -> Tensor:
        """Return the filter weights w along (y, x) of frames (n, Y, X): (n, 2), 0 where nothing has been smoothed."""
        correlations = torch.where(self.smooth, self.typical, 0).expand(len(frames), 2)
        if len(frames) >= MIN_FRAMES and self.varies:
            correlations = correlations + self.trust * (frame_correlations(frames) - self.mean)
        return neighbour_weights(correlations)


def neighbour_weights(correlations: Tensor) -> Tensor:
    """Return the weights w of filters (w, 1 - 2w, w) that give white noise these correlations of neighbours."""
    correlations = correlations.clamp(0, MAX_CORRELATION)
    ratio = correlations / (1 + (1 - 2 * correlations.square()).sqrt())  # of w to 1 - 2w
    return ratio / (1 + 2 * ratio)


def remaining_variance(weights: Tensor) -> float:
    """Return the variance of white noise of variance 1 after smoothing by weights (n, 2), in the mean over frames."""
    return float(((1 - 2 * weights).square() + 2 * weights.square()).prod(1).mean())


# ---- correlations of neighbouring voxels


def central_part(frames: Tensor, most: int = MEASURED_SIZE) -> Tensor:
    """Return the middle of frames (n, Y, X), at most `most` pixels a side."""
    y, x = (central_slice(size, most) for size in frames.shape[1:])
    return frames[:, y, x]


def central_slice(size: int, most: int) -> slice:
    """Return the slice of the middle of an axis of that size, at most `most` long."""
    return slice(max(0, size - most) // 2, (size + most) // 2)


def neighbour_correlations(frames: Tensor) -> tuple[float, float]:
    """Return the correlation of the noise of neighbours along (y, x), measured on differences of frames (T, Y, X)."""
    steps = torch.nan_to_num(central_part(frames).diff(dim=0))
    if not len(steps):
        return 0.0, 0.0
    along_y, along_x = (float(noise_correlation(steps, axis, pooled=True)) for axis in (1, 2))
    return along_y, along_x


def frame_correlations(frames: Tensor) -> Tensor:
    """Return the same for each of the frames (n, Y, X), measured on its difference to their mean: (n, 2)."""
    frames = central_part(frames)
    residual = torch.nan_to_num(frames - frames.nanmean(0))
    return torch.stack([noise_correlation(residual, axis, pooled=False) for axis in (1, 2)], 1)


def noise_correlation(residual: Tensor, axis: int, pooled: bool) -> Tensor:
    """Return how neighbours along an axis correlate in frames (n, Y, X) that are noise and little else.

    Of all frames together (1,) if pooled, else of each (n,). Measured in regions of the field, of which some are quiet.
    Signal reaches further than smoothing: the covariance at a distance of LAGS - 1 is subtracted, and what the
    correlation at a distance of two exceeds that of the filter tells how much of the nearest one is signal.
    """
    size = residual.shape[axis] - LAGS + 1
    if size < 1:
        return residual.new_zeros(1 if pooled else len(residual))
    first_pixels = residual.narrow(axis, 0, size)
    regions = (max(1, first_pixels.shape[1] // REGION), max(1, first_pixels.shape[2] // REGION))
    covariances = []
    for lag in range(LAGS):
        product = first_pixels * residual.narrow(axis, lag, size)
        image = product.mean(0, keepdim=True) if pooled else product
        covariances.append(F.adaptive_avg_pool2d(image, regions).flatten(1))
    variance, nearest, second, farthest = covariances
    noise = variance - farthest
    nearest, second = (
        torch.where(noise > 0, (covariance - farthest) / noise, torch.nan) for covariance in (nearest, second)
    )
    weight = neighbour_weights(nearest)
    by_filter = weight.square() / ((1 - 2 * weight).square() + 2 * weight.square())
    signal = SIGNAL_RATIO * (second - by_filter).clamp(min=0)
    return (nearest - signal).nanquantile(QUIET_QUANTILE, 1).nan_to_num()


# ---- correlations of neighbouring frames


@dataclass(frozen=True)
class FrameCorrelation:
    """Noise that neighbouring frames share, against what differences between them tell of it."""

    variance: float = 1.0  # of the noise, over half the variance of differences
    slow: float = 1.0  # variance of white noise that is as strong in slow changes, over the noise's own


UNCORRELATED = FrameCorrelation()


def estimate_frame_correlation(frames: Tensor, interpolated: bool = False) -> FrameCorrelation:
    """Measure the noise that neighbours of frames (n, Y, X), without smoothing along Y and X, share.

    Noise is rough along Y and X, light is not. So the rough part of differences between frames that are
    UNCORRELATED_LAG apart tells the noise's variance V. Differences between neighbours tell (1 - r) V and the signal's
    changes: r, the correlation of their noise, is at least that by which they fall short. Correlations of frames that
    are further apart are measured in the rough part alone. All are medians over regions, and differences are limited to
    MAX_STEP.

    interpolated: between pixels, which weakens the roughest waves: then neighbours are compared in these, too, unless
    light changes so fast that they differ by far more than noise does, or so slowly that frames that are further apart
    have as much in common.
    """
    frames = central_part(frames)
    regions = max(1, (frames.shape[1] - 2) // REGION), max(1, (frames.shape[2] - 2) // REGION)
    if len(frames) <= UNCORRELATED_LAG or min(frames.shape[1:]) < 3 or regions[0] * regions[1] < MIN_REGIONS:
        return UNCORRELATED
    steps = [frames[lag:] - frames[:-lag] for lag in range(1, UNCORRELATED_LAG + 1)]
    limit = MAX_STEP * float(steps[-1].abs().nanmedian())
    steps = [step.clamp_(-limit, limit) for step in steps]
    rough = [step.diff(n=2, dim=1).diff(n=2, dim=2) / 6 for step in steps]  # white noise keeps its variance
    # means over the frames that are there: missing at intervals, fewer may be one frame apart than three
    images = torch.stack([step.square().nanmean(0) for step in (steps[0][:, 1:-1, 1:-1], *rough)])
    images = images.where(images.isfinite().all(0), 0)
    *variances, noise = F.adaptive_avg_pool2d(images, regions).flatten(1)
    valid = noise > 0
    if not bool(valid.any()):
        return UNCORRELATED
    of_all, *correlations = (float((1 - variance / noise)[valid].median()) for variance in variances)
    if not interpolated:
        correlations[0] = of_all
    least = max(
        MIN_FRAME_CORRELATION,
        SURE * ((ROUGH_CHANCE if interpolated else 1) * CHANCE / steps[0].numel()) ** 0.5,
    )
    nearest, distant = correlations[0], correlations[DISTANT - 1]
    if of_all < -FAST_LIGHT or nearest < least or (interpolated and distant > MAX_DISTANT * nearest):
        return UNCORRELATED
    return FrameCorrelation(1 / (1 - nearest), LOUDER * (1 + 2 * sum(max(0.0, r) for r in correlations)))


# ---- the filters


def undo(frames: Tensor, weights: Tensor) -> Tensor:
    """Return frames (n, Y, X) as they were before smoothing by weights (n, 2).

    Missing voxels, NaN, stay NaN; to their neighbours they are the mean of those around.
    """
    if not bool(weights.any()):
        return frames
    missing = frames.isnan()
    if bool(missing.any()):
        places = missing.nonzero()
        frames = frames.index_put(places.unbind(1), mean_around(frames, places))
    central = 1 - 2 * weights
    # the inverse filter: powers of its pole, -1 < pole <= 0, to both sides
    pole = -2 * weights / (central + (central.square() - 4 * weights.square()).sqrt())
    powers = pole[..., None] ** torch.arange(-REACH, REACH + 1, device=pole.device).abs()
    kernels = powers * ((1 - pole) / (1 + pole))[..., None]
    return filtered(frames, kernels).masked_fill_(missing, torch.nan)


def redo(frames: Tensor, weights: Tensor) -> Tensor:
    """Return frames (n, Y, X) smoothed by weights (n, 2)."""
    if not bool(weights.any()):
        return frames
    return filtered(frames, torch.stack([weights, 1 - 2 * weights, weights], -1))


def filtered(frames: Tensor, kernels: Tensor) -> Tensor:
    """Return frames (n, Y, X) filtered along Y and X by kernels (n, 2, taps), borders mirrored."""
    reach = kernels.shape[-1] // 2
    for axis, taps in enumerate(kernels.unbind(1), 1):
        places = np.pad(np.arange(frames.shape[axis]), reach, mode="symmetric")
        padded = frames.index_select(axis, torch.from_numpy(places).to(frames.device))
        frames = correlated(padded, taps, axis)
    return frames


def correlated(frames: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Return frames (n, Y, X), each correlated along Y (1) or X (2) with its own taps (n, L): shorter by L - 1."""
    if len(frames) == 1:  # which torch would add up in another order
        return correlated(frames.expand(2, -1, -1), taps.expand(2, -1), axis)[:1]
    kernels = taps.unsqueeze(1).unsqueeze(4 - axis)  # (n, 1, L, 1) or (n, 1, 1, L)
    return F.conv2d(frames[None], kernels, groups=len(frames))[0]


def mean_around(frames: Tensor, places: Tensor) -> Tensor:
    """Return the mean around places (N, 3), t, y and x, of frames (n, Y, X), over AROUND x AROUND pixels: (N,).

    NaN is left out. Where all of these are NaN it is the mean of the frame; 0 where that is all NaN.
    """
    if len(places) * AROUND**2 < frames.numel():
        offsets = torch.arange(AROUND, device=frames.device)
        t, y, x = places[:, :, None, None].unbind(1)
        padded = F.pad(frames, [AROUND // 2] * 4, value=torch.nan)
        means = padded[t, y + offsets[:, None], x + offsets].nanmean((1, 2))
    else:  # the sums over all windows are computed faster
        totals, counts = window_sums(frames.nan_to_num()), window_sums((~frames.isnan()).float())
        means = (totals / counts)[places.unbind(1)]
    empty = means.isnan()
    if bool(empty.any()):
        means[empty] = frames.nanmean((1, 2)).nan_to_num()[places[empty, 0]]
    return means


def window_sums(images: Tensor) -> Tensor:
    """Return the sums over AROUND x AROUND pixels around each of images (n, Y, X), 0 beyond their edges: (n, Y, X)."""
    padded, ones = F.pad(images, [AROUND // 2] * 4), images.new_ones(len(images), AROUND)
    return correlated(correlated(padded, ones, 1), ones, 2)
