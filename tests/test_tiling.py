"""Tiles cover every voxel, start on the pooling grid, and their weights add up to one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoise.tiling import Span, blend_weights, tile_axis, tile_grid

GEOMETRY = st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 4), st.integers(1, 6)).map(
    lambda g: (g[0], g[0] * g[1], g[0] * (2 * g[1] + g[2] - 1) or g[0])
)  # (grid, overlap, tile)


@given(st.integers(1, 300), GEOMETRY)
def test_weights_add_up_to_one_everywhere(size: int, geometry: tuple[int, int, int]) -> None:
    grid, overlap, tile = geometry
    total = np.zeros(size)
    for span in tile_axis(size, tile, overlap, grid):
        total[span.slice] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(st.integers(1, 300), GEOMETRY)
def test_tiles_lie_on_the_grid_and_none_is_needless(size: int, geometry: tuple[int, int, int]) -> None:
    grid, overlap, tile = geometry
    spans = tile_axis(size, tile, overlap, grid)
    assert all(span.start % grid == 0 and span.stop - span.start <= tile for span in spans)
    assert spans[0].start == 0
    assert spans[-1].stop == size
    for left, right in pairwise(spans):
        assert left.stop - right.start == overlap
    assert len(spans) <= max(1, -(-(size - overlap) // (tile - overlap)))


def test_answer_worked_out_by_hand() -> None:
    # 10 voxels in tiles of 8 that share 4: two tiles; step = 4 covers 0..8 and 4..10
    spans = tile_axis(10, 8, 4, 2)
    assert [(s.start, s.stop) for s in spans] == [(0, 8), (4, 10)]
    # of the 4 shared voxels the outer two are dropped, the middle two blend by 1/4 and 3/4
    np.testing.assert_allclose(spans[0].weights, [1, 1, 1, 1, 1, 0.75, 0.25, 0])
    np.testing.assert_allclose(spans[1].weights, [0, 0.25, 0.75, 1, 1, 1])


def test_product_of_axes_covers_an_awkward_plane() -> None:
    image = np.random.default_rng(0).normal(size=(19, 37)).astype(np.float32)
    painted = np.zeros_like(image)
    for where, weights in tile_grid([tile_axis(19, 8, 4, 4), tile_axis(37, 12, 4, 4)]):
        painted[where] += image[where] * weights
    np.testing.assert_allclose(painted, image, atol=1e-6)


@pytest.mark.parametrize(("tile", "overlap"), [(9, 4), (8, 3), (8, 8), (4, 4)])
def test_misuse_names_both_values(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"overlap {overlap}.*{tile}|tile {tile}.*overlap {overlap}"):
        tile_axis(100, tile, overlap, 4)


def test_span_slice() -> None:
    assert Span(2, 5, blend_weights(3, 0, 0)).slice == slice(2, 5)
