"""Low-rank read-out: keep of the network's prediction what stands out of the noise, as measured in the recording.

The network sees only the surroundings of each voxel. It cannot use that a recording repeats itself: a neuron has one
footprint and one time course. So the signal in a block of pixels consists of a few patterns (footprint x time course),
while the network's response to noise spreads over very many. The prediction of each block is decomposed into patterns
by singular value decomposition, and the amplitude r_i of each one is measured in the recording:

    prediction (T, P) = sum of s_i u_i v_i'      r_i = u_i' recording v_i, noise of variance 1 in every voxel
    kept: sqrt(r_i^2 - edge^2) u_i v_i' where r_i > edge, and nothing elsewhere

The edge is the largest amplitude of a pattern of noise alone: sqrt(T / t) + sqrt(P / p) for noise that is smooth over t
frames and p pixels, as it is after the network (less in small fields and lines, see `noise_edge`). It adds in
quadrature to the amplitude of a signal, hence the root. A movie of noise therefore becomes constant in time.

The kept patterns are then measured again in the recording, since the network misses fast changes and fine structure:
time courses under the kept footprints, footprints under those time courses, and the mean image. Each is cleaned in
overlapping windows of its discrete cosine transform with the help of a pilot, another estimate of the same signal:

    time courses: a Wiener filter takes the power of the signal from the prediction; the stronger a time course is, the
        more the output of the network of time courses replaces the filter's
    footprints and mean image: the pilot is the output of the network of means, corrected towards the measurement;
        patterns mix neurons, and are rotated before, so that each footprint covers as few of them as possible

Where the residual is larger than the noise, as in almost noise-free movies, the frames are moved back towards the
recording (`add_back_residual`).

Sources: noise edge and shrinkage of singular values (Gavish and Donoho, IEEE Trans. Inf. Theory 2017); local low-rank
denoising of calcium movies (Buchanan et al., bioRxiv 334706, 2018); Wiener filter with a pilot estimate (Dabov et
al., IEEE TIP 2007, second step of BM3D); rotation to simple patterns (Neuhaus and Wrigley, Br. J. Stat. Psychol.
1954, quartimax); prediction and measurement by inverse variance (Laine et al., NeurIPS 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import Context, inpaint, reciprocal
from denoise.smoothing import UNCORRELATED, FrameCorrelation, neighbour_correlations
from denoise.tiling import tile_axis, tile_grid
from denoise.waves import dct_matrix

# DCT coefficients (K, N, n) of the noisy and of the pilot windows -> cleaned ones, and weights (K, 1, n) of the windows
Shrinkage = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Block = tuple[tuple[slice, ...], np.ndarray]  # (Y, X) slices and blending weights (y, x), as from `tile_grid`
Patterns = tuple[Tensor, Tensor]  # K of a block: time courses (T, K) and orthonormal footprints (P, K)

BLOCK_SIZE = 32  # pixels: side of a block, which holds a few neurons
BLOCK_OVERLAP = 12  # pixels that neighbouring blocks share
SMOOTH_FRAMES, SMOOTH_PIXELS = 16.0, 20.0  # over which noise is smooth after it has passed the network
INITIAL_PATTERNS = 16  # computed at first in a block; four times as many while the weakest still stand out
ROTATIONS = 6  # iterations of `quartimax`: more change nothing
PREDICTION_SHARE = 0.1  # of the movie network's footprint in a pilot; the rest is the mean network's
SAME_MEAN = 1e-3  # share of the variance of a slab's mean, below which it is the mean of the whole movie


class Cleaner(Protocol):
    """Networks that denoise what is measured in a recording, in noise of variance 1."""

    def clean_courses(self, courses: Tensor) -> Tensor:
        """Return time courses (K, T) without their noise."""

    def clean_footprints(
        self, footprints: Sequence[Tensor], places: Sequence[Sequence[slice]]
    ) -> Sequence[Tensor]:
        """Return the footprints (K, y, x) of each block without their noise; places: (Y, X) slices of the blocks."""


class Readout:
    """Denoises the frames of one movie, given what the network predicts; everything in units of the noise.

    static (1, Y, X): the network's correction of the temporal mean. cleaner: networks for what is measured again.
    """

    def __init__(self, context: Context, static: Tensor, cleaner: Cleaner) -> None:
        self.cleaner, self.frame_correlation = cleaner, context.frame_correlation
        self.mean_error = context.standard_error[0]  # (Y, X)
        per_noise = reciprocal(context.noise)
        image = (context.mean - context.mean.mean()) * per_noise
        image = inpaint(image.where(context.noise > 0, torch.nan))
        self.static = clean_image(image, image + static[0], self.mean_error) - image
        self.gain = context.gain * per_noise  # increase of the noise's variance per unit of brightness

    def frames(self, residual: Tensor, prediction: Tensor) -> Tensor:
        """Denoise some hundred consecutive frames; returns them (n, Y, X) relative to the temporal mean.

        residual (n, Y, X): the whitened recording, 0 where a voxel is missing. prediction (n, Y, X): the network's.
        Both are overwritten: missing voxels of the residual by the prediction, and the prediction by the result.
        """
        static, gain = self.static.to(prediction.device), self.gain.to(prediction.device)
        noise = smooth_noise(residual)
        valid = [(residual[part] != 0).float().mean(0) for part in excerpts(len(residual))]
        recording = torch.where(residual == 0, prediction, residual, out=residual)
        mean = static + self.drift(recording.mean(0), prediction.mean(0), len(recording))
        frames = significant_part(prediction, recording, noise, self.cleaner).add_(mean)
        return add_back_residual(frames, recording, gain, valid, self.frame_correlation)

    def drift(self, measured: Tensor, predicted: Tensor, frames: int) -> Tensor:
        """Estimate by how much the mean image (Y, X) of so many frames differs from that of the whole movie.

        measured, predicted (Y, X): the frames' mean in the recording and in the prediction.
        """
        variance = 1 / frames - float(self.mean_error.square().mean())
        if variance < SAME_MEAN / frames:
            return torch.zeros_like(measured)
        return clean_image(measured, predicted, variance**0.5)


# ---- patterns of blocks


def smooth_noise(residual: Tensor) -> float:
    """Return the deviation of the smooth part of noise (T, Y, X): 1 if it is white, more if neighbours share it."""
    correlations = neighbour_correlations(residual[:REGION])
    return math.prod(1 + 2 * max(0.0, correlation) for correlation in correlations) ** 0.5


def significant_part(prediction: Tensor, recording: Tensor, noise: float, cleaner: Cleaner) -> Tensor:
    """Return what of a prediction (T, Y, X) stands out of the noise of the recording (T, Y, X); of temporal mean 0.

    The result overwrites the prediction, one row of blocks after the other. noise: see `smooth_noise`.
    """
    rows, columns = (
        tile_axis(size, min(BLOCK_SIZE, size), BLOCK_OVERLAP if size > BLOCK_SIZE else 0, 1)
        for size in prediction.shape[1:]
    )
    stops = [*(below.start for below in rows[1:]), rows[-1].stop]
    shared = prediction[:, :0]  # lower part of the row of blocks above, which this one overlaps
    for row, stop in zip(rows, stops):
        total = torch.zeros_like(prediction[:, row.slice])
        total[:, : shared.shape[1]] = shared
        add_block_row(total, prediction, recording, list(tile_grid([[row], columns])), noise, cleaner)
        height = stop - row.start
        prediction[:, row.start : stop] = total[:, :height]  # no block below reads these pixels
        shared = total[:, height:]
    return prediction


def add_block_row(
    total: Tensor,
    prediction: Tensor,
    recording: Tensor,
    blocks: Sequence[Block],
    noise: float,
    cleaner: Cleaner,
) -> None:
    """Read out one row of blocks of a movie, and add them, weighted for blending, to its sum `total` (T, y, X)."""
    places, shapes = [place for place, _ in blocks], [weights.shape for _, weights in blocks]
    # each step takes all blocks of the row at once, so that the networks run on large batches
    recordings = [centre_pixels(recording[:, y, x]) for y, x in places]
    patterns = [
        significant_patterns(
            centre_pixels(prediction[:, y, x]), pixels, noise * noise_edge(len(prediction), *shape)
        )
        for (y, x), pixels, shape in zip(places, recordings, shapes)
    ]
    courses = clean_block_courses(recordings, patterns, noise, cleaner)
    patterns = [simplify_patterns(course, footprints) for course, (_, footprints) in zip(courses, patterns)]
    measured, predicted = [], []  # footprints (K, y, x) of each block, in units of `noise`
    for pixels, (course, footprints), shape in zip(recordings, patterns, shapes):
        measured.append((pixels.mT @ course).mT.unflatten(1, shape) / noise)
        predicted.append(footprints.mT.unflatten(1, shape) / noise)
    cleaned = cleaner.clean_footprints(measured, places)
    for i, ((_, column), weights) in enumerate(blocks):
        if not len(measured[i]):
            continue
        pilot = PREDICTION_SHARE * predicted[i] + (1 - PREDICTION_SHARE) * cleaned[i]
        fallback = (predicted[i] + cleaned[i]) / 2
        footprints = noise * clean_where_trusted(measured[i], pilot, fallback, FOOTPRINT_WINDOW)
        block = (patterns[i][0] @ footprints.flatten(1)).view(-1, *weights.shape)
        total[..., column] += block.mul_(torch.from_numpy(weights).to(total.device))


def centre_pixels(block: Tensor) -> Tensor:
    """Return the pixels (T, P) of a block (T, y, x), relative to their temporal mean."""
    return (block - block.mean(0)).flatten(1)


def clean_block_courses(
    recordings: Sequence[Tensor], patterns: Sequence[Patterns], noise: float, cleaner: Cleaner
) -> Sequence[Tensor]:
    """Measure the time courses of all blocks' patterns in their recordings (T, P), and clean them: (T, K) of each."""
    measured = [pixels @ footprints for pixels, (_, footprints) in zip(recordings, patterns)]
    courses = torch.cat(measured, 1).mT / noise
    predicted = torch.cat([course for course, _ in patterns], 1).mT / noise
    if len(courses):
        courses = clean_courses(courses, predicted, cleaner)
    return (noise * courses.mT).split([course.shape[1] for course in measured], 1)


