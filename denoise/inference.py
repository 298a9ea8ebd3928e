"""Denoise one movie: from lazy reading to the writer, frames in order.

A first pass over the file surveys the whole movie (`denoise.survey`). A second one goes straight on:

    read -> normalize -> undo smoothing -> steady the light -> subtract line noise -> hold still -> whiten -> | network |
        -> slabs -> read out -> restore -> let move -> give back detail -> let flicker -> redo smoothing -> denormalize
        -> write

Smoothing was done to a frame before it came here (`denoise.smoothing`). Light is steadied where it flickers
(`denoise.light`). Line noise is what the voxels of a row or column share in a frame (`denoise.lines`). The scene is held
still where it moves (`denoise.motion`). Most movies have none of these. A movie that moves or flickers is surveyed once
more, held still in steady light. The bars are borders between threads (`denoise.ahead`): reading, computing and writing
overlap. Memory does not grow with the length of the movie.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from denoise.adaptation import Adaptation, adapt
from denoise.ahead import ahead
from denoise.detail import NO_DETAIL, Detail, estimate_detail
from denoise.findings import warnings_of
from denoise.light import estimate_light
from denoise.limits import free_memory
from denoise.missing import NOT_INTERLEAVED, without_missing
from denoise.motion import STILL, Motion
from denoise.movies import ArrayMovie, Readable
from denoise.network import Network, Pair
from denoise.phase import estimate_phase, phase_correction
from denoise.ranks import ALONE, Team
from denoise.readout import Readout, excerpts
from denoise.smoothing import UNCORRELATED, central_slice
from denoise.survey import NO_CHANGES, Changes, Progress, Survey, blocks, cache_sized, survey_movie
from denoise.tiling import tile_axis
from denoise.tracking import estimate_motion, moves
from model import UNet3D

MAX_SLAB_VOXELS = 1 << 27  # float32, twice
SLAB_MEMORY_DIVISOR = 4  # a slab may take this part of the free memory: 1 / 4
SLAB_BYTES = 20  # per voxel of a slab: residual, prediction, what is computed of them, and the recording
SLAB_FRAMES = 512  # where the memory allows
SLAB_OVERLAP = 32  # frames that neighbouring slabs share: their patterns fade into each other
MIN_ADAPT_FRAMES = 64  # of which the network learns, however large they are
TRIAL_SIZE = (128, 128)  # frames, and pixels a side, of the excerpt on which holding still is tried
MAX_ERROR_RATIO = 1.2  # of the squared difference from the recording: held still over as it is
MIN_DISTANCE_KEPT = 0.5  # of that between interleaved planes, when they are held still


@dataclass(frozen=True)
class Settings:
    """What a user may choose about the denoising itself."""

    percentiles: tuple[float, float] = (3.0, 97.0)
    adapt_minutes: float = 0.0  # at most, for adapting the network to each movie


@dataclass
class Result:
    """What was found and done, for the metadata; plain values."""

    percentile_values: tuple[float, float]  # in the input's units
    spread: float  # of the intensities, see denoise.normalization
    tiles: int
    noise: dict[str, float]  # gain and read_variance in the input's units
    smoothing: tuple[float, float]  # that was undone: mean weight of a neighbour along (y, x)
    motion: tuple[float, float]  # pixels from the mean place along (y, x), at most; 0 if not held still
    row_phase: float  # pixels along x by which odd rows were put back; 0 if they were not
    flicker: float  # of the brightness of frames, root mean square; 0 where light was not steadied
    warnings: list[str] = field(default_factory=list)
    adaptation: dict[str, object] | None = None  # see denoise.adaptation.Adaptation; None if there was none
    model: UNet3D | None = None  # that denoised the movie: the adapted one, where that was kept


def denoise_movie(
    movie: Readable,
    model: UNet3D,
    settings: Settings,
    write: Callable[[np.ndarray], None],
    progress: Progress,
    team: Team = ALONE,
    place: Callable[[int], None] = lambda first: None,
    *,
    changes: Changes | None = None,
) -> Result:
    """Denoise a movie (T, Y, X): `write` gets frames (n, Y, X) of result_type in the input's units, in order.

    `progress(stage, done, frames)` reports the stages "reading" and "denoising", and "following" where the scene moves,
    its light flickers or rows are out of phase; the stage "adapting" counts to 100. In a team a rank gets its own share
    of the frames only, and `place` gets the number of the first of them. `changes` of the scene as a whole are
    estimated if they are not given.
    """
    with torch.inference_mode():
        survey = survey_movie(movie, settings.percentiles, progress, team, changes or NO_CHANGES)
    give_back_detail = False
    if changes is None:
        survey, give_back_detail = undo_changes(movie, model, settings, survey, progress, team)
    model, adaptation = adapt_model(movie, model, survey, settings.adapt_minutes, progress, team)
    restorer = Restorer(survey, give_back_detail)
    with torch.inference_mode():
        network = denoise_frames(movie, model, restorer, write, progress, team, place)
    adapted = asdict(adaptation) | {"kept": adaptation.kept} if adaptation else None
    return replace(result_of(survey, network), adaptation=adapted, model=model)


def denoise_frames(
    movie: Readable,
    model: UNet3D,
    restorer: Restorer,
    write: Callable[[np.ndarray], None],
    progress: Progress,
    team: Team,
    place: Callable[[int], None],
) -> Network:
    """Denoise and write a rank's share of a movie's frames, as `denoise_movie` does, and return the network used."""
    context, frames = restorer.survey.context, movie.info.shape[0]
    free = free_memory(next(model.parameters()).device)
    all_slabs = team.broadcast(0, plan_slabs((frames, *context.mean.shape), free))
    slabs, first = own_slabs(all_slabs, team.share(len(all_slabs), overlap=1))
    start, stop = (slabs[0].start, slabs[-1].stop) if slabs else (first, first)
    network = Network(model, context)
    progress("denoising", first, frames)
    place(first)
    predictions = network.predict(partial(residuals, movie, restorer), start, stop)
    pairs: Generator[Pair, None, None] = ahead(predictions)
    with closing(pairs):
        counted = report_frames(pairs, lambda done: progress("denoising", min(frames, first + done), frames))
        readout = Readout(context, network.static, network)
        denoised = (readout.frames(residual, prediction) for residual, prediction in in_slabs(counted, slabs))
        for begin, slab in blended(denoised, slabs):
            if begin >= first:  # else it is the end of the slab before: another rank writes the rest of it
                for result in restorer.restored(slab, begin, result_type(movie.info.dtype)):
                    write(result)
            restorer.forget(begin, begin + len(slab))
    return network


class Restorer:
    """Prepares recorded frames for the network, and turns denoised ones into the output.

    give_back_detail: whether detail that the network lost is given back from the recording (`denoise.detail`).
    """

    def __init__(self, survey: Survey, give_back_detail: bool) -> None:
        self.survey, self.give_back_detail = survey, give_back_detail
        self._recorded: dict[int, np.ndarray] = {}  # frames (Y, X) on their way that have rows to keep
        self._cleaned: dict[int, Tensor] = {}  # frames (Y, X) on their way, if detail is given back

    def whitened(self, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
        """Yield the residual, in pieces (n, H, W), of recorded frames (n, Y, X) from frame `start` on."""
        self._keep_recorded(recorded, start)
        for piece in self.survey.cleaned(recorded, start):
            if self.give_back_detail:
                self._cleaned.update(zip(range(start, start + len(piece)), piece))
            yield self.survey.context.whiten(self.survey.motion.hold(piece, start))
            start += len(piece)

    def restored(self, denoised: Tensor, start: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield the output, in pieces (n, Y, X), of denoised residuals (n, H, W) from frame `start` on."""
        survey = self.survey
        detail = self._lost_detail(denoised, start) if self.give_back_detail else NO_DETAIL
        for piece in cache_sized(denoised):
            stop = start + len(piece)
            moving = self._moving(piece, start)
            if detail.lost:
                moving = detail.give_back(moving, self._cleaned_frames(start, stop))
            recorded = survey.as_recorded(moving, start)
            result = survey.normalization.denormalize(recorded.numpy(), dtype)
            self._put_back(result, start)
            yield result
            start = stop

    def forget(self, start: int, stop: int) -> None:
        """Drop what is held of frames [start, stop), which have come out."""
        for t in range(start, stop):
            self._cleaned.pop(t, None)

    def _moving(self, denoised: Tensor, start: int) -> Tensor:
        """Convert denoised residuals (n, H, W) to normalized frames (n, Y, X) in which the scene moves again."""
        return self.survey.motion.release(self.survey.context.restore(denoised.cpu()), start)

    def _lost_detail(self, denoised: Tensor, start: int) -> Detail:
        """Estimate the detail that denoised residuals (n, H, W) lack, from some of their frames."""
        parts = [(start + part.start, denoised[part]) for part in excerpts(len(denoised))]
        moving = torch.cat([self._moving(part, first) for first, part in parts])
        recorded = torch.cat([self._cleaned_frames(first, first + len(part)) for first, part in parts])
        return estimate_detail(moving, recorded)

    def _cleaned_frames(self, start: int, stop: int) -> Tensor:
        """Return frames [start, stop) of the cleaned recording, (n, Y, X)."""
        return torch.stack([self._cleaned[t] for t in range(start, stop)])

    def _frames_with_kept_rows(self, start: int, count: int) -> list[int]:
        """Return which of `count` frames from frame `start` on have rows that come out as recorded, from 0 on."""
        return self.survey.kept_rows[start : start + count].any(1).nonzero()[:, 0].tolist()

    def _keep_recorded(self, frames: np.ndarray, start: int) -> None:
        """Keep those of the recorded frames (n, Y, X) that have rows to come out as recorded."""
        for t in self._frames_with_kept_rows(start, len(frames)):
            self._recorded[start + t] = frames[t].copy()

    def _put_back(self, frames: np.ndarray, start: int) -> None:
        """Put constant pixels and rows to keep back into output frames (n, Y, X), in place; but no NaN or infinity."""
        constant = self.survey.odd_pixels.constant.numpy()
        np.copyto(frames, constant, casting="unsafe", where=np.isfinite(constant))
        for t in self._frames_with_kept_rows(start, len(frames)):
            recorded = self._recorded.pop(start + t)
            kept = self.survey.kept_rows[start + t, :, None].numpy() & np.isfinite(recorded)
            np.copyto(frames[t], recorded, casting="unsafe", where=kept)


