"""What a denoiser took out of a movie: figures about raw - denoised, from a sample of frames, in flat memory.

    Diagnostics(movie): add(denoised frames, in order) ... findings(noise model) -> Findings

A residual that is only noise is white in time and space, has the variance of the noise model, and does not go
along with the signal. Frames are sampled, so that cost and memory are bounded however long the movie: whole
windows for statistics in time, one long window for traces, single frames for pictures and for the bleaching.

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

LAGS = 10  # frames, of the autocorrelation in time
REACH = 6  # pixels, of the autocorrelation in space
WINDOW = 64  # frames in a row, for statistics in time
STATISTICS_VOXELS = 1 << 27  # read for statistics, at most
TRACE_VOXELS = 1 << 27  # read for traces, at most
TRACE_FRAMES = 2000
CELLS_TIMES_FRAMES = 1 << 21  # kept for traces: 4 bytes each, twice
STATISTICS_PIXELS = 1 << 17  # of larger frames, every 2nd, 3rd, ... pixel along y and x
SPECTRUM_FRAMES = 200
LEVEL_FRAMES = 400  # of the bleaching curve
SHOWN_FRAMES = 60
SHOWN_SIDE = 320  # pixels; larger frames are binned for the pictures
SPOTS = 6
SPOT_SIDE = 4  # pixels, at least where the frame has them
BLOCK_VOXELS = 1 << 20  # looked at together
FEWEST = 8  # frames for statistics in time
GROUPS = 24  # of pixels of like brightness
ACTIVE = 0.05  # share of the pixels that counts as active


@dataclass
class Sample:
    """Which frames are looked at, and for what: arrays over the frames (T,)."""

    window: np.ndarray  # int, number of the statistics window, -1 for none
    trace: np.ndarray  # bool
    shown: np.ndarray  # bool
    spectrum: np.ndarray  # bool
    level: np.ndarray  # bool

    @property
    def wanted(self) -> np.ndarray:
        return (self.window >= 0) | self.trace | self.shown | self.level  # (T,)


def sample_frames(frames: int, pixels: int) -> Sample:
    """Choose the frames of a movie of `frames` frames of `pixels` pixels each.

    >>> sample_frames(3, 100).wanted
    array([ True,  True,  True])
    """
    window = np.full(frames, -1)
    budget = max(WINDOW, STATISTICS_VOXELS // pixels)
    if frames <= budget:
        window[:] = 0
    else:
        starts = np.linspace(0, frames - WINDOW, budget // WINDOW).astype(int)
        for number, start in enumerate(starts):
            window[start : start + WINDOW] = number
    length = min(frames, TRACE_FRAMES, max(WINDOW, TRACE_VOXELS // pixels))
    trace = np.zeros(frames, bool)
    trace[(frames - length) // 2 :][:length] = True
    spectrum = spread(np.flatnonzero(window >= 0), SPECTRUM_FRAMES, frames)
    everything = np.arange(frames)
    return Sample(
        window, trace, spread(everything, SHOWN_FRAMES, frames), spectrum,
        spread(everything, LEVEL_FRAMES, frames),
    )  # fmt: skip


def spread(candidates: np.ndarray, most: int, frames: int) -> np.ndarray:
    """At most `most` of the candidate frames, evenly spread: bool (T,)."""
    chosen = np.zeros(frames, bool)
    chosen[candidates[np.linspace(0, len(candidates) - 1, min(most, len(candidates))).astype(int)]] = True
    return chosen


class Diagnostics:
    """Collects while frames are written; reads the raw frames that it needs from the movie."""

    def __init__(self, movie: Readable) -> None:
        self.movie = movie
        frames, height, width = movie.info.shape
        self.sample = sample_frames(frames, height * width)
        self.wanted = self.sample.wanted
        self.seen = 0
        self.unit = 0.0  # of the intensities in all sums; 0 until there is any light
        self.origin = 0.0  # that they count from, in the movie's units
        self.varied = np.zeros(height, bool)  # rows that were not constant in every frame so far
        self.pixels = PixelSums(height, width)
        self.residual_spectrum, self.raw_spectrum = Spectrum(height, width), Spectrum(height, width)
        self.traces = CellTraces(height, width, int(self.sample.trace.sum()))
        self.bin = -(-max(height, width) // SHOWN_SIDE)
        sides = [-(-side // self.bin) for side in (height, width)]
        self.shown = np.zeros(
            (2, int(self.sample.shown.sum()), *sides), np.float32
        )  # raw and denoised, binned
        self.number = 0  # of frames in it
        self.levels: list[tuple[int, float, float]] = []  # (frame, mean of raw, mean of denoised)
        self.last: tuple[int, np.ndarray] | None = None  # the last raw frame that a difference may need

    def add(self, denoised: np.ndarray) -> None:
        """Take the next denoised frames (n, Y, X), in the movie's units."""
        first, self.seen = self.seen, self.seen + len(denoised)
        step = max(1, BLOCK_VOXELS // math.prod(denoised.shape[1:]))
        if not first:  # a row that is lost in the first frame is there in the next
            self.varied |= varying_rows(self.movie.read(0, min(2, len(self.wanted))))
        for start, stop in runs(self.wanted[first : self.seen], step):
            raw, clean = self.movie.read(first + start, first + stop), denoised[start:stop]
            if not self.unit:
                self._begin(raw, clean)
            self._take(first + start, self._in_unit(raw), self._in_unit(clean))

    def _begin(self, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Fix unit and origin by the first frames with light; what is kept of dark ones counts from there, too."""
        self.unit, self.origin = unit_of(denoised, raw), origin_of(raw)
        if self.origin:
            self.shown[:] = -self.origin
            self.traces.raw[:] = self.traces.denoised[:] = -self.origin / self.unit

    def _in_unit(self, frames: np.ndarray) -> np.ndarray:
        """A copy in float32."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and counts as missing
            return np.asarray(
                ((frames - self.origin) if self.origin else frames) / (self.unit or 1.0), np.float32
            )

    def _take(self, first: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Both (n, Y, X) in the unit, from the origin; pictures and levels are kept in the movie's unit."""
        self.varied |= varying_rows(raw)
        fill_missing(raw, denoised, self.varied)
        residual = raw - denoised  # (n, Y, X)
        told = residual.any((1, 2))  # a flash or a gap that came out as recorded tells nothing of the others
        told |= not told.any()
        told &= self.unit > 0  # nor does darkness before any light
        for i, frame in enumerate(range(first, first + len(raw))):
            if self.sample.level[frame]:
                raw_mean, denoised_mean = (float(frames[i].mean()) * self.unit for frames in (raw, denoised))
                self.levels.append((frame, self.origin + raw_mean, self.origin + denoised_mean))
            if self.sample.shown[frame]:
                for kept, frames in zip(self.shown, (raw, denoised)):
                    kept[self.number] = binned(frames[i], self.bin) * self.unit
                self.number += 1
            if self.sample.spectrum[frame] and told[i]:
                self.residual_spectrum.add(residual[i])
                before = (
                    raw[i - 1] if i else self.last[1] if self.last and self.last[0] == frame - 1 else None
                )
                if before is not None:
                    self.raw_spectrum.add(raw[i] - before)
        self.last = (first + len(raw) - 1, raw[-1].copy())
        trace = self.sample.trace[first : first + len(raw)]
        if trace.any():
            self.traces.add(raw[trace], denoised[trace])
        windows = np.where(told, self.sample.window[first : first + len(raw)], -1)
        for number in np.unique(windows[windows >= 0]):
            inside = windows == number
            self.pixels.add(int(number), raw[inside], denoised[inside])

    def absolute(self, values: np.ndarray) -> np.ndarray:
        """Values of the movie's unit with the origin added, in float64 where there is one."""
        return values.astype(np.float64) + self.origin if self.origin else values

    def findings(self, noise: dict[str, float], span: float) -> Findings:
        """All figures. noise: gain and read_variance in the movie's units; span: its range of intensities."""
        return summarize(self, noise, span)


def unit_of(*several: np.ndarray) -> float:
    """A power of two near the intensities of the first of several that has any; 0 if none has.

    In such a unit squares and their sums fit into float32 whatever the movie's own is, and no digit changes.

    >>> unit_of(np.array([0.0, np.inf]), np.array([0.0, 5.0]))
    4.0
    """
    for frames in several:
        lit = frames[np.isfinite(frames) & (frames != 0)]
        if lit.size:
            return 2.0 ** (math.frexp(float(np.median(np.abs(lit, dtype=np.float64))))[1] - 1)
    return 0.0


def origin_of(frames: np.ndarray) -> float:
    """The median of integers that float32 does not hold, dark ones aside: their differences fit. Else 0."""
    lit = frames[frames != 0]
    return float(np.median(lit)) if lit.size and lit.dtype.kind in "iu" and lit.dtype.itemsize >= 4 else 0.0


def varying_rows(frames: np.ndarray) -> np.ndarray:
    """Which rows are not of one value in each of some frames (n, Y, X): bool (Y,)."""
    known = np.where(np.isfinite(frames), frames, 0)
    return np.asarray((known.max(-1) != known.min(-1)).any(0))


def fill_missing(raw: np.ndarray, denoised: np.ndarray, varied: np.ndarray) -> None:
    """Where nothing was recorded there is no residual: put the denoised value (n, Y, X), in place.

    varied (Y,): rows that are not constant in the movie. Of few frames a lost row could not be told from a border.
    """
    missing = ~np.isfinite(raw)
    known = torch.from_numpy(np.where(missing, 0, raw))
    missing |= dropped_rows(known, torch.from_numpy(varied)).numpy()[:, :, None]
    raw[missing] = denoised[missing]


def binned(frame: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels of a frame (Y, X); what remains at the far edges too."""
    if factor == 1:
        return frame.copy()
    return F.avg_pool2d(torch.tensor(frame)[None, None], factor, ceil_mode=True)[0, 0].numpy()


class PixelSums:
    """Sums over time, pixel by pixel; of large frames every `stride`-th pixel along both axes."""

    def __init__(self, height: int, width: int) -> None:
        self.stride = max(1, math.ceil(math.sqrt(height * width / STATISTICS_PIXELS)))
        shape = (-(-height // self.stride), -(-width // self.stride))
        self.frames = 0
        self.reference = np.zeros(shape, np.float32)
        self.sums = {name: np.zeros(shape) for name in ("x", "d", "rr", "dd", "rd")}
        self.lagged = np.zeros((LAGS, *shape))
        self.pairs = np.zeros(LAGS)
        self.steps = {"x": 0.0, "d": 0.0}  # sums of squared differences of neighbouring frames
        self.window = -1
        self.tail: list[np.ndarray] = []  # the window's last raw and denoised frames, and LAGS residuals

    def add(self, window: int, raw: np.ndarray, denoised: np.ndarray) -> None:
        """Take the next frames (n, Y, X) of a window."""
        x, d = (frames[:, :: self.stride, :: self.stride] for frames in (raw, denoised))
        r = x - d
        if not self.frames:
            self.reference = d.mean(0)
        x, d = x - self.reference, d - self.reference
        self.frames += len(x)
        for name, total in zip(self.sums, (x.sum(0), d.sum(0), dots(r, r), dots(d, d), dots(r, d))):
            self.sums[name] += total
        if window == self.window:
            x, d, r = (np.concatenate(pair) for pair in zip(self.tail, (x, d, r)))
        fresh = len(raw)
        for name, frames in (("x", x), ("d", d)):
            self.steps[name] += float(np.square(np.diff(frames[-fresh - 1 :], axis=0)).sum(dtype=np.float64))
        for lag in range(1, min(LAGS + 1, len(r))):
            begin = max(0, len(r) - fresh - lag)
            early = r[begin:-lag]
            self.lagged[lag - 1] += dots(early, r[begin + lag :])
            self.pairs[lag - 1] += len(early)
        self.window, self.tail = window, [x[-LAGS:].copy(), d[-LAGS:].copy(), r[-LAGS:].copy()]

    def maps(self) -> dict[str, np.ndarray]:
        """Pixel by pixel (y, x): means, variances, the covariance of residual and denoised."""
        n = max(self.frames, 1)
        x, d = self.sums["x"] / n, self.sums["d"] / n
        r = x - d
        more = n / max(n - 1, 1)
        return {
            "raw": x + self.reference,
            "denoised": d + self.reference,
            "residual": r,
            "residual_variance": np.maximum(self.sums["rr"] / n - r * r * (n > 1), 0) * more,
            "denoised_variance": np.maximum(self.sums["dd"] / n - d * d, 0) * more,
            "covariance": (self.sums["rd"] / n - r * d) * more,
        }

    def autocorrelation(self, chosen: np.ndarray) -> list[float]:
        """Of the residual at lags 1, 2, ... frames: mean over chosen pixels, without a short movie's bias."""
        maps, n = self.maps(), max(self.frames, 1)
        variance = maps["residual_variance"]
        chosen = chosen & (variance > 0)
        if not chosen.any():
            return []
        found = []
        for product, pairs in zip(self.lagged, self.pairs):
            if pairs < FEWEST:
                break
            covariance = product / pairs - maps["residual"] ** 2 + variance / n
            found.append(float((covariance[chosen] / variance[chosen]).mean()))
        return found


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over time of a * b: two of (n, Y, X) -> (Y, X)."""
    return np.einsum("tyx,tyx->yx", a, b)


class Spectrum:
    """Sum of power spectra of images (Y, X): their autocorrelation in space. Of large images the middle."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = tuple(min(size, 512) for size in (height, width))
        self.start = tuple((size - used) // 2 for size, used in zip((height, width), self.shape))
        self.padded = [size + REACH for size in self.shape]
        self.power = np.zeros((self.padded[0], self.padded[1] // 2 + 1))
        self.images = 0

    def add(self, image: np.ndarray) -> None:
        y, x = (slice(start, start + size) for start, size in zip(self.start, self.shape))
        self.images += 1
        self.power += np.square(np.abs(np.fft.rfft2(image[y, x], s=self.padded, axes=(0, 1))))

    def autocorrelation(self) -> np.ndarray:
        """Correlation (2 REACH + 1, 2 REACH + 1) of pixels so far apart; 0 beyond the image."""
        covariance = self.autocovariance()
        variance = covariance[REACH, REACH]
        return covariance / variance if variance > 0 else np.zeros_like(covariance)

    def autocovariance(self) -> np.ndarray:
        """The same as products of values, their means not removed."""
        products = np.fft.irfft2(self.power, s=self.padded, axes=(0, 1))
        steps = np.arange(-REACH, REACH + 1)
        overlap = [np.clip(size - abs(steps), 0, None) for size in self.shape]
        pairs = overlap[0][:, None] * overlap[1]
        rows, columns = (steps % size for size in self.padded)
        found = np.where(pairs > 0, products[np.ix_(rows, columns)] / np.maximum(pairs, 1), 0)
        return found / max(self.images, 1)


class CellTraces:
    """Traces of all cells of a grid, each the mean of side x side pixels, or of all there are along a shorter axis."""

    def __init__(self, height: int, width: int, frames: int) -> None:
        side = SPOT_SIDE if min(height, width) >= 4 * SPOT_SIDE else 1
        while frames * math.prod(size // min(side, size) for size in (height, width)) > CELLS_TIMES_FRAMES:
            side += 1
        self.sides = min(side, height), min(side, width)
        self.seen = 0
        # at once: small pieces kept between large ones that come and go would tear holes into the memory
        self.raw = np.zeros((frames, height // self.sides[0], width // self.sides[1]), np.float32)
        self.denoised = np.zeros_like(self.raw)

    def add(self, raw: np.ndarray, denoised: np.ndarray) -> None:
        where = slice(self.seen, self.seen + len(raw))
        for frames, kept in ((raw, self.raw), (denoised, self.denoised)):
            kept[where] = F.avg_pool2d(torch.tensor(frames)[:, None], self.sides)[:, 0].numpy()  # (n, y, x)
        self.seen += len(raw)

    def spots(self) -> list[dict[str, Any]]:
        """The cells whose denoised traces rise most above the raw ones' noise, apart from each other."""
        raw, denoised = self.raw, self.denoised  # (n, y, x)
        if len(raw) < FEWEST:
            return []
        told = (raw != denoised).any((1, 2))  # as in Diagnostics
        rows = [(a[told], b[told]) for a, b in zip(raw.swapaxes(0, 1), denoised.swapaxes(0, 1))]
        if not told.any():
            return []
        noise = np.stack([(a - b).std(0) for a, b in rows])
        peak = np.stack([b.max(0) - np.median(b, 0) for _, b in rows])
        score = peak / np.where(noise > 0, noise, np.inf)
        found = []
        for _ in range(SPOTS):
            y, x = np.unravel_index(score.argmax(), score.shape)
            if score[y, x] <= 0:
                break
            along_y, along_x = self.sides
            found.append({
                "y": int((y + 0.5) * along_y), "x": int((x + 0.5) * along_x), "high": along_y, "side": along_x,
                "raw": raw[:, y, x], "denoised": denoised[:, y, x],
            })  # fmt: skip
            score[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        return found


# ---- what it all says --------------------------------------------------------------------------------------


@dataclass
class Check:
    """One question about the residual and its answer. level: "good", "watch" or "bad"."""

    question: str
    answer: str
    level: str


@dataclass
class Findings:
    """What the report shows. numbers: plain values, None where a movie is too short to tell."""

    numbers: dict[str, Any]
    checks: list[Check]
    verdict: str
    level: str
    maps: dict[str, np.ndarray]  # (y, x): PixelSums.maps and "correlation", "active"
    space: np.ndarray  # autocorrelation of the residual, (2 REACH + 1, 2 REACH + 1)
    raw_space: np.ndarray  # likewise of differences of neighbouring raw frames
    transfer: list[tuple[float, float]]  # (mean intensity, residual variance)
    levels: list[tuple[int, float, float]]  # (frame, mean of raw, mean of denoised)
    shown: list[tuple[int, np.ndarray, np.ndarray]]  # (frame, raw, denoised)
    spots: list[dict[str, Any]]
    trace_start: int
    bin: int  # the recording's pixels along each side of one of a picture's
    noise: dict[str, float]


def summarize(seen: Diagnostics, noise: dict[str, float], span: float) -> Findings:
    """The figures and what they say; all that has a unit is in the movie's own from here on."""
    maps = {
        name: image * (seen.unit**2 if name.endswith("variance") else seen.unit)
        for name, image in seen.pixels.maps().items()
    }
    spread_of = np.sqrt(maps["residual_variance"] * maps["denoised_variance"])
    maps["correlation"] = np.where(
        spread_of > 0, maps["covariance"] / np.where(spread_of > 0, spread_of, 1), 0
    )
    for name in ("raw", "denoised"):
        maps[name] += seen.origin
    maps["active"] = active_pixels(maps)
    space = seen.residual_spectrum.autocorrelation()
    raw_space = seen.raw_spectrum.autocorrelation()
    transfer = transfer_curve(maps)
    numbers = figures(seen, maps, space, raw_space)
    voxels = max(1, numbers["voxels_examined"])  # none of a movie that is dark throughout
    numbers |= {
        "variance_ratio": variance_ratio(transfer, noise),
        "offset": float(maps["residual"].mean()) / span if span > 0 else 0.0,
        "offset_error": math.sqrt(maps["residual_variance"].mean() / voxels) / span if span > 0 else 0.0,
    }
    checks = judge(numbers)
    level = max((check.level for check in checks), key=["good", "watch", "bad"].index)
    start = int(seen.sample.trace.argmax())
    spots = [
        spot | {name: seen.absolute(spot[name] * seen.unit) for name in ("raw", "denoised")}
        for spot in seen.traces.spots()
    ]
    return Findings(
        numbers, checks, verdict(checks, level), level, maps, space, raw_space, transfer, seen.levels,
        list(zip(np.flatnonzero(seen.sample.shown).tolist(), *map(seen.absolute, seen.shown))),
        spots, start, seen.bin, noise,
    )  # fmt: skip


def active_pixels(maps: dict[str, np.ndarray]) -> np.ndarray:
    """bool (y, x): the pixels whose denoised intensity varies most, in units of their residual's variance."""
    variance = maps["residual_variance"]
    activity = np.where(variance > 0, maps["denoised_variance"] / np.where(variance > 0, variance, 1), 0)
    number = max(1, round(ACTIVE * activity.size))
    return activity >= np.partition(activity, -number, axis=None)[-number]


def figures(
    seen: Diagnostics, maps: dict[str, np.ndarray], space: np.ndarray, raw_space: np.ndarray
) -> dict[str, Any]:
    """Plain numbers; None where there are too few frames or pixels."""
    in_time = seen.pixels.autocorrelation(np.ones_like(maps["active"]))
    active = seen.pixels.autocorrelation(maps["active"])
    slope, error = amplitude(maps, seen.pixels.frames)
    steps = seen.pixels.steps
    enough = seen.pixels.frames >= FEWEST
    return {
        "frames_examined": seen.pixels.frames,
        "voxels_examined": seen.pixels.frames * maps["active"].size,
        "correlation_in_time": in_time,
        "correlation_in_time_active": active,
        "correlation_error": 1 / math.sqrt(max(1, seen.pixels.frames * maps["active"].sum())),
        "correlation_along_x": float(space[REACH, REACH + 1]),
        "correlation_along_y": float(space[REACH + 1, REACH]),
        "raw_correlation_along_x": float(raw_space[REACH, REACH + 1]) if enough else None,
        "raw_correlation_along_y": float(raw_space[REACH + 1, REACH]) if enough else None,
        "correlated_noise_removed": removed_share(seen) if enough else None,
        "raw_on_denoised_slope": slope,
        "raw_on_denoised_slope_error": error,
        "flicker_reduction": math.sqrt(steps["x"] / steps["d"]) if enough and steps["d"] > 0 else None,
    }


def removed_share(seen: Diagnostics) -> float | None:
    """Share of the covariance of neighbours' noise that the residual holds: what is missing was left in.

    The noise's own is half that of the differences of neighbouring frames. Of both only what one axis has
    more than the other counts: signal that changes from frame to frame is as round as cells are.
    """

    def excess(spectrum: Spectrum) -> float:
        covariance = spectrum.autocovariance()
        return float(covariance[REACH, REACH + 1] - covariance[REACH + 1, REACH])

    noise = excess(seen.raw_spectrum) / 2
    return excess(seen.residual_spectrum) / noise if noise else None


def amplitude(maps: dict[str, np.ndarray], frames: int) -> tuple[float | None, float | None]:
    """Slope of raw on denoised over time in the active pixels, and its standard error.

    1 if amplitudes are kept, above 1 if they were reduced, below 1 if the denoised movie moves where the
    raw one does not. Neighbouring pixels share their signal: 25 are counted as one for the error.
    """
    active = maps["active"]
    signal = float(maps["denoised_variance"][active].sum())
    if frames < FEWEST or signal <= 0:
        return None, None
    noise = float(maps["residual_variance"][active].sum())
    independent = frames * max(1.0, active.sum() / 25)
    return 1 + float(maps["covariance"][active].sum()) / signal, math.sqrt(noise / signal / independent)


def transfer_curve(maps: dict[str, np.ndarray]) -> list[tuple[float, float]]:
    """(mean intensity, variance of the residual) of groups of pixels of like brightness."""
    mean, variance = maps["denoised"].ravel(), maps["residual_variance"].ravel()
    order = np.argsort(mean, kind="stable")
    groups = [group for group in np.array_split(order, GROUPS) if len(group)]
    return [(float(mean[group].mean()), float(variance[group].mean())) for group in groups]


def variance_ratio(transfer: list[tuple[float, float]], noise: dict[str, float]) -> float | None:
    """Median of the residual's variance over that of the noise model."""
    expected = [noise["gain"] * mean + noise["read_variance"] for mean, _ in transfer]
    ratios = [variance / model for (_, variance), model in zip(transfer, expected) if model > 0]
    return float(np.median(ratios)) if ratios else None


def judge(numbers: dict[str, Any]) -> list[Check]:
    asked = (judge_time, judge_amplitude, judge_space, judge_variance, judge_offset)
    return [question(numbers) for question in asked]


def judge_time(numbers: dict[str, Any]) -> Check:
    question = "Is the residual random in time?"
    if not numbers["correlation_in_time"] or not numbers["correlation_in_time_active"]:
        if numbers["frames_examined"] > FEWEST:
            return Check(question, "nothing was removed from the most active pixels", "watch")
        return Check(question, f"{numbers['frames_examined']} frames are too few to tell", "watch")
    everywhere, active = numbers["correlation_in_time"], numbers["correlation_in_time_active"]
    chance = 3 * numbers["correlation_error"]
    most, least = max(everywhere + active), min(everywhere + active)
    told = f"lag-1 correlation {everywhere[0]:.3f}, {active[0]:.3f} in the most active pixels"
    if most > max(everywhere[0], active[0], 0.03):
        told += f", up to {most:.3f} within {len(active)} frames"
    if most - chance > 0.1:
        return Check(question, f"no: signal was removed ({told})", "bad")
    if most - chance > 0.03:
        return Check(question, f"nearly: a little activity may have been removed ({told})", "watch")
    if least + chance < -0.1:
        return Check(question, f"no: {told}; negative: noise of neighbouring frames was left in", "watch")
    return Check(question, f"yes: {told}", "good")


def judge_amplitude(numbers: dict[str, Any]) -> Check:
    question = "Are amplitudes kept?"
    slope, error = numbers["raw_on_denoised_slope"], numbers["raw_on_denoised_slope_error"]
    if slope is None or error > 0.1:
        return Check(question, "too little activity to tell", "good")
    told = f"raw on denoised has slope {slope:.2f} +- {error:.2f} in the most active pixels"
    if slope - 2 * error > 1.1:
        return Check(question, f"no: {told}; transients are {100 * (1 - 1 / slope):.0f}% too small", "bad")
    if slope + 2 * error < 0.85:
        return Check(question, f"no: {told}; part of what moves is not in the recording", "watch")
    return Check(question, f"yes: {told}", "good")


def judge_space(numbers: dict[str, Any]) -> Check:
    question = "Is the noise independent between pixels?"
    left = {axis: numbers[f"correlation_along_{axis}"] for axis in "xy"}
    raw = {axis: numbers[f"raw_correlation_along_{axis}"] for axis in "xy"}
    chance = 3 / math.sqrt(max(1, numbers["voxels_examined"]))
    told = f"residual {left['x']:.3f} along x, {left['y']:.3f} along y"
    if None not in raw.values():
        told += f"; raw frame differences {raw['x']:.3f} and {raw['y']:.3f}"
        worse, other = ("x", "y") if raw["x"] > raw["y"] else ("y", "x")
        if raw[worse] - raw[other] - chance > 0.05:  # cells are round, scan noise is not
            kind, removed = "row" if worse == "x" else "column", numbers["correlated_noise_removed"]
            told = f"no: {kind}-correlated noise, {raw[worse]:.2f} along {worse} in the recording ({told})"
            if removed < 0.9:
                return Check(question, f"{told}; {100 * (1 - removed):.0f}% of that was left in", "bad")
            return Check(question, f"{told}; it was removed", "good")
    if max(left.values()) - chance > 0.1:
        own = None not in raw.values() and all(left[axis] <= raw[axis] + 0.02 for axis in "xy")
        cause = (
            "the recording's own noise is shared by neighbours: was it smoothed, binned or registered before?"
            if own else "structure was removed"
        )  # fmt: skip
        return Check(question, f"no: {cause} ({told})", "watch")
    return Check(question, f"yes: {told}", "good")


def judge_variance(numbers: dict[str, Any]) -> Check:
    question = "Was as much removed as there is noise?"
    ratio = numbers["variance_ratio"]
    if ratio is None:
        return Check(question, "no noise was found in this movie", "good")
    told = f"variance of the residual is {ratio:.2f} of the noise model's"
    if ratio > 1.3:
        return Check(question, f"more: {told}", "watch")
    return Check(question, f"less: {told}; noise was left in" if ratio < 0.75 else f"yes: {told}",
                 "watch" if ratio < 0.75 else "good")  # fmt: skip


def judge_offset(numbers: dict[str, Any]) -> Check:
    share = 100 * numbers["offset"]
    told = f"mean of raw - denoised is {share:.2f}% of the movie's range"
    question = "Is the brightness kept?"
    wrong = abs(share) - 300 * numbers["offset_error"] > 2
    return Check(question, f"no: {told}", "bad") if wrong else Check(question, f"yes: {told}", "good")


def verdict(checks: list[Check], level: str) -> str:
    """One line with its numbers."""
    told = {check.question: check.answer.split(": ", 1)[-1] for check in checks}
    if level == "good":
        time, variance = (told[checks[number].question] for number in (0, 3))
        return f"The residual looks like pure noise: {time}; {variance}."
    found = "; ".join(check.answer.split(": ", 1)[-1] for check in checks if check.level == level)
    return f"{'WARNING' if level == 'bad' else 'Look closer'}: {found}."
