"""Whole-movie context: what one pass over a recording tells the network about every voxel of it.

Most of a calcium movie is static or repeats. One pass gives the temporal mean of each pixel, the noise model, and
static images of where activity is. The network then receives (movie - mean) / noise and these images.

Blind spot: a context that holds a voxel's own noise would reward the network for copying it (the mean leaks 1/T,
enough to make "do not clean the mean" the optimum). Training therefore computes the context, by this very code, from
the masked movie. Every image here is made from sums over frames alone.

Sources: photon transfer (Janesick, 2007): noise variance = gain * mean + read variance, from differences of
neighbouring frames; correlation images (Smith and Haeusser, Nature Neuroscience 2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.smoothing import UNCORRELATED, FrameCorrelation

NOISE_SMOOTHING = 5  # pixels: side of the neighbourhood over which the noise model averages
BINS = 32  # of equal pixel counts, for the photon transfer fit
BLACK_QUANTILE = 0.03  # quantile of the mean image taken as black
MIN_STEPS_HOT = 64  # differences between frames from which a pixel can be called hot
MIN_HOT_RATIO = 2.0  # times the noise variance of its neighbours: excess of a hot pixel, at least
MIN_HOT_SPREADS = 10.0  # median absolute deviations of that ratio over all pixels, likewise
WHITE_TOLERANCE = 0.4  # relative difference of a pixel's variance from half that of its steps, in white noise
MIN_STEPS_STILL = 8  # differences between frames, all of them zero, from which a pixel is still
STILL_LINE = 16  # pixels: still ones in a line this long were not recorded
MIN_VOXEL_NOISE = 0.01  # share of the noise's variance, at least, that voxels of a line do not have in common
MIN_PHOTONS = 20.0  # counted by the neighbours of a still pixel, from which it was not recorded either


@dataclass
class Context:
    """Statistics of a whole movie; leading axes (...) are a batch or nothing.

    mean (..., Y, X): temporal mean, in the movie's units.
    noise (..., Y, X): standard deviation of the noise of one voxel, in the movie's units; 0 in pixels that never
        change, which are returned unchanged.
    hot (..., Y, X): mask of pixels far noisier than others, which are treated as missing.
    images (..., K, Y, X): mean, activity, covariance along x, covariance along y, standard error, each in units of its
        own noise.
    standard_error (..., 1, Y, X): of the mean, in units of the noise.
    gain, read_variance (...): the noise model.
    frame_correlation: how neighbouring frames share noise.
    """

    mean: Tensor
    noise: Tensor
    hot: Tensor
    images: Tensor
    standard_error: Tensor
    gain: Tensor
    read_variance: Tensor
    frame_correlation: FrameCorrelation = UNCORRELATED

    def whiten(self, frames: Tensor) -> Tensor:
        """Return (frames - mean) / noise of frames (..., T, Y, X); 0 where the noise is 0 or a voxel is missing."""
        noise = torch.where((self.noise > 0) & ~self.hot, self.noise, torch.inf)
        residual = (frames - self.mean.unsqueeze(-3)) / noise.unsqueeze(-3)
        return torch.nan_to_num(residual, nan=0.0, posinf=0.0, neginf=0.0)

    def restore(self, prediction: Tensor) -> Tensor:
        """Convert a prediction (..., T, Y, X) from units of the noise to the movie's; the inverse of `whiten`."""
        return self.mean.unsqueeze(-3) + self.noise.unsqueeze(-3) * prediction

    def rescaled(self, scale: float, shift: float) -> Context:
        """Return the context of scale * movie + shift; what the network receives does not change."""
        gain, read_variance = self.gain * scale, self.read_variance * scale**2 - self.gain * scale * shift
        return replace(self, mean=self.mean * scale + shift, noise=self.noise * scale,
                       gain=gain, read_variance=read_variance)  # fmt: skip


