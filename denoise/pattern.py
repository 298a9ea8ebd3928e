"""Fixed pattern of a camera: how its columns and rows differ, the same in all frames, while the scene moves.

On the canvas (`denoise.motion`) the pattern would move, as noise that differs from frame to frame. It is what the mean
of the recorded frames shows, and the mean scene, displaced as in the frames, does not:

    recorded mean = displaced scene + pattern,    mean on the canvas = scene + pattern as held

So the first, less the scene from the second as the frames would show it, is the pattern less what holding and releasing
leave of it; the remainder is found by iteration. Wrong displacements leave some of the scene there, too, but not the
same in all parts of a column.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from denoise.motion import FixedPattern, Motion
from denoise.waves import dct_matrix, octave_membership

CHUNK = 16  # frames that are resampled together
STRIPS = 4  # parts of each column, or row, that have to agree
EDGE = 4  # pixels by which interpolation reaches further than the margins
MIN_SIGNIFICANCE = 5.0  # standard errors, from which a common signal is no chance
GAIN_RANGE = 0.5, 2.0  # of plausible gains
MIN_WAVES = 4  # frequencies of an octave, to estimate the error: the lowest octaves have fewer
ROUNDS = 3  # each finds what is left of the pattern
TINY = torch.finfo().tiny

# `hold` or `release` of a motion: takes images (n, ., .) and the number of the first one's frame
Resample = Callable[[Tensor, int], Tensor]


def estimate_pattern(recorded: Tensor, held: Tensor, motion: Motion) -> tuple[FixedPattern | None, Tensor]:
    """Return the fixed pattern of a movie with this motion, or None, and its mean scene (H, W) without the pattern.

    recorded (Y, X) and held (H, W): means of its frames as recorded, and on the canvas. The pattern of a line is an
    offset, or a gain: then it is proportional to the scene's brightness, with the same slope in all lines.
    """
    frame_count, valid = len(motion.shifts), interior_mask(recorded, motion)
    level, slope = recorded[valid].mean(), torch.zeros(())
    lines = effect = torch.zeros_like(recorded)
    pattern, scene = None, held
    for _ in range(ROUNDS):
        shown = mean_resampled(motion.release, scene, frame_count)
        contrast, residual = shown - level, (recorded - shown).where(valid, torch.nan)
        correction = fit_lines(residual - effect, 1 + slope * contrast)
        if not bool(correction.any()):
            break
        lines = lines + correction
        slope = significant_slope(residual - lines, lines * contrast)
        gain = (1 + slope * lines).clamp(*GAIN_RANGE)
        pattern = FixedPattern(gain, lines * (1 - slope * level))
        effect = lines * (1 + slope * contrast)
        scene = held - mean_resampled(motion.hold, effect, frame_count)
    return pattern, scene


def mean_resampled(resample: Resample, image: Tensor, frame_count: int) -> Tensor:
    """Return the mean over the frames of an image that is resampled for each of them; 0 where none of them covers it."""
    total, count = torch.zeros(()), torch.zeros(())
    for start in range(0, frame_count, CHUNK):
        frames = resample(image.expand(min(CHUNK, frame_count - start), -1, -1), start)
        total = total + frames.nansum(0)
        count = count + frames.isfinite().sum(0)
    return total / count.clamp(min=1)


def interior_mask(image: Tensor, motion: Motion) -> Tensor:
    """Return the mask (Y, X) of pixels that are so far inside that no displaced frame needs extrapolation there."""
    mask = torch.ones_like(image, dtype=torch.bool)
    for axis, margins in enumerate(motion.margins):
        edge = min(max(margins) + EDGE, image.shape[axis] // 2)
        mask.narrow(axis, 0, edge).fill_(False)
        mask.narrow(axis, image.shape[axis] - edge, edge).fill_(False)
    return mask


def fit_lines(residual: Tensor, brightness: Tensor) -> Tensor:
    """Fit a residual (Y, X), NaN where it is not known, by brightness * (c[x] + r[y]); return c + r (Y, X)."""
    columns = fit_columns(residual, brightness)
    rows = fit_columns((residual - brightness * columns).T, brightness.T)
    return columns + rows[:, None]


def fit_columns(residual: Tensor, brightness: Tensor) -> Tensor:
    """Fit a residual (Y, X) by brightness * c[x]; return c (X,) as far as all strips of the field agree on it."""
    brightness = brightness.where(residual.isfinite(), torch.nan)
    strips = zip(residual.tensor_split(STRIPS), brightness.tensor_split(STRIPS))
    estimates = [(y * x).nansum(0) / x.square().nansum(0).clamp(min=TINY) for y, x in strips]
    return common_signal(torch.stack(estimates))


def common_signal(signals: Tensor) -> Tensor:
    """Return what n signals (n, N) have in common (N,): a Wiener filter in each octave of their DCT.

    Octaves in which the signals agree no more than by chance are 0.
    """
    dct, membership = dct_matrix(signals.shape[1]), octave_membership(signals.shape[1])
    spectra, count, pairs = signals @ dct.T, membership.sum(0), len(signals) * (len(signals) - 1) / 2
    mean, noise = spectra.mean(0), spectra.var(0)
    powers = torch.stack([mean.square() - noise / len(signals), mean.square(), noise]) @ membership / count
    shared, power, error = powers[0], powers[1], powers[2] / (count * pairs).sqrt()
    significant = (shared > MIN_SIGNIFICANCE * error) & (count >= MIN_WAVES)
    gain = torch.where(significant, shared / power.clamp(min=TINY), 0).clamp(0, 1)
    return (mean * (membership @ gain)) @ dct


def significant_slope(residual: Tensor, regressor: Tensor) -> Tensor:
    """Regress a residual (Y, X), NaN where it is not known, on a regressor (Y, X): the slope, 0 if it may be chance."""
    valid = residual.isfinite()
    residual, regressor = residual[valid], regressor[valid]
    power = regressor.square().sum().clamp(min=TINY)
    slope = (residual * regressor).sum() / power
    error = ((residual - slope * regressor).square().mean() / power).sqrt()
    return slope if bool(slope > MIN_SIGNIFICANCE * error) else torch.zeros(())
