"""Movement of the sample: found, held still while the movie is denoised, and given back to the output.

What the whole movie tells of a voxel is true where the scene stands still; a twentieth of a pixel matters. So where it
moves each frame is told how far, and goes onto a canvas on which the scene stands still, with a margin for what moves
beyond the frame. What is made of it there goes back to where the frame has it: the output is not registered, and no
pixel is lost.

Interpolation loses the finest waves, and at the edge of a frame it has to guess. So what is interpolated is only how
frames differ from the mean scene as they would show it, where that is known.

    survey: are rows out of phase, or do cells of the field move alike? -> no, as in most movies: nothing else happens
        -> yes: each frame held against the mean of the first ones, then twice against that of all others, held still
        -> what two halves of the cells tell alike: Wiener filter over time -> Motion

Noise and activity displace each cell in its own way, movement displaces all alike: what a cell has in common with the
others tells whether there is any, and how much of what was measured is chance.

A scanner that writes odd rows on its way back may have them further left or right by a part of a pixel, the same in all
frames. Movement and structure cannot be told where rows are out of phase, so they are put in phase first, and back.

Sources: displacements are found by least squares on the slopes of the mean (Lucas and Kanade, IJCAI 1981; inverse
compositional as in Baker and Matthews, IJCV 2004), starting from the best fit in whole pixels. Windowed sinc
interpolation leaves white noise white.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.context import inpainted
from denoise.smoothing import MEASURED, correlated, filtered, mean_around, middle
from denoise.waves import cosines, octaves

FEWEST = 32  # frames, and pixels a side, to tell movement from chance
FARTHEST = 8  # movement is looked for up to this part of a side
USUAL = 1.0  # pixels, root mean square, that a frame is displaced by as long as it does not tell otherwise
LEAST = 0.035  # pixels, root mean square: activity looks like up to 0.025
AGREE = 0.25  # of what a half sees has the other one to see too
SURE = 3.0  # deviations by chance by which a cell agrees with all others
CELLS = 4  # of the field along each side; so many with structure in them have to agree
SOFT = 0.7  # pixels: the slopes are those of the mean smoothed by so much
ROUGH = 1.5  # pixels: frames are smoothed by so much before they are placed in whole pixels
AROUND = 3  # pixels a side in which variance is averaged
TAPS = 12  # of the interpolation, to each side
BEYOND = 0.95  # pixels outside of a frame is as far as it still tells something
SHAPE = 5.0  # of its Kaiser window
FINEST = 1024  # places to a pixel, where each has its own
CURVED = math.sqrt(5) / 2  # a parabola's part, for a root mean square of 1
ROUNDS = 3  # of looking for the place that a displacement leads to
STEPS = 2  # of least squares
SINGULAR = 1e-3  # of slopes and light: what else could not be told apart
OUT_OF_PHASE = 0.3  # pixels: less than that costs hardly anything
FURTHEST = 4  # odd rows are sought up to this part of a cell's width
FINE = 0.02  # pixels between two places at which they are sought
ALIKE = 0.3  # of what is found is what half of the field may differ by
LIKELIER = 20.0  # in the logarithm of likelihood, than that rows are in phase
FOLDS = 4  # of the frames; those of one are compared to the mean of the others
PIECE = 16  # frames in a row that are of the same one, at most
KNOWN = 0.5  # of all frames at least a pixel or a cell has to be seen in
COHERENT = 0.99  # at most: structure is not the same in two rows
WIDE = 512  # pixels a side in which a field is seen to bend
SECTION = 1024  # frames at most, whose displacements are looked at together
TINY = torch.finfo().tiny


Margins = tuple[tuple[int, int], tuple[int, int]]  # rows before and after a frame, and columns
NO_MARGINS: Margins = ((0, 0), (0, 0))
NO_PARTS = torch.zeros(0, 1, 1)
NO_BENDS = torch.zeros(0, 5, 2)

# displacements along y (0) or x (1) of frames at rows and columns that broadcast: (n, ., .)
Away = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Motion:
    """Where a movie (T, Y, X) has its scene.

    by (T, 2): pixels along (y, x) by which a frame has it further on than the canvas; (0, 2) where it stands still.
    phase: pixels by which odd rows have it further on along x, since a scanner writes them on its way back.
    margins: rows before and after the frame, and columns, that the canvas has more.
    scene: what it is like in the mean (H, W), on the canvas, in the frames' units; None where that is not known.
    bends (T, 5, 2): pixels along (y, x) more, of all `polynomials` but the first; (0, 5, 2) where it does not bend.
    half: of the field that bends, around the middle of a frame: pixels along (y, x). Beyond it nothing bends further.
    """

    by: Tensor
    phase: float = 0.0
    margins: Margins = NO_MARGINS
    scene: Tensor | None = None
    bends: Tensor = NO_BENDS
    half: tuple[float, float] = (1.0, 1.0)

    @property
    def still(self) -> bool:
        """Whether frames are as the scene is."""
        return not len(self.by) and not self.phase

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Frames (n, Y, X) from that one on, on the canvas (n, H, W): NaN where a frame shows nothing, or misses it."""
        if self.still:
            return frames
        if self.scene is not None:
            shown = self.release(self.scene.expand(len(frames), -1, -1), start)
            return replace(self, scene=None).hold(frames - shown, start).add_(self.scene)
        at_y, at_x = self._places(frames.shape, start)
        missing = frames.isnan()
        if missing.any():
            frames = filled(frames)
        held = along_x(frames, at_x, self._odd)
        if len(self.by):  # rows stay where they are otherwise
            held = along_y(held, at_y)
        return held.masked_fill_(unseen(missing, at_y, at_x, self._odd), torch.nan)

    def release(self, canvas: Tensor, start: int) -> Tensor:
        """The inverse: what was made of them (n, H, W), where the frames (n, Y, X) have it."""
        if self.still:
            return canvas
        at_y, at_x = self._places_back(canvas.shape, start)
        # held frames went on beyond their edges as they ended there, so they do on the way back
        rows = along_y(canvas, at_y, BEYOND) if len(self.by) else canvas
        return along_x(rows, at_x, -self._odd, BEYOND)

    def _places(self, shape: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """In frames (n, Y, X) from that one on: the canvas' rows, and its columns in each of the frames' rows.

        (n, H, 1) and (n, 1, W) where all is displaced alike, else (n, H, W) and (n, Y, W); n may be 1 for all.
        """
        count, *size = shape
        (top, bottom), (left, right) = self.margins
        y, x = torch.arange(-top, size[0] + bottom)[:, None], torch.arange(-left, size[1] + right)
        away = self._away(start, count, size)
        return y + away(0, y, x), x + away(1, self._rows(size[0], x, away), x) + self._further_on(size[0])

    def _places_back(self, shape: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """On the canvas (n, H, W): the frames' rows in each of its columns, and their columns.

        (n, Y, 1) and (n, 1, X) where all is displaced alike, else (n, Y, W) and (n, Y, X); n may be 1 for all.
        """
        count, height, width = shape
        (top, bottom), (left, right) = self.margins
        size = height - top - bottom, width - left - right
        away = self._away(start, count, size)
        at_y = self._rows(size[0], torch.arange(-left, width - left), away)
        y = rows = torch.arange(size[0])[:, None]
        x = columns = torch.arange(size[1]) - self._further_on(size[0])
        for _ in range(ROUNDS):
            y, x = rows - away(0, y, x), columns - away(1, y, x)
        return at_y + top, x + left

    @property
    def _odd(self) -> float:
        """The phase, unless it is in the places since each row has its own."""
        return 0.0 if len(self.bends) else self.phase

    def _further_on(self, count: int) -> Tensor:
        """What the phase adds to the places of so many rows of a frame: (Y, 1), or (1, 1) where they have the same."""
        return self.phase * (torch.arange(count) % 2)[:, None] if len(self.bends) else torch.zeros(1, 1)

    def _rows(self, count: int, x: Tensor, away: Away) -> Tensor:
        """Rows of the canvas that so many rows of frames are at, in its columns (W,): (n, Y, W), or (n, Y, 1)."""
        y = rows = torch.arange(count)[:, None]
        for _ in range(ROUNDS):
            y = rows - away(0, y, x)
        return y

    def _away(self, start: int, count: int, size: Sequence[int]) -> Away:
        """How far what is at a place of the canvas is displaced in `count` frames of size (Y, X) from that one on."""
        its = self.during(start, count)
        middle_y, middle_x = ((n - 1) / 2 for n in size)
        return lambda axis, y, x: its.displacement(axis, y - middle_y, x - middle_x)

    def displacement(self, axis: int, y: Tensor, x: Tensor) -> Tensor:
        """Along y (0) or x (1), of what is at rows and columns from a frame's middle that broadcast: (T or 1, ., .)."""
        displaced = self._every[:, axis, None, None]
        if not len(self.bends):
            return displaced
        v, u = inside(y, x, self.half)
        along_y, along_x, curved_y, twisted, curved_x = self.bends[..., axis, None, None].unbind(1)
        curved_y, curved_x = CURVED * curved_y, CURVED * curved_x
        displaced = displaced - (curved_y + curved_x)
        return displaced + v * (along_y + curved_y * v + twisted * u) + u * (along_x + curved_x * u)

    def displacements(self, y: Tensor, x: Tensor) -> Tensor:
        """Of what is at rows and columns (places,) from a frame's middle: (T, places, 2)."""
        along = [self.displacement(axis, y[None], x[None])[:, 0] for axis in (0, 1)]
        return torch.stack([its.expand(-1, len(y)) for its in along], 2)

    @property
    def _every(self) -> Tensor:
        """Displacements of all frames: (T, 2), or (1, 2) where they are the same."""
        return self.by if len(self.by) else torch.zeros(1, 2)

    @property
    def _extremes(self) -> Tensor:
        """The same all over the field: (T, places, 2)."""
        y, x = (half * torch.linspace(-1, 1, 5) for half in self.half)
        return self.displacements(y.repeat_interleave(len(x)), x.repeat(len(y)))

    @property
    def reach(self) -> tuple[float, float]:
        """The largest displacement along (y, x) from the mean one, in pixels."""
        every = self._extremes
        by_y, by_x = (every - every.mean(0)).abs().amax((0, 1)).tolist()
        return by_y, by_x

    def whole(self) -> Motion:
        """The same with the margins that it takes to lose nothing."""
        every = self._extremes.flatten(0, 1)
        places = torch.cat([every, every + torch.tensor([0.0, self.phase])])  # even rows, odd rows
        (top, left), (bottom, right) = (
            its.amax(0).ceil().clamp(min=0).int().tolist() for its in (places, -places)
        )
        return replace(self, margins=((top, bottom), (left, right)))

    def during(self, start: int, count: int | None = None) -> Motion:
        """That of frames from one on, so many or all."""
        stop = None if count is None else start + count
        return replace(self, by=self.by[start:stop], bends=self.bends[start:stop])

    def rescaled(self, scale: float, shift: float) -> Motion:
        """That of scale * movie + shift."""
        return self if self.scene is None else replace(self, scene=self.scene * scale + shift)


STILL = Motion(torch.zeros(0, 2))


def inside(y: Tensor, x: Tensor, half: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Rows and columns from the middle of a field, in root mean squares of those in it; beyond, those of its edge."""
    v, u = (math.sqrt(3) * (its / most).clamp(-1, 1) for its, most in zip((y, x), half))
    return v, u


def polynomials(y: Tensor, x: Tensor, half: tuple[float, float]) -> Tensor:
    """Legendre's of degree 0, 1, 1, 2, 2, 2, at rows and columns from the middle of a field (places,): (6, places).

    The root mean square of each over the field is 1.
    """
    v, u = inside(y, x, half)
    return torch.stack([torch.ones_like(v), v, u, CURVED * (v * v - 1), v * u, CURVED * (u * u - 1)])


# ---- frames at other places


def filled(frames: Tensor) -> Tensor:
    """Frames (n, Y, X) whose missing voxels, NaN, are as in the frames before and after, or as those around."""
    places = frames.isnan().nonzero()
    time, *pixel = places.unbind(1)
    beside = [frames[((time + step).clamp(0, len(frames) - 1), *pixel)] for step in (-1, 1)]
    values = torch.stack(beside).nanmean(0)
    alone = values.isnan()
    if alone.any():
        values[alone] = mean_around(frames, places[alone])
    return frames.index_put((time, *pixel), values)


def along_y(frames: Tensor, at: Tensor, beyond: float = math.inf) -> Tensor:
    """Frames (n, Y, X) at rows (n, H, X) or (n, H, 1): (n, H, X)."""
    return between(frames, at, 1, beyond)


def along_x(frames: Tensor, at: Tensor, phase: float, beyond: float = math.inf) -> Tensor:
    """Frames (n, Y, X) at columns (n, Y, W) or (n, 1, W), so many pixels further on in odd rows: (n, Y, W)."""
    return by_rows(frames, at, phase, lambda rows, at: between(rows, at, 2, beyond))


def by_rows(frames: Tensor, at: Tensor, phase: float, take: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `take` makes of frames (n, Y, X) at columns (n, Y or 1, W), so many further on in odd rows: (n, Y, W)."""
    taken = take(frames, at)
    if phase:
        taken[:, 1::2] = take(frames[:, 1::2], (at[:, 1::2] if at.shape[1] > 1 else at) + phase)
    return taken


def unseen(missing: Tensor, at_y: Tensor, at_x: Tensor, phase: float) -> Tensor:
    """Where frames (n, Y, X) show nothing at rows (n, H, .) and columns (n, ., W), missing or beyond: (n, H, W)."""
    columns = by_rows(missing, at_x, phase, partial(nearest, axis=2))
    return nearest(columns, at_y, 1)


def nearest(missing: Tensor, at: Tensor, axis: int) -> Tensor:
    """The pixel nearest to each place along an axis: whether it is missing, or beyond all of them."""
    size = missing.shape[axis]
    index = at.round().long().clamp(0, size - 1)
    return along(missing, index, axis) | ((at - index).abs() > BEYOND)


def along(frames: Tensor, index: Tensor, axis: int) -> Tensor:
    """Those of the samples of frames (n, Y, X) along an axis, as of lines of their own or as of all lines alike."""
    shape = list(frames.shape)
    shape[axis] = index.shape[axis]
    return frames.gather(axis, index.expand(shape))


def between(frames: Tensor, at: Tensor, axis: int, beyond: float = math.inf) -> Tensor:
    """Frames (n, Y, X) at places along an axis: those of each line, or those of all lines alike, one apart.

    The outermost samples go on; those further than `beyond` outside of the places count as the last one within.
    """
    count, alike = at.shape[axis], at.shape[3 - axis] == 1
    origin = at[:, :1, :1].floor()
    rest = at[:, :1, :1] - origin if alike else at - numbered(count, axis) - origin
    least, most = int(rest.min().floor()), int(rest.max().floor())
    index = origin + least - TAPS + 1 + numbered(count + 2 * TAPS - 1 + most - least, axis)
    low = (at.narrow(axis, 0, 1) - beyond).ceil().clamp(min=0)
    high = (at.narrow(axis, count - 1, 1) + beyond).floor().clamp(max=frames.shape[axis] - 1)
    samples = along(frames, index.clamp(low, high).long(), axis)
    if not alike:
        return weighted(samples, rest - least, axis)
    weights = sinc(rest[:, 0] + TAPS - 1 - torch.arange(2 * TAPS))
    return correlated(samples, (weights / weights.sum(1, keepdim=True)).expand(len(frames), -1), axis)


def numbered(count: int, axis: int) -> Tensor:
    """So many numbers from 0 on, along an axis: (1, count, 1) or (1, 1, count)."""
    return torch.arange(count)[None, :, None] if axis == 1 else torch.arange(count)[None, None]


def weighted(samples: Tensor, rest: Tensor, axis: int) -> Tensor:
    """Samples (n, Y, X) at places of their own, so much further on than TAPS - 1 plus their number along an axis."""
    count = rest.shape[axis]
    reach = samples.shape[axis] - count + 1
    table, nearest = sinc_table(reach - TAPS), (rest * FINEST).round().int().flatten()
    total = torch.zeros_like(rest)
    for tap in range(reach):
        weights = table[(reach - 1 - tap) * FINEST :].index_select(0, nearest)
        total.addcmul_(samples.narrow(axis, tap, count), weights.view(total.shape))
    return total


@lru_cache
def sinc_table(side: int) -> Tensor:
    """Weights of samples up to so many pixels away to both sides, FINEST a pixel; those a pixel apart have the sum 1."""
    weights = sinc(torch.arange(-side * FINEST, side * FINEST + 1) / FINEST)
    sums = weights[:-1].view(-1, FINEST).sum(0).repeat(2 * side)
    return weights / torch.cat([sums, sums[:1]])


def sinc(away: Tensor) -> Tensor:
    """Weights of samples so many pixels away, in a Kaiser window of TAPS to each side."""
    window = torch.special.i0(SHAPE * (1 - (away / TAPS).square()).clamp(min=0).sqrt())
    return torch.where(away.abs() <= TAPS, torch.sinc(away) * window, 0)


# ---- how far frames are displaced


class Tracker:
    """Tells how far frames (n, Y, X) are displaced from an image (Y, X) of the scene, as cells of the field see it.

    variance (Y, X): of the frames held still; where there is activity in it, a pixel tells less. edge: pixels at each
    side that are left out, since the scene may have moved beyond them.
    """

    def __init__(self, image: Tensor, variance: Tensor, edge: int) -> None:
        self.image = image
        cells = cells_of(image.shape, edge)  # (cells, Y, X)
        self.weights = per_variance(variance) * cells.any(0)
        seen, true = (changes(image, soft).flatten(1) for soft in (SOFT, 0.0))  # (4, N)
        weighted = self.weights.flatten() * cells.flatten(1)  # (cells, N)
        solved = [solver(seen * its, true) for its in weighted]
        known = torch.tensor([its is not None for its in solved])
        told = [its[:2] for its in solved if its is not None]
        self.solvers = torch.stack(told) if told else seen.new_zeros(0, 2, image.numel())
        self.black = (torch.arange(len(cells)) < len(cells) // 2)[known]
        y, x = (its.expand(image.shape).flatten() for its in Scene(image, variance).places())
        middles = middles_of(seen[:2].square().sum(0) * weighted[known], y, x)
        self.shapes = polynomials(*middles, Scene(image, variance).half)

    def moves(self, told: Tensor) -> bool:
        """Whether displacements (T, cells, 2) are those of a field that moves as a whole, or turns, or is stretched."""
        if alike(told, LEAST):
            return True
        shapes = self.shapes[:3]
        if min(int(self.black.sum()), int((~self.black).sum())) < len(shapes):
            return False
        _, halves = fits(told, shapes, self.black)
        return bool(agreeing(halves)[2:].any())

    def displacements(self, frames: Tensor) -> Tensor:
        """Pixels along (y, x) for each cell with structure in it: (n, cells, 2). True for a pixel or less."""
        rest = torch.nan_to_num(frames - self.image).flatten(1)
        return -(rest @ self.solvers.flatten(0, 1).T).unflatten(1, self.solvers.shape[:2])

    def places(self, frames: Tensor, farthest: int) -> Tensor:
        """Displacements of frames (n, Y, X) along (y, x): (n, 2), in whole pixels where no cell tells of them."""
        by = fit = self.best_fit(frames, farthest)
        for _ in range(STEPS if len(self.solvers) else 0):
            cells = by[:, None] + self.displacements(Motion(by).hold(frames, 0))
            by = fit + (cells.median(1).values - fit).clamp(-1, 1)
        return by

    def best_fit(self, frames: Tensor, farthest: int) -> Tensor:
        """Whole pixels that are the most probable displacements of frames (n, Y, X), some USUAL ones: (n, 2)."""
        level = self.image.mean()
        rest, image = torch.nan_to_num(frames - level), self.image - level
        rest = filtered(rest, gaussian(ROUGH).expand(len(rest), 2, -1))
        weighted = self.weights * image
        own, shared = (torch.fft.rfft2(its).conj() for its in (self.weights, weighted))
        seen, power = (torch.fft.rfft2(its) for its in (rest, rest.square()))
        squares, light = (
            torch.fft.irfft2(its, s=image.shape) for its in (2 * seen * shared - power * own, seen * own)
        )
        fit = squares + (light - weighted.sum()).square() / self.weights.sum().clamp(min=TINY)
        side = 2 * farthest + 1
        pixels = torch.arange(side) - farthest
        unusual = (pixels[:, None].square() + pixels.square()) / USUAL**2
        best = (fit.roll((farthest, farthest), (1, 2))[:, :side, :side] - unusual).flatten(1).argmax(1)
        return torch.stack([best // side, best % side], 1).float() - farthest


def tracker_of(frames: Tensor) -> Tracker:
    """Of a movie, by its first frames (n, Y, X) as they are."""
    return Tracker(*image_of(middle(frames)), edge=0)


def image_of(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Y, X) of frames (n, Y, X), and their variance. Pixels that do not vary have the mean of those around."""
    mean = frames.nanmean(0).nan_to_num()
    varies = varying(frames)
    variance = (frames - mean).square().nanmean(0).nan_to_num()
    return inpainted(mean.where(varies, torch.nan)), variance * varies


def varying(frames: Tensor) -> Tensor:
    """Pixels (Y, X) that are not of one value in all frames (n, Y, X)."""
    return (frames.diff(dim=0).nan_to_num() != 0).any(0)


def per_variance(variance: Tensor) -> Tensor:
    """Weights (Y, X): 1 / variance of the pixels around each that vary; 0 for those that do not."""
    varies = variance > 0
    both = F.pad(torch.stack([variance, varies.float()]), [AROUND // 2] * 4)
    usual, share = F.avg_pool2d(both, AROUND, 1)
    return torch.where(varies, share / usual.clamp(min=TINY), 0)


def cells_of(shape: Sequence[int], edge: int) -> Tensor:
    """Which pixels (Y, X) are in which of CELLS x CELLS parts of a field without its edges: bool (cells, Y, X).

    First those on black squares of a chess board, then those on white ones.
    """
    if min(shape) < FEWEST:
        return torch.zeros(1, *shape, dtype=torch.bool)
    rows, columns = (
        (torch.arange(size) - edge).div((size - 2 * edge) / CELLS, rounding_mode="floor") for size in shape
    )
    cells = torch.stack([(rows == i)[:, None] & (columns == j) for i in range(CELLS) for j in range(CELLS)])
    black = black_squares()
    return torch.cat([cells[black], cells[~black]])


def black_squares() -> Tensor:
    """Which of CELLS x CELLS cells, row after row, are black squares of a chess board: bool (cells,)."""
    even = torch.arange(CELLS) % 2 == 0
    return (even[:, None] == even).flatten()


def solver(seen: Tensor, true: Tensor) -> Tensor | None:
    """What tells from an image (N,) the amounts of `true` images (K, N) in it, by weighted `seen` ones: (K, N).

    None where there is not enough in them.
    """
    told = inverse(seen @ true.T)
    return None if told.isnan().any() else told @ seen


def inverse(shared: Tensor) -> Tensor:
    """Of what images share (..., K, K); NaN where some of them cannot be told apart."""
    power = shared.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    scale = torch.where(power > 0, power.rsqrt(), 0)
    scaled = (scale[..., None] * shared * scale[..., None, :]).double().nan_to_num(0, 0, 0)
    apart = torch.linalg.svdvals(scaled)[..., -1:, None] >= SINGULAR
    whole = torch.linalg.inv(torch.where(apart, scaled, torch.eye(scaled.shape[-1]).double()))
    return torch.where(apart, scale[..., None] * whole.float() * scale[..., None, :], torch.nan)


def slopes(image: Tensor) -> Tensor:
    """Of an image (Y, X) along y and x: (2, Y, X), exact for waves that fit."""
    spectrum = torch.fft.rfft2(mirrored(image))
    height, width = (2 * n for n in image.shape)
    waves = (torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    full = [torch.fft.irfft2(2j * math.pi * wave * spectrum, s=(height, width)) for wave in waves]
    return torch.stack([its[: image.shape[0], : image.shape[1]] for its in full])


def mirrored(image: Tensor) -> Tensor:
    """An image (Y, X) and its mirror images, which go on without an edge: (2 Y, 2 X)."""
    image = torch.cat([image, image.flip(0)], 0)
    return torch.cat([image, image.flip(1)], 1)


def smoothed(image: Tensor, sigma: float) -> Tensor:
    """An image (Y, X) smoothed by a Gaussian."""
    return filtered(image[None], gaussian(sigma).expand(1, 2, -1))[0]


def gaussian(sigma: float) -> Tensor:
    """Weights of pixels in a row, of sum 1."""
    reach = math.ceil(4 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    return taps / taps.sum()


def agreement(told: Tensor) -> tuple[Tensor, Tensor]:
    """What cells of the field tell (T, cells, K), as displacements: the weight of each (cells, K), and what others tell.

    Its weight is the inverse of the variance by which it differs from the others: by noise, by activity, or for want of
    structure. What others tell (T, cells, K) has no part of its own.
    """
    away = told - told.mean(0)
    whole = away.median(1, keepdim=True).values
    for _ in range(STEPS):
        weights = 1 / (away - whole).square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
        whole = (away * weights).sum(1, keepdim=True)
    return weights, (whole - away * weights) / (1 - weights)


def alike(told: Tensor, least: float, part: float = 0.0) -> bool:
    """Whether what cells tell (T, cells, K) changes alike: most agree with all others, by more than chance.

    least: root mean square of what they have in common, in one of the K at least. part: of what others tell.
    """
    if len(told) < FEWEST or told.shape[1] < CELLS:
        return False
    weights, others = agreement(told)
    away = told - told.mean(0)
    shared, power = (away * others).mean(0), others.square().mean(0)  # (cells, K)
    chance = (away.square().mean(0) * power).sqrt() / len(told) ** 0.5
    for axis, its in enumerate(shared.unbind(1)):
        usual, surely, agreed = (
            float(weighted_median(its / by, weights[:, axis])) for by in (1, chance[:, axis], power[:, axis])
        )
        if usual > least**2 and surely > SURE and agreed > part:
            return True
    return False


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Of values (N,) the one that half of the weights are below."""
    order = values.argsort()
    return values[order[int((weights[order].cumsum(0) < 0.5 * weights.sum()).sum())]]


@dataclass(frozen=True)
class Scene:
    """The mean (H, W) of frames that are held still, and their variance: 0 where a pixel does not count.

    margins: of the canvas, as in Motion. parts (n, H, W): means of some of the frames each.
    """

    mean: Tensor
    variance: Tensor
    margins: Margins = NO_MARGINS
    parts: Tensor = NO_PARTS

    @property
    def half(self) -> tuple[float, float]:
        """Of the sides of a frame."""
        y, x = ((size - sum(margins)) / 2 for size, margins in zip(self.mean.shape, self.margins))
        return y, x

    def places(self) -> tuple[Tensor, Tensor]:
        """Of its pixels, rows (H, 1) and columns (1, W) from the middle of a frame."""
        y, x = (
            torch.arange(size) - before - half + 0.5
            for size, (before, _), half in zip(self.mean.shape, self.margins, self.half)
        )
        return y[:, None], x[None]

    def wider(self, margin: int) -> Scene:
        """With so many pixels more at each side; what is seen there is not known."""
        mean, variance = (
            F.pad(its[None], [margin] * 4, "replicate")[0] for its in (self.mean, self.variance)
        )
        return Scene(mean, variance, ((margin, margin), (margin, margin)))

    def cropped(self, rows: slice, columns: slice) -> Scene:
        """Without the rows and columns beyond."""
        margins = tuple(
            (before - its.start, after - size + its.stop)
            for (before, after), size, its in zip(self.margins, self.mean.shape, (rows, columns))
        )
        mean, variance, parts = (its[..., rows, columns] for its in (self.mean, self.variance, self.parts))
        return Scene(mean, variance, (margins[0], margins[1]), parts)


# of which fold, from which on, and frames (n, Y, X) -> where they are
Place = Callable[[int, int, Tensor], Motion]


class Follower:
    """Tells how far frames are displaced from where they are held, against a scene, as cells of its canvas see it.

    Other than a Tracker it loses no edges, since it knows what comes in there; it finds no more than a pixel.

    A displacement shows as much as the scene is steep. Noise makes a mean look steeper, and frames would stay in part
    where chance has put them before: so it is told by what means of different frames have in common.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        weights = per_variance(scene.variance)
        seen = torch.stack([weights * changes(its, SOFT) for its in scene.parts])  # (n, 4, H, W)
        true = torch.stack([changes(its) for its in scene.parts])
        self.seen = in_cells(seen.mean(0))  # (cells, 4, P)
        strength = (seen * true)[:, :2].sum((0, 1))
        y, x = (its.expand(strength.shape) for its in scene.places())
        self.middles = middles_of(*in_cells(torch.stack([strength, y, x])).unbind(1))
        pairs = [(seen.sum(0), true.sum(0)), *zip(-seen, true)]  # all, less those of a mean with itself
        shared = sum(in_cells(one)[:, :, None] * in_cells(other)[:, None] for one, other in pairs)
        self.shared = torch.as_tensor(shared).flatten(1, 2) / (
            len(seen) * (len(seen) - 1)
        )  # (cells, 4 x 4, P)

    def places(self, frames: Tensor, near: Motion) -> tuple[Tensor, Tensor]:
        """Displacements of frames (n, Y, X) that are held so: of each (n, 2), and in the middles of cells (n, cells, 2).

        NaN where they do not tell.
        """
        near = replace(near, margins=self.scene.margins, scene=self.scene.mean)
        held = near.hold(frames, 0)
        rest = in_cells(held - self.scene.mean)  # (cells, n, P)
        shared = (rest.isfinite().float() @ self.shared.mT).transpose(0, 1).unflatten(-1, (4, 4))
        told = (rest.nan_to_num() @ self.seen.mT).transpose(0, 1)[..., None]  # (n, cells, 4, 1)
        whole, cells = (
            (inverse(its) @ more)[..., :2, 0].clamp(-1, 1)
            for its, more in ((shared.sum(1), told.sum(1)), (shared, told))
        )
        return near.by - whole, near.displacements(*self.middles) - cells


def middles_of(strength: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where structure of such strength (cells, P) at rows and columns (P,) is in the mean: rows, columns (cells,)."""
    whole = strength.sum(1).clamp(min=TINY)
    return (strength * y).sum(1) / whole, (strength * x).sum(1) / whole


def changes(image: Tensor, soft: float = 0.0) -> Tensor:
    """How an image (Y, X) changes by displacements and light: slopes along y and x, itself, a constant (4, Y, X).

    soft: pixels that slopes are smoothed by.
    """
    steep = slopes(smoothed(image, soft) if soft else image)
    return torch.cat([steep, torch.stack([image, torch.ones_like(image)])])


def in_cells(images: Tensor) -> Tensor:
    """Images (n, H, W) in CELLS x CELLS cells of P pixels, 0 beyond their edges: (cells, n, P)."""
    height, width = (math.ceil(size / CELLS) for size in images.shape[1:])
    padded = F.pad(images, (0, CELLS * width - images.shape[2], 0, CELLS * height - images.shape[1]))
    cells = padded.view(-1, CELLS, height, CELLS, width).permute(1, 3, 0, 2, 4)
    return cells.reshape(CELLS**2, -1, height * width)


def motion_of(blocks: Callable[[], Iterable[Tensor]]) -> Motion:
    """How a movie's frames are displaced; STILL where there is no telling.

    `blocks` are its frames (n, Y, X), in order and in phase, NaN where missing. They are read three times, the first
    ones once more; where the field bends, twice more.
    """
    first = torch.cat([frames for _, _, frames in islice(pieces(blocks(), PIECE), FOLDS)])
    size, farthest = len(first) // FOLDS, min(first.shape[1:]) // FARTHEST
    if min(first.shape) < FEWEST:
        return STILL
    scenes = [Scene(*image_of(first))] * FOLDS
    for _ in range(STEPS):
        scenes, _ = held_scenes(pieces([first], size), tracking(scenes, farthest), scenes[0])
    scenes, near = held_scenes(pieces(blocks(), size), tracking(scenes, farthest), scenes[0].wider(farthest))
    scenes = in_sight(scenes)
    scenes, near = held_scenes(pieces(blocks(), size), following(scenes, near), scenes[0])
    followers = [Follower(its) for its in scenes]
    whole, cells = told(pieces(blocks(), size), followers, near)
    by = displacements_told(whole, cells)
    motion = with_bends(Motion(by if len(by) else torch.zeros_like(whole)), cells, followers)
    if len(motion.bends):
        return bent(blocks, size, motion)
    return motion if len(by) else STILL


def bent(blocks: Callable[[], Iterable[Tensor]], size: int, motion: Motion) -> Motion:
    """How frames bend, in more of the field, as found by frames that are held by what is known of that so far."""
    first = torch.cat([frames for _, _, frames in islice(pieces(blocks(), size, WIDE), FOLDS)])
    margin = max(max(its) for its in motion.whole().margins)
    about = Scene(*image_of(first)).wider(margin)
    scenes, _ = held_scenes(pieces(blocks(), size, WIDE), as_known(motion), about)
    followers = [Follower(its) for its in in_sight(scenes)]
    _, cells = told(pieces(blocks(), size, WIDE), followers, motion)
    return with_bends(motion, cells, followers)


def told(
    frames: Iterable[tuple[int, int, Tensor]], followers: Sequence[Follower], near: Motion
) -> tuple[Tensor, Tensor]:
    """Displacements of frames that are held so, each as a whole (T, 2), and of their cells (T, cells, 2)."""
    found = [followers[k].places(its, near.during(n, len(its))) for k, n, its in frames]
    whole, cells = (torch.cat(its) for its in zip(*found))
    return whole, cells


def with_bends(motion: Motion, cells: Tensor, followers: Sequence[Follower]) -> Motion:
    """The same with the bends that cells tell (T, cells, 2): those that black and white ones tell alike."""
    half = followers[0].scene.half
    y, x = (torch.stack(its).mean(0) for its in zip(*(its.middles for its in followers)))
    known = cells.isfinite().all(2).float().mean(0) > KNOWN
    cells = torch.where(cells.isfinite(), cells, motion.displacements(y, x))
    shapes, black = polynomials(y, x, half), black_squares()
    if min(int((known & black).sum()), int((known & ~black).sum())) < len(shapes):
        return motion
    _, halves = fits(cells[:, known], shapes[:, known], black[known])
    sure = agreeing(halves).unflatten(0, (-1, 2))  # (6, 2)
    if not bool(sure[1:].any()):
        return motion
    sure[0] = sure[0].any() | motion.by.any()
    kept = sure.any(1)
    kept[0] = True
    told = steadied(*fits(cells[:, known], shapes[kept][:, known], black[known])).unflatten(1, (-1, 2))
    amounts = told.new_zeros(len(told), *sure.shape)  # (T, 6, 2)
    amounts[:, kept] = told * sure[kept]
    by, bends = amounts[:, 0], amounts[:, 1:]
    return replace(motion, by=by, bends=bends - bends.mean(0), half=half)


def fits(told: Tensor, shapes: Tensor, black: Tensor) -> tuple[Tensor, Tensor]:
    """How much of shapes (K, cells) cells tell (T, cells, 2): all (T, 2 K), and black ones and others (T, 2, 2 K)."""
    weights = fit_weights(told, shapes)
    parts = (torch.ones_like(black), black, ~black)
    whole, *halves = (fitted(told, shapes, weights * its[:, None]).flatten(1) for its in parts)
    return whole, torch.stack(halves, 1)


def fitted(told: Tensor, shapes: Tensor, weights: Tensor) -> Tensor:
    """How much of shapes (K, cells) is in what cells tell (T, cells, 2), by weighted least squares: (T, K, 2)."""
    return torch.einsum("akc,tca->tka", solvers(shapes, weights), told)


def solvers(shapes: Tensor, weights: Tensor) -> Tensor:
    """What tells that from them: (2, K, cells)."""
    weighted = shapes * weights.T[:, None]  # (2, K, cells)
    return torch.linalg.pinv((weighted @ shapes.T).double(), hermitian=True).float() @ weighted


def fit_weights(told: Tensor, shapes: Tensor) -> Tensor:
    """Inverse variance by which each of the cells (T, cells, 2) misses what the others tell: (cells, 2)."""
    away = told - told.mean(0)
    weights = torch.ones_like(away[0])
    for _ in range(STEPS):
        left = away - torch.einsum("tka,kc->tca", fitted(away, shapes, weights), shapes)
        own = torch.einsum("akc,kc->ca", solvers(shapes, weights), shapes)  # part of a cell in its own fit
        weights = (1 - own).clamp(min=SINGULAR) / left.square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
    return weights


def displacements_told(whole: Tensor, cells: Tensor) -> Tensor:
    """What frames as a whole (T, 2) and their cells (T, cells, 2) tell of displacements, NaN where nothing: (T, 2).

    Or (0, 2) where one half of the cells, the black squares of a chess board, does not tell the same as the others.
    """
    seen = whole.isfinite().all(1)
    known = cells[seen].isfinite().all(2).float().mean(0) > KNOWN
    cells = torch.where(cells.isfinite(), cells, whole[:, None])
    black = black_squares()
    parts = [known & black, known & ~black]
    if not all(bool(its.any()) for its in parts):
        return STILL.by
    halves = torch.stack([together(cells[:, its]) for its in parts], 1)
    return steadied(together(cells[:, known]), halves) if bool(agreeing(halves[seen]).any()) else STILL.by


def pieces(blocks: Iterable[Tensor], size: int, side: int = MEASURED) -> Iterator[tuple[int, int, Tensor]]:
    """The middle of a movie's frames (n, Y, X), `size` at a time: of which fold they are, and where they start."""
    start = 0
    for number, piece in enumerate(piece for block in blocks for piece in middle(block, side).split(size)):
        yield number % FOLDS, start, piece
        start += len(piece)


def tracking(scenes: Sequence[Scene], farthest: int) -> Place:
    """Frames are placed against the scene of their fold, wherever they are."""
    trackers = [Tracker(its.mean, its.variance, farthest) for its in scenes]
    return lambda fold, _, frames: Motion(trackers[fold].places(frames, farthest))


def following(scenes: Sequence[Scene], motion: Motion) -> Place:
    """The same, near where they are displaced so, and there where they tell nothing."""
    followers = [Follower(its) for its in scenes]

    def place(fold: int, start: int, frames: Tensor) -> Motion:
        near = motion.during(start, len(frames))
        by, _ = followers[fold].places(frames, near)
        return replace(near, by=torch.where(by.isfinite(), by, near.by))

    return place


def as_known(motion: Motion) -> Place:
    """The same where their displacements are known."""
    return lambda _, start, frames: motion.during(start, len(frames))


def held_scenes(
    frames: Iterable[tuple[int, int, Tensor]], place: Place, about: Scene
) -> tuple[list[Scene], Motion]:
    """What frames have in the mean where they are placed, without each of the folds, and where that is.

    In a mean that has a frame in it, the frame's noise would be found where it was put before, by both halves. about:
    what the scene is like.
    """
    folds, others = ([Moments(about.mean) for _ in range(FOLDS)] for _ in range(2))
    places = []
    for fold, start, piece in frames:
        motion = replace(place(fold, start, piece), margins=about.margins)
        folds[fold].update(motion.hold(piece, 0))
        places.append(motion.by)
    for number, own in enumerate(folds):
        for its in others[:number] + others[number + 1 :]:
            its.add(own)
    means = torch.stack([its.mean for its in folds])
    scenes = []
    for number, its in enumerate(others):
        seen = its.count >= KNOWN * its.count.max()
        parts = torch.cat([means[:number], means[number + 1 :]])
        scenes.append(Scene(its.mean, its.variance * seen, about.margins, parts))
    return scenes, Motion(torch.cat(places))


def in_sight(scenes: Sequence[Scene]) -> list[Scene]:
    """The same without rows and columns in which no pixel counts, in none of them."""
    counts = torch.stack([its.variance > 0 for its in scenes]).any(0)
    rows, columns = (
        slice(int(its.argmax()), len(its) - int(its.flip(0).argmax()))
        for its in (counts.any(1).int(), counts.any(0).int())
    )
    return [its.cropped(rows, columns) for its in scenes]


class Moments:
    """Sums over frames (n, Y, X), relative to an image (Y, X) near their mean; what is missing, NaN, is left out."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        self.count, self.total, self.squares = torch.zeros(3, *reference.shape, dtype=torch.float64)

    def update(self, frames: Tensor) -> None:
        rest = frames - self.reference
        self.count += rest.isfinite().sum(0)
        self.total += rest.nansum(0)
        self.squares += rest.square().nansum(0)

    def add(self, other: Moments) -> None:
        """Take the sums of other frames, relative to the same image."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> Tensor:
        """Of the frames (Y, X); the reference where all are missing."""
        return (self.reference + self._shift).float()

    @property
    def variance(self) -> Tensor:
        """Of the frames (Y, X)."""
        return (self.squares / self.count.clamp(min=1) - self._shift.square()).float()

    @property
    def _shift(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


def together(told: Tensor) -> Tensor:
    """What cells tell of displacements (T, cells, 2) in the mean: (T, 2), NaN where a frame shows nothing."""
    weights, _ = agreement(told[told.isfinite().all(2).all(1)])
    return (told * weights).sum(1)


def agreeing(halves: Tensor) -> Tensor:
    """Which of K amounts two halves of the field that know nothing of each other (T, 2 halves, K) tell alike: (K,)."""
    if len(halves) < FEWEST:
        return torch.zeros(halves.shape[2], dtype=torch.bool)
    away = halves - halves.mean(0)
    shared, own = away.prod(1).mean(0), away.square().mean(0)  # (K,) and (2 halves, K)
    chance = own.prod(0).sqrt() / len(away) ** 0.5
    return (shared > LEAST**2) & (shared > SURE * chance) & (shared > AGREE * own.amin(0))


def steadied(whole: Tensor, halves: Tensor) -> Tensor:
    """What a field tells (T, K), as displacements, and halves of it (T, 2, K), without what is chance in it: (T, K).

    Frames that show nothing, NaN, are between those around them.
    """
    told = torch.cat([whole[:, None], halves], 1)
    seen = told.isfinite().all((1, 2)).numpy()
    times = np.arange(len(seen))
    known = [np.interp(times, times[seen], its[seen]) for its in told.flatten(1).T.numpy()]
    parts = torch.from_numpy(np.stack(known, 1)).float().unflatten(1, (3, -1))
    return torch.cat([without_chance(its) for its in parts.tensor_split(math.ceil(len(seen) / SECTION))])


def without_chance(told: Tensor) -> Tensor:
    """The same of one section (T, 3, K): each octave of waves in time is as strong as both halves tell it alike."""
    waves = cosines(len(told))
    whole, first, second = (waves @ its for its in told.unbind(1))
    member = F.one_hot(octaves(len(told))).float()
    shared, power = (member.T @ its for its in (first * second, whole.square()))
    gain = torch.where(power > 0, shared / power, 0).clamp(0, 1)
    gain[0] = 1
    return waves.T @ (whole * (member @ gain))


# ---- rows out of phase


def phase_of(image: Tensor) -> float:
    """By how many pixels the odd rows of a mean image (Y, X) lie further on along x; 0.0 where they do not, or may not.

    As the rows beside them tell: half of the field like the other one, and far likelier than that all are in phase.
    Where structure slants, rows fit further on to the left nearly as they do to the right.
    """
    if min(image.shape) < FEWEST:
        return 0.0
    shifts, halves = row_fits(image)
    fits = halves.sum(0)
    phase, *told = (float(shifts[its.argmax()]) for its in (fits, *halves))
    if abs(phase) < OUT_OF_PHASE or max(abs(its - phase) for its in told) > ALIKE * abs(phase):
        return 0.0
    in_place, mirrored = (
        float(fits.max() - fits[n]) for n in (len(shifts) // 2, len(shifts) - 1 - fits.argmax())
    )
    if in_place < LIKELIER or mirrored < in_place / 2:  # worse by so much
        return 0.0
    for _ in range(STEPS):
        shifts, halves = row_fits(in_phase(phase).hold(image[None], 0)[0])
        phase += float(shifts[halves.sum(0).argmax()])
    return phase


def in_phase(phase: float) -> Motion:
    """Odd rows are put where the others are; without the columns that some rows do not show."""
    cut = math.ceil(abs(phase))
    return Motion(STILL.by, phase, ((0, 0), (-cut, -cut)))


def row_fits(image: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts (S,) in pixels, and how likely odd rows of an image (Y, X) lie so much further on: (2 halves, S).

    Logarithms of likelihood, but for a constant: what waves along x of odd rows share with those of the rows beside,
    each kind of wave by its coherence (Knapp and Carter, IEEE ASSP 1976). The halves are the black and white squares
    of a chess board.
    """
    side = image.shape[1] // CELLS
    odd, above, below = (image[start : image.shape[0] - 2 + start : 2] for start in (1, 0, 2))
    parts = torch.stack([odd, (above + below) / 2])[..., : side * CELLS].unflatten(-1, (CELLS, side))
    parts = (parts - parts.mean(-1, keepdim=True)) * torch.hann_window(side, periodic=False)
    odds, others = torch.fft.rfft(parts)  # (rows, CELLS, waves)
    shared, power = odds * others.conj(), odds.abs().square().sum((0, 1)) * others.abs().square().sum((0, 1))
    strength = shared.sum((0, 1)).abs().clamp(min=TINY)
    count = odds[..., 0].numel()
    coherence = (strength.square() / power.clamp(min=TINY) - 1 / count).clamp(0, COHERENT)
    coherence[0] = 0  # the mean tells nothing
    shared = shared * (count * coherence / (1 - coherence) / strength)
    cells = torch.stack([its.sum(0) for its in shared.tensor_split(CELLS)])  # (CELLS, CELLS, waves)
    black = black_squares().view(CELLS, CELLS)
    steps = round(side / FURTHEST / FINE)
    shifts = torch.arange(-steps, steps + 1) * FINE
    turns = torch.exp(2j * math.pi * torch.fft.rfftfreq(side) * shifts[:, None])
    return shifts, torch.stack([(cells[its].sum(0) * turns).sum(1).real for its in (black, ~black)])
