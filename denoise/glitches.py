"""Glitches: single voxels that neither the scene nor noise explains, by their neighbours in space and time.

A cosmic ray, a pixel that blinks, an error of storage or transfer. `denoise.missing` finds those beyond the range of the
movie. Those within it do harm where there is little noise: what exceeds the noise passes for something that the
network missed. They are hidden, and the network predicts them.

    difference = frame - mean scene -> next to frames before and after -> next to all 26 neighbours -> mask

Light spreads over neighbours and lasts, so a glitch lies outside of the range of its neighbours, by a large part of that
range. Noise exceeds the brightest neighbour by x, with variance v and a photon's height g, with a probability of

    exp(-x^2 / (2 (v + g x / 3)))

at most (Bernstein's inequality), so that a few photons in the dark are none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoise.missing import beside

MAX_CHANCE = 1e-6  # probability, at most, that noise stands out as far
MIN_EXCESS = 0.7  # of the range of the neighbours, by which a glitch lies outside of it
MAX_SHARE = 0.02  # of the voxels of a block: if more stand out, the noise is not what it is taken for


def glitches(frames: Tensor, expected: Tensor, gain: float, read_variance: float) -> Tensor:
    """Return which voxels of frames (n, Y, X), NaN where missing, are glitches: bool (n, Y, X).

    expected (n, Y, X): the mean scene in these frames. gain, read_variance: variance of the noise = gain * brightness +
    read_variance, in the units of the frames. The first and the last frame are compared with one other.
    """
    difference = frames - expected
    # few, so that only these are compared with all of their neighbours
    places = alone_in_time(difference, noise_limit(expected.amin(), gain, read_variance)).nonzero()
    value, brightness = difference[places.unbind(1)], expected[places.unbind(1)]
    low = high = torch.full_like(value, torch.nan)
    for neighbour in beside(difference, places):
        low, high = torch.fmin(low, neighbour), torch.fmax(high, neighbour)
    limit = noise_limit(brightness + high.clamp(min=0), gain, read_variance)
    excess = torch.maximum(value - high, low - value)
    places = places[(excess > limit) & (excess > MIN_EXCESS * (high - low))]
    mask = torch.zeros_like(difference, dtype=torch.bool)
    if len(places) <= MAX_SHARE * mask.numel():
        mask[places.unbind(1)] = True
    return mask


def noise_limit(brightness: Tensor, gain: float, read_variance: float) -> Tensor:
    """Return by how much noise exceeds its mean, at most, where the scene is that bright; see MAX_CHANCE."""
    nats = -math.log(MAX_CHANCE)
    variance = (gain * brightness + read_variance).clamp(min=0)
    photons = nats * gain / 3
    return photons + (photons**2 + 2 * nats * variance).sqrt()


def alone_in_time(frames: Tensor, least: Tensor) -> Tensor:
    """Return which voxels are above the frames before and after by more than `least`, or below: bool (n, Y, X)."""
    steps = frames.diff(dim=0)
    ends = torch.full_like(frames[:1], len(frames) > 1, dtype=torch.bool)  # nothing before, or after
    rises, falls = steps > least, steps < -least
    peaks = torch.cat([ends, rises]) & torch.cat([falls, ends])
    return peaks | (torch.cat([ends, falls]) & torch.cat([rises, ends]))
