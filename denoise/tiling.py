"""Cutting an axis into overlapping tiles and blending them back; independent of any network.

        0        step      2 step           size
        |---------------|                            tile 0
                 |---------------|                   tile 1
                          |-----------------|        the last ends where the axis ends
                  ======                             overlap: outer quarters dropped, linear blend between

Tiles start on the network's pooling grid: a last tile pushed back to fit would change the pooling phase, and with it
the output. The weights of all tiles add up to one at every voxel. Tiles of an image or a movie are products of spans.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Part [start, stop) of an axis, and its weights (stop - start,) in the blended result."""

    start: int
    stop: int
    weights: np.ndarray

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


def tile_axis(size: int, tile: int, overlap: int, grid: int) -> list[Span]:
    """Return spans of at most `tile` voxels that cover [0, size), neighbours sharing exactly `overlap` voxels.

    They are as few as possible, and as equal as the grid allows. Raises ValueError for sizes off the grid.
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
    """Return weights (size,) of a span that shares its first `rising` and last `falling` voxels with its neighbours."""
    weights = np.ones(size, np.float32)
    weights[:rising] = ramp(rising)
    weights[size - falling :] = 1 - ramp(falling)
    return weights


def ramp(overlap: int) -> np.ndarray:
    """Return weights (overlap,) that rise from 0 to 1 in the middle half: tiles are unreliable next to their borders."""
    margin = overlap // 4
    length = max(1, overlap - 2 * margin)
    return np.clip((np.arange(overlap, dtype=np.float32) - margin + 0.5) / length, 0, 1)


def tile_grid(axes: Sequence[Sequence[Span]]) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Yield every tile of a product of axes: its slices and its weights, shaped (n_0, n_1, ...)."""
    for spans in itertools.product(*axes):
        weights = np.ones((), np.float32)
        for span in spans:
            weights = np.multiply.outer(weights, span.weights)
        yield tuple(span.slice for span in spans), weights
