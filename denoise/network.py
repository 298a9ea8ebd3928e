"""The network at work on one movie: chunks of frames in, what it predicts for them out, in order.

    residual (n, Y, X) -> tiles of the frame, mostly one -> MovieNet.stream -> blend -> (n, Y, X)

Each tile is a stream of its own. What its layers still need of earlier frames stays on the device (`model.Past`): no
frame is computed twice, and there are no seams in time. Frames that are too large for the memory are cut into tiles
that share OVERLAP pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from denoise.context import Context
from denoise.limits import free_memory
from denoise.precision import autocast, precision
from denoise.tiling import Span, tile_axis, tile_grid
from model import MovieNet, Past, UNet3D, Waiting, pad_to_grid

CHUNK_VOXELS = {
    "cpu": 1 << 20,
    "cuda": 1 << 25,
}  # computed at once where the memory allows: more is no faster
VOXEL_BYTES = 64  # of memory for each voxel that is computed at once, in half precision; measured
STATE_BYTES = 1300  # for each pixel, in half precision: what the layers keep of earlier frames
LONGEST_BLOCK = 64  # frames read at once; streams start on its multiples
OVERLAP = 16  # pixels that neighbouring tiles share: costs less than 0.001 dB
FOOTPRINT_VIEWS = 2  # four gain half as much again, for twice the time
HALF_SCALE = 1 / 32  # of what the network gets in float16, so that thousands of noise units do not overflow

Pair = tuple[Tensor, Tensor]  # residual and prediction of the same frames, (n, Y, X) each
Chunks = Callable[
    [int, int], Generator[Tensor, None, None]
]  # residual from a frame on, so many frames at a time


@dataclass(frozen=True)
class Geometry:
    """How a movie is cut for the network, and the type that it computes in."""

    chunk: int  # frames computed at once: the pooling grid times a power of two
    tile: int  # pixels along Y and X computed at once, a multiple of the pooling grid
    dtype: torch.dtype


class Narrowed(Exception):
    """This geometry does not do: the stream has to start again in another one."""


def fitting(model: UNet3D, size: tuple[int, int]) -> Geometry:
    """The fastest geometry in the memory that is free, for frames (Y, X). Raises MemoryError if none fits."""
    device = next(model.parameters()).device
    dtype = precision(device)
    state, voxel = (dtype.itemsize / 2 * there for there in (STATE_BYTES, VOXEL_BYTES))
    time, grid, _ = model.config.grid
    height, width = (-(-n // grid) * grid for n in size)
    free = free_memory(device) - state * height * width
    voxels = int(min(CHUNK_VOXELS[device.type], free / 2 / voxel))
    tile = max(height, width)
    while (needed := time * min(height, tile) * min(width, tile) * voxel) > free:
        tile = smaller_tile(tile, grid)
        if not tile:
            raise MemoryError(f"{size[0]} x {size[1]} pixels take {(needed - free) / 2**30:.3g} GB more")
    chunk = time
    while 2 * chunk * min(height, tile) * min(width, tile) <= voxels:
        chunk *= 2
    return Geometry(chunk, tile, dtype)


def smaller_tile(tile: int, grid: int) -> int:
    """The next tile to try, half of it and its overlap; 0 if there is none."""
    half = -(-(tile // 2 + OVERLAP) // grid) * grid
    return half if 4 * OVERLAP <= half < tile else 0


@dataclass
class Stream:
    """One tile: where it is, its network, and what that keeps."""

    where: tuple[slice, ...]  # (Y, X) of the frame
    share: Tensor  # (y, x) in the blended result
    movie_net: MovieNet
    features: list[Tensor]
    past: Past = field(default_factory=Past)


class Network:
    """The network with one movie's context in place."""

    def __init__(self, model: UNet3D, context: Context) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.notes: list[str] = []  # what had to be done otherwise than planned
        images, standard_error = (x[None].to(self.device) for x in (context.images, context.standard_error))
        self.guide = images[0, 0] * images[0, -1]  # (Y, X), the mean in units of the noise of one frame
        images = pad_to_grid(images, model.config.grid[1:], "replicate")
        self.features, static = model.encode(images)
        self.size = height, width = context.mean.shape[-2], context.mean.shape[-1]
        self.static = (static[..., :height, :width] * standard_error)[
            0
        ].cpu()  # (1, Y, X), in units of the noise
        self.geometry = fitting(model, self.size)

    def clean_courses(self, seen: Tensor) -> Tensor:
        """What the network makes of time courses (K, T) in noise of variance 1; in float32, strong as they are."""
        return seen + self.model.course(seen.to(self.device)).to(seen)

    def clean_footprints(self, seen: Sequence[Tensor], places: Sequence[Sequence[slice]]) -> list[Tensor]:
        """What the network makes of footprints (K, y, x) in noise of variance 1, of blocks at (Y, X) slices."""
        if not any(len(its) for its in seen):
            return list(seen)
        sides = [max(its.shape[axis] for its in seen) for axis in (1, 2)]
        guides = [self.guide[y, x].expand(its.shape) for its, (y, x) in zip(seen, places)]
        means, guide = (
            torch.cat([pad_to_grid(its[:, None].to(self.device), sides, "replicate") for its in images])
            for images in (seen, guides)
        )
        with autocast(self.device):
            error = self.model.error_of_means(means, guide, FOOTPRINT_VIEWS)[:, 0]
        errors = error.to(seen[0]).split([len(its) for its in seen])
        return [its + error[:, : its.shape[1], : its.shape[2]] for its, error in zip(seen, errors)]

    def streams(self) -> list[Stream]:
        """One for each tile, with nothing seen yet."""
        net = converted(self.model.movie, self.geometry.dtype)
        return [
            Stream(where, torch.from_numpy(weights).to(self.device), net, self.local(where))
            for where, weights in tile_grid(self.axes())
        ]

    @property
    def tiles(self) -> int:
        """Into how many each frame is cut."""
        return math.prod(map(len, self.axes()))

    def axes(self) -> list[list[Span]]:
        """Tiles along Y and X."""
        _, *grid = self.model.config.grid
        tile = self.geometry.tile
        return [tile_axis(n, tile, OVERLAP * (n > tile), g) for n, g in zip(self.size, grid)]

    def local(self, where: Sequence[slice]) -> list[Tensor]:
        """The features under a tile of the frame, as its stream takes them."""
        grid = self.model.config.grid[1:]
        padded = [slice(s.start, s.start - (s.start - s.stop) // g * g) for s, g in zip(where, grid)]
        scale = scale_of(self.geometry.dtype)
        return [
            (coarse(level, padded, 2 ** (i + 1)) * scale).to(self.geometry.dtype)
            for i, level in enumerate(self.features)
        ]

    def predict(self, chunks: Chunks, first: int, stop: int) -> Generator[Pair, None, None]:
        """Frames [first, stop) of a movie: residual and prediction (n, Y, X) of some frames after the other.

        chunks(start, frames) gives the movie's residual from a frame on, so many frames at a time, to its end.
        """
        while first < stop:
            try:
                for residual, prediction in self.stream(chunks, first, stop):
                    first += len(prediction)
                    yield residual, prediction
            except Narrowed as reason:
                self.notes.append(str(reason))

    def stream(self, chunks: Chunks, first: int, stop: int) -> Generator[Pair, None, None]:
        """As `predict`, in one geometry; the stream starts so early that the frames before make no difference."""
        step = max(self.geometry.chunk, LONGEST_BLOCK)
        start = max(0, first - self.model.config.reach[0]) // step * step
        streams = self.streams()
        waiting = Past()  # of residual frames for their predictions
        with closing(chunks(start, self.geometry.chunk)) as source:
            for chunk, ended in marked(source):
                residual = chunk.to(self.device, non_blocking=True)
                waiting.put(self.model, residual[None, None])
                for prediction in self.answers(streams, residual, ended):
                    ready = prediction[: stop - start]
                    asked = waiting.take(self.model, len(ready))[0, 0]
                    skipped = max(0, first - start)
                    start += len(ready)
                    if skipped < len(ready):
                        yield asked[skipped:], ready[skipped:]
                if start >= stop:
                    return

    def answers(self, streams: list[Stream], residual: Tensor, ended: bool) -> Iterator[Tensor]:
        """What is known after some more frames of the residual: predictions (n, Y, X).

        Where the GPU's memory does not suffice, in smaller and smaller parts.
        """
        while len(residual):
            part = residual[: self.geometry.chunk]
            before = [dict(stream.past.frames) for stream in streams]
            try:
                answer = self.answer(streams, part, ended and len(part) == len(residual))
            except torch.OutOfMemoryError as error:
                reason = str(error).split(".")[0]  # not the error itself: it would keep what was computed
            else:
                residual = residual[len(part) :]
                if answer is not None:
                    yield answer
                continue
            for stream, frames in zip(streams, before):
                stream.past.frames = frames
            self.narrow(len(part), reason)

    def narrow(self, frames: int, reason: str) -> None:
        """Half as many frames at once; where that is the least, tiles of half the size. Raises Narrowed."""
        time, grid, _ = self.model.config.grid
        if frames > time:
            self.geometry = replace(self.geometry, chunk=largest_chunk(frames, time))
            self.notes.append(f"{reason}: went on with {self.geometry.chunk} frames at once")
            return
        tile = smaller_tile(self.geometry.tile, grid)
        if not tile:
            raise MemoryError(reason)
        self.geometry = replace(self.geometry, tile=tile)
        raise Narrowed(f"{reason}: went on in tiles of {tile} pixels")

    def answer(self, streams: list[Stream], residual: Tensor, ended: bool) -> Tensor | None:
        """The next prediction (n, Y, X), blended in float32, or None. Raises Narrowed where float16 overflows."""
        blended: Tensor | None = None
        for stream in streams:
            one = self.one_answer(stream, residual[(slice(None), *stream.where)], ended)
            if one is None:  # so it is of all: they lag by as many frames
                continue
            if blended is None:
                blended = one.new_zeros(len(one), *residual.shape[1:])
            blended[(slice(None), *stream.where)] += one * stream.share
        if blended is None:
            return None
        if self.geometry.dtype == torch.float16 and not blended.isfinite().all():
            self.geometry = replace(self.geometry, dtype=torch.float32)
            raise Narrowed("intensities too large for float16: went on in float32")
        return blended

    def one_answer(self, stream: Stream, residual: Tensor, ended: bool) -> Tensor | None:
        """The next prediction (n, y, x) of one stream, float32; None while more frames must come first."""
        height, width = residual.shape[1:]
        scale = scale_of(self.geometry.dtype)
        padded = pad_to_grid(residual[None, None], self.model.config.grid, "constant")
        tile = (padded * scale).to(self.geometry.dtype)
        try:
            answer = stream.movie_net.stream(tile, stream.features, stream.past, ended)
        except Waiting:
            return None
        return answer.float()[0, 0, :, :height, :width] / scale


def marked(items: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each item, and whether it is the last one."""
    iterator = iter(items)
    item = next(iterator)
    for following in iterator:
        yield item, False
        item = following
    yield item, True


def largest_chunk(frames: int, grid: int) -> int:
    """The largest geometry's chunk that is smaller than so many frames."""
    chunk = grid
    while 2 * chunk < frames:
        chunk *= 2
    return chunk


def converted(movie_net: MovieNet, dtype: torch.dtype) -> MovieNet:
    """A copy of the network in another type."""
    return copy.deepcopy(movie_net).to(dtype)


def scale_of(dtype: torch.dtype) -> float:
    """The network has no biases: scaled input and features give a scaled answer."""
    return HALF_SCALE if dtype == torch.float16 else 1.0


def coarse(level: Tensor, where: Sequence[slice], stride: int) -> Tensor:
    """The region of a feature map (1, C, Y / stride, X / stride) under (Y, X) slices that lie on the grid."""
    y, x = (slice(s.start // stride, s.stop // stride) for s in where)
    return level[..., y, x]
