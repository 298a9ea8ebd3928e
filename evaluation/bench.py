"""Measure speed and memory: `python -m evaluation.bench`, or some groups of it by name; writes docs/benchmarks.md.

    peers    the same weights in a plain loop as the seed's, and in MONAI's sliding window (requirements-bench.txt)
    limit    the whole program against the bare network, and the network against the processor's matrix product
    moving   a movie that moves against one at rest
    memory   peak memory and time for movies of 1,000, 4,000 and 16,000 frames
    large    a movie larger than the memory that the process may use
    start    from the start of the process to the first frames denoised, and to --help
    ranks    two processes of one processor each against one

Runs that are compared take turns, and the median of ROUNDS counts. Results are kept in output/bench.json, so that
groups can be measured one by one; the page shows all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from scipy.ndimage import gaussian_filter, shift
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from denoise.inference import Settings, denoise_movie
from denoise.limits import reuse_memory
from denoise.missing import without_missing
from denoise.movies import ArrayMovie
from denoise.network import Network, converted
from denoise.precision import precision
from denoise.reading import open_movie
from denoise.readout import Readout
from denoise.survey import survey_movie
from model import UNet3D, load_model
from simulation.activity import wander

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "best_model_n2v.pth"
RESULTS = ROOT / "output" / "bench.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKERS = ("<!-- bench: written by make bench from here -->", "<!-- bench: to here -->")
SEED = 0
ROUNDS = 3
TILE, OVERLAP = (32, 128, 128), (4, 16, 16)  # of the plain loop and MONAI: frames and pixels (T, Y, X)
# (T, Y, X) of the bare network's input; with fewer frames much of it would be padding, which costs no work
BARE_TILES = ((128, 128, 128), (128, 256, 256))
MATRIX_SIZE = 2048
LIMIT_BYTES = 4 << 30
Row = list[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help="default: all")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of each movie's frames, for a trial (default: 1)"
    )
    options = parser.parse_args()
    reuse_memory()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for name in options.groups:
            start = time.monotonic()
            rows = GROUPS[name](Path(folder), options.share)
            results[name] = {"rows": rows, "where": machine(), "share": options.share}
            print(f"{name}: {time.monotonic() - start:.0f} s\n{table(rows)}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1))
    if options.share == 1:
        publish(results)
    return 0


# ---- test movies, timing


def movie_file(folder: Path, shape: tuple[int, int, int], dtype: str = "uint16", jitter: float = 0.0) -> Path:
    """Write a movie (T, Y, X) of cells that jitter by these pixels, in a folder of its own; every frame differs."""
    path = folder / f"{'x'.join(map(str, shape))} {dtype} {jitter:g}" / "movie.tif"
    if not path.exists():
        path.parent.mkdir()
        motion = wander(np.random.default_rng(SEED), shape[0], jitter, 0.0)
        frames = (exposure(shape[1:], t, pixels).astype(dtype) for t, pixels in enumerate(motion))
        with tifffile.TiffWriter(path, bigtiff=True) as tif:
            tif.write(frames, shape=shape, dtype=dtype, photometric="minisblack")
    return path


def exposure(size: tuple[int, int], frame: int, motion: Sequence[float] = (0.0, 0.0)) -> np.ndarray:
    """Simulate a frame (Y, X) of cells of 3 pixels, some of which flash, displaced by (y, x) pixels, with shot noise."""
    spots, active, periods, phases = cells(size)
    activity = active * np.cos(2 * math.pi * frame / periods + phases).clip(0) ** 4
    mean = 30 + gaussian_filter((spots * (1 + activity)).astype(np.float32), 3, mode="wrap")
    if any(motion):
        mean = shift(mean, motion, order=3, mode="grid-wrap").clip(0)
    random = np.random.default_rng((SEED, frame)).standard_normal(size, np.float32)
    return np.rint(mean + np.sqrt(mean) * random).clip(0)


@lru_cache
def cells(size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Place a cell at one pixel in 400: maps (Y, X) of photons, whether it is active (one in five), period and phase."""
    random = np.random.default_rng(SEED)
    spots = (random.random(size) < 1 / 400) * 2 * math.pi * 9 * random.uniform(20, 60, size)
    active = random.random(size) < 1 / 5
    return spots, active, random.uniform(10, 30, size), random.uniform(0, 2 * math.pi, size)


