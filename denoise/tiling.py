"""Cutting an axis into overlapping tiles and blending them back; it knows nothing of any network.

        0        step      2 step           size
        |---------------|                            tile 0
                 |---------------|                   tile 1
                          |-----------------|        the last ends where the axis ends
                  ======                             overlap: outer quarters dropped, linear blend between

Starts lie on the network's pooling grid: a last tile pushed back to fit would change the pooling phase, and with it
the answer. The weights of all tiles add up to one at every voxel. Three axes are the product of one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Part [start, stop) of an axis, and its share (stop - start,) in the blended result."""

    start: int
    stop: int
    weights: np.ndarray

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


def tile_axis(size: int, tile: int, overlap: int, grid: int) -> list[Span]:
    """Spans of at most `tile` voxels that cover [0, size), neighbours sharing exactly `overlap` voxels.

    As few as possible, and as equal as the grid allows. Raises ValueError for sizes off the grid.
    """
    if tile % grid or overlap % grid:
        raise ValueError(f"tile {tile} and overlap {overlap} must be multiples of the pooling grid {grid}")
    if not 0 <= 2 * overlap <= tile:
        raise ValueError(
            f"overlap {overlap} must be at most half of tile {tile}: no voxel lies in three tiles"
        )
    if size <= tile:
        return [Span(0, size, np.ones(size, np.float32))]
    count = math.ceil((size - overlap) / (tile - overlap))
    step = max(overlap, math.ceil((size - overlap) / count / grid) * grid)
    starts = range(0, size - overlap, step)
    stops = [min(size, start + step + overlap) for start in starts]
    return [
        Span(start, stop, blend_weights(stop - start, overlap * (start > 0), overlap * (stop < size)))
        for start, stop in zip(starts, stops)
    ]


def blend_weights(size: int, rising: int, falling: int) -> np.ndarray:
    """Weights (size,) of a span whose first `rising` and last `falling` voxels are shared with its neighbours."""
    weights = np.ones(size, np.float32)
    weights[:rising] = ramp(rising)
    weights[size - falling :] = 1 - ramp(falling)
    return weights


def ramp(overlap: int) -> np.ndarray:
    """From 0 to 1 over the middle half of the overlap: the voxels next to a tile's border saw too little."""
    margin = overlap // 4
    length = max(1, overlap - 2 * margin)
    return np.clip((np.arange(overlap, dtype=np.float32) - margin + 0.5) / length, 0, 1)


def tile_grid(axes: Sequence[Sequence[Span]]) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Every tile of a product of axes: its slices and its weights, shaped (n_0, n_1, ...)."""
    for spans in itertools.product(*axes):
        weights = np.ones((), np.float32)
        for span in spans:
            weights = np.multiply.outer(weights, span.weights)
        yield tuple(span.slice for span in spans), weights
