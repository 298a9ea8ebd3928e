"""The long runs behind docs/reliability.md: mutated files through process.py, and signals at random moments.

    python tests/fuzz.py files --count 3000      mutated files of every supported format, in batches
    python tests/fuzz.py kill --count 100        kill -9 at random moments, resumed each time
    python tests/fuzz.py stop --count 100        SIGINT, SIGTERM or SIGHUP at random moments, resumed each time

All files and times are drawn from a seed. Prints a summary; the exit status is 1 if a promise was broken.
tests/test_reliability.py runs these at small scale.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk
import tifffile
import torch
import zarr

from denoise.movies import MovieError
from denoise.reading import open_movie
from model import UNet3D, UNetConfig, save_model

ROOT = Path(__file__).resolve().parents[1]
BATCH_FILES = 100  # files in each run of process.py
MAX_SECONDS = 20.0  # for one file
MAX_EXTRA_MEMORY = 2**30  # bytes above a run over good movies
SHAPE = (7, 20, 18)  # (T, Y, X) of the good files

Mutation = Callable[[bytearray, random.Random], bytearray]


# ---- good files of every format


def seeds(folder: Path) -> list[Path]:
    """Write small movies of all supported formats, byte orders, compressions and layouts; return their paths."""
    rng = np.random.default_rng(0)
    frames = {name: rng.poisson(100, SHAPE).astype(name) for name in ("uint8", "uint16", "int16", "float32")}
    folder.mkdir(parents=True, exist_ok=True)
    small = frames["uint16"]
    for name, options in TIFFS.items():
        tifffile.imwrite(folder / f"{name}.tif", small, **({"photometric": "minisblack"} | options))
    tifffile.imwrite(
        folder / "float.tif", frames["float32"], photometric="minisblack", predictor=True, compression="zlib"
    )
    tifffile.imwrite(folder / "double.tif", small.astype("float64"), photometric="minisblack")
    for kind, block in frames.items():
        image = sitk.GetImageFromArray(block)
        for ending in ("mha", "nrrd", "nii", "nii.gz"):
            sitk.WriteImage(image, str(folder / f"{kind}.{ending}"))
    for ending in ("mha", "nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(small), str(folder / f"packed.{ending}"), useCompression=True)
    save_hdf5(folder, small)
    save_zarr(folder, small)
    return sorted(folder.iterdir())


def save_hdf5(folder: Path, movie: np.ndarray) -> None:
    """Write contiguous and compressed HDF5 files of the oldest and the newest layout, and a minimal NWB file."""
    packed = {"chunks": (2, *SHAPE[1:]), "compression": "gzip", "shuffle": True, "fletcher32": True}
    summed = {"chunks": (1, *SHAPE[1:]), "compression": "lzf", "fletcher32": True}
    layouts: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("plain", "earliest", {}),
        ("packed", "latest", packed),
        ("summed", "earliest", summed),
    )
    for name, version, options in layouts:
        with h5py.File(folder / f"{name}.h5", "w", libver=version) as file:
            file.create_dataset("lab/movie", data=movie, **options)
    with h5py.File(folder / "series.nwb", "w") as file:
        series = file.create_group("acquisition/green")
        series.attrs["neurodata_type"] = "TwoPhotonSeries"
        series.create_dataset("data", data=movie, chunks=(3, *SHAPE[1:]), compression="lzf")
        series.create_dataset("starting_time", data=0.0).attrs["rate"] = 10.0


def save_zarr(folder: Path, movie: np.ndarray) -> None:
    for version in (2, 3):
        place, chunks = folder / f"version{version}.zarr", (3, *SHAPE[1:])
        array = zarr.create_array(place, shape=SHAPE, chunks=chunks, dtype="uint16", zarr_format=version)
        array[:] = movie


TIFFS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big": {"bigtiff": True},
    "motorola": {"byteorder": ">"},
    "pages": {"metadata": None},
    "strips": {"rowsperstrip": 5, "metadata": None},
    "tiles": {"tile": (16, 16)},
    "imagej": {"imagej": True, "metadata": {"axes": "TYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TYX"}},
    **{
        method: {"compression": method, "metadata": None}
        for method in ("zlib", "lzw", "zstd", "packbits", "lzma")
    },
    "predicted": {"compression": "lzw", "predictor": True, "tile": (16, 16)},
}


# ---- mutations


def flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 4, 32])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_header_bits(data: bytearray, rng: random.Random) -> bytearray:
    """Flip bits within 600 bytes of either end of the file, where headers are."""
    header_size = min(len(data), 600)
    for _ in range(rng.choice([1, 2, 8])):
        place = rng.randrange(header_size)
        data[rng.choice([place, len(data) - 1 - place])] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 600)), len(data) - 1])]


def write_extreme_number(data: bytearray, rng: random.Random) -> bytearray:
    """Write an extreme number somewhere in the headers."""
    number = rng.choice(
        [0, 1, 2, 3, 7, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 2**63, 2**64 - 1]
    )
    form = rng.choice("HIQ")
    size = struct.calcsize(form)
    packed = struct.pack(rng.choice("<>") + form, number % 2 ** (8 * size))
    place = rng.randrange(min(len(data), 1200))
    place = rng.choice([place, max(0, len(data) - 1 - place)])
    data[place : place + size] = packed
    return data


def change_tag(data: bytearray, rng: random.Random) -> bytearray:
    """Change the type, count or value of a TIFF tag, which is found by the bytes of its code."""
    code = rng.choice(
        [254, 256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 282, 284, 296, 317, 320, 322, 324, 339]
    )
    big_endian = data[:2] == b"MM"
    place = data.find(struct.pack(">H" if big_endian else "<H", code), 8)
    if place < 0:
        return write_extreme_number(data, rng)
    place += rng.choice([0, 2, 4, 8, 8, 8])
    number = rng.choice([0, 1, 2, 3, 5, 6, 7, 12, 16, 32946, 50000, 65535, 10**6, 2**31, 2**32 - 1])
    packed = struct.pack((">" if big_endian else "<") + "I", number)
    data[place : place + 4] = packed
    return data


def change_text_number(data: bytearray, rng: random.Random) -> bytearray:
    """Replace a number in a text header."""
    head = bytes(data[:2000])
    digits = [i for i, byte in enumerate(head) if 48 <= byte <= 57 and not 48 <= head[i - 1] <= 57]
    if not digits:
        return write_extreme_number(data, rng)
    start = stop = rng.choice(digits)
    while stop < len(head) and 48 <= head[stop] <= 57:
        stop += 1
    number = rng.choice(
        [b"0", b"-1", b"1", b"3", b"65536", b"999999999", b"1e12", b"nan", b"99999999999999999999", b""]
    )
    return data[:start] + number + data[stop:]


def repeat(data: bytearray, rng: random.Random) -> bytearray:
    """Double, delete or move a piece of the file."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 2, 12, 100, 1000])]
    target = rng.randrange(len(data))
    without = data[:start] + data[start + len(piece) :]
    doubled = data[:target] + piece + data[target:]
    moved = without[:target] + piece + without[target:]
    return rng.choice([without, doubled, moved])


