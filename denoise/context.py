"""Whole-movie context: what one pass over a recording tells the network about every voxel of it.

A calcium movie mostly stands still or repeats. One pass gives, pixel by pixel, the temporal mean, the noise model and
static images of where activity is; the network then sees (movie - mean) / noise and these images.

The blind spot: a context that holds a voxel's own noise would reward the network for copying it (the mean leaks 1/T,
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

from denoise.smoothing import NO_MEMORY, Memory

NOISE_SMOOTHING = 5  # pixels; the noise model is that of this neighbourhood, not of each pixel's own noise
BINS = 32  # of equal pixel counts, for the photon transfer fit
DARKEST = 0.03  # quantile of the mean image taken as black
CERTAIN = 64  # steps from frame to frame, from which a pixel may be called hot
HOT = 2.0  # times the noise variance of those around it, and
SPREADS = 10.0  # times the median by which pixels differ from those around them
WHITE = 0.4  # by which variance may differ from half that of its steps, over that, in white noise
STILL = 8  # steps from frame to frame in which a pixel does not change, and
LINE = 16  # pixels in a line that do not: they were not recorded
OWN = 0.01  # of the variance of noise at least is each voxel's own, whatever lines share
PHOTONS = 20.0  # that those around one pixel caught while it did not change: it was not recorded either


@dataclass
class Context:
    """What is known of a movie as a whole; leading axes (...) are a batch or nothing.

    mean (..., Y, X): temporal mean, in the movie's units. hot (..., Y, X): pixels far noisier than others, which are
    taken for missing. noise (..., Y, X): standard deviation of the noise of one
    voxel, same units, 0 where nothing varies: that comes out as it is. images (..., K, Y, X): mean, activity, covariance
    along x, covariance along y, standard error, in units of their own noise. standard_error (..., 1, Y, X): of the
    mean, in units of the noise. gain, read_variance (...): the noise model. memory: by which frames share noise.
    """

    mean: Tensor
    noise: Tensor
    hot: Tensor
    images: Tensor
    standard_error: Tensor
    gain: Tensor
    read_variance: Tensor
    memory: Memory = NO_MEMORY

    def whiten(self, frames: Tensor) -> Tensor:
        """Frames (..., T, Y, X) -> (frames - mean) / noise; 0 where there is no noise or a voxel is missing."""
        noise = torch.where((self.noise > 0) & ~self.hot, self.noise, torch.inf)
        residual = (frames - self.mean.unsqueeze(-3)) / noise.unsqueeze(-3)
        return torch.nan_to_num(residual, nan=0.0, posinf=0.0, neginf=0.0)

    def restore(self, prediction: Tensor) -> Tensor:
        """The inverse for what the network predicts: (..., T, Y, X) in units of the noise -> the movie's units."""
        return self.mean.unsqueeze(-3) + self.noise.unsqueeze(-3) * prediction

    def rescaled(self, scale: float, shift: float) -> Context:
        """The context of scale * movie + shift; what the network sees does not change."""
        gain, read_variance = self.gain * scale, self.read_variance * scale**2 - self.gain * scale * shift
        return replace(self, mean=self.mean * scale + shift, noise=self.noise * scale,
                       gain=gain, read_variance=read_variance)  # fmt: skip