# ---- changes of the scene as a whole


def undo_changes(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, progress: Progress, team: Team
) -> tuple[Survey, bool]:
    """Survey a movie that moves or flickers once more, held still in steady light.

    Returns the survey to denoise with, and whether lost detail is to be given back: it is where the scene moves, held
    still or not, since movement costs detail.
    """
    changes = team.broadcast(0, None if team.rank else find_changes(movie, model, settings, survey, progress))
    if changes.none:
        return survey, survey.moves
    with torch.inference_mode():
        again = survey_movie(movie, settings.percentiles, progress, team, changes)
    # a movement that repeats itself makes frames alike at intervals, too; but planes differ wherever they are held
    min_distance = MIN_DISTANCE_KEPT * survey.interleaving.distance
    if survey.interleaving.period and again.interleaving.distance > min_distance:
        return survey, False
    return replace(again, interleaving=NOT_INTERLEAVED), survey.moves


def find_changes(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, progress: Progress
) -> Changes:
    """Find how the light of a movie flickers, and how its scene moves."""
    if survey.flickers:
        with torch.inference_mode():
            light = estimate_light(partial(follow, movie, survey.cleaned, progress))
        survey = replace(survey, light=light)
    motion = find_motion(movie, model, settings, survey, progress)
    odd_pixels = survey.odd_pixels
    if motion.still:  # bright pixels look hot in light that flickers: hot ones are found in steady light
        odd_pixels = replace(odd_pixels, hot=torch.zeros_like(odd_pixels.hot))
    return Changes(survey.recorded_light, motion, odd_pixels)


