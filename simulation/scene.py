"""Scenes with known truth: a world (what to draw) becomes factors, and factors become a clean movie.

    movie[t] = brightness[t] * (base + sum_k traces[k, t] * footprints[k]), then moved by motion[t]

`challenge_scene` follows the statistics that participants of the AI4Life calcium imaging denoising challenge
published about its clean and noisy movies; `random_scene` is the wide world for training; `different_scene`
holds kinds that training never sees.

Seeds of `challenge_scene` from 1,000,000 on, and every `different_scene`, are reserved for evaluation:
training must never use them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulation import activity, anatomy
from simulation.activity import Firing
from simulation.worlds import DIFFERENT_WORLDS, World, challenge_world, random_world

Size = int | tuple[int, int]
FIRST_EVALUATION_SEED = 1_000_000
DIFFERENT_KINDS = tuple(DIFFERENT_WORLDS)

# Brightness of the clean movie's temporal mean at these fractions of the pixels. Fitted so that mean, mean
# square, P97 - P3 and raw stSNR at all noise levels are what the challenge's participants published.
# fmt: off
FRACTIONS = np.array([
    0, 0.01, 0.02, 0.03, 0.06, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97,
    0.98, 0.99, 0.995, 0.998, 0.999, 0.9996, 1])
BRIGHTNESS = np.array([
    0.5, 1.3, 7.2, 70, 95, 114, 152, 193, 241, 298, 337, 367,
    435, 590, 786, 1137, 1504, 2176, 4500])
# fmt: on
STEEPEST = 6.0  # largest log-log slope of the change of brightness in the shadows


@dataclass(frozen=True)
class Scene:
    """Factors of a clean movie of `shape` (T, Y, X), in linear, non-negative units of brightness.

    The canvas (H, W) is `margin` pixels wider on each side than the movie, so motion brings in new ground.
    The first `cell_count` footprints are the field's true cells (somata, or axons where there are none).
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
        """The movie (T, Y, X), float32, >= 0, with bleaching, drift and motion, without noise."""
        factors = np.concatenate([self.base[None], self.footprints])  # (K + 1, H, W)
        weights = np.concatenate([self.brightness[None], self.traces * self.brightness])  # (K + 1, T)
        if not self.margin:
            movie = weights.T @ factors.reshape(len(factors), -1)  # (T, H * W)
            return np.maximum(movie, 0, out=movie).reshape(self.shape)
        return self._moved(weights, factors)

    def _moved(self, weights: activity.Traces, factors: anatomy.Image) -> NDArray[np.float32]:
        movie = np.empty(self.shape, np.float32)
        flat = factors.reshape(len(factors), -1)
        beside = np.array([0.0, self.row_shift])
        for start in range(0, len(movie), 32):  # blocks stay in the processor's cache
            block = (weights[:, start : start + 32].T @ flat).reshape(-1, *self.base.shape)
            for t, canvas in enumerate(block, start):
                movie[t] = _shifted(canvas, self.motion[t], self.margin)
                if self.row_shift:
                    movie[t, 1::2] = _shifted(canvas, self.motion[t] + beside, self.margin)[1::2]
        return np.maximum(movie, 0, out=movie)

    @property
    def cells(self) -> list[tuple[anatomy.Image, activity.Traces]]:
        """True cells that lie in the field and are active: footprint (Y, X) at rest position, trace (T,)."""
        inner = slice(self.margin, -self.margin or None)
        seen = [(self.footprints[k, inner, inner], self.traces[k]) for k in range(self.cell_count)]
        return [(image, trace) for image, trace in seen if np.count_nonzero(image) >= 9 and trace.std() > 0]


def _shifted(canvas: anatomy.Image, move: np.ndarray, margin: int) -> anatomy.Image:
    """The inner part of a canvas (H, W) moved by (y, x) pixels, |move| <= margin - 2, cubic (Catmull-Rom)."""
    for axis in (0, 1):
        whole = int(np.floor(-move[axis]))
        f = -move[axis] - whole
        taps = (
            (-(f**3) + 2 * f**2 - f) / 2,
            (3 * f**3 - 5 * f**2 + 2) / 2,
            (-3 * f**3 + 4 * f**2 + f) / 2,
            (f**3 - f**2) / 2,
        )
        length = canvas.shape[axis] - 2 * margin
        first = margin + whole - 1
        parts = [np.float32(w) * canvas[_along(axis, first + i, length)] for i, w in enumerate(taps) if w]
        canvas = sum(parts[1:], start=parts[0])
    return canvas


def _along(axis: int, start: int, length: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, start + length),)


