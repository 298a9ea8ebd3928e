"""Parameters of simulated fields of view, fixed or drawn at random.

There are parameters near the challenge's movies, widely varied ones for training, and different kinds outside of both
that are reserved for evaluation.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SceneParameters:
    """Parameters of a scene. Lengths in pixels, densities per 100 x 100 pixels, times in s, neuropil's brightness 1."""

    frame_rate: float = 30.0  # Hz
    rise: float = 0.057  # time constant of the indicator's rise
    decay: float = 2.1  # time constant of its decay
    spike_rate: float = 0.25  # per second, a typical active cell
    burst_fraction: float = 0.6  # 0: Poisson spikes; 1: spikes in bursts only
    event_rate: float = 0.05  # population events per second
    silent_fraction: float = 0.3  # of cells that never fire
    spike_amplitude: float = 0.5  # dF/F of one spike
    soma_density: float = 22.0
    soma_radius: float = 5.5
    soma_brightness: float = 2.0
    brightness_spread: float = 0.6  # standard deviation of the log brightness of cells
    defocused_density: float = 10.0  # of cells out of focus
    defocus: float = 2.0  # size of cells out of focus, relative to cells in focus
    axon_density: float = 15.0
    axon_brightness: float = 0.25
    bouton_brightness: float = 1.2  # relative to the axon's shaft
    alignment: float = 0.0  # of axons: 0 for random directions, 1 for a common one
    dendrite_brightness: float = 0.4  # 0 for no dendrites
    neuropil_brightness: float = 1.0
    fibre_fraction: float = 0.6  # share of the neuropil's light that comes from visible fibres
    neuropil_activity: float = 0.35  # amplitude of its changes; 0 for none
    neuropil_scale: float = 25.0  # size of the regions that change together
    psf: tuple[float, float] = (0.9, 0.9)  # standard deviations (y, x) of the point spread function
    vessel_count: float = 1.2  # expected number
    vessel_width: float = 7.0
    vignette: float = 0.2  # fraction of the light lost in the corners
    bleaching: float = 0.03  # fraction of the light lost by the end
    flicker: float = 0.0  # relative standard deviation of the brightness of frames
    jitter: float = 0.0  # standard deviation of fast motion
    drift: float = 0.0  # standard deviation of slow motion
    row_shift: float = 0.0  # shift of odd rows along x, of a bidirectional scanner out of phase
    background: float = 0.02  # uniform over the field


def challenge_parameters(rng: np.random.Generator) -> SceneParameters:
    """Draw parameters like those of the challenge's movies: 30 Hz, slow indicator, sharp optics, little bleaching."""
    return SceneParameters(
        decay=2.1 * np.exp(rng.normal(0, 0.1)),
        soma_density=rng.uniform(10, 28),
        soma_radius=rng.uniform(4, 7.5),
        soma_brightness=rng.uniform(1.5, 3),
        brightness_spread=rng.uniform(0.5, 0.8),
        defocused_density=rng.uniform(4, 14),
        axon_density=rng.uniform(5, 25),
        fibre_fraction=rng.uniform(0.4, 0.7),
        dendrite_brightness=rng.uniform(0.2, 0.6),
        psf=(rng.uniform(0.7, 1.1),) * 2,
        vessel_width=rng.uniform(4, 10),
        vignette=rng.uniform(0, 0.3),
        bleaching=rng.uniform(0, 0.03),
    )


def random_parameters(rng: np.random.Generator, near_challenge: bool) -> SceneParameters:
    """Draw parameters for training, near the challenge's or widely varied; three scenes in ten move."""
    params = _near_challenge_parameters(rng) if near_challenge else _wide_parameters(rng)
    if rng.random() < 0.7:
        return params
    drift = rng.choice([0.0, _log_uniform(rng, 0.2, 2.0)])
    return replace(params, jitter=_log_uniform(rng, 0.05, 1.0), drift=drift)


def _near_challenge_parameters(rng: np.random.Generator) -> SceneParameters:
    """Vary time constants, cells and optics around the challenge's, by a factor of up to about two."""
    params = challenge_parameters(rng)
    fast_indicator = rng.random() < 0.3
    return replace(
        params,
        frame_rate=_log_uniform(rng, 10, 45),
        decay=_log_uniform(rng, 0.2, 1.0) if fast_indicator else _log_uniform(rng, 1.0, 2.5),
        rise=_log_uniform(rng, 0.02, 0.15),
        spike_rate=_log_uniform(rng, 0.05, 1.0),
        soma_radius=_log_uniform(rng, 3.5, 9),
        psf=(rng.uniform(0.6, 1.5),) * 2,
        vignette=rng.uniform(0, 0.5),
        bleaching=rng.uniform(0, 0.15),
        flicker=rng.choice([0, 0.003, 0.01]),
    )