def blank(data: bytearray, rng: random.Random) -> bytearray:
    start, size = rng.randrange(len(data)), rng.choice([1, 4, 64, 4096])
    data[start : start + size] = bytes([rng.choice([0, 255])]) * len(data[start : start + size])
    return data


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header_bits, cut, write_extreme_number, change_tag, change_text_number, repeat, blank,
)  # fmt: skip


def mutants(originals: list[Path], count: int, seed: int) -> Iterator[tuple[str, Path, str, bytes]]:
    """Yield (name, original, file within it, mutated content): one to three mutations of each original in turn."""
    rng = random.Random(seed)
    for number in range(count):
        original = originals[number % len(originals)]
        file = (
            rng.choice(sorted(p for p in original.rglob("*") if p.is_file()))
            if original.is_dir()
            else original
        )
        data = bytearray(file.read_bytes())
        mutations = [rng.choice(MUTATIONS) for _ in range(rng.choice([1, 1, 2, 3]))]
        for mutate in mutations:
            data = mutate(data, rng) or data
        inner = file.relative_to(original).as_posix() if original.is_dir() else ""
        yield f"{number:06}-{mutations[0].__name__}-{original.name}", original, inner, bytes(data)


def write_mutant(path: Path, original: Path, inner: str, content: bytes) -> None:
    """Write a mutant: a file, or a copy of a folder in which the file `inner` differs."""
    if inner:
        shutil.copytree(original, path)
    (path / inner if inner else path).write_bytes(content)