def challenge_scene(seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """A scene with the challenge's statistics, in the challenge's units (mean about 204).

    seed: >= FIRST_EVALUATION_SEED is reserved for evaluation. The same seed gives the same scene.
    """
    rng = np.random.default_rng(seed)
    scene = build_scene(challenge_world(rng), rng, frames, size)
    scene = with_profile(scene, BRIGHTNESS * np.exp(rng.normal(0, 0.05) - 0.015))
    return with_dynamics(scene, 0.0135 * np.exp(rng.normal(0, 0.15)))


def random_scene(rng: np.random.Generator, frames: int, size: Size) -> Scene:
    """A scene for training: half of the draws near the challenge's statistics, half from the wide world.

    Units are arbitrary (the mean is about 204 or about 1); everything else varies from draw to draw.
    """
    near_challenge = bool(rng.random() < 0.5)
    scene = build_scene(random_world(rng, near_challenge), rng, frames, size)
    if not near_challenge:
        return scene
    scene = with_profile(scene, _varied_profile(rng))
    return with_dynamics(scene, 0.01 * np.exp(rng.normal(0, 0.8)))


def _varied_profile(rng: np.random.Generator) -> np.ndarray:
    """The challenge's brightness distribution with another contrast, another tail and other shadows."""
    median, p97, p3 = np.interp([0.5, 0.97, 0.03], FRACTIONS, BRIGHTNESS)
    body = median * (np.clip(BRIGHTNESS, p3, p97) / median) ** rng.uniform(0.6, 1.5)
    tail = np.maximum(BRIGHTNESS / p97, 1) ** rng.uniform(0.4, 1.2)
    shadow = np.minimum(BRIGHTNESS / p3, 1) ** rng.uniform(0, 1.1)
    return body * tail * shadow


def different_scene(kind: str, seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """A scene of a kind outside the training's worlds, for evaluation only; kind is one of DIFFERENT_KINDS.

    other-optics: large cells, long oblique blur, a scanner with odd rows out of phase. axons: a sparse bundle
    with strong boutons on black. one-photon: wide blur, glowing background, vessels. fast-60hz: an indicator
    of 60 ms decay. Mean brightness is 204, so that the challenge's noise levels keep their meaning.
    Raises ValueError for an unknown kind.
    """
    if kind not in DIFFERENT_WORLDS:
        raise ValueError(f"kind must be one of {', '.join(DIFFERENT_WORLDS)}, not {kind!r}")
    scene = build_scene(DIFFERENT_WORLDS[kind], np.random.default_rng([seed, *kind.encode()]), frames, size)
    inner = slice(scene.margin, -scene.margin or None)
    factor = np.float32(204 / _mean_image(scene)[inner, inner].mean())
    return replace(scene, base=scene.base * factor, footprints=scene.footprints * factor)


def build_scene(world: World, rng: np.random.Generator, frames: int, size: Size) -> Scene:
    """Draw one scene of a world: frames >= 1; size: pixels a side, or (Y, X)."""
    field = (size, size) if isinstance(size, int) else size
    motion = np.zeros((frames, 2))
    margin = 0
    if world.jitter or world.drift or world.row_shift:
        margin = int(np.ceil(5 * world.jitter + 3 * world.drift + world.row_shift)) + 3
        reach = margin - 2 - world.row_shift
        motion = activity.wander(rng, frames, world.jitter, world.drift).clip(-reach, reach)
    shape = (field[0] + 2 * margin, field[1] + 2 * margin)
    images, resting, cell_count = _sources(world, rng, shape)
    clouds, neuropil = _neuropil(world, rng, shape, resting)
    light = anatomy.vignette(rng, shape, world.vignette)
    crossings = rng.poisson(world.vessels * np.sqrt(np.prod(shape)) / 128)
    light *= anatomy.vessels(rng, shape, crossings, world.vessel_width)
    traces = _traces(world, rng, (len(images), len(clouds)), frames)
    base = (images.sum(0) + neuropil + world.background * (0.2 + 0.8 * light)) * light
    footprints = np.concatenate([images, clouds]) * light
    brightness = activity.bleaching(rng, frames, world.bleaching, world.flicker)
    return Scene(base, footprints, traces, brightness, motion, margin, cell_count, world.row_shift)


def _sources(
    world: World, rng: np.random.Generator, shape: anatomy.Shape
) -> tuple[anatomy.Image, anatomy.Image, int]:
    """Cells with dendrites, axons, hazy cells (K, H, W); the room that they leave (H, W); number of cells."""
    area = shape[0] * shape[1] / 1e4
    edge = max(world.psf)
    centres = anatomy.scatter(rng, shape, rng.poisson(world.soma_density * area), 1.7 * world.soma_radius)
    radii = world.soma_radius * rng.uniform(0.75, 1.2, len(centres))
    bodies, filled = anatomy.somata(rng, shape, centres, radii, edge)
    bodies *= world.soma_brightness * _spread(rng, len(bodies), world)
    branches = world.dendrites * anatomy.dendrites(rng, shape, centres, world.soma_radius)
    branches *= bodies.max((1, 2), initial=0)[:, None, None] * 0.8
    bodies += anatomy.blur(branches, world.psf) * (1 - filled)
    count = rng.poisson(world.axon_density * area)
    fibres = anatomy.blur(anatomy.axons(rng, shape, count, world.boutons, world.bundle), world.psf)
    fibres *= 2 * world.axon_brightness * _spread(rng, len(fibres), world)
    haze = _haze(world, rng, shape, rng.poisson(world.blurred_density * area))
    room = np.prod(1 - 0.92 * filled, axis=0) if len(filled) else np.ones(shape, np.float32)
    cell_count = len(bodies) if world.soma_density else len(fibres)
    return np.concatenate([bodies, fibres * (0.3 + 0.7 * room), haze]), room, cell_count


def _spread(rng: np.random.Generator, count: int, world: World) -> anatomy.Image:
    """Heavy-tailed brightness of sources: (count, 1, 1), median 1."""
    return rng.lognormal(0, world.spread, (count, 1, 1)).astype(np.float32)


def _haze(world: World, rng: np.random.Generator, shape: anatomy.Shape, count: int) -> anatomy.Image:
    """Cells out of focus: wide, faint spots (count, H, W)."""
    centres = rng.uniform(0, 1, (count, 2, 1)) * np.array(shape)[:, None]
    widths = world.soma_radius * world.blur * rng.uniform(0.4, 1.0, (count, 1))
    rows, columns = (
        np.exp(-((np.arange(shape[axis]) - centres[:, axis]) ** 2) / (2 * widths**2)) for axis in (0, 1)
    )  # (count, H), (count, W)
    peak = 0.5 * world.soma_brightness / world.blur * rng.lognormal(0, world.spread, (count, 1))
    return np.einsum("ky,kx->kyx", peak * rows, columns).astype(np.float32)


def _neuropil(
    world: World, rng: np.random.Generator, shape: anatomy.Shape, room: anatomy.Image
) -> tuple[anatomy.Image, anatomy.Image]:
    """Neuropil where cells leave room: parts that vary together (N, H, W), and the whole at rest (H, W)."""
    rest = world.neuropil * anatomy.mesh(rng, shape, world.psf, world.fibres) * room
    count = int(np.clip(np.prod(shape) / world.neuropil_scale**2, 2, 12)) if world.neuropil_change else 0
    fields = (anatomy.smooth_field(rng, shape, world.neuropil_scale) for _ in range(count))
    parts = [np.exp(0.7 * field) * rest for field in fields]
    return np.array(parts, np.float32).reshape(-1, *shape) / max(count, 1) ** 0.5, rest


def _traces(world: World, rng: np.random.Generator, counts: tuple[int, int], frames: int) -> activity.Traces:
    """Change over rest of the sources and of the neuropil's parts, (K + N, T)."""
    rate = world.frame_rate
    firing = Firing(
        rise=world.rise * rate,
        decay=world.decay * rate,
        rate=world.spikes / rate,
        bursts=world.bursts,
        events=world.events / rate,
        silent=world.silent,
    )
    sources = activity.traces(rng, counts[0], frames, firing)
    sources *= world.change * rng.lognormal(0, 0.4, (counts[0], 1)).astype(np.float32)
    crowd = replace(firing, rate=6 * max(firing.rate, 0.2 / rate), bursts=0.3, silent=0.0)
    parts = activity.traces(rng, counts[1], frames, crowd)
    return np.concatenate([sources, world.neuropil_change * 0.4 * parts])


def _mean_image(scene: Scene) -> anatomy.Image:
    """Temporal mean (H, W) of a scene at rest position."""
    weights = (scene.traces * scene.brightness).mean(1)  # (K,)
    return scene.base * scene.brightness.mean() + np.tensordot(weights, scene.footprints, 1)


def with_profile(scene: Scene, brightness: np.ndarray) -> Scene:
    """The same scene with its temporal mean's quantiles at FRACTIONS moved to `brightness`; same dF/F.

    Shadows that this scene does not have are left out.
    """
    mean = np.maximum(_mean_image(scene), 1e-9)
    have = np.maximum.accumulate(np.log(np.quantile(mean, FRACTIONS)) + 1e-6 * np.arange(len(FRACTIONS)))
    want = np.log(brightness)
    for n in reversed(range(np.searchsorted(FRACTIONS, 0.1))):  # no black blotches where shadows are even
        want[n] = max(want[n], want[n + 1] - STEEPEST * (have[n + 1] - have[n]))
    factor = (np.exp(np.interp(np.log(mean), have, want)) / mean).astype(np.float32)
    return replace(scene, base=scene.base * factor, footprints=scene.footprints * factor)


def with_dynamics(scene: Scene, fraction: float) -> Scene:
    """The same temporal mean, with activity scaled to this fraction of the signal's power."""
    power = float(np.mean(_mean_image(scene).astype(np.float64) ** 2))
    flat = scene.footprints.reshape(len(scene.footprints), -1)
    centred = scene.traces - scene.traces.mean(1, keepdims=True)
    covariance = centred @ centred.T / scene.traces.shape[1]
    variance = float(np.sum(covariance * (flat @ flat.T)) / flat.shape[1])
    scale = np.float32(np.sqrt(fraction * power / variance)) if variance > 0 else np.float32(1)
    moved = np.tensordot(scene.traces.mean(1) * (1 - scale), scene.footprints, 1)  # keeps the temporal mean
    base = np.maximum(scene.base + moved, 0.02 * scene.base)  # stays light, whatever the scale
    return replace(scene, base=base, footprints=scene.footprints * scale)
