"""Measure what a report costs in addition to denoising: CPU seconds and memory, for a movie of noise.

    python -m evaluation.report_cost 100000 64 64

The denoised frames are constant here, since the report's cost does not depend on their content.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from denoise.diagnostics import Diagnostics
from denoise.limits import peak_resident
from denoise.reading import open_movie
from denoise.report import write_report
from denoise.writing import MovieWriter

MEAN = 100  # photons a voxel
BLOCK_VOXELS = 1 << 20  # processed at a time; few, so that the report's own memory shows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", type=int, nargs=3, metavar=("T", "Y", "X"))
    frames, height, width = parser.parse_args().shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.tif"
        write_noise(path, (frames, height, width))
        seconds, memory, sizes = cost(path)
    file_sizes = " and ".join(f"{size / 1e6:.1f} MB" for size in sizes)
    print(
        f"{frames} x {height} x {width}: {seconds:.1f} CPU seconds, {memory / 1e6:.0f} MB; page, picture: {file_sizes}"
    )


def write_noise(path: Path, shape: tuple[int, int, int]) -> None:
    rng, step = np.random.default_rng(0), max(1, BLOCK_VOXELS // math.prod(shape[1:]))
    with MovieWriter(path, shape, "uint16") as writer:
        for start in range(0, shape[0], step):
            size = (min(step, shape[0] - start), *shape[1:])
            writer.append(rng.poisson(MEAN, size).astype(np.uint16))


def cost(path: Path) -> tuple[float, int, list[int]]:
    """Return CPU seconds, bytes of memory and bytes of the report's files, including the reading of raw frames."""
    with open_movie(path) as movie:
        frames, height, width = movie.info.shape
        step = min(frames, max(1, BLOCK_VOXELS // (height * width)))
        denoised = np.full((step, height, width), MEAN, np.float32)
        movie.read(0, step)
        before, start = peak_resident(), time.process_time()
        diagnostics = Diagnostics(movie)
        for start_frame in range(0, frames, step):
            diagnostics.add(denoised[: frames - start_frame])
        findings = diagnostics.findings({"gain": 1.0, "read_variance": 0.0}, float(MEAN))
        facts = {"title": path.name, "shape": "", "calibration": ""}
        files = write_report(findings, facts, path.with_name("report"))
        return time.process_time() - start, peak_resident() - before, [file.stat().st_size for file in files]


if __name__ == "__main__":
    main()
