"""The first pass over a movie: what has to be known of all of it before its frames can be denoised.

That is the percentiles, the mean image and the noise model (`denoise.context`), the smoothing of each frame, line noise,
missing voxels and odd pixels, and whether the scene moves or its light flickers. A movie that moves or flickers is
surveyed once more with these changes undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from denoise.agreement import varying
from denoise.ahead import ahead
from denoise.context import Context, ContextSums, inpaint
from denoise.glitches import glitches
from denoise.light import STEADY, Light, Photometer, flickers
from denoise.lines import LineNoise, estimate_row_and_column_noise
from denoise.missing import PIECE_VOXELS, Interleaving, find_interleaving, rows_to_keep, without_missing
from denoise.motion import STILL, Motion
from denoise.movies import MovieError, Readable
from denoise.network import LONGEST_BLOCK
from denoise.normalization import PercentileNormalization, Percentiles
from denoise.pattern import estimate_pattern
from denoise.ranks import ALONE, Team
from denoise.smoothing import (
    MEASURED_SIZE,
    SmoothingEstimator,
    central_part,
    central_slice,
    estimate_frame_correlation,
    redo,
    remaining_variance,
    undo,
)
from denoise.tracking import PIECE_FRAMES, Moments, MotionDetector

MAX_BLOCK_VOXELS = 1 << 23  # read at once
MIN_BLOCK_FRAMES = 16  # in fewer a dropped row cannot be told from a dark one
SECTION_FRAMES = 256  # surveyed together by one rank; a multiple of LONGEST_BLOCK
ROUNDING = 1e-4  # of a movie's scale: so far off its value may be the mean of a pixel that never changes

Progress = Callable[[str, int, int], None]
Sums = TypeVar("Sums", "MeanImages", ContextSums)


@dataclass(frozen=True)
class OddPixels:
    """Pixels that show nothing of the scene.

    hot (Y, X) bool: far noisier than others. constant (Y, X): the value of each pixel that never changes, in the
    recording's units; NaN elsewhere.
    """

    hot: Tensor
    constant: Tensor

    @property
    def mask(self) -> Tensor | None:
        """All odd pixels (Y, X) bool; None if there are none."""
        mask = self.hot | self.constant.isfinite()
        return mask if bool(mask.any()) else None

    def crop(self, rows: slice, columns: slice) -> OddPixels:
        return OddPixels(self.hot[rows, columns], self.constant[rows, columns])


@dataclass(frozen=True)
class Changes:
    """Changes of the scene as a whole: flicker of its light, in the recording's units, and movement.

    odd_pixels: pixels that do not take part in them; None where nothing changes.
    """

    light: Light
    motion: Motion
    odd_pixels: OddPixels | None = None

    @property
    def none(self) -> bool:
        """Whether the light is steady and the scene still."""
        return self.light.steady and self.motion.still


NO_CHANGES = Changes(STEADY, STILL)


@dataclass(frozen=True)
class Survey:
    """What the first pass found."""

    normalization: PercentileNormalization
    smoothing: Tensor  # (T, 2), filter weights by which each frame has been smoothed, see denoise.smoothing
    lines: tuple[LineNoise, ...]  # noise of rows and of columns, of the movie without its smoothing
    light: Light  # in normalized units
    line_offsets: list[
        Tensor
    ]  # (T, Y) and (T, X) of line noise, in normalized units; (T, 0) if there is none
    motion: Motion
    context: Context  # in normalized units, held still, without smoothing, flicker and line noise
    moves: bool  # and is not held still yet
    flickers: bool  # and its light is not steadied yet
    invalid_voxels: int  # NaN, infinite, or alone beyond any scale
    dropped_lines: int  # rows and columns of one value in some frames
    flashes: Tensor  # (T, Y) bool: rows in which another light flashed
    kept_rows: Tensor  # (T, Y) bool: rows that come out as recorded, see denoise.missing
    saturated_share: float  # of the voxels
    wrapped_share: float  # of the voxels: they seem to be negative numbers
    interleaving: Interleaving
    odd_pixels: OddPixels

    @property
    def recorded_light(self) -> Light:
        """The light in the recording's units."""
        return self.light.rescaled(self.normalization.scale, self.normalization.low)

    def cleaned(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """Yield pieces (n, Y, X) of the recorded frames from frame `start` on, prepared but for movement.

        They are normalized, without smoothing, flicker and line noise. Missing voxels and glitches are NaN.
        """
        part = slice(start, start + len(recorded))
        frames, _ = without_missing(self.normalization.normalize(recorded), self.flashes[part])
        frames = hide_pixels(frames, self.odd_pixels.mask)
        scene, moving = self.recorded_scene(start, len(frames)), self.moves or not self.motion.still
        frames.masked_fill_(glitches(frames, scene, self.recorded_noise, moving), torch.nan)
        for piece, weights in with_smoothing(frames, self.smoothing[part]):
            stop = start + len(piece)
            steady = self.light.hold(undo(piece, weights), start)
            yield subtract_lines(steady, [offsets[start:stop] for offsets in self.line_offsets])
            start = stop

    def recorded_scene(self, start: int, count: int) -> Tensor:
        """Return the mean scene as `count` normalized frames from frame `start` on show it (n, Y, X)."""
        canvas = self.context.mean.expand(count, -1, -1)
        return self.as_recorded(self.motion.release(canvas, start), start)

    def as_recorded(self, moving: Tensor, start: int) -> Tensor:
        """Return frames (n, Y, X) from frame `start` on, in which the scene moves, with their flicker and smoothing."""
        return redo(self.light.release(moving, start), self.smoothing[start : start + len(moving)])

    @property
    def recorded_noise(self) -> tuple[float, float]:
        """Gain and read variance of the noise of normalized frames, with their smoothing."""
        left = remaining_variance(self.smoothing)
        return left * float(self.context.gain), left * float(self.context.read_variance)

    def held_still(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """Yield the same pieces on the canvas on which the scene stands still (n, H, W)."""
        for piece in self.cleaned(recorded, start):
            yield self.motion.hold(piece, start)
            start += len(piece)


def survey_movie(
    movie: Readable,
    percentiles: tuple[float, float],
    progress: Progress,
    team: Team = ALONE,
    changes: Changes = NO_CHANGES,
) -> Survey:
    """Survey a movie (T, Y, X), in which `changes` are undone. Every frame is read once, by one rank of the team.

    If the scene moves, every frame is read once before, for the mean image of the scene.
    """
    frames, height, width = movie.info.shape
    count = math.ceil(frames / SECTION_FRAMES)
    surveyor = Surveyor(movie, percentiles, changes)
    if len(changes.motion.shifts):
        mean_images = partial(surveyor.mean_images, report=lambda done: progress("following", done, frames))
        zero = MeanImages(surveyor.mean, surveyor.reference)
        surveyor.use_scene(sum_sections(zero, mean_images, count, team))
    surveyor.intensities.skip(team.share(count).start * SECTION_FRAMES * height * width)
    context_sums = partial(surveyor.context_sums, report=lambda done: progress("reading", done, frames))
    sums = sum_sections(ContextSums(surveyor.reference), context_sums, count, team)
    progress("reading", frames, frames)
    return surveyor.survey(sums, team)


def sum_sections(sums: Sums, section: Callable[[int], Sums], count: int, team: Team) -> Sums:
    """Add to `sums` those of `count` sections; `section(index)` makes them, each in one rank of the team.

    They are added in order, so that the result does not depend on the size of the team.
    """
    sections = {}
    for index in team.share(count):
        sections[index] = section(index)
        if team.size == 1:
            sums.add(sections.pop(index))
    for index in range(count if team.size > 1 else 0):
        sums.add(team.broadcast(team.owner(index, count), sections.pop(index, None)))
    return sums


class MeanImages:
    """Sums for the mean of frames as recorded and as held still, relative to images near them (Y, X) and (H, W)."""

    def __init__(self, recorded: Tensor, held: Tensor) -> None:
        self.recorded, self.held = Moments(recorded), Moments(held)

    def add(self, other: MeanImages) -> None:
        """Add the sums of other frames."""
        self.recorded.add(other.recorded)
        self.held.add(other.held)


class Surveyor:
    """Collects what one rank finds in its sections of a movie.

    The first block gives a provisional normalization and reference image: sums relative to them lose no precision.
    """

    def __init__(self, movie: Readable, percentiles: tuple[float, float], changes: Changes) -> None:
        self.movie, self.percentiles, self.changes, self.motion = movie, percentiles, changes, changes.motion
        frames, height, width = movie.info.shape
        if not frames:
            raise ValueError("a movie must have at least one frame")
        self.intensities = Percentiles(movie.info.dtype, frames * height * width)
        self.invalid_voxels = self.dropped_lines = 0
        self.blank = torch.zeros(frames, dtype=torch.bool)
        self.flashes = torch.zeros(frames, height, dtype=torch.bool)
        self.smoothing = torch.zeros(frames, 2)
        self.last: Tensor | None = None  # frame of the section before, as ContextSums keeps it
        self.first_block = next(blocks(movie))
        intensities = Percentiles(self.first_block.dtype, self.first_block.size)
        intensities.update(self.first_block)
        self.provisional = intensities.result(percentiles)
        self.light = normalized(changes.light, self.provisional)
        self._begin(without_missing(self.provisional.normalize(self.first_block))[0])

    def _begin(self, values: Tensor) -> None:
        """Learn from the normalized frames of the first block (n, Y, X) what to measure in all of them, and how."""
        odd_pixels, frames = self.changes.odd_pixels, self.movie.info.shape[0]
        self.hidden = odd_pixels.mask if odd_pixels else constant_pixels(values)  # (Y, X), if any
        # movement looks like smoothing, and like noise that frames share: both are measured where it is undone.
        # Rows stay out of phase there: noise is where it was recorded
        self.movement = replace(self.motion, phase=0.0)
        self.estimator = SmoothingEstimator(self.movement.hold(hide_pixels(values, self.hidden), 0))
        smoothing = self.smoothing_of(values, 0)
        sharp = torch.cat([piece for _, piece in self.sharpened(values, 0, smoothing)])
        self.mean = inpaint(sharp.nanmean(0))
        self.motion_detector = MotionDetector(central_part(sharp))
        self.displacements = torch.zeros(frames, self.motion_detector.regions, 2)
        self.photometer = Photometer(*self.motion_detector.field)
        self.brightness = torch.zeros(frames, len(self.photometer.solver))
        self.lines = estimate_row_and_column_noise(sharp)
        line_means = self.means_of_lines(sharp)
        self.line_means = [means.new_zeros(frames, means.shape[1]) for means in line_means]
        offsets = [lines.offsets(means) for lines, means in zip(self.lines, line_means)]
        held = self.motion.hold(subtract_lines(sharp, offsets), 0)
        self.reference = inpaint(held.nanmean(0))
        self.frame_correlation = estimate_frame_correlation(
            held, not self.motion.still or self.estimator.varies
        )
        self.interleaving = find_interleaving(held)

    def use_scene(self, means: MeanImages) -> None:
        """Hold frames still against the mean image of the scene from now on, without what does not move with it."""
        pattern, scene = estimate_pattern(means.recorded.mean, means.held.mean, self.motion)
        self.motion, self.reference = replace(self.motion, scene=scene, pattern=pattern), scene

    def smoothing_of(self, values: Tensor, start: int) -> Tensor:
        """Return the smoothing (n, 2) of normalized frames (n, Y, X) from frame `start` on."""
        if self.estimator.varies:
            values = self.movement.hold(hide_pixels(values, self.hidden), start)
        return self.estimator.weights(values)

    def sharpened(self, values: Tensor, start: int, smoothing: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Undo smoothing (n, 2) and flicker of normalized frames (n, Y, X) from frame `start` on.

        Yields cache-sized pieces, each with its first frame.
        """
        for frames, weights in with_smoothing(values, smoothing):
            sharp = undo(hide_pixels(frames, self.hidden), weights)
            if self.hidden is not None and not self.changes.odd_pixels:
                sharp = torch.where(self.hidden, frames, sharp)  # they may still change in later frames
            yield start, self.light.hold(sharp, start)
            start += len(frames)

    def mean_images(self, index: int, report: Callable[[int], None]) -> MeanImages:
        """Return the sums of mean images over the frames of a section."""
        sums, start = MeanImages(self.mean, self.reference), index * SECTION_FRAMES
        with closing(ahead(self.section_blocks(start))) as section:
            for block in section:
                values, _ = without_missing(self.provisional.normalize(block))
                smoothing = self.smoothing_of(values, start)
                for first, sharp in self.sharpened(values, start, smoothing):
                    sums.recorded.update(sharp)
                    sums.held.update(self.motion.hold(sharp, first))
                start += len(block)
                report(start)
        return sums

    def context_sums(self, index: int, report: Callable[[int], None]) -> ContextSums:
        """Return the sums for the context over the frames of a section, and measure these; to be called in order."""
        sums, start = ContextSums(self.reference), index * SECTION_FRAMES
        sums.last = self.frame_before(start) if self.last is None else self.last
        with closing(ahead(self.section_blocks(start))) as section:
            for block in section:
                self.measure_block(block, start, sums)
                start += len(block)
                report(start)
        self.last = sums.last
        return sums

    def measure_block(self, block: np.ndarray, start: int, sums: ContextSums) -> None:
        """Measure recorded frames (n, Y, X) from frame `start` on, and add them to sums for the context."""
        part = slice(start, start + len(block))
        self.intensities.update(block)
        values, missing = without_missing(self.provisional.normalize(block))
        self.invalid_voxels += missing.voxels
        self.dropped_lines += missing.lines
        self.blank[part], self.flashes[part] = missing.blank, missing.flashes
        self.smoothing[part] = self.smoothing_of(values, start)
        for first, sharp in self.sharpened(values, start, self.smoothing[part]):
            piece = slice(first, first + len(sharp))
            sums.update(self.motion.hold(sharp, first))
            if self.changes.none:
                self.displacements[piece] = self.motion_detector.displacements(central_part(sharp))
                self.brightness[piece] = self.photometer.brightness(central_part(sharp))
            for line_means, means in zip(self.line_means, self.means_of_lines(sharp)):
                line_means[piece] = means

    def means_of_lines(self, frames: Tensor) -> list[Tensor]:
        """Return the means of rows and of columns of frames (n, Y, X): (n, lines) each, or (n, 0) if not needed."""
        return [lines.means(frames, self.mean) for lines in self.lines]

    def without_line_noise(
        self, measured: Tensor, measure: Callable[[Tensor], Tensor], offsets: Sequence[Tensor]
    ) -> Tensor:
        """Correct what was measured in the middle of frames (T, ...) for noise of their rows (T, Y) and columns (T, X).

        `measure` is linear in how frames differ from an image of the field. So the correction is what it measures in
        this image less the noise.
        """
        if not any(x.numel() for x in offsets):
            return measured
        offsets = [x[:, central_slice(x.shape[1], MEASURED_SIZE)] for x in offsets]
        image, _ = self.motion_detector.field
        corrections = []
        for rows, columns in zip(*(x.split(PIECE_FRAMES) for x in offsets)):
            frames = subtract_lines(image.expand(len(rows), -1, -1), [rows, columns])
            corrections.append(measure(frames))
        return measured + torch.cat(corrections)

    def section_blocks(self, start: int) -> Generator[np.ndarray, None, None]:
        """Yield the blocks of the section that starts at frame `start`."""
        if not start:
            yield self.first_block
        yield from blocks(self.movie, start or len(self.first_block), start + SECTION_FRAMES)

    def frame_before(self, start: int) -> Tensor | None:
        """Return the frame before frame `start` as ContextSums keeps it (1, Y, X); None before the first."""
        if not start:
            return None
        with closing(blocks(self.movie, start - LONGEST_BLOCK, start)) as before:
            values, _ = without_missing(self.provisional.normalize(list(before)[-1]))
        smoothing = self.smoothing_of(values, start - len(values))
        ((_, sharp),) = self.sharpened(values[-1:], start - 1, smoothing[-1:])
        last = self.motion.hold(sharp, start - 1)
        return torch.where(torch.isfinite(last), last - self.reference, torch.nan)

    def survey(self, sums: ContextSums, team: Team) -> Survey:
        """Put together what all ranks found; `sums` are those of all sections. Raises MovieError."""
        for rank, intensities in enumerate(team.gather(self.intensities)):
            if rank != team.rank:
                self.intensities.add(intensities)
        n = self.intensities.result(self.percentiles)
        rows, columns = self.lines
        scale, shift = self.provisional.scale / n.scale, (self.provisional.low - n.low) / n.scale
        context = sums.context(self.frame_correlation, (rows.variance, columns.variance)).rescaled(
            scale, shift
        )
        # each rank has zeros where others have their frames
        measured = team.gather((self.smoothing, self.displacements, self.brightness, *self.line_means))
        smoothing, displacements, brightness, *line_means = (torch.stack(x).sum(0) for x in zip(*measured))
        offsets = [lines.offsets(means) for lines, means in zip(self.lines, line_means)]
        displacements = self.without_line_noise(displacements, self.motion_detector.displacements, offsets)
        brightness = self.without_line_noise(brightness, self.photometer.brightness, offsets)
        blank, flashes = (torch.stack(x).any(0) for x in zip(*team.gather((self.blank, self.flashes))))
        counts = team.gather((self.invalid_voxels, self.dropped_lines))
        invalid_voxels, dropped_lines = (sum(x) for x in zip(*counts))
        if invalid_voxels == math.prod(self.movie.info.shape):
            raise MovieError(
                "expected intensities, found NaN and infinities alone; export the movie anew from its recording"
            )
        kept_rows = rows_to_keep(blank, flashes)
        return Survey(
            normalization=n,
            smoothing=smoothing,
            lines=self.lines,
            light=normalized(self.changes.light, n),
            line_offsets=[x * scale for x in offsets],
            motion=self.motion.rescaled(scale, shift),
            context=context,
            moves=self.changes.none and self.motion_detector.moves(displacements),
            flickers=self.changes.none and flickers(brightness),
            invalid_voxels=invalid_voxels,
            dropped_lines=dropped_lines + int((blank[:, None] & ~kept_rows).sum()),
            flashes=flashes,
            kept_rows=kept_rows,
            saturated_share=self.intensities.saturated(),
            wrapped_share=self.intensities.wrapped(),
            interleaving=self.interleaving,
            odd_pixels=find_odd_pixels(context, n, self.changes, self.first_block),
        )


# ---- odd pixels


def constant_pixels(frames: Tensor) -> Tensor | None:
    """Return the mask (Y, X) of pixels that have one value in all frames (n, Y, X); None if there are none."""
    constant = ~varying(frames)
    return constant if len(frames) > 1 and bool(constant.any()) else None


def hide_pixels(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Return frames (n, Y, X) with NaN at the pixels of a mask (Y, X)."""
    return frames if mask is None else frames.masked_fill(mask, torch.nan)


def find_odd_pixels(
    context: Context, normalization: PercentileNormalization, changes: Changes, first_block: np.ndarray
) -> OddPixels:
    """Find the hot and the constant pixels of a movie that begins with a block (n, Y, X).

    If changes are undone, those of the survey before were hidden, and only hot pixels can be added.
    """
    odd_pixels = changes.odd_pixels
    if odd_pixels:
        return replace(odd_pixels, hot=odd_pixels.hot | context.hot) if changes.motion.still else odd_pixels
    values = normalization.denormalize(context.mean.numpy(), np.float64)
    constant = (context.noise == 0).numpy()
    values[constant] = exact_values(values[constant], first_block[:, constant], normalization.scale)
    return OddPixels(context.hot, torch.from_numpy(values).where(torch.from_numpy(constant), torch.nan))


def exact_values(means: np.ndarray, frames: np.ndarray, scale: float) -> np.ndarray:
    """Return the means (P,) of constant pixels without their rounding error, as one of the frames (n, P) has them.

    A mean stays where no frame has it: the pixel is missing in some or all of them.
    """
    errors = np.nan_to_num(np.abs(frames - means), nan=np.inf)
    nearest = np.take_along_axis(frames, errors.argmin(0)[None], 0)[0]
    return np.where(errors.min(0) < ROUNDING * scale, nearest, means)


# ---- blocks and pieces of frames


def blocks(movie: Readable, start: int = 0, stop: int | None = None) -> Generator[np.ndarray, None, None]:
    """Yield frames [start, stop) of a movie in order, in blocks (n, Y, X) of `block_length`; the last may be shorter."""
    frames, height, width = movie.info.shape
    frames, step = frames if stop is None else min(stop, frames), block_length(height * width)
    for first in range(start, frames, step):
        yield movie.read(first, min(frames, first + step))


def block_length(pixels: int) -> int:
    """Return how many frames of so many pixels are read at once: a power of two.

    >>> [block_length(side**2) for side in (64, 512, 2048)]
    [64, 32, 16]
    """
    step = LONGEST_BLOCK
    while step > MIN_BLOCK_FRAMES and step * pixels > MAX_BLOCK_VOXELS:
        step //= 2
    return step


def cache_sized(frames: Tensor) -> tuple[Tensor, ...]:
    """Split frames (T, Y, X) into pieces (n, Y, X) that stay in the processor's cache."""
    return frames.split(max(1, PIECE_VOXELS // (frames.shape[1] * frames.shape[2])))


def with_smoothing(frames: Tensor, smoothing: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split frames (n, Y, X) into cache-sized pieces, each with its part of their smoothing (n, 2)."""
    pieces = cache_sized(frames)
    return zip(pieces, smoothing.split(len(pieces[0])))


def subtract_lines(frames: Tensor, offsets: Sequence[Tensor]) -> Tensor:
    """Subtract offsets of rows (n, Y) and of columns (n, X), or (n, 0) for none, from frames (n, Y, X)."""
    rows, columns = offsets
    if rows.numel():
        frames = frames - rows[:, :, None]
    return frames - columns[:, None, :] if columns.numel() else frames


def normalized(light: Light, normalization: PercentileNormalization) -> Light:
    """Convert light from a recording's units to normalized ones."""
    return light.rescaled(1 / normalization.scale, -normalization.low / normalization.scale)
