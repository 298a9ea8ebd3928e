"""Which worlds there are: the numbers that describe a field of view, fixed or drawn at random.

Near the challenge, wide for training, and the different kinds that are kept for evaluation and lie outside
both.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class World:
    """What to draw. Lengths in pixels, densities per 100 x 100 pixels, times in s, neuropil's light = 1."""

    frame_rate: float = 30.0
    rise: float = 0.057
    decay: float = 2.1
    spikes: float = 0.25  # per second, a typical active cell
    bursts: float = 0.6
    events: float = 0.05  # population events per second
    silent: float = 0.3  # fraction of cells
    change: float = 0.5  # dF/F of one spike
    soma_density: float = 22.0
    soma_radius: float = 5.5
    soma_brightness: float = 2.0
    spread: float = 0.6  # log deviation of brightness between cells: the heavy tail
    blurred_density: float = 10.0  # cells out of focus
    blur: float = 2.0  # their size over that of cells in focus
    axon_density: float = 15.0
    axon_brightness: float = 0.25
    boutons: float = 1.2
    bundle: float = 0.0
    dendrites: float = 0.4  # brightness; 0 for none
    neuropil: float = 1.0
    fibres: float = 0.6  # share of the neuropil's light from fibres that can be told apart
    neuropil_change: float = 0.35
    neuropil_scale: float = 25.0
    psf: tuple[float, float] = (0.9, 0.9)
    vessels: float = 1.2  # expected number
    vessel_width: float = 7.0
    vignette: float = 0.2
    bleaching: float = 0.03
    flicker: float = 0.0
    jitter: float = 0.0
    drift: float = 0.0
    row_shift: float = 0.0
    background: float = 0.02  # even light over the whole field


def challenge_world(rng: np.random.Generator) -> World:
    """As the challenge's movies seem to be: 30 Hz, slow indicator, sharp optics, hardly any bleaching."""
    return World(
        decay=2.1 * np.exp(rng.normal(0, 0.1)),
        soma_density=rng.uniform(10, 28),
        soma_radius=rng.uniform(4, 7.5),
        soma_brightness=rng.uniform(1.5, 3),
        spread=rng.uniform(0.5, 0.8),
        blurred_density=rng.uniform(4, 14),
        axon_density=rng.uniform(5, 25),
        fibres=rng.uniform(0.4, 0.7),
        dendrites=rng.uniform(0.2, 0.6),
        psf=(rng.uniform(0.7, 1.1),) * 2,
        vessel_width=rng.uniform(4, 10),
        vignette=rng.uniform(0, 0.3),
        bleaching=rng.uniform(0, 0.03),
    )


def random_world(rng: np.random.Generator, near_challenge: bool) -> World:
    """A world for training, varied around the challenge's or wide; three in ten move."""
    world = _varied_world(rng) if near_challenge else _wide_world(rng)
    if rng.random() < 0.7:
        return world
    drift = rng.choice([0.0, _log_uniform(rng, 0.2, 2.0)])
    return replace(world, jitter=_log_uniform(rng, 0.05, 1.0), drift=drift)


def _varied_world(rng: np.random.Generator) -> World:
    """Around the challenge: other clocks, cells and optics by a factor of up to about two."""
    world = challenge_world(rng)
    fast = rng.random() < 0.3
    return replace(
        world,
        frame_rate=_log_uniform(rng, 10, 45),
        decay=_log_uniform(rng, 0.2, 1.0) if fast else _log_uniform(rng, 1.0, 2.5),
        rise=_log_uniform(rng, 0.02, 0.15),
        spikes=_log_uniform(rng, 0.05, 1.0),
        soma_radius=_log_uniform(rng, 3.5, 9),
        psf=(rng.uniform(0.6, 1.5),) * 2,
        vignette=rng.uniform(0, 0.5),
        bleaching=rng.uniform(0, 0.15),
        flicker=rng.choice([0, 0.003, 0.01]),
    )