class ContextSums:
    """Running sums over the frames of a movie, which arrive in chunks; memory is that of a few frames.

    Values are taken relative to `reference`, an image (..., Y, X) near the mean, so that squares of a bright static
    background do not swallow the noise. Missing voxels (not finite) are left out. A pixel that is missing in every
    frame has the reference as its mean; its other statistics are filled in from its neighbours.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        zero = torch.zeros_like(reference, dtype=torch.float64)
        self.count, self.sum, self.square = zero, zero.clone(), zero.clone()
        self.along_x, self.along_y = zero.clone(), zero.clone()  # products of neighbours
        self.steps, self.difference = zero.clone(), zero.clone()  # number and squares of frame differences
        self.last: Tensor | None = None  # last frame of the previous chunk, relative, NaN where missing

    def update(self, frames: Tensor) -> None:
        """Add the next frames (..., n, Y, X), float32."""
        relative = frames - self.reference.unsqueeze(-3)
        if bool(relative.sum().isfinite()):  # nothing is missing, as in most movies
            values = relative
            self.count += relative.shape[-3]
        else:
            valid = torch.isfinite(frames)
            values = torch.where(valid, relative, 0)
            relative = torch.where(valid, relative, torch.nan)
            self.count += valid.sum(-3)
        self.sum += values.sum(-3)
        self.square += values.square().sum(-3)
        self.along_x[..., :-1] += (values[..., :-1] * values[..., 1:]).sum(-3)
        self.along_y[..., :-1, :] += (values[..., :-1, :] * values[..., 1:, :]).sum(-3)
        if self.last is not None:
            self._add_steps(relative[..., :1, :, :] - self.last)
        self._add_steps(relative.diff(dim=-3))
        self.last = relative[..., -1:, :, :]

    def _add_steps(self, steps: Tensor) -> None:
        """Add differences between neighbouring frames (..., n, Y, X), NaN where one is missing."""
        self.difference += steps.square().nansum(-3)
        self.steps += torch.isfinite(steps).sum(-3)

    def add(self, other: ContextSums) -> None:
        """Add the sums of the frames that follow, relative to the same reference."""
        for name in ("count", "sum", "square", "along_x", "along_y", "steps", "difference"):
            getattr(self, name).add_(getattr(other, name))

    def context(
        self, frame_correlation: FrameCorrelation = UNCORRELATED, shared: tuple[float, float] = (0.0, 0.0)
    ) -> Context:
        """Return the context of all frames so far.

        shared: variances of the noise that the voxels of a row, and of a column, have in common; it is subtracted.
        """
        recorded = self.count > 0
        frames = inpaint(self.count.where(recorded, torch.nan)).clamp(min=1)
        shift = self.sum / frames  # (..., Y, X), the mean relative to the reference
        mean = (self.reference + shift).float()
        variance = self.square / frames - shift.square()
        step_variance = self.difference / (2 * self.steps.clamp(min=1))  # equals the variance of white noise
        gain, read_variance = self._noise_model(mean, step_variance)
        expected = gain[..., None, None] * mean + read_variance[..., None, None]
        hot = self._hot_pixels(variance, step_variance, expected)
        if frame_correlation != UNCORRELATED or bool(hot.any()):
            # pixels of variance 0 are left out of the fit
            louder = frame_correlation.variance * frame_correlation.slow
            gain, read_variance = self._noise_model(mean, (louder * step_variance).where(~hot, 0))
        varying = recorded & ~self._unrecorded_pixels(mean, step_variance)
        usual = varying & ~hot
        light = inpaint(mean.where(usual, torch.nan))
        # an uncertain estimate of line noise could exceed the noise of the whole
        typical = gain * light.mean((-2, -1)) + read_variance
        read_variance = read_variance - ((1 - MIN_VOXEL_NOISE) * typical).clamp(min=0, max=sum(shared))
        noise = noise_map(light, gain, read_variance)
        activity = variance - frame_correlation.variance * step_variance
        along_x = neighbour_covariance(self.along_x / frames, shift, -1) - shared[0]
        along_y = neighbour_covariance(self.along_y / frames, shift, -2) - shared[1]
        squares = [inpaint(image.where(usual, torch.nan)) for image in (activity, along_x, along_y)]
        images = context_images(light, squares, noise, frames)
        noise = noise.where(varying | ~recorded, 0)
        error = (1 / frames.sqrt()).float().unsqueeze(-3)
        return Context(mean, noise, hot, images, error, gain, read_variance, frame_correlation)

    def _hot_pixels(self, variance: Tensor, step_variance: Tensor, expected: Tensor) -> Tensor:
        """Return the mask of single pixels far noisier than their neighbours and than expected; all (..., Y, X).

        Their noise is white. Fast activity is not: its variance differs from half that of its steps.
        """
        background = torch.maximum(mean_of_neighbours(step_variance), expected)
        ratio = step_variance / background.clamp(min=torch.finfo(step_variance.dtype).tiny)
        typical = spatial_median(ratio)
        spread = spatial_median((ratio - typical).abs())
        outlying = ratio > typical + (MIN_HOT_SPREADS * spread).clamp(min=MIN_HOT_RATIO)
        white = (variance / step_variance - 1).abs() < WHITE_TOLERANCE
        return outlying & (self.steps >= MIN_STEPS_HOT) & white

    def _unrecorded_pixels(self, mean: Tensor, step_variance: Tensor) -> Tensor:
        """Return the mask (..., Y, X) of pixels that never change since they were not recorded: borders, stuck ones.

        A dark pixel may catch no photon either. The square of the brightness of n photons is n times their variance;
        so (level - mean)^2 over the noise variance counts photons that the neighbours caught and the pixel did not.
        """
        still = (self.difference == 0) & (self.steps >= MIN_STEPS_STILL)
        if not bool(still.any()):
            return still
        level, noise = (inpaint(image.where(~still, torch.nan)) for image in (mean.double(), step_variance))
        certain = self.steps * (level - mean).square() > MIN_PHOTONS * noise
        return still & (certain | still_lines(still))

    def _noise_model(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and read variance (...): from variances in time, or in space where there is one frame only."""
        gain, read_variance = photon_transfer(mean, variance.float())
        in_time = self.steps.amax((-2, -1)) > 0
        read_variance = torch.where(in_time, read_variance, spatial_noise_variance(mean))
        return torch.where(in_time, gain, 0), read_variance


