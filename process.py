"""Denoise the calcium-imaging movies of a folder: the story of a run, and of one movie.

    options -> which movies, where to -> device, weights -> each movie: open, denoise, write -> metadata.json

The command line stands in denoise.options; what keeps recordings safe in denoise.atomic (files, locks), .stopping
(signals) and .records (resume).

Exit status: 0 if every movie found was written, with all that was asked for beside it, 1 if not, 2 for a wrong command
line, 128 + n after signal n.
Progress and warnings go to stdout; errors to stderr, one line each: the platform shows its user the last one.
"""

from __future__ import annotations  # and no torch or numpy up here: --help and a wrong option answer at once

import io
import math
import os
import platform
import re
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise import NAME, __version__
from denoise.atomic import PartFile, discard_all, remove_leftovers, sole_use, write_file
from denoise.console import (
    Progress,
    complain,
    complain_once,
    duration,
    in_bytes,
    listed,
    open_streams,
    say,
    silence,
    tell,
)
from denoise.options import AUTO_MINUTES, CHALLENGE_MINUTES, UPLOADED_WEIGHTS, Options, parse_options
from denoise.records import (
    METADATA,
    files_at,
    fingerprints,
    is_complete,
    planned_outputs,
    read_metadata,
    read_records,
    saved_there,
    sha256,
    strict,
    write_metadata,
)
from denoise.stopping import Alarm, Lost, Stopped, StopSignals, ignore_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import numpy as np
    import torch

    from denoise.diagnostics import Diagnostics, Findings
    from denoise.formats import Part, Recording
    from denoise.inference import Result
    from denoise.layout import Job, Plan
    from denoise.movies import MovieInfo
    from denoise.outputs import PartsWriter
    from denoise.ranks import Share, Team
    from model import UNet3D

SHIPPED_WEIGHTS = Path(__file__).resolve().parent / UPLOADED_WEIGHTS.name
REPORTS = "report"  # the folder of --report below the output
DEMO_MINUTES = 1.0  # of --adapt auto with --demo, at most
# a movie may take longer by this than a trial says: one that moves, which shows on the way, is read several times, and
# parts of it are denoised twice (500 x 128 x 128 took 7.3 s, not 1.9; 500 x 256 x 256 20 s, not 7.7)
RESERVE = 4.0
COARSE = 1000  # steps of float32 within a movie's percentiles: fewer may show
FEW = 50  # steps of an integer type within a movie's percentiles: fewer may show where noise no longer hides them
SAVED_EVERY = 5.0  # seconds, at least, between two writings of the metadata on the way
SAVING_SHARE = 0.05  # of the run's time at most, when there are many movies
NOT_IN_RESULT = (
    "input",
    "output",
    "weights",
    "device",
    "overwrite",
    "resume",
    "report",
    "save_weights",
    "demo",
    "dry_run",
)  # options that --resume does not compare: of the weights it compares the content; devices differ by rounding and pace


class Refusal(Exception):
    """The run cannot start or end as asked; one line: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Run:
    """What the movies of a run share, and a record of each for the metadata."""

    options: Options
    plan: Plan
    device: torch.device
    model: UNet3D
    weights: dict[str, str]  # path and SHA-256
    signals: StopSignals
    team: Team
    earlier: dict[str, dict[str, Any]]  # records of movies that earlier runs finished, by output name
    started: datetime
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def common(self) -> Team:
        """Who works on the same movie as this process: all ranks where there are more of them than movies."""
        from denoise.ranks import ALONE

        return self.team if len(self.plan.jobs) < self.team.size else ALONE

    @cached_property
    def speed(self) -> float:
        """Voxels a second that this machine denoises, by a trial."""
        from denoise.estimate import trial_speed

        return trial_speed(self.model)


def main() -> int:
    """Do what the command line says; returns the exit status."""
    open_streams()
    options = parse_options()
    try:
        with StopSignals(say_farewell) as signals, join_team() as team, ExitStack() as held:
            with agreed(team):
                plan = make_plan(options)
                options = with_limit(options, plan)
                if not options.dry_run and not team.rank:
                    held.enter_context(own_output(options, plan))
            with agreed(team):
                run = prepare(options, plan, signals, team)
            return tell_plan(run) if options.dry_run else denoise_all(run)
    except (Refusal, Lost) as refusal:
        complain_once(str(refusal))
        return 1
    except Stopped as stopped:
        discard_all()  # it may have come between the making of a temporary file and the block that removes it
        say_farewell(stopped)
        return 128 + stopped.number
    except Alarm as alarm:
        complain(str(alarm))
        return 1
    except Exception as error:  # noqa: BLE001 - the last line on stderr has to make sense whatever happens
        tell(sys.stderr, traceback.format_exc())
        complain(unexpected(error))
        return 1


# ---- before the first movie: all that can be refused early


@contextmanager
def join_team() -> Iterator[Team]:
    """The processes that a launcher started as one run (docs/ranks.md); only the first tells how it goes."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a process that is gone is told in one line
        from denoise.ranks import launched

        with launched() as team:
            if team.rank:
                silence(sys.stdout)
            yield team
    else:
        from denoise.ranks import ALONE

        yield ALONE


