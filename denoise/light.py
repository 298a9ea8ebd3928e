"""Light that flickers: found, held steady while a movie is denoised, and given back to the output.

A lamp or a laser that flickers brightens and dims all of the field alike, by another amount in each frame. For a pixel
by itself that is noise, and more of it than a good denoiser leaves; for the whole field it is two numbers a frame, which
thousands of pixels tell.

    survey: do cells of the field brighten alike from frame to frame? -> no, as in most movies: nothing else happens
        -> yes: contrast and level of each frame against the mean, by each half of the field for itself
        -> the one mixture of both that halves see flicker alike -> Wiener filter over time
        -> do pixels change with it as light makes them, and not otherwise? -> Light

Activity is somewhere: it is not alike in most cells, and where it is, not in all of their pixels. Where all neuropil
flares up at once it may pass for light; nothing is lost, since what was taken out comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from denoise.agreement import alike, mean_and_variance, per_variance, region_masks, solver, wiener_filter
from denoise.context import DARKEST
from denoise.tracking import PIECE, Moments

LEAST = 0.015  # of the light, root mean square, that it has to differ by from that of a usual frame
ALIKE = 0.6  # of how others change, squared, a cell has to change; the rest is their noise and activity
FOLLOWED = 0.77  # of how pixels change with the light, squared, has to be what light makes of them
CUT = 0.01  # of the frames, in which a pixel has the largest value of all: it was cut off, and changes less than light
STRUCTURED = 2.0  # times its noise, squared, has to be how bright pixels differ in the mean
DIMMEST = 0.25  # of the usual light: what is darker shows too little


@dataclass(frozen=True)
class Light:
    """Of a movie of T frames, each one is gain (T,) times the scene, and offset (T,) more; (0,) in steady light.

    In float64: in the units of a recording with a large offset the two nearly cancel.
    """

    gain: Tensor
    offset: Tensor

    @property
    def steady(self) -> bool:
        """Whether frames are as the scene is."""
        return not len(self.gain)

    def hold(self, frames: Tensor, start: int) -> Tensor:
        """Frames (n, Y, X) from that one on, in steady light; NaN where there was hardly any."""
        if self.steady:
            return frames
        gain, offset = self._of(frames, start)
        return ((frames - offset) / gain).masked_fill(gain < DIMMEST, torch.nan)

    def release(self, frames: Tensor, start: int) -> Tensor:
        """The inverse."""
        if self.steady:
            return frames
        gain, offset = self._of(frames, start)
        return frames * gain + offset

    def _of(self, frames: Tensor, start: int) -> list[Tensor]:
        return [its[start : start + len(frames), None, None].to(frames) for its in (self.gain, self.offset)]

    def since(self, start: int) -> Light:
        """That of the frames from this one on."""
        return Light(self.gain[start:], self.offset[start:])

    def rescaled(self, scale: float, shift: float) -> Light:
        """That of scale * movie + shift."""
        return Light(self.gain, self.offset * scale + shift * (1 - self.gain))

    def flicker(self, level: float) -> float:
        """Of what is usually that bright: steps of its brightness between frames, root mean square, over root 2."""
        brightness = self.gain * level + self.offset
        return 0.0 if self.steady else float(brightness.diff().square().mean().div(2).sqrt())


STEADY = Light(torch.zeros(0), torch.zeros(0))


class Photometer:
    """Tells how bright frames (n, Y, X) are against an image (Y, X) of the scene, as cells of the field see it.

    weights (Y, X): the inverse of how much its pixels vary.
    """

    def __init__(self, image: Tensor, weights: Tensor) -> None:
        self.image = image
        black = image.flatten().kthvalue(1 + int(DARKEST * (image.numel() - 1))).values
        signal = image - black  # that more light makes more of
        weighted = region_masks(image.shape, 0) * (signal * weights)
        power = (weighted * signal).sum((1, 2), keepdim=True)
        self.solver = (weighted / power)[power[:, 0, 0] > 0].flatten(1)  # (cells, Y X)

    def brightness(self, frames: Tensor) -> Tensor:
        """In parts of the usual light, how much more there is in each cell: (n, cells)."""
        return torch.nan_to_num(frames - self.image).flatten(1) @ self.solver.T


def flickers(brightness: Tensor) -> bool:
    """Whether brightness (T, cells) tells of flicker: from frame to frame most cells change like all others."""
    steps = brightness.diff(dim=0).unsqueeze(2)  # each the difference of two frames' light
    return alike(steps, LEAST * math.sqrt(2), ALIKE)


def light_of(blocks: Callable[[], Iterable[Tensor]]) -> Light:
    """The light of a movie that flickers, or STEADY where pixels tell otherwise.

    `blocks` are its frames (n, Y, X), in order, NaN where missing; they are read three times.
    """
    mean, variance, count, cut = moments(blocks())
    weights = per_variance(variance * (cut < CUT))
    weights = weights / weights.sum()
    centre = (weights * mean).sum()
    power = (weights * (mean - centre).square()).sum()
    # where what pixels usually hold was subtracted, nothing tells more light from less
    if not power > STRUCTURED * (weights * variance / count).sum():
        return STEADY
    spread = power.sqrt()
    patterns = torch.stack([(mean - centre) / spread, torch.ones_like(mean)]).flatten(1)  # contrast, level
    cells = region_masks(mean.shape, 0)
    halves = [(its.any(0) * weights).flatten() for its in cells.split(len(cells) // 2)]
    solvers = [its for its in (solver(patterns * half, patterns) for half in halves) if its is not None]
    if len(solvers) < len(halves):
        return STEADY
    told = torch.cat([amounts(frames - mean, torch.cat(solvers)) for frames in blocks()])
    course, mixture = flicker_of(told.unflatten(1, (2, 2)))
    if not is_light(blocks(), course, mixture @ patterns, weights.flatten()):
        return STEADY
    gain = (1 + mixture[0] * course / spread).clamp(min=0).double()
    return Light(gain, mixture[1] * course + (1 - gain) * centre)


def is_light(blocks: Iterable[Tensor], course: Tensor, pattern: Tensor, weights: Tensor) -> bool:
    """Whether the pixels of frames (n, Y, X) change with a course (T,) of light by a pattern (N,), and not otherwise.

    A process that runs through most of the field makes its cells alike, too, but other pixels do not change with it.
    By two images of how pixels change, each from every other few frames, so that their noise is not the same.
    """
    images, power = torch.zeros(2, pattern.numel()), torch.zeros(2, 1)
    pieces = (piece for frames in blocks for piece in frames.split(PIECE))
    for number, (piece, its) in enumerate(zip(pieces, course.split(PIECE))):
        steps = its.diff()
        images[number % 2] += steps @ torch.nan_to_num(piece.diff(dim=0)).flatten(1)
        power[number % 2] += steps.square().sum()
    first, second = images / power.clamp(min=torch.finfo().tiny)
    told = (weights * first * second).sum()
    return bool((weights * pattern.square()).sum() > FOLLOWED * told)


def moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (Y, X) of frames (n, Y, X), variance, number, and the share of them that have the largest value of all."""
    whole = iter(blocks)
    first = next(whole)
    sums = Moments(mean_and_variance(first)[0])
    peak, often = torch.full_like(first[0], -torch.inf), torch.zeros_like(first[0])
    for frames in chain([first], whole):
        sums.update(frames)
        before, peak = peak, torch.maximum(peak, frames.nan_to_num(-torch.inf).amax(0))
        often = often * (peak == before) + (frames == peak).sum(0)
    count = sums.count.clamp(min=1)
    return sums.mean, sums.variance, count, often * (peak == peak.max()) / count


def amounts(rest: Tensor, solvers: Tensor) -> Tensor:
    """Of patterns in frames (n, Y, X), by their solvers (K, N): (n, K), NaN for frames that show nothing."""
    told = torch.nan_to_num(rest).flatten(1) @ solvers.T
    return torch.where(rest.isfinite().any(2).any(1)[:, None], told, torch.nan)


def flicker_of(told: Tensor) -> tuple[Tensor, Tensor]:
    """From what halves of the field tell of two amounts (T, 2 halves, 2): a course (T,), and how much of each is in it.

    It is the mixture of them in which steps from frame to frame are the most alike in both halves.
    """
    steps = told[told.isfinite().all(2).all(1)].diff(dim=0)
    shared = steps[:, 0].T @ steps[:, 1]
    mixture = torch.linalg.eigh(shared + shared.T).eigenvectors[:, -1]
    halves = (told @ mixture)[..., None]
    course = wiener_filter(halves.mean(1), halves)[:, 0]
    return course - course.mean(), mixture