def still_lines(still: Tensor) -> Tensor:
    """Return the still pixels, of a mask (..., Y, X), in lines of STILL_LINE and those connected to them."""
    images = still.float().reshape(-1, 1, *still.shape[-2:])
    lines = torch.zeros_like(images)
    for kernel in ((1, min(STILL_LINE, images.shape[3])), (min(STILL_LINE, images.shape[2]), 1)):
        starts = -F.max_pool2d(-images, kernel, 1)  # 1 where a line of still pixels starts
        padding = [n - 1 for n in kernel[::-1] for _ in range(2)]
        lines = torch.maximum(lines, F.max_pool2d(F.pad(starts, padding), kernel, 1))
    while not torch.equal(lines, grown := F.max_pool2d(lines, 3, 1, 1) * images):
        lines = grown
    return lines.reshape(still.shape) > 0


def spatial_median(image: Tensor) -> Tensor:
    """Return the median (..., 1, 1) over the pixels of images (..., Y, X)."""
    return image.flatten(-2).median(-1).values[..., None, None]


def mean_of_neighbours(image: Tensor) -> Tensor:
    """Return the mean over the eight neighbours of each pixel of an image (..., Y, X)."""
    mode = "reflect" if min(image.shape[-2:]) > 1 else "replicate"
    flat = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (1, 1, 1, 1), mode)
    return (9 * F.avg_pool2d(flat, 3, 1).reshape(image.shape) - image) / 8


def inpaint(image: Tensor) -> Tensor:
    """Fill the NaN pixels of an image (..., Y, X) from the nearest valid ones; with 0 where there are none.

    The valid region grows by one pixel at a time: a new pixel is the mean of its valid neighbours.
    """
    missing = image.isnan()
    while bool(missing.any()):
        values = torch.stack([torch.where(missing, 0, image), (~missing).to(image)])
        values = values.reshape(-1, 1, *image.shape[-2:])
        sums, weights = F.avg_pool2d(values, 3, 1, 1).reshape(2, *image.shape)
        reached = missing & (weights > 0)
        if not bool(reached.any()):
            return torch.where(missing, 0, image)
        image = torch.where(reached, sums / weights, image)
        missing = missing & ~reached
    return image


def context_images(mean: Tensor, squares: list[Tensor], noise: Tensor, frames: Tensor) -> Tensor:
    """Return `Context.images` of so many frames: from the mean image, images of (co)variances and noise (..., Y, X)."""
    root = frames.sqrt()
    per_noise = reciprocal(noise)
    amplitudes = [compress(image * per_noise.square() * root) for image in squares]
    return torch.stack([signal_image(mean, noise, root), *amplitudes, 1 / root], -3).float()


def signal_image(mean: Tensor, noise: Tensor, root: Tensor | float) -> Tensor:
    """Return a mean image above its darkest pixels, in units of its standard error noise / root; all (..., Y, X)."""
    pixels = mean.shape[-2] * mean.shape[-1]
    black = mean.flatten(-2).kthvalue(1 + int(BLACK_QUANTILE * (pixels - 1)), -1).values
    return (mean - black[..., None, None]) * reciprocal(noise) * root


def reciprocal(noise: Tensor) -> Tensor:
    """Return 1 / noise, and 0 where there is none."""
    return torch.where(noise > 0, 1 / torch.where(noise > 0, noise, 1), 0)


