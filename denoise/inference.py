"""A movie in, its denoised frames out, in order: the way of one movie from lazy reading to the writer.

One pass over the file finds the percentiles and the whole-movie context; a second one goes through the movie in
slabs of frames: normalize -> whiten -> tiles -> network -> blend -> restore -> denormalize -> write. Memory does not
grow with the length of the movie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from denoise.adaptation import Adaptation, adapt
from denoise.context import IMAGES, Context, ContextSums, dropped_rows
from denoise.normalization import PercentileNormalization, Percentiles
from denoise.precision import precision
from denoise.tiling import Span, tile_axis, tile_grid
from model import UNet3D, pad_to_grid

BLOCK_VOXELS = 1 << 23  # read at once in the first pass
SLAB_VOXELS = 1 << 26  # of one slab of frames; float32, twice
TILE_VOXELS = {"cpu": 1 << 23, "cuda": 1 << 26}  # given to the network at once: about 80 bytes each
LONGEST_SLAB = 512  # frames
ABSURD = 1e15  # times the movie's own scale: damage, no intensity; its square would not fit into float32
FAR = 1e3  # times the movie's own scale, from which a voxel is looked at
SATURATED = 1e-3  # share of voxels from which it is told
RARE = 1e-4  # of the voxels at most are errors
OVERLAP = (64, 16, 16)  # (T, Y, X) voxels that neighbouring tiles share: costs under 0.005 dB


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
    with torch.inference_mode():
        network = Network(model, survey.context, settings.ensemble)
        slabs = time_slabs(movie.info.shape, model.config.grid[0])
        progress("denoising", 0, movie.info.shape[0])
        tiles = 0
        tail = torch.zeros(0, *movie.info.shape[1:])
        for index, (slab, residual) in enumerate(residual_slabs(movie, survey, slabs)):
            axes = spatial_tiles(residual.shape, model)
            blended = torch.zeros(residual.shape)
            blended[: len(tail)] = tail
            grid = list(tile_grid(axes))
            for number, (where, weights) in enumerate(grid):
                share = torch.from_numpy(slab.weights[:, None, None] * weights)
                for done, answer in network.predict(residual, where):
                    blended[(slice(None), *where)] += answer * share
                    progress("denoising", frames_done(slab, (number + done) / len(grid)), movie.info.shape[0])
            tiles += len(grid)
            final = slabs[index + 1].start - slab.start if index + 1 < len(slabs) else len(blended)
            tail = blended[final:].clone()
            frames = survey.context.restore(blended[:final] + network.static)
            write(survey.normalization.denormalize(frames.numpy(), result_type(movie.info.dtype)))
    told = asdict(adaptation) | {"kept": adaptation.kept} if adaptation else None
    return replace(result_of(survey, tiles), adaptation=told, model=model)


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
    length = min(frames, LONGEST_SLAB, max(64, SLAB_VOXELS // (height * width)))
    start = (frames - length) // 2
    excerpt, _ = without_missing(survey.normalization.normalize(movie.read(start, start + length)))
    return adapt(
        excerpt, model, 60 * minutes, lambda share: progress("adapting", round(share * frames), frames)
    )


@dataclass(frozen=True)
class View:
    """One of the eight mirrored and turned views of a plane: flips first, then the exchange of Y and X."""

    flips: tuple[bool, bool] = (False, False)
    exchange: bool = False

    def of(self, x: Tensor) -> Tensor:
        """(..., Y, X) -> the view of it."""
        x = x.flip([axis for axis, flip in zip((-2, -1), self.flips) if flip])
        return x.mT if self.exchange else x

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `of`."""
        x = x.mT if self.exchange else x
        return x.flip([axis for axis, flip in zip((-2, -1), self.flips) if flip])

    def of_images(self, images: Tensor) -> Tensor:
        """The context images (B, K, Y, X) that the view of a movie would have.

        A covariance image holds each pixel's with its next neighbour: mirrored, that is the one before; turned, the
        one along the other axis.
        """
        images = images.clone()
        x, y = IMAGES.index("covariance along x"), IMAGES.index("covariance along y")
        if self.flips[0]:
            images[:, y, 1:] = images[:, y, :-1].clone()
        if self.flips[1]:
            images[:, x, :, 1:] = images[:, x, :, :-1].clone()
        if self.exchange:
            images[:, [x, y]] = images[:, [y, x]]
        return self.of(images)

    def region(self, where: Sequence[slice], canvas: Sequence[int]) -> tuple[slice, ...]:
        """Where the region (Y, X slices) of a canvas (Y, X) lies in the view of that canvas."""
        turned = [
            slice(size - s.stop, size - s.start) if flip else s
            for s, flip, size in zip(where, self.flips, canvas)
        ]
        return tuple(reversed(turned)) if self.exchange else tuple(turned)


