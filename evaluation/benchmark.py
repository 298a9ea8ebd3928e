"""Measure every method on every movie: `python -m evaluation.benchmark`, or with --quick in a few minutes.

    case -> noisy movie -> each method, baselines tuned with the truth -> rows of numbers -> tables, panel

Rows are appended to output/benchmark.csv as cases are finished. They are identified by the case, the method and a digest
of all files that they depend on, so an interrupted run continues, and after a change only the rows that it affects are
measured again. Two processes of one thread each do the work. The whole benchmark writes docs/quality.md (between its
markers), docs/quality.csv and docs/images/; --quick only prints its table.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from denoise import adaptation
from denoise.inference import Settings, denoise_movie
from denoise.movies import ArrayMovie
from evaluation import keyhole, report
from evaluation.baselines import BASELINES, Method, tune
from evaluation.samples import RECORDINGS, Case, Sample, cases
from model import ModelError, UNet3D, load_model

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "output" / "benchmark.csv"
WEIGHTS = ROOT / "best_model_n2v.pth"
KEY = ("group", "name", "level", "method", "made_with")
SCORES = ("ssnr", "tsnr", "stsnr", "spsnr", "tpsnr", "stpsnr")
CELLS = ("trace_correlation", "amplitude_kept", "bias", "slope", "false_transients", "false_height")
NUMBERS = ("seconds", *SCORES, *CELLS, "heldout_error")
COLUMNS = (*KEY, "weights", "parameters", *NUMBERS, "heldout_parts")
PRINTED = ("stsnr", "false_transients", "heldout_error", "seconds")  # for each row, as it is measured
DATA_CODE = ("simulation/*.py", "evaluation/samples.py", "evaluation/cells.py", "evaluation/metrics.py")
NETWORK_CODE = ("denoise/*.py", "model.py")
KEYHOLE = "3D N2V, no context"
SLOW_GROUPS = ("challenge few", "different few", "real few")  # a few cases of each, see samples.cases
# Passes of adaptation over a movie: 64 steps for a challenge movie, about a minute on two cores. Not limited by time,
# so that results do not depend on the machine.
ADAPTED_PASSES = 8
PROCESSES = 2
Row = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two scenes, three levels, no files in docs/")
    parser.add_argument("--weights", type=Path, nargs="*", default=[WEIGHTS], help="networks, or none")
    parser.add_argument(
        "--processes", type=int, default=PROCESSES, help=f"of one thread each, default {PROCESSES}"
    )
    options = parser.parse_args(arguments)
    try:
        methods = all_methods(tuple(options.weights))
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    todo = list(cases(options.quick))
    if not RECORDINGS.is_dir():
        print(f"{RECORDINGS}: no such folder, so no real recordings in this run")
        todo = [case for case in todo if case.group != "real"]
    table = Table(ROWS)
    measure(todo, methods, table, tuple(options.weights), options.processes)
    rows = [row for case in todo for row in table.rows_of(case, methods)]
    text = report.markdown(rows)
    print(text)
    if not options.quick:
        report.publish(ROOT / "docs", text, rows, COLUMNS)
        report.panels(ROOT / "docs" / "images", todo, methods, rows)
    return 0


# ---- methods


@cache
def all_methods(weights: tuple[Path, ...]) -> list[Method]:
    """Return the baselines, the network without context, and our networks, each plain and adapted. Raises ModelError."""
    baselines = [Method(m.name, m.run, m.start, code=digest("evaluation/baselines.py")) for m in BASELINES]
    return [*baselines, keyhole_method(), *(method for path in weights for method in network_methods(path))]


def keyhole_method() -> Method:
    """Return the seed's network as a method; without `weights`, so that it counts as a baseline."""
    net = keyhole.load()
    code = digest("evaluation/keyhole.p*", "denoise/context.py")
    return Method(KEYHOLE, lambda movie: keyhole.denoise(movie, net), code=code, groups=SLOW_GROUPS)


def network_methods(path: Path) -> list[Method]:
    """Return a checkpoint's network as two methods: as process.py runs it in one pass, and after adaptation."""
    model = load_model(path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    name = "this project" if path == WEIGHTS else path.stem
    weights_digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    code = digest(*NETWORK_CODE)

    def make_method(suffix: str, settings: Settings, groups: tuple[str, ...] = ()) -> Method:
        def run(movie: np.ndarray) -> np.ndarray:
            with patch.object(adaptation, "MAX_PASSES", ADAPTED_PASSES):
                return denoised(movie, model, settings)

        return Method(name + suffix, run, weights=weights_digest, code=code, groups=groups)

    unlimited = 1e6  # minutes
    return [
        make_method("", Settings()),
        make_method(", adapted", Settings(adapt_minutes=unlimited), SLOW_GROUPS),
    ]


@cache
def digest(*patterns: str) -> str:
    """Return the first eight digits of the SHA-256 of all files of the repository that match the glob patterns."""
    content = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:8]


def applies_to(method: Method, case: Case) -> bool:
    return not method.groups or f"{case.group} {case.size}" in method.groups