def _wide_parameters(rng: np.random.Generator) -> SceneParameters:
    """Draw any plausible recording: cells of 3 to 15 pixels, 5 to 60 Hz, decay of 0.15 to 2 s, dense to empty."""
    radius = _log_uniform(rng, 3, 15)
    psf_width = rng.uniform(0.6, 2.0)
    params = SceneParameters(
        frame_rate=_log_uniform(rng, 5, 60),
        rise=_log_uniform(rng, 0.02, 0.2),
        decay=_log_uniform(rng, 0.15, 2.0),
        spike_rate=_log_uniform(rng, 0.03, 2.0),
        burst_fraction=rng.uniform(0, 1),
        event_rate=rng.choice([0, 0.03, 0.2]),
        silent_fraction=rng.uniform(0, 0.7),
        spike_amplitude=_log_uniform(rng, 0.08, 2.0),
        soma_density=rng.uniform(0.05, 0.9) * 1e4 / (12 * radius**2),
        soma_radius=radius,
        soma_brightness=_log_uniform(rng, 0.3, 6),
        brightness_spread=rng.uniform(0.2, 1.2),
        defocused_density=rng.uniform(0, 0.5) * 1e4 / (12 * radius**2),
        defocus=rng.uniform(1.3, 3.5),
        axon_density=rng.uniform(0, 30),
        axon_brightness=_log_uniform(rng, 0.05, 1),
        bouton_brightness=rng.uniform(0, 2),
        alignment=rng.choice([0, rng.uniform(0, 0.9)]),
        dendrite_brightness=rng.uniform(0, 1.2),
        neuropil_brightness=_log_uniform(rng, 0.05, 1.5),
        fibre_fraction=rng.uniform(0.05, 0.8),
        neuropil_activity=_log_uniform(rng, 0.02, 0.5),
        neuropil_scale=_log_uniform(rng, 8, 60),
        psf=(psf_width * rng.uniform(0.85, 1.18), psf_width),
        vessel_count=rng.uniform(0, 2.5),
        vessel_width=_log_uniform(rng, 3, 18),
        vignette=rng.uniform(0, 0.85),
        bleaching=rng.choice([0.0, rng.uniform(0, 0.4)]),
        flicker=rng.choice([0, _log_uniform(rng, 0.002, 0.03)]),
        background=_log_uniform(rng, 0.003, 0.5),
    )
    return _specialize(rng, params)


def _specialize(rng: np.random.Generator, params: SceneParameters) -> SceneParameters:
    """Turn half of the widely varied scenes into special kinds that omit or exaggerate some structures."""
    few_cells = {"soma_density": 0.1 * params.soma_density, "defocused_density": 0}
    no_cells = {
        "soma_density": 0,
        "defocused_density": 0,
        "dendrite_brightness": 0,
        "neuropil_brightness": rng.uniform(0.02, 0.3),
    }
    blur = rng.uniform(1.5, 2.6)
    kinds: dict[str, dict[str, Any]] = {
        "mixed": {},
        "axons": {**no_cells, "axon_density": rng.uniform(8, 60), "axon_brightness": rng.uniform(0.5, 2)},
        # as in one-photon microscopy, where out-of-focus light surrounds everything
        "blurred": {"psf": (blur, blur), "background": rng.uniform(0.5, 4), "defocus": rng.uniform(2, 4)},
        "neuropil": {**few_cells, "neuropil_brightness": 1.5, "neuropil_activity": rng.uniform(0.2, 0.8)},
        "empty": {**few_cells, "axon_density": 2, "neuropil_brightness": 0.02},
        "static": {"silent_fraction": 1.0, "event_rate": 0.0, "neuropil_activity": 0.0},
    }
    kind = rng.choice(list(kinds), p=[0.5, 0.14, 0.1, 0.1, 0.08, 0.08])
    return replace(params, **kinds[str(kind)])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# Outside the range of training: larger cells, wider or anisotropic blur, faster indicators, straighter axons.
DIFFERENT_PARAMETERS = {
    "other-optics": SceneParameters(
        psf=(2.6, 1.0), soma_radius=18, soma_density=3.5, row_shift=1.3, vignette=0.9, decay=0.8, frame_rate=15,
        jitter=0.15, axon_density=4, vessel_width=22,
    ),
    "axons": SceneParameters(
        soma_density=0, defocused_density=0, dendrite_brightness=0, neuropil_brightness=0.01, neuropil_activity=0,
        background=0.005, axon_density=6, axon_brightness=2.5, bouton_brightness=3.5, alignment=0.97,
        spike_amplitude=2.5, decay=0.5, spike_rate=0.4, brightness_spread=1.0, vessel_count=0,
    ),
    "one-photon": SceneParameters(
        psf=(3.2, 3.2), background=4, neuropil_brightness=0.7, neuropil_activity=0.1, neuropil_scale=80,
        soma_radius=7, soma_brightness=2.5, defocused_density=25, defocus=4.5, axon_density=0,
        dendrite_brightness=0, vessel_count=3, vessel_width=14, frame_rate=20, decay=0.7, vignette=0.5,
    ),
    "fast-60hz": SceneParameters(
        frame_rate=60, rise=0.006, decay=0.06, spike_rate=3.0, burst_fraction=0.3, silent_fraction=0.1,
        spike_amplitude=0.6, event_rate=0.5, neuropil_activity=0.05,
    ),
}  # fmt: skip