@contextmanager
def agreed(team: Team) -> Iterator[None]:
    """What one process of the run refuses, all of them refuse, in its words. Raises Refusal."""
    refusal = None
    try:
        yield
    except Refusal as error:
        refusal = str(error)
    for told in team.all(refusal):
        if told is not None:
            raise Refusal(told)


def make_plan(options: Options) -> Plan:
    from denoise.layout import LayoutError, plan_movies

    try:
        plan = plan_movies(options.input, options.output, options.series, options.format == "same")
    except LayoutError as error:
        raise Refusal(str(error)) from error
    check_save_weights(options, plan)
    return plan


def with_limit(options: Options, plan: Plan) -> Options:
    """The options with the limit of time that is in force, so that the metadata tell it."""
    usual = CHALLENGE_MINUTES if plan.layout == "challenge" else None
    return replace(options, time_limit=options.time_limit or usual)


def check_save_weights(options: Options, plan: Plan) -> None:
    """One file takes the weights of one movie, never replaces one of this run, and no other unasked. Raises Refusal."""
    from denoise.layout import overlap

    path = options.save_weights
    if path is None:
        return
    if len(plan.jobs) != 1:
        raise Refusal(
            f"--save-weights {path}: expected one movie, whose weights it shall hold, found {len(plan.jobs)} in "
            f"{options.input}; choose one of them by --input"
        )
    (job,) = plan.jobs
    for what, places in taken_places(options, job).items():
        if any(overlap(path, place) for place in places):
            raise Refusal(
                f"--save-weights {path}: expected a file of its own, found {what}; choose another name"
            )
    earlier = read_records(options.output).get(strict(output_name(job, options)), {})
    replaces = path.is_file() and (options.overwrite or (options.resume and saved_there(earlier, path)))
    if os.path.lexists(path) and not replaces:
        one = "one that no earlier run saved there" if options.resume else "one"
        raise Refusal(
            f"--save-weights {path}: expected no such file yet, found {one}; choose another name, or --overwrite"
        )


def taken_places(options: Options, job: Job) -> dict[str, list[Path]]:
    """What a run reads and writes, by its name. Raises Refusal if the movie's files cannot be told."""
    from denoise.movies import MovieError

    try:
        inputs = [job.source, *job.series, *input_files(job)]
    except (MovieError, OSError) as error:
        raise Refusal(explain(error, job)) from error
    return {
        "a file of the input movie": inputs,
        "the place of the denoised movie": [job.output],
        "the place of the metadata": [options.output / METADATA],
        "the place of reports": [options.output / REPORTS],
        "the weights to start from": [weights_to_load(options.weights)],
    }


@contextmanager
def own_output(options: Options, plan: Plan) -> Iterator[None]:
    """Hold the output folder: made, writable, free of dead runs' leftovers and of other runs. Raises Refusal."""
    check_writable(options.output)
    if options.save_weights:
        check_writable(options.save_weights.parent)
    try:
        with sole_use(options.output) as locked:
            if not locked:
                say(
                    f"WARNING: {options.output} takes no locks: let no other run write there at the same time"
                )
            check_outputs(options, plan)
            if options.report:
                check_writable(options.output / REPORTS)
            for path in remove_leftovers(
                {options.output, options.output / REPORTS, *(job.output.parent for job in plan.jobs)}
            ):
                say(f"removed what a run that was killed left: {path}")
            yield
    except BlockingIOError as error:
        raise Refusal(
            f"{options.output}: expected no other run to write there, found one at work; "
            "wait until it ends, or choose another --output"
        ) from error


def check_outputs(options: Options, plan: Plan) -> None:
    """Raise Refusal where the run would replace what it is not asked to, or what no earlier run wrote."""
    from denoise.layout import LayoutError, refuse_existing

    known = planned_outputs(options.output)
    unknown = [job for job in plan.jobs if strict(output_name(job, options)) not in known]
    new = unknown if options.resume or options.demo else plan.jobs
    try:
        refuse_existing(plan, overwrite=True)
        if new:
            refuse_existing(replace(plan, jobs=new), options.overwrite)
    except LayoutError as error:
        raise Refusal(str(error)) from error
    others = [] if read_metadata(options.output) else [options.output / METADATA]
    if options.report:
        from denoise.report import files_of

        others += [path for job in unknown for path in files_of(report_stem(options, job, {}))]
    for path in others:
        if os.path.isdir(path) or (os.path.lexists(path) and not options.overwrite):
            raise Refusal(
                f"{path}: expected no such file but one of {NAME}, found another; "
                "move it away, or choose another --output (--overwrite replaces a file)"
            )


