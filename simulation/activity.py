"""Activity of sources: bursty spikes, population events and the indicator's response, as traces (N, T)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

Traces = NDArray[np.float32]


@dataclass(frozen=True)
class Firing:
    """Parameters of a population's firing and of its indicator. Times in frames, rates per frame."""

    rise: float  # the indicator's time constants, frames
    decay: float
    rate: float  # median spikes per frame while a cell is active
    burst_fraction: float  # 0: Poisson spikes; 1: spikes in bursts only
    event_rate: float  # population events per frame
    silent_fraction: float  # of cells that never fire


def traces(rng: np.random.Generator, count: int, frames: int, firing: Firing) -> Traces:
    """Draw the fluorescence above rest of `count` sources, (count, frames), >= 0, about 1 for an isolated spike."""
    warm_up = int(min(4 * firing.decay, 500)) + 1  # earlier spikes contribute to the first frames
    spikes = _spikes(rng, count, warm_up + frames, firing)
    response = _indicator(spikes, firing)[:, warm_up:]
    return (response / (1 + response / 12)).astype(np.float32)  # the indicator saturates


def _spikes(rng: np.random.Generator, count: int, frames: int, firing: Firing) -> np.ndarray:
    """Draw weighted spikes (count, frames); each cell has its own rate, raised by bursts and population events."""
    rates = (
        firing.rate * rng.lognormal(0, 0.8, (count, 1)) * (rng.random((count, 1)) >= firing.silent_fraction)
    )
    state = slow_noise(rng, count, frames, 0.7 * firing.decay + 4)
    bursting = np.where(state > 1.2, 8.0, 0.05)
    expected = rates * (1 - firing.burst_fraction + firing.burst_fraction * bursting)
    events = rng.random(frames) < firing.event_rate
    participation = rng.random((count, 1)) * (rates > 0)  # each cell's probability to join an event
    expected = expected + events * (rng.random((count, frames)) < participation) * 1.5
    spikes = rng.poisson(np.minimum(expected, 20))
    return spikes * rng.lognormal(0, 0.25, spikes.shape)


def _indicator(spikes: np.ndarray, firing: Firing) -> np.ndarray:
    """Filter spikes (N, T) with the indicator's rise and decay; one spike's response peaks at about 1."""
    rise, decay = np.exp(-1 / firing.rise), np.exp(-1 / firing.decay)
    response = lfilter([1.0], [1.0, -decay], lfilter([1 - rise], [1.0, -rise], spikes, axis=1), axis=1)
    ratio = firing.rise / firing.decay
    return response / ratio ** (ratio / (1 - ratio)) if ratio < 0.99 else response


def slow_noise(rng: np.random.Generator, count: int, frames: int, memory: float) -> np.ndarray:
    """Draw stationary Gaussian noise (count, frames) of variance 1 and autocorrelation exp(-lag / memory)."""
    decay = np.exp(-1 / memory)  # of the autocorrelation, from frame to frame
    innovations = rng.standard_normal((count, frames)) * np.sqrt(1 - decay**2)
    innovations[:, 0] /= np.sqrt(1 - decay**2)  # start in the stationary state
    return lfilter([1.0], [1.0, -decay], innovations, axis=1)


def bleaching(rng: np.random.Generator, frames: int, loss: float, flicker: float) -> Traces:
    """Draw the brightness of the field, (frames,): bleached from 1 to 1 - loss, with flicker (standard deviation)."""
    decay = np.exp(-np.arange(frames) / (rng.uniform(0.2, 1.5) * frames))
    bleached = 1 - loss * (1 - decay) / max(1 - float(decay[-1]), 1e-6)
    return (bleached * (1 + flicker * rng.standard_normal(frames)).clip(0.5, 1.5)).astype(np.float32)


def wander(rng: np.random.Generator, frames: int, jitter: float, drift: float) -> NDArray[np.float64]:
    """Draw rigid motion (frames, 2) in pixels (y, x): fast jitter with rare strong bouts, on a slow drift from 0."""
    fast = slow_noise(rng, 2, frames, 3.0) * jitter
    fast *= 1 + 2 * (slow_noise(rng, 1, frames, 8.0) > 2)  # bouts of running or licking
    slow = slow_noise(rng, 2, frames, 300.0) * drift
    return (fast + slow - slow[:, :1]).T
