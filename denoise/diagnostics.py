"""Diagnostics of what a denoiser removed from a movie: statistics of raw - denoised, from a sample of frames.

    Diagnostics(movie): add(denoised frames, in order) ... findings(noise model) -> Findings

A residual that is pure noise is white in time and space, has the variance of the noise model, and does not correlate
with the signal. Frames are sampled, so that cost and memory are bounded however long the movie: whole windows for
statistics in time, one long window for traces, single frames for pictures and for the bleaching curve.

Sources: photon transfer (Janesick, 2007); autocorrelation from power spectra (Wiener-Khinchin theorem).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from denoise.missing import dropped_rows, runs
from denoise.movies import Readable

MAX_FRAME_LAG = 10  # frames, of the autocorrelation in time
MAX_PIXEL_LAG = 6  # pixels, of the autocorrelation in space
WINDOW_FRAMES = 64  # consecutive frames, for statistics in time
STATISTICS_VOXELS = 1 << 27  # read for statistics, at most
TRACE_VOXELS = 1 << 27  # read for traces, at most
MAX_TRACE_FRAMES = 2000
MAX_TRACE_VALUES = 1 << 21  # patches times frames kept for traces: 4 bytes each, for raw and for denoised
STATISTICS_PIXELS = 1 << 17  # of larger frames, every 2nd, 3rd, ... pixel along y and x
SPECTRUM_FRAMES = 200
SPECTRUM_SIDE = 512  # pixels along each axis, from the middle of larger frames
LEVEL_FRAMES = 400  # of the bleaching curve
SHOWN_FRAMES = 60
SHOWN_SIDE = 320  # pixels; larger frames are binned for the pictures
MAX_SPOTS = 6
PATCH_SIDE = 4  # pixels, at least, where the frame has them
BLOCK_VOXELS = 1 << 20  # examined at once
MIN_FRAMES = 8  # for statistics in time
BRIGHTNESS_GROUPS = 24  # of pixels, in the photon transfer curve
ACTIVE_SHARE = 0.05  # of the pixels, which count as active
CORRELATED_PIXELS = 25  # that share their signal, and count as one independent pixel
LITTLE = 0.02  # of the variance of a pixel over time: a lost signal below that is no reason to warn


@dataclass
class Sample:
    """Which frames are examined, and for what: arrays over the frames (T,)."""

    window: np.ndarray  # int, number of the statistics window, -1 for none
    trace: np.ndarray  # bool
    shown: np.ndarray  # bool
    spectrum: np.ndarray  # bool
    level: np.ndarray  # bool

    @property
    def wanted(self) -> np.ndarray:
        return (self.window >= 0) | self.trace | self.shown | self.level  # (T,)


def sample_frames(frames: int, pixels: int) -> Sample:
    """Choose which frames to examine of a movie of `frames` frames of `pixels` pixels each.

    >>> sample_frames(3, 100).wanted
    array([ True,  True,  True])
    """
    window = np.full(frames, -1)
    budget = max(WINDOW_FRAMES, STATISTICS_VOXELS // pixels)
    if frames <= budget:
        window[:] = 0
    else:
        starts = np.linspace(0, frames - WINDOW_FRAMES, budget // WINDOW_FRAMES).astype(int)
        for number, start in enumerate(starts):
            window[start : start + WINDOW_FRAMES] = number
    length = min(frames, MAX_TRACE_FRAMES, max(WINDOW_FRAMES, TRACE_VOXELS // pixels))
    trace = np.zeros(frames, bool)
    trace[(frames - length) // 2 :][:length] = True
    all_frames = np.arange(frames)
    return Sample(
        window=window,
        trace=trace,
        shown=choose_evenly(all_frames, SHOWN_FRAMES, frames),
        spectrum=choose_evenly(np.flatnonzero(window >= 0), SPECTRUM_FRAMES, frames),
        level=choose_evenly(all_frames, LEVEL_FRAMES, frames),
    )


def choose_evenly(candidates: np.ndarray, most: int, frames: int) -> np.ndarray:
    """Choose at most `most` of the candidate frames, evenly spaced: bool (T,)."""
    chosen = np.zeros(frames, bool)
    chosen[candidates[np.linspace(0, len(candidates) - 1, min(most, len(candidates))).astype(int)]] = True
    return chosen


class Diagnostics:
    """Collects statistics while denoised frames are written; reads the raw frames that it needs from the movie."""

    def __init__(self, movie: Readable) -> None:
        self.movie = movie
        frames, height, width = movie.info.shape
        self.sample = sample_frames(frames, height * width)
        self.wanted = self.sample.wanted
        self.frames_added = 0
        self.unit = 0.0  # of the intensities in all sums; 0 until there is any light
        self.origin = 0.0  # subtracted from all intensities, in the movie's units
        self.varied = np.zeros(height, bool)  # rows that were not constant in every frame so far
        self.pixels = PixelSums(height, width)
        self.residual_spectrum, self.raw_spectrum = Spectrum(height, width), Spectrum(height, width)
        self.traces = PatchTraces(height, width, int(self.sample.trace.sum()))
        self.bin_factor = -(-max(height, width) // SHOWN_SIDE)
        sides = [-(-side // self.bin_factor) for side in (height, width)]
        self.shown = np.zeros((2, int(self.sample.shown.sum()), *sides), np.float32)  # raw, denoised; binned
        self.shown_count = 0  # frames in it so far
        self.levels: list[tuple[int, float, float]] = []  # (frame, mean of raw, mean of denoised)
        self.last_raw: tuple[int, np.ndarray] | None = (
            None  # (frame, image): the next may need their difference
        )

    def add(self, denoised: np.ndarray) -> None:
        """Take the next denoised frames (n, Y, X), in the movie's units."""
        first, self.frames_added = self.frames_added, self.frames_added + len(denoised)
        step = max(1, BLOCK_VOXELS // math.prod(denoised.shape[1:]))
        if not first:  # a row that is lost in the first frame is there in the next
            self.varied |= varying_rows(self.movie.read(0, min(2, len(self.wanted))))
        for start, stop in runs(self.wanted[first : self.frames_added], step):
            raw, clean = self.movie.read(first + start, first + stop), denoised[start:stop]
            if not self.unit:
                self._set_unit(raw, clean)
            self._examine(first + start, self._in_unit(raw), self._in_unit(clean))

    def _set_unit(self, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Set unit and origin by the first frames with light, and rebase what was kept of dark frames before."""
        self.unit, self.origin = unit_of(denoised, raw), origin_of(raw)
        if self.origin:
            self.shown[:] = -self.origin
            self.traces.raw[:] = self.traces.denoised[:] = -self.origin / self.unit

    def _in_unit(self, frames: np.ndarray) -> np.ndarray:
        """Return a float32 copy in the unit, counted from the origin."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and counts as missing
            shifted = (frames - self.origin) if self.origin else frames
            return np.asarray(shifted / (self.unit or 1.0), np.float32)

    def _examine(self, first: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Add frames (n, Y, X), in the unit, to all statistics; `first` is the number of the first of them."""
        self.varied |= varying_rows(raw)
        fill_missing(raw, denoised, self.varied)
        residual = raw - denoised  # (n, Y, X)
        # a flash or a gap that came out as recorded says nothing about the other frames
        informative = residual.any((1, 2))
        informative |= not informative.any()
        informative &= self.unit > 0  # neither does darkness before any light
        for i, frame in enumerate(range(first, first + len(raw))):
            self._keep_for_display(frame, raw[i], denoised[i])
            if self.sample.spectrum[frame] and informative[i]:
                self.residual_spectrum.add(residual[i])
                if i:
                    self.raw_spectrum.add(raw[i] - raw[i - 1])
                elif self.last_raw and self.last_raw[0] == frame - 1:
                    self.raw_spectrum.add(raw[i] - self.last_raw[1])
        self.last_raw = (first + len(raw) - 1, raw[-1].copy())
        in_trace = self.sample.trace[first : first + len(raw)]
        if in_trace.any():
            self.traces.add(raw[in_trace], denoised[in_trace])
        windows = np.where(informative, self.sample.window[first : first + len(raw)], -1)
        for number in np.unique(windows[windows >= 0]):
            in_window = windows == number
            self.pixels.add(int(number), raw[in_window], denoised[in_window])

    def _keep_for_display(self, frame: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Keep mean and picture of a frame (Y, X) where the sample asks for them, in the movie's unit."""
        if self.sample.level[frame]:
            raw_mean, denoised_mean = float(raw.mean()) * self.unit, float(denoised.mean()) * self.unit
            self.levels.append((frame, self.origin + raw_mean, self.origin + denoised_mean))
        if self.sample.shown[frame]:
            self.shown[0, self.shown_count] = bin_pixels(raw, self.bin_factor) * self.unit
            self.shown[1, self.shown_count] = bin_pixels(denoised, self.bin_factor) * self.unit
            self.shown_count += 1

    def add_origin(self, values: np.ndarray) -> np.ndarray:
        """Return values in the movie's unit with the origin added, in float64 where there is one."""
        return values.astype(np.float64) + self.origin if self.origin else values

    def findings(self, noise: dict[str, float], span: float) -> Findings:
        """Summarize all statistics.

        noise: gain and read_variance in the movie's units. span: the movie's range of intensities.
        """
        return summarize(self, noise, span)


def unit_of(*candidates: np.ndarray) -> float:
    """Return a power of two near the median intensity of the first array that has any light; 0 if none has.

    In such a unit squares and their sums fit into float32 whatever the movie's own unit, and no digit changes.

    >>> unit_of(np.array([0.0, np.inf]), np.array([0.0, 5.0]))
    4.0
    """
    for frames in candidates:
        lit = frames[np.isfinite(frames) & (frames != 0)]
        if lit.size:
            return 2.0 ** (math.frexp(float(np.median(np.abs(lit, dtype=np.float64))))[1] - 1)
    return 0.0


def origin_of(frames: np.ndarray) -> float:
    """Return the median of the nonzero values for integers of 32 bits or more, whose differences fit float32; else 0."""
    lit = frames[frames != 0]
    return float(np.median(lit)) if lit.size and lit.dtype.kind in "iu" and lit.dtype.itemsize >= 4 else 0.0


def varying_rows(frames: np.ndarray) -> np.ndarray:
    """Return which rows are not constant in at least one of the frames (n, Y, X): bool (Y,)."""
    finite = np.where(np.isfinite(frames), frames, 0)
    return np.asarray((finite.max(-1) != finite.min(-1)).any(0))


def fill_missing(raw: np.ndarray, denoised: np.ndarray, varied: np.ndarray) -> None:
    """Replace missing raw voxels by denoised ones (n, Y, X), in place: they then have no residual.

    varied (Y,): rows that are not constant in the movie. In a few frames a lost row looks like a constant border.
    """
    missing = ~np.isfinite(raw)
    finite = torch.from_numpy(np.where(missing, 0, raw))
    missing |= dropped_rows(finite, torch.from_numpy(varied)).numpy()[:, :, None]
    raw[missing] = denoised[missing]


def bin_pixels(frame: np.ndarray, factor: int) -> np.ndarray:
    """Average factor x factor pixels of a frame (Y, X), and the fewer that remain at the far edges."""
    if factor == 1:
        return frame.copy()
    return F.avg_pool2d(torch.tensor(frame)[None, None], factor, ceil_mode=True)[0, 0].numpy()


class PixelSums:
    """Sums over time for each pixel; of large frames every `stride`-th pixel along both axes.

    x, d and r stand for raw, denoised and residual frames; x and d are relative to a reference image.
    """

    def __init__(self, height: int, width: int) -> None:
        self.stride = max(1, math.ceil(math.sqrt(height * width / STATISTICS_PIXELS)))
        shape = (-(-height // self.stride), -(-width // self.stride))
        self.frames = 0
        self.reference = np.zeros(shape, np.float32)
        self.sums = {name: np.zeros(shape) for name in ("x", "d", "rr", "dd", "rd")}
        self.lagged = np.zeros(
            (MAX_FRAME_LAG, *shape)
        )  # sums of products of residuals 1, 2, ... frames apart
        self.pairs = np.zeros(MAX_FRAME_LAG)  # how many products each of them holds
        self.steps = {"x": 0.0, "d": 0.0}  # sums of squared differences of consecutive frames
        self.window = -1
        self.tail: list[np.ndarray] = []  # the window's last MAX_FRAME_LAG frames of x, d and r

    def add(self, window: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Take the next frames (n, Y, X) of a window."""
        x, d = (frames[:, :: self.stride, :: self.stride] for frames in (raw, denoised))
        r = x - d
        if not self.frames:
            self.reference = d.mean(0)
        x, d = x - self.reference, d - self.reference
        self.frames += len(x)
        self.sums["x"] += x.sum(0)
        self.sums["d"] += d.sum(0)
        self.sums["rr"] += sum_products(r, r)
        self.sums["dd"] += sum_products(d, d)
        self.sums["rd"] += sum_products(r, d)
        if window == self.window:
            x, d, r = (np.concatenate(pair) for pair in zip(self.tail, (x, d, r)))
        fresh = len(raw)
        for name, frames in (("x", x), ("d", d)):
            self.steps[name] += float(np.square(np.diff(frames[-fresh - 1 :], axis=0)).sum(dtype=np.float64))
        for lag in range(1, min(MAX_FRAME_LAG + 1, len(r))):
            begin = max(0, len(r) - fresh - lag)
            early = r[begin:-lag]
            self.lagged[lag - 1] += sum_products(early, r[begin + lag :])
            self.pairs[lag - 1] += len(early)
        self.window, self.tail = window, [frames[-MAX_FRAME_LAG:].copy() for frames in (x, d, r)]

    def maps(self) -> dict[str, np.ndarray]:
        """Return means, variances and the covariance of residual and denoised, each (y, x)."""
        n = max(self.frames, 1)
        x, d = self.sums["x"] / n, self.sums["d"] / n
        r = x - d
        bessel = n / max(n - 1, 1)
        return {
            "raw": x + self.reference,
            "denoised": d + self.reference,
            "residual": r,
            "residual_variance": np.maximum(self.sums["rr"] / n - r * r * (n > 1), 0) * bessel,
            "denoised_variance": np.maximum(self.sums["dd"] / n - d * d, 0) * bessel,
            "covariance": (self.sums["rd"] / n - r * d) * bessel,
        }

    def autocorrelation(self, mask: np.ndarray) -> list[float]:
        """Return the residual's autocorrelation at lags of 1, 2, ... frames, averaged over the pixels of a mask (y, x).

        The bias of a short movie, whose mean is estimated from the same frames, is removed.
        """
        maps, n = self.maps(), max(self.frames, 1)
        variance = maps["residual_variance"]
        mask = mask & (variance > 0)
        if not mask.any():
            return []
        correlations = []
        for product, pairs in zip(self.lagged, self.pairs):
            if pairs < MIN_FRAMES:
                break
            covariance = product / pairs - maps["residual"] ** 2 + variance / n
            correlations.append(float((covariance[mask] / variance[mask]).mean()))
        return correlations


def sum_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum a * b over time: two of (n, Y, X) -> (Y, X)."""
    return np.einsum("tyx,tyx->yx", a, b)


class Spectrum:
    """Sum of power spectra of images (Y, X), for their autocorrelation in space. Of large images the middle is used."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = tuple(min(size, SPECTRUM_SIDE) for size in (height, width))
        self.start = tuple((size - used) // 2 for size, used in zip((height, width), self.shape))
        self.padded = [size + MAX_PIXEL_LAG for size in self.shape]
        self.power = np.zeros((self.padded[0], self.padded[1] // 2 + 1))
        self.images = 0

    def add(self, image: np.ndarray) -> None:
        y, x = (slice(start, start + size) for start, size in zip(self.start, self.shape))
        self.images += 1
        self.power += np.square(np.abs(np.fft.rfft2(image[y, x], s=self.padded, axes=(0, 1))))

    def autocorrelation(self) -> np.ndarray:
        """Return the correlation at lags of -MAX_PIXEL_LAG ... MAX_PIXEL_LAG pixels (y, x); 0 beyond the image."""
        covariance = self.autocovariance()
        variance = covariance[MAX_PIXEL_LAG, MAX_PIXEL_LAG]
        return covariance / variance if variance > 0 else np.zeros_like(covariance)

    def autocovariance(self) -> np.ndarray:
        """Return the mean product of values at the same lags; means are not subtracted."""
        products = np.fft.irfft2(self.power, s=self.padded, axes=(0, 1))
        lags = np.arange(-MAX_PIXEL_LAG, MAX_PIXEL_LAG + 1)
        overlap = [np.clip(size - abs(lags), 0, None) for size in self.shape]
        pairs = overlap[0][:, None] * overlap[1]
        rows, columns = (lags % size for size in self.padded)
        covariance = np.where(pairs > 0, products[np.ix_(rows, columns)] / np.maximum(pairs, 1), 0)
        return covariance / max(self.images, 1)


class PatchTraces:
    """Traces of all patches of a grid, each the mean of side x side pixels (fewer along an axis that is shorter)."""

    def __init__(self, height: int, width: int, frames: int) -> None:
        side = PATCH_SIDE if min(height, width) >= 4 * PATCH_SIDE else 1
        while frames * math.prod(size // min(side, size) for size in (height, width)) > MAX_TRACE_VALUES:
            side += 1
        self.sides = min(side, height), min(side, width)
        self.frames_added = 0
        # allocated at once: small arrays kept between large temporary ones would fragment the memory
        self.raw = np.zeros((frames, height // self.sides[0], width // self.sides[1]), np.float32)
        self.denoised = np.zeros_like(self.raw)

    def add(self, raw: np.ndarray, denoised: np.ndarray) -> None:
        block = slice(self.frames_added, self.frames_added + len(raw))
        for frames, traces in ((raw, self.raw), (denoised, self.denoised)):
            traces[block] = F.avg_pool2d(torch.tensor(frames)[:, None], self.sides)[:, 0].numpy()  # (n, y, x)
        self.frames_added += len(raw)

    def spots(self) -> list[dict[str, Any]]:
        """Return the patches whose denoised traces rise most above the noise of the raw ones, apart from each other."""
        if len(self.raw) < MIN_FRAMES:
            return []
        informative = (self.raw != self.denoised).any((1, 2))  # as in Diagnostics
        if not informative.any():
            return []
        score = self._peak_to_noise(informative)
        spots = []
        for _ in range(MAX_SPOTS):
            y, x = np.unravel_index(score.argmax(), score.shape)
            if score[y, x] <= 0:
                break
            height, width = self.sides
            spots.append({
                "y": int((y + 0.5) * height), "x": int((x + 0.5) * width), "high": height, "side": width,
                "raw": self.raw[:, y, x], "denoised": self.denoised[:, y, x],
            })  # fmt: skip
            score[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        return spots

    def _peak_to_noise(self, informative: np.ndarray) -> np.ndarray:
        """Return the peak of each denoised trace over the standard deviation of its residual (y, x)."""
        rows = []
        for y in range(self.raw.shape[1]):
            raw, denoised = self.raw[:, y][informative], self.denoised[:, y][informative]  # (n, x)
            noise = (raw - denoised).std(0)
            peak = denoised.max(0) - np.median(denoised, 0)
            rows.append(peak / np.where(noise > 0, noise, np.inf))
        return np.stack(rows)


# ---- conclusions -------------------------------------------------------------------------------------------


@dataclass
class Check:
    """One question about the residual and its answer. level: "good", "watch" or "bad"."""

    question: str
    answer: str
    level: str


@dataclass
class Findings:
    """What the report shows. numbers: plain values, None where a movie is too short for them."""

    numbers: dict[str, Any]
    checks: list[Check]
    verdict: str
    level: str
    maps: dict[str, np.ndarray]  # (y, x): PixelSums.maps and "correlation", "active"
    residual_correlation: np.ndarray  # of pixels, (2 MAX_PIXEL_LAG + 1, 2 MAX_PIXEL_LAG + 1)
    raw_correlation: np.ndarray  # likewise of differences of consecutive raw frames
    transfer: list[tuple[float, float]]  # (mean intensity, residual variance)
    levels: list[tuple[int, float, float]]  # (frame, mean of raw, mean of denoised)
    shown: list[tuple[int, np.ndarray, np.ndarray]]  # (frame, raw, denoised)
    spots: list[dict[str, Any]]
    trace_start: int
    bin_factor: int  # pixels of the recording along each side of a pixel of the pictures
    noise: dict[str, float]


def summarize(diagnostics: Diagnostics, noise: dict[str, float], span: float) -> Findings:
    """Compute all figures, in the movie's units from here on, and judge them."""
    sample, unit = diagnostics.sample, diagnostics.unit
    maps = maps_in_movie_units(diagnostics)
    residual_correlation = diagnostics.residual_spectrum.autocorrelation()
    raw_correlation = diagnostics.raw_spectrum.autocorrelation()
    transfer = transfer_curve(maps)
    numbers = compute_numbers(diagnostics, maps, residual_correlation, raw_correlation)
    voxels = max(1, numbers["voxels_examined"])  # 0 for a movie that is dark throughout
    numbers |= {
        "variance_ratio": variance_ratio(transfer, noise),
        "offset": float(maps["residual"].mean()) / span if span > 0 else 0.0,
        "offset_error": math.sqrt(maps["residual_variance"].mean() / voxels) / span if span > 0 else 0.0,
    }
    checks = judge(numbers)
    level = max((check.level for check in checks), key=["good", "watch", "bad"].index)
    raw_shown, denoised_shown = (diagnostics.add_origin(frames) for frames in diagnostics.shown)
    spots = [
        spot | {name: diagnostics.add_origin(spot[name] * unit) for name in ("raw", "denoised")}
        for spot in diagnostics.traces.spots()
    ]
    return Findings(
        numbers=numbers,
        checks=checks,
        verdict=verdict(checks, level),
        level=level,
        maps=maps,
        residual_correlation=residual_correlation,
        raw_correlation=raw_correlation,
        transfer=transfer,
        levels=diagnostics.levels,
        shown=list(zip(np.flatnonzero(sample.shown).tolist(), raw_shown, denoised_shown)),
        spots=spots,
        trace_start=int(sample.trace.argmax()),
        bin_factor=diagnostics.bin_factor,
        noise=noise,
    )


def maps_in_movie_units(diagnostics: Diagnostics) -> dict[str, np.ndarray]:
    """Return PixelSums.maps in the movie's units, and "correlation" (of residual and denoised) and "active" (y, x)."""
    unit = diagnostics.unit
    maps = {
        name: image * (unit**2 if name.endswith("variance") else unit)
        for name, image in diagnostics.pixels.maps().items()
    }
    deviations = np.sqrt(maps["residual_variance"] * maps["denoised_variance"])
    maps["correlation"] = np.where(
        deviations > 0, maps["covariance"] / np.where(deviations > 0, deviations, 1), 0
    )
    for name in ("raw", "denoised"):
        maps[name] += diagnostics.origin
    maps["active"] = active_pixels(maps)
    return maps


def active_pixels(maps: dict[str, np.ndarray]) -> np.ndarray:
    """Return the mask (y, x) of the pixels whose denoised variance is largest relative to their residual variance."""
    variance = maps["residual_variance"]
    activity = np.where(variance > 0, maps["denoised_variance"] / np.where(variance > 0, variance, 1), 0)
    number = max(1, round(ACTIVE_SHARE * activity.size))
    return activity >= np.partition(activity, -number, axis=None)[-number]


def compute_numbers(
    diagnostics: Diagnostics,
    maps: dict[str, np.ndarray],
    residual_correlation: np.ndarray,
    raw_correlation: np.ndarray,
) -> dict[str, Any]:
    """Return the figures that are plain numbers; None where there are too few frames or pixels."""
    pixels = diagnostics.pixels
    one_right, one_down = (MAX_PIXEL_LAG, MAX_PIXEL_LAG + 1), (MAX_PIXEL_LAG + 1, MAX_PIXEL_LAG)
    masks = np.ones_like(maps["active"]), maps["active"]
    everywhere, active = (pixels.autocorrelation(mask) for mask in masks)
    slope, error = amplitude_slope(maps, pixels.frames)
    steps = pixels.steps
    enough = pixels.frames >= MIN_FRAMES
    return {
        "frames_examined": pixels.frames,
        "voxels_examined": pixels.frames * maps["active"].size,
        "correlation_in_time": everywhere,
        "correlation_in_time_active": active,
        "signal_removed": max(signal_removed(maps, *found) for found in zip(masks, (everywhere, active))),
        "correlation_error": 1 / math.sqrt(max(1, pixels.frames * maps["active"].sum())),
        "correlation_along_x": float(residual_correlation[one_right]),
        "correlation_along_y": float(residual_correlation[one_down]),
        "raw_correlation_along_x": float(raw_correlation[one_right]) if enough else None,
        "raw_correlation_along_y": float(raw_correlation[one_down]) if enough else None,
        "correlated_noise_removed": removed_share(diagnostics) if enough else None,
        "raw_on_denoised_slope": slope,
        "raw_on_denoised_slope_error": error,
        "flicker_reduction": math.sqrt(steps["x"] / steps["d"]) if enough and steps["d"] > 0 else None,
    }


def signal_removed(maps: dict[str, np.ndarray], mask: np.ndarray, correlations: list[float]) -> float:
    """Return the share of a pixel's variance over time that was removed and is no noise: the median over a mask (y, x).

    It is the share of the residual, times the highest of its correlations with itself at any lag.
    """
    removed, kept = (maps[f"{name}_variance"][mask] for name in ("residual", "denoised"))
    varies = removed + kept > 0
    shares = removed[varies] / (removed + kept)[varies]
    return max(0.0, *correlations) * float(np.median(shares)) if len(shares) and correlations else 0.0


def removed_share(diagnostics: Diagnostics) -> float | None:
    """Return the share of the covariance of neighbouring pixels' noise that the residual holds; the rest was left in.

    The covariance of the noise is half that of differences of consecutive frames. Of both only the excess of one axis
    over the other counts: signal that changes from frame to frame is isotropic, as cells are round.
    """

    def anisotropy(spectrum: Spectrum) -> float:
        covariance = spectrum.autocovariance()
        return float(
            covariance[MAX_PIXEL_LAG, MAX_PIXEL_LAG + 1] - covariance[MAX_PIXEL_LAG + 1, MAX_PIXEL_LAG]
        )

    noise = anisotropy(diagnostics.raw_spectrum) / 2
    return anisotropy(diagnostics.residual_spectrum) / noise if noise else None


def amplitude_slope(maps: dict[str, np.ndarray], frames: int) -> tuple[float | None, float | None]:
    """Return the slope of the regression of raw on denoised over time in the active pixels, and its standard error.

    The slope is 1 if amplitudes are kept, above 1 if they were reduced, below 1 if the denoised movie varies where the
    raw one does not. Neighbouring pixels share their signal, so that CORRELATED_PIXELS count as one for the error.
    """
    active = maps["active"]
    signal = float(maps["denoised_variance"][active].sum())
    if frames < MIN_FRAMES or signal <= 0:
        return None, None
    noise = float(maps["residual_variance"][active].sum())
    independent = frames * max(1.0, active.sum() / CORRELATED_PIXELS)
    return 1 + float(maps["covariance"][active].sum()) / signal, math.sqrt(noise / signal / independent)


def transfer_curve(maps: dict[str, np.ndarray]) -> list[tuple[float, float]]:
    """Return the photon transfer curve: (mean intensity, residual variance) for groups of equally bright pixels."""
    mean, variance = maps["denoised"].ravel(), maps["residual_variance"].ravel()
    order = np.argsort(mean, kind="stable")
    groups = [group for group in np.array_split(order, BRIGHTNESS_GROUPS) if len(group)]
    return [(float(mean[group].mean()), float(variance[group].mean())) for group in groups]


def variance_ratio(transfer: list[tuple[float, float]], noise: dict[str, float]) -> float | None:
    """Return the median ratio of the residual's variance to that of the noise model; None where the model has none."""
    expected = [noise["gain"] * mean + noise["read_variance"] for mean, _ in transfer]
    ratios = [variance / model for (_, variance), model in zip(transfer, expected) if model > 0]
    return float(np.median(ratios)) if ratios else None


def judge(numbers: dict[str, Any]) -> list[Check]:
    judges = (judge_time, judge_amplitude, judge_space, judge_variance, judge_offset)
    return [answer(numbers) for answer in judges]


def judge_time(numbers: dict[str, Any]) -> Check:
    question = "Is the residual random in time?"
    if not numbers["correlation_in_time"] or not numbers["correlation_in_time_active"]:
        if numbers["frames_examined"] > MIN_FRAMES:
            return Check(question, "nothing was removed from the most active pixels", "watch")
        return Check(question, f"{numbers['frames_examined']} frames are too few to tell", "watch")
    everywhere, active = numbers["correlation_in_time"], numbers["correlation_in_time_active"]
    margin = 3 * numbers["correlation_error"]
    most, least = max(everywhere + active), min(everywhere + active)
    evidence = f"lag-1 correlation {everywhere[0]:.3f}, {active[0]:.3f} in the most active pixels"
    if most > max(everywhere[0], active[0], 0.03):
        evidence += f", up to {most:.3f} within {len(active)} frames"
    signal = numbers["signal_removed"]
    if most - margin > 0.1 and signal > LITTLE:
        return Check(question, f"no: signal was removed ({evidence})", "bad")
    if most - margin > 0.03:
        evidence += f"; {100 * signal:.1f}% of the variance over time"
        return Check(question, f"nearly: a little activity may have been removed ({evidence})", "watch")
    if least + margin < -0.1:
        return Check(question, f"no: {evidence}; negative: noise of neighbouring frames was left in", "watch")
    return Check(question, f"yes: {evidence}", "good")


def judge_amplitude(numbers: dict[str, Any]) -> Check:
    question = "Are amplitudes kept?"
    slope, error = numbers["raw_on_denoised_slope"], numbers["raw_on_denoised_slope_error"]
    if slope is None or error > 0.1:
        return Check(question, "too little activity to tell", "good")
    evidence = f"raw on denoised has slope {slope:.2f} +- {error:.2f} in the most active pixels"
    if slope - 2 * error > 1.1:
        return Check(
            question, f"no: {evidence}; transients are {100 * (1 - 1 / slope):.0f}% too small", "bad"
        )
    if slope + 2 * error < 0.85:
        return Check(question, f"no: {evidence}; part of what moves is not in the recording", "watch")
    return Check(question, f"yes: {evidence}", "good")


def judge_space(numbers: dict[str, Any]) -> Check:
    question = "Is the noise independent between pixels?"
    residual = {axis: numbers[f"correlation_along_{axis}"] for axis in "xy"}
    raw = {axis: numbers[f"raw_correlation_along_{axis}"] for axis in "xy"}
    margin = 3 / math.sqrt(max(1, numbers["voxels_examined"]))
    evidence = f"residual {residual['x']:.3f} along x, {residual['y']:.3f} along y"
    if None not in raw.values():
        evidence += f"; raw frame differences {raw['x']:.3f} and {raw['y']:.3f}"
        worse, other = ("x", "y") if raw["x"] > raw["y"] else ("y", "x")
        if raw[worse] - raw[other] - margin > 0.05:  # cells are round, scan noise is not
            kind, removed = "row" if worse == "x" else "column", numbers["correlated_noise_removed"]
            evidence = (
                f"no: {kind}-correlated noise, {raw[worse]:.2f} along {worse} in the recording ({evidence})"
            )
            if removed < 0.9:
                return Check(question, f"{evidence}; {100 * (1 - removed):.0f}% of that was left in", "bad")
            return Check(question, f"{evidence}; it was removed", "good")
    if max(residual.values()) - margin > 0.1:
        in_recording = None not in raw.values() and all(residual[axis] <= raw[axis] + 0.02 for axis in "xy")
        cause = (
            "the recording's own noise is shared by neighbours: was it smoothed, binned or registered before?"
            if in_recording else "structure was removed"
        )  # fmt: skip
        return Check(question, f"no: {cause} ({evidence})", "watch")
    return Check(question, f"yes: {evidence}", "good")


def judge_variance(numbers: dict[str, Any]) -> Check:
    question = "Was as much removed as there is noise?"
    ratio = numbers["variance_ratio"]
    if ratio is None:
        return Check(question, "no noise was found in this movie", "good")
    evidence = f"variance of the residual is {ratio:.2f} of the noise model's"
    if ratio > 1.3:
        return Check(question, f"more: {evidence}", "watch")
    if ratio < 0.75:
        return Check(question, f"less: {evidence}; noise was left in", "watch")
    return Check(question, f"yes: {evidence}", "good")


def judge_offset(numbers: dict[str, Any]) -> Check:
    share = 100 * numbers["offset"]
    evidence = f"mean of raw - denoised is {share:.2f}% of the movie's range"
    question = "Is the brightness kept?"
    wrong = abs(share) - 300 * numbers["offset_error"] > 2
    return Check(question, f"no: {evidence}", "bad") if wrong else Check(question, f"yes: {evidence}", "good")


def verdict(checks: list[Check], level: str) -> str:
    """Summarize the checks in one line with their numbers."""
    answers = [check.answer.split(": ", 1)[-1] for check in checks]  # without a "yes: " or "no: " before
    if level == "good":
        time, variance = answers[0], answers[3]  # in the order of judge
        return f"The residual looks like pure noise: {time}; {variance}."
    problems = "; ".join(answer for answer, check in zip(answers, checks) if check.level == level)
    return f"{'WARNING' if level == 'bad' else 'Look closer'}: {problems}."
