"""Whole-movie context: the noise model, static images, missing voxels, and what a hidden voxel may tell."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.blindspot import context_of
from denoise.context import (
    ContextSums,
    inpaint,
    neighbour_covariance,
    noise_map,
    photon_transfer,
    still_lines,
)
from simulation import different_scene, noisy


def poisson_movie(gain: float, read: float, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    clean = np.linspace(20, 400, shape[2])[None, None, :] * np.ones(shape)
    noisy = gain * rng.poisson(clean / gain) + rng.normal(0, read**0.5, shape)
    return torch.from_numpy(noisy.astype(np.float32))


@pytest.mark.parametrize(("gain", "read"), [(28.0, 2500.0), (249.0, 2700.0), (5.0, 10.0)])
def test_photon_transfer_finds_gain_and_read_variance(gain: float, read: float) -> None:
    context = context_of(poisson_movie(gain, read, (200, 40, 64)))
    assert float(context.gain) == pytest.approx(gain, rel=0.03)
    assert float(context.read_variance) == pytest.approx(read, abs=0.03 * (read + 20 * gain))


def smooth_image(height: int, width: int, scale: float) -> torch.Tensor:
    """An image (Y, X) of waves of some twenty pixels, of so large a deviation, around ten times as much."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return scale * (10 + 2 * torch.sin(y / 3) * torch.cos(x / 3))


def test_the_gain_is_found_where_the_mean_is_as_noisy_as_its_structure() -> None:
    """In noise that is not skewed, as interpolation leaves it, a noisy mean does not go with a noisy variance."""
    brightness = smooth_image(64, 64, 1.0)
    variance = 20 * brightness + 50
    noise = torch.randn(200, 64, 64, generator=torch.Generator().manual_seed(0))
    context = context_of(brightness + variance.sqrt() * noise)
    assert float(context.mean.var() / brightness.var()) > 2
    assert float(context.gain) == pytest.approx(20, rel=0.15)


def test_active_pixels_do_not_pass_for_noise() -> None:
    """In one pixel of ten light changes from frame to frame by ten times as much as the noise."""
    brightness = smooth_image(64, 64, 50.0)
    random = torch.Generator().manual_seed(0)
    movie = brightness + (2 * brightness + 100).sqrt() * torch.randn(300, 64, 64, generator=random)
    movie[:, 20:40, 20:40] += 10 * brightness[20:40, 20:40].sqrt() * torch.randn(300, 1, 1, generator=random)
    context = context_of(movie)
    assert float(context.gain) == pytest.approx(2, rel=0.1)
    assert float(context.read_variance) == pytest.approx(100, rel=0.5)


def test_noise_map_follows_the_model_on_a_ramp() -> None:
    mean = torch.arange(64.0).expand(32, 64) * 10
    noise = noise_map(mean, torch.tensor(2.0), torch.tensor(100.0))
    inner = (2 * mean + 100).sqrt()[4:-4, 4:-4]
    torch.testing.assert_close(noise[4:-4, 4:-4], inner, rtol=1e-4, atol=1e-3)


def test_one_frame_is_measured_in_space() -> None:
    frame = torch.randn(1, 200, 200, generator=torch.Generator().manual_seed(0)) * 3 + 50
    context = context_of(frame)
    assert float(context.noise.mean()) == pytest.approx(3, rel=0.05)
    assert float(context.gain) == 0


def test_constant_movie_has_no_noise_and_empty_images() -> None:
    context = context_of(torch.full((5, 9, 9), 7.0))
    assert (context.mean == 7).all()
    assert (context.noise == 0).all()
    assert (context.images[:4] == 0).all()
    assert (context.restore(context.whiten(torch.full((5, 9, 9), 7.0))) == 7).all()


@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.integers(1, 4), min_size=1, max_size=9),
)
def test_blocks_of_any_length_give_the_same_context(t: int, y: int, x: int, cuts: list[int]) -> None:
    movie = torch.randn(t, y, x, generator=torch.Generator().manual_seed(t)) * 5 + 100
    whole, parts = ContextSums(movie.mean(0)), ContextSums(movie.mean(0))
    whole.update(movie)
    start = 0
    for length in [*cuts, t]:
        if start < t:
            parts.update(movie[start : start + length])
        start += length
    torch.testing.assert_close(parts.context().images, whole.context().images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts.context().mean, movie.mean(0), rtol=1e-5, atol=1e-4)


