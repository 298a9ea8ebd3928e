"""Adapt a copy of the network to one movie: Noise2Void on that movie alone, kept only if it predicts the movie better.

    held-out voxels hidden -> steps planned by the time -> learn, look, ... -> the best of the averages looked at

Some voxels are held out: the adaptation never sees their values. The blind-spot error there decides when to stop, and
an adapted copy is used only where that error is lower by more than chance, and by enough to matter. Where the noise of
neighbours in a row or column is correlated, the blind spot covers the run (structured Noise2Void, Broaddus et al., ISBI
2020).

The number of steps is planned once, before the first: by the movie's size, or where that takes too long, by the time
a step took just now, as a power of two. So a machine gives the same result again unless its speed changed a lot.
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
from denoise.limits import lacks_memory
from denoise.precision import autocast
from model import UNet3D

RATE = 2e-4  # learning rate: a seventh of the training's
AVERAGING = 0.98  # a few hundred steps are to be averaged, not thousands
PATCH = (128, 64)  # frames and side
BATCH = {"cpu": 2, "cuda": 16}  # patches a step
HELD_OUT = 0.02  # of the voxels
CHECKS = 16  # patches in which held-out voxels are predicted
FEWEST = 16  # frames: there is nothing to learn from fewer
PASSES = 32  # over the excerpt at most: what a small movie can teach is learned soon
LOOKS = 8  # at the held-out error on the way at most
LOOKING = 0.25  # of the time at most; where looks take longer there are fewer of them
SURE = 2.0  # standard errors by which an adapted copy has to be better, and
WORTH = 5e-3  # of the noise's variance: what is less the read-out finds too, and rather loses by it
PATIENCE = 4  # looks without a new best, after which it stops: half of them, since most is gained while the rate falls
UNSTEADY = 1.25  # steps may turn out slower than the one on the clock by this


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did; plain values for the metadata."""

    steps: int  # learned
    planned: int  # steps, for which the learning rate's schedule was made; the result depends on it, not on the time
    ended: str  # why
    seconds: float
    error_before: float  # mean squared, at held-out voxels, in noise variances
    error_after: float  # the best that was seen
    chance: float  # standard error of the difference of the two, over the patches that were looked at
    correlated: tuple[bool, bool]  # noise along (y, x), so that the blind spot covers a run

    @property
    def kept(self) -> bool:
        return self.error_before - self.error_after > max(WORTH, SURE * self.chance)


@dataclass
class Excerpt:
    """The frames that are learned from, as denoise.learning.Recordings."""

    movies: list[Tensor]
    correlated: list[tuple[bool, bool]]
    device: torch.device


@dataclass(frozen=True)
class LessonPlan:
    """Steps: those for PASSES over the excerpt, or a power of two that fits into the time, 0 if none does; and looks."""

    steps: int
    looks: int


class Lesson:
    """What one movie (T, Y, X) teaches: batches without the held-out voxels, and the error of a network at those."""

    def __init__(self, frames: Tensor, correlated: tuple[bool, bool], device: torch.device) -> None:
        self.axes = correlated
        generator = torch.Generator(device).manual_seed(0)
        frames = frames.half().to(device)
        held_out = torch.rand(frames.shape, device=device, generator=generator) < HELD_OUT
        self.patch = (min(PATCH[0], len(frames)), min(PATCH[1], *frames.shape[1:]))
        self.batch = BATCH[device.type]
        self.checks = [check(frames, held_out, self.patch, n, self.axes, generator) for n in range(CHECKS)]
        self.excerpt = Excerpt([frames.masked_fill(held_out, torch.nan)], [self.axes], device)
        self.sampler = Sampler(self.excerpt, seed=0)
        self.voxels = frames.numel()

    def learn(self, learner: Learner[UNet3D], progress: float) -> None:
        """One step."""
        learner.learn(self.sampler.samples(self.patch, self.batch), progress)

    def errors(self, model: UNet3D) -> Tensor:
        """Mean blind-spot errors at the held-out voxels of each check, in noise variances."""
        return check_errors(model, self.checks)

    def plan(self, model: UNet3D, seconds: float, look: float) -> LessonPlan:
        """What fits into the time, where a look at the held-out error takes `look` seconds."""
        enough = math.ceil(PASSES * self.voxels / (self.batch * self.patch[0] * self.patch[1] ** 2))
        looks = LOOKS
        while looks > 1 and looks * look > LOOKING * seconds:
            looks //= 2
        trial = self.trial(model)
        fitting = (seconds - 2 * trial - UNSTEADY * looks * look) / (UNSTEADY * trial)
        return LessonPlan(min(enough, 2 ** int(math.log2(fitting))) if fitting >= 1 else 0, looks)

    def trial(self, model: UNet3D) -> float:
        """Seconds that a step takes, by the second of two on a copy that is thrown away."""
        sampler, learner = Sampler(self.excerpt, seed=1), learner_of(model)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            learner.learn(sampler.samples(self.patch, self.batch), 0.0)
            seconds.append(time.monotonic() - start)
        return seconds[-1]