def check_writable(folder: Path) -> None:
    """Make the output folder and try to write in it: os.access cannot tell of a read-only file system."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PartFile(folder / "probe").discard()
    except OSError as error:
        file = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
        if not os.path.isdir(file):
            found = f"found a file{'' if file == folder else f' as {file}'}"
            raise Refusal(
                f"{folder}: expected a folder, {found}; move it away, or choose another folder"
            ) from error
        raise Refusal(
            f"{folder}: expected a folder that can be written, found: {error.strerror}; "
            "let this user write there, or choose another --output"
        ) from error


def prepare(options: Options, plan: Plan, signals: StopSignals, team: Team) -> Run:
    """Find weights, device and what earlier runs did. Raises Refusal before any work if the run cannot succeed."""
    from denoise.limits import reuse_memory

    started = datetime.now(timezone.utc)
    say(f"{NAME} {__version__}: {len(plan.jobs)} movie(s) in {options.input}, {plan.layout} layout")
    for warning in plan.warnings:
        say(f"WARNING: {warning}")
    device = choose_device(options.device, team)
    limit_threads()
    limit_memory()
    reuse_memory()
    model, weights = load_weights(options.weights, device)
    return Run(options, plan, device, model, weights, signals, team, read_records(options.output), started)


def choose_device(name: str, team: Team) -> torch.device:
    """The device asked for; only "auto" may end on the CPU without having named it."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and count == 0:
        say("no GPU found: running on the CPU")
    device = torch.device((f"cuda:{team.local % count}" if count else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise Refusal(
            f"--device {name}: expected it, found {count or 'no'} GPU usable by torch {torch.__version__}; "
            "give the container one (docker run --gpus all), or choose --device cpu"
        )
    say(f"device: {device} ({hardware_name(device)})")
    return device


def load_weights(given: Path | None, device: torch.device) -> tuple[UNet3D, dict[str, str]]:
    """The network, and the path and SHA-256 of its weights."""
    from model import ModelError, load_model

    path = weights_to_load(given)
    try:
        model = load_model(path, device)
        weights = {"path": str(path), "sha256": sha256(path)}
    except ModelError as error:
        raise Refusal(str(error)) from error
    say(f"weights: {path} (SHA-256 {weights['sha256']})")
    return model, weights


def weights_to_load(given: Path | None) -> Path:
    return given or (UPLOADED_WEIGHTS if UPLOADED_WEIGHTS.is_file() else SHIPPED_WEIGHTS)


def limit_threads() -> None:
    """No more threads than processors that this process may use: torch counts those of the whole machine."""
    import torch

    from denoise.limits import cpu_quota

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, math.ceil(min(torch.get_num_threads(), allowed, cpu_quota()))))


def limit_memory() -> None:
    """Ask for no more memory than there is: an error costs one movie, where the kernel would end the whole run."""
    if sys.platform != "linux":
        return
    import resource

    from denoise.limits import memory_there

    there = memory_there()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, there) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits, default=soft), hard))


# ---- the movies


def denoise_all(run: Run) -> int:
    """Denoise every movie and write the metadata, whatever happens; returns the exit status."""
    jobs = run.plan.jobs
    run.records.extend({"input": job.name, "output": output_name(job, run.options)} for job in jobs)
    for record in run.records:
        record["status"] = "not started"
    run.signals.last_words = partial(last_words, run)
    saved = Saved()
    try:
        for number, (job, record) in enumerate(zip(jobs, run.records, strict=True), 1):
            if run.common.size == 1 and number % run.team.size != run.team.rank:
                continue  # another rank's
            saved.now_and_then(run)
            attempt(run, job, record, Progress(f"[{number}/{len(jobs)}] {job.name}", run.signals))
            run.signals.check()
        run.team.all(None)  # every movie has had its turn
        collect_records(run)
        for name, reason in run.plan.unusable.items():
            message = f"{name}: {reason}"
            run.records.append({"input": name, "status": "failed", "error": {"message": message}})
            complain_once(message)
    finally:
        ignore_signals()
        save_metadata(run, "stopped" if run.signals.arrived else ending(run))
    return conclude(run)


def collect_records(run: Run) -> None:
    """Take over what other processes have left by now: the records of their movies, and the first's of common ones."""
    for record in run.records:
        if record["status"] == "not started" or run.common.rank:
            record.update(run.team.left(strict(record["output"])) or {})


def attempt(run: Run, job: Job, record: dict[str, Any], progress: Progress) -> None:
    """Denoise one movie into its record; a failure is told and recorded, and the next movie's turn comes."""
    start = time.monotonic()
    record["status"] = "stopped"  # unless it gets to its end
    progress.say("opening")  # should the program be killed, it shows at which movie
    try:
        if run.options.resume and run.common.of(0, take_over(run, job, record)):
            progress.say(f"complete since an earlier run: {record['output']}")
            return
        denoise_one(run, job, record, progress)
    except Exception as error:  # noqa: BLE001 - one bad movie must not cost the others
        message = explain(error, job)
        details = "".join(traceback.format_exception(error))
        record["error"] = {"message": message, "type": type(error).__name__, "traceback": details}
        if record["status"] != "ok":
            record["status"] = "failed"
        if not run.common.rank:
            complain(message)
    finally:
        progress.close()
        record.setdefault("seconds", time.monotonic() - start)
        record.update({k: v for k, v in peak_memory(run.device).items() if k not in record})
        if not run.common.rank:
            run.team.leave(strict(record["output"]), strict(record))


