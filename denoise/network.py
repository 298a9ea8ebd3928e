"""Run the network on one movie: chunks of frames come in, predictions for them go out, in order.

    residual (n, Y, X) -> tiles of the frame, mostly one -> MovieNet.stream -> blend -> (n, Y, X)

Each tile is a stream of its own. The earlier frames that its layers still need stay on the device
(`model.StreamState`): no frame is computed twice, and there are no seams in time. Frames that are too large for the
memory are cut into tiles that overlap by OVERLAP pixels.
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
from model import MovieNet, NeedsMoreFrames, StreamState, UNet3D, pad_to_grid

# voxels computed at once where the memory allows: more is no faster
CHUNK_VOXELS = {"cpu": 1 << 20, "cuda": 1 << 25}
VOXEL_BYTES = 64  # of memory for each voxel that is computed at once, in half precision; measured
STATE_BYTES = 1300  # of memory for each pixel, in half precision: earlier frames that the layers keep
LONGEST_BLOCK = 64  # frames read at once; streams start on its multiples
OVERLAP = 16  # pixels that neighbouring tiles share: costs less than 0.001 dB
FOOTPRINT_VIEWS = 2  # views averaged for footprints; four gain half as much again, for twice the time
HALF_SCALE = 1 / 32  # factor of the input in float16, so that thousands of noise units do not overflow

Pair = tuple[Tensor, Tensor]  # residual and prediction of the same frames, (n, Y, X) each
# (first frame, frames at a time) -> the movie's residual from that frame to its end, in chunks (n, Y, X)
Chunks = Callable[[int, int], Generator[Tensor, None, None]]


@dataclass(frozen=True)
class Geometry:
    """How a movie is cut for the network, and the type that it computes in."""

    chunk: int  # frames computed at once: the pooling grid times a power of two
    tile: int  # pixels along Y and X computed at once, a multiple of the pooling grid
    dtype: torch.dtype


class GeometryChanged(Exception):
    """The geometry did not work and was replaced: the stream has to start again with the new one."""


def choose_geometry(model: UNet3D, size: tuple[int, int]) -> Geometry:
    """Return the fastest geometry for frames of this size (Y, X) in the free memory. Raises MemoryError if none fits."""
    device = next(model.parameters()).device
    dtype = precision(device)
    state, voxel = (dtype.itemsize / 2 * half for half in (STATE_BYTES, VOXEL_BYTES))
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
    """Return the next smaller tile to try: half of this one and its overlap; 0 if there is none."""
    half = -(-(tile // 2 + OVERLAP) // grid) * grid
    return half if 4 * OVERLAP <= half < tile else 0


@dataclass
class Stream:
    """One tile of the frame, with its network and the state of that network."""

    where: tuple[slice, ...]  # (Y, X) of the frame
    weights: Tensor  # (y, x) for blending with other tiles
    movie_net: MovieNet
    features: list[Tensor]  # of the context under the tile, see `Network.crop_features`
    state: StreamState = field(default_factory=StreamState)


class Network:
    """The network, prepared for one movie by its context.

    static (1, Y, X): its correction of the temporal mean, in units of the noise. notes: changes of the geometry, in
    words for the user.
    """

    def __init__(self, model: UNet3D, context: Context) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.notes: list[str] = []
        images, standard_error = (x[None].to(self.device) for x in (context.images, context.standard_error))
        self.guide = images[0, 0] * images[0, -1]  # (Y, X), the mean in units of the noise of one frame
        images = pad_to_grid(images, model.config.grid[1:], "replicate")
        self.features, static = model.encode(images)
        self.size = height, width = context.mean.shape[-2], context.mean.shape[-1]
        self.static = (static[..., :height, :width] * standard_error)[0].cpu()
        self.geometry = choose_geometry(model, self.size)

    def clean_courses(self, courses: Tensor) -> Tensor:
        """Return time courses (K, T) in noise of variance 1 without it; in float32, since they may be strong."""
        return courses + self.model.course(courses.to(self.device)).to(courses)

    def clean_footprints(
        self, footprints: Sequence[Tensor], places: Sequence[Sequence[slice]]
    ) -> list[Tensor]:
        """Return footprints (K, y, x) in noise of variance 1 without it, for each of the blocks at (Y, X) slices."""
        if not any(len(block) for block in footprints):
            return list(footprints)
        sides = [max(block.shape[axis] for block in footprints) for axis in (1, 2)]
        guides = [self.guide[y, x].expand(block.shape) for block, (y, x) in zip(footprints, places)]
        means, guide = (
            torch.cat([pad_to_grid(block[:, None].to(self.device), sides, "replicate") for block in blocks])
            for blocks in (footprints, guides)
        )
        with autocast(self.device):
            corrections = self.model.error_of_means(means, guide, FOOTPRINT_VIEWS)[:, 0]
        parts = corrections.to(footprints[0]).split([len(block) for block in footprints])
        return [block + part[:, : block.shape[1], : block.shape[2]] for block, part in zip(footprints, parts)]

    def streams(self) -> list[Stream]:
        """Return a new stream for each tile."""
        net = converted(self.model.movie, self.geometry.dtype)
        return [
            Stream(where, torch.from_numpy(weights).to(self.device), net, self.crop_features(where))
            for where, weights in tile_grid(self.axes())
        ]

    @property
    def tiles(self) -> int:
        """Number of tiles of each frame."""
        return math.prod(map(len, self.axes()))

    def axes(self) -> list[list[Span]]:
        """Return the spans of the tiles along Y and X."""
        _, *grid = self.model.config.grid
        tile = self.geometry.tile
        return [tile_axis(n, tile, OVERLAP * (n > tile), g) for n, g in zip(self.size, grid)]

    def crop_features(self, where: Sequence[slice]) -> list[Tensor]:
        """Return the context's features under a tile at (Y, X) slices, level by level, scaled for its type."""
        grid = self.model.config.grid[1:]
        padded = [slice(s.start, s.start - (s.start - s.stop) // g * g) for s, g in zip(where, grid)]
        scale = input_scale(self.geometry.dtype)
        features = []
        for i, level in enumerate(self.features):
            stride = 2 ** (i + 1)
            y, x = (slice(s.start // stride, s.stop // stride) for s in padded)
            features.append((level[..., y, x] * scale).to(self.geometry.dtype))
        return features

    def predict(self, chunks: Chunks, first: int, stop: int) -> Generator[Pair, None, None]:
        """Predict frames [first, stop) of a movie: yields residual and prediction (n, Y, X), some frames at a time."""
        while first < stop:
            try:
                for residual, prediction in self.predict_once(chunks, first, stop):
                    first += len(prediction)
                    yield residual, prediction
            except GeometryChanged as reason:
                self.notes.append(str(reason))

    def predict_once(self, chunks: Chunks, first: int, stop: int) -> Generator[Pair, None, None]:
        """As `predict`, in one geometry; raises GeometryChanged where that does not work.

        The streams start so many frames earlier that those before make no difference.
        """
        step = max(self.geometry.chunk, LONGEST_BLOCK)
        start = max(0, first - self.model.config.reach[0]) // step * step
        streams = self.streams()
        residuals = StreamState()  # wait for their predictions
        with closing(chunks(start, self.geometry.chunk)) as source:
            for chunk, ended in with_last(source):
                residual = chunk.to(self.device, non_blocking=True)
                residuals.put(self.model, residual[None, None])
                for prediction in self.predict_chunk(streams, residual, ended):
                    ready = prediction[: stop - start]
                    recorded = residuals.take(self.model, len(ready))[0, 0]
                    skipped = max(0, first - start)
                    start += len(ready)
                    if skipped < len(ready):
                        yield recorded[skipped:], ready[skipped:]
                if start >= stop:
                    return

    def predict_chunk(self, streams: list[Stream], residual: Tensor, ended: bool) -> Iterator[Tensor]:
        """Feed the next frames of the residual (n, Y, X) to the streams; yields the predictions that become ready.

        Where the GPU's memory does not suffice, the frames are fed in smaller and smaller parts.
        """
        while len(residual):
            part = residual[: self.geometry.chunk]
            before = [dict(stream.state.frames) for stream in streams]
            try:
                prediction = self.blend_streams(streams, part, ended and len(part) == len(residual))
            except torch.OutOfMemoryError as error:
                reason = str(error).split(".")[0]  # not the error itself: it would keep what was computed
            else:
                residual = residual[len(part) :]
                if prediction is not None:
                    yield prediction
                continue
            for stream, frames in zip(streams, before):
                stream.state.frames = frames
            self.shrink_geometry(len(part), reason)

    def shrink_geometry(self, frames: int, reason: str) -> None:
        """Halve the frames computed at once; where they are the fewest, the tile, which raises GeometryChanged."""
        time, grid, _ = self.model.config.grid
        if frames > time:
            self.geometry = replace(self.geometry, chunk=largest_chunk(frames, time))
            self.notes.append(f"{reason}: went on with {self.geometry.chunk} frames at once")
            return
        tile = smaller_tile(self.geometry.tile, grid)
        if not tile:
            raise MemoryError(reason)
        self.geometry = replace(self.geometry, tile=tile)
        raise GeometryChanged(f"{reason}: went on in tiles of {tile} pixels")

    def blend_streams(self, streams: list[Stream], residual: Tensor, ended: bool) -> Tensor | None:
        """Return the next prediction (n, Y, X) in float32, or None while more frames must come first.

        Raises GeometryChanged where float16 overflows.
        """
        blended: Tensor | None = None
        for stream in streams:
            tile = self.predict_tile(stream, residual[(slice(None), *stream.where)], ended)
            if tile is None:  # then all are: they lag by the same number of frames
                continue
            if blended is None:
                blended = tile.new_zeros(len(tile), *residual.shape[1:])
            blended[(slice(None), *stream.where)] += tile * stream.weights
        if blended is None:
            return None
        if self.geometry.dtype == torch.float16 and not blended.isfinite().all():
            self.geometry = replace(self.geometry, dtype=torch.float32)
            raise GeometryChanged("intensities too large for float16: went on in float32")
        return blended

    def predict_tile(self, stream: Stream, residual: Tensor, ended: bool) -> Tensor | None:
        """Return the next prediction (n, y, x) of one stream, float32; None while more frames must come first."""
        height, width = residual.shape[1:]
        scale = input_scale(self.geometry.dtype)
        padded = pad_to_grid(residual[None, None], self.model.config.grid, "constant")
        tile = (padded * scale).to(self.geometry.dtype)
        try:
            prediction = stream.movie_net.stream(tile, stream.features, stream.state, ended)
        except NeedsMoreFrames:
            return None
        return prediction.float()[0, 0, :, :height, :width] / scale


def with_last(items: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Yield each item, and whether it is the last one."""
    iterator = iter(items)
    item = next(iterator)
    for following in iterator:
        yield item, False
        item = following
    yield item, True


def largest_chunk(frames: int, grid: int) -> int:
    """Return the largest chunk of a geometry that is smaller than so many frames."""
    chunk = grid
    while 2 * chunk < frames:
        chunk *= 2
    return chunk


def converted(movie_net: MovieNet, dtype: torch.dtype) -> MovieNet:
    """Return a copy of the network in another type."""
    return copy.deepcopy(movie_net).to(dtype)


def input_scale(dtype: torch.dtype) -> float:
    """Return the factor of input and features: the network has no biases, so that its output scales with them."""
    return HALF_SCALE if dtype == torch.float16 else 1.0
