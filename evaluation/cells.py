"""What a denoiser does to cells: shape of their traces, height of their transients, transients made of noise.

Definitions are for movies whose truth is known. A cell's trace is the mean brightness (T,) of its pixels,
those where its footprint reaches half of its maximum; no background is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import find_objects, label, uniform_filter
from scipy.signal import find_peaks

SMALLEST_CELL = 9  # pixels
RISE = 30  # frames within which an isolated transient rises from its foot to its peak
SMALLEST_TRANSIENT = 0.2  # of the cell's resting level
SPOT = 5  # pixels; a side of the squares in which false transients are looked for, about a cell's body
DEVIATIONS = 5.0  # robust standard deviations that make a transient
SHORTEST = 3  # frames: no indicator rises and falls faster at these rates
ROUNDING = (
    1e-5  # of the level: a float32 output that is flat but for its rounding has no deviation to compare with
)


def pixels_of(footprint: np.ndarray) -> np.ndarray:
    """The cell's pixels, (Y, X) bool, of its footprint (Y, X)."""
    return footprint >= max(footprint.max() / 2, np.finfo(np.float32).tiny)


def trace_of(movie: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Mean brightness of a movie (T, Y, X) in the pixels (Y, X), float64 (T,)."""
    return movie[:, pixels].mean(axis=1, dtype=np.float64)


def score_cells(clean: np.ndarray, output: np.ndarray, footprints: Sequence[np.ndarray]) -> dict[str, float]:
    """How true the cells' traces are in an output (T, Y, X); cells below nine pixels are left out.

    trace_correlation: Pearson's, with the true trace, mean over cells; 0 where the output is constant.
    amplitude_kept: summed height of all isolated transients in the output over their true height, in units
        of each cell's resting level; 1 is all of it, and noise does not bias it. nan where there is none.
    """
    correlations, true_heights, heights = [], [], []
    for pixels in map(pixels_of, footprints):
        if pixels.sum() < SMALLEST_CELL:
            continue
        truth, trace = trace_of(clean, pixels), trace_of(output, pixels)
        correlations.append(correlation(truth, trace))
        for foot, peak in isolated_transients(truth):
            true_heights.append(height(truth, foot, peak) / resting_level(truth))
            heights.append(height(trace, foot, peak) / resting_level(truth))
    return {
        "trace_correlation": float(np.mean(correlations)) if correlations else math.nan,
        "amplitude_kept": sum(heights) / sum(true_heights) if true_heights else math.nan,
    }


def correlation(truth: np.ndarray, trace: np.ndarray) -> float:
    """Pearson's correlation of two traces (T,); 0 if either is constant."""
    a, b = truth - truth.mean(), trace - trace.mean()
    power = np.sqrt(np.dot(a, a) * np.dot(b, b))
    return float(np.dot(a, b) / power) if power > 1e-9 * abs(truth.mean() * trace.mean()) else 0.0


def resting_level(trace: np.ndarray) -> float:
    return max(float(np.percentile(trace, 10)), 1e-3 * float(trace.max()))


def isolated_transients(trace: np.ndarray) -> list[tuple[int, int]]:
    """(foot, peak) frames of the transients of a true trace (T,) that rise alone and from rest.

    A peak stands out by SMALLEST_TRANSIENT of the resting level (the 10th percentile). Its foot is the lowest
    of the RISE frames before it and lies above rest by at most a quarter of the transient's height; between
    the two the trace never falls back by more than that.
    """
    rest = resting_level(trace)
    found = []
    for peak in find_peaks(trace, prominence=SMALLEST_TRANSIENT * rest)[0]:
        start = max(0, int(peak) - RISE)
        foot = start + int(np.argmin(trace[start:peak]))
        rise = trace[foot : peak + 1]
        fall = np.max(np.maximum.accumulate(rise) - rise)
        if max(rise[0] - rest, fall) <= (rise[-1] - rise[0]) / 4:
            found.append((foot, int(peak)))
    return found


def height(trace: np.ndarray, foot: int, peak: int) -> float:
    """Of a transient, between the means of the three frames around its peak and its foot."""
    return float(trace[max(peak - 1, 0) : peak + 2].mean() - trace[max(foot - 1, 0) : foot + 2].mean())


def score_noise(output: np.ndarray) -> dict[str, float]:
    """Of the output (T, Y, X) for a movie of noise on a constant: what a cell finder would take for activity.

    false_transients: number of events that stand out by five robust standard deviations of the output itself, as a
        cell finder sees it: in the 5 x 5 pixels mean, less each pixel's median. All pixels are alike here, so that
        one deviation (1.4826 times the median absolute one) is taken over all of them: that of a single pixel of a
        smooth output rests on a handful of independent values. An event is a connected group of such voxels that
        covers a cell (SMALLEST_CELL pixels) and lasts SHORTEST frames; cell finders drop what is smaller or shorter.
    false_height: the largest rise of that mean over its pixel's median, relative to it.
    """
    spots = uniform_filter(output.astype(np.float32), (0, SPOT, SPOT))
    median = np.median(spots, axis=0)  # (Y, X)
    spots -= median
    deviation = 1.4826 * np.median(np.abs(spots))
    above = spots > max(DEVIATIONS * deviation, ROUNDING * float(np.abs(median).max()))
    events, _ = label(above, structure=np.ones((3, 3, 3)))
    taken = 0
    for number, place in enumerate(find_objects(events), 1):
        event = events[place] == number
        taken += bool(event.any(0).sum() >= SMALLEST_CELL and event.any((1, 2)).sum() >= SHORTEST)
    return {"false_transients": taken, "false_height": float(np.max(spots / np.abs(median)))}
