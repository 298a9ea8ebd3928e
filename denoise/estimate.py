"""Estimates of time and memory before a movie is denoised: by a trial on this machine, and by the movie's shape."""

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

TRIAL_SHAPE = (64, 128, 128)  # frames, height, width of the noise that is denoised to measure the speed
BLOCK_BYTES = 60  # for each voxel of a block that is read: all arrays made of it, in all threads
ALLOCATOR_FACTOR = 1.5  # freed blocks are kept for reuse (limits.reuse_memory), most of all in long movies
REPORT_BYTES = 200 << 20  # at most
REPORT_SECONDS = 3.0  # for the pictures
REPORT_VOXEL_SECONDS = 4e-8  # for each voxel that is examined; together 10 s for 100,000 x 64 x 64, measured


def trial_speed(model: UNet3D) -> float:
    """Measure how many voxels a second are denoised, by denoising noise twice: the first time is the warm-up."""
    frames = np.random.default_rng(0).poisson(100, TRIAL_SHAPE).astype(np.uint16)
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        denoise_movie(ArrayMovie(frames), model, Settings(), lambda _: None, lambda *_: None)
        seconds.append(time.monotonic() - start)
    return math.prod(TRIAL_SHAPE) / min(seconds)


def working_bytes(shape: tuple[int, int, int], device: torch.device, report: bool) -> int:
    """Estimate the memory in bytes for a movie (T, Y, X), without that of the idle program; bounded for long movies."""
    pixels = shape[1] * shape[2]
    slab = max(slab.stop - slab.start for slab in plan_slabs(shape, math.inf))
    network = max(CHUNK_VOXELS["cpu"], 16 * pixels) * VOXEL_BYTES + STATE_BYTES * pixels
    network = network * precision(device).itemsize // 2  # the constants are for half precision
    block = min(shape[0], block_length(pixels))
    working = (SLAB_BYTES * slab + BLOCK_BYTES * block) * pixels + network
    return int(ALLOCATOR_FACTOR * working) + (REPORT_BYTES if report else 0)


def report_seconds(shape: tuple[int, int, int]) -> float:
    """Estimate how long the report on a movie (T, Y, X) takes; bounded, as it examines a sample of frames."""
    return REPORT_SECONDS + REPORT_VOXEL_SECONDS * min(math.prod(shape), STATISTICS_VOXELS + TRACE_VOXELS)