def find_motion(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, progress: Progress
) -> Motion:
    """Return the motion to undo: displacements of frames, and the phase of rows; STILL where undoing it would do harm.

    Where nothing moves, the phase is rounded to whole pixels: no interpolation, no loss.
    """
    with torch.inference_mode():
        phase = estimate_phase(survey.context.mean)
        motion = STILL
        frames = partial(follow, movie, partial(cleaned_in_phase, survey, phase), progress)
        if survey.moves or (phase and moves(frames())):  # rows out of phase hide movement
            motion = estimate_motion(frames)
    motion = replace(motion, phase=phase if len(motion.shifts) else float(round(phase))).with_full_margins()
    if motion.still or not holding_still_helps(movie, model, settings, survey, motion):
        return STILL
    return motion


def holding_still_helps(
    movie: Readable, model: UNet3D, settings: Settings, survey: Survey, motion: Motion
) -> bool:
    """Try on an excerpt of a movie whether it is denoised better with its motion undone.

    Wrong displacements blur. Where there is hardly any noise that may cost more than the network loses by a slow
    movement, and it shows: the output is further from the recording, since noise is the same both ways. Two measures
    are averaged: the mean over pixels, which dark pixels decide, and the total, which bright ones decide.

    Activity may look like movement, most of all where few things happen in many cells, as by a stimulus in turn.
    Doubted motion (`Motion.contradiction`) has to bring the output nearer by more than what it shows the wrong way, and
    than as many parameters for each frame do by chance.
    """
    excerpt, start, (rows, columns) = middle_excerpt(movie)
    normalize, settings = survey.normalization.normalize, replace(settings, adapt_minutes=0.0)
    recorded, _ = without_missing(
        normalize(excerpt.frames), survey.flashes[start : start + len(excerpt.frames), rows]
    )
    light, odd_pixels = survey.recorded_light.since(start), survey.odd_pixels.crop(rows, columns)

    def error(motion: Motion) -> Tensor:
        """Return the mean squared difference (Y, X) from the recording of the output with that motion undone."""
        changes, parts = Changes(light, motion, odd_pixels), list[np.ndarray]()
        denoise_movie(excerpt, model, settings, parts.append, lambda *_: None, changes=changes)
        denoised = torch.from_numpy(normalize(np.concatenate(parts)))
        return (denoised - recorded).square().nanmean(0)

    moving, still = error(STILL), error(motion.during(start))
    log_ratio = (still / moving).log()  # (Y, X); not finite where a pixel stays as recorded
    valid = log_ratio.isfinite()
    mean, total = log_ratio[valid].mean(), (still[valid].sum() / moving[valid].sum()).log()
    by_chance = int(motion.parameters.any(0).sum()) / int(valid.sum())
    limit = -(motion.contradiction + by_chance) if motion.contradiction else math.log(MAX_ERROR_RATIO)
    return float((mean + total) / 2) < limit