def take_over(run: Run, job: Job, record: dict[str, Any]) -> bool:
    """Whether an earlier run finished this very movie; its record then counts for this run too."""
    earlier = run.earlier.get(strict(record["output"]), {})
    if run.options.report and not all(has_report(run, job, note) for note in notes_of(earlier)):
        return False
    if run.options.save_weights and not saved_there(earlier, run.options.save_weights):
        return False
    if not is_complete(earlier, input_files(job), made_with(run), job.output):
        return False
    record.update({name: value for name, value in earlier.items() if name != "error"}, kept=True)
    return True


def has_report(run: Run, job: Job, note: dict[str, Any]) -> bool:
    """Whether page and picture of the report are there that the record of a movie or of a part of it tells of."""
    from denoise.report import files_of

    stem = report_stem(run.options, job, note)
    return "report" in note and all(path.is_file() for path in files_of(stem))


def open_job(job: Job, options: Options) -> Recording:
    """The movies of a file, or of a series of files."""
    from denoise.formats import open_recording, open_series

    if job.series:
        return open_series(job.series, options.frames)
    return open_recording(job.source, options.frames, options.dataset)


def input_files(job: Job) -> list[Path]:
    """All files that a movie is read from."""
    from denoise.formats import recording_files

    return [file for path in job.series or (job.source,) for file in recording_files(path)]


def denoise_one(run: Run, job: Job, record: dict[str, Any], progress: Progress) -> None:
    """The story of one movie: open it, denoise it frame by frame into a new file, and note what was done."""
    from denoise.movies import MovieError

    start = time.monotonic()
    with open_job(job, run.options) as recording:
        inputs = input_files(job)
        state = [changes(path) for path in inputs]
        record.update(made_with=made_with(run), input_files=fingerprints(inputs))
        dtype = output_dtype(recording.info, run.options)
        record.update(describe(recording), output_dtype=str(dtype))
        record["warnings"] = [*recording.info.notes, *dtype_warnings(recording.info, run)]
        progress.say(f"{in_words(recording)} -> {record['output']}")
        warn_of_time(run, recording, progress)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        team = sharing(run, job, recording)
        if run.common.rank and team.size == 1:
            return  # the first rank's alone
        with team.together(), writer_of(team, job, recording, dtype) as writer:
            done = denoise_parts(run, recording, writer, start, progress)
            if state != [changes(path) for path in inputs]:
                raise MovieError(
                    f"{job.name}: expected a movie that is complete, found it changed while it was read; "
                    "nothing was kept: run it again when it is"
                )
            note_parts(run, record, done, progress)
        record["status"] = "ok"  # whatever becomes of what is written beside it
    record["output_file"] = fingerprints(files_at(job.output))[0]
    speed = math.prod(recording.sizes) / (time.monotonic() - start)
    record["voxels_per_second"] = speed
    progress.say(f"done, {speed / 1e6:.3g} million voxels a second")
    try:
        write_beside(run, job, record, done, progress)
    finally:
        for warning in record["warnings"]:
            progress.say(f"WARNING: {warning}")


def sharing(run: Run, job: Job, recording: Recording) -> Team:
    """The ranks that write one output together: a TIFF of one movie, of which nothing needs all frames in order."""
    from denoise.ranks import ALONE

    options = run.options
    plain = len(recording.parts) == 1 and job.output.name.endswith(".tif")
    return run.common if plain and not options.report and not options.save_weights else ALONE


def writer_of(
    team: Team, job: Job, recording: Recording, dtype: np.dtype
) -> AbstractContextManager[PartsWriter | Share]:
    """What writes a movie, or this rank's share of it."""
    from denoise.outputs import output_writer
    from denoise.ranks import shared

    writer = output_writer(job.output, recording, dtype)
    return shared(writer, team) if team.size > 1 else writer


def denoise_parts(
    run: Run, recording: Recording, writer: PartsWriter | Share, start: float, progress: Progress
) -> list[tuple[Part, Result, Diagnostics | None]]:
    """Denoise every channel and plane of a movie that was begun at `start` (time.monotonic)."""
    from denoise.movies import MovieError

    count = len(recording.parts)
    if run.options.save_weights and count > 1:
        raise MovieError(
            f"--save-weights: expected one channel and plane, whose weights the file shall hold, found {count}; "
            "leave that option out"
        )
    done = []
    for number, part in enumerate(recording.parts):
        limit = adaptation_limit(run, recording.info.shape, count - number, start)
        done.append((part, *denoise_part(run, part, writer, limit, progress)))
    return done


