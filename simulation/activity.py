"""When sources light up: bursty spikes, population events and the indicator's response, as traces (N, T)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Traces = NDArray[np.float32]


@dataclass(frozen=True)
class Firing:
    """How a population fires and how its indicator answers. Times in frames, rates per frame."""

    rise: float  # the indicator's time constants, frames
    decay: float
    rate: float  # median spikes per frame while a cell is active
    bursts: float  # 0: Poisson spikes; 1: only in bursts
    events: float  # population events per frame
    silent: float  # fraction of cells that never fire


def traces(rng: np.random.Generator, count: int, frames: int, firing: Firing) -> Traces:
    """Fluorescence over rest of `count` sources, (count, frames), >= 0, about 1 for an isolated spike."""
    warm = int(min(4 * firing.decay, 500)) + 1  # the movie starts in the middle of things
    spikes = _spikes(rng, count, warm + frames, firing)
    response = _indicator(spikes, firing)[:, warm:]
    return (response / (1 + response / 12)).astype(np.float32)  # saturates


def _spikes(rng: np.random.Generator, count: int, frames: int, firing: Firing) -> np.ndarray:
    """Weighted spikes (count, frames): each cell has its own rate; bursts and population events raise it."""
    rates = firing.rate * rng.lognormal(0, 0.8, (count, 1)) * (rng.random((count, 1)) >= firing.silent)
    state = slow_noise(rng, count, frames, 0.7 * firing.decay + 4)
    bursting = np.where(state > 1.2, 8.0, 0.05)
    expected = rates * (1 - firing.bursts + firing.bursts * bursting)
    events = rng.random(frames) < firing.events
    joins = rng.random((count, 1)) * (rates > 0)
    expected = expected + events * (rng.random((count, frames)) < joins) * 1.5
    spikes = rng.poisson(np.minimum(expected, 20))
    return spikes * rng.lognormal(0, 0.25, spikes.shape)


def _indicator(spikes: np.ndarray, firing: Firing) -> np.ndarray:
    """Filter spikes (N, T) with a rise and a decay; the peak of one spike's response is about 1."""
    rise, decay = np.exp(-1 / firing.rise), np.exp(-1 / firing.decay)
    response = lfilter([1.0], [1.0, -decay], lfilter([1 - rise], [1.0, -rise], spikes, axis=1), axis=1)
    ratio = firing.rise / firing.decay
    return response / ratio ** (ratio / (1 - ratio)) if ratio < 0.99 else response


def slow_noise(rng: np.random.Generator, count: int, frames: int, memory: float) -> np.ndarray:
    """Stationary Gaussian noise (count, frames), variance 1, that forgets within `memory` frames."""
    keep = np.exp(-1 / memory)
    kicks = rng.standard_normal((count, frames)) * np.sqrt(1 - keep**2)
    kicks[:, 0] /= np.sqrt(1 - keep**2)  # start in the stationary state
    return lfilter([1.0], [1.0, -keep], kicks, axis=1)


def bleaching(rng: np.random.Generator, frames: int, loss: float, flicker: float) -> Traces:
    """Brightness of the whole field, (frames,): from 1 down to 1 - loss, with flicker of that deviation."""
    fall = np.exp(-np.arange(frames) / (rng.uniform(0.2, 1.5) * frames))
    steady = 1 - loss * (1 - fall) / max(1 - float(fall[-1]), 1e-6)
    return (steady * (1 + flicker * rng.standard_normal(frames)).clip(0.5, 1.5)).astype(np.float32)


def wander(rng: np.random.Generator, frames: int, jitter: float, drift: float) -> NDArray[np.float64]:
    """Rigid motion (frames, 2) in pixels (y, x): fast jitter with rare bouts, on a slow drift from 0."""
    fast = slow_noise(rng, 2, frames, 3.0) * jitter
    fast *= 1 + 2 * (slow_noise(rng, 1, frames, 8.0) > 2)  # bouts of running or licking
    slow = slow_noise(rng, 2, frames, 300.0) * drift
    return (fast + slow - slow[:, :1]).T
