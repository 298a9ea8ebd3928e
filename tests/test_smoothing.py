"""Smoothing that frames have been through is found by their noise, undone exactly, and done again."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter

from denoise.motion import Motion
from denoise.smoothing import (
    LOUDER,
    MAX_CORRELATION,
    UNCORRELATED,
    SmoothingEstimator,
    correlated,
    estimate_frame_correlation,
    mean_around,
    neighbour_correlations,
    neighbour_weights,
    redo,
    remaining_variance,
    undo,
)
from evaluation.smoothed import displaced, mean_of_frames, repeated


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1))
def test_a_missing_voxel_is_the_mean_of_those_around(
    seed: int, height: int, width: int, share: float
) -> None:
    frames = noise(3, height, width, seed=seed)
    frames[torch.rand(frames.shape, generator=torch.Generator().manual_seed(seed)) < share] = torch.nan
    places = frames.isnan().nonzero()
    expected = []
    for t, y, x in places.tolist():
        around = frames[t, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        mean = around.nanmean() if bool(around.isfinite().any()) else frames[t].nanmean()
        expected.append(float(mean.nan_to_num()))
    torch.testing.assert_close(mean_around(frames, places), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_smoothing_is_the_filter_with_mirrored_borders() -> None:
    frames = noise(2, 7, 5)
    weights = torch.tensor([[0.15, 0.0], [0.1, 0.2]])
    for frame, smooth, (y, x) in zip(frames, redo(frames, weights), weights.tolist()):
        expected = convolve1d(frame.numpy(), [y, 1 - 2 * y, y], axis=0, mode="reflect")
        expected = convolve1d(expected, [x, 1 - 2 * x, x], axis=1, mode="reflect")
        np.testing.assert_allclose(smooth.numpy(), expected, atol=1e-6)


@given(
    st.tuples(*[st.integers(1, 40)] * 2),
    st.lists(st.tuples(*[st.floats(0, MAX_CORRELATION)] * 2), min_size=1, max_size=3),
)
def test_undone_and_done_again_frames_are_as_recorded(
    size: tuple[int, int], correlations: list[tuple[float, float]]
) -> None:
    frames = noise(len(correlations), *size)
    weights = neighbour_weights(torch.tensor(correlations))
    torch.testing.assert_close(redo(undo(frames, weights), weights), frames, atol=2e-5, rtol=0)
    torch.testing.assert_close(undo(redo(frames, weights), weights), frames, atol=2e-5, rtol=0)


@given(st.floats(0.01, MAX_CORRELATION))
def test_weights_give_the_correlation_they_are_made_for(correlation: float) -> None:
    w = float(neighbour_weights(torch.tensor(correlation)))
    variance = (1 - 2 * w) ** 2 + 2 * w**2
    assert 2 * w * (1 - 2 * w) / variance == pytest.approx(correlation, abs=1e-5)
    assert remaining_variance(torch.tensor([[w, 0.0], [0.0, w]])) == pytest.approx(variance, abs=1e-5)


def test_what_is_missing_stays_so_and_leaves_a_flat_movie_flat() -> None:
    frames = torch.full((3, 12, 9), 4.0)
    frames[0, 5], frames[1, 2, 3], frames[2] = torch.nan, torch.nan, torch.nan
    frames[1, 0, 0] = torch.nan
    sharp = undo(frames, torch.full((3, 2), 0.15))
    assert torch.equal(sharp.isnan(), frames.isnan())
    torch.testing.assert_close(sharp, frames, equal_nan=True)


def test_white_noise_was_not_smoothed_and_passes_untouched() -> None:
    frames = noise(64, 50, 70)
    weights = SmoothingEstimator(frames).weights(frames)
    assert not weights.any()
    assert undo(frames, weights) is frames
    assert redo(frames, weights) is frames


@pytest.mark.parametrize("along", [(0.15, 0.15), (0.0, 0.1), (0.17, 0.0)])
def test_a_filter_is_found_and_what_is_sharpened_by_it_has_white_noise(along: tuple[float, float]) -> None:
    white = noise(100, 64, 80)
    smooth = redo(white, torch.tensor(along).expand(100, 2))
    weights = SmoothingEstimator(smooth[:64]).weights(smooth)
    assert weights.mean(0).tolist() == pytest.approx(along, abs=0.012)
    assert (weights == weights[0]).all()  # frames that differ by chance alone are treated alike
    assert neighbour_correlations(undo(smooth, weights)) == pytest.approx((0, 0), abs=0.04)


def test_frames_that_registration_has_interpolated_are_told_apart() -> None:
    """By an amount of its own each, as large as its displacement from whole pixels."""
    smooth = torch.from_numpy(displaced(1, -1, noise(100, 96, 96).numpy()))
    by = np.abs(np.random.default_rng(1000000).uniform(-0.5, 0.5, (100, 2)))
    correlation = by * (1 - by) / ((1 - by) ** 2 + by**2)
    expected = neighbour_weights(torch.from_numpy(correlation).float())
    weights = SmoothingEstimator(smooth[:64]).weights(smooth)
    assert float((weights - expected).abs().mean()) < 0.02
    assert np.corrcoef(weights.flatten(), expected.flatten())[0, 1] > 0.95


def test_signal_that_neighbours_share_is_no_smoothing() -> None:
    """Cells in half of the field flicker from frame to frame, far above the noise."""
    flicker = gaussian_filter(noise(64, 96, 96).numpy(), (0, 2.5, 2.5))
    flicker[:, :, 48:] = 0
    movie = torch.from_numpy(10 * flicker / flicker.std()) + noise(64, 96, 96, seed=1)
    assert max(neighbour_correlations(movie)) < 0.05
    assert not SmoothingEstimator(movie).weights(movie).any()


# ---- along the frames


@pytest.mark.parametrize(
    ("smoothed", "variance", "slow"),
    [
        (lambda frames: repeated(2, frames), 2, 2),  # half of the neighbours are the same
        (lambda frames: repeated(10, frames), 10 / 9, 1.2),
        (lambda frames: mean_of_frames(3, frames), 3, 3),  # correlations 2/3 and 1/3
    ],
    ids=["twice", "one in ten", "mean of three"],
)
def test_what_frames_share_tells_how_much_louder_slow_noise_is(
    smoothed: Callable[[np.ndarray], np.ndarray], variance: float, slow: float
) -> None:
    still = 50 * np.cumsum(np.ones((80, 96)), 1)
    memory = estimate_frame_correlation(torch.from_numpy(smoothed(noise(70, 80, 96).numpy()) + still).float())
    assert memory.variance == pytest.approx(variance, rel=0.05)
    assert memory.slow == pytest.approx(LOUDER * slow, rel=0.05)


def test_repeated_frames_are_found_between_pixels() -> None:
    """Frames that are held still where they were repeated: as much is shared, of weaker noise."""
    frames = repeated(10, noise(70, 80, 96).numpy())
    by = repeated(10, np.random.default_rng(2).uniform(-0.5, 0.5, (70, 2)).astype(np.float32))
    held = Motion(torch.from_numpy(by)).with_full_margins().hold(torch.from_numpy(frames), 0)
    assert estimate_frame_correlation(held) == UNCORRELATED
    memory = estimate_frame_correlation(held, interpolated=True)
    assert memory.variance == pytest.approx(10 / 9, rel=0.05)
    assert memory.slow == pytest.approx(LOUDER * 1.2, rel=0.05)


@pytest.mark.parametrize("interpolated", [False, True])
def test_light_is_no_memory_of_noise(interpolated: bool) -> None:
    """White noise, cells that stay bright for some frames, a movie without any noise, too few frames, one pixel."""
    movie = noise(64, 64, 64)
    assert estimate_frame_correlation(movie) == UNCORRELATED
    light = torch.from_numpy(gaussian_filter(noise(64, 64, 64, seed=1).numpy(), (3, 2, 2)))
    light *= 10 / light.std()
    for strength in (0.1, 1, 100):
        assert estimate_frame_correlation(movie + strength * light, interpolated) == UNCORRELATED
    assert estimate_frame_correlation(light, interpolated) == UNCORRELATED
    assert estimate_frame_correlation(torch.full((64, 64, 64), 7.0)) == UNCORRELATED
    assert estimate_frame_correlation(torch.full((64, 64, 64), torch.nan)) == UNCORRELATED
    assert estimate_frame_correlation(movie[:3].repeat_interleave(2, 0)) == UNCORRELATED
    assert estimate_frame_correlation(movie[:, :1, :1]) == UNCORRELATED


@pytest.mark.parametrize("every", [2, 3, 5])
def test_frames_that_are_missing_at_intervals_are_no_memory_of_noise(every: int) -> None:
    movie = noise(64, 64, 64)
    movie[::every] = torch.nan
    movie[:, 20:40, 30] = torch.nan
    assert estimate_frame_correlation(movie) == UNCORRELATED


@pytest.mark.parametrize("axis", [1, 2])
def test_a_frame_is_correlated_alone_bit_by_bit_as_among_others(axis: int) -> None:
    frames, taps = torch.randn(5, 40, 43), torch.randn(5, 3)
    together = correlated(frames, taps, axis)
    windows = frames.unfold(axis, 3, 1)  # (n, H, W, 3)
    torch.testing.assert_close(together, torch.einsum("nyxk,nk->nyx", windows, taps))
    for n in range(5):
        assert torch.equal(correlated(frames[n : n + 1], taps[n : n + 1], axis), together[n : n + 1])