def simplify_patterns(courses: Tensor, footprints: Tensor) -> Patterns:
    """Make the time courses (T, K) of patterns orthonormal, and rotate their footprints (P, K) to simple ones."""
    courses, mixing = torch.linalg.qr(courses)
    footprints = footprints @ mixing.mT
    rotation = quartimax(footprints)
    return courses @ rotation, footprints @ rotation


def quartimax(footprints: Tensor) -> Tensor:
    """Return the rotation (K, K) that makes footprints (P, K) dark in most pixels, as those of single neurons are.

    It maximizes the sum of their fourth powers. White noise stays white. Computed on the CPU: the matrices are small.
    """
    footprints = footprints.cpu()
    rotation = torch.eye(footprints.shape[1])
    for _ in range(ROTATIONS):
        u, _, vh = torch.linalg.svd(footprints.mT @ (footprints @ rotation) ** 3)
        rotation = u @ vh
    return rotation.to(footprints.device)


def noise_edge(frames: int, height: int, width: int) -> float:
    """Return the largest amplitude of a pattern of noise alone in a block (T, Y, X), in noise deviations.

    A line is one pixel wide, not a fraction of a smooth one; and the fewer pixels there are, the less the network
    smooths in time.
    """
    smooth_frames = SMOOTH_FRAMES * (1 + math.sqrt(height * width) / BLOCK_SIZE) / 2
    smooth_sides = (max(1.0, side / math.sqrt(SMOOTH_PIXELS)) for side in (height, width))
    return math.sqrt(frames / smooth_frames) + math.sqrt(math.prod(smooth_sides))