def row_key(case: Case, method: Method) -> Row:
    """Return the columns KEY of a row, which identify it."""
    made_with = f"{digest(*DATA_CODE)} {method.code} {method.weights}".strip()
    case_columns = {"group": case.group, "name": case.name, "level": str(case.level)}
    return case_columns | {"method": method.name, "made_with": made_with}


# ---- rows


class Table:
    """The rows measured so far, kept in a CSV file to which new rows are appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, ...], Row] = {}
        if not path.exists():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames == list(COLUMNS):
                self.rows = {tuple(row[name] for name in KEY): row for row in reader}
        if not self.rows:  # the file has no rows, or the columns of an earlier version
            path.unlink()

    def find(self, case: Case, method: Method) -> Row | None:
        key = row_key(case, method)
        return self.rows.get(tuple(key[name] for name in KEY))

    def rows_of(self, case: Case, methods: Iterable[Method]) -> list[Row]:
        """Return the rows of a case that have been measured, in the order of the methods."""
        rows = (self.find(case, method) for method in methods if applies_to(method, case))
        return [row for row in rows if row is not None]

    def tuning_start(self, case: Case, method: Method) -> Mapping[str, float]:
        """Return the best parameters for the last movie of this noise level, and of this group if there is one."""
        if not method.start:
            return {}
        same_level = [
            row
            for row in self.rows.values()
            if (row["method"], row["level"]) == (method.name, str(case.level))
        ]
        same_level.sort(key=lambda row: row["group"] == case.group)
        return json.loads(same_level[-1]["parameters"]) if same_level else method.start

    def add(self, row: Row) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows[tuple(row[name] for name in KEY)] = row


def measure(
    todo: Sequence[Case], methods: Sequence[Method], table: Table, weights: tuple[Path, ...], processes: int
) -> None:
    """Measure the rows that the table lacks, and add and print them."""

    def add(rows: Iterable[Row]) -> None:
        for row in rows:
            table.add(row)
            values = " ".join(f"{name} {row[name]}" for name in PRINTED if row[name])
            print(
                f"{row['group']}, {row['name']}, level {row['level']}: {row['method']}: {values}", flush=True
            )

    tasks = unfinished(todo, methods, table)
    if processes == 1:
        for case, starts in tasks:
            add(measure_case(case, [m for m in methods if m.name in starts], starts))
        return
    spawn = multiprocessing.get_context("spawn")
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with patch.dict(os.environ, one_thread), ProcessPoolExecutor(processes, spawn) as pool:
        running: set[Future[list[Row]]] = set()
        for case, starts in tasks:
            running.add(pool.submit(measure_in_worker, case, weights, starts))
            if len(running) == processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    add(future.result())
        for future in running:
            add(future.result())


Starts = dict[str, Mapping[str, float]]  # name of a method -> parameters from which its tuning starts


def unfinished(
    todo: Sequence[Case], methods: Sequence[Method], table: Table
) -> Iterator[tuple[Case, Starts]]:
    """Yield the cases with unmeasured methods and the methods' starts, each looked up only when it is needed."""
    for case in todo:
        missing = [m for m in methods if applies_to(m, case) and table.find(case, m) is None]
        if missing:
            yield case, {method.name: table.tuning_start(case, method) for method in missing}


def measure_in_worker(case: Case, weights: tuple[Path, ...], starts: Starts) -> list[Row]:
    """Call measure_case in a worker process, which creates the methods itself, since they cannot be pickled."""
    return measure_case(case, [m for m in all_methods(weights) if m.name in starts], starts)


def measure_case(case: Case, methods: Sequence[Method], starts: Starts) -> list[Row]:
    """Measure each method on one case; return a row for each."""
    sample = case.make()
    return [
        dict.fromkeys(COLUMNS, "")
        | row_key(case, method)
        | {"weights": method.weights}
        | measure_method(sample, method, starts[method.name])
        for method in methods
    ]


def measure_method(sample: Sample, method: Method, start: Mapping[str, float]) -> Row:
    """Tune a method if it has parameters to tune, run it once, and measure CPU seconds and its output."""
    best = tune(method.run, sample.tuning_movie, sample.quality, start) if start else {}
    began = time.process_time()  # of all threads of this process, so that other processes do not count
    output = method.run(sample.movie, **best)
    seconds = time.process_time() - began
    values = {"seconds": seconds, **sample.measure(output)}
    row = {name: f"{values[name]:.6g}" for name in NUMBERS if name in values}
    if sample.span_errors:
        row["heldout_parts"] = json.dumps([float(f"{error:.6g}") for error in sample.span_errors(output)])
    return row | {"parameters": json.dumps(best)}


def denoised(movie: np.ndarray, model: UNet3D, settings: Settings | None = None) -> np.ndarray:
    """Denoise a movie (T, Y, X) as process.py does, by default without adaptation."""
    blocks: list[np.ndarray] = []
    denoise_movie(
        ArrayMovie(movie), model, settings or Settings(), lambda x: blocks.append(x.copy()), lambda *_: None
    )
    return np.concatenate(blocks)


if __name__ == "__main__":
    sys.exit(main())
