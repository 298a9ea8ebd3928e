"""What cells of the field have in common is told from chance."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.agreement import (
    LEAST,
    agreeing,
    agreement,
    alike,
    fit_weights,
    fitted,
    in_cells,
    middles_of,
    solvers,
    steadied,
    weighted_median,
)
from denoise.motion import polynomials


def test_cells_are_cut_out_in_their_places() -> None:
    images = torch.arange(2 * 6 * 9.0).reshape(2, 6, 9)
    cells = in_cells(images)  # of 2 x 3 pixels; the last row and columns of them are beyond
    assert cells.shape == (16, 2, 6)
    torch.testing.assert_close(cells[0, 1], images[1, :2, :3].flatten())
    torch.testing.assert_close(cells[6, 0], images[0, 2:4, 6:9].flatten())
    assert not cells[3::4].any()
    assert not cells[12:].any()


def test_a_cell_that_is_alone_counts_for_little() -> None:
    """Fifteen cells tell one course, with noise of 0.1; the last one tells another, as one full of activity does."""
    rng = torch.Generator().manual_seed(0)
    course = torch.randn(400, 1, 2, generator=rng)
    told = course + 0.1 * torch.randn(400, 16, 2, generator=rng)
    told[:, 15] += 3 * torch.randn(400, 2, generator=rng)
    weights, others = agreement(told)
    assert float(weights[15].max()) < 0.01
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    assert float((others[:, 15] - (course - course.mean(0))[:, 0]).abs().mean()) < 0.03
    assert alike(told, LEAST)


def test_chance_is_filtered_out() -> None:
    """A slow course under white noise: what is left of the noise is a small part."""
    rng = torch.Generator().manual_seed(0)
    course = torch.linspace(0, 6, 500).sin()[:, None].expand(-1, 2)
    halves = course[:, None] + 0.7 * torch.randn(500, 2, 2, generator=rng)
    error = (steadied(halves.mean(1), halves) - course).square().mean().sqrt()
    assert float(error) < 0.25 * float((halves.mean(1) - course).square().mean().sqrt())


def test_what_two_halves_do_not_tell_alike_is_no_movement() -> None:
    """Noise of a pixel in either, of which nothing is in both."""
    halves = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not agreeing(halves).any()
    assert float(steadied(halves.mean(1), halves).std()) < 0.25
    assert agreeing(halves + 2 * torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(1))).all()


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=9))
def test_the_weighted_median_is_that_of_repeated_values(pairs: list[tuple[int, int]]) -> None:
    values, weights = (torch.tensor(its, dtype=torch.float64) for its in zip(*pairs))
    every = sorted(value for value, count in pairs for _ in range(count))
    assert float(weighted_median(values, weights)) == every[(len(every) - 1) // 2]


def test_fits_tell_amounts_and_which_cells_err() -> None:
    """One of sixteen cells tells anything."""
    rng = torch.Generator().manual_seed(0)
    y, x = (
        its.flatten()
        for its in torch.meshgrid(torch.arange(-24, 32, 16), torch.arange(-30, 40, 20), indexing="ij")
    )
    shapes = polynomials(y, x, (32, 40))
    amounts = torch.randn(300, 6, 2, generator=rng)
    told = torch.einsum("tka,kc->tca", amounts, shapes)
    torch.testing.assert_close(fitted(told, solvers(shapes, torch.ones(16, 2))), amounts, atol=1e-4, rtol=0)
    told += 0.1 * torch.randn(told.shape, generator=rng)
    told[:, 5] = 3 * torch.randn(300, 2, generator=rng)
    weights = fit_weights(told, shapes)
    assert float(weights[5].max()) < 0.05 * float(weights[[4, 6]].min())
    torch.testing.assert_close(fitted(told, solvers(shapes, weights)), amounts, atol=1.0, rtol=0)


def test_the_middle_of_a_cell_is_where_its_structure_is() -> None:
    """By hand: the outer two of three pixels, one of them three times as strong; and nothing at all."""
    strength = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    y, x = middles_of(strength, torch.tensor([-4.0, 9.0, 4.0]), torch.tensor([0.0, 9.0, 8.0]))
    assert y.tolist() == [2, 0]
    assert x.tolist() == [6, 0]
