"""The figures about a residual: known movies must give known answers, at any size and in any blocks."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from denoise import diagnostics
from denoise.diagnostics import (
    MAX_PIXEL_LAG,
    MAX_TRACE_VALUES,
    Diagnostics,
    Findings,
    PatchTraces,
    PixelSums,
    Spectrum,
    fill_missing,
    sample_frames,
)
from denoise.missing import runs
from denoise.report import page_data
from simulation import noisy

NOISE = {"gain": 0.0, "read_variance": 25.0}


class Recording:
    """A movie in memory that counts the frames read from it."""

    def __init__(self, frames: np.ndarray) -> None:
        self.array, self.frames_read = frames, 0
        self.info = SimpleNamespace(shape=frames.shape, dtype=frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.frames_read += stop - start
        return self.array[start:stop].copy()


def examine(
    raw: np.ndarray,
    denoised: np.ndarray,
    noise: dict[str, float] = NOISE,
    step: int = 37,
    span: float = 100.0,
) -> Findings:
    diagnostics = Diagnostics(Recording(raw))
    for start in range(0, len(raw), step):
        diagnostics.add(denoised[start : start + step])
    return diagnostics.findings(noise, span)


def clean_movie(frames: int = 300, size: int = 40) -> np.ndarray:
    """Four cells that fire by turns on a bright ground, (T, Y, X)."""
    y, x = np.mgrid[:size, :size]
    movie = np.full((frames, size, size), 100.0, np.float32)
    for number, (cy, cx) in enumerate([(10, 10), (10, 30), (30, 10), (30, 30)]):
        trace = np.zeros(frames)
        trace[20 + 15 * number :: 70] = 60
        decay = np.exp(-np.arange(60) / 10)
        trace = np.convolve(trace, decay)[:frames]
        cell = ((y - cy) ** 2 + (x - cx) ** 2 < 16).astype(float)
        movie += (trace[:, None, None] * cell).astype(np.float32)
    return movie


def white(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, shape).astype(np.float32)


def test_perfect_denoising_is_praised() -> None:
    clean = clean_movie()
    found = examine(clean + white(clean.shape), clean)
    assert found.level == "good"
    assert found.verdict.startswith("The residual looks like pure noise")
    assert found.numbers["variance_ratio"] == pytest.approx(1, abs=0.03)
    assert found.numbers["raw_on_denoised_slope"] == pytest.approx(1, abs=0.03)
    assert abs(np.array(found.numbers["correlation_in_time"])).max() < 0.01
    assert found.numbers["correlation_along_x"] == pytest.approx(0, abs=0.01)


def test_transients_that_were_cut_to_two_thirds_are_reported() -> None:
    clean = clean_movie()
    cut = 100 + (clean - 100) * np.float32(2 / 3)
    found = examine(clean + white(clean.shape), cut)
    assert found.level == "bad"
    assert found.numbers["raw_on_denoised_slope"] == pytest.approx(1.5, abs=0.05)
    assert "33% too small" in found.verdict
    cells = found.maps["correlation"][8:13, 8:13]
    assert cells.mean() > 0.4


@pytest.mark.parametrize(("noise", "level"), [(5.0, "bad"), (0.3, "watch")])
def test_a_lost_signal_is_judged_by_its_share_of_the_variance(noise: float, level: str) -> None:
    """A signal of half the noise's variance was removed from every pixel, beside waves that were kept."""
    time = np.arange(300)
    kept = 20 * np.sin(time / 9)[:, None, None] + np.zeros((1, 40, 40))
    lost = noise * np.sin(time / 4)[:, None, None]
    raw = (100 + kept + lost + noise / 5 * white(kept.shape)).astype(np.float32)
    found = examine(raw, (100 + kept).astype(np.float32), {"gain": 0.0, "read_variance": 1.5 * noise**2})
    assert found.checks[0].level == level
    expected = noise**2 / 2 * np.cos(1 / 4) / (1.5 * noise**2 + 200)
    assert found.numbers["signal_removed"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("power", [100, -100])
@pytest.mark.parametrize("dark", [0, 70])
def test_figures_have_no_scale_and_what_has_a_unit_has_the_movies(power: int, dark: int) -> None:
    """Squares of 2^100 and 2^-100 do not fit into float32. Some movies begin in the dark."""
    clean, scale = clean_movie(), 2.0**power
    raw = clean + white(clean.shape)
    clean[:dark], raw[:dark] = 0, 0
    usual = examine(raw, clean)
    found = examine(
        raw * scale, clean * scale, {"gain": 0.0, "read_variance": 25 * scale**2}, span=100 * scale
    )
    assert (found.numbers, found.verdict) == (usual.numbers, usual.verdict)
    assert found.levels == [(frame, one * scale, two * scale) for frame, one, two in usual.levels]
    assert found.transfer == [(mean * scale, variance * scale**2) for mean, variance in usual.transfer]
    np.testing.assert_array_equal(found.maps["denoised"], usual.maps["denoised"] * scale)
    for (_, *images), (_, *expected) in zip(found.shown, usual.shown, strict=True):
        np.testing.assert_array_equal(images, np.multiply(expected, np.float32(scale)))
    for spot, usual_spot in zip(found.spots, usual.spots, strict=True):
        np.testing.assert_array_equal(spot["raw"], usual_spot["raw"] * scale)


@pytest.mark.parametrize(("dtype", "offset"), [("int32", 100 - 2**31), ("uint32", 2**32 - 1000)])
def test_integers_that_float32_does_not_hold_have_the_same_figures(dtype: str, offset: int) -> None:
    clean = clean_movie().astype(np.float64)
    raw = (clean + white(clean.shape)).round()
    usual = examine(raw.astype(np.float32), clean)
    found = examine((raw + offset).astype(dtype), clean + offset, {"gain": 0.0, "read_variance": 25.0})
    assert (found.level, found.verdict) == (usual.level, usual.verdict) == ("good", usual.verdict)
    np.testing.assert_allclose(found.maps["denoised"], usual.maps["denoised"] + offset, atol=1e-3, rtol=0)
    trace = np.subtract(page_data(found, {})["spots"][0]["raw"], offset)
    np.testing.assert_allclose(trace, usual.spots[0]["raw"], atol=0.1, rtol=0)


@pytest.mark.parametrize("offset", [0, 2**32 - 1000])
def test_darkness_before_any_light_is_shown_and_tells_nothing(offset: int) -> None:
    """It fills one block of frames, and most of the next one."""
    clean, dark = clean_movie().astype(np.float64), 70
    raw = (clean + white(clean.shape)).round()
    usual = examine(raw[dark:], clean[dark:])
    raw, clean = raw + offset, clean + offset
    raw[:dark], clean[:dark] = 0, 0
    found = examine(raw.astype(np.uint32), clean)
    assert (found.level, found.verdict) == (usual.level, usual.verdict) == ("good", usual.verdict)
    assert found.numbers["frames_examined"] == len(clean) - dark
    np.testing.assert_allclose(found.maps["denoised"], usual.maps["denoised"] + offset, atol=1e-3, rtol=0)
    np.testing.assert_allclose(found.spots[0]["raw"][dark:] - offset, usual.spots[0]["raw"], atol=0.1)
    pictures = [(frame, *map(np.mean, pair)) for frame, *pair in found.shown]
    traces = [(frame, found.spots[0]["denoised"][frame]) for frame in range(dark)]
    values: list[tuple[Any, ...]] = [*found.levels, *pictures, *traces]
    for frame, *means in values:
        expected = clean[frame].mean()
        assert means == pytest.approx([expected] * len(means), rel=1e-3, abs=1000 if offset else 1)


def test_a_movie_that_is_dark_throughout_tells_nothing() -> None:
    raw = np.zeros((100, 6, 6), np.uint16)
    found = examine(raw, raw.astype(np.float32), {"gain": 0.0, "read_variance": 0.0})
    assert found.verdict == "Look closer: 0 frames are too few to tell."
    assert len(found.levels) == 100


def test_cells_that_were_removed_altogether_are_reported() -> None:
    clean = clean_movie()
    found = examine(clean + white(clean.shape), np.where(np.arange(40) < 20, clean, 100).astype(np.float32))
    assert found.level != "good"
    assert "structure was removed" in found.verdict


def test_a_lost_offset_is_reported() -> None:
    clean = clean_movie()
    found = examine(clean + white(clean.shape), clean - 5)
    assert found.numbers["offset"] == pytest.approx(0.05, abs=1e-3)
    assert found.level == "bad"
    assert "5.01% of the movie's range" in found.verdict


def test_frames_that_came_out_as_recorded_tell_nothing_of_the_others() -> None:
    """Flashes: neither their light counts for the noise model, nor their residual of 0 for noise that was left in."""
    clean = clean_movie()
    raw = (clean + np.random.default_rng(0).normal(0, 5, clean.shape)).astype(np.float32)
    raw[15::30] += 5000
    denoised = clean.copy()
    denoised[15::30] = raw[15::30]
    findings = examine(raw, denoised, {"gain": 0.1, "read_variance": 15.0})
    assert findings.numbers["variance_ratio"] == pytest.approx(1, abs=0.05)
    assert findings.level == "good"
    assert {(round(spot["y"], -1), round(spot["x"], -1)) for spot in findings.spots[:4]} == {
        (10, 10), (10, 30), (30, 10), (30, 30)
    }  # fmt: skip
    assert page_data(findings, {})["window"][1] < 200


def test_noise_left_in_shows_in_the_variance() -> None:
    clean = clean_movie()
    noise = white(clean.shape)
    found = examine(clean + noise, clean + noise / 2)
    assert found.numbers["variance_ratio"] == pytest.approx(0.25, abs=0.02)
    assert "noise was left in" in found.verdict


@pytest.mark.parametrize(("left_in", "level"), [(0.0, "good"), (0.6, "bad")])
def test_row_correlated_noise_is_told_apart_removed_or_left_in(left_in: float, level: str) -> None:
    clean = clean_movie()
    noise = gaussian_filter(white(clean.shape), (0, 0, 0.6))
    found = examine(
        clean + noise, clean + np.float32(left_in) * noise, {"gain": 0, "read_variance": noise.var()}
    )
    check = next(check for check in found.checks if "independent" in check.question)
    assert "row-correlated" in check.answer
    assert check.level == level
    assert found.numbers["correlated_noise_removed"] == pytest.approx((1 - left_in) ** 2, abs=0.02)


def test_photon_transfer_finds_the_noise_model() -> None:
    ramp = np.broadcast_to(np.linspace(50, 500, 64, dtype=np.float32), (200, 48, 64))
    raw = noisy(ramp, 4.0, 100.0, np.random.default_rng(3))
    found = examine(raw, ramp, {"gain": 4.0, "read_variance": 100.0})
    means, variances = (np.array(column) for column in zip(*found.transfer))
    gain, read = np.polyfit(means, variances, 1)
    assert gain == pytest.approx(4, rel=0.05)
    assert read == pytest.approx(100, abs=40)
    assert found.numbers["variance_ratio"] == pytest.approx(1, abs=0.03)


def test_spots_are_the_cells() -> None:
    clean = clean_movie()
    found = examine(clean + white(clean.shape), clean)
    places = {(round(spot["y"] / 10), round(spot["x"] / 10)) for spot in found.spots[:4]}
    assert places == {(1, 1), (1, 3), (3, 1), (3, 3)}
    assert found.spots[0]["denoised"].shape == (300,)


def test_patches_of_a_line_scan_are_as_high_as_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 x 12 pixels three patches may be kept: patches of 2 x 4. Each pixel is 100 y + x."""
    monkeypatch.setattr(diagnostics, "MAX_TRACE_VALUES", 3 * 40)
    traces = PatchTraces(2, 12, 40)
    frames = np.broadcast_to(np.add.outer([0, 100], np.arange(12)).astype(np.float32), (40, 2, 12))
    traces.add(frames, frames)
    assert traces.sides == (2, 4)
    np.testing.assert_array_equal(traces.raw, np.broadcast_to([51.5, 55.5, 59.5], (40, 1, 3)))


@pytest.mark.parametrize("size", [(1, 1200), (2, 2200), (2200, 2), (3, 12000), (512, 512), (1, 1)])
def test_traces_of_any_frame_are_bounded(size: tuple[int, int]) -> None:
    traces = PatchTraces(*size, 2000)
    assert 0 < traces.raw.size <= MAX_TRACE_VALUES
    assert traces.raw.shape == (2000, size[0] // traces.sides[0], size[1] // traces.sides[1])


def test_the_spots_of_a_line_scan_are_its_patches() -> None:
    """2,000 frames of 2 x 2200 pixels: patches of 2 x 3, of which one fires."""
    clean = np.full((2000, 2, 2200), 100.0, np.float32)
    clean[300:310, :, 1500:1503] += 200
    noise = np.broadcast_to(white((2000, 2, 1)), clean.shape)
    found = examine(clean + noise, clean, step=500)
    assert (found.spots[0]["y"], found.spots[0]["x"]) == (1, 1501)
    np.testing.assert_array_equal(found.spots[0]["denoised"][299:311], [100, *[300] * 10, 100])


def test_pixel_sums_agree_with_numpy_in_any_blocks() -> None:
    rng = np.random.default_rng(5)
    raw, denoised = (rng.normal(1000, 3, (50, 6, 7)).astype(np.float32) for _ in range(2))
    residual = (raw - denoised).astype(np.float64)
    for step in (1, 7, 50):
        sums = PixelSums(6, 7)
        for start in range(0, 50, step):
            sums.add(0, raw[start : start + step], denoised[start : start + step])
        maps = sums.maps()
        np.testing.assert_allclose(maps["denoised"], denoised.mean(0), rtol=1e-5)
        np.testing.assert_allclose(maps["residual_variance"], residual.var(0, ddof=1), rtol=1e-4)
        covariance = [np.cov(residual[:, y, 2], denoised[:, y, 2])[0, 1] for y in range(6)]
        np.testing.assert_allclose(maps["covariance"][:, 2], covariance, atol=1e-3)
        np.testing.assert_allclose(
            sums.lagged[2], (residual[3:] * residual[:-3]).sum(0), rtol=1e-4, atol=0.01
        )
        assert sums.steps["x"] == pytest.approx(np.square(np.diff(raw, axis=0)).sum(), rel=1e-4)


def test_white_noise_in_a_short_movie_has_no_correlation() -> None:
    """With the mean of the same 20 frames subtracted, it would seem to be -1 / 20."""
    sums, noise = PixelSums(100, 100), white((20, 100, 100))
    sums.add(0, noise, noise * 0)
    correlations = sums.autocorrelation(np.ones((100, 100), bool))
    assert len(correlations) == diagnostics.MAX_FRAME_LAG
    assert np.abs(correlations).max() < 0.01


def test_figures_do_not_depend_on_blocks() -> None:
    clean = clean_movie(100)
    raw = clean + white(clean.shape)
    whole = examine(raw, clean, step=100).numbers
    for step in (1, 33):
        for name, number in examine(raw, clean, step=step).numbers.items():
            assert number == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("frames", [100, 400])
def test_the_slope_is_as_far_from_one_as_its_error_says(frames: int) -> None:
    """Within cells the signal is that of 25 pixels or more, so the error is stated for 1 in 25 of them at least."""
    clean = clean_movie(frames)
    found = [examine(clean + white(clean.shape, seed), clean).numbers for seed in range(8)]
    deviations = [numbers["raw_on_denoised_slope"] - 1 for numbers in found]
    (error,) = {round(numbers["raw_on_denoised_slope_error"], 2) for numbers in found}
    assert np.sqrt(np.mean(np.square(deviations))) < error < 0.05


def test_windows_that_do_not_touch_share_no_pairs() -> None:
    sums, frames = PixelSums(2, 2), white((20, 2, 2))
    sums.add(0, frames[:10], frames[:10] * 0)
    sums.add(1, frames[10:], frames[10:] * 0)
    np.testing.assert_array_equal(sums.pairs[:9], 2 * (10 - np.arange(1, 10)))


def test_spectrum_equals_products_of_neighbours() -> None:
    image = np.random.default_rng(1).normal(size=(9, 12))
    spectrum = Spectrum(9, 12)
    spectrum.add(image)
    found = spectrum.autocovariance()
    assert found[MAX_PIXEL_LAG, MAX_PIXEL_LAG] == pytest.approx((image**2).mean())
    assert found[MAX_PIXEL_LAG, MAX_PIXEL_LAG + 1] == pytest.approx((image[:, 1:] * image[:, :-1]).mean())
    assert found[MAX_PIXEL_LAG + 2, MAX_PIXEL_LAG - 1] == pytest.approx(
        (image[2:, :-1] * image[:-2, 1:]).mean()
    )


def test_missing_voxels_leave_no_residual() -> None:
    raw, denoised = white((3, 8, 30)) + 100, np.full((3, 8, 30), 100, np.float32)
    raw[0, 0, 0], raw[1, 2] = np.nan, 0
    fill_missing(raw, denoised, np.ones(8, bool))
    assert raw[0, 0, 0] == 100
    assert (raw[1, 2] == 100).all()
    assert raw[2].std() > 1


@pytest.mark.parametrize("step", [1, 40])
def test_lost_rows_leave_no_residual_where_frames_are_looked_at_one_by_one(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large ones are. The last row is a border: it is 0 in all frames, and stays."""
    monkeypatch.setattr(diagnostics, "BLOCK_VOXELS", 1)
    clean = np.full((40, 16, 64), 100, np.float32)
    raw = clean + white(clean.shape)
    raw[0, 3] = raw[11, 5] = raw[12, 5] = raw[20, 6, :32] = raw[21, 7] = 0
    raw[21, 7, 3], raw[:, 15] = np.nan, 0
    collected = Diagnostics(Recording(raw))
    for start in range(0, 40, step):
        collected.add(clean[start : start + step])
    lost = np.zeros((40, 16), bool)
    lost[0, 3] = lost[11, 5] = lost[12, 5] = lost[21, 7] = True
    recorded = np.array([image for _, image, _ in collected.findings(NOISE, 100.0).shown])
    np.testing.assert_array_equal(recorded, np.where(lost[:, :, None], clean, raw))


@settings(max_examples=12)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 11))
def test_any_size_gives_finite_figures(frames: int, height: int, width: int, step: int) -> None:
    raw = white((frames, height, width), frames)
    found = examine(raw, raw * 0, step=step)
    numbers: list[Any] = [value for value in found.numbers.values() if isinstance(value, float)]
    assert np.isfinite(numbers).all()
    assert len(found.shown) == frames
    assert len(found.levels) == frames


