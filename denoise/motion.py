"""Movement of the sample: found, held still while the movie is denoised, and given back to the output.

What the whole movie tells of a voxel is true where the scene stands still; a twentieth of a pixel matters. So where it
moves each frame is told how far, and goes onto a canvas on which the scene stands still, with a margin for what moves
beyond the frame. What is made of it there goes back to where the frame has it: the output is not registered, and no
pixel is lost.

    survey: do cells of the field move alike? -> no, as in most movies: nothing else happens
        -> yes: each frame held against the mean of all, once by all cells, then by each half of them for itself
        -> what the halves tell alike: Wiener filter over time -> Motion

Noise and activity displace each cell in its own way, movement displaces all alike: what a cell has in common with the
others tells whether there is any, and how much of what was measured is chance.

Sources: displacements are found by least squares on the slopes of the mean (Lucas and Kanade, IJCAI 1981; inverse
compositional as in Baker and Matthews, IJCV 2004), starting from the best fit in whole pixels. Windowed sinc
interpolation leaves white noise white.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.smoothing import filtered, mean_around, middle
from denoise.waves import cosines, octaves

FEWEST = 32  # frames, and pixels a side, to tell movement from chance
FARTHEST = 8  # movement is looked for up to this part of a side
USUAL = 1.0  # pixels, root mean square, that a frame is displaced by as long as it does not tell otherwise
LEAST = 0.035  # pixels, root mean square: activity looks like up to 0.025
AGREE = 0.25  # of what a half sees has the other one to see too
SURE = 3.0  # deviations by chance by which a cell agrees with all others
CELLS = 4  # of the field along each side; so many with structure in them have to agree
SOFT = 0.7  # pixels: the slopes are those of the mean smoothed by so much
AROUND = 3  # pixels a side in which variance is averaged
TAPS = 8  # of the interpolation, to each side
SHAPE = 5.0  # of its Kaiser window
STEPS = 2  # of least squares
SINGULAR = 1e-3  # of slopes and light: what else could not be told apart
SECTION = 1024  # frames at most, whose displacements are looked at together
TINY = torch.finfo().tiny


@dataclass(frozen=True)
class Motion:
    """Where a movie (T, Y, X) has its scene.

    by (T, 2): pixels along (y, x) by which a frame has it further on than the canvas; (0, 2) where it stands still.
    margins: rows before and after the frame, and columns, that the canvas has more.
    """

    by: Tensor
    margins: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @property
    def still(self) -> bool:
        return not len(self.by)

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Frames (n, Y, X) from that one on, on the canvas (n, H, W): NaN where a frame shows nothing, or misses it."""
        if self.still:
            return frames
        by = self.by[start : start + len(frames)]
        missing = frames.isnan()
        lost = bool(missing.any())
        if lost:
            frames = filled(frames)
        places = [self._places(frames.shape[1 + axis], axis, by[:, axis]) for axis in (0, 1)]
        held = interpolated(frames, places)
        for axis, at in enumerate(places):
            size = frames.shape[1 + axis]
            outside = (at < -0.5) | (at > size - 0.5)  # (n, H) or (n, W)
            held.masked_fill_(outside.unsqueeze(2 - axis), torch.nan)
        if lost:
            held.masked_fill_(nearest(missing, places), torch.nan)
        return held

    def release(self, canvas: Tensor, start: int) -> Tensor:
        """The inverse: what was made of them (n, H, W), where the frames (n, Y, X) have it."""
        if self.still:
            return canvas
        by = self.by[start : start + len(canvas)]
        places = []
        for axis, (before, after) in enumerate(self.margins):
            size = canvas.shape[1 + axis] - before - after
            places.append(torch.arange(before, before + size) - by[:, axis, None])
        return interpolated(canvas, places)

    def _places(self, size: int, axis: int, by: Tensor) -> Tensor:
        """Where the canvas's rows or columns lie in frames of that size: (n, H) or (n, W)."""
        before, after = self.margins[axis]
        return torch.arange(-before, size + after) + by[:, None]

    @property
    def reach(self) -> tuple[float, float]:
        """The largest displacement along (y, x) from the mean one, in pixels."""
        if self.still:
            return 0.0, 0.0
        along_y, along_x = (self.by - self.by.mean(0)).abs().amax(0).tolist()
        return along_y, along_x


