"""A movie in, its denoised frames out, in order: the way of one movie from lazy reading to the writer.

One pass over the file finds the percentiles and the whole-movie context; a second one goes straight on:

    read -> normalize -> undo smoothing -> steady the light -> take out line noise -> hold still -> whiten -> | network |
        -> slabs -> read out -> restore -> let move -> give back detail -> let flicker -> redo smoothing -> denormalize
        -> write

Smoothing is what a frame has been through before it came here (`denoise.smoothing`), light is steadied where it flickers
(`denoise.light`), line noise is what the voxels of a row share (`denoise.lines`), and what is held still is the sample,
where it moves (`denoise.motion`): mostly there is none of these. A movie that moves or flickers is surveyed once more,
held still in steady light. The bars are borders between threads (`denoise.ahead`): reading, computing and writing
overlap. Memory does not grow with the length of the movie.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from denoise.adaptation import Adaptation, adapt
from denoise.agreement import varying
from denoise.ahead import ahead
from denoise.context import Context, ContextSums, inpainted
from denoise.detail import NO_DETAIL, Detail, estimate_detail
from denoise.light import STEADY, Light, Photometer, estimate_light, flickers
from denoise.limits import free_memory
from denoise.lines import LineNoise, estimate_row_and_column_noise
from denoise.missing import (
    FILLED,
    NO_TURNS,
    PIECE_VOXELS,
    Turns,
    as_recorded,
    turns_of,
    without_missing,
)
from denoise.motion import STILL, Motion
from denoise.movies import ArrayMovie, MovieError, Readable
from denoise.network import LONGEST_BLOCK, Network, Pair
from denoise.normalization import PercentileNormalization, Percentiles
from denoise.pattern import estimate_pattern
from denoise.phase import estimate_phase, phase_correction
from denoise.ranks import ALONE, Team
from denoise.readout import Readout, stretches
from denoise.smoothing import MEASURED, NO_MEMORY, Gauge, centre, memory_of, middle, redo, undo, variance_left
from denoise.tiling import tile_axis
from denoise.tracking import PIECE, Moments, Watch, motion_of, moves
from model import UNet3D

BLOCK_VOXELS = 1 << 23  # read at once
SHORTEST_BLOCK = 16  # frames: in fewer a dropped row cannot be told from a dark one
SLAB_VOXELS = 1 << 27  # of one slab of frames; float32, twice
SLAB_SHARE = 4  # the part of the free memory that a slab may take: one in so many
SLAB_BYTES = 20  # of a voxel in it: residual, prediction, what is computed of them, and the recording
SLAB = 512  # frames, where the memory allows
SHARED_FRAMES = 32  # that neighbouring slabs share: their patterns fade into each other
SECTION = 256  # frames that are surveyed together, a multiple of LONGEST_BLOCK
TRIED = (128, 128)  # frames, and pixels a side, in which it is tried whether holding a movie still helps
FURTHER = 1.2  # times as far from the recording, squared, may come out what is held still
DISTINCT = 0.5  # of how far apart they seemed, are planes in turn apart where they are held
ROUNDED = 1e-4  # of a movie's scale: so far off may be the mean of what never changes
SATURATED = 1e-3  # share of voxels from which it is told


Progress = Callable[[str, int, int], None]
Sums = TypeVar("Sums", "Means", ContextSums)


@dataclass(frozen=True)
class Settings:
    """What a user may choose about the denoising itself."""

    percentiles: tuple[float, float] = (3.0, 97.0)
    adapt_minutes: float = 0.0  # at most, for adapting the network to each movie


@dataclass
class Result:
    """What was found and done, for the metadata; plain values."""

    percentile_values: tuple[float, float]  # found, in the input's units
    spread: float  # of the intensities, see denoise.normalization
    tiles: int
    noise: dict[str, float]  # gain and read_variance in the input's units
    smoothing: tuple[float, float]  # that was undone: mean weight of a neighbour along (y, x)
    motion: tuple[
        float, float
    ]  # pixels from the mean place along (y, x), at most; 0 where it was not held still
    row_phase: float  # pixels that odd rows lay further on along x and were put back by; 0 if not
    flicker: float  # of the brightness of frames, root mean square; 0 where light was not steadied
    warnings: list[str] = field(default_factory=list)
    adaptation: dict[str, object] | None = None  # see denoise.adaptation.Adaptation; None if there was none
    model: UNet3D | None = None  # that denoised the movie: the adapted one, where that was kept


@dataclass(frozen=True)
class OddPixels:
    """Pixels that show nothing of the scene.

    hot (Y, X) bool: far noisier than others. constant (Y, X): what those hold that never change, in the recording's
    units; NaN elsewhere.
    """

    hot: Tensor
    constant: Tensor

    @property
    def blind(self) -> Tensor | None:
        """All of them (Y, X); None if there are none."""
        blind = self.hot | self.constant.isfinite()
        return blind if bool(blind.any()) else None

    def part(self, rows: slice, columns: slice) -> OddPixels:
        return OddPixels(self.hot[rows, columns], self.constant[rows, columns])


@dataclass(frozen=True)
class Changes:
    """What changes of the scene as a whole: its light, in the recording's units, and where it is.

    odd: pixels that do not go with it; None where nothing changes.
    """

    light: Light
    motion: Motion
    odd: OddPixels | None = None

    @property
    def none(self) -> bool:
        return self.light.steady and self.motion.still


NONE = Changes(STEADY, STILL)


@dataclass
class Survey:
    """What the first pass learned."""

    normalization: PercentileNormalization
    smoothing: Tensor  # (T, 2), by which each frame has been smoothed, see denoise.smoothing
    lines: tuple[LineNoise, ...]  # of rows and of columns, of the movie without its smoothing
    light: Light  # in normalized units
    offsets: list[Tensor]  # (T, Y) and (T, X) of line noise, in normalized units; (T, 0) where there is none
    motion: Motion
    context: Context  # in normalized units, held still, without smoothing, flicker and line noise
    moves: bool  # and is not held still yet
    flickers: bool  # and its light is not steadied yet
    not_finite: int
    dropped: int  # rows
    flashes: Tensor  # (T, Y) bool: rows in which another light flashed
    kept: Tensor  # (T, Y) bool: rows that come out as recorded, see denoise.missing
    saturated: float  # share of the voxels
    wrapped: float  # share of the voxels that seem to be negative numbers
    turns: Turns
    odd: OddPixels
    recorded: dict[int, np.ndarray] = field(default_factory=dict)  # (Y, X), on their way, that have kept rows
    detailed: bool = False  # detail that is lost is given back
    passing: dict[int, Tensor] = field(default_factory=dict)  # (Y, X), cleaned, of frames on their way

    @property
    def recorded_light(self) -> Light:
        """In the recording's units."""
        return self.light.rescaled(self.normalization.scale, self.normalization.low)

    def sharpened(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """Pieces (n, Y, X) of recorded frames from that one on, normalized, without smoothing, in steady light.

        Missing voxels are NaN.
        """
        flashes = self.flashes[start : start + len(recorded)]
        frames, _ = without_missing(self.normalization.normalize(recorded), flashes)
        frames = hidden(frames, self.odd.blind)
        for part in with_smoothing(frames, self.smoothing[start:]):
            yield self.light.hold(undo(*part), start)
            start += len(part[0])

    def cleaned(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """The same, without line noise."""
        for sharp in self.sharpened(recorded, start):
            stop = start + len(sharp)
            yield without_lines(sharp, [its[start:stop] for its in self.offsets])
            start = stop

    def held(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """The same, on the canvas on which the scene stands still (n, H, W)."""
        for frames in self.cleaned(recorded, start):
            yield self.motion.hold(frames, start)
            start += len(frames)

    def whitened(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """The residual (n, H, W) of recorded frames from that one on, which are remembered."""
        self.remember(recorded, start)
        for frames in self.cleaned(recorded, start):
            if self.detailed:
                self.passing.update(zip(range(start, start + len(frames)), frames))
            yield self.context.whiten(self.motion.hold(frames, start))
            start += len(frames)

    def finished(self, frames: Tensor, start: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Pieces (n, Y, X) of what comes out, of frames as they were read out (n, H, W), from that one on."""
        for released in self.released(frames, start):
            smoothing = self.smoothing[start : start + len(released)]
            restored = redo(self.light.release(released, start), smoothing)
            result = self.normalization.denormalize(restored.numpy(), dtype)
            self.put_back(result, start)
            start += len(result)
            yield result

    def released(self, frames: Tensor, start: int) -> Iterator[Tensor]:
        """Pieces (n, Y, X) of the same where the recording has them, with the detail that is lost."""
        detail = self.detail(frames, start) if self.detailed else NO_DETAIL
        for part in cache_sized(frames):
            stop = start + len(part)
            released = self.restored(part, start)
            yield detail.give_back(released, self.before(start, stop)) if detail.lost else released
            start = stop

    def detail(self, frames: Tensor, start: int) -> Detail:
        """What they lack of the recording, as some of them tell."""
        some = [(start + its.start, frames[its]) for its in stretches(len(frames))]
        restored = torch.cat([self.restored(its, first) for first, its in some])
        recorded = torch.cat([self.before(first, first + len(its)) for first, its in some])
        return estimate_detail(restored, recorded)

    def restored(self, frames: Tensor, start: int) -> Tensor:
        """Frames (n, H, W), in units of the noise, where the recording has them (n, Y, X)."""
        return self.motion.release(self.context.restore(frames.cpu()), start)

    def before(self, start: int, stop: int) -> Tensor:
        """Frames (n, Y, X) of the recording, cleaned."""
        return torch.stack([self.passing[t] for t in range(start, stop)])

    def forget(self, start: int, stop: int) -> None:
        """These: they have come out."""
        for t in range(start, stop):
            self.passing.pop(t, None)

    def remember(self, frames: np.ndarray, start: int) -> None:
        """Hold on to those of the frames (n, Y, X) as recorded, from that one on, that are to come out so."""
        for t in self.kept[start : start + len(frames)].any(1).nonzero()[:, 0].tolist():
            self.recorded[start + t] = frames[t].copy()

    def put_back(self, frames: np.ndarray, start: int) -> None:
        """Replace them in denoised frames (n, Y, X), in place; and pixels that never change. Not what is not finite."""
        constant = self.odd.constant.numpy()
        np.copyto(frames, constant, casting="unsafe", where=np.isfinite(constant))
        for t in self.kept[start : start + len(frames)].any(1).nonzero()[:, 0].tolist():
            recorded = self.recorded.pop(start + t)
            kept = self.kept[start + t, :, None].numpy() & np.isfinite(recorded)
            np.copyto(frames[t], recorded, casting="unsafe", where=kept)


def denoise_movie(
    movie: Readable,
    model: UNet3D,
    settings: Settings,
    write: Callable[[np.ndarray], None],
    progress: Progress,
    team: Team = ALONE,
    place: Callable[[int], None] = lambda first: None,
    *,
    known: Changes | None = None,
) -> Result:
    """Denoise a movie (T, Y, X): `write` gets frames (n, Y, X) of result_type in the input's units, in order.

    `progress(stage, done, frames)` is told how far the stages "reading" and "denoising" are, and "following" where the
    scene moves, its light flickers or rows are out of phase; in the stage "adapting" it is told the share of 100. In a
    team a rank gets its own share of the frames only; `place` is told the number of the first of them. What changes as
    a whole is found where it is not known.
    """
    with torch.inference_mode():
        survey = survey_movie(movie, settings.percentiles, progress, team, known or NONE)
    if known is None:
        found = team.of(0, None if team.rank else changes_found(movie, model, settings, survey, progress))
        detailed = survey.moves
        if not found.none:
            with torch.inference_mode():
                again = survey_movie(movie, settings.percentiles, progress, team, found)
            # what moves repeats itself, too; but planes take turns wherever they are held
            planes = survey.turns.period and again.turns.apart > DISTINCT * survey.turns.apart
            survey, detailed = (survey, False) if planes else (replace(again, turns=NO_TURNS), detailed)
        survey.detailed = detailed  # by what is missed of its movement, held still or not
    model, adaptation = adapted(movie, model, survey, settings.adapt_minutes, progress, team)
    frames = movie.info.shape[0]
    with torch.inference_mode():
        canvas = (frames, *survey.context.mean.shape)
        every = team.of(0, slabs_of(canvas, free_memory(device_of(model))))
        mine, first = own_slabs(every, team.share(len(every), again=1))
        extent = (mine[0].start, mine[-1].stop) if mine else (first, first)
        network = Network(model, survey.context)
        progress("denoising", first, frames)
        place(first)
        pairs: Generator[Pair, None, None] = ahead(
            network.predict(lambda *where: residuals(movie, survey, *where), *extent)
        )
        with closing(pairs):
            passing = telling(pairs, lambda done: progress("denoising", min(frames, first + done), frames))
            readout = Readout(survey.context, network.static, network)
            read = (readout.frames(residual, said) for residual, said in in_slabs(passing, mine))
            for start, whole in blended(read, mine):
                if start >= first:  # or else the end of the slab before: another rank writes the rest of it
                    for result in survey.finished(whole, start, result_type(movie.info.dtype)):
                        write(result)
                survey.forget(start, start + len(whole))
    told = asdict(adaptation) | {"kept": adaptation.kept} if adaptation else None
    return replace(result_of(survey, network), adaptation=told, model=model)


def changes_found(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, progress: Progress
) -> Changes:
    """How the light of a movie flickers, and how it moves."""
    if survey.flickers:
        with torch.inference_mode():
            light = estimate_light(partial(followed, movie, survey.cleaned, progress))
        survey = replace(survey, light=light)
    motion = motion_found(movie, model, settings, survey, progress)
    odd = survey.odd
    if motion.still:  # in light that flickers, bright pixels look hot: these are found in steady light
        odd = replace(odd, hot=torch.zeros_like(odd.hot))
    return Changes(survey.recorded_light, motion, odd)


def motion_found(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, progress: Progress
) -> Motion:
    """By which a movie is to be held still; STILL where an excerpt of it tells that this would do harm.

    And by which its rows are to be put in phase: by whole pixels where nothing moves, which loses nothing.

    What is held by wrong displacements is blurred. Where there is hardly any noise that may cost more than the network
    loses by a slow movement, and shows: what comes out is further from the recording, since noise is the same both
    ways. In most pixels and in all of them together: dark pixels decide the one, and bright ones the other.

    Activity may be told as movement, most of all where few things happen in many cells, as by a stimulus in turn. What
    is doubted has to bring the output nearer by more than what it shows the wrong way, and than so many numbers a frame
    do by chance.
    """
    with torch.inference_mode():
        phase = estimate_phase(survey.context.mean)
        motion = STILL
        frames = partial(followed, movie, partial(in_phase_pieces, survey, phase), progress)
        if survey.moves or (phase and moves(frames())):  # rows out of phase hide movement
            motion = motion_of(frames)
    motion = replace(motion, phase=phase if len(motion.shifts) else float(round(phase))).with_full_margins()
    if motion.still:
        return STILL
    excerpt, start, place = excerpt_of(movie)
    alone = replace(settings, adapt_minutes=0.0)
    stop = start + len(excerpt.frames)
    recorded, _ = without_missing(
        survey.normalization.normalize(excerpt.frames), survey.flashes[start:stop, place[0]]
    )
    away = []
    for its in (STILL, motion.during(start)):
        parts: list[np.ndarray] = []
        known = Changes(survey.recorded_light.since(start), its, survey.odd.part(*place))
        denoise_movie(excerpt, model, alone, parts.append, lambda *_: None, known=known)
        denoised = torch.from_numpy(survey.normalization.normalize(np.concatenate(parts)))
        away.append((denoised - recorded).square().nanmean(0))
    ratio = (away[1] / away[0]).log()  # (Y, X); not finite where a pixel stays as it is
    seen = ratio.isfinite()
    usual, total = ratio[seen].mean(), (away[1][seen].sum() / away[0][seen].sum()).log()
    by_chance = int(motion.parameters.any(0).sum()) / int(seen.sum())
    further = -(motion.contradiction + by_chance) if motion.contradiction else math.log(FURTHER)
    return motion if float((usual + total) / 2) < further else STILL


def excerpt_of(movie: Readable) -> tuple[ArrayMovie, int, tuple[slice, slice]]:
    """The middle of a movie, in memory; which frame is its first, and which rows and columns it has."""
    frames, *field = movie.info.shape
    length = min(frames, TRIED[0])
    start = (frames - length) // 2
    y, x = (centre(size, TRIED[1]) for size in field)
    rows = slice(y.start // 2 * 2, y.stop)  # odd rows stay odd ones
    # copies, so that no whole frames stay in memory
    parts = [block[:, rows, x].copy() for block in blocks(movie, start, start + length)]
    return ArrayMovie(np.concatenate(parts)), start, (rows, x)


def result_type(dtype: np.dtype) -> np.dtype:
    """Of the frames that come out: float32, or float64 for integers that float32 does not hold.

    >>> result_type(np.dtype("uint16")), result_type(np.dtype("int32"))
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float64 if dtype.kind in "iu" and dtype.itemsize >= 4 else np.float32)


def adapted(
    movie: Readable, model: UNet3D, survey: Survey, minutes: float, progress: Progress, team: Team
) -> tuple[UNet3D, Adaptation | None]:
    """The network for this movie: after so many minutes of learning from an excerpt of it, if that made it better.

    In a team rank 0 learns.
    """
    minutes = team.of(0, minutes)  # each found its own by the clock, and all have to agree
    if not minutes or survey.context.memory != NO_MEMORY:  # what frames share would betray what is hidden
        return model, None
    if team.rank:
        learned: tuple[dict[str, Tensor], Adaptation | None] = team.of(0, None)
        weights, adaptation = learned
        model = copy.deepcopy(model)
        model.load_state_dict(weights)
        return model, adaptation
    frames, height, width = movie.info.shape
    length = min(frames, SLAB, max(64, SLAB_VOXELS // (2 * height * width)))
    start = (frames - length) // 2
    along_y, along_x = survey.smoothing[start : start + length].any(0).tolist()
    model, adaptation = adapt(
        torch.cat(list(survey.held(movie.read(start, start + length), start))),
        (along_y, along_x),
        model,
        60 * minutes,
        lambda share: progress("adapting", round(100 * share), 100),
    )
    team.of(0, (model.state_dict(), adaptation))
    return model, adaptation


def survey_movie(
    movie: Readable,
    percentiles: tuple[float, float],
    progress: Progress,
    team: Team = ALONE,
    known: Changes = NONE,
) -> Survey:
    """First pass: percentiles, context, and what is missing. Every frame is read once, by one rank of the team.

    Where the scene moves, once before, for what it is like in the mean.
    """
    frames, height, width = movie.info.shape
    count = math.ceil(frames / SECTION)
    surveyor = Surveyor(movie, percentiles, known)
    if len(known.motion.shifts):
        seen = partial(surveyor.scene, tell=lambda done: progress("following", done, frames))
        surveyor.look_at(summed(Means(surveyor.mean, surveyor.reference), seen, count, team))
    surveyor.found.skip(team.share(count).start * SECTION * height * width)
    section = partial(surveyor.section, tell=lambda done: progress("reading", done, frames))
    sums = summed(ContextSums(surveyor.reference), section, count, team)
    progress("reading", frames, frames)
    return surveyor.survey(sums, team)


def summed(sums: Sums, section: Callable[[int], Sums], count: int, team: Team) -> Sums:
    """With those of so many sections, each taken by one rank of the team, in order: they do not depend on its size."""
    sections = {}
    for index in team.share(count):
        sections[index] = section(index)
        if team.size == 1:
            sums.add(sections.pop(index))
    for index in range(count if team.size > 1 else 0):
        sums.add(team.of(team.owner(index, count), sections.pop(index, None)))
    return sums


class Means:
    """Of frames, as they are and as they are held still, relative to images near them (Y, X) and (H, W)."""

    def __init__(self, recorded: Tensor, held: Tensor) -> None:
        self.recorded, self.held = Moments(recorded), Moments(held)

    def add(self, other: Means) -> None:
        """Take the sums of other frames."""
        self.recorded.add(other.recorded)
        self.held.add(other.held)


class Surveyor:
    """Goes through a movie in sections. The first block's percentiles and mean centre the sums of all of them."""

    def __init__(self, movie: Readable, percentiles: tuple[float, float], known: Changes) -> None:
        self.movie, self.percentiles, self.known, self.motion = movie, percentiles, known, known.motion
        self.found = Percentiles(movie.info.dtype, math.prod(movie.info.shape))
        self.not_finite = self.dropped = 0
        self.blank = torch.zeros(movie.info.shape[0], dtype=torch.bool)
        self.flashes = torch.zeros(movie.info.shape[:2], dtype=torch.bool)
        if not movie.info.shape[0]:
            raise ValueError("a movie must have at least one frame")
        self.first = next(blocks(movie))
        found = Percentiles(self.first.dtype, self.first.size)
        found.update(self.first)
        self.provisional = found.result(percentiles)
        self.light = normalized(known.light, self.provisional)
        values, _ = without_missing(self.provisional.normalize(self.first))
        self.blind = known.odd.blind if known.odd else unchanging(values)
        # movement looks like smoothing, and like memory; noise is where it was recorded, whatever the phase
        self.in_place = replace(known.motion, phase=0.0)
        self.gauge = Gauge(self.in_place.hold(hidden(values, self.blind), 0))
        self.smoothing = torch.zeros(movie.info.shape[0], 2)
        sharp = torch.cat([its for _, its in self.sharp(values, 0)])
        self.mean = inpainted(sharp.nanmean(0))
        seen = middle(sharp)
        self.watch = Watch(seen)
        self.displaced = torch.zeros(movie.info.shape[0], self.watch.regions, 2)
        self.photometer = Photometer(*self.watch.field)
        self.brightness = torch.zeros(movie.info.shape[0], len(self.photometer.solver))
        self.lines = estimate_row_and_column_noise(sharp)
        means = self.line_means(sharp)
        held = self.motion.hold(
            without_lines(sharp, [its.offsets(m) for its, m in zip(self.lines, means)]), 0
        )
        self.reference = inpainted(held.nanmean(0))
        self.memory = memory_of(held, not self.motion.still or self.gauge.differs)
        self.turns = turns_of(held)
        frames = movie.info.shape[0]
        self.means = [its.new_zeros(frames, its.shape[1]) for its in means]  # of all lines
        self.last: Tensor | None = None  # of the section before, as ContextSums keeps it

    def look_at(self, means: Means) -> None:
        """Hold frames still against the mean scene, without what does not move with it."""
        pattern, scene = estimate_pattern(means.recorded.mean, means.held.mean, self.motion)
        self.motion, self.reference = replace(self.motion, scene=scene, pattern=pattern), scene

    def smoothing_of(self, values: Tensor, start: int) -> Tensor:
        """By which normalized frames (n, Y, X) from that one on have been smoothed: (n, 2)."""
        if self.gauge.differs:
            values = self.in_place.hold(hidden(values, self.blind), start)
        return self.gauge.weights(values)

    def sharp(
        self, values: Tensor, start: int, smoothing: Tensor | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Where pieces (n, Y, X) of normalized frames from that one on start, and they, sharpened, in steady light."""
        smoothing = self.smoothing_of(values, start) if smoothing is None else smoothing
        for frames, weights in with_smoothing(values, smoothing):
            sharp = undo(hidden(frames, self.blind), weights)
            if self.blind is not None and not self.known.odd:  # whether they never change is still to be seen
                sharp = torch.where(self.blind, frames, sharp)
            yield start, self.light.hold(sharp, start)
            start += len(frames)

    def scene(self, index: int, tell: Callable[[int], None]) -> Means:
        """Sums over the frames of one section."""
        sums, done = Means(self.mean, self.reference), index * SECTION
        with closing(ahead(self.blocks(done))) as read:
            for block in read:
                values, _ = without_missing(self.provisional.normalize(block))
                for start, sharp in self.sharp(values, done):
                    sums.recorded.update(sharp)
                    sums.held.update(self.motion.hold(sharp, start))
                done += len(block)
                tell(done)
        return sums

    def section(self, index: int, tell: Callable[[int], None]) -> ContextSums:
        """Sums over the frames of one section; called in order."""
        sums = ContextSums(self.reference)
        done = index * SECTION
        sums.last = self.last_before(done) if self.last is None else self.last
        with closing(ahead(self.blocks(done))) as read:
            for block in read:
                self.found.update(block)
                values, lost = without_missing(self.provisional.normalize(block))
                self.not_finite += lost.voxels
                self.dropped += lost.rows
                self.blank[done : done + len(block)] = lost.blank
                self.flashes[done : done + len(block)] = lost.flashes
                smoothing = self.smoothing_of(values, done)
                self.smoothing[done : done + len(block)] = smoothing
                for start, sharp in self.sharp(values, done, smoothing):
                    stop = start + len(sharp)
                    sums.update(self.motion.hold(sharp, start))
                    if self.known.none:
                        seen = middle(sharp)
                        self.displaced[start:stop] = self.watch.displacements(seen)
                        self.brightness[start:stop] = self.photometer.brightness(seen)
                    for every, its in zip(self.means, self.line_means(sharp)):
                        every[start:stop] = its
                done += len(block)
                tell(done)
        self.last = sums.last
        return sums

    def line_means(self, frames: Tensor) -> list[Tensor]:
        """Of rows and of columns of frames (n, Y, X): (n, lines) each, or (n, 0)."""
        return [its.means(frames, self.mean) for its in self.lines]

    def told_without_lines(
        self, told: Tensor, tell: Callable[[Tensor], Tensor], offsets: Sequence[Tensor]
    ) -> Tensor:
        """What the middle of frames told (T, ...), had no noise been added to their rows (T, Y) and columns (T, X).

        `tell` is linear in how frames differ from an image of the field: what lines alone tell is taken from it.
        """
        if not any(its.numel() for its in offsets):
            return told
        seen = [its[:, centre(its.shape[1], MEASURED)] for its in offsets]
        pieces = zip(*(its.split(PIECE) for its in seen))
        image, _ = self.watch.field
        return told + torch.cat(
            [tell(without_lines(image.expand(len(its[0]), -1, -1), its)) for its in pieces]
        )

    def blocks(self, start: int) -> Generator[np.ndarray, None, None]:
        """The frames of the section that starts there."""
        if not start:
            yield self.first
        yield from blocks(self.movie, start or len(self.first), start + SECTION)

    def last_before(self, frame: int) -> Tensor | None:
        """The frame before, as ContextSums keeps it (1, Y, X); none before the first."""
        if not frame:
            return None
        with closing(blocks(self.movie, frame - LONGEST_BLOCK, frame)) as read:
            values, _ = without_missing(self.provisional.normalize(list(read)[-1]))
        smoothing = self.smoothing_of(values, frame - len(values))
        ((_, sharp),) = self.sharp(values[-1:], frame - 1, smoothing[-1:])
        last = self.motion.hold(sharp, frame - 1)
        return torch.where(torch.isfinite(last), last - self.reference, torch.nan)

    def survey(self, sums: ContextSums, team: Team) -> Survey:
        """What all ranks found."""
        others = [found for rank, found in enumerate(team.all(self.found)) if rank != team.rank]
        for found in others:
            self.found.add(found)
        n = self.found.result(self.percentiles)
        rows, columns = self.lines
        to_final = self.provisional.scale / n.scale, (self.provisional.low - n.low) / n.scale
        context = sums.context(self.memory, (rows.variance, columns.variance)).rescaled(*to_final)
        # each has its own frames
        own = (self.smoothing, self.displaced, self.brightness, *self.means)
        smoothing, displaced, brightness, *means = (torch.stack(its).sum(0) for its in zip(*team.all(own)))
        offsets = [its.offsets(m) for its, m in zip(self.lines, means)]
        displaced = self.told_without_lines(displaced, self.watch.displacements, offsets)
        brightness = self.told_without_lines(brightness, self.photometer.brightness, offsets)
        blank, flashes = (torch.stack(its).any(0) for its in zip(*team.all((self.blank, self.flashes))))
        not_finite, dropped = (sum(its) for its in zip(*team.all((self.not_finite, self.dropped))))
        if not_finite == math.prod(self.movie.info.shape):
            raise MovieError(
                "expected intensities, found NaN and infinities alone; export the movie anew from its recording"
            )
        kept = as_recorded(blank, flashes)
        return Survey(
            normalization=n,
            smoothing=smoothing,
            lines=self.lines,
            offsets=[its * (self.provisional.scale / n.scale) for its in offsets],
            motion=self.motion.rescaled(*to_final),
            light=normalized(self.known.light, n),
            moves=self.known.none and self.watch.moves(displaced),
            flickers=self.known.none and flickers(brightness),
            context=context,
            not_finite=not_finite,
            dropped=dropped + int((blank[:, None] & ~kept).sum()),
            flashes=flashes,
            kept=kept,
            saturated=self.found.saturated(),
            wrapped=self.found.wrapped(),
            turns=self.turns,
            odd=odd_pixels(context, n, self.known, self.first),
        )


def unchanging(frames: Tensor) -> Tensor | None:
    """Pixels (Y, X) of one value in all frames (n, Y, X); None if there are none."""
    found = ~varying(frames)
    return found if len(frames) > 1 and bool(found.any()) else None


def hidden(frames: Tensor, pixels: Tensor | None) -> Tensor:
    """Frames (n, Y, X) in which some pixels (Y, X) are missing, NaN."""
    return frames if pixels is None else frames.masked_fill(pixels, torch.nan)


def odd_pixels(
    context: Context, normalization: PercentileNormalization, known: Changes, first: np.ndarray
) -> OddPixels:
    """Of a movie that begins so (n, Y, X); what holds it still, or steadies its light, hides those that are known."""
    if known.odd:
        return replace(known.odd, hot=known.odd.hot | context.hot) if known.motion.still else known.odd
    constant = normalization.denormalize(context.mean.numpy(), np.float64)
    still = (context.noise == 0).numpy()
    constant[still] = unrounded(constant[still], first[:, still], normalization.scale)
    return OddPixels(context.hot, torch.from_numpy(constant).where(torch.from_numpy(still), torch.nan))


def unrounded(means: np.ndarray, frames: np.ndarray, scale: float) -> np.ndarray:
    """Means (P,) of pixels that never change, as one of frames (n, P) has them: it is missing in others, or in all."""
    away = np.nan_to_num(np.abs(frames - means), nan=np.inf)
    nearest = np.take_along_axis(frames, away.argmin(0)[None], 0)[0]
    return np.where(away.min(0) < ROUNDED * scale, nearest, means)


def normalized(light: Light, normalization: PercentileNormalization) -> Light:
    """A recording's light in normalized units."""
    return light.rescaled(1 / normalization.scale, -normalization.low / normalization.scale)


def blocks(movie: Readable, start: int = 0, stop: int | None = None) -> Generator[np.ndarray, None, None]:
    """Frames [start, stop) of a movie in order, to its end at most, some (n, Y, X) at a time: a power of two."""
    frames, height, width = movie.info.shape
    frames, step = frames if stop is None else min(stop, frames), block_length(height * width)
    for first in range(start, frames, step):
        yield movie.read(first, min(frames, first + step))


def block_length(pixels: int) -> int:
    """Frames of so many pixels that are read at once.

    >>> [block_length(side**2) for side in (64, 512, 2048)]
    [64, 32, 16]
    """
    step = LONGEST_BLOCK
    while step > SHORTEST_BLOCK and step * pixels > BLOCK_VOXELS:
        step //= 2
    return step


def cache_sized(frames: Tensor) -> tuple[Tensor, ...]:
    """Frames (T, Y, X) in parts (n, Y, X) that stay in the processor's cache."""
    return frames.split(max(1, PIECE_VOXELS // (frames.shape[1] * frames.shape[2])))


def with_smoothing(frames: Tensor, smoothing: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pieces of frames (n, Y, X), and by what each has been smoothed: from (n, 2) or more."""
    parts = cache_sized(frames)
    return zip(parts, smoothing[: len(frames)].split(len(parts[0])))


def without_lines(frames: Tensor, offsets: Sequence[Tensor]) -> Tensor:
    """Frames (n, Y, X) without what was added to their rows (n, Y) and columns (n, X), where there is any."""
    rows, columns = offsets
    if rows.numel():
        frames = frames - rows[:, :, None]
    return frames - columns[:, None, :] if columns.numel() else frames


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
        yield torch.cat(list(survey.whitened(block, start)))
        start += len(block)


def followed(
    movie: Readable, pieces_of: Callable[[np.ndarray, int], Iterator[Tensor]], progress: Progress
) -> Iterator[Tensor]:
    """What is made of a movie's blocks of frames, (n, Y, X)."""
    start = 0
    for block in blocks(movie):
        yield torch.cat(list(pieces_of(block, start)))
        start += len(block)
        progress("following", start, movie.info.shape[0])


def in_phase_pieces(survey: Survey, phase: float, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
    """Pieces (n, Y, X) of recorded frames from that one on, as they are to be held still."""
    return (phase_correction(phase).hold(its, start) for its in survey.cleaned(recorded, start))


def telling(items: Iterable[Pair], tell: Callable[[int], None]) -> Iterator[Pair]:
    """The same items; tells how many frames have passed."""
    done = 0
    for item in items:
        done += len(item[0])
        tell(done)
        yield item


@dataclass(frozen=True)
class Slab:
    """Frames [start, stop) of a movie that are read out together, the last ones once more with the next slab."""

    start: int
    stop: int
    own: int  # frames before the next slab starts
    weights: np.ndarray  # (stop - start,), of its frames in the blended result


def slabs_of(shape: tuple[int, int, int], free: float) -> list[Slab]:
    """Slabs of about equal length for a movie (T, Y, X) and so many bytes of memory.

    As near to SLAB frames as can be: less than 3/2 of it, so that memory does not grow with the movie.
    """
    frames, height, width = shape
    longest = max(2, int(min(SLAB_VOXELS, free / SLAB_SHARE / SLAB_BYTES) / (height * width)))
    typical = min(SLAB, longest)
    shared = min(SHARED_FRAMES, typical // 4)
    count = max(1, round((frames - shared) / (typical - shared)))
    length = shared + math.ceil((frames - shared) / count)
    spans = tile_axis(frames, length if typical < length <= longest else typical, shared, 1)
    ends = [span.start for span in spans[1:]] + [frames]
    return [Slab(s.start, s.stop, end - s.start, s.weights) for s, end in zip(spans, ends)]


def own_slabs(slabs: Sequence[Slab], share: range) -> tuple[list[Slab], int]:
    """The slabs that a rank computes for its share of them, and its first frame: the slab before fades into them."""
    if not share:
        return [], slabs[-1].stop
    return list(slabs[max(0, share.start - 1) : share.stop]), slabs[share.start].start


def in_slabs(parts: Iterable[Pair], slabs: Iterable[Slab]) -> Iterator[Pair]:
    """Residual and prediction (n, Y, X) put together in slabs; the frames that two slabs share are in both.

    They may be overwritten, and each slab takes the memory of the one before.
    """
    source = iter(parts)
    rest: Sequence[Tensor] = (torch.zeros(0), torch.zeros(0))
    shared, room = rest, rest
    for slab in slabs:
        known = len(shared[0])
        rest = rest if len(rest[0]) else next(source)
        if len(room[0]) < slab.stop - slab.start:
            room = [x.new_empty(slab.stop - slab.start, *x.shape[1:]) for x in rest]
        both = [x[: slab.stop - slab.start] for x in room]
        if known:
            for frames, before in zip(both, shared):
                frames[:known] = before
        while known < len(both[0]):
            rest = rest if len(rest[0]) else next(source)
            count = min(len(both[0]) - known, len(rest[0]))
            for frames, new in zip(both, rest):
                frames[known : known + count] = new[:count]
            rest = [x[count:] for x in rest]
            known += count
        shared = [x[slab.own :].clone() for x in both]
        yield both[0], both[1]


def blended(read: Iterable[Tensor], slabs: Iterable[Slab]) -> Iterator[tuple[int, Tensor]]:
    """The frames of slabs (n, Y, X), blended where neighbours share them: where each slab starts, and its own frames."""
    tail = torch.zeros(0)
    for slab, frames in zip(slabs, read):
        frames.mul_(torch.from_numpy(slab.weights)[:, None, None].to(frames.device))
        if len(tail):
            frames[: len(tail)] += tail
        tail = frames[slab.own :].clone()
        yield slab.start, frames[: slab.own]


def device_of(model: UNet3D) -> torch.device:
    return next(model.parameters()).device


def result_of(survey: Survey, network: Network) -> Result:
    """Figures in the input's units, and warnings."""
    n, left = survey.normalization, variance_left(survey.smoothing) / survey.context.memory.slow
    gain = left * float(survey.context.gain) * n.scale
    read_variance = left * float(survey.context.read_variance) * n.scale**2
    noise = {"gain": gain, "read_variance": read_variance - gain * n.low}
    along_y, along_x = survey.smoothing.mean(0).tolist()
    warnings = [*network.notes, *values_told(survey), *missing_told(survey), *noise_told(survey)]
    smoothing = along_y, along_x
    motion, flicker = survey.motion, n.scale * survey.light.flicker(float(survey.context.mean.mean()))
    return Result(
        (n.low, n.high),
        n.spread,
        network.tiles,
        noise,
        smoothing,
        motion.max_displacement,
        motion.phase,
        flicker,
        warnings,
    )


def values_told(survey: Survey) -> Iterator[str]:
    """A warning for each way in which a movie's values are odd, or its frames' order is."""
    low, high = survey.normalization.low, survey.normalization.high
    if low == high:
        yield f"the percentiles coincide, at {low:.5g}: most voxels have this one value"
    if survey.wrapped > SATURATED:
        yield (
            f"{survey.wrapped:.2%} of the voxels are above 49151 and all others below 16384: negative numbers that were "
            "written as unsigned ones? Write the movie anew as signed integers"
        )
    elif survey.saturated > SATURATED:
        yield (
            f"{survey.saturated:.2%} of the voxels have one value, the largest of all: the detector was saturated, so "
            "peaks there are too low"
        )
    if survey.turns.period:
        yield (
            f"frames that are {survey.turns.period} apart are alike, and neighbours are not (planes or channels in "
            "turn?): better write each as a movie of its own"
        )


def missing_told(survey: Survey) -> Iterator[str]:
    """A warning for each kind of what is no picture of the scene."""
    if survey.not_finite:
        yield (
            f"{survey.not_finite} voxels were NaN, infinite or alone beyond any scale; "
            "they were filled from their neighbours"
        )
    if survey.dropped:
        yield (
            f"{survey.dropped} rows or columns hold one single value in some frames (dropped by the microscope, or a "
            "border that registration left); they were filled"
        )
    whole = survey.flashes.all(1)
    flashes, in_part = int(whole.sum()), survey.flashes[~whole]
    if in_part.any():
        yield (
            f"{int(in_part.sum())} rows in {int(in_part.any(1).sum())} frames are brighter or darker throughout than "
            "before and after (a laser that stimulates cells); they stay as they were recorded, and the others are "
            "denoised without them"
        )
    if flashes:
        yield (
            f"{flashes} frames are brighter or darker throughout than those around them (a flash, a stage that "
            "flies back); they stay as they were recorded, and the others are denoised without them"
        )
    gaps = int(survey.kept.all(1).sum()) - flashes
    if gaps and not survey.kept.all():
        yield (
            f"{gaps} frames, more than {FILLED} in a row, hold one single value (a closed shutter, or nothing was "
            "recorded); they stay as they are"
        )
    hot = int(survey.odd.hot.sum())
    if hot and not survey.motion.still:
        yield f"{hot} pixels are far noisier than those around them (hot pixels); they were filled from their neighbours"
    elif hot:
        yield (
            f"{hot} pixels are far noisier than those around them (hot pixels); they keep their mean, and how "
            "they change was filled from their neighbours"
        )
    constant = survey.odd.constant.isfinite()
    if constant.any() and not constant.all():
        yield (
            f"{int(constant.sum())} pixels never change (a border that registration left, a mask, stuck pixels); "
            "they stay as they are"
        )


def noise_told(survey: Survey) -> Iterator[str]:
    """A warning for each way in which voxels share noise that is not told otherwise."""
    for which, its in zip(("row", "column"), survey.lines):
        if its.variance:
            yield (
                f"the voxels of a {which} share {its.share:.1%} of the variance of their noise in each frame "
                "(line noise): that was taken out"
            )
    pattern = survey.motion.pattern
    if pattern is not None:
        level = survey.context.mean.mean()
        differ = survey.normalization.scale * float((pattern.apply(level) - level).std())
        yield (
            f"rows and columns of the camera differ by {differ:.3g} (root mean square; fixed pattern), while the scene "
            "moves: the output keeps that; the scene was denoised without it"
        )
    if survey.context.memory != NO_MEMORY:
        shared = 1 - 1 / survey.context.memory.variance
        yield (
            f"neighbouring frames share {shared:.0%} of their noise (repeated, averaged or interpolated frames): better "
            "denoise the recording as it was before that"
        )
