"""What a report costs on top of denoising: CPU seconds and memory, for a movie of noise of any length.

    python -m evaluation.report_cost 100000 64 64

The denoised frames are a constant here, since the report's work does not depend on what they hold.
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

LEVEL = 100  # photons a voxel
AT_ONCE = 1 << 20  # voxels that are made, or taken, at once: little, so as not to hide what the report needs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", type=int, nargs=3, metavar=("T", "Y", "X"))
    frames, height, width = parser.parse_args().shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.tif"
        write_noise(path, (frames, height, width))
        seconds, memory, sizes = cost(path)
    told = " and ".join(f"{size / 1e6:.1f} MB" for size in sizes)
    print(
        f"{frames} x {height} x {width}: {seconds:.1f} CPU seconds, {memory / 1e6:.0f} MB; page, picture: {told}"
    )


def write_noise(path: Path, shape: tuple[int, int, int]) -> None:
    rng, step = np.random.default_rng(0), max(1, AT_ONCE // math.prod(shape[1:]))
    with MovieWriter(path, shape, "uint16") as writer:
        for start in range(0, shape[0], step):
            size = (min(step, shape[0] - start), *shape[1:])
            writer.append(rng.poisson(LEVEL, size).astype(np.uint16))


def cost(path: Path) -> tuple[float, int, list[int]]:
    """CPU seconds, bytes of memory, bytes of the report's files; the reading of the raw frames is part of it."""
    with open_movie(path) as movie:
        frames, height, width = movie.info.shape
        step = min(frames, max(1, AT_ONCE // (height * width)))
        denoised = np.full((step, height, width), LEVEL, np.float32)
        movie.read(0, step)
        before, start = peak_resident(), time.process_time()
        diagnostics = Diagnostics(movie)
        for done in range(0, frames, step):
            diagnostics.add(denoised[: frames - done])
        findings = diagnostics.findings({"gain": 1.0, "read_variance": 0.0}, float(LEVEL))
        facts = {"title": path.name, "shape": "", "calibration": ""}
        files = write_report(findings, facts, path.with_name("report"))
        return time.process_time() - start, peak_resident() - before, [file.stat().st_size for file in files]


if __name__ == "__main__":
    main()