def scaled_frames(count: int, share: float) -> int:
    """Return the frames of a trial: this share of `count`, 48 at least."""
    return max(48, round(count * share))


def run_program(
    movie: Path, launcher: Sequence[str] = (sys.executable,), threads: int | None = None
) -> dict[str, Any]:
    """Run process.py on a movie with the image's memory settings and this number of threads in each process.

    Returns the movie's record in metadata.json, with the additional fields wall (s) and peak (bytes).
    """
    out, log = movie.parent / "out", movie.parent / "log"
    files = ["--input", str(movie), "--output", str(out), "--overwrite"]
    environment = os.environ | memory_settings() | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [*launcher, str(ROOT / "process.py"), *files, "--adapt", "off"]
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)  # noqa: S603
    wall = time.monotonic() - start
    if process.returncode:
        raise RuntimeError(log.read_text()[-500:])
    record = json.loads((out / "metadata.json").read_text())["movies"][0]
    return record | {"wall": wall, "peak": record["peak_memory"]}


def memory_settings() -> dict[str, str]:
    """Return the environment variables that the Dockerfile sets for the C library."""
    return dict(re.findall(r"^ENV (GLIBC_TUNABLES)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))


def medians(runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median seconds of each run over ROUNDS rounds, in which the runs take turns."""
    values: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            values[name].append(run())
            print(f"  {name}: {values[name][-1]:.2f} s", flush=True)
    return {name: statistics.median(times) for name, times in values.items()}


def ignore(*_: object) -> None:
    """Discard frames or progress."""


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


# ---- the groups


def peers(folder: Path, share: float) -> list[Row]:
    """End to end from file to array with the same weights; no start of a process counts, and no peer reads out."""
    shape = (scaled_frames(250, share), 512, 512)
    path, model = movie_file(folder, shape), load_model(WEIGHTS, torch.device("cpu"))
    methods: dict[str, Callable[[Path, UNet3D], object]] = {
        "this project": denoise_file,
        "plain loop": plain_loop,
    }
    try:
        import monai  # noqa: F401

        methods["MONAI sliding window"] = monai_window
    except ImportError:
        print("  MONAI is not installed: pip install --no-deps -r requirements-bench.txt")
    seconds = medians({name: partial(timed, partial(run, path, model)) for name, run in methods.items()})
    bars = {"plain loop": "4", "MONAI sliding window": "3"}  # least factors to be reached
    voxels = math.prod(shape)
    size = " x ".join(map(str, shape))
    return [["method", f"seconds for {size}", "million voxels/s", "this project is faster by", "bar"]] + [
        [
            name,
            f"{t:.1f}",
            f"{voxels / t / 1e6:.2f}",
            f"{t / seconds['this project']:.2f}",
            bars.get(name, ""),
        ]
        for name, t in seconds.items()
    ]


def denoise_file(path: Path, model: UNet3D) -> None:
    with open_movie(path) as movie:
        denoise_movie(movie, model, Settings(), ignore, ignore)


def prepare(path: Path, model: UNet3D) -> tuple[Tensor, list[Tensor], Callable[[Tensor], np.ndarray]]:
    """Return the residual (T, Y, X), the context's features, and a function from predictions to the denoised movie."""
    with open_movie(path) as movie, torch.inference_mode():
        survey = survey_movie(movie, (3.0, 97.0), lambda *_: None)
        frames = survey.normalization.normalize(movie.read(0, movie.info.shape[0]))
        residual = survey.context.whiten(without_missing(frames)[0])
        network = Network(model, survey.context)

    def restore(prediction: Tensor) -> np.ndarray:
        return survey.normalization.denormalize(survey.context.restore(prediction + network.static).numpy())

    return residual, network.features, restore


def crop_features(features: Sequence[Tensor], tile: Sequence[slice]) -> list[Tensor]:
    """Cut the features of each level to a tile, given by (Y, X) slices on the pooling grid."""
    scaled = [[slice(s.start >> i, s.stop >> i) for s in tile] for i in range(1, len(features) + 1)]
    return [level[..., y, x] for level, (y, x) in zip(features, scaled)]


@torch.inference_mode()
def plain_loop(path: Path, model: UNet3D) -> np.ndarray:
    """Denoise one tile at a time in float32, summed by NumPy, the last tile moved back to fit: the seed's loop."""
    residual, features, restore = prepare(path, model)
    starts = [
        [*range(0, size - tile, tile - overlap), size - tile]
        for size, tile, overlap in zip(residual.shape, TILE, OVERLAP)
    ]
    total, count = (np.zeros(residual.shape, np.float32) for _ in range(2))
    for corner in product(*starts):
        tile = tuple(slice(start, start + size) for start, size in zip(corner, TILE))
        local = crop_features(features, tile[1:])
        total[tile] += model.decode(residual[tile][None, None], local)[0, 0].numpy()
        count[tile] += 1
    return restore(torch.from_numpy(total / count))


@torch.inference_mode()
def monai_window(path: Path, model: UNet3D) -> np.ndarray:
    """Denoise by MONAI's sliding_window_inference as in its tutorials: overlap 0.25, Gaussian blend, 4 tiles a batch."""
    from monai.inferers.utils import sliding_window_inference

    residual, features, restore = prepare(path, model)

    def predict(windows: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
        local = [crop_features(features, place[3:]) for place in places]
        return model.decode(windows, [torch.cat(level) for level in zip(*local)])

    prediction = sliding_window_inference(
        residual[None, None], TILE, 4, predict, overlap=0.25, mode="gaussian", with_coord=True
    )
    return restore(torch.as_tensor(prediction)[0, 0])


def limit(folder: Path, share: float) -> list[Row]:
    """process.py from its start to its end against the bare network on as many voxels."""
    shape = (scaled_frames(500, share), 512, 512)
    path, voxels = movie_file(folder, shape), math.prod(shape)
    model = load_model(WEIGHTS, torch.device("cpu"))
    best = min(
        BARE_TILES, key=lambda tile: bare_seconds(model, tile, 2 * math.prod(tile)) / 2 / math.prod(tile)
    )
    seconds = medians(
        {"whole": lambda: run_program(path)["wall"], "bare": lambda: bare_seconds(model, best, voxels)}
    )
    in_readout = readout_seconds(path, model)
    operations = operations_per_voxel(model)
    peak = matrix_product_speed()
    rows = [["measure", "value", "bar"]]
    rows.append([f"whole program, {' x '.join(map(str, shape))}", f"{seconds['whole']:.1f} s", ""])
    tile = " x ".join(map(str, best))
    rows.append([f"bare network on as many voxels, best of tiles: {tile}", f"{seconds['bare']:.1f} s", ""])
    rows.append(["whole / bare", f"{seconds['whole'] / seconds['bare']:.3f}", "1.25 at most"])
    rows.append(["of the whole: the read-out of denoise/readout.py", f"{in_readout:.1f} s", ""])
    without = (seconds["whole"] - in_readout) / seconds["bare"]
    rows.append(["(whole - read-out) / bare", f"{without:.3f}", ""])
    rows.append(["operations a voxel", f"{operations / 1e3:.1f} thousand", ""])
    rows.append(
        [
            f"matrix product {MATRIX_SIZE} x {MATRIX_SIZE}, {precision(torch.device('cpu'))}",
            f"{peak / 1e9:.0f} GF/s",
            "",
        ]
    )
    for name in ("bare", "whole"):
        speed = operations * voxels / seconds[name]
        value = f"{speed / 1e9:.0f} GF/s, {100 * speed / peak:.0f}% of the matrix product"
        rows.append(
            [f"the {name} {'network' if name == 'bare' else 'program'} reaches", value, "50% at least"]
        )
    return rows


def readout_seconds(path: Path, model: UNet3D) -> float:
    """Return the seconds that the stage after the network takes for a movie."""
    seconds = 0.0
    frames = Readout.frames

    def timed_frames(self: Readout, residual: Tensor, prediction: Tensor) -> Tensor:
        nonlocal seconds
        start = time.monotonic()
        result = frames(self, residual, prediction)
        seconds += time.monotonic() - start
        return result

    with patch.object(Readout, "frames", timed_frames):
        denoise_file(path, model)
    return seconds


@torch.inference_mode()
def bare_seconds(model: UNet3D, tile: tuple[int, int, int], voxels: int) -> float:
    """Time the 3-D network alone on this many voxels, tile by tile without overlap, in its own precision."""
    net = converted(model.movie, precision(torch.device("cpu")))
    dtype = net.stem.weight.dtype
    residual = torch.randn(1, 1, *tile).to(dtype)
    features = [
        torch.randn(1, c, tile[1] >> i, tile[2] >> i).to(dtype)
        for i, c in enumerate(model.config.channels, 1)
    ]
    net(residual, features)
    count = max(1, round(voxels / math.prod(tile)))
    seconds = timed(lambda: [net(residual, features) for _ in range(count)])
    return seconds * voxels / (count * math.prod(tile))


@torch.inference_mode()
def operations_per_voxel(model: UNet3D) -> float:
    """Return the floating-point operations of the 3-D network for each voxel, borders included."""
    residual = torch.randn(1, 1, 64, 64, 64)
    features = [torch.randn(1, c, 64 >> i, 64 >> i) for i, c in enumerate(model.config.channels, 1)]
    with FlopCounterMode(display=False) as counter:
        model.movie(residual, features)
    return counter.get_total_flops() / 64**3


def matrix_product_speed() -> float:
    """Return the floating-point operations a second of a matrix product in the network's precision, best of ten."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(precision(torch.device("cpu")))
    return 2 * MATRIX_SIZE**3 / min(timed(lambda: matrix @ matrix) for _ in range(10))


def moving(folder: Path, share: float) -> list[Row]:
    """Movies at rest, and the same that jitter by a pixel: read more often, and an excerpt is denoised both ways."""
    rows = [["movie", "at rest", "jitters", "times as long", "peak memory: at rest, jitters"]]
    for side in (128, 256):
        shape = (scaled_frames(500, share), side, side)
        still, jittering = (movie_file(folder, shape, jitter=pixels) for pixels in (0.0, 1.0))
        peaks = ", ".join(f"{run_program(path)['peak'] / 1e9:.2f} GB" for path in (still, jittering))
        seconds = medians({"at rest": partial(seconds_of, still), "jitters": partial(seconds_of, jittering)})
        times = [f"{t:.1f} s" for t in seconds.values()]
        factor = f"{seconds['jitters'] / seconds['at rest']:.1f}"
        rows.append([" x ".join(map(str, shape)), *times, factor, peaks])
    return rows


def seconds_of(path: Path) -> float:
    """Return the seconds that process.py takes for a movie, without its own start."""
    return float(run_program(path)["seconds"])


def memory(folder: Path, share: float) -> list[Row]:
    """Movies of uint16, 256 x 256; the output is float32."""
    rows = [["frames", "peak memory", "seconds for the movie", "microseconds a frame"]]
    for count in (1000, 4000, 16_000):
        frames = scaled_frames(count, share)
        path = movie_file(folder, (frames, 256, 256))
        record = run_program(path)
        peak, seconds = record["peak"], record["seconds"]
        rows.append(
            [f"{frames:,}", f"{peak / 1e9:.3f} GB", f"{seconds:.1f}", f"{1e6 * seconds / frames:.0f}"]
        )
        path.unlink()
    return rows


def large(folder: Path, share: float) -> list[Row]:
    """A movie of float32, 512 x 512, larger than RLIMIT_DATA lets the process allocate."""
    frames = max(64, math.ceil(1.03 * share * LIMIT_BYTES / (4 * 512 * 512)))
    path = movie_file(folder, (frames, 512, 512), "float32")
    record = run_program(path, ("prlimit", f"--data={LIMIT_BYTES}", sys.executable))
    size = path.stat().st_size / 2**30
    path.unlink()
    rows = [["movie", "RLIMIT_DATA", "peak resident memory", "seconds", "million voxels/s"]]
    speed = frames * 512 * 512 / record["seconds"] / 1e6
    rows.append([f"{frames} x 512 x 512 float32, {size:.2f} GiB", f"{LIMIT_BYTES >> 30} GiB",
                 f"{record['peak'] / 1e9:.2f} GB", f"{record['seconds']:.0f}", f"{speed:.2f}"])  # fmt: skip
    return rows


def start(folder: Path, _: float) -> list[Row]:
    """Seconds from the start of the process."""
    path = movie_file(folder, (100, 128, 128))
    seconds = medians({"first frames": lambda: first_frames_seconds(path), "--help": lambda: timed(run_help)})
    return [
        ["until", "seconds", "bar"],
        ["first frames denoised (100 x 128 x 128)", f"{seconds['first frames']:.2f}", "4 s at most"],
        ["`--help`", f"{seconds['--help']:.2f}", "0.5 s at most"],
    ]


def first_frames_seconds(path: Path) -> float:
    """Return the seconds from the start of process.py to its first report of progress in denoising."""
    start = time.monotonic()
    command = [sys.executable, "-u", str(ROOT / "process.py"), "--input", str(path), "--adapt", "off"]
    seconds = math.nan
    with subprocess.Popen(  # noqa: S603
        [*command, "--output", str(path.parent / "out"), "--overwrite"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            if re.search(r"denoising \d+%", line):
                seconds = time.monotonic() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return seconds


def run_help() -> None:
    subprocess.run([sys.executable, str(ROOT / "process.py"), "--help"], check=True, capture_output=True)  # noqa: S603


def ranks(folder: Path, share: float) -> list[Row]:
    """One long movie, its frames shared out; each process is bound to one processor, 0 or 1, with all its threads."""
    shape = (scaled_frames(16_000, share), 64, 64)
    path = movie_file(folder, shape)
    one_process = ["taskset", "-c", "0", sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    bound = ["sh", "-c", 'exec taskset -c "$LOCAL_RANK" "$0" "$@"', sys.executable]
    two_processes = [sys.executable, *torchrun, *bound]
    seconds = medians({
        "one process": lambda: run_program(path, one_process, threads=1)["seconds"],
        "two processes": lambda: run_program(path, two_processes, threads=1)["seconds"],
    })  # fmt: skip
    rows = [
        ["processes, one processor each", f"seconds for {' x '.join(map(str, shape))}", "faster by", "bar"]
    ]
    for name, bar in (("one process", ""), ("two processes", "1.8")):
        rows.append([name, f"{seconds[name]:.1f}", f"{seconds['one process'] / seconds[name]:.2f}", bar])
    return rows


def gpu(folder: Path, share: float) -> list[Row]:
    """Voxels a second on a GPU, bfloat16 or float16 by its kind."""
    if not torch.cuda.is_available():
        return [["not run"], ["there is no GPU on this machine"]]
    model = load_model(WEIGHTS, torch.device("cuda"))
    rows = [["movie", "seconds", "million voxels/s"]]
    for shape in ((500, 128, 128), (1500, 490, 490), (6000, 512, 512)):
        size = (scaled_frames(shape[0], share), *shape[1:])
        movie = ArrayMovie(np.stack([exposure(size[1:], t).astype(np.uint16) for t in range(size[0])]))
        times = [
            timed(partial(denoise_movie, movie, model, Settings(), ignore, ignore)) for _ in range(ROUNDS)
        ]
        seconds = statistics.median(times)
        rows.append([" x ".join(map(str, size)), f"{seconds:.2f}", f"{math.prod(size) / seconds / 1e6:.1f}"])
    return rows


GROUPS: dict[str, Callable[[Path, float], list[Row]]] = {
    "peers": peers,
    "limit": limit,
    "moving": moving,
    "memory": memory,
    "large": large,
    "start": start,
    "ranks": ranks,
    "gpu": gpu,
}


# ---- the page


def machine() -> str:
    """Describe the machine, the software and the date of a measurement."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processors = f"{len(os.sched_getaffinity(0))} processors ({model[1] if model else platform.machine()})"
    today = datetime.now(timezone.utc).strftime("%d %B %Y")
    return f"{processors}, torch {torch.__version__}, {precision(torch.device('cpu'))}, seed {SEED}, {today}"


def table(rows: list[Row]) -> str:
    """Format rows as a Markdown table; the first one is the header."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def publish(results: dict[str, Any]) -> None:
    """Write the tables between the page's markers."""
    sections = [
        f"### {name}\n\n{(GROUPS[name].__doc__ or '').strip()}\n\n{table(results[name]['rows'])}\n\nMeasured on "
        f"{results[name]['where']}."
        for name in GROUPS
        if name in results and results[name]["share"] == 1
    ]
    begin, end = MARKERS
    before, from_tables = PAGE.read_text().split(begin)
    after = from_tables.split(end)[1]
    PAGE.write_text(before + "\n\n".join([begin, *sections, end]) + after)


if __name__ == "__main__":
    sys.exit(main())
