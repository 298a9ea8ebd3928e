"""Movement of the sample: held still while the movie is denoised, and given back to the output.

What the whole movie tells of a voxel is true where the scene stands still; a twentieth of a pixel matters. So where it
moves (`denoise.tracking`) each frame goes onto a canvas on which the scene stands still, with a margin for what moves
beyond the frame. What is made of it there goes back to where the frame has it: the output is not registered, and no
pixel is lost.

Interpolation loses the finest waves, and at the edge of a frame it has to guess. So what is interpolated is only how
frames differ from the mean scene as they would show it, where that is known. Windowed sinc interpolation leaves white
noise white.

Heads turn, tissue is stretched, and a scanner needs time for a frame: displacements may differ over the field, smoothly.
Then each pixel has its own place, first along x, then along y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from denoise.smoothing import correlated, mean_around

TAPS = 12  # of the interpolation, to each side
BEYOND = 0.95  # pixels outside of a frame is as far as it still tells something
SHAPE = 5.0  # of its Kaiser window
FINEST = 1024  # places to a pixel, where each has its own
CURVED = math.sqrt(5) / 2  # a parabola's part, for a root mean square of 1
ROUNDS = 3  # of looking for the place that a displacement leads to


Margins = tuple[tuple[int, int], tuple[int, int]]  # rows before and after a frame, and columns

NO_MARGINS: Margins = ((0, 0), (0, 0))

NO_BENDS = torch.zeros(0, 5, 2)


# displacements along y (0) or x (1) of frames at rows and columns that broadcast: (n, ., .)
Away = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pattern:
    """What frames have (n, Y, X) is scene * gain + offset: that of a camera, which does not move; (Y, X) each."""

    gain: Tensor
    offset: Tensor

    def taken(self, frames: Tensor) -> Tensor:
        """Frames without it."""
        return (frames - self.offset) / self.gain

    def given(self, frames: Tensor) -> Tensor:
        """Frames with it."""
        return frames * self.gain + self.offset

    def rescaled(self, scale: float, shift: float) -> Pattern:
        """That of scale * movie + shift."""
        return Pattern(self.gain, self.offset * scale + shift * (1 - self.gain))


@dataclass(frozen=True)
class Motion:
    """Where a movie (T, Y, X) has its scene.

    by (T, 2): pixels along (y, x) by which a frame has it further on than the canvas; (0, 2) where it stands still.
    phase: pixels by which odd rows have it further on along x, since a scanner writes them on its way back.
    margins: rows before and after the frame, and columns, that the canvas has more.
    scene: what it is like in the mean (H, W), on the canvas, in the frames' units; None where that is not known.
    bends (T, 5, 2): pixels along (y, x) more, of all `polynomials` but the first; (0, 5, 2) where it does not bend.
    half: of the field that bends, around the middle of a frame: pixels along (y, x). Beyond it nothing bends further.
    pattern: what frames have that does not move with the scene, see `denoise.pattern`; None where there is none.
    against: of what it shows, what the recording has the other way, in variances of a pixel: this may be activity of
    cells, and no movement (`denoise.staying`); 0 where it is little.
    """

    by: Tensor
    phase: float = 0.0
    margins: Margins = NO_MARGINS
    scene: Tensor | None = None
    bends: Tensor = NO_BENDS
    half: tuple[float, float] = (1.0, 1.0)
    pattern: Pattern | None = None
    against: float = 0.0

    @property
    def still(self) -> bool:
        """Whether frames are as the scene is."""
        return not len(self.by) and not self.phase

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Frames (n, Y, X) from that one on, on the canvas (n, H, W): NaN where a frame shows nothing, or misses it."""
        if self.still:
            return frames
        if self.pattern is not None:
            return replace(self, pattern=None).hold(self.pattern.taken(frames), start)
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
        frames = along_x(rows, at_x, -self._odd, BEYOND)
        return frames if self.pattern is None else self.pattern.given(frames)

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
    def amounts(self) -> Tensor:
        """All numbers that tell of each frame's displacements: (T, 2) or (T, 12)."""
        return torch.cat([self.by, self.bends.flatten(1)], 1) if len(self.bends) else self.by

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
        if self.scene is None:
            return self
        pattern = self.pattern and self.pattern.rescaled(scale, shift)
        return replace(self, scene=self.scene * scale + shift, pattern=pattern)


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
    if alike:
        rest, least, most = at[:, :1, :1] - origin, 0, 0
    else:
        rest = at - numbered(count, axis) - origin
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
