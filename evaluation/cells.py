"""How well a denoiser keeps the activity of cells: traces, height of transients, false transients.

All but the false transients need the true movie. A cell's trace is the mean brightness (T,) of its pixels,
which are those where its footprint reaches half of its maximum; no background is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import find_objects, label, uniform_filter
from scipy.signal import find_peaks

MIN_CELL_PIXELS = 9
MAX_RISE_FRAMES = 30  # within which an isolated transient rises from its foot to its peak
MIN_TRANSIENT = 0.2  # height, relative to the cell's resting level
SPOT_SIDE = 5  # pixels; side of the squares in which false transients are sought, about a cell body
THRESHOLD = 5.0  # of false transients, in robust standard deviations
MIN_FRAMES = 3  # no indicator rises and falls faster at these frame rates
ROUNDING = 1e-5  # relative to the brightness; rises below it may be rounding errors of a flat float32 output


def pixels_of(footprint: np.ndarray) -> np.ndarray:
    """Return the mask (Y, X), bool, of a cell's pixels from its footprint (Y, X)."""
    return footprint >= max(footprint.max() / 2, np.finfo(np.float32).tiny)


def trace_of(movie: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the mean brightness (T,), float64, of a movie (T, Y, X) in a mask of pixels (Y, X)."""
    return movie[:, pixels].mean(axis=1, dtype=np.float64)


def score_cells(clean: np.ndarray, output: np.ndarray, footprints: Sequence[np.ndarray]) -> dict[str, float]:
    """Compare the cells' traces in an output (T, Y, X) with the true ones; cells below MIN_CELL_PIXELS are left out.

    trace_correlation: Pearson's correlation with the true trace, mean over cells; 0 where the output is constant.
    amplitude_kept: summed height of all isolated transients in the output over their summed true height, each in
        units of its cell's resting level. 1 is perfect, and noise does not bias it; nan where there is no transient.
    """
    correlations, true_heights, heights = [], [], []
    for pixels in map(pixels_of, footprints):
        if pixels.sum() < MIN_CELL_PIXELS:
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
    """Return Pearson's correlation of two traces (T,); 0 if either is constant."""
    a, b = truth - truth.mean(), trace - trace.mean()
    power = np.sqrt(np.dot(a, a) * np.dot(b, b))
    return float(np.dot(a, b) / power) if power > 1e-9 * abs(truth.mean() * trace.mean()) else 0.0


def resting_level(trace: np.ndarray) -> float:
    """Return the 10th percentile of a trace (T,), at least a thousandth of its maximum."""
    return max(float(np.percentile(trace, 10)), 1e-3 * float(trace.max()))


def isolated_transients(trace: np.ndarray) -> list[tuple[int, int]]:
    """Return the (foot, peak) frames of the transients of a true trace (T,) that rise alone and from rest.

    The peak's prominence is at least MIN_TRANSIENT of the resting level. The foot is the darkest of the MAX_RISE_FRAMES
    frames before the peak. It is above rest by at most a quarter of the transient's height, and between foot and peak
    the trace never falls by more than that.
    """
    level = resting_level(trace)
    transients = []
    for peak in find_peaks(trace, prominence=MIN_TRANSIENT * level)[0]:
        start = max(0, int(peak) - MAX_RISE_FRAMES)
        foot = start + int(np.argmin(trace[start:peak]))
        rise = trace[foot : peak + 1]
        fall = np.max(np.maximum.accumulate(rise) - rise)
        if max(rise[0] - level, fall) <= (rise[-1] - rise[0]) / 4:
            transients.append((foot, int(peak)))
    return transients


def height(trace: np.ndarray, foot: int, peak: int) -> float:
    """Return the difference between a trace's means over the three frames around the peak and around the foot."""
    return float(trace[max(peak - 1, 0) : peak + 2].mean() - trace[max(foot - 1, 0) : foot + 2].mean())


def score_noise(output: np.ndarray) -> dict[str, float]:
    """Measure what a cell finder would take for activity in the output (T, Y, X) for a movie of noise on a constant.

    The output is averaged over SPOT_SIDE x SPOT_SIDE pixels, and each pixel's temporal median is subtracted.

    false_transients: number of events, connected groups of voxels above THRESHOLD robust standard deviations (1.4826
        times the median absolute deviation) that cover MIN_CELL_PIXELS pixels and last MIN_FRAMES frames. Cell
        finders drop what is smaller or shorter. All pixels have the same noise here, so one deviation is computed over
        all of them: a single pixel of a smooth output has only a few independent values.
    false_height: the largest rise over a pixel's median, relative to the median.
    """
    spots = uniform_filter(output.astype(np.float32), (0, SPOT_SIDE, SPOT_SIDE))
    median = np.median(spots, axis=0)  # (Y, X)
    spots -= median
    deviation = 1.4826 * np.median(np.abs(spots))
    above = spots > max(THRESHOLD * deviation, ROUNDING * float(np.abs(median).max()))
    events, _ = label(above, structure=np.ones((3, 3, 3)))
    count = 0
    for number, bounding_box in enumerate(find_objects(events), 1):
        event = events[bounding_box] == number
        pixels, frames = event.any(0).sum(), event.any((1, 2)).sum()
        count += bool(pixels >= MIN_CELL_PIXELS and frames >= MIN_FRAMES)
    return {"false_transients": count, "false_height": float(np.max(spots / np.abs(median)))}
