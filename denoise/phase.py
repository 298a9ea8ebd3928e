"""Odd rows out of phase.

A scanner that writes odd rows on its way back may have them further left or right by a part of a pixel, the same in all
frames. Movement and structure cannot be told where rows are out of phase, so they are put in phase first, and back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoise.agreement import GRID, ITERATIONS, MIN_SIZE, TINY, black_squares
from denoise.motion import STILL, Motion

OUT_OF_PHASE = 0.3  # pixels: less than that costs hardly anything
FURTHEST = 4  # odd rows are sought up to this part of a cell's width
FINE = 0.02  # pixels between two places at which they are sought
ALIKE = 0.3  # of what is found is what half of the field may differ by
LIKELIER = 20.0  # in the logarithm of likelihood, than that rows are in phase
COHERENT = 0.99  # at most: structure is not the same in two rows


def phase_of(image: Tensor) -> float:
    """By how many pixels the odd rows of a mean image (Y, X) lie further on along x; 0.0 where they do not, or may not.

    As the rows beside them tell: half of the field like the other one, and far likelier than that all are in phase.
    Where structure slants, rows fit further on to the left nearly as they do to the right.
    """
    if min(image.shape) < MIN_SIZE:
        return 0.0
    shifts, halves = row_fits(image)
    fits = halves.sum(0)
    phase, *told = (float(shifts[its.argmax()]) for its in (fits, *halves))
    if abs(phase) < OUT_OF_PHASE or max(abs(its - phase) for its in told) > ALIKE * abs(phase):
        return 0.0
    in_place, mirrored = (
        float(fits.max() - fits[n]) for n in (len(shifts) // 2, len(shifts) - 1 - fits.argmax())
    )
    if in_place < LIKELIER or mirrored < in_place / 2:  # worse by so much
        return 0.0
    for _ in range(ITERATIONS):
        shifts, halves = row_fits(in_phase(phase).hold(image[None], 0)[0])
        phase += float(shifts[halves.sum(0).argmax()])
    return phase


def in_phase(phase: float) -> Motion:
    """Odd rows are put where the others are; without the columns that some rows do not show."""
    cut = math.ceil(abs(phase))
    return Motion(STILL.by, phase, ((0, 0), (-cut, -cut)))


def row_fits(image: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts (S,) in pixels, and how likely odd rows of an image (Y, X) lie so much further on: (2 halves, S).

    Logarithms of likelihood, but for a constant: what waves along x of odd rows share with those of the rows beside,
    each kind of wave by its coherence (Knapp and Carter, IEEE ASSP 1976). The halves are the black and white squares
    of a chess board.
    """
    side = image.shape[1] // GRID
    odd, above, below = (image[start : image.shape[0] - 2 + start : 2] for start in (1, 0, 2))
    parts = torch.stack([odd, (above + below) / 2])[..., : side * GRID].unflatten(-1, (GRID, side))
    parts = (parts - parts.mean(-1, keepdim=True)) * torch.hann_window(side, periodic=False)
    odds, others = torch.fft.rfft(parts)  # (rows, GRID, waves)
    shared, power = odds * others.conj(), odds.abs().square().sum((0, 1)) * others.abs().square().sum((0, 1))
    strength = shared.sum((0, 1)).abs().clamp(min=TINY)
    count = odds[..., 0].numel()
    coherence = (strength.square() / power.clamp(min=TINY) - 1 / count).clamp(0, COHERENT)
    coherence[0] = 0  # the mean tells nothing
    shared = shared * (count * coherence / (1 - coherence) / strength)
    cells = torch.stack([its.sum(0) for its in shared.tensor_split(GRID)])  # (GRID, GRID, waves)
    black = black_squares().view(GRID, GRID)
    steps = round(side / FURTHEST / FINE)
    shifts = torch.arange(-steps, steps + 1) * FINE
    turns = torch.exp(2j * math.pi * torch.fft.rfftfreq(side) * shifts[:, None])
    return shifts, torch.stack([(cells[its].sum(0) * turns).sum(1).real for its in (black, ~black)])
