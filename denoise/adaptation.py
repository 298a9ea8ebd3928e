"""Adapt a copy of the network to one movie: Noise2Void on that movie alone, kept only if it predicts the movie better.

Some voxels are held out: the adaptation never sees their values. The blind-spot error there, before and after, decides
whether the adapted copy is used. Where the noise of neighbours in a row or column is correlated, the blind spot covers
the run (structured Noise2Void, Broaddus et al., ISBI 2020).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.blindspot import Samples, blind_errors, correlated_axes, make_samples
from denoise.learning import Learner, Sampler, autocast
from model import UNet3D

RATE = 2e-4  # learning rate: a seventh of the training's
AVERAGING = 0.98  # a few hundred steps are to be averaged, not thousands
PATCH = (128, 64)  # frames and side
BATCH = {"cpu": 2, "cuda": 16}  # patches a step
HELD_OUT = 0.02  # of the voxels
CHECKS = 16  # patches in which held-out voxels are predicted
FEWEST = 16  # frames: there is nothing to learn from fewer


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did; plain values for the metadata."""

    steps: int
    seconds: float
    error_before: float  # mean squared, at held-out voxels, in noise variances
    error_after: float
    correlated: tuple[bool, bool]  # noise along (y, x)

    @property
    def kept(self) -> bool:
        return self.error_after < self.error_before


@dataclass
class Excerpt:
    """The frames that are learned from, as denoise.learning.Recordings."""

    movies: list[Tensor]
    correlated: list[tuple[bool, bool]]
    device: torch.device


def adapt(
    frames: Tensor, model: UNet3D, seconds: float, tell: Callable[[float], None]
) -> tuple[UNet3D, Adaptation | None]:
    """The network to use for a movie, and what was found; the given one is never changed.

    frames: normalized (T, Y, X) of it, NaN where missing. `tell` gets the share of the time that has passed. A movie of
    fewer than FEWEST frames is not adapted to: None.
    """
    if len(frames) < FEWEST:
        return model, None
    start = time.monotonic()
    device = next(model.parameters()).device
    axes = correlated_axes(frames[:64].float())
    generator = torch.Generator(device).manual_seed(0)
    frames = frames.half().to(device)
    held_out = torch.rand(frames.shape, device=device, generator=generator) < HELD_OUT
    patch = (min(PATCH[0], len(frames)), min(PATCH[1], *frames.shape[1:]))
    checks = [check(frames, held_out, patch, number, axes, generator) for number in range(CHECKS)]
    sampler = Sampler(Excerpt([frames.masked_fill(held_out, torch.nan)], [axes], device), seed=0)
    learner = Learner(copy.deepcopy(model), RATE, AVERAGING)
    before = error_of(model, checks)
    while (passed := (time.monotonic() - start) / seconds) < 1:
        learner.learn(sampler.samples(patch, BATCH[device.type]), passed)
        tell(min(1.0, passed))
    result = Adaptation(
        learner.step, time.monotonic() - start, before, error_of(learner.average, checks), axes
    )
    tell(1.0)
    return (learner.average if result.kept else model), result


def check(
    frames: Tensor, held_out: Tensor, patch: tuple[int, int], number: int, axes: tuple[bool, bool],
    generator: torch.Generator,
) -> Samples:  # fmt: skip
    """One patch of the movie (T, Y, X) in which the held-out voxels are hidden; numbers spread evenly over it."""
    shares = (number * torch.tensor([0.8192, 0.6711, 0.5498])) % 1  # the R3 sequence (Roberts, 2018)
    room = [size - part for size, part in zip(frames.shape, (patch[0], patch[1], patch[1]))]
    t, y, x = (int(share * (free + 1)) for share, free in zip(shares, room))
    columns = (slice(y, y + patch[1]), slice(x, x + patch[1]))
    movie, centres = (
        frames[(slice(None), *columns)].float()[None],
        held_out[(slice(t, t + patch[0]), *columns)][None],
    )
    return make_samples(movie, t, patch[0], axes, generator, centres)


@torch.no_grad()
def error_of(model: UNet3D, checks: list[Samples]) -> float:
    """Mean blind-spot error over the checks, in noise variances."""
    errors = []
    for samples in checks:
        with autocast(samples.residual.device):
            prediction = model(samples.residual, samples.images, samples.standard_error)
        errors.append(blind_errors(prediction, samples.target, samples.scored))
    return float(torch.cat(errors).mean())