# ---- mutated files through process.py


class Findings:
    """Results of a run over mutated files; `broken` lists the promises that did not hold."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.slowest = 0.0
        self.memory = 0
        self.broken: list[str] = []

    def check(self, name: str, record: dict[str, Any], output: Path) -> None:
        """Check one record of metadata.json and its output."""
        ok = record["status"] == "ok"
        self.files["read" if ok else "refused"] += 1
        self.slowest = max(self.slowest, record["seconds"])
        self.memory = max(self.memory, record["peak_memory"])
        if record["seconds"] > MAX_SECONDS:
            self.broken.append(f"{name}: {record['seconds']:.0f} seconds")
        if ok:
            self._check_output(name, output / record["output"])
        elif record["error"]["type"] != "MovieError":
            self.broken.append(f"{name}: {record['error']['type']}: {record['error']['message']}")

    def _check_output(self, name: str, output: Path) -> None:
        try:
            with open_movie(output) as movie:
                if not np.isfinite(movie.read(0, movie.info.shape[0])).all():
                    self.broken.append(f"{name}: an output that is not finite")
        except MovieError as error:
            self.broken.append(f"{name}: an output that cannot be read: {error}")


def tiny_weights(path: Path) -> Path:
    torch.manual_seed(0)
    save_model(path, UNet3D(UNetConfig(channels=(8, 8), context_channels=(8, 8), time_strides=(2, 2))), {})
    return path


def run_batch(folder: Path, weights: Path, findings: Findings) -> None:
    """Denoise folder/in; when a run crashes or hangs, report the file in progress, and run again without it."""
    output = folder / "out"
    while True:
        status, out, err = run_process(folder / "in", output, weights)
        last = (err.strip().splitlines() or [""])[-1]
        if status in (0, 1) and (output / "metadata.json").exists():
            break
        names = sorted(path.name for path in (folder / "in").iterdir())
        progress = [line for line in out.splitlines() if line.startswith("[")]
        name = progress[-1].split("] ")[1].split(": ")[0] if progress else names[0]
        findings.broken.append(f"{name}: status {status}, last line {last[:200]!r}")
        broken = folder / "broken"
        broken.mkdir(exist_ok=True)
        (folder / "in" / name).rename(broken / name)
    if status == 1 and ("Traceback" in err or not last.isprintable()):
        findings.broken.append(f"{folder.name}: last line {last[:200]!r}")
    for record in json.loads((output / "metadata.json").read_text())["movies"]:
        findings.check(record["input"], record, output)


def run_process(source: Path, output: Path, weights: Path) -> tuple[int, str, str]:
    command = [sys.executable, str(ROOT / "process.py"), "--input", str(source), "--output", str(output)]
    command += ["--weights", str(weights), "--device", "cpu", "--adapt", "off", "--overwrite"]
    try:
        timeout = MAX_SECONDS * BATCH_FILES
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        return -1, (error.stdout or b"").decode(), "hang"
    return process.returncode, process.stdout, process.stderr


def fuzz_files(folder: Path, count: int, seed: int) -> Findings:
    """Denoise `count` mutated files in batches; memory is compared with that of a run over the good files."""
    findings, good = Findings(), Findings()
    originals, weights = seeds(folder / "good/in"), tiny_weights(folder / "tiny.pth")
    run_batch(folder / "good", weights, good)
    findings.broken += [f"a good file was refused: {good.files}"] if good.files["refused"] else []
    mutated = mutants(originals, count, seed)
    for start in range(0, count, BATCH_FILES):
        batch = folder / f"batch{start:06}"
        (batch / "in").mkdir(parents=True)
        for _, (name, original, inner, content) in zip(range(min(BATCH_FILES, count - start)), mutated):
            write_mutant(batch / "in" / name, original, inner, content)
        run_batch(batch, weights, findings)
        print(
            start,
            dict(findings.files),
            f"{findings.slowest:.1f} s",
            f"{findings.memory >> 20} MiB",
            findings.broken[-3:],
            flush=True,
        )
        shutil.rmtree(batch / "out", ignore_errors=True)
    findings.memory -= good.memory
    if findings.memory > MAX_EXTRA_MEMORY:
        findings.broken.append(f"{findings.memory >> 20} MiB more than for good files")
    return findings


# ---- signals


def kill(process: subprocess.Popen[str], _: random.Random, __: Findings) -> None:
    process.kill()
    process.communicate()


def stop(process: subprocess.Popen[str], rng: random.Random, findings: Findings) -> None:
    """Ask a run to end; check that it says so, exits with the signal's status and leaves no temporary files."""
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    started = process.poll() is not None or handles_signal(process.pid, number)
    start = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate()
    findings.slowest = max(findings.slowest, time.monotonic() - start)
    if not started and process.returncode in (-number, 1):  # Python was still at its own start
        findings.files["before the program had begun"] += 1
    elif process.returncode:
        lines = stderr.splitlines()
        if process.returncode != 128 + number or len(lines) != 1 or not lines[0].startswith("stopped by"):
            findings.broken.append(f"{number.name}: status {process.returncode}, {lines[-1:]}")
        folder = Path(process.args[process.args.index("--output") + 1])  # type: ignore[union-attr, index, arg-type]
        if any(name.endswith(".part") for name in contents(folder)):
            findings.broken.append(f"{number.name}: temporary files left")