def test_a_constant_movie_has_no_residual() -> None:
    raw = np.full((20, 6, 6), 7, np.uint16)
    found = examine(raw, raw.astype(np.float32), {"gain": 0.0, "read_variance": 0.0})
    assert found.numbers["variance_ratio"] is None
    assert found.numbers["correlation_along_x"] == 0
    assert found.verdict == "Look closer: nothing was removed from the most active pixels."


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 6))
def test_runs_cover_exactly_the_wanted_frames(wanted: list[bool], longest: int) -> None:
    found = list(runs(np.array(wanted, bool), longest))
    assert [i for start, stop in found for i in range(start, stop)] == list(np.flatnonzero(wanted))
    assert all(0 < stop - start <= longest for start, stop in found)


@pytest.mark.parametrize("pixels", [64 * 64, 512 * 512, 4096 * 4096])
def test_work_is_bounded_however_long_the_movie(pixels: int) -> None:
    sample = sample_frames(100_000, pixels)
    assert sample.shown.sum() == 60
    assert sample.wanted.sum() * pixels < max(1 << 29, 700 * pixels)
    assert sample.wanted[0]
    assert sample.wanted[-1]


def test_memory_stays_flat() -> None:
    class Endless(Recording):
        def __init__(self) -> None:
            self.info = SimpleNamespace(shape=(3_000, 128, 128), dtype=np.dtype(np.uint16))

        def read(self, start: int, stop: int) -> np.ndarray:
            return np.full((stop - start, 128, 128), 100, np.uint16)

    collected = Diagnostics(Endless())
    block = np.full((500, 128, 128), 100, np.float32)
    tracemalloc.start()
    for _ in range(0, 3_000, 500):
        collected.add(block)
    collected.findings(NOISE, 100.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 << 20
