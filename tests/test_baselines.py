"""evaluation.baselines: outputs that are known in advance, and tuning that finds the best parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evaluation import baselines
from evaluation.metrics import score

METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw": baselines.raw,
    "temporal mean": baselines.temporal_mean,
    "moving average": lambda movie: baselines.moving_average(movie, 5),
    "gaussian": lambda movie: baselines.gaussian(movie, 3, 1, 0.5),
    "mean + gaussian": lambda movie: baselines.mean_plus_gaussian(movie, 3, 1, 0.5, 0.7),
    "local PCA": baselines.local_pca,
}


def rank_one(rng: np.random.Generator) -> np.ndarray:
    """A movie of one smooth image that brightens and dims, on a pedestal, (300, 24, 40)."""
    image = np.hypot(*np.mgrid[-12:12, -20:20]) < 9
    trace = 50 + 40 * np.sin(np.arange(300) / 20)
    return (100 + trace[:, None, None] * image).astype(np.float32) + rng.normal(0, 1e-3, 1).astype(np.float32)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("shape", [(7, 20, 35), (1, 5, 1), (2, 16, 17)])
def test_constant_movie_stays_constant(
    method: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int]
) -> None:
    output = method(np.full(shape, 204, np.int16))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, np.full(shape, 204), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_the_input_is_left_alone(method: Callable[[np.ndarray], np.ndarray]) -> None:
    movie = np.random.default_rng(0).normal(100, 9, (9, 18, 20)).astype(np.float32)
    before = movie.copy()
    output = method(movie)
    output += 1
    np.testing.assert_array_equal(movie, before)


def test_temporal_mean_by_hand() -> None:
    movie = np.array([[[1, 2]], [[3, 7]]], np.uint8)
    np.testing.assert_array_equal(baselines.temporal_mean(movie), [[[2, 4.5]], [[2, 4.5]]])


def test_moving_average_shrinks_at_the_ends() -> None:
    movie = np.array([0, 3, 6, 30], np.int16).reshape(4, 1, 1)
    np.testing.assert_allclose(baselines.moving_average(movie, 3).ravel(), [1.5, 3, 13, 18], rtol=1e-6)
    np.testing.assert_allclose(baselines.moving_average(movie, 63).ravel(), [9.75] * 4, rtol=1e-6)


def test_mean_plus_all_of_the_rest_is_the_movie() -> None:
    movie = np.random.default_rng(1).normal(100, 9, (6, 8, 8)).astype(np.float32)
    output = baselines.mean_plus_gaussian(movie, 0.1, 0.1, 1, 0.1)  # a kernel of 0.1 is an identity
    np.testing.assert_allclose(output, movie, rtol=1e-5)


def test_local_pca_finds_a_rank_one_movie_in_noise() -> None:
    rng = np.random.default_rng(2)
    clean = rank_one(rng)
    noisy = rng.normal(clean, 30).astype(np.float32)
    before = score(clean, noisy)["stsnr"]
    assert score(clean, baselines.local_pca(noisy, 0.1))["stsnr"] > before + 15
    assert score(clean, baselines.local_pca(noisy, 0.1, noise=(0.0, 900.0)))["stsnr"] > before + 15


def test_a_slow_movie_gains_by_the_band_and_a_fast_one_is_lost_with_it() -> None:
    rng = np.random.default_rng(7)
    slow = rank_one(rng)
    fast = slow[np.argsort(np.arange(len(slow)) % 7)]  # the same frames, shuffled
    for clean, helps in ((slow, True), (fast, False)):
        noisy = rng.normal(clean, 30).astype(np.float32)
        all_frequencies, low = (
            score(clean, baselines.local_pca(noisy, 0.1, band))["stsnr"] for band in (1.0, 0.12)
        )
        assert (low > all_frequencies) is helps


def test_blocks_of_local_pca_leave_no_seam() -> None:
    """Without noise to shrink, every block returns its pixels, and blending them changes nothing."""
    clean = rank_one(np.random.default_rng(3))
    np.testing.assert_allclose(baselines.local_pca(clean, 0.1, noise=(0.0, 1e-6)), clean, rtol=1e-4)


@pytest.mark.parametrize("shape", [(40, 256), (256, 40)])
def test_shrinkage_of_pure_noise_leaves_almost_nothing(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(4).normal(0, 1, shape)
    assert np.linalg.norm(baselines.shrink_singular_values(matrix)) < 0.1 * np.linalg.norm(matrix)


def test_shrinkage_by_hand() -> None:
    """One singular value 100 of a 4 x 25 matrix: beta 0.16, y^2 = 400, sqrt((400 - 1.16)^2 - 0.64) / 400."""
    matrix = np.zeros((4, 25))
    matrix[1, 3] = 100
    kept = baselines.shrink_singular_values(matrix)[1, 3]
    assert kept == pytest.approx(100 * np.sqrt((400 - 1.16) ** 2 - 0.64) / 400)


def test_estimated_noise_is_the_one_put_in() -> None:
    rng = np.random.default_rng(5)
    clean = np.tile(np.linspace(50, 900, 32 * 32, dtype=np.float32).reshape(32, 32), (200, 1, 1))
    noisy = rng.normal(30 * rng.poisson(clean / 30), 50)
    gain, read_variance = baselines.estimate_noise(noisy)
    assert gain == pytest.approx(30, rel=0.05)
    assert read_variance == pytest.approx(2500, rel=0.3)


def test_tuning_reaches_the_top_of_the_ladders() -> None:
    target = {"frames": 8, "pixels": 0.6, "weight": 0.9}

    def method(movie: np.ndarray, **parameters: float) -> np.ndarray:
        return np.array([np.log(parameters[name] / target[name]) for name in target])

    best = baselines.tune(
        method, np.zeros(1), lambda error: -float(np.sum(error**2)), {"frames": 1, "pixels": 3, "weight": 0.5}
    )
    assert best == target


def test_tuned_gaussian_beats_its_start() -> None:
    rng = np.random.default_rng(6)
    clean = rank_one(rng)
    noisy = rng.normal(clean, 50).astype(np.float32)
    start = {"frames": 0.3, "rows": 0.1, "columns": 0.1}
    best = baselines.tune(baselines.gaussian, noisy, lambda output: score(clean, output)["stsnr"], start)
    gain = score(clean, baselines.gaussian(noisy, **best))["stsnr"]
    assert gain > score(clean, baselines.gaussian(noisy, **start))["stsnr"] + 10