def learner_of(model: UNet3D) -> Learner[UNet3D]:
    """Of a copy. The network of the mean image stays as it is: a movie has one mean, too little to learn from."""
    learner = Learner(copy.deepcopy(model), RATE, AVERAGING)
    learner.model.mean.requires_grad_(False)
    return learner


def adapt(
    frames: Tensor,
    correlated: tuple[bool, bool],
    model: UNet3D,
    seconds: float,
    tell: Callable[[float], None],
) -> tuple[UNet3D, Adaptation | None]:
    """The network to use for a movie, and what was found; the given one is never changed.

    frames: normalized (T, Y, X) of it, NaN where missing. correlated: along which of (y, x) neighbours share noise.
    seconds: at most, all in all. `tell` gets the share that is done. A movie of fewer than FEWEST frames is not adapted
    to: None. Where the memory does not suffice to learn, it may still do to denoise.
    """
    if len(frames) < FEWEST:
        return model, None
    start = time.monotonic()
    try:
        return taught(frames, correlated, model, start, seconds, tell)
    except Exception as error:
        if not lacks_memory(error):
            raise
    took = time.monotonic() - start
    return model, Adaptation(0, 0, "too little memory", took, math.nan, math.nan, math.nan, correlated)


def taught(
    frames: Tensor, correlated: tuple[bool, bool], model: UNet3D, start: float, seconds: float,
    tell: Callable[[float], None],
) -> tuple[UNet3D, Adaptation]:  # fmt: skip
    """As `adapt`, which started at `start` (time.monotonic)."""
    lesson = Lesson(frames, correlated, next(model.parameters()).device)
    ready = time.monotonic()
    before = lesson.errors(model)
    looked = time.monotonic()
    plan = lesson.plan(model, start + seconds - looked, looked - ready)
    best, after, steps, ended = learn(lesson, model, before, plan, start + seconds, tell)
    tell(1.0)
    gain = before - after
    found = Adaptation(
        steps, plan.steps, ended, time.monotonic() - start, float(before.mean()), float(after.mean()),
        float(gain.std() / len(gain) ** 0.5), lesson.axes,
    )  # fmt: skip
    return (best if found.kept else model), found


def learn(
    lesson: Lesson,
    model: UNet3D,
    before: Tensor,
    plan: LessonPlan,
    deadline: float,
    tell: Callable[[float], None],
) -> tuple[UNet3D, Tensor, int, str]:
    """The best network (the given one unless another errs less), its errors, the steps taken, and why they ended."""
    best, least, since = model, before, 0
    learner = learner_of(model)
    every = max(1, plan.steps // plan.looks)
    while learner.step < plan.steps:
        if time.monotonic() > deadline:
            return best, least, learner.step, "out of time"
        lesson.learn(learner, learner.step / plan.steps)
        tell(learner.step / plan.steps)
        if learner.step % every and learner.step < plan.steps:
            continue
        errors = lesson.errors(learner.average)
        since = 0 if errors.mean() < least.mean() else since + 1
        if not since:
            best, least = copy.deepcopy(learner.average), errors
        if since == PATIENCE:
            return best, least, learner.step, "no longer better"
    return best, least, learner.step, "as planned" if plan.steps else "too little time for a step"


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
def check_errors(model: UNet3D, checks: list[Samples]) -> Tensor:
    """Mean blind-spot error of each of the checks, in noise variances."""
    errors = []
    for samples in checks:
        with autocast(samples.residual.device):
            prediction = model(samples.residual, samples.images, samples.standard_error)
        errors.append(blind_errors(prediction, samples.target, samples.scored))
    return torch.cat(errors).cpu()
