"""How the columns and rows of a camera differ, the same in all frames, while the scene moves over them.

Held still with the scene this would move, as noise that no other frame has at the same place. It is what frames have in
the mean where they have it, and the scene does not show there:

    recorded mean = scene as shown + pattern,    mean of what is held still = scene + pattern as held

so that the first, less what the second shows, is the pattern less what holding and showing leave of it, and so on.
Wrong displacements leave some of the scene there, too, but not the same in all parts of a column.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from denoise.motion import Motion, Pattern
from denoise.waves import cosines, members

PIECE = 16  # frames that are moved together
STRIPS = 4  # of the field, that have to agree
EDGE = 4  # pixels that a guess reaches further
SURE = 5.0  # deviations by chance, from which they have the same in them
GAINS = 0.5, 2.0  # that are believed
FEWEST = 4  # waves of an octave, to tell what is chance: none of the longest
ROUNDS = 3  # each finds what is left of the pattern
TINY = torch.finfo().tiny

Way = Callable[[Tensor, int], Tensor]  # images (n, ., .) as so many frames have them, from one on


def pattern_of(recorded: Tensor, held: Tensor, motion: Motion) -> tuple[Pattern | None, Tensor]:
    """That of a movie which moves so, None where there is none; and its mean scene (H, W) without it.

    recorded (Y, X) and held (H, W): means of its frames, as they are and as they are held still. A line's part of the
    pattern is an offset, or a gain: then it grows with the scene's light, in all lines alike.
    """
    frames, known = len(motion.by), inside(recorded, motion)
    level, slope = recorded[known].mean(), torch.zeros(())
    lines = extra = torch.zeros_like(recorded)
    found, scene = None, held
    for _ in range(ROUNDS):
        shown = in_the_mean(motion.release, scene, frames)
        brighter, missed = shown - level, (recorded - shown).where(known, torch.nan)
        more = of_lines(missed - extra, 1 + slope * brighter)
        if not bool(more.any()):
            break
        lines = lines + more
        slope = part_of(missed - lines, lines * brighter)
        gain = (1 + slope * lines).clamp(*GAINS)
        found = Pattern(gain, lines * (1 - slope * level))
        extra = lines * (1 + slope * brighter)
        scene = held - in_the_mean(motion.hold, extra, frames)
    return found, scene


def in_the_mean(way: Way, image: Tensor, frames: int) -> Tensor:
    """An image as so many frames have it, in the mean; 0 where none of them does."""
    total, count = torch.zeros(()), torch.zeros(())
    for start in range(0, frames, PIECE):
        its = way(image.expand(min(PIECE, frames - start), -1, -1), start)
        total = total + its.nansum(0)
        count = count + its.isfinite().sum(0)
    return total / count.clamp(min=1)


def inside(image: Tensor, motion: Motion) -> Tensor:
    """Pixels (Y, X) where frames show nothing that only some of them have seen: no guess."""
    known = torch.ones_like(image, dtype=torch.bool)
    for axis, margins in enumerate(motion.margins):
        edge = min(max(margins) + EDGE, image.shape[axis] // 2)
        known.narrow(axis, 0, edge).fill_(False)
        known.narrow(axis, image.shape[axis] - edge, edge).fill_(False)
    return known


def of_lines(missed: Tensor, light: Tensor) -> Tensor:
    """What columns and rows have in common (Y, X) of what is missed, NaN where that is not known, in such light."""
    columns = of_columns(missed, light)
    rows = of_columns((missed - light * columns).T, light.T)
    return columns + rows[:, None]


def of_columns(missed: Tensor, light: Tensor) -> Tensor:
    """What all parts of a column tell alike (X,), by least squares."""
    light = light.where(missed.isfinite(), torch.nan)
    parts = zip(missed.tensor_split(STRIPS), light.tensor_split(STRIPS))
    told = [(its * by).nansum(0) / by.square().nansum(0).clamp(min=TINY) for its, by in parts]
    return in_common(torch.stack(told))


def in_common(lines: Tensor) -> Tensor:
    """What lines (n, N) have in common (N,): octave by octave as much as they tell alike, if it is no chance."""
    waves, member = cosines(lines.shape[1]), members(lines.shape[1])
    spectra, count, pairs = lines @ waves.T, member.sum(0), len(lines) * (len(lines) - 1) / 2
    mean, noise = spectra.mean(0), spectra.var(0)
    powers = torch.stack([mean.square() - noise / len(lines), mean.square(), noise]) @ member / count
    shared, power, chance = powers[0], powers[1], powers[2] / (count * pairs).sqrt()
    sure = (shared > SURE * chance) & (count >= FEWEST)
    gain = torch.where(sure, shared / power.clamp(min=TINY), 0).clamp(0, 1)
    return (mean * (member @ gain)) @ waves


def part_of(missed: Tensor, expected: Tensor) -> Tensor:
    """How much of what is expected (Y, X) is in what is missed, NaN where that is not known; 0 if it may be chance."""
    known = missed.isfinite()
    missed, expected = missed[known], expected[known]
    power = expected.square().sum().clamp(min=TINY)
    part = (missed * expected).sum() / power
    chance = ((missed - part * expected).square().mean() / power).sqrt()
    return part if bool(part > SURE * chance) else torch.zeros(())
