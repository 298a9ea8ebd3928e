"""A movie in, its denoised frames out, in order: the way of one movie from lazy reading to the writer.

One pass over the file finds the percentiles and the whole-movie context; a second one goes straight on:

    read -> normalize -> whiten -> | network | -> slabs -> restore -> denormalize -> write

The bars are borders between threads (`denoise.ahead`), so that reading, computing and writing overlap. Memory does not
grow with the length of the movie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.adaptation import Adaptation, adapt
from denoise.ahead import ahead
from denoise.context import Context, ContextSums, dropped_rows
from denoise.limits import free_memory
from denoise.network import LONGEST_BLOCK, Network, Pair
from denoise.normalization import PercentileNormalization, Percentiles
from model import UNet3D

BLOCK_VOXELS = 1 << 23  # read at once
PIECE_VOXELS = 1 << 20  # of elementwise work at once: stays in the processor's cache
SHORTEST_BLOCK = 16  # frames: in fewer a dropped row cannot be told from a dark one
SLAB_VOXELS = 1 << 27  # of one slab of frames; float32, twice
SLAB_SHARE = 4  # the part of the free memory that a slab may take: one in so many
LONGEST_SLAB = 512  # frames
ABSURD = 1e15  # times the movie's own scale: damage, no intensity; its square would not fit into float32
FAR = 1e3  # times the movie's own scale, from which a voxel is looked at
SATURATED = 1e-3  # share of voxels from which it is told
RARE = 1e-4  # of the voxels at most are errors


class HasShape(Protocol):
    """What is asked of a movie's info: (T, Y, X) and the dtype of its voxels."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype: ...


class Readable(Protocol):
    """What is asked of a movie: its info, and frames [start, stop) on demand; see denoise.movies.Movie."""

    @property
    def info(self) -> HasShape: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a user may choose about the denoising itself."""

    percentiles: tuple[float, float] = (3.0, 97.0)
    adapt_minutes: float = 0.0  # at most, for adapting the network to each movie
    ensemble: bool = False  # the mean over sixteen mirrored and turned views, for sixteen times the work


@dataclass
class Result:
    """What was found and done, for the metadata; plain values."""

    percentiles: tuple[float, float]  # the values found, in the input's units
    tiles: int
    noise: dict[str, float]  # gain and read_variance in the input's units
    warnings: list[str] = field(default_factory=list)
    adaptation: dict[str, object] | None = None  # see denoise.adaptation.Adaptation; None if there was none
    model: UNet3D | None = None  # that denoised the movie: the adapted one, where that was kept


@dataclass
class Survey:
    """What the first pass learned."""

    normalization: PercentileNormalization
    context: Context  # in normalized units
    not_finite: int
    dropped: int  # rows
    saturated: float  # share of the voxels


def denoise_movie(
    movie: Readable,
    model: UNet3D,
    settings: Settings,
    write: Callable[[np.ndarray], None],
    progress: Progress,
) -> Result:
    """Denoise a movie (T, Y, X): `write` gets frames (n, Y, X) of result_type in the input's units, in order.

    `progress(stage, done, frames)` is told how far the stages "reading" and "denoising" are.
    """
    with torch.inference_mode():
        survey = survey_movie(movie, settings.percentiles, progress)
    model, adaptation = adapted(movie, model, survey, settings.adapt_minutes, progress)
    frames = movie.info.shape[0]
    with torch.inference_mode():
        bounds = slab_bounds(movie.info.shape, free_memory(device_of(model)))
        network = Network(model, survey.context, settings.ensemble)
        progress("denoising", 0, frames)
        pairs: Generator[Pair, None, None] = ahead(
            network.predict(lambda *where: residuals(movie, survey, *where), 0, frames)
        )
        with closing(pairs):
            passing = telling(pairs, lambda done: progress("denoising", done, frames))
            for _residual, prediction in slabs(passing, bounds):
                for part in pieces(prediction):
                    restored = survey.context.restore(part.cpu() + network.static)
                    write(survey.normalization.denormalize(restored.numpy(), result_type(movie.info.dtype)))
    told = asdict(adaptation) | {"kept": adaptation.kept} if adaptation else None
    return replace(result_of(survey, network), adaptation=told, model=model)


def result_type(dtype: np.dtype) -> np.dtype:
    """Of the frames that come out: float32, or float64 for integers that float32 does not hold.

    >>> result_type(np.dtype("uint16")), result_type(np.dtype("int32"))
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float64 if dtype.kind in "iu" and dtype.itemsize >= 4 else np.float32)


