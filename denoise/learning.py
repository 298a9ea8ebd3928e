"""Noise2Void learning from recordings in memory, shared by training and the adaptation to one movie.

Batches of crops, each treated as a small movie of its own (its context computed without the hidden voxels); optimizer
steps; a moving average of the weights. Sources: Noise2Void (Krull et al., CVPR 2019); AdamW (Loshchilov
and Hutter, ICLR 2019).
"""

from __future__ import annotations

import copy
import math
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from denoise.blindspot import Samples, blind_errors, make_samples
from denoise.precision import autocast

MAX_WHOLE_PATCH = 32  # frames: a patch up to this long is its whole movie
MAX_GRADIENT_NORM = 1.0
WARM_UP = 0.0125  # share of the learning over which the rate rises
Net = TypeVar("Net", bound=nn.Module)


class Recordings(Protocol):
    """Normalized movies (T, Y, X) on one device, NaN where missing; and whether neighbours along (y, x) share noise."""

    movies: list[Tensor]
    correlated: list[tuple[bool, bool]]
    device: torch.device


class Sampler:
    """Draws batches of crops, each treated as a small movie; a batch has one shape and one kind of blind spot."""

    def __init__(self, pool: Recordings, seed: int) -> None:
        self.pool = pool
        self.random = torch.Generator().manual_seed(seed)  # where and what to crop
        self.noise = torch.Generator(pool.device).manual_seed(seed)  # what to hide

    def draw(self, below: int) -> int:
        """Draw an integer from 0 to below - 1."""
        return int(torch.randint(max(1, below), (1,), generator=self.random))

    def samples(self, patch: tuple[int, int], count: int) -> Samples:
        """Draw a batch of `count` patches of (frames, side), smaller ones where no movie holds that many voxels.

        Each patch is part of a crop of the same side, whose frames (see `length`) all enter the context.
        """
        if not any(holds(movie, patch) for movie in self.pool.movies):
            patch = fit_patch(patch, self.pool)
        frames, side = patch
        recordings = zip(self.pool.movies, self.pool.correlated)
        usable = [(movie, axes) for movie, axes in recordings if holds(movie, patch)]
        correlated = usable[self.draw(len(usable))][1]
        alike = [movie for movie, axes in usable if axes == correlated]
        chosen = [alike[self.draw(len(alike))] for _ in range(count)]
        length = self.length(frames, min(movie.shape[0] for movie in chosen))
        movies = torch.stack([self.crop(movie, length, side) for movie in chosen]).float()
        if self.draw(2):
            movies, correlated = movies.transpose(2, 3), (correlated[1], correlated[0])
        return make_samples(movies, self.draw(length - frames + 1), frames, correlated, self.noise)

    def length(self, frames: int, longest: int) -> int:
        """Draw the frames of a crop: half of the time `longest`, else log-uniformly between `frames` and that."""
        if frames <= MAX_WHOLE_PATCH:
            return frames
        share = float(torch.rand(1, generator=self.random))
        return longest if share < 0.5 else min(longest, round(frames * (longest / frames) ** (2 * share - 1)))

    def crop(self, movie: Tensor, length: int, side: int) -> Tensor:
        """Crop (length, side, side) from a random place of a movie (T, Y, X), randomly mirrored along every axis."""
        first, y, x = (self.draw(size - part + 1) for size, part in zip(movie.shape, (length, side, side)))
        part = movie[first : first + length, y : y + side, x : x + side]
        return part.flip([axis for axis in range(3) if self.draw(2)])


def holds(movie: Tensor, patch: tuple[int, int]) -> bool:
    """Return whether a patch of (frames, side) can be cut from a movie (T, Y, X)."""
    return movie.shape[0] >= patch[0] and min(movie.shape[1:]) >= patch[1]


def fit_patch(patch: tuple[int, int], pool: Recordings) -> tuple[int, int]:
    """Return a patch of (frames, side) reduced to what the largest recording of the pool holds."""
    sizes = [(movie.shape[0], min(movie.shape[1:])) for movie in pool.movies]
    frames, side = max(sizes, key=lambda size: size[0] * size[1] ** 2)
    return min(patch[0], frames), min(patch[1], side)


class Learner(Generic[Net]):
    """A network in training, the moving average of its weights, and its optimizer."""

    def __init__(self, model: Net, rate: float, averaging: float) -> None:
        self.model = model.train().requires_grad_(True)
        self.device = next(model.parameters()).device
        self.rate, self.averaging, self.step = rate, averaging, 0
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), rate, weight_decay=1e-4, betas=(0.9, 0.99)
        )

    def learn(self, samples: Samples, progress: float) -> Tensor:
        """Train a network like model.UNet3D on one batch; returns the mean squared error (a scalar on the device)."""
        with autocast(self.device, samples.residual.shape[2]):
            prediction = self.model(samples.residual, samples.images, samples.standard_error)
        return self.update(blind_errors(prediction, samples.target, samples.scored), progress)

    def update(self, errors: Tensor, progress: float) -> Tensor:
        """Take one optimizer step on the errors of samples (B,), in noise variances; returns their mean.

        Samples of high signal-to-noise ratio err by many noise variances; larger errors than 1 are scaled to 1, so that
        none dominates. progress: share of the learning that is done, 0 to 1; it sets the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * schedule(progress)
        self.optimizer.zero_grad(set_to_none=True)
        (errors / errors.detach().clamp(min=1)).mean().backward()
        if torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM).isfinite():
            self.optimizer.step()
        decay = min(self.averaging, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return errors.detach().mean()


def schedule(progress: float) -> float:
    """Return the learning rate over its maximum: a short linear rise, then half a cosine that ends at zero."""
    return min(1.0, progress / WARM_UP + 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