def handles_signal(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles this signal and SIGTERM, as Python at its start does not (Linux only)."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return all(int(caught, 16) >> (signum - 1) & 1 for signum in (number, signal.SIGTERM))


def end_often(
    folder: Path, count: int, seed: int, end: Callable[[subprocess.Popen[str], random.Random, Findings], None]
) -> Findings:
    """End a run `count` times at random moments; check that outputs are right or absent, and finally complete."""
    findings, rng = Findings(), random.Random(seed)
    weights = tiny_weights(folder / "tiny.pth")
    source = folder / "in"
    source.mkdir()
    for number in range(6):
        frames = np.random.default_rng(number).poisson(100, (60, 32, 32)).astype("uint16")
        tifffile.imwrite(source / f"{number}.tif", frames, photometric="minisblack")
    before = contents(source)
    start = time.monotonic()
    run_process(source, folder / "whole", weights)
    seconds = time.monotonic() - start
    expected = {name: data for name, data in contents(folder / "whole").items() if name.endswith(".tif")}
    command = [
        sys.executable,
        str(ROOT / "process.py"),
        "--input",
        str(source),
        "--output",
        str(folder / "out"),
    ]
    command += ["--weights", str(weights), "--device", "cpu", "--adapt", "off", "--resume"]
    for number in range(count):
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            time.sleep(rng.uniform(0.0, 1.1) * seconds)
            findings.files["at work" if process.poll() is None else "done already"] += 1
            end(process, rng, findings)
        files = contents(folder / "out")
        findings.files["temporary files left"] += sum(name.endswith(".part") for name in files)
        findings.files["outputs checked"] += sum(name in expected for name in files)
        findings.broken += [
            f"try {number}: {name} is wrong"
            for name, data in files.items()
            if expected.get(name, data) != data
        ]
        if expected.keys() <= files.keys():
            shutil.rmtree(folder / "out")  # start again
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode  # noqa: S603
    files = contents(folder / "out")
    files.pop("metadata.json", None)
    if (status, files) != (0, expected):
        findings.broken.append("the last run did not complete the outputs")
    if contents(source) != before:
        findings.broken.append("an input changed")
    return findings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("files", "kill", "stop"))
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files (default: a temporary one)")
    options = parser.parse_args()
    ends = {"kill": kill, "stop": stop}
    run = partial(end_often, end=ends[options.what]) if options.what in ends else fuzz_files
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        findings = run(folder, options.count, options.seed)
    print(f"{options.what}: {options.count} tries in {time.monotonic() - start:.0f} s, seed {options.seed}")
    print(", ".join(f"{number} {what}" for what, number in findings.files.items()))
    if options.what == "files":
        print(
            f"slowest file {findings.slowest:.1f} s; at most {findings.memory / 2**20:.0f} MiB more than for good files"
        )
    if options.what == "stop":
        print(f"slowest end {findings.slowest:.1f} s")
    print(*[f"BROKEN {line}" for line in findings.broken] or ["every promise held"], sep="\n")
    return 1 if findings.broken else 0


if __name__ == "__main__":
    sys.exit(main())
