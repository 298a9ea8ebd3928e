"""Glitches: single voxels that neither the scene nor noise explains, by their neighbours in space and time.

A cosmic ray, a pixel that blinks, an error of storage or transfer. `denoise.missing` finds those beyond the range of the
movie. Those within it do harm where there is little noise: what exceeds the noise passes for something that the
network missed. They are hidden, and the network predicts them.

    difference = frame - mean scene -> excess over both the frame before and the frame after
        -> more than noise and small displacements make? -> more than the voxels beside have? -> mask

Light lasts, and spreads over neighbours; a glitch does neither. Noise of the variance v, in which a photon has the
height g, exceeds its mean by x with a probability of at most (Bernstein's inequality)

    exp(-x^2 / (2 (v + g x / 3)))

so that a few photons in the dark are no glitch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoise.missing import beside

MAX_CHANCE = 1e-8  # probability, at most, that noise has as much
MAX_SPREAD = 0.4  # of a glitch's excess, that any voxel beside it has
STILL_SHIFT = 0.1  # pixels by which a scene may be displaced that seems to be still,
MOVING_SHIFT = 0.25  # and one that moves, from where it is expected
MAX_SHARE = 0.02  # of the voxels of a block: if more stand out, the noise is not what it is taken for
BAND_VOXELS = 1 << 18  # of elementwise work at once: stays in the processor's cache
BESIDE = (0, 1, 1)  # voxels of the same frame, along (t, y, x)


def glitches(frames: Tensor, expected: Tensor, noise: tuple[float, float], moving: bool) -> Tensor:
    """Return which voxels of frames (n, Y, X), NaN where missing, are glitches: bool (n, Y, X).

    expected (n, Y, X): the mean scene in these frames. noise: its gain and read variance, in the units of the frames;
    its variance is gain * brightness + read variance. moving: whether the scene moves, held still or not.
    """
    excess = excess_in_time(frames, expected)
    candidates = excess.abs() > noise_limit(expected.amin(), noise)
    places = candidates.nonzero()  # few: only these are looked at closely
    own, darkest = excess[places.unbind(1)], expected[places.unbind(1)]
    most, brightest = torch.zeros_like(own), darkest
    for other, scene in zip(beside(excess, places, BESIDE), beside(expected, places, BESIDE)):
        most = torch.fmax(most, other.abs())
        darkest, brightest = torch.fmin(darkest, scene), torch.fmax(brightest, scene)
    usual = frames[places.unbind(1)] - own
    displaced = (MOVING_SHIFT if moving else STILL_SHIFT) * (brightest - darkest)
    places = places[(own.abs() > noise_limit(usual, noise) + displaced) & (most < MAX_SPREAD * own.abs())]
    mask = torch.zeros_like(candidates)
    if len(places) <= MAX_SHARE * mask.numel():
        mask[places.unbind(1)] = True
    return mask


def excess_in_time(frames: Tensor, expected: Tensor) -> Tensor:
    """Return how far voxels (n, Y, X) of frames - expected are above the frames before and after, or below (< 0).

    0 where they are between them, NaN where one of the three is missing. The first and the last frame are compared with
    the two nearest to them, and nothing is said of fewer than three frames.
    """
    excess = torch.zeros_like(frames)
    if len(frames) < 3:
        return excess
    rows = max(1, BAND_VOXELS // (len(frames) * frames.shape[2]))
    for part, scene, band in zip(frames.split(rows, 1), expected.split(rows, 1), excess.split(rows, 1)):
        difference = part - scene
        before = torch.cat([difference[2:3], difference[:-1]])
        after = torch.cat([difference[1:], difference[-3:-2]])
        usual = difference.clamp(torch.minimum(before, after), torch.maximum(before, after))
        torch.sub(difference, usual, out=band)
    return excess


def noise_limit(brightness: Tensor, noise: tuple[float, float]) -> Tensor:
    """Return by how much noise exceeds its mean, at most, where the scene is that bright; see MAX_CHANCE."""
    gain, read_variance = noise
    nats = -math.log(MAX_CHANCE)
    variance = (gain * brightness + read_variance).clamp(min=0)
    photons = nats * gain / 3
    return photons + (photons**2 + 2 * nats * variance).sqrt()
