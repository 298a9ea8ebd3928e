"""Percentile normalization: exact percentiles in one pass, and an exact way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from denoise import normalization
from denoise.normalization import PercentileNormalization, Percentiles

DTYPES = ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]


def streamed(movie: np.ndarray, low: float = 3, high: float = 97, block: int = 2) -> PercentileNormalization:
    percentiles = Percentiles(movie.dtype, movie.size)
    for start in range(0, len(movie), block):
        percentiles.update(movie[start : start + block])
    return percentiles.result((low, high))


@st.composite
def movies(draw: st.DrawFn) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))
    if dtype.kind == "f":
        return draw(hnp.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=32)))
    return draw(hnp.arrays(dtype, shape))


@given(movies(), st.sampled_from([(0, 100), (3, 97), (25, 60)]))
def test_percentiles_are_those_of_numpy(movie: np.ndarray, pair: tuple[float, float]) -> None:
    normalized = streamed(movie, *pair)
    low, high = np.percentile(movie.astype(np.float64), pair)
    assert normalized.low == pytest.approx(low, rel=1e-12, abs=1e-6)
    if high > low:
        assert normalized.low + normalized.scale == pytest.approx(high, rel=1e-9, abs=1e-6)


@given(movies())
def test_denormalize_undoes_normalize(movie: np.ndarray) -> None:
    normalization_ = streamed(movie)
    back = normalization_.denormalize(normalization_.normalize(movie))
    spread = max(normalization_.scale, float(np.ptp(movie.astype(np.float64))))
    np.testing.assert_allclose(back, movie.astype(np.float64), rtol=3e-7, atol=3e-7 * spread)


def test_offset_of_large_integers_is_exact() -> None:
    movie = np.array([[[2**30 + 1, 2**30 + 3]]], np.int32)  # float32 alone would merge them
    assert PercentileNormalization(2.0**30, 2.0**30 + 1, 1.0).normalize(movie).tolist() == [[[1.0, 3.0]]]


def test_what_a_type_cannot_hold_is_not_finite_and_no_warning() -> None:
    """Warnings are errors here; whoever writes frames refuses those, in one line."""
    large = PercentileNormalization(1e302, 1.1e302, 1e301)
    assert large.denormalize(np.ones((1, 1, 1), np.float32)).tolist() == [[[np.inf]]]
    wide = normalization.normalization_of(-1.7e308, 1.7e308, -1.7e308, 1.7e308)  # its range is no float64
    back = wide.denormalize(wide.normalize(np.array([[[-1.7e308, 1.7e308]]])))
    assert not np.isfinite(back).any()


def test_coinciding_percentiles_fall_back_to_the_extremes_and_to_one() -> None:
    sparse = np.zeros((1, 10, 10), np.float32)
    sparse[0, 0, 0] = 8
    assert streamed(sparse) == PercentileNormalization(0.0, 0.0, 8.0)
    assert streamed(sparse).scale == 8
    assert streamed(np.full((2, 3, 3), 7, np.uint16)) == PercentileNormalization(7.0, 7.0, 0.0)
    assert streamed(np.full((2, 3, 3), 7, np.uint16)).scale == 1


def test_not_finite_voxels_do_not_count() -> None:
    movie = np.array([[[np.nan, 1, 2, 3, np.inf, -np.inf]]], np.float32)
    assert streamed(movie, 0, 100) == PercentileNormalization(1.0, 3.0, 2.0)
    assert streamed(np.full((1, 2, 2), np.nan, np.float32)) == PercentileNormalization(0.0, 0.0, 0.0)


def test_long_float_movies_are_sampled_within_the_stated_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "MAX_SAMPLES", 20_000)
    movie = np.random.default_rng(0).gamma(2, 10, (40, 60, 60)).astype(np.float32)
    percentiles = Percentiles(movie.dtype, movie.size)
    percentiles.update(movie[:13])
    percentiles.update(movie[13:])
    kept = sum(part.size for part in percentiles.samples)
    assert 20_000 <= kept < 40_000
    rank = (movie < percentiles.result((3, 97)).low).mean() * 100
    assert abs(rank - 3) < 0.5  # three standard deviations at 20,000 samples


@pytest.mark.parametrize("side", [63, 255, 333, 210, 96, 128])
def test_long_float_movies_are_sampled_in_every_column(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column's number is the value. Blocks of one frame and of three: the lattice goes on from one to the next."""
    for step in (2, 9, 17, 111):
        monkeypatch.setattr(normalization, "MAX_SAMPLES", 4 * side * side // step)
        movie = np.broadcast_to(np.arange(side, dtype=np.float32), (4, side, side))
        one, other = (Percentiles(movie.dtype, movie.size) for _ in range(2))
        one.update(movie)
        other.update(movie[:1])
        other.update(movie[1:])
        sampled = np.concatenate(one.samples)
        assert set(sampled) == set(range(side))
        assert np.array_equal(sampled, np.concatenate(other.samples))
        assert normalization.MAX_SAMPLES / 10 < len(sampled) < 2 * normalization.MAX_SAMPLES


def test_a_few_columns_do_not_stand_for_a_long_movie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 111th of 333 columns is bright, which a step of 111 voxels would hit always: less than 1% of the voxels."""
    monkeypatch.setattr(normalization, "MAX_SAMPLES", 4 * 333 * 3)
    movie = np.zeros((4, 333, 333), np.float32)
    movie[:, :, ::111] = 8
    assert streamed(movie) == PercentileNormalization(0.0, 0.0, 8.0)