STILL = Motion(torch.zeros(0, 2))


def motion_by(by: Tensor) -> Motion:
    """Of displacements (T, 2), with the margins that they need."""
    (top, left), (bottom, right) = (its.amax(0).ceil().clamp(min=0).int().tolist() for its in (by, -by))
    return Motion(by, ((top, bottom), (left, right)))


# ---- frames at other places


def filled(frames: Tensor) -> Tensor:
    """Frames (n, Y, X) whose missing voxels, NaN, are as in the frames before and after, or as those around."""
    none = torch.full_like(frames[:1], torch.nan)
    beside = torch.stack([torch.cat([none, frames[:-1]]), torch.cat([frames[1:], none])]).nanmean(0)
    beside = torch.where(beside.isnan(), mean_around(frames), beside)
    return torch.where(frames.isnan(), beside, frames)


def interpolated(frames: Tensor, places: list[Tensor]) -> Tensor:
    """Frames (n, Y, X) at rows (n, H) and columns (n, W) between theirs: (n, H, W)."""
    rows, columns = (weights_at(at, size) for at, size in zip(places, frames.shape[1:]))
    return rows @ frames @ columns.transpose(1, 2)


def weights_at(places: Tensor, size: int) -> Tensor:
    """Of `size` samples, for the value at places (n, L) between them: (n, L, size); the outermost ones go on."""
    first = places.floor() - TAPS + 1
    taps = first[..., None] + torch.arange(2 * TAPS)
    away = places[..., None] - taps
    window = torch.special.i0(SHAPE * (1 - (away / TAPS).square()).clamp(min=0).sqrt())
    weights = torch.sinc(away) * window
    weights = weights / weights.sum(-1, keepdim=True)
    matrix = torch.zeros(*places.shape, size)
    return matrix.scatter_add_(-1, taps.long().clamp(0, size - 1), weights)


def nearest(images: Tensor, places: list[Tensor]) -> Tensor:
    """Images (n, Y, X) at rows (n, H) and columns (n, W), by the nearest sample: (n, H, W)."""
    at_y, at_x = (at.round().long().clamp(0, size - 1) for at, size in zip(places, images.shape[1:]))
    rows = images.gather(1, at_y[:, :, None].expand(-1, -1, images.shape[2]))
    return rows.gather(2, at_x[:, None, :].expand(-1, rows.shape[1], -1))


# ---- how far frames are displaced