class ContextSums:
    """Sums over the frames of a movie, fed in blocks; memory is that of a few frames, whatever the length.

    Values are taken relative to `reference`, an image (..., Y, X) near the mean, so that squares of a bright static
    background do not swallow the noise. Missing voxels (not finite) are left out; a pixel that is missing in every
    frame is as the reference has it, and else as those around it.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        zero = torch.zeros_like(reference, dtype=torch.float64)
        self.count, self.sum, self.square = zero, zero.clone(), zero.clone()
        self.along_x, self.along_y = zero.clone(), zero.clone()
        self.steps, self.difference = zero.clone(), zero.clone()
        self.last: Tensor | None = None  # the last frame seen and where it was valid, for the next difference

    def update(self, frames: Tensor) -> None:
        """Take frames (..., n, Y, X), float32, in order."""
        marked = frames - self.reference.unsqueeze(-3)
        if bool(marked.sum().isfinite()):  # nothing is missing, as in most movies
            values = marked
            self.count += marked.shape[-3]
        else:
            valid = torch.isfinite(frames)
            values = torch.where(valid, marked, 0)
            marked = torch.where(valid, marked, torch.nan)
            self.count += valid.sum(-3)
        self.sum += values.sum(-3)
        self.square += values.square().sum(-3)
        self.along_x[..., :-1] += (values[..., :-1] * values[..., 1:]).sum(-3)
        self.along_y[..., :-1, :] += (values[..., :-1, :] * values[..., 1:, :]).sum(-3)
        if self.last is not None:
            self._step(marked[..., :1, :, :] - self.last)
        self._step(marked.diff(dim=-3))
        self.last = marked[..., -1:, :, :]

    def _step(self, steps: Tensor) -> None:
        """Take differences between frames (..., n, Y, X)."""
        self.difference += steps.square().nansum(-3)
        self.steps += torch.isfinite(steps).sum(-3)

    def add(self, other: ContextSums) -> None:
        """Take the sums of frames that follow, relative to the same reference."""
        for name in ("count", "sum", "square", "along_x", "along_y", "steps", "difference"):
            getattr(self, name).add_(getattr(other, name))

    def context(self, memory: Memory = NO_MEMORY, shared: tuple[float, float] = (0.0, 0.0)) -> Context:
        """The context of all frames seen, as it is without line noise: that of rows and of columns, variances."""
        seen = self.count > 0
        frames = inpainted(self.count.where(seen, torch.nan)).clamp(min=1)
        shift = self.sum / frames  # (..., Y, X), the mean relative to the reference
        mean = (self.reference + shift).float()
        variance = self.square / frames - shift.square()
        half = self.difference / (2 * self.steps.clamp(min=1))  # of the variance of steps: white noise's own
        gain, read_variance = self._noise_model(mean, half)
        hot = self._hot(variance, half, gain[..., None, None] * mean + read_variance[..., None, None])
        if memory != NO_MEMORY or bool(hot.any()):  # hot pixels tell nothing of others
            usually = (memory.variance * memory.slow * half).where(~hot, 0)
            gain, read_variance = self._noise_model(mean, usually)
        varies = seen & ~self._unrecorded(mean, half)
        usual = varies & ~hot
        light = inpainted(mean.where(usual, torch.nan))
        whole = gain * light.mean((-2, -1)) + read_variance
        # what lines share is as uncertain as the whole is: that may seem to be all of it
        read_variance = read_variance - ((1 - OWN) * whole).clamp(min=0, max=sum(shared))
        noise = noise_map(light, gain, read_variance)
        root = frames.sqrt()
        activity = variance - memory.variance * half
        along_x = covariance(self.along_x / frames, shift, -1) - shared[0]
        along_y = covariance(self.along_y / frames, shift, -2) - shared[1]
        per_noise = reciprocal(noise)
        squares = [
            compress(inpainted(image.where(usual, torch.nan)) * per_noise.square() * root)
            for image in (activity, along_x, along_y)
        ]
        images = torch.stack([signal_image(light, noise, root), *squares, 1 / root], -3)
        noise = noise.where(varies | ~seen, 0)
        error = (1 / root).float().unsqueeze(-3)
        return Context(mean, noise, hot, images.float(), error, gain, read_variance, memory)

    def _hot(self, variance: Tensor, half: Tensor, expected: Tensor) -> Tensor:
        """Single pixels far noisier than those around them and than expected of them; all (..., Y, X).

        variance: over time; that of fast activity is not half the variance of its steps, as that of white noise is.
        """
        ratio = half / torch.maximum(mean_beside(half), expected).clamp(min=torch.finfo(half.dtype).tiny)
        typical = medians(ratio)
        surprising = ratio > typical + (SPREADS * medians((ratio - typical).abs())).clamp(min=HOT)
        return surprising & (self.steps >= CERTAIN) & ((variance / half - 1).abs() < WHITE)

    def _unrecorded(self, mean: Tensor, half: Tensor) -> Tensor:
        """Pixels (..., Y, X) that never change, and would if they had been recorded: borders, masks, stuck pixels.

        mean and half (..., Y, X): brightness, and variance of the noise. The brightness of n photons, squared, is n
        times their variance: where those around a pixel caught so many more, it is no dark one.
        """
        still = (self.difference == 0) & (self.steps >= STILL)
        if not bool(still.any()):
            return still
        level, noise = (inpainted(image.where(~still, torch.nan)) for image in (mean.double(), half))
        certain = self.steps * (level - mean).square() > PHOTONS * noise
        return still & (certain | in_lines(still))

    def _noise_model(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and read variance (...), from variances in time, or in space where there is one frame only."""
        gain, read_variance = photon_transfer(mean, variance.float())
        in_time = self.steps.amax((-2, -1)) > 0
        return torch.where(in_time, gain, 0), torch.where(
            in_time, read_variance, spatial_noise_variance(mean)
        )


