"""Illumination flicker: estimated, removed while a movie is denoised, and given back to the output.

A lamp or a laser that flickers makes the whole field brighter or darker, by another amount in each frame. For a single
pixel that is noise, and more than a good denoiser leaves; for the field it is two numbers per frame, which thousands of
pixels determine.

    survey: do regions of the field brighten alike from frame to frame? -> no, as in most movies: nothing else happens
        -> yes: contrast and level of each frame against the mean, in each half of the field
        -> the one mixture of both whose time course is most alike in the halves -> Wiener filter over time
        -> do pixels change in proportion to this time course as light makes them, and not otherwise? -> Light

Activity is local: it differs between most regions, and within a region between pixels. If all neuropil flares up at
once it may be taken for light; nothing is lost, since what was removed is given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from denoise.agreement import alike, inverse_variance, mean_and_variance, region_masks, solver, wiener_filter
from denoise.context import BLACK_QUANTILE
from denoise.tracking import PIECE_FRAMES, Moments

MIN_FLICKER = 0.015  # root mean square, relative to the usual light: less is left alone
MIN_AGREEMENT = 0.6  # covariance of a region's changes with all others', over the variance of these
MIN_EXPLAINED = 0.77  # of the power of the pixels' changes with the time course that light explains
MAX_CLIPPED = 0.01  # share of frames with the movie's maximum: a clipped pixel changes less than the light
MIN_CONTRAST = 2.0  # variance of the mean image over the pixels, in units of its noise's variance
MIN_GAIN = 0.25  # relative to the usual light: a darker frame shows too little


@dataclass(frozen=True)
class Light:
    """Illumination of a movie of T frames: each is gain (T,) * scene + offset (T,). (0,) each in steady light.

    In float64: in a recording with a large offset the two nearly cancel.
    """

    gain: Tensor
    offset: Tensor

    @property
    def steady(self) -> bool:
        """Whether the light does not flicker."""
        return not len(self.gain)

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Return frames (n, Y, X) from frame `start` on without flicker; NaN where there was hardly any light."""
        if self.steady:
            return frames
        gain, offset = self._coefficients(frames, start)
        return ((frames - offset) / gain).masked_fill(gain < MIN_GAIN, torch.nan)

    def release(self, frames: Tensor, start: int) -> Tensor:
        """Return frames (n, Y, X) from frame `start` on with their flicker: the inverse of `hold`."""
        if self.steady:
            return frames
        gain, offset = self._coefficients(frames, start)
        return frames * gain + offset

    def _coefficients(self, frames: Tensor, start: int) -> list[Tensor]:
        stop = start + len(frames)
        return [values[start:stop, None, None].to(frames) for values in (self.gain, self.offset)]

    def since(self, start: int) -> Light:
        """Return the light of the frames from `start` on."""
        return Light(self.gain[start:], self.offset[start:])

    def rescaled(self, scale: float, shift: float) -> Light:
        """Return the light of the movie scale * movie + shift."""
        return Light(self.gain, self.offset * scale + shift * (1 - self.gain))

    def flicker(self, level: float) -> float:
        """Return the flicker of a pixel of this usual brightness: root mean square step between frames, over root 2."""
        brightness = self.gain * level + self.offset
        return 0.0 if self.steady else float(brightness.diff().square().mean().div(2).sqrt())


STEADY = Light(torch.zeros(0), torch.zeros(0))


class Photometer:
    """Measures the brightness of frames (n, Y, X) relative to an image (Y, X) of the scene, in regions of the field.

    weights (Y, X): inverse variances of the pixels.
    """

    def __init__(self, image: Tensor, weights: Tensor) -> None:
        self.image = image
        black = image.flatten().kthvalue(1 + int(BLACK_QUANTILE * (image.numel() - 1))).values
        signal = image - black  # proportional to the light
        weighted = region_masks(image.shape, 0) * (signal * weights)
        power = (weighted * signal).sum((1, 2), keepdim=True)
        self.solver = (weighted / power)[power[:, 0, 0] > 0].flatten(1)  # (regions, Y X)

    def brightness(self, frames: Tensor) -> Tensor:
        """Return by how much each region is brighter than in the image, in parts of the usual light: (n, regions)."""
        return torch.nan_to_num(frames - self.image).flatten(1) @ self.solver.T


def flickers(brightness: Tensor) -> bool:
    """Return whether brightness (T, regions) shows flicker: most regions change like all others from frame to frame."""
    steps = brightness.diff(dim=0).unsqueeze(2)  # each the difference of two frames' light
    return alike(steps, MIN_FLICKER * math.sqrt(2), MIN_AGREEMENT)