class Tracker:
    """Tells how far frames (n, Y, X) are displaced from an image (Y, X) of the scene, as cells of the field see it.

    variance (Y, X): of the frames held still; where there is activity in it, a pixel tells less. edge: pixels at each
    side that are left out, since the scene may have moved beyond them. part: of the cells.
    """

    def __init__(self, image: Tensor, variance: Tensor, edge: int, part: slice = slice(None)) -> None:
        self.image = image
        usual = F.avg_pool2d(F.pad(variance[None, None], [AROUND // 2] * 4, "replicate"), AROUND, 1)[0, 0]
        cells = cells_of(image.shape, edge)[part]  # (cells, Y, X)
        self.weights = torch.where((variance > 0) & cells.any(0), 1 / usual.clamp(min=TINY), 0)
        light = torch.stack([image, torch.ones_like(image)])  # may change
        seen, true = (
            torch.cat([slopes(its), light]).flatten(1) for its in (smoothed(image, SOFT), image)
        )  # (4, N)
        solved = [solver(seen * (self.weights * its).flatten(), true) for its in cells]
        known = [its[:2] for its in solved if its is not None]
        self.solvers = torch.stack(known) if known else seen.new_zeros(0, 2, image.numel())

    def displacements(self, frames: Tensor) -> Tensor:
        """Pixels along (y, x) for each cell with structure in it: (n, cells, 2). True for a pixel or less."""
        rest = torch.nan_to_num(frames - self.image).flatten(1)
        return -(rest @ self.solvers.flatten(0, 1).T).unflatten(1, self.solvers.shape[:2])

    def best_fit(self, frames: Tensor, farthest: int) -> Tensor:
        """Whole pixels that are the most probable displacements of frames (n, Y, X), some USUAL ones: (n, 2)."""
        level = self.image.mean()
        rest, image = torch.nan_to_num(frames - level), self.image - level
        own, shared = (torch.fft.rfft2(its).conj() for its in (self.weights, self.weights * image))
        spectrum = 2 * torch.fft.rfft2(rest) * shared - torch.fft.rfft2(rest.square()) * own
        fit = torch.fft.irfft2(spectrum, s=self.image.shape)
        side = 2 * farthest + 1
        pixels = torch.arange(side) - farthest
        unusual = (pixels[:, None].square() + pixels.square()) / USUAL**2
        best = (fit.roll((farthest, farthest), (1, 2))[:, :side, :side] - unusual).flatten(1).argmax(1)
        return torch.stack([best // side, best % side], 1).float() - farthest


def tracker_of(frames: Tensor) -> Tracker:
    """Of a movie, by its first frames (n, Y, X) as they are."""
    return Tracker(*image_of(middle(frames)), edge=0)


def image_of(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Y, X) of frames (n, Y, X), and their variance."""
    mean = frames.nanmean(0).nan_to_num()
    return mean, (frames - mean).square().nanmean(0).nan_to_num()


def cells_of(shape: Sequence[int], edge: int) -> Tensor:
    """Which pixels (Y, X) are in which of CELLS x CELLS parts of a field without its edges: bool (cells, Y, X).

    First those on black squares of a chess board, then those on white ones.
    """
    if min(shape) < FEWEST:
        return torch.zeros(1, *shape, dtype=torch.bool)
    rows, columns = (
        (torch.arange(size) - edge).div((size - 2 * edge) / CELLS, rounding_mode="floor") for size in shape
    )
    cells = [(rows == i)[:, None] & (columns == j) for i in range(CELLS) for j in range(CELLS)]
    black, white = ([its for n, its in enumerate(cells) if (n // CELLS + n) % 2 == k] for k in (0, 1))
    return torch.stack(black + white)


def solver(seen: Tensor, true: Tensor) -> Tensor | None:
    """What tells from an image (N,) the four amounts of `true` images (4, N) in it, by weighted `seen` ones: (4, N).

    None where there is not enough in them.
    """
    curvature = seen @ true.T
    power = curvature.diagonal().clamp(min=0)
    scale = torch.where(power > 0, power.rsqrt(), 0)
    scaled = (scale[:, None] * curvature * scale).double()
    if float(torch.linalg.svdvals(scaled)[-1]) < SINGULAR:
        return None
    return scale[:, None] * (torch.linalg.inv(scaled).float() @ (scale[:, None] * seen))


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
    reach = math.ceil(4 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    return filtered(image[None], (taps / taps.sum()).expand(1, 2, -1))[0]


def agreement(told: Tensor) -> tuple[Tensor, Tensor]:
    """What cells of the field tell of displacements (T, cells, 2): the weight of each (cells, 2), and what others tell.

    Its weight is the inverse of the variance by which it differs from the others: by noise, by activity, or for want of
    structure. What others tell (T, cells, 2) has no part of its own.
    """
    away = told - told.mean(0)
    whole = away.median(1, keepdim=True).values
    for _ in range(STEPS):
        weights = 1 / (away - whole).square().mean(0).clamp(min=TINY)
        weights = weights / weights.sum(0)
        whole = (away * weights).sum(1, keepdim=True)
    return weights, (whole - away * weights) / (1 - weights)


def moves(told: Tensor) -> bool:
    """Whether displacements (T, cells, 2) tell of movement: most cells agree with all others, by more than chance."""
    if len(told) < FEWEST or told.shape[1] < CELLS:
        return False
    weights, others = agreement(told)
    away = told - told.mean(0)
    shared = (away * others).mean(0)  # (cells, 2)
    chance = (away.square().mean(0) * others.square().mean(0)).sqrt() / len(told) ** 0.5
    return any(
        float(weighted_median(its, weights[:, axis])) > LEAST**2
        and float(weighted_median((its / chance[:, axis]), weights[:, axis])) > SURE
        for axis, its in enumerate(shared.unbind(1))
    )


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Of values (N,) the one that half of the weights are below."""
    order = values.argsort()
    return values[order[int((weights[order].cumsum(0) < 0.5 * weights.sum()).sum())]]


def motion_of(blocks: Callable[[], Iterable[Tensor]]) -> Motion:
    """Of a movie whose frames are `blocks`, (n, Y, X) each, in order; NaN where missing. It is read three times."""
    first = middle(next(iter(blocks())))
    farthest = min(first.shape[1:]) // FARTHEST
    image, variance = image_of(first)
    for _ in range(STEPS):
        image, variance, _, _ = follow([first], Tracker(image, variance, farthest), farthest)
    image, variance, by, _ = follow(map(middle, blocks()), Tracker(image, variance, farthest), farthest)
    edge = min(farthest, math.ceil(float(by.abs().max())))
    halves = []
    for part in (slice(CELLS**2 // 2), slice(CELLS**2 // 2, None)):
        tracker = Tracker(image, variance, edge, part)
        if not len(tracker.solvers):
            return STILL
        *_, told = follow(map(middle, blocks()), tracker, edge)
        halves.append(together(told))
    both = torch.stack(halves, 1)
    return motion_by(steadied(both)) if agree(both[both.isfinite().all(2).all(1)]) else STILL


def together(told: Tensor) -> Tensor:
    """What cells tell of displacements (T, cells, 2) in the mean: (T, 2), NaN where a frame shows nothing."""
    weights, _ = agreement(told[told.isfinite().all(2).all(1)])
    return (told * weights).sum(1)


def agree(halves: Tensor) -> bool:
    """Whether two halves of the field that know nothing of each other tell of the same movement, (T, 2 halves, 2)."""
    if len(halves) < FEWEST:
        return False
    away = halves - halves.mean(0)
    shared, own = away.prod(1).mean(0), away.square().mean(0)  # (2,) and (2 halves, 2)
    chance = own.prod(0).sqrt() / len(away) ** 0.5
    return bool(((shared > LEAST**2) & (shared > SURE * chance) & (shared > AGREE * own.amin(0))).any())


def follow(
    blocks: Iterable[Tensor], tracker: Tracker, farthest: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance (Y, X) of frames held still, displacements (T, 2), and those of the cells (T, cells, 2).

    A frame that shows nothing has NaN in the last.
    """
    count, total, squares = torch.zeros(3, *tracker.image.shape)
    found: list[Tensor] = []
    told: list[Tensor] = []
    for frames in blocks:
        by = tracker.best_fit(frames, farthest)
        cells = by[:, None].expand(-1, len(tracker.solvers), -1)
        for _ in range(STEPS if cells.numel() else 0):
            cells = by[:, None] + tracker.displacements(Motion(by).hold(frames, 0))
            by = cells.median(1).values.clamp(-farthest, farthest)
        rest = Motion(by).hold(frames, 0) - tracker.image
        count += rest.isfinite().sum(0)
        total += rest.nansum(0)
        squares += rest.square().nansum(0)
        seen = frames.isfinite().any(2).any(1)
        found.append(by)
        told.append(torch.where(seen[:, None, None], cells, torch.nan))
    shift = total / count.clamp(min=1)
    variance = squares / count.clamp(min=1) - shift.square()
    return tracker.image + shift, variance, torch.cat(found), torch.cat(told)


def steadied(halves: Tensor) -> Tensor:
    """Displacements (T, 2) without what is chance in them, from those that two halves of the field tell of (T, 2, 2).

    Frames that show nothing, NaN, are between those around them.
    """
    seen = halves.isfinite().all((1, 2)).numpy()
    times = np.arange(len(seen))
    known = [np.interp(times, times[seen], its[seen]) for its in halves.flatten(1).T.numpy()]
    parts = torch.from_numpy(np.stack(known, 1)).float().unflatten(1, (2, 2))
    return torch.cat([without_chance(its) for its in parts.tensor_split(math.ceil(len(seen) / SECTION))])


def without_chance(halves: Tensor) -> Tensor:
    """The same of one section: each octave of waves in time is as strong as both halves tell it alike."""
    waves = cosines(len(halves))
    first, second = (waves @ its for its in halves.unbind(1))
    whole = (first + second) / 2
    member = F.one_hot(octaves(len(halves))).float()
    shared, power = (member.T @ its for its in (first * second, whole.square()))
    gain = torch.where(power > 0, shared / power, 0).clamp(0, 1)
    gain[0] = 1
    return waves.T @ (whole * (member @ gain))