def note_parts(
    run: Run, record: dict[str, Any], done: list[tuple[Part, Result, Diagnostics | None]], progress: Progress
) -> None:
    """Put what was found and done into the record, part by part where there are several."""
    if len(done) > 1:
        record["parts"] = [{"name": part.name} for part, *_ in done]
    for note, (part, result, _) in zip(notes_of(record), done, strict=True):
        note |= {"percentiles": run.options.percentiles, "percentile_values": result.percentile_values}
        note |= {"noise": result.noise, "smoothing": result.smoothing}
        note |= {"motion": result.motion, "row_phase": result.row_phase, "flicker": result.flicker}
        note["tiles"] = result.tiles
        note["adaptation"] = result.adaptation
        if result.adaptation:
            progress.say(adaptation_in_words(result.adaptation))
        record["warnings"] += [f"{part.name}: {text}" if part.name else text for text in result.warnings]


def notes_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What a record tells of each part: of the only one, the record itself."""
    parts: list[dict[str, Any]] = record.get("parts", [record])
    return parts


def write_beside(
    run: Run,
    job: Job,
    record: dict[str, Any],
    done: list[tuple[Part, Result, Diagnostics | None]],
    progress: Progress,
) -> None:
    """Write the weights and the reports that were asked for beside a complete output. Raises MovieError."""
    if run.options.save_weights:
        with written(job, run.options.save_weights):
            record |= save_weights(run, run.options.save_weights, record, done[0][1])
    for note, (_, result, diagnostics) in zip(notes_of(record), done, strict=True):
        if diagnostics:
            page = f"{report_stem(run.options, job, note)}.html"
            with written(job, page):
                findings = diagnostics.findings(result.noise, result.spread)
                note["report"] = write_report(run, job, record, note, findings)
            progress.say(f"report: {page}: {note['report']['verdict']}")


@contextmanager
def written(job: Job, path: Path | str) -> Iterator[None]:
    """Tells of a failure to write a file beside a complete output as such. Raises MovieError."""
    from denoise.movies import MovieError

    try:
        yield
    except Exception as error:
        found = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise MovieError(
            f"{job.name}: expected to write {path} beside the denoised movie, which is complete, found: {found}; "
            "check space and permissions"
        ) from error


def denoising_seconds(run: Run, shape: tuple[int, int, int], parts: int) -> float:
    """That so many movies (T, Y, X) take, by the trial, without adaptation; up to RESERVE times more."""
    return parts * math.prod(shape) / run.speed


def warn_of_time(run: Run, recording: Recording, progress: Progress) -> None:
    """The time limit shortens the adaptation alone: tell where the denoising itself will take longer."""
    limit = run.options.time_limit
    if limit is None:
        return
    seconds = denoising_seconds(run, recording.info.shape, len(recording.parts))
    if seconds > 60 * limit:
        progress.say(
            f"WARNING: expected to denoise it in the time limit of {duration(60 * limit)}, found that it will take "
            f"{duration(seconds)} on this machine, and more where the scene moves; it goes on all the same"
        )


def adaptation_limit(run: Run, shape: tuple[int, int, int], parts: int, start: float) -> float:
    """Minutes at most for adapting to the next of the `parts` (T, Y, X) that are left of a movie.

    They leave time to denoise them all before the limit of the movie, which began at `start` (time.monotonic).
    """
    from denoise.adaptation import MIN_FRAMES

    options = run.options
    auto = DEMO_MINUTES if options.demo else AUTO_MINUTES[run.device.type]
    wanted = auto if isinstance(options.adapt, str) else options.adapt
    limit = options.time_limit or math.inf
    if shape[0] < MIN_FRAMES or not wanted or math.isinf(limit):
        return wanted if shape[0] >= MIN_FRAMES else 0.0
    denoising = RESERVE * denoising_seconds(run, shape, parts)
    left = 60 * limit - (time.monotonic() - start) - denoising
    return min(wanted, max(0.0, left / 60 / parts))


def save_weights(run: Run, path: Path, record: dict[str, Any], result: Result) -> dict[str, Any]:
    """Keep the weights that a movie was denoised with; what the metadata tells of them."""
    from model import save_model

    origin = {
        "adapted_from": run.weights["sha256"],
        "movie": record["input"],
        "adaptation": result.adaptation,
    }
    content = io.BytesIO()
    save_model(content, result.model or run.model, {"program": f"{NAME} {__version__}", **origin})
    write_file(path, content.getvalue())
    if not result.adaptation or not result.adaptation["kept"]:
        record["warnings"].append(
            "--save-weights: expected weights adapted to the movie, found that it taught nothing that surely helps; "
            f"{path} holds the weights given"
        )
    return {"saved_weights": {"path": str(path), "sha256": sha256(path)}}


def denoise_part(
    run: Run, part: Part, writer: PartsWriter | Share, limit: float, progress: Progress
) -> tuple[Result, Diagnostics | None]:
    """Denoise one channel and plane, a movie of its own, into its place in the output, adapting for `limit` minutes."""
    from denoise.diagnostics import Diagnostics
    from denoise.inference import Settings, denoise_movie
    from denoise.ranks import Share

    if part.name:
        progress.say(part.name)
    if limit:
        most = f"at most {duration(60 * limit)}, less where that no longer helps"
        progress.say(f"adapting to it first, {most}; --adapt off leaves it out")
    diagnostics = Diagnostics(part.movie) if run.options.report else None
    write = writing(writer, part, diagnostics)
    settings = Settings(run.options.percentiles, limit)
    sharing = (run.common, writer.place) if isinstance(writer, Share) else ()
    result = denoise_movie(part.movie, run.model, settings, write, progress, *sharing)
    result.warnings.extend(resolution_warnings(result, part.movie.info.dtype, writer.dtype))
    return result, diagnostics


def resolution_warnings(result: Result, wanted: np.dtype, written: np.dtype) -> list[str]:
    """Where a movie is finer than the type that is written. Raises MovieError where nothing of it would be left."""
    import numpy as np

    from denoise.movies import MovieError

    spread = result.spread
    if not spread:  # a constant movie
        return []
    if np.issubdtype(written, np.integer):
        coarse = (
            f"{written} has steps of 1, and the movie ranges over {spread:.3g}: what is finer is rounded away"
        )
        return [f"{coarse}; leave --dtype input out for float32"] if spread < FEW else []
    step = float(np.spacing(np.float32(max(map(abs, result.percentile_values)))))
    if written != np.float32 or wanted.itemsize < 4 or wanted == written or spread > COARSE * step:
        return []
    found = f"float32 has steps of {step:.3g} at these intensities, which range over {spread:.3g}"
    if spread < np.finfo(np.float32).tiny:
        raise MovieError(
            f"expected intensities that float32 can tell apart, found that {found}; multiply them"
        )
    return [f"{found}; subtract an offset before, or for integers use --dtype input"]


def adaptation_in_words(found: dict[str, Any]) -> str:
    """What came of learning from the movie."""
    if not found["planned"]:
        return f"not adapted: {found['ended']}; the weights given are used"
    outcome = "kept" if found["kept"] else "not better by enough: the weights given are used"
    errors = f"{found['error_before']:.5f} -> {found['error_after']:.5f} (± {found['chance']:.5f})"
    steps = f"{found['steps']} of {found['planned']} steps ({found['ended']}), {duration(found['seconds'])}"
    return f"adapted in {steps}: error at held-out voxels {errors} noise variances; {outcome}"


def in_words(recording: Recording) -> str:
    """Such as "2 movies of 100 frames of 256 x 256, uint16"."""
    frames, height, width = recording.info.shape
    several = f"{len(recording.parts)} movies of " if len(recording.parts) > 1 else ""
    return f"{several}{frames} frames of {height} x {width}, {recording.info.dtype}"


def changes(path: Path) -> tuple[int, int]:
    """What tells that somebody wrote to a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def output_dtype(info: MovieInfo, options: Options) -> np.dtype:
    """float32, or on demand the movie's own type where the output can have it: not float64."""
    import numpy as np

    from denoise.writing import WRITABLE

    own = options.dtype == "input" and info.dtype.name in WRITABLE
    return info.dtype if own else np.dtype(np.float32)


