"""evaluation.metrics: scores computed by hand, and invariances that the score has and has not."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import metrics
from evaluation.metrics import score


def db(ratio: float) -> float:
    return 10 * math.log10(ratio)


def test_by_hand() -> None:
    clean = np.array([[[1, 2]], [[3, 4]]], np.int16)  # (T, Y, X) = (2, 1, 2)
    output = np.array([[[1, 1]], [[1, 4.5]]], np.float32)  # errors 0 1 | 2 -0.5
    values = score(clean, output)
    ssnr = (db(5 / 1) + db(25 / 4.25)) / 2
    tsnr = (db(10 / 4) + db(20 / 1.25)) / 2
    assert values["ssnr"] == pytest.approx(ssnr)
    assert values["tsnr"] == pytest.approx(tsnr)
    assert values["stsnr"] == pytest.approx((ssnr + tsnr) / 2)
    assert values["ssnr_std"] == pytest.approx(abs(db(5 / 1) - db(25 / 4.25)) / 2)


def test_psnr_by_hand() -> None:
    clean = np.arange(101, dtype=np.float32).reshape(1, 1, 101)  # P3 = 3, P97 = 97, range 94
    values = score(clean, clean + 2)  # one frame with mean squared error 4, every pixel as well
    for name in ("spsnr", "tpsnr", "stpsnr"):
        assert values[name] == pytest.approx(db(94**2 / 4))
    assert values["tpsnr_std"] == pytest.approx(0, abs=1e-9)


def test_means_are_not_removed() -> None:
    """An offset that was not undone costs score: 10 off a movie of 100 is 20 dB, constant or not."""
    values = score(np.full((3, 4, 5), 100.0), np.full((3, 4, 5), 110.0))
    assert values["stsnr"] == pytest.approx(20)


def test_average_is_taken_in_decibel_over_frames_and_pixels() -> None:
    """One bad frame of four moves sSNR by a quarter of its dB; the pixels see its error diluted in time."""
    clean = np.full((4, 2, 2), 10.0)
    output = clean + np.array([1, 1, 1, 10.0])[:, None, None]
    values = score(clean, output)
    assert values["ssnr"] == pytest.approx((20 + 20 + 20 + 0) / 4)
    assert values["tsnr"] == pytest.approx(db(400 / 103))


def test_perfect_output_is_infinite() -> None:
    clean = np.arange(24.0).reshape(2, 3, 4)
    values = score(clean, clean)
    assert values["stsnr"] == values["stpsnr"] == math.inf


def test_frames_and_pixels_without_signal_are_left_out() -> None:
    clean = np.full((3, 2, 2), 10.0)
    clean[1] = 0
    clean[:, 0, 0] = 0
    values = score(clean, clean + 1)
    assert values["ssnr"] == pytest.approx(db(300 / 4))
    assert values["tsnr"] == pytest.approx(db(200 / 3))


def test_dark_movie_has_no_snr() -> None:
    values = score(np.zeros((2, 2, 2)), np.ones((2, 2, 2)))
    assert math.isnan(values["stsnr"])
    assert values["stpsnr"] == -math.inf  # its range is zero


def test_nan_in_the_output_is_not_hidden() -> None:
    clean = np.ones((2, 2, 2))
    output = clean + 0.5
    output[0, 0, 0] = np.nan
    assert math.isnan(score(clean, output)["stsnr"])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (0, 3, 4)])
def test_other_shapes_are_refused_with_both_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \("):
        score(np.ones((2, 3, 4)), np.ones(shape))


def test_integers_do_not_wrap() -> None:
    clean = np.full((1, 1, 2), 255, np.uint8)
    values = score(clean, np.full((1, 1, 2), 0, np.uint8))
    assert values["stsnr"] == pytest.approx(0)


def test_known_noise_power() -> None:
    """White noise of variance 4 on a movie of mean square 400 is 20 dB."""
    rng = np.random.default_rng(0)
    clean = np.full((300, 60, 60), 20.0, np.float32)
    values = score(clean, clean + rng.normal(0, 2, clean.shape).astype(np.float32))
    assert values["ssnr"] == pytest.approx(20, abs=0.05)
    assert values["tsnr"] == pytest.approx(20, abs=0.05)


movies = st.tuples(st.integers(2, 40), st.integers(1, 4), st.integers(2, 4), st.integers(0, 2**31))


@given(movies, st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_scale_of_both_does_not_matter_nor_does_order(size: tuple[int, int, int, int], gain: float) -> None:
    rng = np.random.default_rng(size[3])
    clean, error = rng.gamma(2, 50, size[:3]), rng.normal(0, 9, size[:3])
    frames, rows = rng.permutation(size[0]), rng.permutation(size[1])
    before = score(clean, clean + error)
    after = score(*(gain * movie[frames][:, rows] for movie in (clean, clean + error)))
    for name in before:
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-6)


@given(movies)
@settings(max_examples=30, deadline=None)
def test_halving_the_error_gains_six_decibel(size: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(size[3])
    clean, error = rng.gamma(2, 50, size[:3]), rng.normal(0, 9, size[:3])
    gain = score(clean, clean + error / 2)["stsnr"] - score(clean, clean + error)["stsnr"]
    assert gain == pytest.approx(db(4))


def test_no_float64_copy_of_the_movie() -> None:
    clean = np.ones((400, 64, 64), np.float32)
    output = clean + 1
    tracemalloc.start()
    score(clean, output)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * clean.nbytes  # the percentile sorts one copy in the movie's own dtype
    assert len(clean) > 10 * metrics.FRAMES_AT_ONCE
