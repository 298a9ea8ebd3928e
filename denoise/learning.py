"""Learning by Noise2Void from recordings at hand: what training and the adaptation to one movie share.

Crops of recordings, each taken as a small movie of its own (its context computed without the hidden voxels); one step
on a batch of them; a moving average of the weights. Sources: Noise2Void (Krull et al., CVPR 2019); AdamW (Loshchilov
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

WHOLE = 32  # frames up to which a patch is the whole of its movie
CLIP = 1.0  # norm of the gradient
WARM_UP = 0.0125  # share of the learning over which the rate rises
Net = TypeVar("Net", bound=nn.Module)


class Recordings(Protocol):
    """Normalized movies (T, Y, X) on one device, missing voxels NaN, and along which of (y, x) their noise is shared."""

    movies: list[Tensor]
    correlated: list[tuple[bool, bool]]
    device: torch.device


class Sampler:
    """Draws batches of crops, each taken as a small movie of its own; a batch has one shape and one blind spot."""

    def __init__(self, pool: Recordings, seed: int) -> None:
        self.pool = pool
        self.random = torch.Generator().manual_seed(seed)  # where and what to crop
        self.noise = torch.Generator(pool.device).manual_seed(seed)  # what to hide

    def draw(self, below: int) -> int:
        return int(torch.randint(max(1, below), (1,), generator=self.random))

    def samples(self, patch: tuple[int, int], count: int) -> Samples:
        """A batch of `count` patches of (frames, side); each movie it is cut from has T' frames, T' >= frames.

        Smaller ones where none of the movies holds the patch.
        """
        if not any(holds(m, patch) for m in self.pool.movies):
            patch = cut(patch, self.pool)
        frames, side = patch
        fitting = [(m, kind) for m, kind in zip(self.pool.movies, self.pool.correlated) if holds(m, patch)]
        kind = fitting[self.draw(len(fitting))][1]
        fitting = [(m, other) for m, other in fitting if other == kind]
        chosen = [fitting[self.draw(len(fitting))][0] for _ in range(count)]
        length = self.length(frames, min(m.shape[0] for m in chosen))
        movies = torch.stack([self.crop(movie, length, side) for movie in chosen]).float()
        if self.draw(2):
            movies, kind = movies.transpose(2, 3), (kind[1], kind[0])
        return make_samples(movies, self.draw(length - frames + 1), frames, kind, self.noise)

    def length(self, frames: int, longest: int) -> int:
        """T': every second time all there is, else anything down to the patch itself, evenly in the logarithm."""
        if frames <= WHOLE:
            return frames
        share = float(torch.rand(1, generator=self.random))
        return longest if share < 0.5 else min(longest, round(frames * (longest / frames) ** (2 * share - 1)))

    def crop(self, movie: Tensor, length: int, side: int) -> Tensor:
        """(T, Y, X) -> (length, side, side) from a random place, mirrored at random along every axis."""
        first, y, x = (self.draw(size - part + 1) for size, part in zip(movie.shape, (length, side, side)))
        part = movie[first : first + length, y : y + side, x : x + side]
        return part.flip([axis for axis in range(3) if self.draw(2)])


def holds(movie: Tensor, patch: tuple[int, int]) -> bool:
    """Whether a patch of (frames, side) can be cut from a movie (T, Y, X)."""
    return movie.shape[0] >= patch[0] and min(movie.shape[1:]) >= patch[1]


def cut(patch: tuple[int, int], pool: Recordings) -> tuple[int, int]:
    """What of a patch of (frames, side) the largest recording of the pool holds."""
    frames, side = max(
        ((m.shape[0], min(m.shape[1:])) for m in pool.movies), key=lambda size: size[0] * size[1] ** 2
    )
    return min(patch[0], frames), min(patch[1], side)


class Learner(Generic[Net]):
    """A network that learns, the moving average of its weights, and its optimizer."""

    def __init__(self, model: Net, rate: float, averaging: float) -> None:
        self.model = model.train().requires_grad_(True)
        self.device = next(model.parameters()).device
        self.rate, self.averaging, self.step = rate, averaging, 0
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), rate, weight_decay=1e-4, betas=(0.9, 0.99)
        )

    def learn(self, samples: Samples, progress: float) -> Tensor:
        """One step of a network as model.UNet3D on a batch; returns the mean squared error (a scalar on the device)."""
        with autocast(self.device, samples.residual.shape[2]):
            prediction = self.model(samples.residual, samples.images, samples.standard_error)
        return self.follow(blind_errors(prediction, samples.target, samples.scored), progress)

    def follow(self, errors: Tensor, progress: float) -> Tensor:
        """One step by the errors of samples (B,), in noise variances; returns their mean.

        Samples of high signal-to-noise ratio err by many noise variances; none may count more than one at the noise.
        `progress` is the share of the learning that is done, 0 to 1.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * schedule(progress)
        self.optimizer.zero_grad(set_to_none=True)
        (errors / errors.detach().clamp(min=1)).mean().backward()
        if torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP).isfinite():
            self.optimizer.step()
        decay = min(self.averaging, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return errors.detach().mean()


def schedule(progress: float) -> float:
    """Learning rate over its maximum: a short rise, then half a cosine that ends at zero."""
    return min(1.0, progress / WARM_UP + 0.01) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
