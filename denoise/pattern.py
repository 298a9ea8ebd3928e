"""What stays where it is while the scene moves: the fixed pattern of a camera, dust.

Held still with the scene, it would move over it, as noise that no other frame has at this place. It is what frames have
in the mean, where they have it, and the scene does not explain as they show it. Some activity is such, too, since it
happens at some places of the scene alone; but it is not the same in other parts of the movie.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise.motion import Motion
from denoise.tracking import PIECE
from denoise.waves import cosines, octaves

PARTS = 4  # of the frames, that have to agree
SEEN = 0.9  # of the frames of a part, in which a pixel has to be seen
MOVING = 1.0  # pixels, root mean square, by which it moves around where it was PIECE frames before and after
EDGE = 4  # pixels that a guess reaches further
SURE = 5.0  # deviations by chance, from which parts have the same in them
ROUNDS = 3  # each finds what was left of the pattern, blurred by the movement
TINY = torch.finfo().tiny


class Mean:
    """Of frames (n, Y, X), by what they differ from an image near it; what is missing, NaN, is left out."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference
        self.total, self.count = torch.zeros(2, *reference.shape)

    def update(self, frames: Tensor) -> None:
        rest = frames - self.reference
        self.count += rest.isfinite().sum(0)
        self.total += rest.nansum(0)

    def add(self, other: Mean) -> None:
        """Take the sums of other frames, relative to the same image."""
        self.count += other.count
        self.total += other.total

    @property
    def value(self) -> Tensor:
        """(Y, X); the reference where all frames miss it."""
        return self.reference + self.total / self.count.clamp(min=1)


class Part:
    """The mean of some of a movie's frames, as they are and where the scene stands still."""

    def __init__(self, frames: range, field: Tensor, canvas: Tensor) -> None:
        self.frames, self.field, self.canvas = frames, Mean(field), Mean(canvas)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Where a few frames in a row start, and how many there are."""
        for start in self.frames[::PIECE]:
            yield start, min(PIECE, self.frames.stop - start)


class Parts:
    """The mean of each of PARTS parts of a movie, one after the other."""

    def __init__(self, frames: int, field: Tensor, canvas: Tensor) -> None:
        ends = [frames * number // PARTS for number in range(PARTS + 1)]
        self.parts = [Part(range(*its), field, canvas) for its in pairwise(ends)]

    def update(self, frames: Tensor, held: Tensor, start: int) -> None:
        """Add frames (n, Y, X) from that one on, and the same held still (n, H, W)."""
        for part in self.parts:
            own = slice(max(0, part.frames.start - start), max(0, part.frames.stop - start))
            part.field.update(frames[own])
            part.canvas.update(held[own])

    def add(self, other: Parts) -> None:
        """Take the sums of other frames."""
        for own, its in zip(self.parts, other.parts):
            own.field.add(its.field)
            own.canvas.add(its.canvas)

    def pattern(self, motion: Motion) -> Tensor:
        """What does not move (Y, X), in a movie that moves so: all 0, where there is nothing.

        What is shown of the scene S is R S in the mean, and the pattern P, held still, is H P: frames are P + R S in the
        mean, and held still S + H P. What the first misses of R times the second is P less R H P, and so on.
        """
        pattern = torch.zeros_like(self.parts[0].field.reference)
        for _ in range(ROUNDS if self.tell(motion) else 0):
            pattern = in_common(torch.stack([missed(part, motion, pattern) for part in self.parts]))
            if not bool(pattern.any()):
                break
        return pattern

    def tell(self, motion: Motion) -> bool:
        """Whether the scene comes to enough places to be told from what does not move: more than by a slow drift."""
        steps = motion.by[PIECE:] - motion.by[:-PIECE]
        return len(steps) > 0 and float(steps.square().sum(1).mean() / 2) > MOVING**2

    def scene(self, motion: Motion, pattern: Tensor) -> Tensor:
        """The mean of all frames held still (H, W), without the pattern."""
        whole = Mean(self.parts[0].canvas.reference)
        for part in self.parts:
            whole.add(part.canvas)
        return whole.value - held_mean(self.parts, motion, pattern)


def held_mean(parts: list[Part], motion: Motion, pattern: Tensor) -> Tensor:
    """A pattern (Y, X) in the mean over all frames that are held still (H, W)."""
    mean = Mean(torch.zeros_like(parts[0].canvas.reference))
    if bool(pattern.any()):
        for start, count in (piece for part in parts for piece in part.pieces()):
            mean.update(motion.hold(pattern.expand(count, -1, -1), start))
    return mean.value


def missed(part: Part, motion: Motion, pattern: Tensor) -> Tensor:
    """What a part's frames have in the mean (Y, X), and its scene without a pattern does not show; 0 where not seen.

    And where frames end in the scene as they move: what is beyond has to be guessed.
    """
    scene = part.canvas.value - held_mean([part], motion, pattern)
    shown = torch.zeros_like(pattern)
    for start, count in part.pieces():
        shown += motion.release(scene.expand(count, -1, -1), start).sum(0)
    seen = part.field.count > SEEN * len(part.frames)
    for axis, margins in enumerate(motion.margins):
        edge = min(max(margins) + EDGE, seen.shape[axis] // 2)
        seen.narrow(axis, 0, edge).fill_(False)
        seen.narrow(axis, seen.shape[axis] - edge, edge).fill_(False)
    return torch.where(seen, part.field.value - shown / max(1, len(part.frames)), 0)


def in_common(images: Tensor) -> Tensor:
    """What images (n, Y, X) have in common (Y, X): octave by octave as much as they tell alike, if it is no chance."""
    along_y, along_x = (cosines(size) for size in images.shape[1:])
    spectra = along_y @ images @ along_x.T
    by_y, by_x = (F.one_hot(octaves(size)).float() for size in images.shape[1:])
    counts = by_y.sum(0)[:, None] * by_x.sum(0)
    mean, noise = spectra.mean(0), spectra.var(0)
    powers = torch.stack([mean.square() - noise / len(images), mean.square(), noise])
    shared, power, noises = by_y.T @ powers @ by_x / counts
    pairs = len(images) * (len(images) - 1) / 2
    chance = noises.clamp(min=float(noise.mean())) / (pairs * counts).sqrt()
    gain = torch.where(shared > SURE * chance, shared / power.clamp(min=TINY), 0).clamp(0, 1)
    return along_y.T @ (mean * (by_y @ gain @ by_x.T)) @ along_x