def neighbour_covariance(product: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Return the covariance of each pixel with its next neighbour along an axis; the last pixel repeats the one before.

    product (..., Y, X): temporal mean of the product of both; shift (..., Y, X): temporal mean of each pixel.
    """
    result = product - shift * shift.roll(-1, axis)
    size = result.shape[axis]
    if size == 1:
        return torch.zeros_like(result)
    return torch.cat([result.narrow(axis, 0, size - 1), result.narrow(axis, size - 2, 1)], axis)


def compress(image: Tensor) -> Tensor:
    """Return a signed square root, linear below the noise (1): it brings squares back to the scale of amplitudes."""
    return image / (1 + image.abs()).sqrt()


def photon_transfer(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Fit variance = gain * mean + read_variance over pixels, in bins of the mean; (..., Y, X) -> two of (...).

    Least squares weighted by 1 / variance^2, the inverse variance of a variance estimate. The gain is at least 0. Pixels
    that never change, as those of a border left by registration, say nothing of the noise.

    Mean and variance are averaged around each pixel: a pixel's own noise would spread the mean, and make the gain too
    small. Each bin enters by its medians, since active pixels vary by more than their noise.
    """
    mean, variance = smooth_varying(mean, variance)
    mean, variance = replace_still(mean.flatten(-2), variance.flatten(-2))
    order = mean.argsort(-1)
    pixels = order.shape[-1]
    bins = min(BINS, pixels)
    used = order[..., : pixels - pixels % bins]  # at most BINS - 1 of the brightest pixels are left out
    shape = (*used.shape[:-1], bins, -1)
    x, y = (median(values.gather(-1, used).reshape(shape).double()) for values in (mean, variance))
    typical = y.mean(-1, keepdim=True)
    w = 1 / (y + torch.where(typical > 0, 0.01 * typical, 1)).square()
    w = w / w.sum(-1, keepdim=True)
    x0, y0 = (w * x).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
    spread = (w * (x - x0).square()).sum(-1)
    gain = ((w * (x - x0) * (y - y0)).sum(-1) / torch.where(spread > 0, spread, 1)).clamp(min=0)
    return gain.float(), (y0[..., 0] - gain * x0[..., 0]).float()


def median(values: Tensor) -> Tensor:
    """Return the median (...) of values (..., N); of an even number the mean of the two in the middle."""
    values, count = values.sort(-1).values, values.shape[-1]
    return values[..., (count - 1) // 2 : count // 2 + 1].mean(-1)


def smooth_varying(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Average means and variances (..., Y, X) over the pixels around each one whose variance is not 0."""
    varying = variance > 0
    share = local_mean(varying.float()).clamp(min=1 / NOISE_SMOOTHING**2)
    mean, variance = (
        torch.where(varying, local_mean(torch.where(varying, image, 0)) / share, image)
        for image in (mean, variance)
    )
    return mean, variance


def replace_still(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Replace pixels of variance 0, in means and variances (..., N), evenly by others; unchanged if all are 0."""
    still = variance == 0
    if not bool(still.any()):
        return mean, variance
    pixels = mean.shape[-1]
    count = (~still).sum(-1, keepdim=True)
    count = torch.where(count > 0, count, pixels)
    order = still.to(torch.uint8).argsort(stable=True)  # varying pixels come first
    source = order.gather(-1, torch.arange(pixels, device=mean.device) * count // pixels)
    return mean.gather(-1, source), variance.gather(-1, source)


def noise_map(mean: Tensor, gain: Tensor, read_variance: Tensor) -> Tensor:
    """Return the standard deviation of the noise (..., Y, X) by the noise model at the smoothed mean.

    Never below a fifth of its own average: an extrapolated fit must not blow up the darkest pixels.
    """
    variance = gain[..., None, None] * local_mean(mean) + read_variance[..., None, None]
    typical = variance.clamp(min=0).mean((-2, -1), keepdim=True)
    return torch.maximum(variance, typical / 25).sqrt()


def local_mean(image: Tensor) -> Tensor:
    """Return the mean over the NOISE_SMOOTHING neighbourhood of each pixel (..., Y, X), its edges repeated outwards."""
    half = NOISE_SMOOTHING // 2
    flat = image.reshape(-1, 1, *image.shape[-2:])
    padded = F.pad(flat, (half, half, half, half), mode="replicate")
    return F.avg_pool2d(padded, NOISE_SMOOTHING, 1).reshape(image.shape)


def spatial_noise_variance(image: Tensor) -> Tensor:
    """Estimate the noise variance (...) of images (..., Y, X) by their Laplacian residual (Immerkaer, CVIU 1996)."""
    kernel = image.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    flat = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    residual = F.conv2d(flat, kernel).abs().mean((1, 2, 3)).reshape(image.shape[:-2])
    return (residual * math.sqrt(math.pi / 2) / 6).square()
