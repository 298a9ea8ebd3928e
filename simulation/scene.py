"""Scenes with known truth: parameters become factors (images and traces), and factors become a clean movie.

    movie[t] = brightness[t] * (base + sum_k traces[k, t] * footprints[k]), then moved by motion[t]

`challenge_scene` follows the statistics that participants of the AI4Life calcium imaging denoising challenge
published about its clean and noisy movies; `random_scene` draws varied scenes for training; `different_scene`
makes kinds that training never uses.

Seeds of `challenge_scene` from 1,000,000 on, and every `different_scene`, are reserved for evaluation:
training must never use them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulation import activity, anatomy
from simulation.activity import Firing
from simulation.parameters import (
    DIFFERENT_PARAMETERS,
    SceneParameters,
    challenge_parameters,
    random_parameters,
)

Size = int | tuple[int, int]
FIRST_EVALUATION_SEED = 1_000_000
DIFFERENT_KINDS = tuple(DIFFERENT_PARAMETERS)

# Quantiles of the clean movie's mean image: BRIGHTNESS at FRACTIONS of the pixels. Fitted so that mean, mean square,
# P97 - P3 and raw stSNR at all noise levels are those that the challenge's participants published.
# fmt: off
FRACTIONS = np.array([
    0, 0.01, 0.02, 0.03, 0.06, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97,
    0.98, 0.99, 0.995, 0.998, 0.999, 0.9996, 1])
BRIGHTNESS = np.array([
    0.5, 1.3, 7.2, 70, 95, 114, 152, 193, 241, 298, 337, 367,
    435, 590, 786, 1137, 1504, 2176, 4500])
# fmt: on
MAX_SHADOW_SLOPE = 6.0  # largest log-log slope of the mapping from old to new brightness in dark pixels


@dataclass(frozen=True)
class Scene:
    """Factors of a clean movie of `shape` (T, Y, X), in linear, non-negative units of brightness.

    The canvas (H, W) is `margin` pixels wider on each side than the movie, so that motion shows new parts of it.
    The first `cell_count` footprints are the field's true cells (somata, or axons if there are no somata).
    """

    base: anatomy.Image  # (H, W)
    footprints: anatomy.Image  # (K, H, W)
    traces: activity.Traces  # (K, T)
    brightness: activity.Traces  # (T,)
    motion: NDArray[np.float64]  # (T, 2)
    margin: int
    cell_count: int
    row_shift: float = 0.0  # odd rows lie this many pixels to the right (a resonant scanner out of phase)

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self.base.shape
        return len(self.brightness), height - 2 * self.margin, width - 2 * self.margin

    def clean(self) -> NDArray[np.float32]:
        """Return the movie (T, Y, X), float32, >= 0, with bleaching, drift and motion, without noise."""
        factors = np.concatenate([self.base[None], self.footprints])  # (K + 1, H, W)
        weights = np.concatenate([self.brightness[None], self.traces * self.brightness])  # (K + 1, T)
        if not self.margin:
            movie = weights.T @ factors.reshape(len(factors), -1)  # (T, H * W)
            return np.maximum(movie, 0, out=movie).reshape(self.shape)
        return self._moved(weights, factors)

    def _moved(self, weights: activity.Traces, factors: anatomy.Image) -> NDArray[np.float32]:
        """Return the product of weights (K + 1, T) and factors (K + 1, H, W), each frame moved by its motion."""
        movie = np.empty(self.shape, np.float32)
        flat = factors.reshape(len(factors), -1)
        row_shift = np.array([0.0, self.row_shift])
        for start in range(0, len(movie), 32):  # blocks fit into the processor's cache
            block = (weights[:, start : start + 32].T @ flat).reshape(-1, *self.base.shape)
            for t, canvas in enumerate(block, start):
                movie[t] = _shifted(canvas, self.motion[t], self.margin)
                if self.row_shift:
                    movie[t, 1::2] = _shifted(canvas, self.motion[t] + row_shift, self.margin)[1::2]
        return np.maximum(movie, 0, out=movie)

    @property
    def cells(self) -> list[tuple[anatomy.Image, activity.Traces]]:
        """Return the active true cells in the field: footprint (Y, X) at rest position, trace (T,)."""
        inner = slice(self.margin, -self.margin or None)
        cells = [(self.footprints[k, inner, inner], self.traces[k]) for k in range(self.cell_count)]
        return [(image, trace) for image, trace in cells if np.count_nonzero(image) >= 9 and trace.std() > 0]


def _shifted(canvas: anatomy.Image, shift: np.ndarray, margin: int) -> anatomy.Image:
    """Shift a canvas (H, W) by (y, x) pixels, |shift| <= margin - 2, and cut off its margin; cubic (Catmull-Rom)."""
    for axis in (0, 1):
        whole_pixels = int(np.floor(-shift[axis]))
        f = -shift[axis] - whole_pixels  # fraction of a pixel
        kernel = (
            (-(f**3) + 2 * f**2 - f) / 2,
            (3 * f**3 - 5 * f**2 + 2) / 2,
            (-3 * f**3 + 4 * f**2 + f) / 2,
            (f**3 - f**2) / 2,
        )
        length = canvas.shape[axis] - 2 * margin
        first = margin + whole_pixels - 1
        terms = [np.float32(w) * canvas[_along(axis, first + i, length)] for i, w in enumerate(kernel) if w]
        canvas = sum(terms[1:], start=terms[0])
    return canvas


def _along(axis: int, start: int, length: int) -> tuple[slice, ...]:
    """Return an index that selects `length` elements from `start` along an axis."""
    return (slice(None),) * axis + (slice(start, start + length),)


def challenge_scene(seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """Simulate a scene with the challenge's statistics, in the challenge's units (mean about 204).

    seed: >= FIRST_EVALUATION_SEED is reserved for evaluation. The same seed gives the same scene.
    """
    rng = np.random.default_rng(seed)
    scene = build_scene(challenge_parameters(rng), rng, frames, size)
    scene = with_profile(scene, BRIGHTNESS * np.exp(rng.normal(0, 0.05) - 0.015))
    return with_dynamics(scene, 0.0135 * np.exp(rng.normal(0, 0.15)))


def random_scene(rng: np.random.Generator, frames: int, size: Size) -> Scene:
    """Simulate a scene for training: half of them near the challenge's statistics, half widely varied.

    Units are arbitrary (the mean is about 204 or about 1); everything else varies from draw to draw.
    """
    near_challenge = bool(rng.random() < 0.5)
    scene = build_scene(random_parameters(rng, near_challenge), rng, frames, size)
    if not near_challenge:
        return scene
    scene = with_profile(scene, _varied_profile(rng))
    return with_dynamics(scene, 0.01 * np.exp(rng.normal(0, 0.8)))


def _varied_profile(rng: np.random.Generator) -> np.ndarray:
    """Vary contrast, bright tail and dark tail of the challenge's brightness distribution."""
    median, p97, p3 = np.interp([0.5, 0.97, 0.03], FRACTIONS, BRIGHTNESS)
    body = median * (np.clip(BRIGHTNESS, p3, p97) / median) ** rng.uniform(0.6, 1.5)
    bright_tail = np.maximum(BRIGHTNESS / p97, 1) ** rng.uniform(0.4, 1.2)
    dark_tail = np.minimum(BRIGHTNESS / p3, 1) ** rng.uniform(0, 1.1)
    return body * bright_tail * dark_tail