def dtype_warnings(info: MovieInfo, run: Run) -> list[str]:
    wanted, chosen = info.dtype, output_dtype(info, run.options)
    warnings = []
    if run.options.dtype == "input" and chosen != wanted:
        warnings.append(
            f"--dtype input: expected a type that every TIFF reader takes, found {wanted}; wrote {chosen}"
        )
    if run.plan.layout == "challenge" and chosen.name != "float32":
        warnings.append(
            f"--dtype input: expected float32, which the challenge scores, found {chosen}, which rounds; "
            "leave that option out for a submission"
        )
    return warnings


def writing(
    writer: PartsWriter | Share, part: Part, diagnostics: Diagnostics | None
) -> Callable[[np.ndarray], None]:
    """Appends frames (n, Y, X) to a part, in the output's dtype, after the report has looked.

    NaN or infinity never gets into a file.
    """
    import numpy as np

    from denoise.movies import MovieError
    from denoise.writing import rounded

    def write(frames: np.ndarray) -> None:
        if not np.isfinite(frames).all():
            raise MovieError(
                "expected finite intensities as a result, found NaN or infinity; "
                "look for values near the limits of float32 in the movie"
            )
        if diagnostics:
            diagnostics.add(frames)
        writer.append_to(part, rounded(frames, writer.dtype))

    return write


def write_report(
    run: Run, job: Job, record: dict[str, Any], note: dict[str, Any], findings: Findings
) -> dict[str, Any]:
    """Write the report's page and picture; what of it goes into the metadata. note: the record of the part."""
    from denoise import report

    stem = report_stem(run.options, job, note)
    page, picture = report.write_report(findings, report_facts(run, job, record, note), stem)
    return {
        "page": page.relative_to(run.options.output).as_posix(),
        "picture": picture.relative_to(run.options.output).as_posix(),
        "verdict": findings.verdict,
        "level": findings.level,
        "checks": {check.question: check.answer for check in findings.checks},
        "numbers": findings.numbers,
    }


def report_stem(options: Options, job: Job, note: dict[str, Any]) -> Path:
    """Path and name, without a suffix, of the report about a movie, or about the part of it that the note names."""
    stem = options.output / REPORTS / job.title
    if "name" not in note:
        return stem
    return stem.with_name(f"{stem.name} {re.sub(r'[^0-9A-Za-z]+', '_', note['name']).strip('_')}")