@given(st.floats(0.01, 1000), st.floats(-1e4, 1e4))
def test_images_do_not_change_with_gain_and_offset(scale: float, shift: float) -> None:
    movie = poisson_movie(5, 10, (30, 12, 14))
    one, two = context_of(movie), context_of((movie.double() * scale + shift * scale).float())
    torch.testing.assert_close(two.images, one.images, rtol=0.02, atol=0.05)
    moved = one.rescaled(scale, shift * scale)
    torch.testing.assert_close(moved.mean, two.mean, rtol=1e-4, atol=1e-2 * scale)
    torch.testing.assert_close(moved.noise, two.noise, rtol=0.02, atol=0.0)


def test_activity_and_covariance_of_a_known_signal() -> None:
    # one slow wave of variance 1/2 shared by all pixels, in white noise of variance 1/4, 4,096 frames
    wave = torch.sin(torch.arange(4096.0) * 2 * torch.pi / 64)[:, None, None]
    movie = wave + 0.5 * torch.randn(4096, 6, 6, generator=torch.Generator().manual_seed(0))
    sums = ContextSums(movie.mean(0))
    sums.update(movie)
    shift = sums.sum / sums.count
    along_x = neighbour_covariance(sums.along_x / sums.count, shift, -1)
    activity = sums.square / sums.count - shift.square() - sums.difference / (2 * sums.steps)
    torch.testing.assert_close(along_x.float(), torch.full((6, 6), 0.5), rtol=0, atol=0.04)
    torch.testing.assert_close(activity.float(), torch.full((6, 6), 0.5), rtol=0, atol=0.04)


def test_what_lines_share_never_seems_to_be_all_of_the_noise() -> None:
    """Both are estimates: without noise of its own, a pixel would be taken for one that never changes."""
    movie = poisson_movie(5.0, 10.0, (100, 24, 32))
    sums = ContextSums(movie.mean(0))
    sums.update(movie)
    alone, shared = sums.context(), sums.context(shared=(1e5, 0.0))
    expected = (alone.gain * alone.mean.mean() + alone.read_variance) / 100
    assert float(shared.gain * shared.mean.mean() + shared.read_variance) == pytest.approx(
        float(expected), rel=1e-3
    )
    assert bool((shared.noise > 0).all())


def test_missing_voxels_are_left_out() -> None:
    movie = torch.full((4, 2, 3), 10.0)
    movie[1, 0, 0] = torch.nan
    movie[2, 1, 2] = torch.inf
    context = context_of(torch.where(torch.isfinite(movie), movie, torch.nan))
    assert (context.mean == 10).all()
    assert context.standard_error[0, 0, 0] == pytest.approx(3**-0.5)
    assert context.standard_error[0, 0, 1] == pytest.approx(0.5)


def test_hot_pixels_are_found_by_their_noise_and_tell_nothing_of_that_of_others() -> None:
    movie = poisson_movie(5.0, 10.0, (300, 40, 64))
    plain = context_of(movie)
    assert not plain.hot.any()
    places = [(3, 4), (20, 20), (39, 63)]
    for number, (y, x) in enumerate(places):
        movie[:, y, x] += (
            100 * 4**number * (2 + torch.randn(300, generator=torch.Generator().manual_seed(number)))
        )
    context = context_of(movie)
    assert [tuple(place) for place in context.hot.nonzero().tolist()] == places
    assert float(context.gain) == pytest.approx(float(plain.gain), rel=0.05)
    torch.testing.assert_close(context.noise, plain.noise, rtol=0.1, atol=0)
    residual = context.whiten(movie)
    assert all(not residual[:, y, x].any() for y, x in places)
    assert all(float(context.mean[y, x]) == pytest.approx(float(movie[:, y, x].mean())) for y, x in places)


@pytest.mark.parametrize("kind", ["axons", "fast-60hz"])
@pytest.mark.parametrize("noise", [10.0, 1.0, 1e-3])
def test_single_pixels_that_are_active_are_not_hot(kind: str, noise: float) -> None:
    clean = different_scene(kind, 5_000_010, 300, 64).clean()
    movie = noisy(clean, 28 * noise, 2500 * noise, np.random.default_rng(0))
    assert not context_of(torch.from_numpy(movie)).hot.any()
    photons = np.random.default_rng(0).poisson(clean / clean.mean() * 0.05)
    assert not context_of(torch.from_numpy(photons.astype(np.float32))).hot.any()