def different_scene(kind: str, seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """Simulate a scene of a kind outside the range of training, for evaluation only; kind: one of DIFFERENT_KINDS.

    other-optics: large cells, long oblique blur, a scanner with odd rows out of phase. axons: a sparse bundle
    with strong boutons on black. one-photon: wide blur, glowing background, vessels. fast-60hz: an indicator
    of 60 ms decay. Mean brightness is 204, so that the challenge's noise levels keep their meaning.
    Raises ValueError for an unknown kind.
    """
    if kind not in DIFFERENT_PARAMETERS:
        raise ValueError(f"kind must be one of {', '.join(DIFFERENT_PARAMETERS)}, not {kind!r}")
    scene = build_scene(
        DIFFERENT_PARAMETERS[kind], np.random.default_rng([seed, *kind.encode()]), frames, size
    )
    inner = slice(scene.margin, -scene.margin or None)
    factor = np.float32(204 / _mean_image(scene)[inner, inner].mean())
    return replace(scene, base=scene.base * factor, footprints=scene.footprints * factor)


def build_scene(params: SceneParameters, rng: np.random.Generator, frames: int, size: Size) -> Scene:
    """Draw one scene with these parameters; frames >= 1; size: pixels a side, or (Y, X)."""
    field = (size, size) if isinstance(size, int) else size
    motion = np.zeros((frames, 2))
    margin = 0
    if params.jitter or params.drift or params.row_shift:
        margin = int(np.ceil(5 * params.jitter + 3 * params.drift + params.row_shift)) + 3
        max_shift = margin - 2 - params.row_shift
        motion = activity.wander(rng, frames, params.jitter, params.drift).clip(-max_shift, max_shift)
    shape = (field[0] + 2 * margin, field[1] + 2 * margin)
    sources, free_space, cell_count = _sources(params, rng, shape)
    regions, neuropil = _neuropil(params, rng, shape, free_space)
    light = anatomy.vignette(rng, shape, params.vignette)
    vessel_count = rng.poisson(params.vessel_count * np.sqrt(np.prod(shape)) / 128)
    light *= anatomy.vessels(rng, shape, vessel_count, params.vessel_width)
    traces = _traces(params, rng, (len(sources), len(regions)), frames)
    base = (sources.sum(0) + neuropil + params.background * (0.2 + 0.8 * light)) * light
    footprints = np.concatenate([sources, regions]) * light
    brightness = activity.bleaching(rng, frames, params.bleaching, params.flicker)
    return Scene(base, footprints, traces, brightness, motion, margin, cell_count, params.row_shift)


def _sources(
    params: SceneParameters, rng: np.random.Generator, shape: anatomy.Shape
) -> tuple[anatomy.Image, anatomy.Image, int]:
    """Draw cells with dendrites, axons and defocused cells.

    Returns their images (K, H, W), the share (H, W) of each pixel that somata leave free, and the number of cells.
    """
    area = shape[0] * shape[1] / 1e4
    edge = max(params.psf)
    centres = anatomy.scatter(rng, shape, rng.poisson(params.soma_density * area), 1.7 * params.soma_radius)
    radii = params.soma_radius * rng.uniform(0.75, 1.2, len(centres))
    somata, filled = anatomy.somata(rng, shape, centres, radii, edge)
    somata *= params.soma_brightness * _relative_brightness(rng, len(somata), params)
    dendrites = params.dendrite_brightness * anatomy.dendrites(rng, shape, centres, params.soma_radius)
    dendrites *= somata.max((1, 2), initial=0)[:, None, None] * 0.8
    somata += anatomy.blur(dendrites, params.psf) * (1 - filled)
    count = rng.poisson(params.axon_density * area)
    axons = anatomy.blur(
        anatomy.axons(rng, shape, count, params.bouton_brightness, params.alignment), params.psf
    )
    axons *= 2 * params.axon_brightness * _relative_brightness(rng, len(axons), params)
    defocused = _defocused_cells(params, rng, shape, rng.poisson(params.defocused_density * area))
    free_space = np.prod(1 - 0.92 * filled, axis=0) if len(filled) else np.ones(shape, np.float32)
    cell_count = len(somata) if params.soma_density else len(axons)
    return np.concatenate([somata, axons * (0.3 + 0.7 * free_space), defocused]), free_space, cell_count


def _relative_brightness(rng: np.random.Generator, count: int, params: SceneParameters) -> anatomy.Image:
    """Draw the heavy-tailed relative brightness of sources, (count, 1, 1), median 1."""
    return rng.lognormal(0, params.brightness_spread, (count, 1, 1)).astype(np.float32)


def _defocused_cells(
    params: SceneParameters, rng: np.random.Generator, shape: anatomy.Shape, count: int
) -> anatomy.Image:
    """Draw cells out of focus as wide, faint Gaussian spots (count, H, W)."""
    centres = rng.uniform(0, 1, (count, 2, 1)) * np.array(shape)[:, None]
    widths = params.soma_radius * params.defocus * rng.uniform(0.4, 1.0, (count, 1))
    rows, columns = (
        np.exp(-((np.arange(shape[axis]) - centres[:, axis]) ** 2) / (2 * widths**2)) for axis in (0, 1)
    )  # (count, H), (count, W)
    peak = (
        0.5 * params.soma_brightness / params.defocus * rng.lognormal(0, params.brightness_spread, (count, 1))
    )
    return np.einsum("ky,kx->kyx", peak * rows, columns).astype(np.float32)


def _neuropil(
    params: SceneParameters, rng: np.random.Generator, shape: anatomy.Shape, free_space: anatomy.Image
) -> tuple[anatomy.Image, anatomy.Image]:
    """Draw the neuropil between cells: regions that change together (N, H, W), and all of it at rest (H, W)."""
    at_rest = (
        params.neuropil_brightness * anatomy.mesh(rng, shape, params.psf, params.fibre_fraction) * free_space
    )
    count = int(np.clip(np.prod(shape) / params.neuropil_scale**2, 2, 12)) if params.neuropil_activity else 0
    fields = (anatomy.smooth_field(rng, shape, params.neuropil_scale) for _ in range(count))
    regions = [np.exp(0.7 * field) * at_rest for field in fields]
    return np.array(regions, np.float32).reshape(-1, *shape) / max(count, 1) ** 0.5, at_rest


def _traces(
    params: SceneParameters, rng: np.random.Generator, counts: tuple[int, int], frames: int
) -> activity.Traces:
    """Draw the fluorescence changes of the sources and of the neuropil's regions, (K + N, T)."""
    rate = params.frame_rate
    firing = Firing(
        rise=params.rise * rate,
        decay=params.decay * rate,
        rate=params.spike_rate / rate,
        burst_fraction=params.burst_fraction,
        event_rate=params.event_rate / rate,
        silent_fraction=params.silent_fraction,
    )
    sources = activity.traces(rng, counts[0], frames, firing)
    sources *= params.spike_amplitude * rng.lognormal(0, 0.4, (counts[0], 1)).astype(np.float32)
    neuropil_firing = replace(
        firing, rate=6 * max(firing.rate, 0.2 / rate), burst_fraction=0.3, silent_fraction=0.0
    )
    regions = activity.traces(rng, counts[1], frames, neuropil_firing)
    return np.concatenate([sources, params.neuropil_activity * 0.4 * regions])


def _mean_image(scene: Scene) -> anatomy.Image:
    """Return the temporal mean (H, W) of a scene at rest position."""
    weights = (scene.traces * scene.brightness).mean(1)  # (K,)
    return scene.base * scene.brightness.mean() + np.tensordot(weights, scene.footprints, 1)


def with_profile(scene: Scene, brightness: np.ndarray) -> Scene:
    """Return the scene with the quantiles of its mean image at FRACTIONS mapped to `brightness`; dF/F stays the same.

    The slope of the mapping is limited in dark pixels, so that scenes without deep shadows get no black patches.
    """
    mean = np.maximum(_mean_image(scene), 1e-9)
    log_old = np.maximum.accumulate(np.log(np.quantile(mean, FRACTIONS)) + 1e-6 * np.arange(len(FRACTIONS)))
    log_new = np.log(brightness)
    for n in reversed(range(np.searchsorted(FRACTIONS, 0.1))):
        log_new[n] = max(log_new[n], log_new[n + 1] - MAX_SHADOW_SLOPE * (log_old[n + 1] - log_old[n]))
    factor = (np.exp(np.interp(np.log(mean), log_old, log_new)) / mean).astype(np.float32)
    return replace(scene, base=scene.base * factor, footprints=scene.footprints * factor)


def with_dynamics(scene: Scene, fraction: float) -> Scene:
    """Return the scene with its activity scaled to this fraction of the signal's power; the temporal mean stays."""
    power = float(np.mean(_mean_image(scene).astype(np.float64) ** 2))
    flat = scene.footprints.reshape(len(scene.footprints), -1)
    centred = scene.traces - scene.traces.mean(1, keepdims=True)
    covariance = centred @ centred.T / scene.traces.shape[1]
    variance = float(np.sum(covariance * (flat @ flat.T)) / flat.shape[1])
    scale = np.float32(np.sqrt(fraction * power / variance)) if variance > 0 else np.float32(1)
    mean_change = np.tensordot(scene.traces.mean(1) * (1 - scale), scene.footprints, 1)
    base = np.maximum(scene.base + mean_change, 0.02 * scene.base)  # stays positive for a large scale
    return replace(scene, base=base, footprints=scene.footprints * scale)
