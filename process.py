"""Denoise the calcium-imaging movies of a folder: the entry point, from the command line to the exit status.

    options -> which movies, where to -> device, weights -> each movie: open, denoise, write -> metadata.json

The command line is defined in denoise.options; recordings are kept safe by denoise.atomic (files, locks),
denoise.stopping (signals) and denoise.records (resume).

Exit status: 0 if every movie found was written, with all that was requested beside it, 1 if not, 2 for a wrong command
line, 128 + n after signal n.
Progress and warnings go to stdout; errors to stderr, one line each: Grand Challenge shows its user the last one.
"""

from __future__ import annotations  # no torch or numpy at the top: --help and a wrong option answer at once

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
from denoise.atomic import PartFile, discard_all, lock_folder, remove_leftovers, write_file
from denoise.console import (
    Progress,
    format_bytes,
    format_duration,
    join_names,
    open_streams,
    print_error,
    print_error_once,
    print_line,
    print_to,
    silence,
)
from denoise.options import AUTO_MINUTES, CHALLENGE_MINUTES, UPLOADED_WEIGHTS, Options, parse_options
from denoise.records import (
    METADATA,
    fingerprints,
    has_saved_weights,
    is_complete,
    json_values,
    list_files,
    planned_outputs,
    read_metadata,
    read_records,
    sha256,
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
    from denoise.ranks import ShareWriter, Team
    from model import UNet3D

SHIPPED_WEIGHTS = Path(__file__).resolve().parent / UPLOADED_WEIGHTS.name
REPORTS = "report"  # the folder of --report below the output
DEMO_MINUTES = 1.0  # at most, of --adapt auto with --demo
# A movie may take this many times as long as the trial suggests: with motion, which is only detected on the way, it is
# read several times, and parts of it are denoised twice (500 x 128 x 128: 7.3 s, not 1.9; 500 x 256 x 256: 20, not 7.7).
MOTION_FACTOR = 4.0
MIN_FLOAT_STEPS = 1000  # of float32 within a movie's percentiles: with fewer, rounding may be visible
MIN_INTEGER_STEPS = 50  # of an integer type likewise: with fewer, noise no longer hides the rounding
SAVE_INTERVAL = 5.0  # seconds, at least, between two writings of the metadata during the run
MAX_SAVING_SHARE = 0.05  # of the run's time, when there are many movies
# Options that --resume does not compare. It compares the content of the weights; devices differ by rounding and speed.
NOT_IN_RESULT = {
    "input", "output", "weights", "device", "overwrite", "resume", "report", "save_weights", "demo", "dry_run",
}  # fmt: skip


class Refusal(Exception):
    """The run cannot start or end as requested. One line: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Run:
    """What the movies of a run share, and the record of each for the metadata."""

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
    def movie_team(self) -> Team:
        """The ranks that work on the same movie as this one: all if there are more ranks than movies, else it alone."""
        from denoise.ranks import ALONE

        return self.team if len(self.plan.jobs) < self.team.size else ALONE

    @cached_property
    def speed(self) -> float:
        """Voxels a second that this machine denoises, measured by a trial."""
        from denoise.estimate import trial_speed

        return trial_speed(self.model)


@dataclass(frozen=True)
class PartResult:
    """What came of denoising one part (channel or plane) of a recording."""

    part: Part
    result: Result
    diagnostics: Diagnostics | None  # of --report


def main() -> int:
    """Run the command line and return the exit status."""
    open_streams()
    options = parse_options()
    try:
        with StopSignals(print_stopped) as signals, join_team() as team, ExitStack() as output_lock:
            with refuse_together(team):
                plan = make_plan(options)
                options = with_time_limit(options, plan)
                if not options.dry_run and not team.rank:
                    output_lock.enter_context(hold_output(options, plan))
            with refuse_together(team):
                run = prepare(options, plan, signals, team)
            return print_plan(run) if options.dry_run else denoise_all(run)
    except (Refusal, Lost) as refusal:
        print_error_once(str(refusal))
        return 1
    except Stopped as stopped:
        discard_all()  # the signal may have come between creating a temporary file and the block that removes it
        print_stopped(stopped)
        return 128 + stopped.number
    except Alarm as alarm:
        print_error(str(alarm))
        return 1
    except Exception as error:  # noqa: BLE001 - the last line on stderr has to make sense whatever happens
        print_to(sys.stderr, traceback.format_exc())
        print_error(unexpected_error(error))
        return 1


# ---- before the first movie: everything that can be refused early


@contextmanager
def join_team() -> Iterator[Team]:
    """Join the processes that a launcher started as one run (docs/ranks.md); only rank 0 prints progress."""
    from_launcher = os.environ.get("WORLD_SIZE", "1") != "1"
    if not from_launcher:
        from denoise.ranks import ALONE

        yield ALONE
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the loss of a process is reported in one line
    from denoise.ranks import join_launched_team

    with join_launched_team() as team:
        if team.rank:
            silence(sys.stdout)
        yield team


@contextmanager
def refuse_together(team: Team) -> Iterator[None]:
    """Raise the Refusal of one process of the run in all of them."""
    refusal = None
    try:
        yield
    except Refusal as error:
        refusal = str(error)
    for message in team.gather(refusal):
        if message is not None:
            raise Refusal(message)


def make_plan(options: Options) -> Plan:
    from denoise.layout import LayoutError, plan_movies

    try:
        plan = plan_movies(options.input, options.output, options.series, options.format == "same")
    except LayoutError as error:
        raise Refusal(str(error)) from error
    check_save_weights(options, plan)
    return plan


def with_time_limit(options: Options, plan: Plan) -> Options:
    """Return the options with the time limit in force, so that the metadata show it."""
    default = CHALLENGE_MINUTES if plan.layout == "challenge" else None
    return replace(options, time_limit=options.time_limit or default)


def check_save_weights(options: Options, plan: Plan) -> None:
    """Raise Refusal unless --save-weights names a file for one movie, which replaces none that it must not replace."""
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
    for description, taken in taken_paths(options, job).items():
        if any(overlap(path, other) for other in taken):
            raise Refusal(
                f"--save-weights {path}: expected a file of its own, found {description}; choose another name"
            )
    earlier = read_records(options.output).get(json_values(output_name(job, options)), {})
    may_replace = path.is_file() and (
        options.overwrite or (options.resume and has_saved_weights(earlier, path))
    )
    if os.path.lexists(path) and not may_replace:
        existing = "one that no earlier run saved there" if options.resume else "one"
        raise Refusal(
            f"--save-weights {path}: expected no such file yet, found {existing}; choose another name, or --overwrite"
        )


def taken_paths(options: Options, job: Job) -> dict[str, list[Path]]:
    """Return what a run reads and writes, by description. Raises Refusal if the movie's files cannot be listed."""
    from denoise.movies import MovieError

    try:
        inputs = [job.source, *job.series, *input_files(job)]
    except (MovieError, OSError) as error:
        raise Refusal(failure_message(error, job)) from error
    return {
        "a file of the input movie": inputs,
        "the place of the denoised movie": [job.output],
        "the place of the metadata": [options.output / METADATA],
        "the place of reports": [options.output / REPORTS],
        "the weights to start from": [weights_path(options.weights)],
    }


@contextmanager
def hold_output(options: Options, plan: Plan) -> Iterator[None]:
    """Create, check and lock the output folder, and remove what dead runs left there. Raises Refusal."""
    check_writable(options.output)
    if options.save_weights:
        check_writable(options.save_weights.parent)
    try:
        with lock_folder(options.output) as locked:
            if not locked:
                print_line(
                    f"WARNING: {options.output} takes no locks: let no other run write there at the same time"
                )
            check_outputs(options, plan)
            if options.report:
                check_writable(options.output / REPORTS)
            folders = {options.output, options.output / REPORTS, *(job.output.parent for job in plan.jobs)}
            for path in remove_leftovers(folders):
                print_line(f"removed what a run that was killed left: {path}")
            yield
    except BlockingIOError as error:
        raise Refusal(
            f"{options.output}: expected no other run to write there, found one at work; "
            "wait until it ends, or choose another --output"
        ) from error


def check_outputs(options: Options, plan: Plan) -> None:
    """Raise Refusal where the run would replace existing files without --overwrite, or files of other programs."""
    from denoise.layout import LayoutError, refuse_existing

    planned = planned_outputs(options.output)
    unplanned_jobs = [job for job in plan.jobs if json_values(output_name(job, options)) not in planned]
    new_jobs = unplanned_jobs if options.resume or options.demo else plan.jobs
    try:
        refuse_existing(plan, overwrite=True)
        if new_jobs:
            refuse_existing(replace(plan, jobs=new_jobs), options.overwrite)
    except LayoutError as error:
        raise Refusal(str(error)) from error
    others = [] if read_metadata(options.output) else [options.output / METADATA]
    if options.report:
        from denoise.report import report_paths

        others += [path for job in unplanned_jobs for path in report_paths(report_stem(options, job, {}))]
    for path in others:
        if os.path.isdir(path) or (os.path.lexists(path) and not options.overwrite):
            raise Refusal(
                f"{path}: expected no such file but one of {NAME}, found another; "
                "move it away, or choose another --output (--overwrite replaces a file)"
            )


def check_writable(folder: Path) -> None:
    """Create the folder and try to write in it: os.access does not detect a read-only file system. Raises Refusal."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PartFile(folder / "probe").discard()
    except OSError as error:
        existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
        if not os.path.isdir(existing):
            found = f"found a file{'' if existing == folder else f' as {existing}'}"
            raise Refusal(
                f"{folder}: expected a folder, {found}; move it away, or choose another folder"
            ) from error
        raise Refusal(
            f"{folder}: expected a folder that can be written, found: {error.strerror}; "
            "let this user write there, or choose another --output"
        ) from error


def prepare(options: Options, plan: Plan, signals: StopSignals, team: Team) -> Run:
    """Find device, weights and the records of earlier runs. Raises Refusal before any work if the run cannot succeed."""
    from denoise.limits import limit_memory, limit_threads, reuse_memory

    started = datetime.now(timezone.utc)
    print_line(f"{NAME} {__version__}: {len(plan.jobs)} movie(s) in {options.input}, {plan.layout} layout")
    for warning in plan.warnings:
        print_line(f"WARNING: {warning}")
    device = choose_device(options.device, team)
    limit_threads()
    limit_memory()
    reuse_memory()
    model, weights = load_weights(options.weights, device)
    return Run(options, plan, device, model, weights, signals, team, read_records(options.output), started)


def choose_device(name: str, team: Team) -> torch.device:
    """Return the device of that name; "auto" is this rank's GPU, or the CPU if there is none. Raises Refusal."""
    import torch

    from denoise.limits import hardware_name

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and count == 0:
        print_line("no GPU found: running on the CPU")
    device = torch.device((f"cuda:{team.local % count}" if count else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise Refusal(
            f"--device {name}: expected it, found {count or 'no'} GPU usable by torch {torch.__version__}; "
            "give the container one (docker run --gpus all), or choose --device cpu"
        )
    print_line(f"device: {device} ({hardware_name(device)})")
    return device


def load_weights(option: Path | None, device: torch.device) -> tuple[UNet3D, dict[str, str]]:
    """Load the network, and return it with path and SHA-256 of its weights. Raises Refusal."""
    from model import ModelError, load_model

    path = weights_path(option)
    try:
        model = load_model(path, device)
        weights = {"path": str(path), "sha256": sha256(path)}
    except ModelError as error:
        raise Refusal(str(error)) from error
    print_line(f"weights: {path} (SHA-256 {weights['sha256']})")
    return model, weights


def weights_path(option: Path | None) -> Path:
    return option or (UPLOADED_WEIGHTS if UPLOADED_WEIGHTS.is_file() else SHIPPED_WEIGHTS)


# ---- the movies


def denoise_all(run: Run) -> int:
    """Denoise every movie and write the metadata, whatever happens; return the exit status."""
    jobs = run.plan.jobs
    run.records.extend(
        {"input": job.name, "output": output_name(job, run.options), "status": "not started"} for job in jobs
    )
    run.signals.last_words = partial(save_and_report_stop, run)
    saver = MetadataSaver()
    try:
        for number, (job, record) in enumerate(zip(jobs, run.records, strict=True), 1):
            if run.movie_team.size == 1 and number % run.team.size != run.team.rank:
                continue  # a movie of another rank
            saver.save_if_due(run)
            try_movie(run, job, record, Progress(f"[{number}/{len(jobs)}] {job.name}", run.signals))
            run.signals.check()
        run.team.gather(None)  # wait until every rank is done
        collect_records(run)
        for name, reason in run.plan.unusable.items():
            message = f"{name}: {reason}"
            run.records.append({"input": name, "status": "failed", "error": {"message": message}})
            print_error_once(message)
    finally:
        ignore_signals()
        save_metadata(run, "stopped" if run.signals.arrived else final_status(run))
    return report_outcome(run)


def collect_records(run: Run) -> None:
    """Copy the records that other ranks have published: of their movies, and rank 0's of movies in common."""
    for record in run.records:
        if record["status"] == "not started" or run.movie_team.rank:
            record.update(run.team.published(json_values(record["output"])) or {})


def try_movie(run: Run, job: Job, record: dict[str, Any], progress: Progress) -> None:
    """Denoise one movie and fill in its record; report and record a failure, so that the next movie can follow."""
    from denoise.limits import peak_memory

    start = time.monotonic()
    record["status"] = "stopped"  # unless it gets to its end
    progress.print_line("opening")  # if the program is killed, this shows at which movie
    try:
        if run.options.resume and run.movie_team.broadcast(0, keep_earlier(run, job, record)):
            progress.print_line(f"complete since an earlier run: {record['output']}")
            return
        denoise_movie_file(run, job, record, progress)
    except Exception as error:  # noqa: BLE001 - one bad movie must not cost the others
        message = failure_message(error, job)
        details = "".join(traceback.format_exception(error))
        record["error"] = {"message": message, "type": type(error).__name__, "traceback": details}
        if record["status"] != "ok":
            record["status"] = "failed"
        if not run.movie_team.rank:
            print_error(message)
    finally:
        progress.close()
        record.setdefault("seconds", time.monotonic() - start)
        for name, peak in peak_memory(run.device).items():
            record.setdefault(name, peak)
        if not run.movie_team.rank:
            run.team.publish(json_values(record["output"]), json_values(record))


def keep_earlier(run: Run, job: Job, record: dict[str, Any]) -> bool:
    """Return whether an earlier run has finished this very movie; its record then counts for this run, too."""
    earlier = run.earlier.get(json_values(record["output"]), {})
    if run.options.report and not all(has_report(run, job, entry) for entry in part_records(earlier)):
        return False
    if run.options.save_weights and not has_saved_weights(earlier, run.options.save_weights):
        return False
    if not is_complete(earlier, input_files(job), made_with(run), job.output):
        return False
    record.update({name: value for name, value in earlier.items() if name != "error"}, kept=True)
    return True


def has_report(run: Run, job: Job, part_record: dict[str, Any]) -> bool:
    """Return whether page and picture of the report on a part exist, according to its record and on the disk."""
    from denoise.report import report_paths

    stem = report_stem(run.options, job, part_record)
    return "report" in part_record and all(path.is_file() for path in report_paths(stem))


def open_job(job: Job, options: Options) -> Recording:
    """Open the movies of a file, or of a series of files."""
    from denoise.formats import open_recording, open_series

    if job.series:
        return open_series(job.series, options.frames)
    return open_recording(job.source, options.frames, options.dataset)


def input_files(job: Job) -> list[Path]:
    """Return all files that a movie is read from."""
    from denoise.formats import recording_files

    return [file for path in job.series or (job.source,) for file in recording_files(path)]


def denoise_movie_file(run: Run, job: Job, record: dict[str, Any], progress: Progress) -> None:
    """Process one movie: open it, denoise it block by block into a new file, and record what was done."""
    start = time.monotonic()
    with open_job(job, run.options) as recording:
        inputs = input_files(job)
        states = [file_state(path) for path in inputs]
        record_input(run, record, recording, inputs)
        progress.print_line(f"{describe_recording(recording)} -> {record['output']}")
        warn_of_time(run, recording, progress)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        team = writing_team(run, job, recording)
        if run.movie_team.rank and team.size == 1:
            return  # rank 0 writes this movie alone
        with team.fail_together(), open_writer(run, team, job, recording) as writer:
            results = denoise_parts(run, recording, writer, start, progress)
            check_unchanged(job, inputs, states)
            record_results(run, record, results, progress)
        record["status"] = "ok"  # even if weights or reports, written below, fail
    record["output_file"] = fingerprints(list_files(job.output))[0]
    speed = math.prod(recording.sizes) / (time.monotonic() - start)
    record["voxels_per_second"] = speed
    progress.print_line(f"done, {speed / 1e6:.3g} million voxels a second")
    try:
        write_extras(run, job, record, results, progress)
    finally:
        for warning in record["warnings"]:
            progress.print_line(f"WARNING: {warning}")


def record_input(run: Run, record: dict[str, Any], recording: Recording, inputs: list[Path]) -> None:
    """Put into the record what the movie is, and what it is denoised with."""
    record.update(made_with=made_with(run), input_files=fingerprints(inputs))
    dtype = output_dtype(recording.info, run.options)
    record.update(recording_metadata(recording), output_dtype=str(dtype))
    record["warnings"] = [*recording.info.notes, *dtype_warnings(recording.info, run)]


def file_state(path: Path) -> tuple[int, int]:
    """Return size and modification time, which change if the file is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_unchanged(job: Job, inputs: list[Path], states: list[tuple[int, int]]) -> None:
    """Raise MovieError if an input file was written to after its state was taken."""
    from denoise.movies import MovieError

    if states != [file_state(path) for path in inputs]:
        raise MovieError(
            f"{job.name}: expected a movie that is complete, found it changed while it was read; "
            "nothing was kept: run it again when it is"
        )


def writing_team(run: Run, job: Job, recording: Recording) -> Team:
    """Return the ranks that write an output together: a TIFF of one movie, if nothing needs all frames in order."""
    from denoise.ranks import ALONE

    options = run.options
    is_plain = len(recording.parts) == 1 and job.output.name.endswith(".tif")
    return run.movie_team if is_plain and not options.report and not options.save_weights else ALONE


def open_writer(
    run: Run, team: Team, job: Job, recording: Recording
) -> AbstractContextManager[PartsWriter | ShareWriter]:
    """Return the writer of a movie, or of this rank's share of it."""
    from denoise.outputs import output_writer
    from denoise.ranks import share_writer

    writer = output_writer(job.output, recording, output_dtype(recording.info, run.options))
    return share_writer(writer, team) if team.size > 1 else writer


def denoise_parts(
    run: Run, recording: Recording, writer: PartsWriter | ShareWriter, start: float, progress: Progress
) -> list[PartResult]:
    """Denoise every channel and plane of a movie, whose time limit counts from `start` (time.monotonic)."""
    from denoise.movies import MovieError

    count = len(recording.parts)
    if run.options.save_weights and count > 1:
        raise MovieError(
            f"--save-weights: expected one channel and plane, whose weights the file shall hold, found {count}; "
            "leave that option out"
        )
    results = []
    for number, part in enumerate(recording.parts):
        minutes = adaptation_minutes(run, recording.info.shape, count - number, start)
        results.append(denoise_part(run, part, writer, minutes, progress))
    return results


def denoise_part(
    run: Run, part: Part, writer: PartsWriter | ShareWriter, minutes: float, progress: Progress
) -> PartResult:
    """Denoise one channel and plane into its place in the output, after adapting to it for at most `minutes`."""
    from denoise.diagnostics import Diagnostics
    from denoise.inference import Settings, denoise_movie
    from denoise.ranks import ShareWriter

    if part.name:
        progress.print_line(part.name)
    if minutes:
        limit = f"at most {format_duration(60 * minutes)}, less where that no longer helps"
        progress.print_line(f"adapting to it first, {limit}; --adapt off leaves it out")
    diagnostics = Diagnostics(part.movie) if run.options.report else None
    write = frame_writer(writer, part, diagnostics)
    settings = Settings(run.options.percentiles, minutes)
    team_and_seek = (run.movie_team, writer.seek) if isinstance(writer, ShareWriter) else ()
    result = denoise_movie(part.movie, run.model, settings, write, progress, *team_and_seek)
    result.warnings.extend(resolution_warnings(result, part.movie.info.dtype, writer.dtype))
    return PartResult(part, result, diagnostics)


def frame_writer(
    writer: PartsWriter | ShareWriter, part: Part, diagnostics: Diagnostics | None
) -> Callable[[np.ndarray], None]:
    """Return a function that passes frames (n, Y, X) to the diagnostics and appends them to a part of the output.

    Frames are rounded to the output's dtype. NaN or infinity is never written.
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


def record_results(run: Run, record: dict[str, Any], results: list[PartResult], progress: Progress) -> None:
    """Put what was estimated and done into the record, part by part if there are several."""
    if len(results) > 1:
        record["parts"] = [{"name": done.part.name} for done in results]
    for entry, done in zip(part_records(record), results, strict=True):
        result, name = done.result, done.part.name
        entry |= {
            "percentiles": run.options.percentiles,
            "percentile_values": result.percentile_values,
            "noise": result.noise,
            "smoothing": result.smoothing,
            "motion": result.motion,
            "row_phase": result.row_phase,
            "flicker": result.flicker,
            "tiles": result.tiles,
            "adaptation": result.adaptation,
        }
        if result.adaptation:
            progress.print_line(describe_adaptation(result.adaptation))
        record["warnings"] += [f"{name}: {warning}" if name else warning for warning in result.warnings]


def part_records(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the record of each part of a movie: for a single part, the record of the movie itself."""
    parts: list[dict[str, Any]] = record.get("parts", [record])
    return parts


# ---- the time that a movie may take


def denoising_seconds(run: Run, shape: tuple[int, int, int], parts: int) -> float:
    """Estimate by the trial how long denoising `parts` movies (T, Y, X) takes; MOTION_FACTOR times more with motion."""
    return parts * math.prod(shape) / run.speed


def warn_of_time(run: Run, recording: Recording, progress: Progress) -> None:
    """Warn if denoising alone exceeds the time limit, which shortens nothing but the adaptation."""
    limit = run.options.time_limit
    if limit is None:
        return
    seconds = denoising_seconds(run, recording.info.shape, len(recording.parts))
    if seconds > 60 * limit:
        progress.print_line(
            f"WARNING: expected to denoise it in the time limit of {format_duration(60 * limit)}, found that it will "
            f"take {format_duration(seconds)} on this machine, and more where the scene moves; "
            "it goes on all the same"
        )


def adaptation_minutes(run: Run, shape: tuple[int, int, int], parts: int, start: float) -> float:
    """Return for how long to adapt at most to the next of the `parts` (T, Y, X) of a movie that remain.

    The time limit of the movie counts from `start` (time.monotonic), and must leave time to denoise all of them.
    """
    from denoise.adaptation import MIN_FRAMES

    options = run.options
    auto = DEMO_MINUTES if options.demo else AUTO_MINUTES[run.device.type]
    wanted = auto if isinstance(options.adapt, str) else options.adapt
    if shape[0] < MIN_FRAMES:
        return 0.0
    if not wanted or options.time_limit is None:
        return wanted
    denoising = MOTION_FACTOR * denoising_seconds(run, shape, parts)
    left = 60 * options.time_limit - (time.monotonic() - start) - denoising
    return min(wanted, max(0.0, left / 60 / parts))


# ---- data types of the output


def output_dtype(info: MovieInfo, options: Options) -> np.dtype:
    """Return float32, or with --dtype input the movie's own type if the output can have it (not float64)."""
    import numpy as np

    from denoise.writing import WRITABLE

    keep_input = options.dtype == "input" and info.dtype.name in WRITABLE
    return info.dtype if keep_input else np.dtype(np.float32)


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


def resolution_warnings(result: Result, wanted: np.dtype, written: np.dtype) -> list[str]:
    """Warn if the written type rounds a movie visibly. Raises MovieError if nothing of it would be left."""
    import numpy as np

    from denoise.movies import MovieError

    spread = result.spread
    if not spread:  # a constant movie
        return []
    if np.issubdtype(written, np.integer):
        coarse = (
            f"{written} has steps of 1, and the movie ranges over {spread:.3g}: what is finer is rounded away; "
            "leave --dtype input out for float32"
        )
        return [coarse] if spread < MIN_INTEGER_STEPS else []
    step = float(np.spacing(np.float32(max(map(abs, result.percentile_values)))))
    if written != np.float32 or wanted.itemsize < 4 or wanted == written or spread > MIN_FLOAT_STEPS * step:
        return []
    rounding = f"float32 has steps of {step:.3g} at these intensities, which range over {spread:.3g}"
    if spread < np.finfo(np.float32).tiny:
        raise MovieError(
            f"expected intensities that float32 can tell apart, found that {rounding}; multiply them"
        )
    return [f"{rounding}; subtract an offset before, or for integers use --dtype input"]


# ---- beside the denoised movie: adapted weights and reports


def write_extras(
    run: Run, job: Job, record: dict[str, Any], results: list[PartResult], progress: Progress
) -> None:
    """Write the requested weights and reports after the output is complete. Raises MovieError."""
    if run.options.save_weights:
        with writing_extra(job, run.options.save_weights):
            record |= save_weights(run, run.options.save_weights, record, results[0].result)
    for entry, done in zip(part_records(record), results, strict=True):
        if done.diagnostics:
            page = f"{report_stem(run.options, job, entry)}.html"
            with writing_extra(job, page):
                findings = done.diagnostics.findings(done.result.noise, done.result.spread)
                entry["report"] = write_report(run, job, record, entry, findings)
            progress.print_line(f"report: {page}: {entry['report']['verdict']}")


@contextmanager
def writing_extra(job: Job, path: Path | str) -> Iterator[None]:
    """Raise MovieError, which says that the output is complete, if a file beside it cannot be written."""
    from denoise.movies import MovieError

    try:
        yield
    except Exception as error:
        cause = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise MovieError(
            f"{job.name}: expected to write {path} beside the denoised movie, which is complete, found: {cause}; "
            "check space and permissions"
        ) from error


def save_weights(run: Run, path: Path, record: dict[str, Any], result: Result) -> dict[str, Any]:
    """Save the weights that a movie was denoised with, and return their entry for the metadata."""
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


def write_report(
    run: Run, job: Job, record: dict[str, Any], part_record: dict[str, Any], findings: Findings
) -> dict[str, Any]:
    """Write page and picture of the report on a part, and return its entry for the metadata."""
    from denoise import report

    stem = report_stem(run.options, job, part_record)
    page, picture = report.write_report(findings, report_facts(run, job, record, part_record), stem)
    return {
        "page": page.relative_to(run.options.output).as_posix(),
        "picture": picture.relative_to(run.options.output).as_posix(),
        "verdict": findings.verdict,
        "level": findings.level,
        "checks": {check.question: check.answer for check in findings.checks},
        "numbers": findings.numbers,
    }


def report_stem(options: Options, job: Job, part_record: dict[str, Any]) -> Path:
    """Return the path, without a suffix, of the report on a movie, or on a part if its record has a name."""
    stem = options.output / REPORTS / job.title
    if "name" not in part_record:
        return stem
    return stem.with_name(f"{stem.name} {re.sub(r'[^0-9A-Za-z]+', '_', part_record['name']).strip('_')}")


def report_facts(run: Run, job: Job, record: dict[str, Any], part_record: dict[str, Any]) -> dict[str, Any]:
    """Return settings and provenance for the report, in words; the first three head its page."""
    from denoise.limits import hardware_name

    source, part = record["input_files"][0], part_record
    size, interval = record["pixel_size"], record["frame_interval"]
    calibration = [f"{size[1]:.4g} x {size[0]:.4g} micrometres a pixel"] if size else []
    calibration += [f"{1 / interval:.4g} frames a second"] if interval else []
    return {
        "title": f"{job.name}, {part['name']}" if "name" in part else job.name,
        "shape": f"{' x '.join(map(str, record['shape']))} ({' x '.join(record['axes'])}), {record['input_dtype']}",
        "calibration": ", ".join(calibration),
        "input": f"{source['name']}, SHA-256 {source['sha256']}",
        "output": f"{record['output']}, {record['output_dtype']}",
        "program": f"{NAME} {__version__}, torch {versions()['torch']}",
        "weights": f"{run.weights['path']}, SHA-256 {run.weights['sha256']}",
        "device": f"{run.device} ({hardware_name(run.device)})",
        "normalization": f"percentiles {run.options.percentiles[0]:g} and {run.options.percentiles[1]:g}, "
        f"found at {part['percentile_values'][0]:.5g} and {part['percentile_values'][1]:.5g}",
        "noise model": "gain {gain:.5g}, read variance {read_variance:.5g}".format(**part["noise"]),
        "smoothing undone": "{:.2g} from each neighbour along y, {:.2g} along x".format(*part["smoothing"]),
        "held still": "{:.2g} pixels at most along y, {:.2g} along x".format(*part["motion"]),
        "odd rows put in phase": "{:.2g} pixels along x".format(part["row_phase"]),
        "flicker held steady": "{:.3g} in brightness, root mean square".format(part["flicker"]),
        "adaptation": describe_adaptation(part["adaptation"]) if part["adaptation"] else "none",
        "frames": ":".join("" if end is None else str(end) for end in run.options.frames),
        "speed": f"{record['voxels_per_second'] / 1e6:.3g} million voxels a second",
        "started": run.started.isoformat(timespec="seconds"),
        "warnings": "; ".join(record["warnings"]) or "none",
    }


# ---- messages


def report_outcome(run: Run) -> int:
    """Print how the run ended, failures in a last line on stderr that is complete in itself; return the exit status."""
    failed = failures(run)
    total = len(run.records)
    if not failed:
        print_line(f"done: {total} movie(s) written to {run.options.output}")
        return 0
    if total > 1:
        others = [record["input"] for record in failed[1:]]
        more = f"; also failed: {join_names(others)}" if others else ""
        beside = ", or not what was asked for beside them" if any(r["status"] == "ok" for r in failed) else ""
        print_error_once(
            f"{len(failed)} of {total} movies not written{beside}: {failed[0]['error']['message']}{more}"
        )
    return 1


def failure_message(error: Exception, job: Job) -> str:
    """Return one line about the failure of a movie, which names the movie."""
    from denoise.limits import is_out_of_memory
    from denoise.movies import MovieError

    if isinstance(error, MovieError):
        return str(error) if job.name in str(error) else f"{job.name}: {error}"
    if is_out_of_memory(error):
        text = f"expected enough memory, found too little ({error}); give it more, or a device with more"
    elif isinstance(error, OSError):
        cause = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        text = f"expected to read it and write {job.output}, found: {cause}; check space and permissions"
    else:
        text = unexpected_error(error)
    return f"{job.name}: {text}"


def unexpected_error(error: Exception) -> str:
    return f"expected to finish, found an error of the program ({type(error).__name__}: {error}); please report it"


def print_stopped(stopped: Stopped) -> None:
    advice = "the movies reported as done are complete, nothing is half-written; --resume goes on"
    print_error_once(f"stopped by {stopped}: {advice}")


def describe_adaptation(adaptation: dict[str, Any]) -> str:
    """Describe the outcome of adapting to a movie, from its entry in the metadata."""
    if not adaptation["planned"]:
        return f"not adapted: {adaptation['ended']}; the weights given are used"
    outcome = "kept" if adaptation["kept"] else "not better by enough: the weights given are used"
    errors = (
        f"{adaptation['error_before']:.5f} -> {adaptation['error_after']:.5f} (± {adaptation['chance']:.5f})"
    )
    steps = f"{adaptation['steps']} of {adaptation['planned']} steps ({adaptation['ended']})"
    took = format_duration(adaptation["seconds"])
    return f"adapted in {steps}, {took}: error at held-out voxels {errors} noise variances; {outcome}"


def describe_recording(recording: Recording) -> str:
    """Describe a recording, such as "2 movies of 100 frames of 256 x 256, uint16"."""
    frames, height, width = recording.info.shape
    several = f"{len(recording.parts)} movies of " if len(recording.parts) > 1 else ""
    return f"{several}{frames} frames of {height} x {width}, {recording.info.dtype}"


# ---- the dry run


def print_plan(run: Run) -> int:
    """List the movies of --dry-run with time, memory and disk space; exit status 1 if one of them cannot be denoised.

    Raises Refusal where an output exists, as the run itself would.
    """
    from denoise.estimate import report_seconds, working_bytes
    from denoise.limits import peak_memory

    idle_memory = peak_memory(run.device)["peak_memory"]
    problems, total_seconds, total_size = 0, 0.0, 0
    for job in run.plan.jobs:
        try:
            parts, shape, itemsize, description = inspect_job(job, run.options)
        except Exception as error:  # noqa: BLE001 - as in try_movie: the others are listed, too
            problems += 1
            print_error_once(failure_message(error, job))
            continue
        adapting = 60 * parts * adaptation_minutes(run, shape, parts, time.monotonic())
        denoising = denoising_seconds(run, shape, parts)
        seconds = denoising + parts * run.options.report * report_seconds(shape) + adapting
        size = parts * math.prod(shape) * itemsize
        total_seconds, total_size = total_seconds + seconds, total_size + size
        memory = idle_memory + working_bytes(shape, run.device, run.options.report)
        cost = format_duration(seconds)
        if adapting:
            cost += f" (of it at most {format_duration(adapting)} to adapt)"
        cost += f", up to {format_duration(seconds + (MOTION_FACTOR - 1) * denoising)} where the scene moves"
        space = f"{format_bytes(memory)} of memory, {format_bytes(size)} on the disk"
        print_line(f"{job.name}: {description} -> {output_name(job, run.options)}; {cost}, {space}")
    for name, reason in run.plan.unusable.items():
        problems += 1
        print_error_once(f"{name}: {reason}")
    pace = f"{run.speed / 1e6:.3g} million voxels a second as measured just now"
    total = f"{format_duration(total_seconds)} and {format_bytes(total_size)} on the disk in all"
    print_line(f"dry run: {total}, at {pace}")
    check_outputs(run.options, run.plan)
    return 1 if problems else 0


def inspect_job(job: Job, options: Options) -> tuple[int, tuple[int, int, int], int, str]:
    """Return the number of parts of a movie, the shape of each, the output's bytes a voxel, and a description."""
    with open_job(job, options) as recording:
        recording.parts[0].movie.read(0, 1)
        itemsize = output_dtype(recording.info, options).itemsize
        return len(recording.parts), recording.info.shape, itemsize, describe_recording(recording)


# ---- the metadata


class MetadataSaver:
    """Saves the metadata before the first output and now and then between movies: a killed run can be resumed."""

    def __init__(self) -> None:
        self.next_time = 0.0

    def save_if_due(self, run: Run) -> None:
        start = time.monotonic()
        if start < self.next_time:
            return
        try:
            save_metadata(run, "running")
        except Refusal as refusal:  # an error only at the end of the run: until then the cause may disappear
            print_line(f"WARNING: {refusal}")
        end = time.monotonic()
        self.next_time = end + max(SAVE_INTERVAL, (end - start) / MAX_SAVING_SHARE)


def save_metadata(run: Run, status: str) -> None:
    """Write metadata.json, complete or not at all. Raises Refusal."""
    if run.team.rank:
        return
    with suppress(Lost):  # the records of a process that has ended are missing
        collect_records(run)
    try:
        write_metadata(run.options.output, metadata(run, status))
    except OSError as error:
        raise Refusal(
            f"{run.options.output / METADATA}: expected to write the metadata, found: {error.strerror}; "
            "the movies reported as done are complete"
        ) from error


def save_and_report_stop(run: Run, stopped: Stopped) -> None:
    """Do what the main thread would do after a signal, if it is in a long computation (StopSignals.last_words)."""
    discard_all()
    save_metadata(run, "stopped")
    print_stopped(stopped)


def final_status(run: Run) -> str:
    return "failed" if failures(run) else "ok"


def failures(run: Run) -> list[dict[str, Any]]:
    """Return the records of movies that are incomplete, or lack a file that was to be written beside them."""
    return [record for record in run.records if record["status"] != "ok" or "error" in record]


def made_with(run: Run) -> dict[str, Any]:
    """Return everything that determines the output for a given movie: version, weights and settings."""
    settings = {name: value for name, value in vars(run.options).items() if name not in NOT_IN_RESULT}
    return {"version": __version__, "weights": run.weights["sha256"], "settings": settings}


def metadata(run: Run, status: str) -> dict[str, Any]:
    """Return the content of metadata.json, as documented in docs/metadata.md.

    A movie that an earlier run finished counts as finished until this run has replaced it.
    """
    import torch

    from denoise.limits import hardware_name

    replaced = {json_values(record["output"]) for record in run.records if record["status"] == "ok"}
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


def recording_metadata(recording: Recording) -> dict[str, Any]:
    """Return what the input file states about its movie; pixel_size (y, x) in micrometres, frame_interval in seconds."""
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


if __name__ == "__main__":
    sys.exit(main())