def middle_excerpt(movie: Readable) -> tuple[ArrayMovie, int, tuple[slice, slice]]:
    """Return the middle of a movie, in memory, with its first frame and its rows and columns in the movie."""
    frames, *field = movie.info.shape
    length = min(frames, TRIAL_SIZE[0])
    start = (frames - length) // 2
    y, x = (central_slice(size, TRIAL_SIZE[1]) for size in field)
    rows = slice(y.start // 2 * 2, y.stop)  # odd rows stay odd ones
    # copies, so that no whole frames stay in memory
    parts = [block[:, rows, x].copy() for block in blocks(movie, start, start + length)]
    return ArrayMovie(np.concatenate(parts)), start, (rows, x)


def cleaned_in_phase(survey: Survey, phase: float, recorded: np.ndarray, start: int) -> Iterator[Tensor]:
    """Yield cleaned pieces (n, Y, X) of recorded frames from frame `start` on, their rows put in phase."""
    return (phase_correction(phase).hold(piece, start) for piece in survey.cleaned(recorded, start))


# ---- the network


def adapt_model(
    movie: Readable, model: UNet3D, survey: Survey, minutes: float, progress: Progress, team: Team
) -> tuple[UNet3D, Adaptation | None]:
    """Return the network for a movie: adapted to an excerpt of it for so many minutes, if that made it better.

    In a team rank 0 learns.
    """
    minutes = team.broadcast(0, minutes)  # each rank has its own, by its clock, and all have to agree
    # noise that frames share would betray hidden voxels
    if not minutes or survey.context.frame_correlation != UNCORRELATED:
        return model, None
    if team.rank:
        learned: tuple[dict[str, Tensor], Adaptation | None] = team.broadcast(0, None)
        weights, adaptation = learned
        model = copy.deepcopy(model)
        model.load_state_dict(weights)
        return model, adaptation
    frames, height, width = movie.info.shape
    length = min(frames, SLAB_FRAMES, max(MIN_ADAPT_FRAMES, MAX_SLAB_VOXELS // (2 * height * width)))
    start = (frames - length) // 2
    along_y, along_x = survey.smoothing[start : start + length].any(0).tolist()
    model, adaptation = adapt(
        torch.cat(list(survey.held_still(movie.read(start, start + length), start))),
        (along_y, along_x),
        model,
        60 * minutes,
        lambda share: progress("adapting", round(100 * share), 100),
    )
    team.broadcast(0, (model.state_dict(), adaptation))
    return model, adaptation


def residuals(movie: Readable, restorer: Restorer, start: int, size: int) -> Generator[Tensor, None, None]:
    """Yield the residual from frame `start` on, in units of the noise, `size` frames (n, H, W) at a time; read ahead.

    Start and size are powers of two, or multiples of LONGEST_BLOCK.
    """
    waiting: list[Tensor] = []
    with closing(ahead(prepared_blocks(movie, restorer.whitened, start))) as whitened:
        for block in whitened:
            for chunk in block.split(size):
                waiting.append(chunk)
                if sum(map(len, waiting)) >= size:
                    yield torch.cat(waiting)
                    waiting = []
    if waiting:
        yield torch.cat(waiting)


def prepared_blocks(
    movie: Readable, prepare: Callable[[np.ndarray, int], Iterator[Tensor]], start: int = 0
) -> Generator[Tensor, None, None]:
    """Yield blocks (n, Y, X) of a movie from frame `start` on; `prepare` gets a block and its first frame."""
    for block in blocks(movie, start):
        yield torch.cat(list(prepare(block, start)))
        start += len(block)


def follow(
    movie: Readable, prepare: Callable[[np.ndarray, int], Iterator[Tensor]], progress: Progress
) -> Iterator[Tensor]:
    """Yield all prepared blocks of a movie, and report them in the stage "following"."""
    done = 0
    for frames in prepared_blocks(movie, prepare):
        yield frames
        done += len(frames)
        progress("following", done, movie.info.shape[0])


def report_frames(items: Iterable[Pair], report: Callable[[int], None]) -> Iterator[Pair]:
    """Yield the same items, and report how many frames have passed."""
    done = 0
    for item in items:
        done += len(item[0])
        report(done)
        yield item


# ---- slabs


@dataclass(frozen=True)
class Slab:
    """Frames [start, stop) of a movie that are read out together; it shares the last of them with the next slab."""

    start: int
    stop: int
    own: int  # frames before the next slab starts
    weights: np.ndarray  # (stop - start,), of its frames in the blended result


def plan_slabs(shape: tuple[int, int, int], free: float) -> list[Slab]:
    """Cut a movie (T, Y, X) into slabs of about equal length, for so many bytes of free memory.

    They are as near to SLAB_FRAMES as can be: shorter than 3/2 of it, so that memory does not grow with the movie.
    """
    frames, height, width = shape
    voxels = min(MAX_SLAB_VOXELS, free / SLAB_MEMORY_DIVISOR / SLAB_BYTES)
    longest = max(2, int(voxels / (height * width)))
    typical = min(SLAB_FRAMES, longest)
    overlap = min(SLAB_OVERLAP, typical // 4)
    count = max(1, round((frames - overlap) / (typical - overlap)))
    length = overlap + math.ceil((frames - overlap) / count)
    spans = tile_axis(frames, length if typical < length <= longest else typical, overlap, 1)
    ends = [span.start for span in spans[1:]] + [frames]
    return [Slab(span.start, span.stop, end - span.start, span.weights) for span, end in zip(spans, ends)]


def own_slabs(slabs: Sequence[Slab], share: range) -> tuple[list[Slab], int]:
    """Return the slabs that a rank computes, and the first frame that it writes.

    `share` is its share of them. It computes the slab before, too, which fades into its first one.
    """
    if not share:
        return [], slabs[-1].stop
    return list(slabs[max(0, share.start - 1) : share.stop]), slabs[share.start].start


def in_slabs(pairs: Iterable[Pair], slabs: Iterable[Slab]) -> Iterator[Pair]:
    """Collect residual and prediction (n, H, W) into slabs; frames that two slabs share are in both.

    The caller may overwrite a slab. The next one reuses its memory.
    """
    source = iter(pairs)
    pair: Sequence[Tensor] = (torch.zeros(0), torch.zeros(0))  # the part that is not in a slab yet
    overlap, buffers = pair, pair
    for slab in slabs:
        length, filled = slab.stop - slab.start, len(overlap[0])
        pair = pair if len(pair[0]) else next(source)
        if len(buffers[0]) < length:
            buffers = [x.new_empty(length, *x.shape[1:]) for x in pair]
        residual, prediction = (buffer[:length] for buffer in buffers)
        if filled:
            residual[:filled], prediction[:filled] = overlap
        while filled < length:
            pair = pair if len(pair[0]) else next(source)
            count = min(length - filled, len(pair[0]))
            residual[filled : filled + count] = pair[0][:count]
            prediction[filled : filled + count] = pair[1][:count]
            pair = [x[count:] for x in pair]
            filled += count
        overlap = [residual[slab.own :].clone(), prediction[slab.own :].clone()]
        yield residual, prediction


def blended(denoised: Iterable[Tensor], slabs: Iterable[Slab]) -> Iterator[tuple[int, Tensor]]:
    """Blend denoised slabs (n, H, W) where neighbours share frames; yield the start of each and its own frames."""
    tail = torch.zeros(0)
    for slab, frames in zip(slabs, denoised):
        frames.mul_(torch.from_numpy(slab.weights)[:, None, None].to(frames.device))
        if len(tail):
            frames[: len(tail)] += tail
        tail = frames[slab.own :].clone()
        yield slab.start, frames[: slab.own]


# ---- the result


def result_type(dtype: np.dtype) -> np.dtype:
    """Return the type of output frames: float32, or float64 for integers that float32 does not hold.

    >>> result_type(np.dtype("uint16")), result_type(np.dtype("int32"))
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float64 if dtype.kind in "iu" and dtype.itemsize >= 4 else np.float32)


def result_of(survey: Survey, network: Network) -> Result:
    """Return what was found, in the input's units, and warnings."""
    n, motion = survey.normalization, survey.motion
    gain, read_variance = (value / survey.context.frame_correlation.slow for value in survey.recorded_noise)
    gain, read_variance = gain * n.scale, read_variance * n.scale**2
    along_y, along_x = survey.smoothing.mean(0).tolist()
    return Result(
        percentile_values=(n.low, n.high),
        spread=n.spread,
        tiles=network.tiles,
        noise={"gain": gain, "read_variance": read_variance - gain * n.low},
        smoothing=(along_y, along_x),
        motion=motion.max_displacement,
        row_phase=motion.phase,
        flicker=n.scale * survey.light.flicker(float(survey.context.mean.mean())),
        warnings=[*network.notes, *warnings_of(survey)],
    )
