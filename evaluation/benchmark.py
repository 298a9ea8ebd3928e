"""Measure every method on every movie: `python -m evaluation.benchmark`, or with --quick in a few minutes.

    case -> noisy movie -> each method, baselines tuned with the truth -> row of numbers -> tables, panel

Rows are kept in output/benchmark.csv and found again by the movie, the method and the weights, so an
interrupted run goes on and new weights cost only their own rows. The whole benchmark writes
docs/quality.md (between its markers), docs/quality.csv and docs/images/; --quick prints its table alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from denoise.inference import Settings, denoise_movie
from evaluation import report
from evaluation.baselines import BASELINES, Method, tune
from evaluation.samples import RECORDINGS, Case, Sample, cases
from model import ModelError, load_model

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "output" / "benchmark.csv"
WEIGHTS = ROOT / "best_model_n2v.pth"
KEY = ("group", "name", "level", "data", "method", "weights")
SCORES = ("ssnr", "tsnr", "stsnr", "spsnr", "tpsnr", "stpsnr")
CELLS = ("trace_correlation", "amplitude_kept", "bias", "slope", "false_transients", "false_height")
NUMBERS = ("seconds", *SCORES, *CELLS, "heldout_error")
COLUMNS = (*KEY, "parameters", *NUMBERS)
TOLD = ("stsnr", "false_transients", "heldout_error", "seconds")  # on the way
Row = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two scenes, three levels, no files in docs/")
    parser.add_argument("--weights", type=Path, nargs="*", default=[WEIGHTS], help="networks, or none")
    parser.add_argument(
        "--ensemble", action="store_true", help="also each network's mean over mirrored views"
    )
    options = parser.parse_args(arguments)
    try:
        views = (False, True) if options.ensemble else (False,)
        methods = [*BASELINES, *(network(path, many) for path in options.weights for many in views)]
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    todo = list(cases(options.quick))
    if not RECORDINGS.is_dir():
        print(f"{RECORDINGS}: no such folder, so no real recordings in this run")
        todo = [case for case in todo if case.group != "real"]
    table = Table(ROWS)
    rows = [row for case in todo for row in measure_case(case, methods, table)]
    text = report.markdown(rows)
    print(text)
    if not options.quick:
        report.publish(ROOT / "docs", text, rows, COLUMNS)
        report.panels(ROOT / "docs" / "images", todo, methods, rows)
    return 0


class Table:
    """The rows measured so far, in a CSV file that grows as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, ...], Row] = {}
        if path.exists():
            with path.open(newline="") as file:
                self.rows = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}

    def find(self, row: Row) -> Row | None:
        return self.rows.get(tuple(row[name] for name in KEY))

    def add(self, row: Row) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows[tuple(row[name] for name in KEY)] = row


def measure_case(case: Case, methods: Sequence[Method], table: Table) -> list[Row]:
    """One row for each method on one case; those in the table are not measured again."""
    sample = case.make()
    where = {
        "group": case.group,
        "name": case.name,
        "level": str(case.level),
        "data": fingerprint(sample.movie),
    }
    rows = []
    for method in methods:
        label = where | {"method": method.name, "weights": method.weights}
        row = table.find(label)
        if row is None:
            row = dict.fromkeys(COLUMNS, "") | label | measure_method(sample, method)
            table.add(row)
            told = " ".join(
                f"{name} {row[name]}" for name in ("stsnr", *NUMBERS[-2:], "seconds") if row.get(name)
            )
            print(f"{case.group}, {case.name}, level {case.level}: {method.name}: {told}", flush=True)
        rows.append(row)
    return rows


def fingerprint(movie: np.ndarray) -> str:
    """Mean and deviation: not a digest, since the last bits of a simulation depend on the number of threads."""
    return f"{movie.mean():.4g} +- {movie.std():.4g}"


def measure_method(sample: Sample, method: Method) -> Row:
    """Tune a method if it has something to tune, run it once on the clock, and measure its output."""
    best = tune(method.run, sample.part, sample.quality, method.start) if method.start else {}
    start = time.process_time()  # over all cores: other work on the machine does not count
    output = method.run(sample.movie, **best)
    values = {"seconds": time.process_time() - start, **sample.measure(output)}
    row = {name: f"{values[name]:.6g}" for name in NUMBERS if name in values}
    return row | {"parameters": json.dumps(best)}


@dataclass(frozen=True)
class Info:
    """What inference asks about a movie."""

    shape: tuple[int, int, int]
    dtype: np.dtype


class ArrayMovie:
    """A movie (T, Y, X) in memory, to be read as one in a file is."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.info = Info((frames.shape[0], frames.shape[1], frames.shape[2]), frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.frames[start:stop])


def network(path: Path, ensemble: bool = False) -> Method:
    """The network of a checkpoint, run as process.py runs it. Raises ModelError."""
    model = load_model(path, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    name = ("this project" if path == WEIGHTS else path.stem) + (", ensemble" if ensemble else "")
    settings = Settings(ensemble=ensemble)

    def run(movie: np.ndarray) -> np.ndarray:
        parts: list[np.ndarray] = []
        denoise_movie(ArrayMovie(movie), model, settings, lambda frames: parts.append(frames.copy()), _silent)
        return np.concatenate(parts)

    return Method(name, run, weights=hashlib.sha256(path.read_bytes()).hexdigest()[:8])


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody watches the progress of one movie among hundreds."""


if __name__ == "__main__":
    sys.exit(main())
