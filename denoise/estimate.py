"""What a movie will cost before it is denoised: speed by a trial on this machine, memory by its shape."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from denoise.diagnostics import STATISTICS_VOXELS, TRACE_VOXELS
from denoise.inference import SLAB_BYTES, Settings, denoise_movie, plan_slabs
from denoise.movies import ArrayMovie
from denoise.network import CHUNK_VOXELS, STATE_BYTES, VOXEL_BYTES
from denoise.precision import precision
from denoise.survey import block_length
from model import UNet3D

TRIAL = (64, 128, 128)  # frames, height, width of what is denoised to learn the speed
BLOCK_BYTES = 60  # of a voxel of a block that is read: all that is made of it, on its way between threads
KEPT = 1.5  # times as much: what is freed is kept for what comes next, most of all in long movies
REPORT_BYTES = 200 << 20  # at most
REPORT_SECONDS = (
    3.0,
    4e-8,
)  # for its pictures, and for each voxel that it examines: 10 s for 100,000 x 64 x 64, measured


def trial_speed(model: UNet3D) -> float:
    """Denoise noise for a moment, twice, for the first time also warms up: voxels a second."""
    frames = np.random.default_rng(0).poisson(100, TRIAL).astype(np.uint16)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        denoise_movie(ArrayMovie(frames), model, Settings(), lambda _: None, lambda *_: None)
        seconds.append(time.monotonic() - start)
    return math.prod(TRIAL) / min(seconds)


def working_bytes(shape: tuple[int, int, int], device: torch.device, report: bool) -> int:
    """Memory in bytes for a movie (T, Y, X), beside the program's own; bounded, however long the movie."""
    pixels = shape[1] * shape[2]
    slab = max(slab.stop - slab.start for slab in plan_slabs(shape, math.inf))
    computed = max(CHUNK_VOXELS["cpu"], 16 * pixels) * VOXEL_BYTES + STATE_BYTES * pixels
    computed = computed * precision(device).itemsize // 2  # those are for half precision
    block = min(shape[0], block_length(pixels))
    working = (SLAB_BYTES * slab + BLOCK_BYTES * block) * pixels + computed
    return int(KEPT * working) + (REPORT_BYTES if report else 0)


def report_seconds(shape: tuple[int, int, int]) -> float:
    """Time that the report on a movie (T, Y, X) takes; bounded, as it looks at a sample."""
    once, each = REPORT_SECONDS
    return once + each * min(math.prod(shape), STATISTICS_VOXELS + TRACE_VOXELS)
