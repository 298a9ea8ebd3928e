"""Adapt a copy of the network to one movie: Noise2Void on that movie alone, kept only if it predicts the movie better.

    hold out voxels -> plan the steps by the time -> train, validate, train, ... -> keep the best moving average

The adaptation never sees the values of the held-out voxels. The blind-spot error there decides when to stop, and an
adapted copy is used only where that error is lower by more than chance, and by enough to matter. Where neighbours in a
row or column share noise, the blind spot covers a run (structured Noise2Void, Broaddus et al., ISBI 2020).

The number of steps is planned once, before the first: by the movie's size, or where that takes too long, by the
measured time of a step, as a power of two. So a machine reproduces its result unless its speed changes a lot.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from denoise.blindspot import Samples, blind_errors, make_samples
from denoise.learning import Learner, Sampler
from denoise.limits import is_out_of_memory
from denoise.precision import autocast
from model import UNet3D

LEARNING_RATE = 2e-4  # a seventh of the training's
AVERAGING = 0.98  # decay of the moving average, for a few hundred steps instead of thousands
PATCH = (128, 64)  # frames and side
BATCH = {"cpu": 2, "cuda": 16}  # patches a step
HELD_OUT = 0.02  # share of the voxels
VALIDATION_PATCHES = 16  # in which held-out voxels are predicted
MIN_FRAMES = 16  # a shorter movie is not adapted to: there is nothing to learn
MAX_PASSES = 32  # over the excerpt: a small movie teaches all it can soon
MAX_VALIDATIONS = 8  # during the training
MAX_VALIDATION_SHARE = 0.25  # of the time; where validations take longer there are fewer of them
MIN_STANDARD_ERRORS = 2.0  # by which an adapted copy has to be better, and
MIN_GAIN = 5e-3  # of the noise's variance: the read-out finds what is smaller, too, and rather loses by it
PATIENCE = 4  # validations without a new best, then it stops; half of all: most is gained at low rates
SLOWDOWN = 1.25  # factor by which steps may turn out slower than the measured one


@dataclass(frozen=True)
class Adaptation:
    """Record of an adaptation; plain values for the metadata."""

    steps: int  # taken
    planned: int  # steps of the learning rate's schedule; they determine the result, the time does not
    ended: str  # why it ended
    seconds: float
    error_before: float  # mean squared, at held-out voxels, in noise variances
    error_after: float  # of the best validated network
    chance: float  # standard error of the difference of the two, over the validation patches
    correlated: tuple[bool, bool]  # along (y, x): neighbours share noise, so the blind spot covers a run

    @property
    def kept(self) -> bool:
        """Whether the adapted network is used."""
        return self.error_before - self.error_after > max(MIN_GAIN, MIN_STANDARD_ERRORS * self.chance)


@dataclass
class Excerpt:
    """The frames to learn from, as denoise.learning.Recordings."""

    movies: list[Tensor]
    correlated: list[tuple[bool, bool]]
    device: torch.device


@dataclass(frozen=True)
class Plan:
    """Number of training steps and of validations during them; no steps where the time is too short for one."""

    steps: int
    validations: int


class Task:
    """Training batches of one movie (T, Y, X), without its held-out voxels, and validation patches with them."""

    def __init__(self, frames: Tensor, correlated: tuple[bool, bool], device: torch.device) -> None:
        self.correlated = correlated
        generator = torch.Generator(device).manual_seed(0)
        frames = frames.half().to(device)
        held_out = torch.rand(frames.shape, device=device, generator=generator) < HELD_OUT
        self.patch = (min(PATCH[0], len(frames)), min(PATCH[1], *frames.shape[1:]))
        self.batch = BATCH[device.type]
        self.validation = [
            validation_samples(frames, held_out, self.patch, number, correlated, generator)
            for number in range(VALIDATION_PATCHES)
        ]
        self.excerpt = Excerpt([frames.masked_fill(held_out, torch.nan)], [correlated], device)
        self.sampler = Sampler(self.excerpt, seed=0)
        self.voxels = frames.numel()

    def train_step(self, learner: Learner[UNet3D], progress: float) -> None:
        """Train on one batch; progress: see `Learner.update`."""
        learner.learn(self.sampler.samples(self.patch, self.batch), progress)

    @torch.no_grad()
    def errors(self, model: UNet3D) -> Tensor:
        """Return the mean blind-spot error at the held-out voxels of each validation patch, in noise variances."""
        errors = []
        for samples in self.validation:
            with autocast(samples.residual.device):
                prediction = model(samples.residual, samples.images, samples.standard_error)
            errors.append(blind_errors(prediction, samples.target, samples.scored))
        return torch.cat(errors).cpu()

    def plan(self, model: UNet3D, seconds: float, validation_seconds: float) -> Plan:
        """Plan what fits into the time: MAX_PASSES over the movie, or the largest power of two of steps."""
        enough = math.ceil(MAX_PASSES * self.voxels / (self.batch * self.patch[0] * self.patch[1] ** 2))
        validations = MAX_VALIDATIONS
        while validations > 1 and validations * validation_seconds > MAX_VALIDATION_SHARE * seconds:
            validations //= 2
        step_seconds = self.time_step(model)
        left = seconds - 2 * step_seconds - SLOWDOWN * validations * validation_seconds
        fitting = left / (SLOWDOWN * step_seconds)
        return Plan(min(enough, 2 ** int(math.log2(fitting))) if fitting >= 1 else 0, validations)

    def time_step(self, model: UNet3D) -> float:
        """Measure the seconds of a step: the second of two, on a copy that is thrown away."""
        sampler, learner = Sampler(self.excerpt, seed=1), learner_of(model)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            learner.learn(sampler.samples(self.patch, self.batch), 0.0)
            seconds.append(time.monotonic() - start)
        return seconds[-1]


def learner_of(model: UNet3D) -> Learner[UNet3D]:
    """Return a learner of a copy. Its network of the mean image is frozen: one mean is too little to learn from."""
    learner = Learner(copy.deepcopy(model), LEARNING_RATE, AVERAGING)
    learner.model.mean.requires_grad_(False)
    return learner


def adapt(
    frames: Tensor,
    correlated: tuple[bool, bool],
    model: UNet3D,
    seconds: float,
    report_progress: Callable[[float], None],
) -> tuple[UNet3D, Adaptation | None]:
    """Adapt a network to a movie; returns the network to use and a record. The given network is never changed.

    frames: normalized (T, Y, X) of the movie, NaN where missing. correlated: whether neighbours along (y, x) share
    noise. seconds: at most, in total. report_progress gets the share that is done. The record is None for a movie of
    fewer than MIN_FRAMES frames, which is not adapted to. Where the memory does not suffice to learn, the given network
    is returned: it may still suffice to denoise.
    """
    if len(frames) < MIN_FRAMES:
        return model, None
    start = time.monotonic()
    try:
        return train_and_compare(frames, correlated, model, start, seconds, report_progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    elapsed = time.monotonic() - start
    return model, Adaptation(0, 0, "too little memory", elapsed, math.nan, math.nan, math.nan, correlated)


def train_and_compare(
    frames: Tensor, correlated: tuple[bool, bool], model: UNet3D, start: float, seconds: float,
    report_progress: Callable[[float], None],
) -> tuple[UNet3D, Adaptation]:  # fmt: skip
    """As `adapt`, which started at `start` (time.monotonic)."""
    task = Task(frames, correlated, next(model.parameters()).device)
    ready = time.monotonic()
    before = task.errors(model)
    validated = time.monotonic()
    plan = task.plan(model, start + seconds - validated, validated - ready)
    best, after, steps, ended = train(task, model, before, plan, start + seconds, report_progress)
    report_progress(1.0)
    gain = before - after
    adaptation = Adaptation(
        steps, plan.steps, ended, time.monotonic() - start, float(before.mean()), float(after.mean()),
        float(gain.std() / len(gain) ** 0.5), correlated,
    )  # fmt: skip
    return (best if adaptation.kept else model), adaptation


def train(
    task: Task,
    model: UNet3D,
    before: Tensor,
    plan: Plan,
    deadline: float,
    report_progress: Callable[[float], None],
) -> tuple[UNet3D, Tensor, int, str]:
    """Train by the plan until the deadline (time.monotonic), or until the validation error no longer falls.

    Returns the best network (the given one, of errors `before`, unless another errs less), its errors, the steps taken,
    and why they ended.
    """
    best, best_errors, since_best = model, before, 0
    learner = learner_of(model)
    interval = max(1, plan.steps // plan.validations)
    while learner.step < plan.steps:
        if time.monotonic() > deadline:
            return best, best_errors, learner.step, "out of time"
        task.train_step(learner, learner.step / plan.steps)
        report_progress(learner.step / plan.steps)
        if learner.step % interval and learner.step < plan.steps:
            continue
        errors = task.errors(learner.average)
        if errors.mean() < best_errors.mean():
            best, best_errors, since_best = copy.deepcopy(learner.average), errors, 0
        else:
            since_best += 1
        if since_best == PATIENCE:
            return best, best_errors, learner.step, "no longer better"
    return best, best_errors, learner.step, "as planned" if plan.steps else "too little time for a step"


def validation_samples(
    frames: Tensor, held_out: Tensor, patch: tuple[int, int], number: int, correlated: tuple[bool, bool],
    generator: torch.Generator,
) -> Samples:  # fmt: skip
    """Return one patch of a movie (T, Y, X), its held-out voxels hidden; numbers are spread evenly over the movie."""
    shares = (number * torch.tensor([0.8192, 0.6711, 0.5498])) % 1  # the R3 sequence (Roberts, 2018)
    room = [size - part for size, part in zip(frames.shape, (patch[0], patch[1], patch[1]))]
    t, y, x = (int(share * (free + 1)) for share, free in zip(shares, room))
    rows, columns = slice(y, y + patch[1]), slice(x, x + patch[1])
    movie = frames[:, rows, columns].float()[None]
    centres = held_out[t : t + patch[0], rows, columns][None]
    return make_samples(movie, t, patch[0], correlated, generator, centres)
