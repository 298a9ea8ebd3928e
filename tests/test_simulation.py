"""The simulator: calibrated to the challenge's statistics, noise as its model says, reproducible, robust."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter1d

from simulation import (
    DIFFERENT_KINDS,
    FIRST_EVALUATION_SEED,
    LEVELS,
    Scene,
    challenge_scene,
    different_scene,
    digitize,
    drop_rows,
    noisy,
    random_footprints,
    random_frame_means,
    random_recording,
    random_scene,
)
from simulation.__main__ import main

SEEDS = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 4)
RAW_STSNR = {1: 7.27, 2: -0.79, 3: -6.64}  # dB, published for the challenge's validation movies


def stsnr(clean: np.ndarray, output: np.ndarray) -> float:
    error = np.square(output.astype(np.float64) - clean)
    power = np.square(clean.astype(np.float64))
    spatial = 10 * np.log10(power.sum((1, 2)) / error.sum((1, 2)))
    temporal = 10 * np.log10(power.sum(0) / error.sum(0))
    return float(spatial.mean() + temporal.mean()) / 2


@pytest.fixture(scope="module")
def clean_movies() -> list[np.ndarray]:
    return [challenge_scene(seed).clean() for seed in SEEDS]


def autocorrelation(movie: np.ndarray, lag: int) -> float:
    change = movie - movie.mean(0)
    return float(np.mean(change[lag:] * change[:-lag]) / np.mean(change**2))


def test_challenge_statistics(clean_movies: list[np.ndarray]) -> None:
    def average(statistic: Callable[[np.ndarray], float]) -> float:
        return float(np.mean([statistic(movie) for movie in clean_movies]))

    assert 185 < average(np.mean) < 225  # published: 204
    assert 285 < average(lambda m: np.subtract(*np.percentile(m, [97, 3]))) < 365  # 314
    assert 50_000 < average(lambda m: np.mean(m**2)) < 72_000  # 61,000
    assert average(np.min) < 1.5
    assert 3_000 < average(np.max) < 15_000
    assert (
        0.007 < average(lambda m: m.var(0).mean() / np.mean(m**2)) < 0.017
    )  # dynamics: about 1% of the power
    assert 0.985 < average(lambda m: autocorrelation(m, 1)) < 0.999  # 0.995
    assert 0.35 < average(lambda m: autocorrelation(m, 45)) < 0.6  # 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_raw_score_at_each_level(clean_movies: list[np.ndarray], level: int) -> None:
    rng = np.random.default_rng(level)
    scores = [stsnr(clean, noisy(clean, *LEVELS[level], rng)) for clean in clean_movies]
    assert np.mean(scores) == pytest.approx(RAW_STSNR[level], abs=0.5)


def test_moving_average_at_level_1(clean_movies: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    scores = [
        stsnr(clean, uniform_filter1d(noisy(clean, *LEVELS[1], rng), 63, axis=0)) for clean in clean_movies
    ]
    assert 22 < np.mean(scores) < 24  # published: 23.16


@pytest.mark.parametrize(("gain", "mean"), [(28.0, 200.0), (991.0, 200.0), (1.0, 5000.0), (991.0, 3.0)])
def test_noise_has_the_variance_and_skewness_of_its_model(gain: float, mean: float) -> None:
    clean = np.full((40, 64, 64), mean, np.float32)
    noise = (noisy(clean, gain, 2500.0, np.random.default_rng(1)) - clean).astype(np.float64)
    variance = gain * mean + 2500
    fourth = 3 * variance**2 + gain**3 * mean  # of scaled Poisson plus Gaussian
    assert abs(noise.mean()) < 5 * (variance / noise.size) ** 0.5
    assert abs(noise.var() - variance) < 5 * ((fourth - variance**2) / noise.size) ** 0.5
    skewness = gain**2 * mean / variance**1.5
    assert np.mean(noise**3) / variance**1.5 == pytest.approx(skewness, abs=0.05 + 0.1 * skewness)


def test_noise_is_independent_between_voxels_unless_asked() -> None:
    clean = np.full((40, 64, 64), 300, np.float32)
    for wanted in (0.0, 0.25, 0.5):
        noise = noisy(clean, 50.0, 900.0, np.random.default_rng(2), row_correlation=wanted) - clean
        variance = noise.var()
        assert variance == pytest.approx(50 * 300 + 900, rel=0.03)
        assert np.mean(noise[..., 1:] * noise[..., :-1]) / variance == pytest.approx(wanted, abs=0.02)
        assert np.mean(noise[:, 1:] * noise[:, :-1]) / variance == pytest.approx(0, abs=0.02)
        assert np.mean(noise[1:] * noise[:-1]) / variance == pytest.approx(0, abs=0.02)


def test_offset_is_added() -> None:
    clean = np.full((3, 5, 5), 80, np.float32)
    plain, lifted = (
        noisy(clean, 4.0, 9.0, np.random.default_rng(3), offset=offset) for offset in (0.0, 70.0)
    )
    np.testing.assert_allclose(lifted, plain + 70, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"gain": 0.0}, {"read_variance": -1.0}, {"row_correlation": 0.6}])
def test_impossible_noise_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need gain > 0"):
        noisy(
            np.ones((1, 2, 2), np.float32),
            rng=np.random.default_rng(0),
            **{"gain": 1, "read_variance": 1} | wrong,
        )


def test_dropped_rows_are_whole_and_zero() -> None:
    movie = np.full((50, 40, 7), 9, np.uint16)
    dropped = drop_rows(movie, 0.1, np.random.default_rng(4))
    lost = (dropped == 0).all(2)
    assert dropped.dtype == np.uint16
    assert (movie == 9).all()
    assert ((dropped == 9).all(2) | lost).all()
    assert 0.07 < lost.mean() < 0.13


def test_digitize_rounds_and_clips() -> None:
    movie = np.array([[[-40000, -2.6, 1.4, 40000]]], np.float32)
    assert digitize(movie, np.int16, clip_at_zero=False).tolist() == [[[-32768, -3, 1, 32767]]]
    assert digitize(movie, np.int16, clip_at_zero=True).tolist() == [[[0, 0, 1, 32767]]]
    assert digitize(movie, np.uint16, clip_at_zero=False).tolist() == [[[0, 0, 1, 40000]]]
    assert digitize(movie, np.float32, clip_at_zero=True)[0, 0, 1] == 0


def test_same_seed_same_movie() -> None:
    first, again, other = (challenge_scene(seed, 20, 48).clean() for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    recordings = [random_recording(np.random.default_rng([1, n]), 20, 48) for n in (0, 0, 1)]
    np.testing.assert_array_equal(recordings[0], recordings[1])
    assert not np.array_equal(recordings[0], recordings[2])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 9),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_size_gives_a_finite_recording(seed: int, frames: int, size: tuple[int, int]) -> None:
    clean = random_scene(np.random.default_rng(seed), frames, size).clean()
    assert clean.shape == (frames, *size)
    assert clean.dtype == np.float32
    assert np.isfinite(clean).all()
    assert clean.min() >= 0
    assert clean.max() > 0
    recording = random_recording(np.random.default_rng(seed), frames, size)
    assert recording.shape == (frames, *size)
    assert np.isfinite(recording).all()
    assert recording.dtype in (np.int16, np.uint16, np.float32)


def test_recordings_are_of_many_kinds() -> None:
    recordings = [random_recording(np.random.default_rng([2, n]), 30, 40) for n in range(60)]
    assert {movie.dtype.name for movie in recordings} == {"int16", "uint16", "float32"}
    noise = [np.diff(movie.astype(np.float64), axis=0) / 2**0.5 for movie in recordings]
    correlated = [np.mean(n[..., 1:] * n[..., :-1]) / n.var() > 0.08 for n in noise]
    assert 2 <= sum(correlated) <= 30
    assert 2 <= sum((movie == 0).all(2).any() for movie in recordings) <= 25  # dropped rows
    relative = [n.std() / movie.astype(np.float64).std() for n, movie in zip(noise, recordings, strict=True)]
    assert min(relative) < 0.4
    assert max(relative) > 0.9


def ramp_scene(motion: np.ndarray, row_shift: float = 0.0) -> Scene:
    """Brightness 3 y + 5 x + 100 on a canvas that is 4 pixels wider on each side than a 6 x 7 field."""
    yy, xx = np.indices((14, 15), dtype=np.float32)
    nothing = np.zeros((0, 14, 15), np.float32), np.zeros((0, len(motion)), np.float32)
    return Scene(3 * yy + 5 * xx + 100, *nothing, np.ones(len(motion), np.float32), motion, 4, 0, row_shift)


@pytest.mark.parametrize("frames", [1, 40])
def test_frame_means_have_the_noise_of_so_many_frames(frames: int) -> None:
    means = random_frame_means(np.random.default_rng(2), 60, frames, (40, 48))
    assert means.means.shape == (60, 40, 48)
    expected = (means.gain * means.means.mean() + means.read_variance) / frames
    assert means.means.var(0, ddof=1).mean() == pytest.approx(expected, rel=0.05)


def test_footprints_stand_out_of_noise_of_variance_one() -> None:
    footprints = random_footprints(np.random.default_rng(1), 60, 400, (64, 48))
    assert footprints.images.shape == (60, 64, 48)
    assert footprints.mean.shape == (64, 48)
    assert footprints.images.var(0, ddof=1).mean() == pytest.approx(1, rel=0.05)
    strength = 32 * np.sqrt(np.square(footprints.images.mean(0)).mean() - 1 / 60)
    assert 20 < strength < 1500
    assert (footprints.mean > -0.2).mean() > 0.95  # counted from the darkest pixels


def test_motion_moves_the_field() -> None:
    movie = ramp_scene(np.array([[0, 0], [1, 0], [0.5, -1.25]])).clean()
    yy, xx = np.indices((6, 7)) + 4
    for frame, (dy, dx) in zip(movie, [(0, 0), (1, 0), (0.5, -1.25)], strict=True):
        np.testing.assert_allclose(frame, 3 * (yy - dy) + 5 * (xx - dx) + 100, rtol=1e-5)


def test_row_shift_moves_odd_rows_only() -> None:
    still, shifted = (ramp_scene(np.zeros((1, 2)), shift).clean()[0] for shift in (0.0, 1.0))
    np.testing.assert_allclose(shifted[0::2], still[0::2])
    np.testing.assert_allclose(shifted[1::2], still[1::2] - 5, rtol=1e-6)


def test_clean_movie_is_the_product_of_its_factors() -> None:
    scene = Scene(
        base=np.full((2, 2), 10, np.float32),
        footprints=np.array([[[1, 0], [0, 2]]], np.float32),
        traces=np.array([[0, 3]], np.float32),
        brightness=np.array([1, 0.5], np.float32),
        motion=np.zeros((2, 2)),
        margin=0,
        cell_count=1,
    )
    assert scene.clean().tolist() == [[[10, 10], [10, 10]], [[6.5, 5], [5, 8]]]


def test_true_cells_explain_the_movie_where_they_are() -> None:
    scene = challenge_scene(3, 300, 96)
    clean = scene.clean()
    assert len(scene.cells) >= 3
    for image, trace in scene.cells:
        assert image.shape == (96, 96)
        assert trace.shape == (300,)
        assert image.min() >= 0
    image, trace = max(scene.cells, key=lambda cell: cell[0].max() * cell[1].std())
    spot = np.unravel_index(image.argmax(), image.shape)
    assert np.corrcoef(clean[:, spot[0], spot[1]], trace)[0, 1] > 0.9


@pytest.mark.parametrize("kind", DIFFERENT_KINDS)
def test_different_kinds_keep_the_noise_levels_meaning(kind: str) -> None:
    clean = different_scene(kind, FIRST_EVALUATION_SEED, 60, 64).clean()
    assert clean.shape == (60, 64, 64)
    assert clean.min() >= 0
    assert clean.mean() == pytest.approx(204, rel=0.1)
    assert clean.std(0).max() > 0.02 * clean.mean()  # something happens


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one-photon"):
        different_scene("three-photon", 0)


def test_command_line_writes_a_movie_and_its_truth(tmp_path: Path) -> None:
    out, truth = tmp_path / "movie.tif", tmp_path / "clean.tif"
    assert (
        main(["--out", str(out), "--clean", str(truth), "--frames", "12", "--size", "33", "--level", "3"])
        == 0
    )
    movie, clean = tifffile.imread(out), tifffile.imread(truth)
    assert movie.dtype == np.int16
    assert clean.dtype == np.float32
    assert movie.shape == clean.shape == (12, 33, 33)
    np.testing.assert_array_equal(clean, challenge_scene(0, 12, 33).clean())