def report_facts(run: Run, job: Job, record: dict[str, Any], note: dict[str, Any]) -> dict[str, Any]:
    """Settings and provenance, as the report tells them; the first three head its page."""
    axes = " x ".join(record["axes"])
    size, interval = record["pixel_size"], record["frame_interval"]
    told = [f"{size[1]:.4g} x {size[0]:.4g} micrometres a pixel"] if size else []
    told += [f"{1 / interval:.4g} frames a second"] if interval else []
    return {
        "title": f"{job.name}, {note['name']}" if "name" in note else job.name,
        "shape": f"{' x '.join(map(str, record['shape']))} ({axes}), {record['input_dtype']}",
        "calibration": ", ".join(told),
        "input": f"{record['input_files'][0]['name']}, SHA-256 {record['input_files'][0]['sha256']}",
        "output": f"{record['output']}, {record['output_dtype']}",
        "program": f"{NAME} {__version__}, torch {versions()['torch']}",
        "weights": f"{run.weights['path']}, SHA-256 {run.weights['sha256']}",
        "device": f"{run.device} ({hardware_name(run.device)})",
        "normalization": f"percentiles {run.options.percentiles[0]:g} and {run.options.percentiles[1]:g}, "
        f"found at {note['percentile_values'][0]:.5g} and {note['percentile_values'][1]:.5g}",
        "noise model": "gain {gain:.5g}, read variance {read_variance:.5g}".format(**note["noise"]),
        "smoothing undone": "{:.2g} from each neighbour along y, {:.2g} along x".format(*note["smoothing"]),
        "held still": "{:.2g} pixels at most along y, {:.2g} along x".format(*note["motion"]),
        "odd rows put in phase": "{:.2g} pixels along x".format(note["row_phase"]),
        "flicker held steady": "{:.3g} in brightness, root mean square".format(note["flicker"]),
        "adaptation": adaptation_in_words(note["adaptation"]) if note["adaptation"] else "none",
        "frames": ":".join("" if end is None else str(end) for end in run.options.frames),
        "speed": f"{record['voxels_per_second'] / 1e6:.3g} million voxels a second",
        "started": run.started.isoformat(timespec="seconds"),
        "warnings": "; ".join(record["warnings"]) or "none",
    }


def conclude(run: Run) -> int:
    """Tell how the run ended, a failure in a last line on stderr that says all; returns the exit status."""
    failed = failures(run)
    total = len(run.records)
    if not failed:
        say(f"done: {total} movie(s) written to {run.options.output}")
        return 0
    if total > 1:
        others = [record["input"] for record in failed[1:]]
        more = f"; also failed: {listed(others)}" if others else ""
        beside = ", or not what was asked for beside them" if any(r["status"] == "ok" for r in failed) else ""
        complain_once(
            f"{len(failed)} of {total} movies not written{beside}: {failed[0]['error']['message']}{more}"
        )
    return 1


def explain(error: Exception, job: Job) -> str:
    """One line about a movie's failure that names the movie."""
    from denoise.limits import lacks_memory
    from denoise.movies import MovieError

    if isinstance(error, MovieError):
        return str(error) if job.name in str(error) else f"{job.name}: {error}"
    if lacks_memory(error):
        text = f"expected enough memory, found too little ({error}); give it more, or a device with more"
    elif isinstance(error, OSError):
        found = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        text = f"expected to read it and write {job.output}, found: {found}; check space and permissions"
    else:
        text = unexpected(error)
    return f"{job.name}: {text}"


def unexpected(error: Exception) -> str:
    found = f"{type(error).__name__}: {error}"
    return f"expected to finish, found an error of the program ({found}); please report it"


# ---- what would be done


def tell_plan(run: Run) -> int:
    """List the movies of --dry-run with time, memory and disk; exit status 1 if one of them cannot be denoised.

    Raises Refusal as the run itself would where an output exists.
    """
    from denoise.estimate import report_seconds, working_bytes

    base = peak_memory(run.device)["peak_memory"]
    problems, total, disk = 0, 0.0, 0
    for job in run.plan.jobs:
        try:
            parts, shape, itemsize, told = look_at(job, run.options)
        except Exception as error:  # noqa: BLE001 - as in attempt: the others are looked at too
            problems += 1
            complain_once(explain(error, job))
            continue
        adapting = 60 * parts * adaptation_limit(run, shape, parts, time.monotonic())
        denoising = denoising_seconds(run, shape, parts)
        seconds = denoising + parts * run.options.report * report_seconds(shape) + adapting
        size = parts * math.prod(shape) * itemsize
        total, disk = total + seconds, disk + size
        memory = base + working_bytes(shape, run.device, run.options.report)
        cost = duration(seconds) + (f" (of it at most {duration(adapting)} to adapt)" if adapting else "")
        cost += f", up to {duration(seconds + (RESERVE - 1) * denoising)} where the scene moves"
        room = f"{in_bytes(memory)} of memory, {in_bytes(size)} on the disk"
        say(f"{job.name}: {told} -> {output_name(job, run.options)}; {cost}, {room}")
    for name, reason in run.plan.unusable.items():
        problems += 1
        complain_once(f"{name}: {reason}")
    pace = f"{run.speed / 1e6:.3g} million voxels a second as measured just now"
    say(f"dry run: {duration(total)} and {in_bytes(disk)} on the disk in all, at {pace}")
    check_outputs(run.options, run.plan)
    return 1 if problems else 0