VIEWS = [View((y, x), exchange) for y in (False, True) for x in (False, True) for exchange in (False, True)]
SYMMETRIES = 2 * len(VIEWS)  # each forwards and backwards in time


class Network:
    """The network with one movie's context in place.

    With `ensemble` it answers with its mean over the sixteen symmetries of a movie (eight of the plane, forwards and
    backwards in time); each undoes its own mirroring, so the errors average out and the signal stays.
    """

    def __init__(self, model: UNet3D, context: Context, ensemble: bool) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision(self.device)
        self.views = VIEWS if ensemble else VIEWS[:1]
        self.backwards = (False, True) if ensemble else (False,)
        images, standard_error = (x[None].to(self.device) for x in (context.images, context.standard_error))
        images = pad_to_grid(images, model.config.grid[1:], "replicate")
        self.canvas = images.shape[-2:]
        encoded = [model.encode(view.of_images(images)) for view in self.views]
        self.features = [features for features, _ in encoded]
        height, width = context.mean.shape
        static = torch.stack([view.undo(x) for view, (_, x) in zip(self.views, encoded)]).mean(0)
        static = static[..., :height, :width] * standard_error
        self.static = static[0].cpu()  # (1, Y, X), in units of the noise

    def predict(self, residual: Tensor, where: tuple[slice, ...]) -> Iterator[tuple[float, Tensor]]:
        """What moves in one tile: the slab's residual (n, Y, X) and the tile's (Y, X) slices.

        Yields, view by view, the share that is done and this view's part of the answer (n, y, x), on the CPU; the
        parts add up to the prediction.
        """
        cut = residual[(slice(None), *where)]
        frames, height, width = cut.shape
        tile = pad_to_grid(cut.to(self.device)[None, None], self.model.config.grid, "constant")
        padded = [slice(s.start, s.start + size) for s, size in zip(where, tile.shape[-2:])]
        share = 1 / len(self.views)
        for number, (view, features) in enumerate(zip(self.views, self.features), 1):
            at = view.region(padded, self.canvas)
            local = [coarse(level, at, 2 ** (i + 1)) for i, level in enumerate(features)]
            turned = view.of(tile)
            both = [turn_time(self.decode(turn_time(turned, back), local), back) for back in self.backwards]
            answer = view.undo(torch.stack(both).mean(0))[0, 0, :frames, :height, :width]
            yield number * share, answer.cpu() * share

    def decode(self, tile: Tensor, features: Sequence[Tensor]) -> Tensor:
        """One pass of the 3-D network in the precision of the device.

        In float16 all is scaled down, and the answer up: the network has no biases, so that changes nothing but keeps
        bright voxels (thousands of noise units) from overflowing. Where one does all the same, float32 has to do.
        """
        scale = 1 / 32 if self.precision == torch.float16 else 1.0
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            answer = self.model.decode(tile * scale, [level * scale for level in features]) / scale
        if self.precision == torch.float16 and not answer.isfinite().all():
            return self.model.decode(tile, features)
        return answer


def turn_time(x: Tensor, backwards: bool) -> Tensor:
    """(..., T, Y, X), last frame first if backwards."""
    return x.flip(-3) if backwards else x