def adapted(
    movie: Readable, model: UNet3D, survey: Survey, minutes: float, progress: Progress
) -> tuple[UNet3D, Adaptation | None]:
    """The network for this movie: after so many minutes of learning from an excerpt of it, if that made it better."""
    if not minutes:
        return model, None
    frames, height, width = movie.info.shape
    length = min(frames, LONGEST_SLAB, max(64, SLAB_VOXELS // (2 * height * width)))
    start = (frames - length) // 2
    excerpt, _ = without_missing(survey.normalization.normalize(movie.read(start, start + length)))
    return adapt(
        excerpt, model, 60 * minutes, lambda share: progress("adapting", round(share * frames), frames)
    )


def survey_movie(movie: Readable, percentiles: tuple[float, float], progress: Progress) -> Survey:
    """First pass: percentiles, context, and what is missing. Every frame is read once."""
    frames, height, width = movie.info.shape
    found = Percentiles(movie.info.dtype, frames * height * width)
    sums: ContextSums | None = None
    provisional = PercentileNormalization(0.0, 1.0)
    not_finite = dropped = 0
    done = 0
    with closing(ahead(blocks(movie))) as read:
        for block in read:
            found.update(block)
            if sums is None:  # exact percentiles are known at the end only: the first block's centre the sums
                first = Percentiles(block.dtype, block.size)
                first.update(block)
                provisional = first.result(percentiles)
            values, lost = without_missing(provisional.normalize(block))
            not_finite += int(values.isnan().sum()) - lost * block.shape[2]
            dropped += lost
            sums = sums or ContextSums(torch.nan_to_num(values.nanmean(0)))
            for piece in pieces(values):
                sums.update(piece)
            done += len(block)
            progress("reading", done, frames)
    if sums is None:
        raise ValueError("a movie must have at least one frame")
    normalization = found.result(percentiles)
    context = sums.context().rescaled(
        provisional.scale / normalization.scale, (provisional.low - normalization.low) / normalization.scale
    )
    return Survey(normalization, context, not_finite, dropped, found.saturated())


def blocks(movie: Readable, start: int = 0) -> Generator[np.ndarray, None, None]:
    """The frames of a movie in order from frame `start` on, some (n, Y, X) at a time: a power of two."""
    frames, height, width = movie.info.shape
    step = LONGEST_BLOCK
    while step > SHORTEST_BLOCK and step * height * width > BLOCK_VOXELS:
        step //= 2
    for first in range(start, frames, step):
        yield movie.read(first, min(frames, first + step))


def pieces(frames: Tensor) -> tuple[Tensor, ...]:
    """Frames (T, Y, X) in parts (n, Y, X) that stay in the processor's cache."""
    return frames.split(max(1, PIECE_VOXELS // (frames.shape[1] * frames.shape[2])))


def without_missing(frames: np.ndarray) -> tuple[Tensor, int]:
    """Normalized frames (n, Y, X) with NaN where nothing was recorded, and the number of dropped rows."""
    values = torch.from_numpy(frames)
    rows = dropped_rows(values)
    values[rows] = torch.nan
    for piece in pieces(values):
        piece.masked_fill_(~(piece.abs() < ABSURD), torch.nan)
    for place in lone_voxels(values):
        values[place] = torch.nan
    return values, int(rows.sum())


def lone_voxels(values: Tensor) -> list[tuple[int, ...]]:
    """Places (t, y, x) of voxels far beyond the range of normalized frames (n, Y, X), alone in space and time.

    An error of storage or a cosmic ray is; light spreads over neighbours, and lasts. Where there are many, they are no
    errors.
    """
    far = (values.abs() > FAR).nonzero().tolist()
    return (
        [tuple(place) for place in far if is_lone(values, place)]
        if len(far) <= 1 + RARE * values.numel()
        else []
    )


def is_lone(values: Tensor, place: Sequence[int]) -> bool:
    """Whether no neighbour of a voxel has a hundredth of its value."""
    around = values[tuple(slice(max(0, n - 1), n + 2) for n in place)].abs()
    return int((around > 0.01 * values[tuple(place)].abs()).sum()) == 1


def residuals(movie: Readable, survey: Survey, start: int, size: int) -> Generator[Tensor, None, None]:
    """The residual from a frame on, in units of the noise, `size` frames (n, Y, X) at a time; read ahead.

    Start and size are powers of two, or multiples of LONGEST_BLOCK.
    """
    held: list[Tensor] = []
    with closing(ahead(whitened(movie, survey, start))) as parts:
        for part in parts:
            for chunk in part.split(size):
                held.append(chunk)
                if sum(map(len, held)) >= size:
                    yield torch.cat(held)
                    held = []
    if held:
        yield torch.cat(held)


def whitened(movie: Readable, survey: Survey, start: int) -> Generator[Tensor, None, None]:
    """The residual of a movie's blocks of frames, (n, Y, X)."""
    for block in blocks(movie, start):
        values, _ = without_missing(survey.normalization.normalize(block))
        yield torch.cat([survey.context.whiten(piece) for piece in pieces(values)])


def telling(items: Iterable[Pair], tell: Callable[[int], None]) -> Iterator[Pair]:
    """The same items; tells how many frames have passed."""
    done = 0
    for item in items:
        done += len(item[0])
        tell(done)
        yield item


def slabs(parts: Iterable[Pair], bounds: Sequence[int]) -> Iterator[Pair]:
    """Residual and prediction (n, Y, X) put together in slabs between frame numbers: [0, 512, ...]."""
    lengths = pairwise(bounds)
    residual = prediction = torch.zeros(0)
    filled = 0
    for part in parts:
        taken = 0
        while taken < len(part[0]):
            if filled == len(residual):
                first, stop = next(lengths)
                residual, prediction = (x.new_empty(stop - first, *x.shape[1:]) for x in part)
                filled = 0
            count = min(len(residual) - filled, len(part[0]) - taken)
            for slab, frames in zip((residual, prediction), part):
                slab[filled : filled + count] = frames[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == len(residual):
                yield residual, prediction


def slab_bounds(shape: tuple[int, int, int], free: float) -> list[int]:
    """Frame numbers between slabs of about equal length, for a movie (T, Y, X) and so many bytes of memory."""
    frames, height, width = shape
    longest = int(min(SLAB_VOXELS, free / SLAB_SHARE / 8) / (height * width))
    count = math.ceil(frames / max(1, min(LONGEST_SLAB, longest)))
    return [frames * number // count for number in range(count + 1)]


def device_of(model: UNet3D) -> torch.device:
    return next(model.parameters()).device


def result_of(survey: Survey, network: Network) -> Result:
    """Figures in the input's units, and a warning for everything that was missing."""
    n = survey.normalization
    gain, read_variance = (
        float(survey.context.gain) * n.scale,
        float(survey.context.read_variance) * n.scale**2,
    )
    warnings = list(network.notes)
    if n.coincide:
        warnings.append(f"the percentiles coincide, at {n.low:.5g}: most voxels have this one value")
    if survey.saturated > SATURATED:
        warnings.append(f"{survey.saturated:.2%} of the voxels have the largest value of their type: cut off")
    if survey.not_finite:
        warnings.append(
            f"{survey.not_finite} voxels were NaN, infinite or alone beyond any scale; "
            "they were filled from their neighbours"
        )
    if survey.dropped:
        warnings.append(
            f"{survey.dropped} rows hold one single value in some frames (dropped by the microscope, or a border that "
            "registration left); they were filled"
        )
    noise = {"gain": gain, "read_variance": read_variance - gain * n.low}
    return Result((n.low, n.low + n.scale), network.tiles, noise, warnings)
