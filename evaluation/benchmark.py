"""Measure every method on every movie: `python -m evaluation.benchmark`, or with --quick in a few minutes.

    case -> noisy movie -> each method, baselines tuned with the truth -> rows of numbers -> tables, panel

Rows are kept in output/benchmark.csv as the cases come, and found again by the case, the method and a digest of all
files that they depend on: an interrupted run goes on, and a change costs only its own rows. Two processes of one
thread each do the work. The whole benchmark writes docs/quality.md (between its markers), docs/quality.csv and
docs/images/; --quick prints its table alone.
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
TOLD = ("stsnr", "false_transients", "heldout_error", "seconds")  # on the way
DATA_CODE = ("simulation/*.py", "evaluation/samples.py", "evaluation/cells.py", "evaluation/metrics.py")
NETWORK_CODE = ("denoise/*.py", "model.py")
KEYHOLE = "3D N2V, no context"
SLOW_GROUPS = ("challenge few", "different few", "real few")  # a few cases of each, see samples.cases
ADAPTED_PASSES = (
    8  # over the movie: 64 steps of a challenge movie, about a minute on two cores; no clock decides
)
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
    rows = [row for case in todo for row in table.of(case, methods)]
    text = report.markdown(rows)
    print(text)
    if not options.quick:
        report.publish(ROOT / "docs", text, rows, COLUMNS)
        report.panels(ROOT / "docs" / "images", todo, methods, rows)
    return 0


# ---- methods


@cache
def all_methods(weights: tuple[Path, ...]) -> list[Method]:
    """Baselines, the keyhole network, and two ways to use each of our networks. Raises ModelError."""
    with_data = [Method(m.name, m.run, m.start, code=digest("evaluation/baselines.py")) for m in BASELINES]
    return [*with_data, keyhole_method(), *(method for path in weights for method in networks(path))]


def keyhole_method() -> Method:
    """The seed's network: no network of this project, so it counts among the baselines."""
    net = keyhole.load()
    code = digest("evaluation/keyhole.p*", "denoise/context.py")
    return Method(KEYHOLE, lambda movie: keyhole.denoise(movie, net), code=code, groups=SLOW_GROUPS)


def networks(path: Path) -> list[Method]:
    """A checkpoint's network run as process.py runs it: in one pass, and after adaptation."""
    model = load_model(path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    name = "this project" if path == WEIGHTS else path.stem
    short, code = hashlib.sha256(path.read_bytes()).hexdigest()[:8], digest(*NETWORK_CODE)

    def way(suffix: str, settings: Settings, groups: tuple[str, ...] = ()) -> Method:
        def run(movie: np.ndarray) -> np.ndarray:
            with patch.object(adaptation, "MAX_PASSES", ADAPTED_PASSES):
                return denoised(movie, model, settings)

        return Method(name + suffix, run, weights=short, code=code, groups=groups)

    no_clock = 1e6  # minutes
    return [
        way("", Settings()),
        way(", adapted", Settings(adapt_minutes=no_clock), SLOW_GROUPS),
    ]


@cache
def digest(*patterns: str) -> str:
    """First eight digits of the SHA-256 of all files of the repository that match."""
    content = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:8]


def is_for(method: Method, case: Case) -> bool:
    return not method.groups or f"{case.group} {case.size}" in method.groups


def label_of(case: Case, method: Method) -> Row:
    """What a row is found by."""
    made_with = f"{digest(*DATA_CODE)} {method.code} {method.weights}".strip()
    where = {"group": case.group, "name": case.name, "level": str(case.level)}
    return where | {"method": method.name, "made_with": made_with}


# ---- rows