def in_lines(still: Tensor) -> Tensor:
    """Of pixels that never change (..., Y, X) those in lines of LINE of them, and what touches these."""
    images = still.float().reshape(-1, 1, *still.shape[-2:])
    found = torch.zeros_like(images)
    for kernel in ((1, min(LINE, images.shape[3])), (min(LINE, images.shape[2]), 1)):
        whole = -F.max_pool2d(-images, kernel, 1)  # 1 where a line of still ones starts
        ends = [n - 1 for n in kernel[::-1] for _ in range(2)]
        found = torch.maximum(found, F.max_pool2d(F.pad(whole, ends), kernel, 1))
    while not torch.equal(found, grown := F.max_pool2d(found, 3, 1, 1) * images):
        found = grown
    return found.reshape(still.shape) > 0


def medians(image: Tensor) -> Tensor:
    """Of images (..., Y, X), each one's in all of its pixels: (..., 1, 1)."""
    return image.flatten(-2).median(-1).values[..., None, None]


def mean_beside(image: Tensor) -> Tensor:
    """Of the eight pixels around each one of an image (..., Y, X)."""
    mode = "reflect" if min(image.shape[-2:]) > 1 else "replicate"
    flat = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (1, 1, 1, 1), mode)
    return (9 * F.avg_pool2d(flat, 3, 1).reshape(image.shape) - image) / 8


def inpainted(image: Tensor) -> Tensor:
    """An image (..., Y, X) whose NaN pixels are as the nearest ones that are not; 0 where there are none.

    It grows by one pixel after the other: the mean of those that are known around it.
    """
    missing = image.isnan()
    while bool(missing.any()):
        values = torch.stack([torch.where(missing, 0, image), (~missing).to(image)]).reshape(
            -1, 1, *image.shape[-2:]
        )
        sums, known = F.avg_pool2d(values, 3, 1, 1).reshape(2, *image.shape)
        reached = missing & (known > 0)
        if not bool(reached.any()):
            return torch.where(missing, 0, image)
        image = torch.where(reached, sums / known, image)
        missing = missing & ~reached
    return image


def signal_image(mean: Tensor, noise: Tensor, root: Tensor | float) -> Tensor:
    """A mean image over its darkest pixels, in units of its standard error, which is noise / root; (..., Y, X) all."""
    pixels = mean.shape[-2] * mean.shape[-1]
    black = mean.flatten(-2).kthvalue(1 + int(DARKEST * (pixels - 1)), -1).values
    return (mean - black[..., None, None]) * reciprocal(noise) * root


def reciprocal(noise: Tensor) -> Tensor:
    """1 / noise, and 0 where there is none."""
    return torch.where(noise > 0, 1 / torch.where(noise > 0, noise, 1), 0)


