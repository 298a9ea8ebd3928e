"""What shows nothing of the scene: voxels, rows, columns and frames that were lost, and flashes of another light.

All of these become NaN, so that nothing else is estimated from them, and are filled by what the network predicts. But
for flashes and longer gaps there is nothing to predict from: such rows and frames come out as they were recorded.

And interleaving: planes or channels that take turns in one movie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.normalization import lattice_step

PIECE_VOXELS = 1 << 20  # of elementwise work at once: stays in the processor's cache
MAX_INTENSITY = 1e15  # times the movie's own scale: beyond is damage; its square would not fit into float32
MIN_OUTLIER = 15.0  # times the movie's own scale, from which a voxel may be an outlier
MAX_NEIGHBOUR = 0.1  # of an outlier's value, up to which its neighbours are: light spreads over them
MAX_OUTLIER_SHARE = 1e-4  # of the voxels
MAX_CANDIDATE_SHARE = 1e-2  # of the voxels: if more are beyond MIN_OUTLIER, that is no measure of this movie
MAX_CHANCE = 1e-6  # a row or frame of one value that is less probable than this by chance was lost
MAX_LOSS_SHARE = 0.05  # of a value in rows that vary: a more frequent one is the background's
MIN_FRAME_VOXELS = 64  # a smaller frame does not tell that it was lost, a flash, or another plane
MIN_LINE_VOXELS = 8  # a shorter row or column does not tell by one single value that it was lost
MAX_FILLED_GAP = 8  # frames of one value in a row that are filled; longer gaps stay
SAMPLED_VOXELS = 4096  # of a frame, more or less, are enough to measure its brightness
SAMPLED_COLUMNS = 3  # voxels of at least one in so many columns are among them
DARK_QUANTILE = 0.25  # of voxels, that measures a frame's brightness: fewer of them are active
ROW_PARTS = 8  # of a row, by whose means its brightness is measured
WINDOW = 8  # frames before and after, whose median brightness is usual
FLASH_NOISE = 3.0  # deviations of a voxel's noise by which a flash differs from usual, at least,
FLASH_SCALE = 0.5  # and parts of the movie's own scale,
FLASH_MEDIAN = 15.0  # and times the median of such differences
SUDDEN = 0.5  # of a flash, at least, comes and goes from one frame to the next: activity fades
MAX_PERIOD = 12  # frames in which planes or channels may take turns
COARSE_SIZE = 4  # pixels a side, whose mean shows structure that is lost in the noise of single ones
MAX_DEVIATION = 10.0  # times the median by which voxels differ from their frame's median
MAX_DISTANCE = 0.9  # squared, between frames of one plane, over that between neighbouring frames


# ---- lost voxels, rows, columns and frames


@dataclass(frozen=True)
class Missing:
    """What is missing in a block of n frames (n, Y, X)."""

    voxels: int  # not finite, or alone beyond any scale
    lines: int  # rows, and columns at the edges, of one value, in frames that are not blank
    blank: Tensor  # (n,) bool: frames of one value
    flashes: Tensor  # (n, Y) bool: rows in which another light flashed, all of a frame or some of them


def without_missing(frames: np.ndarray, flashes: Tensor | None = None) -> tuple[Tensor, Missing]:
    """Replace by NaN what shows nothing of the scene in normalized frames (n, Y, X), and return what that was.

    The frames are overwritten. flashes (n, Y): rows to be taken for flashes; by default these are detected, which needs
    frames that are normalized by a scale from the same part of the movie.
    """
    values = torch.from_numpy(frames)
    # infinity is as little a value of a lost row as NaN is
    values.nan_to_num_(torch.nan, torch.nan, torch.nan)
    rows, columns, blank = dropped_rows(values), border_columns(values), blank_frames(values)
    rows[blank] = columns[blank] = False
    values[rows] = torch.nan
    values.mT[columns] = torch.nan
    values[blank] = torch.nan
    flashes = flashing_rows(values) if flashes is None else flashes
    values[flashes] = torch.nan
    for piece in values.split(max(1, PIECE_VOXELS // values[0].numel())):
        piece.masked_fill_(~(piece.abs() < MAX_INTENSITY), torch.nan)
    values.masked_fill_(outliers(values), torch.nan)
    hidden_rows = (rows | flashes | blank[:, None]).sum(1)  # (n,)
    in_lines = hidden_rows * values.shape[2] + columns.sum(1) * (values.shape[1] - hidden_rows)  # (n,) voxels
    voxels = int((values.isnan().sum((1, 2)) - in_lines).sum())
    return values, Missing(voxels, int(rows.sum() + columns.sum()), blank, flashes)


def dropped_rows(frames: Tensor, varied: Tensor | None = None) -> Tensor:
    """Return which rows of frames (T, Y, X) the microscope lost: bool (T, Y), True where all of a row is one value.

    Not a row that is constant in every frame (a border), nor one of a value that is the background's or comes by chance.
    varied (Y,): which rows are not constant in the whole movie, if the frames are too few of it to tell.
    """
    constant = frames.amax(-1) == frames.amin(-1)  # (T, Y)
    if not bool(constant.any()) or frames.shape[-1] < MIN_LINE_VOXELS:
        return torch.zeros_like(constant)
    varying = ~(constant | frames.isnan().all(-1))
    constant &= varying.any(0) if varied is None else varied
    others = frames.masked_fill(edge_columns(frames)[:, None], torch.nan)[varying]  # (N, X)
    others = others[others.isfinite()]
    for value in frames[..., 0][constant].unique():
        if not is_lost(value, others, frames.shape[-1]):
            constant &= frames[..., 0] != value
    return constant


def border_columns(frames: Tensor) -> Tensor:
    """Return which columns registration left empty where it moved frames (T, Y, X) to the side: bool (T, X)."""
    edges = edge_columns(frames)
    return edges & dropped_rows(frames.mT) if bool(edges.any()) else edges


def edge_columns(frames: Tensor) -> Tensor:
    """Return the columns of one value at the left and right edges of frames (T, Y, X), up to the first that varies.

    The mask is bool (T, X); a blank frame has none.
    """
    ends = frames[:, :, [0, -1]]
    if not bool((ends.amax(1) == ends.amin(1)).any()):
        return torch.zeros_like(frames[:, 0], dtype=torch.bool)
    constant = (frames.amax(1) == frames.amin(1)).int()
    from_left, from_right = constant.cummin(1).values, constant.flip(1).cummin(1).values.flip(1)
    return from_left != from_right  # they are equal in a blank frame


def blank_frames(frames: Tensor) -> Tensor:
    """Return which frames (T, Y, X) are one value throughout, that neither the background nor chance explains: (T,)."""
    flat, first_rows = frames.flatten(1), frames[:, 0]
    constant = first_rows.amax(1) == first_rows.amin(1)  # the first row rules out most frames
    if not bool(constant.any()) or flat.shape[1] < MIN_FRAME_VOXELS:
        return torch.zeros_like(constant)
    constant[constant.clone()] = flat[constant].amax(1) == flat[constant].amin(1)
    others = flat[~constant]
    for value in flat[constant, 0].unique():
        if not is_lost(value, others, flat.shape[1]):
            constant &= flat[:, 0] != value
    return constant


def is_lost(value: Tensor, others: Tensor, count: int) -> bool:
    """Return whether `count` neighbouring voxels of one value were lost, and are not dark.

    Where the background was subtracted or cut off, a row is 0 as long as its cells are silent. With a share p of
    voxels of that value among the others (N,), those of rows or frames that vary, X in a row have it by chance with
    probability p^X.
    """
    share = float((others == value).float().mean()) if len(others) else 0.0
    return share <= MAX_LOSS_SHARE and share**count <= MAX_CHANCE


def outliers(values: Tensor) -> Tensor:
    """Return which voxels are alone in space and time far beyond the range of normalized frames: bool (n, Y, X).

    An error of storage or a cosmic ray is, and a negative number that was written as an unsigned one; light spreads
    over neighbours, and lasts. Where there are many, they are no errors.
    """
    isolated = values.abs() > MIN_OUTLIER
    if not 0 < int(isolated.count_nonzero()) <= 1 + MAX_CANDIDATE_SHARE * values.numel():
        return torch.zeros_like(isolated)
    places = isolated.nonzero()
    limits = MAX_NEIGHBOUR * values[isolated].abs()  # (N,)
    for neighbour in beside(values, places):
        isolated[places.unbind(1)] &= ~(neighbour.abs() > limits)
    if int(isolated.sum()) > 1 + MAX_OUTLIER_SHARE * values.numel():
        return torch.zeros_like(isolated)
    return isolated


def beside(frames: Tensor, places: Tensor, reach: tuple[int, int, int] = (1, 1, 1)) -> Iterator[Tensor]:
    """Yield the values (N,) of each neighbour of places (N, 3) in frames (n, Y, X), NaN beyond the edges.

    reach: how far neighbours are away along (t, y, x), at most.
    """
    first, last = torch.zeros(3, dtype=torch.long), torch.tensor(frames.shape) - 1
    for step in torch.cartesian_prod(*(torch.arange(-steps, steps + 1) for steps in reach)):
        if bool(step.any()):
            neighbours = places + step
            inside = ((neighbours >= first) & (neighbours <= last)).all(1)
            yield frames[neighbours.clamp(first, last).unbind(1)].where(inside, torch.nan)


def rows_to_keep(blank: Tensor, flashes: Tensor) -> Tensor:
    """Return which rows (T, Y) of a movie come out as they were recorded: flashes (T, Y), and gaps too long to fill.

    All rows, if all frames are blank (T,).
    """
    kept = flashes | blank.all()
    for start, stop in runs(blank.numpy()):
        if stop - start > MAX_FILLED_GAP:
            kept[start:stop] = True
    return kept


def runs(mask: np.ndarray, longest: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of True in a bool array (N,), cut into runs no longer than `longest` if given.

    >>> list(runs(np.array([False, True, True, True, False, True]), 2))
    [(1, 3), (3, 4), (5, 6)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False].astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        step = longest or stop - start
        for begin in range(start, stop, step):
            yield begin, min(stop, begin + step)


# ---- flashes


def flashing_rows(frames: Tensor) -> Tensor:
    """Return which rows of frames (n, Y, X) are brighter or darker throughout than before and after: bool (n, Y).

    All rows of a frame, as where a stimulus lights up the field, or a stage flies back; or two or more that were
    scanned while a laser stimulated cells, and those beside, of which it may have reached a part.
    """
    samples = sampled_voxels(frames)
    flashes = torch.zeros(frames.shape[:2], dtype=torch.bool)
    if samples.shape[1] < MIN_FRAME_VOXELS:
        return flashes
    # the median step is 0.954 deviations of noise; up to half of the frames may be flashes or follow one
    steps = samples.diff(dim=0).abs().nanmedian(1).values
    noise = float(steps.nanquantile(0.25)) / 0.954 if len(steps) else 0.0
    level = samples.nanquantile(DARK_QUANTILE, 1)[:, None]  # (n, 1)
    flashes |= flashing(level, noise)
    if frames.shape[2] < MIN_FRAME_VOXELS:
        return flashes
    parts = F.adaptive_avg_pool2d(frames, (frames.shape[1], ROW_PARTS))
    # relative to their frame: in a weak flash of all of it some rows would stand out by chance
    row_level = (parts.nanquantile(DARK_QUANTILE, 2) - level).where(~flashes, torch.nan)
    rows = flashing(row_level, noise)
    pairs = F.pad(rows[:, 1:] & rows[:, :-1], (3, 3))
    return flashes | pairs.unfold(1, 4, 1).any(2)[:, 1:-1]


def flashing(level: Tensor, noise: float) -> Tensor:
    """Return where brightness (n, K) is far from that before and after, for at most WINDOW frames: bool (n, K).

    Not where it fades, as activity does, nor where more than a third of the frames are. noise: deviation of a voxel's.
    """
    windows = F.pad(level.T, (WINDOW, WINDOW), value=math.nan).unfold(1, 2 * WINDOW + 1, 1)  # (K, n, frames)
    difference = level - windows.nanmedian(2).values.T
    usual = difference.abs().nanmedian(0).values
    least = (FLASH_MEDIAN * usual).clamp(min=max(FLASH_NOISE * noise, FLASH_SCALE))
    far = difference.abs() > least  # never where it is NaN
    far &= far.float().mean(0) <= 1 / 3
    for k in far.any(0).nonzero()[:, 0].tolist():
        for start, stop in runs(far[:, k].numpy()):
            height = float(difference[start:stop, k].abs().max())
            if not is_sudden(level[:, k], height, start, stop):
                far[start:stop, k] = False
    return far


def is_sudden(level: Tensor, height: float, start: int, stop: int) -> bool:
    """Return whether brightness (n,) changes by SUDDEN * height or more at each end of frames [start, stop)."""
    ends = [(t, beside) for t, beside in ((start, start - 1), (stop - 1, stop)) if 0 <= beside < len(level)]
    return not any(float((level[t] - level[beside]).abs()) < SUDDEN * height for t, beside in ends)


def sampled_voxels(frames: Tensor) -> Tensor:
    """Return some voxels of each frame (n, Y, X), from at least one in SAMPLED_COLUMNS columns: (n, N)."""
    flat = frames.flatten(1)
    step = lattice_step(flat.shape[1] // SAMPLED_VOXELS | 1, frames.shape[2], SAMPLED_COLUMNS)
    return flat[:, ::step]


# ---- interleaved planes or channels


@dataclass(frozen=True)
class Interleaving:
    """How planes or channels take turns in a movie.

    period: frames from one of a plane to its next one; 0 where nothing takes turns. distance: mean squared difference
    of the planes' structure, which has variance 1 in each frame.
    """

    period: int = 0
    distance: float = 0.0


NOT_INTERLEAVED = Interleaving()


def find_interleaving(frames: Tensor) -> Interleaving:
    """Find how planes or channels take turns in frames (n, Y, X), NaN where missing.

    Light may flicker, so only the structure of frames is compared: in the mean and in the median over frames, since
    frames that are dark at intervals differ from their own neighbours alone.
    """
    images = coarse(frames)
    images = images - images.nanmedian(1, keepdim=True).values
    limit = MAX_DEVIATION * float(images.abs().nanmedian())  # of odd voxels
    images = images.clamp(-limit, limit)
    images = images / images.square().nanmean(1, keepdim=True).sqrt().clamp(min=torch.finfo().tiny)
    longest = min(MAX_PERIOD, len(images) // 4)
    if longest < 1 or images.shape[1] < MIN_FRAME_VOXELS:
        return NOT_INTERLEAVED
    squares = [(images[lag:] - images[:-lag]).square().nanmean(1) for lag in range(1, longest + 1)]
    distances = torch.stack([torch.stack([x.nanmean(), x.nanmedian()]) for x in squares])  # (lags, 2)
    alike = (distances < MAX_DISTANCE * distances[0]).all(1).nonzero().flatten().tolist()
    if not alike or bool((distances[alike[0]] > distances.amin(0) / MAX_DISTANCE).any()):
        return NOT_INTERLEAVED
    return Interleaving(alike[0] + 1, float((distances[0] - distances[alike[0]]).amin()))


def coarse(frames: Tensor) -> Tensor:
    """Return means of COARSE_SIZE x COARSE_SIZE pixels of frames (n, Y, X); of small frames all pixels: (n, N)."""
    size = COARSE_SIZE if frames.shape[1:].numel() >= MIN_FRAME_VOXELS * COARSE_SIZE**2 else 1
    shape = max(1, frames.shape[1] // size), max(1, frames.shape[2] // size)
    valid = frames.isfinite()
    share = F.adaptive_avg_pool2d(valid.to(frames), shape)
    return (F.adaptive_avg_pool2d(frames.where(valid, 0), shape) / share).flatten(1)