class Table:
    """The rows measured so far, in a CSV file that grows as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, ...], Row] = {}
        if not path.exists():
            return
        with path.open(newline="") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames == list(COLUMNS):
                self.rows = {tuple(row[name] for name in KEY): row for row in lines}
        if not self.rows:  # of an earlier version
            path.unlink()

    def find(self, case: Case, method: Method) -> Row | None:
        label = label_of(case, method)
        return self.rows.get(tuple(label[name] for name in KEY))

    def of(self, case: Case, methods: Iterable[Method]) -> list[Row]:
        """All rows of a case."""
        found = (self.find(case, method) for method in methods if is_for(method, case))
        return [row for row in found if row is not None]

    def start(self, case: Case, method: Method) -> Mapping[str, float]:
        """Where to start tuning: what was best for the movie most like this one of those measured already."""
        if not method.start:
            return {}
        alike = [
            row
            for row in self.rows.values()
            if (row["method"], row["level"]) == (method.name, str(case.level))
        ]
        alike.sort(key=lambda row: row["group"] == case.group)
        return json.loads(alike[-1]["parameters"]) if alike else method.start

    def add(self, row: Row) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows[tuple(row[name] for name in KEY)] = row


def measure(
    todo: Sequence[Case], methods: Sequence[Method], table: Table, weights: tuple[Path, ...], processes: int
) -> None:
    """Fill the table with the rows that it lacks."""

    def take(rows: Iterable[Row]) -> None:
        for row in rows:
            table.add(row)
            told = " ".join(f"{name} {row[name]}" for name in TOLD if row[name])
            print(f"{row['group']}, {row['name']}, level {row['level']}: {row['method']}: {told}", flush=True)

    tasks = unfinished(todo, methods, table)
    if processes == 1:
        for case, starts in tasks:
            take(measure_case(case, [m for m in methods if m.name in starts], starts))
        return
    spawn = multiprocessing.get_context("spawn")
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with patch.dict(os.environ, alone), ProcessPoolExecutor(processes, spawn) as pool:
        running: set[Future[list[Row]]] = set()
        for case, starts in tasks:
            running.add(pool.submit(measure_apart, case, weights, starts))
            if len(running) == processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    take(future.result())
        for future in running:
            take(future.result())


Starts = dict[str, Mapping[str, float]]  # method -> parameters to start the tuning from


def unfinished(
    todo: Sequence[Case], methods: Sequence[Method], table: Table
) -> Iterator[tuple[Case, Starts]]:
    """Cases, and of each the methods that are not measured yet; the table is looked at as late as possible."""
    for case in todo:
        missing = [m for m in methods if is_for(m, case) and table.find(case, m) is None]
        if missing:
            yield case, {method.name: table.start(case, method) for method in missing}


def measure_apart(case: Case, weights: tuple[Path, ...], starts: Starts) -> list[Row]:
    """The same in a process of its own, which makes its own methods."""
    return measure_case(case, [m for m in all_methods(weights) if m.name in starts], starts)


def measure_case(case: Case, methods: Sequence[Method], starts: Starts) -> list[Row]:
    """One row for each method on one case."""
    sample = case.make()
    return [
        dict.fromkeys(COLUMNS, "")
        | label_of(case, method)
        | {"weights": method.weights}
        | measure_method(sample, method, starts[method.name])
        for method in methods
    ]


def measure_method(sample: Sample, method: Method, start: Mapping[str, float]) -> Row:
    """Tune a method if it has something to tune, run it once on the clock, and measure its output."""
    best = tune(method.run, sample.part, sample.quality, start) if start else {}
    began = time.process_time()  # over all threads: other work on the machine does not count
    output = method.run(sample.movie, **best)
    seconds = time.process_time() - began
    values = {"seconds": seconds, **sample.measure(output)}
    row = {name: f"{values[name]:.6g}" for name in NUMBERS if name in values}
    if sample.parts:
        row["heldout_parts"] = json.dumps([float(f"{error:.6g}") for error in sample.parts(output)])
    return row | {"parameters": json.dumps(best)}


def denoised(movie: np.ndarray, model: UNet3D, settings: Settings | None = None) -> np.ndarray:
    """A movie (T, Y, X) as process.py denoises it, by default without adaptation."""
    parts: list[np.ndarray] = []
    denoise_movie(ArrayMovie(movie), model, settings or Settings(), lambda x: parts.append(x.copy()), _silent)
    return np.concatenate(parts)


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody watches the progress of one movie among hundreds."""


if __name__ == "__main__":
    sys.exit(main())
