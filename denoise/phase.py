"""Phase of bidirectional scanning: odd rows that are displaced along x.

A scanner that writes odd rows on its way back may displace them by a fraction of a pixel or more, the same in all
frames. Motion and structure cannot be estimated while rows are out of phase. So the phase is corrected first, and the
output gets it back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoise.agreement import GRID, ITERATIONS, MIN_SIZE, TINY, black_squares
from denoise.motion import STILL, Motion

MIN_PHASE = 0.3  # pixels: less than that costs hardly anything
SEARCH_FRACTION = 4  # shifts up to a region's width divided by this are compared
SHIFT_STEP = 0.02  # pixels between two shifts that are compared
MAX_DEVIATION = 0.3  # of the phase, by which each half of the field may differ from it
MIN_LOG_RATIO = 20.0  # of the likelihoods of the phase and of no phase
MAX_COHERENCE = 0.99  # two rows never have quite the same structure


def estimate_phase(image: Tensor) -> float:
    """Return the pixels by which the odd rows of a mean image (Y, X) are displaced along x.

    0.0 unless both halves of the field agree on the phase, and it is far likelier than that rows are in phase. The
    phase of the opposite sign has to be unlikely, too: where structure is slanted, it fits nearly as well.
    """
    if min(image.shape) < MIN_SIZE:
        return 0.0
    shifts, half_likelihoods = shift_likelihoods(image)
    likelihood = half_likelihoods.sum(0)
    best = int(likelihood.argmax())
    phase = float(shifts[best])
    deviation = max(abs(float(shifts[half.argmax()]) - phase) for half in half_likelihoods)
    if abs(phase) < MIN_PHASE or deviation > MAX_DEVIATION * abs(phase):
        return 0.0
    over_none = float(likelihood.max() - likelihood[len(shifts) // 2])
    over_opposite = float(likelihood.max() - likelihood[len(shifts) - 1 - best])
    if over_none < MIN_LOG_RATIO or over_opposite < over_none / 2:
        return 0.0
    for _ in range(ITERATIONS):
        shifts, half_likelihoods = shift_likelihoods(phase_correction(phase).hold(image[None], 0)[0])
        phase += float(shifts[half_likelihoods.sum(0).argmax()])
    return phase


def phase_correction(phase: float) -> Motion:
    """Return the motion that holds odd rows in line with even ones, without the columns that some rows do not cover."""
    cut = math.ceil(abs(phase))
    return Motion(STILL.shifts, phase, ((0, 0), (-cut, -cut)))


def shift_likelihoods(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return shifts (S,) of the odd rows of an image (Y, X) in pixels, and their log likelihoods: (2 halves, S).

    Up to a constant, from the cross-spectrum of odd rows and the means of their neighbours, each frequency weighted by
    its coherence (Knapp and Carter, IEEE ASSP 1976). The halves are the black and white squares of a chess board.
    """
    side = image.shape[1] // GRID
    odd, neighbours = row_spectra(image, side)
    cross = odd * neighbours.conj()
    power = odd.abs().square().sum((0, 1)) * neighbours.abs().square().sum((0, 1))
    strength = cross.sum((0, 1)).abs().clamp(min=TINY)
    count = odd[..., 0].numel()
    coherence = (strength.square() / power.clamp(min=TINY) - 1 / count).clamp(0, MAX_COHERENCE)
    coherence[0] = 0  # a shift does not change the mean
    weighted = cross * (count * coherence / (1 - coherence) / strength)
    regions = torch.stack([rows.sum(0) for rows in weighted.tensor_split(GRID)])  # (GRID, GRID, frequencies)
    black = black_squares().view(GRID, GRID)
    steps = round(side / SEARCH_FRACTION / SHIFT_STEP)
    shifts = torch.arange(-steps, steps + 1) * SHIFT_STEP
    rotations = torch.exp(2j * math.pi * torch.fft.rfftfreq(side) * shifts[:, None])
    return shifts, torch.stack([(regions[half].sum(0) * rotations).sum(1).real for half in (black, ~black)])


def row_spectra(image: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return spectra of an image's odd rows, and of the means of the rows beside them: (rows, GRID, frequencies).

    Each row is split into GRID parts of `side` pixels, in a Hann window.
    """
    odd, above, below = (image[start : image.shape[0] - 2 + start : 2] for start in (1, 0, 2))
    rows = torch.stack([odd, (above + below) / 2])
    parts = rows[..., : side * GRID].unflatten(-1, (GRID, side))
    parts = (parts - parts.mean(-1, keepdim=True)) * torch.hann_window(side, periodic=False)
    odd_spectra, neighbour_spectra = torch.fft.rfft(parts)
    return odd_spectra, neighbour_spectra