def _wide_world(rng: np.random.Generator) -> World:
    """Any plausible recording: cells of 3 to 15 pixels, 5 to 60 Hz, decay of 0.15 to 2 s, dense to empty."""
    radius = _log_uniform(rng, 3, 15)
    psf = rng.uniform(0.6, 2.0)
    world = World(
        frame_rate=_log_uniform(rng, 5, 60),
        rise=_log_uniform(rng, 0.02, 0.2),
        decay=_log_uniform(rng, 0.15, 2.0),
        spikes=_log_uniform(rng, 0.03, 2.0),
        bursts=rng.uniform(0, 1),
        events=rng.choice([0, 0.03, 0.2]),
        silent=rng.uniform(0, 0.7),
        change=_log_uniform(rng, 0.08, 2.0),
        soma_density=rng.uniform(0.05, 0.9) * 1e4 / (12 * radius**2),
        soma_radius=radius,
        soma_brightness=_log_uniform(rng, 0.3, 6),
        spread=rng.uniform(0.2, 1.2),
        blurred_density=rng.uniform(0, 0.5) * 1e4 / (12 * radius**2),
        blur=rng.uniform(1.3, 3.5),
        axon_density=rng.uniform(0, 30),
        axon_brightness=_log_uniform(rng, 0.05, 1),
        boutons=rng.uniform(0, 2),
        bundle=rng.choice([0, rng.uniform(0, 0.9)]),
        dendrites=rng.uniform(0, 1.2),
        neuropil=_log_uniform(rng, 0.05, 1.5),
        fibres=rng.uniform(0.05, 0.8),
        neuropil_change=_log_uniform(rng, 0.02, 0.5),
        neuropil_scale=_log_uniform(rng, 8, 60),
        psf=(psf * rng.uniform(0.85, 1.18), psf),
        vessels=rng.uniform(0, 2.5),
        vessel_width=_log_uniform(rng, 3, 18),
        vignette=rng.uniform(0, 0.85),
        bleaching=rng.choice([0.0, rng.uniform(0, 0.4)]),
        flicker=rng.choice([0, _log_uniform(rng, 0.002, 0.03)]),
        background=_log_uniform(rng, 0.003, 0.5),
    )
    return _special(rng, world)


def _special(rng: np.random.Generator, world: World) -> World:
    """Half of the wide worlds are of a special kind, which leaves out or exaggerates what others balance."""
    few = {"soma_density": 0.1 * world.soma_density, "blurred_density": 0}
    bare = {"soma_density": 0, "blurred_density": 0, "dendrites": 0, "neuropil": rng.uniform(0.02, 0.3)}
    wide = rng.uniform(1.5, 2.6)
    kinds: dict[str, dict[str, Any]] = {
        "mixed": {},
        "axons": {**bare, "axon_density": rng.uniform(8, 60), "axon_brightness": rng.uniform(0.5, 2)},
        # like one-photon light: everything swims in its neighbours' glow
        "blurred": {"psf": (wide, wide), "background": rng.uniform(0.5, 4), "blur": rng.uniform(2, 4)},
        "neuropil": {**few, "neuropil": 1.5, "neuropil_change": rng.uniform(0.2, 0.8)},
        "empty": {**few, "axon_density": 2, "neuropil": 0.02},
        "static": {"silent": 1.0, "events": 0.0, "neuropil_change": 0.0},
    }
    kind = rng.choice(list(kinds), p=[0.5, 0.14, 0.1, 0.1, 0.08, 0.08])
    return replace(world, **kinds[str(kind)])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# Outside what training draws: larger cells, wider or skewed blur, faster clocks, straighter axons.
DIFFERENT_WORLDS = {
    "other-optics": World(psf=(2.6, 1.0), soma_radius=18, soma_density=3.5, row_shift=1.3, vignette=0.9,
                          decay=0.8, frame_rate=15, jitter=0.15, axon_density=4, vessel_width=22),
    "axons": World(soma_density=0, blurred_density=0, dendrites=0, neuropil=0.01, neuropil_change=0,
                   background=0.005, axon_density=6, axon_brightness=2.5, boutons=3.5, bundle=0.97,
                   change=2.5, decay=0.5, spikes=0.4, spread=1.0, vessels=0),
    "one-photon": World(psf=(3.2, 3.2), background=4, neuropil=0.7, neuropil_change=0.1, neuropil_scale=80,
                        soma_radius=7, soma_brightness=2.5, blurred_density=25, blur=4.5, axon_density=0,
                        dendrites=0, vessels=3, vessel_width=14, frame_rate=20, decay=0.7, vignette=0.5),
    "fast-60hz": World(frame_rate=60, rise=0.006, decay=0.06, spikes=3.0, bursts=0.3, silent=0.1, change=0.6,
                       events=0.5, neuropil_change=0.05),
}  # fmt: skip