def look_at(job: Job, options: Options) -> tuple[int, tuple[int, int, int], int, str]:
    """The number of movies in a file, the shape of each, the result's bytes a voxel, and its header in words."""
    with open_job(job, options) as recording:
        recording.parts[0].movie.read(0, 1)
        itemsize = output_dtype(recording.info, options).itemsize
        return len(recording.parts), recording.info.shape, itemsize, in_words(recording)


# ---- the metadata


class Saved:
    """Writes the metadata before the first output and between movies, so that a killed run can be resumed."""

    def __init__(self) -> None:
        self.next = 0.0

    def now_and_then(self, run: Run) -> None:
        start = time.monotonic()
        if start < self.next:
            return
        try:
            save_metadata(run, "running")
        except Refusal as refusal:  # at the end of the run it is an error; until then it may mend
            say(f"WARNING: {refusal}")
        end = time.monotonic()
        self.next = end + max(SAVED_EVERY, (end - start) / SAVING_SHARE)


def save_metadata(run: Run, status: str) -> None:
    """Write metadata.json, complete or not at all."""
    if run.team.rank:
        return
    with suppress(Lost):  # the records that a process took along
        collect_records(run)
    try:
        write_metadata(run.options.output, metadata(run, status))
    except OSError as error:
        found = f"found: {error.strerror}; the movies reported as done are complete"
        raise Refusal(f"{run.options.output / METADATA}: expected to write the metadata, {found}") from error


def last_words(run: Run, stopped: Stopped) -> None:
    """When a signal finds the main thread in a long computation: what it would have tidied up and said."""
    discard_all()
    save_metadata(run, "stopped")
    say_farewell(stopped)


def say_farewell(stopped: Stopped) -> None:
    rest = "the movies reported as done are complete, nothing is half-written; --resume goes on"
    complain_once(f"stopped by {stopped}: {rest}")


def ending(run: Run) -> str:
    return "failed" if failures(run) else "ok"


def failures(run: Run) -> list[dict[str, Any]]:
    """The records of movies that are not complete, or lack what was to be written beside them."""
    return [record for record in run.records if record["status"] != "ok" or "error" in record]


def made_with(run: Run) -> dict[str, Any]:
    """All that decides what a movie becomes."""
    settings = {name: value for name, value in vars(run.options).items() if name not in NOT_IN_RESULT}
    return {"version": __version__, "weights": run.weights["sha256"], "settings": settings}


def metadata(run: Run, status: str) -> dict[str, Any]:
    """All that is known of the run, as docs/metadata.md documents it.

    What an earlier run finished counts as finished until this one has replaced it.
    """
    import torch

    replaced = {strict(record["output"]) for record in run.records if record["status"] == "ok"}
    return {
        "program": {"name": NAME, "version": __version__},
        "versions": versions(),
        "status": status,
        "started": run.started.isoformat(timespec="seconds"),
        "seconds": (datetime.now(timezone.utc) - run.started).total_seconds(),
        "device": str(run.device),
        "hardware": hardware_name(run.device),
        "cpu_threads": torch.get_num_threads(),
        "weights": run.weights,
        "settings": vars(run.options),
        "layout": run.plan.layout,
        "warnings": run.plan.warnings,
        "movies": run.records,
        "earlier": [record for name, record in run.earlier.items() if name not in replaced],
    }


def describe(recording: Recording) -> dict[str, Any]:
    """What the input file says of its movie; pixel_size (y, x) in micrometres, frame_interval in seconds."""
    info = recording.info
    return {
        "shape": list(recording.sizes),
        "axes": info.axes,
        "input_dtype": str(info.dtype),
        "pixel_size": info.pixel_size,
        "frame_interval": info.frame_interval,
        **({"channels": recording.channels} if recording.channels else {}),
        **({"dataset": recording.dataset} if recording.dataset else {}),
    }


def output_name(job: Job, options: Options) -> str:
    return job.output.relative_to(options.output).as_posix()


def versions() -> dict[str, str]:
    import numpy
    import tifffile
    import torch

    modules = {"torch": torch, "numpy": numpy, "tifffile": tifffile}
    return {"python": platform.python_version()} | {name: str(m.__version__) for name, m in modules.items()}


def hardware_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    import torch

    from denoise.limits import read_text

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"^model name\s*:\s*(.+)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """The highest memory use of this process until now, in bytes: resident, and on the GPU."""
    import torch

    from denoise.limits import peak_resident

    peak = {"peak_memory": peak_resident()}
    return peak | (
        {"peak_gpu_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
    )


if __name__ == "__main__":
    sys.exit(main())