def test_pixels_that_never_change_say_nothing_of_the_noise() -> None:
    movie = poisson_movie(5.0, 10.0, (200, 40, 64))
    plain = context_of(movie)
    bordered = movie.clone()
    bordered[:, :4] = 0
    bordered[:, :, -3:] = torch.nan
    both = context_of(torch.stack([movie, bordered]))
    torch.testing.assert_close(both.gain[0], plain.gain)
    torch.testing.assert_close(both.gain[1], plain.gain, rtol=0.02, atol=0)
    torch.testing.assert_close(both.read_variance[1], plain.read_variance, rtol=0, atol=3)


def test_a_border_comes_out_as_it_is_and_looks_like_its_surroundings() -> None:
    movie = poisson_movie(5.0, 10.0, (200, 40, 64))
    plain = context_of(movie)
    movie[:, :4] = 0
    context = context_of(movie)
    assert (context.noise[:4] == 0).all()
    assert (context.noise[4:] > 0).all()
    assert (context.restore(context.whiten(movie) + 3)[:, :4] == 0).all()
    torch.testing.assert_close(
        context.images[..., :4, :], plain.images[..., :4, :], rtol=0.1, atol=12
    )  # of 8 a pixel
    torch.testing.assert_close(context.images[..., 8:, :], plain.images[..., 8:, :], rtol=0.02, atol=1)


def test_what_was_not_recorded_comes_in_lines() -> None:
    still = torch.zeros(40, 40, dtype=torch.bool)
    still[5, 7] = still[20:30, 20] = True  # no photon yet
    assert not still_lines(still).any()
    expected = torch.zeros_like(still)
    expected[0] = expected[25] = True  # a border and a lost row
    y, x = np.mgrid[:40, :40]
    corner = torch.from_numpy(y + x > 60)  # of a mask, the shorter lines of it too
    expected |= corner
    found = still_lines(torch.stack([still | expected, still]))
    expected[20:30, 20] = True  # touches the lost row
    assert torch.equal(found, torch.stack([expected, torch.zeros_like(still)]))


def test_stuck_pixels_were_not_recorded_and_dark_ones_were() -> None:
    """Of 0.02 photons a frame some pixels catch none in 200 frames; of 5 none does."""
    bright = poisson_movie(5.0, 10.0, (200, 40, 64))
    bright[:, 7, 9] = bright.max() * 50
    context = context_of(bright)
    assert (context.noise == 0).nonzero().tolist() == [[7, 9]]
    usual = context.noise[6:9, 20:30]
    assert float(context.noise[6:9, 7:12].max()) < 1.2 * float(usual.max())  # nothing beside it is spoiled
    dark = 100 * torch.from_numpy(np.random.default_rng(0).poisson(0.02, (200, 40, 64)).astype(np.float32))
    silent = (dark == 0).all(0)
    assert 10 < int(silent.sum()) < 200
    assert (context_of(dark).noise > 0).all()


def test_pixels_without_a_value_are_as_those_around() -> None:
    nan = torch.nan
    image = torch.tensor([[nan, nan, 2.0, 4.0], [nan, nan, 2.0, 4.0]])
    expected = torch.tensor([[2.0, 2.0, 2.0, 4.0], [2.0, 2.0, 2.0, 4.0]])
    torch.testing.assert_close(inpaint(image), expected)
    hole = torch.tensor([[1.0, 2.0, 3.0], [4.0, nan, 6.0], [7.0, 8.0, 9.0]])
    assert float(inpaint(hole)[1, 1]) == pytest.approx(5)
    assert (inpaint(torch.full((2, 3, 3), nan)) == 0).all()
    complete = torch.rand(2, 5, 6)
    assert torch.equal(inpaint(complete), complete)


def test_photon_transfer_never_has_a_negative_gain() -> None:
    mean = torch.arange(100.0).reshape(10, 10)
    gain, read = photon_transfer(mean, 200 - mean)
    assert float(gain) == 0
    assert float(read) > 100
