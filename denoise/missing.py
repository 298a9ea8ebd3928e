"""What is no picture of the one scene: voxels, rows and frames that were lost, frames in which another light flashed.

It is hidden from all that looks at a movie, and filled by what the network predicts. But of flashes and of longer gaps
there is nothing to predict: such frames come out as they were recorded.
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
ABSURD = 1e15  # times the movie's own scale: damage, no intensity; its square would not fit into float32
FAR = 15.0  # times the movie's own scale, from which a voxel is looked at
LONE = 0.1  # of its value, above which no neighbour of an error is
RARE = 1e-4  # of the voxels at most are errors
MANY = 1e-2  # of the voxels so far away, and what counts as far is no measure of this movie
CERTAIN_DROP = 1e-6  # a row or frame of one value that is less probable than this by chance was lost
COMMON = 0.05  # share of a value among the voxels of rows that vary, from which it is the background's
FEWEST_VOXELS = 64  # of a frame, in fewer nothing tells that it was lost, a flash, or another plane
SHORTEST = 8  # voxels of a row or column, of which one value tells that it was lost
FILLED = 8  # frames of one value in a row are filled; longer gaps are no errors
LOOKED_AT = 4096  # voxels of a frame, more or less, tell how bright it is
EVERY = 3  # of its columns one at least is looked at
DARK = 0.25  # their quantile that tells it: cells are active in fewer
PARTS = 8  # of a row, whose means tell how bright it is
AROUND = 8  # frames before and after that tell what is usual
FLASH = 3.0  # deviations of a voxel's noise by which a flash is brighter or darker than usual, at least
STRONG = 0.5  # and times the movie's own scale
UNUSUAL = 15.0  # and times the median of what frames are off by
LONGEST_PERIOD = 12  # frames in which planes or channels may take turns
COARSE = 4  # pixels a side, whose mean tells of structure where single ones are lost in noise
FARTHEST = 10.0  # times the median by which voxels differ from their frame's median
ALIKE = 0.9  # times what neighbours differ by, squared, do frames of one of them differ by
SUDDEN = 0.5  # of it comes and goes from one frame to the next: activity fades


@dataclass(frozen=True)
class Missing:
    """What was found in a block of n frames."""

    voxels: int  # not finite, or alone beyond any scale
    rows: int  # and columns at the edges, of one value, in frames that are not blank
    blank: Tensor  # (n,) bool: frames of one value
    flashes: Tensor  # (n, Y) bool: rows in which another light flashed, of a whole frame or some of them


def without_missing(frames: np.ndarray, flashes: Tensor | None = None) -> tuple[Tensor, Missing]:
    """Normalized frames (n, Y, X) with NaN in place of what is no picture, and what that was. They are overwritten.

    flashes (n, Y): those found before, where the movie's scale was taken for another; else they are looked for.
    """
    values = torch.from_numpy(frames)
    values.nan_to_num_(
        torch.nan, torch.nan, torch.nan
    )  # infinity is as little a value of a lost row as NaN is
    rows, columns, blank = dropped_rows(values), border_columns(values), blank_frames(values)
    rows[blank] = columns[blank] = False
    values[rows] = torch.nan
    values.mT[columns] = torch.nan
    values[blank] = torch.nan
    flashes = flashing_rows(values) if flashes is None else flashes
    values[flashes] = torch.nan
    for piece in values.split(max(1, PIECE_VOXELS // values[0].numel())):
        piece.masked_fill_(~(piece.abs() < ABSURD), torch.nan)
    values.masked_fill_(lone_voxels(values), torch.nan)
    hidden = (rows | flashes | blank[:, None]).sum(1)  # rows of each frame
    lost = hidden * values.shape[2] + columns.sum(1) * (values.shape[1] - hidden)  # voxels
    voxels = int((values.isnan().sum((1, 2)) - lost).sum())
    return values, Missing(voxels, int(rows.sum() + columns.sum()), blank, flashes)


def dropped_rows(frames: Tensor, varied: Tensor | None = None) -> Tensor:
    """Rows that the microscope lost: (T, Y, X) -> bool (T, Y), True where a whole row of a frame is one value.

    Not a row that is constant in every frame (a border), nor one of a value that is the background's or comes by chance.
    varied (Y,): which rows are not constant in the movie, where the frames are too few of it to tell.
    """
    constant = frames.amax(-1) == frames.amin(-1)  # (T, Y)
    if not bool(constant.any()) or frames.shape[-1] < SHORTEST:
        return torch.zeros_like(constant)
    vary = ~(constant | frames.isnan().all(-1))
    constant &= vary.any(0) if varied is None else varied
    others = frames.masked_fill(edge_columns(frames)[:, None], torch.nan)[vary]  # (N, X)
    others = others[others.isfinite()]
    for value in frames[..., 0][constant].unique():
        if not is_loss(value, others, frames.shape[-1]):
            constant &= frames[..., 0] != value
    return constant


def border_columns(frames: Tensor) -> Tensor:
    """Columns that registration left empty where it moved a frame (T, Y, X) to the side: bool (T, X)."""
    found = edge_columns(frames)
    return found & dropped_rows(frames.mT) if bool(found.any()) else found


def edge_columns(frames: Tensor) -> Tensor:
    """Columns of one value, from the left or right edge of a frame (T, Y, X) to the first that varies: bool (T, X)."""
    ends = frames[:, :, [0, -1]]
    if not bool((ends.amax(1) == ends.amin(1)).any()):
        return torch.zeros_like(frames[:, 0], dtype=torch.bool)
    constant = (frames.amax(1) == frames.amin(1)).int()
    from_left, from_right = constant.cummin(1).values, constant.flip(1).cummin(1).values.flip(1)
    return from_left != from_right  # all of them in a blank frame


def blank_frames(frames: Tensor) -> Tensor:
    """Frames (T, Y, X) that are one value throughout, of which neither the background nor chance is the reason: (T,)."""
    flat, first = frames.flatten(1), frames[:, 0]
    constant = first.amax(1) == first.amin(1)  # its first row, to begin with
    if not bool(constant.any()) or flat.shape[1] < FEWEST_VOXELS:
        return torch.zeros_like(constant)
    constant[constant.clone()] = flat[constant].amax(1) == flat[constant].amin(1)
    others = flat[~constant]
    for value in flat[constant, 0].unique():
        if not is_loss(value, others, flat.shape[1]):
            constant &= flat[:, 0] != value
    return constant


def is_loss(value: Tensor, others: Tensor, count: int) -> bool:
    """Whether so many neighbouring voxels of a value were lost, and not dark, by the others of their kind, which vary.

    Where the background was subtracted or cut off, a row is 0 as long as its cells are silent. With a share p of the
    others' voxels at that value, a row of X such voxels comes by chance with probability p^X.
    """
    share = float((others == value).float().mean()) if len(others) else 0.0
    return share <= COMMON and share**count <= CERTAIN_DROP


def flashing_rows(frames: Tensor) -> Tensor:
    """Rows of frames (n, Y, X) in which all is brighter or darker than before and after: bool (n, Y).

    All rows of a frame, as where a stimulus lights up the field, or a stage flies back; or two and more that were
    scanned while a laser stimulated cells, with those beside, of which it may have reached a part.
    """
    some = looked_at(frames)
    found = torch.zeros(frames.shape[:2], dtype=torch.bool)
    if some.shape[1] < FEWEST_VOXELS:
        return found
    # 0.954 deviations of noise; up to half of them may be to and from flashes
    steps = some.diff(dim=0).abs().nanmedian(1).values
    noise = float(steps.nanquantile(0.25)) / 0.954 if len(steps) else 0.0
    level = some.nanquantile(DARK, 1)[:, None]  # of each frame
    found |= flashing(level, noise)
    if frames.shape[2] < FEWEST_VOXELS:
        return found
    parts = F.adaptive_avg_pool2d(frames, (frames.shape[1], PARTS))
    # against the frame's own: of a weak flash of all of it some rows would seem to be brighter by chance
    rows = flashing((parts.nanquantile(DARK, 2) - level).where(~found, torch.nan), noise)
    pairs = F.pad(rows[:, 1:] & rows[:, :-1], (3, 3))
    return found | pairs.unfold(1, 4, 1).any(2)[:, 1:-1]


def flashing(level: Tensor, noise: float) -> Tensor:
    """Where brightness (n, K) is far from that before and after, for at most AROUND frames in a row: bool (n, K).

    Not where it fades, as activity does, nor where that happens in every other frame. noise: deviation of a voxel's.
    """
    around = F.pad(level.T, (AROUND, AROUND), value=math.nan).unfold(1, 2 * AROUND + 1, 1)  # (K, n, frames)
    away = level - around.nanmedian(2).values.T
    least = (UNUSUAL * away.abs().nanmedian(0).values).clamp(min=max(FLASH * noise, STRONG))
    far = away.abs() > least  # never where nothing is known
    far &= far.float().mean(0) <= 1 / 3
    for which in far.any(0).nonzero()[:, 0].tolist():
        its, brightness, aside = far[:, which], level[:, which], away[:, which]
        for start, stop in runs(its.numpy()):
            sides = [(t, t + step) for t, step in ((start, -1), (stop - 1, 1)) if 0 <= t + step < len(level)]
            most = float(aside[start:stop].abs().max())
            if any(float((brightness[t] - brightness[beside]).abs()) < SUDDEN * most for t, beside in sides):
                its[start:stop] = False
    return far


def looked_at(frames: Tensor) -> Tensor:
    """Some voxels of each frame (n, Y, X), in one of EVERY columns at least: (n, N)."""
    flat = frames.flatten(1)
    return flat[:, :: lattice_step(flat.shape[1] // LOOKED_AT | 1, frames.shape[2], EVERY)]


@dataclass(frozen=True)
class Turns:
    """After how many frames the next of the same kind comes where planes or channels take turns; 0 where they do not.

    apart: mean squared difference of their structure, which has variance 1 in each frame.
    """

    period: int = 0
    apart: float = 0.0


NO_TURNS = Turns()


def turns_of(frames: Tensor) -> Turns:
    """Of frames (n, Y, X).

    Their light may flicker: what is compared is their structure, in the mean and in the median over frames: one that is
    dark at intervals differs from its own neighbours alone.
    """
    some = coarse(frames)
    some = some - some.nanmedian(1, keepdim=True).values
    most = FARTHEST * float(some.abs().nanmedian())  # odd voxels do not count for more
    some = some.clamp(-most, most)
    some = some / some.square().nanmean(1, keepdim=True).sqrt().clamp(min=torch.finfo().tiny)
    longest = min(LONGEST_PERIOD, len(some) // 4)
    steps = [some[lag:] - some[:-lag] for lag in range(1, longest + 1)]
    if not steps or some.shape[1] < FEWEST_VOXELS:
        return NO_TURNS
    squares = [its.square().nanmean(1) for its in steps]
    apart = torch.stack([torch.stack([its.nanmean(), its.nanmedian()]) for its in squares])  # (lags, 2)
    found = (apart < ALIKE * apart[0]).all(1).nonzero().flatten().tolist()
    if not found or bool((apart[found[0]] > apart.amin(0) / ALIKE).any()):
        return NO_TURNS
    return Turns(found[0] + 1, float((apart[0] - apart[found[0]]).amin()))


def coarse(frames: Tensor) -> Tensor:
    """Means of COARSE x COARSE pixels of frames (n, Y, X), or of single ones where those would be few: (n, N)."""
    size = COARSE if frames.shape[1:].numel() >= FEWEST_VOXELS * COARSE**2 else 1
    cells = max(1, frames.shape[1] // size), max(1, frames.shape[2] // size)
    seen = frames.isfinite()
    known = F.adaptive_avg_pool2d(seen.to(frames), cells)
    return (F.adaptive_avg_pool2d(frames.where(seen, 0), cells) / known).flatten(1)


def runs(wanted: np.ndarray, longest: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of True in a bool array, none longer than `longest` if told.

    >>> list(runs(np.array([False, True, True, True, False, True]), 2))
    [(1, 3), (3, 4), (5, 6)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, wanted, False].astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        step = longest or stop - start
        for begin in range(start, stop, step):
            yield begin, min(stop, begin + step)


def as_recorded(blank: Tensor, flashes: Tensor) -> Tensor:
    """Which rows (T, Y) of a movie come out as they were recorded: flashes (T, Y), and longer gaps.

    All of them, if all frames are blank (T,).
    """
    kept = flashes | blank.all()
    for start, stop in runs(blank.numpy()):
        if stop - start > FILLED:
            kept[start:stop] = True
    return kept


def lone_voxels(values: Tensor) -> Tensor:
    """Where voxels are far beyond the range of normalized frames (n, Y, X), alone in space and time: bool (n, Y, X).

    An error of storage or a cosmic ray is, and a negative number that was written as an unsigned one; light spreads
    over neighbours, and lasts. Where there are many, they are no errors.
    """
    found = values.abs() > FAR
    if not 0 < int(found.count_nonzero()) <= 1 + MANY * values.numel():
        return torch.zeros_like(found)
    places = found.nonzero()  # (N, 3)
    sizes = torch.tensor(values.shape)
    least = LONE * values[found].abs()  # (N,)
    for step in torch.cartesian_prod(*[torch.arange(-1, 2)] * 3):
        beside = (places + step).clamp(min=torch.zeros(3, dtype=torch.long), max=sizes - 1)
        apart = (beside != places).any(1)
        found[places.unbind(1)] &= ~(apart & (values[beside.unbind(1)].abs() > least))
    if int(found.sum()) > 1 + RARE * values.numel():
        return torch.zeros_like(found)
    return found
