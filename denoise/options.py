"""The command line of process.py."""

from __future__ import annotations  # no torch or numpy at the top: --help and a wrong option answer at once

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from denoise import NAME, __version__
from denoise.console import one_line

UPLOADED_WEIGHTS = Path("/opt/ml/model/best_model_n2v.pth")  # where Grand Challenge puts an uploaded model
EXAMPLE = Path(__file__).resolve().parents[1] / "example"  # the folder with the movie of --demo
AUTO_MINUTES = {"cuda": 3.0, "cpu": 4.0}  # at most, for each movie, of --adapt auto
CHALLENGE_MINUTES = 45.0  # for a movie in the challenge layout, of the 60 that Grand Challenge grants


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    input: Path
    output: Path
    weights: Path | None
    device: str
    dtype: str  # of the output: "float32", or "input" for the type of the movie
    format: str  # of the output: "tif", or "same" for the format of the movie
    percentiles: tuple[float, float]
    adapt: float | str  # at most so many minutes for each movie, 0 for none, or "auto"
    time_limit: float | None  # minutes for each movie; None for the default of the layout (with_time_limit)
    save_weights: Path | None  # where to save the adapted weights
    overwrite: bool
    resume: bool
    frames: tuple[int | None, int | None]  # [first, end) of each movie
    series: bool  # numbered files form one movie
    dataset: str | None  # which array of an HDF5, NWB or Zarr file
    report: bool
    demo: bool
    dry_run: bool


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong command line in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see --help\n")


def parse_options() -> Options:
    """Parse sys.argv; a wrong command line ends the program with status 2."""
    parser = Parser(
        prog="process.py", description="Denoise the calcium-imaging movies of a folder.", allow_abbrev=False
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--input",
        type=parse_path,
        default=Path("/input"),
        help="folder of movies, or one movie (default: /input)",
    )
    add(
        "--output", type=parse_path, default=Path("/output"), help="folder for the results (default: /output)"
    )
    add(
        "--weights",
        type=parse_path,
        help=f"checkpoint (default: {UPLOADED_WEIGHTS}, else the one beside process.py)",
    )
    add("--device", type=parse_device, default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", choices=("float32", "input"), default="float32", help="of the output (default: float32)")
    add("--format", choices=("tif", "same"), default="tif",
        help="of the output: TIFF, or the input's own where it can be written (default: tif)")  # fmt: skip
    add("--percentiles", type=float, nargs=2, metavar=("LOW", "HIGH"), default=(3.0, 97.0),
        help="of the movie's intensities, for its normalization (default: 3 97)")  # fmt: skip
    add("--adapt", type=parse_adapt_minutes, default="auto", metavar="auto|off|MINUTES",
        help="first learn from each movie, for so long at most; kept only if it helps (default: auto, "
        f"{AUTO_MINUTES['cuda']:g} minutes on a GPU, {AUTO_MINUTES['cpu']:g} on a CPU, less if no better)")  # fmt: skip
    add("--time-limit", type=parse_time_limit, metavar="MINUTES",
        help="for each movie: it is adapted to only as long as leaves time to denoise it "
        f"(default: {CHALLENGE_MINUTES:g} in the challenge layout, none elsewhere)")  # fmt: skip
    add("--save-weights", type=parse_path, metavar="FILE",
        help="keep the weights adapted to the movie, for --weights and the microscope's next recordings")  # fmt: skip
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    existing.add_argument("--resume", action="store_true",
        help="keep outputs that are complete for the same movie, weights and settings; do all others")  # fmt: skip
    add("--report", action="store_true",
        help="write report/<movie>.html and .png: pictures, traces, and what was removed")  # fmt: skip
    add("--frames", type=parse_frame_range, default=(None, None), metavar="A:B",
        help="denoise frames A to B - 1 of each movie, counted from 0; each may be left out (default: all)")  # fmt: skip
    add("--series", action="store_true",
        help="TIFF files whose names differ by one number alone are one movie")  # fmt: skip
    add("--dataset", metavar="NAME",
        help="which dataset of HDF5, NWB and Zarr files holds the movie (default: the only one that can)")  # fmt: skip
    source.add_argument(
        "--demo", action="store_true", help="denoise the example movie that comes along, with a report"
    )
    add("--dry-run", action="store_true", help="list the movies, memory and time; denoise nothing")
    add("--version", action="version", version=f"{NAME} {__version__}")
    options = parser.parse_args(join_frames_option(sys.argv[1:]))
    if options.demo:
        options.input, options.report = EXAMPLE, True
    low, high = options.percentiles
    if not 0 <= low < high <= 100:
        parser.error(f"argument --percentiles: expected 0 <= LOW < HIGH <= 100, found {low:g} {high:g}")
    if options.save_weights and options.adapt == 0:
        parser.error("argument --save-weights: expected adaptation to the movie, found --adapt off")
    return Options(**{**vars(options), "percentiles": (low, high)})


def join_frames_option(arguments: list[str]) -> list[str]:
    """Turn `--frames -500:` into `--frames=-500:`: argparse takes a value with a leading dash for an option."""
    if "--frames" not in arguments[:-1]:
        return arguments
    index = arguments.index("--frames")
    joined = "=".join(arguments[index : index + 2])
    return [*arguments[:index], joined, *join_frames_option(arguments[index + 2 :])]


def parse_adapt_minutes(text: str) -> float | str:
    if text == "auto":
        return text
    value = 0.0 if text == "off" else parse_number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected auto, off, or minutes such as 2.5, found {text!r}")
    return value


def parse_time_limit(text: str) -> float:
    value = parse_number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes, more than 0, such as 45, found {text!r}")
    return value


def parse_number(text: str) -> float:
    """Return NaN for a text that is no number: it lies in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(text)


def parse_frame_range(text: str) -> tuple[int | None, int | None]:
    if not re.fullmatch(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(f"expected A:B, such as 0:1000, found {text!r}")
    first, end = (int(part) if part else None for part in text.split(":"))
    return first, end


def parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, found {text!r}")
    return text