def estimate_light(blocks: Callable[[], Iterable[Tensor]]) -> Light:
    """Estimate the light of a movie that flickers; STEADY where the pixels contradict that.

    `blocks` returns its frames (n, Y, X), in order, NaN where missing. They are read three times.
    """
    mean, variance, count, clipped = pixel_moments(blocks())
    weights = inverse_variance(variance * (clipped < MAX_CLIPPED))
    weights = weights / weights.sum()
    centre = (weights * mean).sum()
    power = (weights * (mean - centre).square()).sum()
    # if each pixel's baseline was subtracted, more light cannot be told from less
    if not power > MIN_CONTRAST * (weights * variance / count).sum():
        return STEADY
    spread = power.sqrt()
    patterns = torch.stack([(mean - centre) / spread, torch.ones_like(mean)]).flatten(1)  # contrast, level
    solvers = half_field_solvers(patterns, weights)
    if solvers is None:
        return STEADY
    amounts = torch.cat([pattern_amounts(frames - mean, solvers) for frames in blocks()])
    course, mixture = flicker_course(amounts.unflatten(1, (2, 2)))
    if not is_light(blocks(), course, mixture @ patterns, weights.flatten()):
        return STEADY
    gain = (1 + mixture[0] * course / spread).clamp(min=0).double()
    return Light(gain, mixture[1] * course + (1 - gain) * centre)


def half_field_solvers(patterns: Tensor, weights: Tensor) -> Tensor | None:
    """Return what measures patterns (K, N) in each half of a field with pixel weights (Y, X): (2 K, N).

    None where a half has too little structure.
    """
    regions = region_masks(weights.shape, 0)
    halves = [(half.any(0) * weights).flatten() for half in regions.split(len(regions) // 2)]
    solvers = [solver(patterns * half, patterns) for half in halves]
    solvable = [half for half in solvers if half is not None]
    return torch.cat(solvable) if len(solvable) == len(halves) else None


def is_light(blocks: Iterable[Tensor], course: Tensor, pattern: Tensor, weights: Tensor) -> bool:
    """Return whether the pixels of frames (n, Y, X) change with a time course (T,) by a pattern (N,), and not otherwise.

    A process that runs through most of the field makes its regions alike, too, but other pixels do not change with it.
    The test uses two images of how pixels change, from alternate groups of frames, whose noise is independent.
    """
    images, power = torch.zeros(2, pattern.numel()), torch.zeros(2, 1)
    groups = (group for frames in blocks for group in frames.split(PIECE_FRAMES))
    for number, (group, group_course) in enumerate(zip(groups, course.split(PIECE_FRAMES))):
        steps = group_course.diff()
        images[number % 2] += steps @ torch.nan_to_num(group.diff(dim=0)).flatten(1)
        power[number % 2] += steps.square().sum()
    first, second = images / power.clamp(min=torch.finfo().tiny)
    total = (weights * first * second).sum()
    return bool((weights * pattern.square()).sum() > MIN_EXPLAINED * total)


def pixel_moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, variance and number of frames (n, Y, X), and the share that has the movie's maximum: (Y, X) each."""
    remaining = iter(blocks)
    first = next(remaining)
    sums = Moments(mean_and_variance(first)[0])
    maximum, occurrences = torch.full_like(first[0], -torch.inf), torch.zeros_like(first[0])
    for frames in chain([first], remaining):
        sums.update(frames)
        previous, maximum = maximum, torch.maximum(maximum, frames.nan_to_num(-torch.inf).amax(0))
        occurrences = occurrences * (maximum == previous) + (frames == maximum).sum(0)
    count = sums.count.clamp(min=1)
    return sums.mean, sums.variance, count, occurrences * (maximum == maximum.max()) / count


def pattern_amounts(residual: Tensor, solvers: Tensor) -> Tensor:
    """Return the amounts of K patterns in frames (n, Y, X), by their solvers (K, N): (n, K), NaN for empty frames."""
    amounts = torch.nan_to_num(residual).flatten(1) @ solvers.T
    return torch.where(residual.isfinite().any(2).any(1)[:, None], amounts, torch.nan)


def flicker_course(amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the time course (T,) of flicker and the weights (2,) of its mixture, from amounts (T, 2 halves, 2).

    Of all mixtures of the two amounts, it is the one whose steps from frame to frame are most alike in both halves.
    """
    steps = amounts[amounts.isfinite().all(2).all(1)].diff(dim=0)
    covariance = steps[:, 0].T @ steps[:, 1]
    mixture = torch.linalg.eigh(covariance + covariance.T).eigenvectors[:, -1]
    halves = (amounts @ mixture)[..., None]
    course = wiener_filter(halves.mean(1), halves)[:, 0]
    return course - course.mean(), mixture