def significant_patterns(prediction: Tensor, recording: Tensor, edge: float) -> Patterns:
    """Return the patterns of a prediction (T, P) that measure more than `edge` in the recording (T, P)."""
    count = INITIAL_PATTERNS
    u, v, amplitudes = strongest_patterns(prediction, recording, count)
    while count < min(prediction.shape) and bool((amplitudes[-(count // 4) :] > edge).any()):
        count *= 4
        u, v, amplitudes = strongest_patterns(prediction, recording, count)
    kept = amplitudes > edge
    return u[:, kept] * (amplitudes[kept].square() - edge**2).sqrt(), v[:, kept]


def strongest_patterns(prediction: Tensor, recording: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the strongest singular vectors u (T, K), v (P, K) of a prediction, and amplitudes (K,) in the recording.

    Randomized, with one power iteration (Halko et al., SIAM Review 2011); the random start is the same at every call.
    """
    if count < min(prediction.shape):
        random = torch.Generator(prediction.device).manual_seed(0)
        start = torch.randn(prediction.shape[1], count, generator=random, device=prediction.device)
        basis = torch.linalg.qr(prediction @ start).Q
        # orthonormal after each step: else weak patterns are lost beside strong ones
        basis = torch.linalg.qr(prediction.mT @ basis).Q
        basis = torch.linalg.qr(prediction @ basis).Q
        u, _, vh = torch.linalg.svd(basis.mT @ prediction, full_matrices=False)
        u = basis @ u
    else:
        u, _, vh = torch.linalg.svd(prediction, full_matrices=False)
    return u, vh.mT, ((u.mT @ recording) * vh).sum(1)


# ---- cleaning with a pilot


@dataclass(frozen=True)
class Window:
    """Size (Y, X) in pixels of the windows that are cleaned one by one, and the step from one to the next."""

    size: tuple[int, int]
    step: tuple[int, int]


IMAGE_WINDOW = Window((8, 8), (1, 1))
FOOTPRINT_WINDOW = Window((8, 8), (2, 2))
COURSE_WINDOW = Window((32, 1), (4, 1))  # frames, as pixels along Y
MIN_WINDOW_VARIANCE = 1e-3  # noise variances left in a window, at least, when it is weighted
HALF_PILOT = 40.0  # noise deviations: a trusted coefficient of this size is averaged with the measured one
FAINT_PILOT = 0.2  # noise deviations: a window of a trusted pilot this faint is half taken for noise
MISFIT_SIDE = 17  # pixels: side of the square over which the misfit of a pilot is averaged
TRUSTED_MISFIT, REJECTED_MISFIT = 1.2, 1.5  # noise variances: hardly more by chance, and never by chance
BAND_PIXELS = 1 << 17  # of an image cleaned at once, at one or two kilobytes for each
HALF_COURSE = 10.0  # noise variances: a time course of this power is half what its network makes of it
MAX_COURSE_STEP = 4.0  # noise deviations: a network moves a time course, however unusual, by no more


def shrink_by_power(noisy: Tensor, pilot: Tensor) -> tuple[Tensor, Tensor]:
    """Wiener filter: scale noisy coefficients (K, N, n) in noise of variance 1 by the pilot's share of signal power.

    The weight (K, 1, n) of a window is the inverse of the noise variance that is left in it.
    """
    power = pilot.square()
    share = power.div_(power + 1)
    return noisy * share, 1 / share.square().sum(1, keepdim=True).clamp(min=MIN_WINDOW_VARIANCE)


def correct_pilot(noisy: Tensor, pilot: Tensor) -> tuple[Tensor, Tensor]:
    """Move a pilot's coefficients (K, N, n) towards those measured in noise of variance 1; with weights (K, 1, n).

    Faint windows of the pilot are taken for noise. The pilot's error grows with its coefficient: its variance is 1 at
    HALF_PILOT. Pilot and measurement are averaged by inverse variance.
    """
    power, size = pilot.square().mean(1, keepdim=True), pilot.abs()
    trust = power / (power + FAINT_PILOT**2)
    shrunk = trust * pilot
    corrected = shrunk + trust * size / (size + HALF_PILOT) * (noisy - shrunk)
    return corrected, 1 / trust.clamp(min=MIN_WINDOW_VARIANCE)


def clean_windows(
    images: Tensor, pilots: Tensor, window: Window, shrinkage: Shrinkage = shrink_by_power
) -> Tensor:
    """Clean images (K, Y, X) in white noise of variance 1 with pilots (K, Y, X), window by window of their DCT."""
    sizes = images.shape[1:]
    size = min(window.size[0], sizes[0]), min(window.size[1], sizes[1])
    step = min(window.step[0], size[0]), min(window.step[1], size[1])
    top, bottom = window_margins(sizes[0], size[0], step[0])
    left, right = window_margins(sizes[1], size[1], step[1])
    stacked = torch.stack([images, pilots])
    padded = F.pad(stacked, (left, right, top, bottom), mode="replicate")  # (2, K, Y', X')
    rows, columns = (dct_matrix(side).to(images.device) for side in size)
    basis = torch.kron(rows, columns)  # (N, N), N pixels of a window
    patches = padded.unfold(2, size[0], step[0]).unfold(3, size[1], step[1])  # (2, K, y, x, *size)
    patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(2, len(images), len(basis), -1)
    cleaned, weights = shrinkage(*(basis @ patches))
    total, total_weight = (
        F.fold(x, padded.shape[-2:], size, stride=step)[:, 0]
        for x in (basis.mT @ (cleaned * weights), weights.expand_as(cleaned))
    )
    return (total / total_weight)[:, top : top + sizes[0], left : left + sizes[1]]


def window_margins(length: int, size: int, step: int) -> tuple[int, int]:
    """Return the padding before and after an axis, so that as many windows cover its ends as its middle."""
    margin = size - step
    return margin, margin + -(size + length) % step


def clean_where_trusted(images: Tensor, pilots: Tensor, fallback: Tensor, window: Window) -> Tensor:
    """Clean images (K, Y, X) in white noise of variance 1 with pilots (K, Y, X), which are trusted where they fit.

    A pilot errs where it differs from the image by more than the noise explains. There a Wiener filter cleans the
    image, and takes only the power of the signal from the fallback pilots (K, Y, X).
    """
    misfit = (images - pilots).square_()
    for kernel in ((MISFIT_SIDE, 1), (1, MISFIT_SIDE)):
        margins = [kernel[1] // 2, kernel[1] // 2, kernel[0] // 2, kernel[0] // 2]
        misfit = F.avg_pool2d(F.pad(misfit, margins, mode="replicate"), kernel, 1)
    trust = misfit.neg_().add_(REJECTED_MISFIT).div_(REJECTED_MISFIT - TRUSTED_MISFIT).clamp_(0, 1)
    corrected = clean_windows(images, pilots, window, correct_pilot)
    if bool((trust == 1).all()):
        return corrected
    filtered = clean_windows(images, fallback, window)
    return filtered + trust * (corrected - filtered)


def clean_courses(courses: Tensor, pilots: Tensor, cleaner: Cleaner) -> Tensor:
    """Clean time courses (K, T) in noise of variance 1: strong ones by a network, weak ones with pilots (K, T)."""
    filtered = clean_windows(courses[..., None], pilots[..., None], COURSE_WINDOW)[..., 0]
    step = (cleaner.clean_courses(courses) - courses).clamp(-MAX_COURSE_STEP, MAX_COURSE_STEP)
    power = (courses.square().mean(1, keepdim=True) - 1).clamp(min=0)
    return filtered + power / (power + HALF_COURSE) * (courses + step - filtered)


def clean_image(image: Tensor, pilot: Tensor, deviation: Tensor | float) -> Tensor:
    """Clean an image (Y, X) in noise of this deviation with a pilot (Y, X), band by band to save memory."""
    image, pilot = image / deviation, pilot / deviation
    height, width = image.shape
    halo = max(IMAGE_WINDOW.size[0] - 1, MISFIT_SIDE // 2)
    band = max(1, BAND_PIXELS // width)
    bands = []
    for start in range(0, height, band):
        above = min(halo, start)
        rows = slice(start - above, start + band + halo)
        noisy, guess = image[None, rows], pilot[None, rows]
        cleaned = clean_where_trusted(noisy, guess, (noisy + guess) / 2, IMAGE_WINDOW)[0]
        bands.append(cleaned[above : above + band])
    return torch.cat(bands) * deviation


# ---- where the residual is larger than the noise

REGION = 16  # frames, and pixels a side, of the regions in which residual and noise are compared
FRAME_REGION, CUBE_REGION = (1, 4 * REGION), (REGION, REGION)  # (frames, pixels a side)
TOLERANCE = 0.2  # of the noise's variance: error of the noise model that is tolerated
CHANCE = 10.0  # over the root of a region's voxels: error of its variance that is tolerated as chance
MAX_ERROR = 16.0  # noise deviations: a larger residual is neither noise nor a common error, but one odd voxel
QUIET = 0.1  # quantile of the regions in which there is hardly any signal
MIN_VARIANCE = 0.04  # of the mean noise variance, is left in the darkest voxels
MIN_ROUGHNESS = 0.25  # share of the noise's variance that is rough, at least: registration interpolates
MIN_MODEL_RATIO = 0.8  # measured over expected noise variance, below which the noise was overestimated
TINY = 1e-30  # in the place of zero, as a divisor


def excerpts(frames: int) -> list[slice]:
    """Return slices of excerpts, spread evenly over so many frames, in which the noise is measured."""
    length = 4 * REGION if frames <= 4 * REGION else REGION
    starts = np.linspace(0, max(0, frames - length), 4 * REGION // length).astype(int)
    return [slice(start, start + length) for start in starts]


def add_back_residual(
    frames: Tensor,
    recording: Tensor,
    gain: Tensor,
    valid: Sequence[Tensor],
    frame_correlation: FrameCorrelation = UNCORRELATED,
) -> Tensor:
    """Move frames (n, Y, X) in place towards the recording (n, Y, X) where they miss it by more than its noise.

    gain (Y, X): the noise's variance is 1 + gain * brightness above the mean. valid (Y, X), for each of `excerpts`:
    share of its frames in which a pixel was recorded; elsewhere the recording holds the prediction.
    frame_correlation: how frames share noise.

    Where the variance of the residual is m times the noise's, m - 1 of it is the frames' error. Averaging frames and
    recording by inverse variance gives the recording a share of 1 - 1 / m.
    """
    ratios = [
        noise_variance_ratio(recording[part], expected_variance(frames[part], gain), mask)
        for part, mask in zip(excerpts(len(frames)), valid)
    ]
    ratios = sorted(ratio for ratio in ratios if ratio) or [1.0]  # 0: nothing changes, a shutter is closed
    variance = min(1.0, ratios[len(ratios) // 2] * frame_correlation.variance)
    for region in (FRAME_REGION, CUBE_REGION):  # after whole frames are corrected, only local errors are left
        share = 1 - 1 / excess_variance(frames, recording, gain, variance, region).clamp(min=1)  # (t, y, x)
        if not bool(share.any()):
            continue
        share = F.interpolate(share[None, None], (len(frames), *share.shape[1:]), mode="trilinear")[0, 0]
        parts = zip(frames.split(REGION), recording.split(REGION), share.split(REGION))
        for part, recorded, weights in parts:
            fine = F.interpolate(weights[:, None], part.shape[1:], mode="bilinear")[:, 0]
            part.add_(fine * (recorded - part))
    return frames


def excess_variance(
    frames: Tensor,
    recording: Tensor,
    gain: Tensor,
    variance: float = 1.0,
    region: tuple[int, int] = CUBE_REGION,
) -> Tensor:
    """Return the residual's variance over what noise and tolerance explain, in regions (t, y, x) of (frames, side).

    Measured by the mean absolute residual, so that odd voxels hardly count. variance: of the noise at the mean
    brightness. Noise may be louder than its model in places or for a time: where uneven light was divided out, or an
    offset drifts. The network's errors are smooth, as light is; noise is rough. So the rough part of the residual
    measures its noise.
    """
    length, side = region
    grid = max(1, frames.shape[1] // side), max(1, frames.shape[2] // side)
    ratios = []
    for part, recorded in zip(frames.split(length), recording.split(length)):
        errors = (recorded - part) / (variance * expected_variance(part, gain)).sqrt()
        tolerance = 1 + max(TOLERANCE, CHANCE / (part.numel() / math.prod(grid)) ** 0.5)
        ratio = robust_variance(errors, grid) / tolerance
        if bool((ratio > 1).any()) and min(part.shape[1:]) > 2:
            rough = errors.diff(n=2, dim=1).diff(n=2, dim=2) / 6  # keeps the variance of white noise
            ratio = ratio / robust_variance(rough, grid).clamp(min=1)
        ratios.append(ratio)
    return torch.stack(ratios)


def robust_variance(errors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the variance of errors (n, Y, X) in a grid (y, x) of regions, from their mean size as if Gaussian."""
    mean = F.adaptive_avg_pool2d(errors.abs().clamp(max=MAX_ERROR).mean(0)[None], grid)[0]
    return mean.square() * math.pi / 2


def expected_variance(frames: Tensor, gain: Tensor) -> Tensor:
    """Return the noise variance of voxels (n, Y, X) of this brightness, see `add_back_residual`."""
    return (1 + gain * frames).clamp(min=MIN_VARIANCE)


def noise_variance_ratio(recording: Tensor, expected: Tensor, valid: Tensor) -> float:
    """Return the noise variance of a whitened movie (T, Y, X) over the expected one (T, Y, X); 1 at most.

    Measured in the regions of which most was recorded; valid (Y, X): see `add_back_residual`. 0 where nothing changes.

    The noise model takes whatever changes from frame to frame for noise. In an almost noise-free movie that is signal,
    which is smooth along Y and X, in some places more than in others. Noise is rough, or equally smooth everywhere.
    """
    steps = recording.diff(dim=0)
    axes = [axis for axis in (1, 2) if steps.shape[axis] > 2 * REGION]
    if not axes or not len(steps):
        return 1.0
    grid = max(1, steps.shape[1] // REGION), max(1, steps.shape[2] // REGION)
    mask = (valid > 0.5).float()
    usable = F.adaptive_avg_pool2d(mask[None], grid)[0] > 0.5
    if not bool(usable.any()):
        return 1.0
    noise = masked_means(expected.mean(0), mask, grid)[usable]
    change = masked_means(steps.square().mean(0) / 2, mask, grid)[usable]
    rough = [
        masked_means(steps.diff(n=2, dim=axis).square().mean(0) / 12, mask, grid)[usable] for axis in axes
    ]
    roughest = torch.stack(rough).amax(0)  # neighbours may share noise along one axis
    roughness = (roughest / change.clamp(min=TINY)).quantile(1 - QUIET).clamp(MIN_ROUGHNESS, 1)
    return min(1.0, float((roughest / noise).quantile(QUIET) / roughness) / MIN_MODEL_RATIO)


def masked_means(image: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the means of an image over the pixels of a mask (Y, X), in a grid (y, x) of regions.

    The image may lack pixels at the borders of the mask, the same number at both ends of an axis.
    """
    top, left = ((size - own) // 2 for size, own in zip(mask.shape, image.shape))
    weights = mask[top : top + image.shape[0], left : left + image.shape[1]]
    sums, shares = F.adaptive_avg_pool2d(torch.stack([image * weights, weights]), grid)
    return sums / shares.clamp(min=TINY)