def coarse(level: Tensor, where: Sequence[slice], stride: int) -> Tensor:
    """The region of a feature map (1, C, Y / stride, X / stride) under (Y, X) slices that lie on the grid."""
    y, x = (slice(s.start // stride, s.stop // stride) for s in where)
    return level[..., y, x]


def time_slabs(shape: tuple[int, int, int], grid: int) -> list[Span]:
    """Slabs of frames: long ones waste little on the overlap, and have to fit into memory."""
    frames = SLAB_VOXELS // (shape[1] * shape[2]) // grid * grid
    overlap = -(-OVERLAP[0] // grid) * grid
    return tile_axis(shape[0], max(2 * overlap, min(LONGEST_SLAB, frames)), overlap, grid)


def spatial_tiles(shape: Sequence[int], model: UNet3D) -> list[list[Span]]:
    """Spans along Y and X for a slab (n, Y, X)."""
    device = next(model.parameters()).device.type
    time_grid, *grid = model.config.grid
    frames = -(-shape[0] // time_grid) * time_grid
    side = int((TILE_VOXELS[device] / frames) ** 0.5)
    overlaps = [-(-o // g) * g for o, g in zip(OVERLAP[1:], grid)]
    return [tile_axis(n, max(2 * o, side // g * g), o, g) for n, o, g in zip(shape[1:], overlaps, grid)]


def frames_done(slab: Span, share: float) -> int:
    """Frames that count as done when a share of a slab's tiles is."""
    return round(slab.start + share * (slab.stop - slab.start))


def survey_movie(movie: Readable, percentiles: tuple[float, float], progress: Progress) -> Survey:
    """First pass: percentiles, context, and what is missing. Every frame is read once."""
    frames, height, width = movie.info.shape
    found = Percentiles(movie.info.dtype, frames * height * width)
    sums: ContextSums | None = None
    provisional = PercentileNormalization(0.0, 1.0)
    not_finite = dropped = 0
    for start, block in blocks(movie):
        found.update(block)
        if sums is None:  # exact percentiles are known at the end only: the first block's centre the sums
            first = Percentiles(block.dtype, block.size)
            first.update(block)
            provisional = first.result(percentiles)
        values, lost = without_missing(provisional.normalize(block))
        not_finite += int(values.isnan().sum()) - lost * block.shape[2]
        dropped += lost
        sums = sums or ContextSums(torch.nan_to_num(values.nanmean(0)))
        sums.update(values)
        progress("reading", start + len(block), frames)
    if sums is None:
        raise ValueError("a movie must have at least one frame")
    normalization = found.result(percentiles)
    context = sums.context().rescaled(
        provisional.scale / normalization.scale, (provisional.low - normalization.low) / normalization.scale
    )
    return Survey(normalization, context, not_finite, dropped, found.saturated())


def blocks(movie: Readable) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of a movie in order, a few at a time: (start, frames (n, Y, X))."""
    frames, height, width = movie.info.shape
    step = max(1, min(64, BLOCK_VOXELS // (height * width)))
    for start in range(0, frames, step):
        yield start, movie.read(start, min(frames, start + step))


def without_missing(frames: np.ndarray) -> tuple[Tensor, int]:
    """Normalized frames (n, Y, X) with NaN where nothing was recorded, and the number of dropped rows."""
    values = torch.from_numpy(frames)
    rows = dropped_rows(values)
    values[rows] = torch.nan
    values[~(values.abs() < ABSURD)] = torch.nan
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


def residual_slabs(movie: Readable, survey: Survey, slabs: list[Span]) -> Iterator[tuple[Span, Tensor]]:
    """Slab by slab the residual (n, Y, X) in units of the noise; frames shared by two slabs are read once."""
    source = blocks(movie)
    held = torch.zeros(0, *movie.info.shape[1:])
    first = 0  # frame number of held[0]
    for slab in slabs:
        parts = [held[slab.start - first :]]
        have = first + len(held)
        while have < slab.stop:
            _, block = next(source)
            values, _ = without_missing(survey.normalization.normalize(block))
            parts.append(survey.context.whiten(values))
            have += len(block)
        held, first = torch.cat(parts), slab.start
        yield slab, held[: slab.stop - slab.start]


def result_of(survey: Survey, tiles: int) -> Result:
    """Figures in the input's units, and a warning for everything that was missing."""
    n = survey.normalization
    gain, read_variance = (
        float(survey.context.gain) * n.scale,
        float(survey.context.read_variance) * n.scale**2,
    )
    warnings = []
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
    return Result((n.low, n.low + n.scale), tiles, noise, warnings)
