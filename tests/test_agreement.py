"""Common changes of the regions of a field are told from chance."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.agreement import (
    MIN_MOTION,
    alike,
    basis_solvers,
    centroids,
    fit,
    fit_weights,
    halves_agree,
    leave_one_out_means,
    split_into_regions,
    weighted_median,
    wiener_filter,
)
from denoise.motion import polynomials


def test_images_are_split_into_regions() -> None:
    images = torch.arange(2 * 6 * 9.0).reshape(2, 6, 9)
    regions = split_into_regions(images)  # of 2 x 3 pixels; the last row and column of regions are padding
    assert regions.shape == (16, 2, 6)
    torch.testing.assert_close(regions[0, 1], images[1, :2, :3].flatten())
    torch.testing.assert_close(regions[6, 0], images[0, 2:4, 6:9].flatten())
    assert not regions[3::4].any()
    assert not regions[12:].any()


def test_a_region_unlike_the_others_has_little_weight() -> None:
    """Fifteen regions share one course, with noise of 0.1; the last one has another, as one full of activity has."""
    rng = torch.Generator().manual_seed(0)
    course = torch.randn(400, 1, 2, generator=rng)
    values = course + 0.1 * torch.randn(400, 16, 2, generator=rng)
    values[:, 15] += 3 * torch.randn(400, 2, generator=rng)
    weights, others = leave_one_out_means(values)
    assert float(weights[15].max()) < 0.01
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    assert float((others[:, 15] - (course - course.mean(0))[:, 0]).abs().mean()) < 0.03
    assert alike(values, MIN_MOTION)


def test_the_wiener_filter_removes_noise() -> None:
    """A slow course in white noise: little of the noise is left."""
    rng = torch.Generator().manual_seed(0)
    course = torch.linspace(0, 6, 500).sin()[:, None].expand(-1, 2)
    halves = course[:, None] + 0.7 * torch.randn(500, 2, 2, generator=rng)
    error = (wiener_filter(halves.mean(1), halves) - course).square().mean().sqrt()
    assert float(error) < 0.25 * float((halves.mean(1) - course).square().mean().sqrt())


def test_independent_noise_of_two_halves_is_no_movement() -> None:
    """Noise of a pixel in each half; with a common movement they agree."""
    halves = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not halves_agree(halves).any()
    assert float(wiener_filter(halves.mean(1), halves).std()) < 0.25
    assert halves_agree(halves + 2 * torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(1))).all()


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=9))
def test_the_weighted_median_is_that_of_repeated_values(pairs: list[tuple[int, int]]) -> None:
    values, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    repeated = sorted(value for value, count in pairs for _ in range(count))
    assert float(weighted_median(values, weights)) == repeated[(len(repeated) - 1) // 2]


def test_fits_find_coefficients_and_regions_that_err() -> None:
    """One of sixteen regions has random displacements."""
    rng = torch.Generator().manual_seed(0)
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(-24, 32, 16), torch.arange(-30, 40, 20), indexing="ij")
    )
    basis = polynomials(y, x, (32, 40))
    coefficients = torch.randn(300, 6, 2, generator=rng)
    displacements = torch.einsum("tka,kc->tca", coefficients, basis)
    torch.testing.assert_close(
        fit(displacements, basis_solvers(basis, torch.ones(16, 2))), coefficients, atol=1e-4, rtol=0
    )
    displacements += 0.1 * torch.randn(displacements.shape, generator=rng)
    displacements[:, 5] = 3 * torch.randn(300, 2, generator=rng)
    weights = fit_weights(displacements, basis)
    assert float(weights[5].max()) < 0.05 * float(weights[[4, 6]].min())
    torch.testing.assert_close(
        fit(displacements, basis_solvers(basis, weights)), coefficients, atol=1.0, rtol=0
    )


def test_centroids_are_weighted_by_structure() -> None:
    """By hand: the outer two of three pixels, one of them three times as strong; and nothing at all."""
    strength = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    y, x = centroids(strength, torch.tensor([-4.0, 9.0, 4.0]), torch.tensor([0.0, 9.0, 8.0]))
    assert y.tolist() == [2, 0]
    assert x.tolist() == [6, 0]