def covariance(product: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Of each pixel with its next neighbour along an axis, from the mean product; the last one repeats its neighbour."""
    result = product - shift * shift.roll(-1, axis)
    size = result.shape[axis]
    if size == 1:
        return torch.zeros_like(result)
    return torch.cat([result.narrow(axis, 0, size - 1), result.narrow(axis, size - 2, 1)], axis)


def compress(image: Tensor) -> Tensor:
    """Linear where it is noise, the root of it where it is signal: squares come back to the scale of amplitudes."""
    return image / (1 + image.abs()).sqrt()


def photon_transfer(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Fit variance = gain * mean + read_variance over pixels, by bins of the mean; (..., Y, X) -> two of (...).

    Least squares weighted by 1 / variance^2, the inverse variance of a variance estimate. The gain is at least 0. Pixels
    that never change, as those of a border that registration left, say nothing of the noise.

    Both are taken around each pixel: its own noise would make the mean look more spread than it is, and the gain too
    small. Medians of the bins, since what is active varies by more than its noise.
    """
    known = variance > 0
    share = around(known.float()).clamp(min=1 / NOISE_SMOOTHING**2)
    mean, variance = (
        torch.where(known, around(torch.where(known, its, 0)) / share, its) for its in (mean, variance)
    )
    mean, variance = without_still(mean.flatten(-2), variance.flatten(-2))
    order = mean.argsort(-1)
    pixels = order.shape[-1]
    bins = min(BINS, pixels)
    used = order[..., : pixels - pixels % bins]  # at most 31 of the brightest pixels are left out
    shape = (*used.shape[:-1], bins, -1)
    m, v = (median(its.gather(-1, used).reshape(shape).double()) for its in (mean, variance))
    typical = v.mean(-1, keepdim=True)
    w = 1 / (v + torch.where(typical > 0, 0.01 * typical, 1)).square()
    w = w / w.sum(-1, keepdim=True)
    m0, v0 = (w * m).sum(-1, keepdim=True), (w * v).sum(-1, keepdim=True)
    spread = (w * (m - m0).square()).sum(-1)
    gain = ((w * (m - m0) * (v - v0)).sum(-1) / torch.where(spread > 0, spread, 1)).clamp(min=0)
    return gain.float(), (v0[..., 0] - gain * m0[..., 0]).float()


def median(values: Tensor) -> Tensor:
    """Median (...) of values (..., N); of an even number the mean of the two in the middle."""
    values, count = values.sort(-1).values, values.shape[-1]
    return values[..., (count - 1) // 2 : count // 2 + 1].mean(-1)


def without_still(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (..., N) of pixels, those of variance 0 replaced by others, evenly; all zeros stay."""
    still = variance == 0
    if not bool(still.any()):
        return mean, variance
    pixels = mean.shape[-1]
    count = (~still).sum(-1, keepdim=True)
    count = torch.where(count > 0, count, pixels)
    order = still.to(torch.uint8).argsort(stable=True)  # those that vary come first
    source = order.gather(-1, torch.arange(pixels, device=mean.device) * count // pixels)
    return mean.gather(-1, source), variance.gather(-1, source)


def noise_map(mean: Tensor, gain: Tensor, read_variance: Tensor) -> Tensor:
    """Standard deviation of the noise (..., Y, X) by the noise model at the smoothed mean.

    Never below a fifth of its own average: an extrapolated fit must not blow up the darkest pixels.
    """
    variance = gain[..., None, None] * around(mean) + read_variance[..., None, None]
    typical = variance.clamp(min=0).mean((-2, -1), keepdim=True)
    return torch.maximum(variance, typical / 25).sqrt()


def around(image: Tensor) -> Tensor:
    """Of an image (..., Y, X), the mean over the neighbourhood of each pixel; beyond its edges it goes on."""
    half = NOISE_SMOOTHING // 2
    flat = image.reshape(-1, 1, *image.shape[-2:])
    padded = F.pad(flat, (half, half, half, half), mode="replicate")
    return F.avg_pool2d(padded, NOISE_SMOOTHING, 1).reshape(image.shape)


def spatial_noise_variance(image: Tensor) -> Tensor:
    """Noise variance (...) of single images (..., Y, X) from their Laplacian residual (Immerkaer, CVIU 1996)."""
    kernel = image.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    flat = F.pad(image.reshape(-1, 1, *image.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    residual = F.conv2d(flat, kernel).abs().mean((1, 2, 3)).reshape(image.shape[:-2])
    return (residual * math.sqrt(math.pi / 2) / 6).square()
