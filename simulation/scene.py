"""Scenes with known truth: a world (what to draw) becomes factors, and factors become a clean movie.

    movie[t] = brightness[t] * (base + sum_k traces[k, t] * footprints[k]), then moved by motion[t]

`challenge_scene` follows the statistics that the participants of the AI4Life calcium imaging denoising challenge
published about its clean and noisy movies; `random_scene` is the wide world for training; `different_scene`
holds kinds that training never sees.

Seeds of `challenge_scene` from 1,000,000 on, and every `different_scene`, are reserved for evaluation: training
must never use them.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulation import activity, anatomy
from simulation.activity import Firing

Size = int | tuple[int, int]
FIRST_EVALUATION_SEED = 1_000_000
DIFFERENT_KINDS = ("other-optics", "axons", "one-photon", "fast-60hz")

# Distribution of the clean movie's temporal mean over pixels: fraction of pixels, brightness. Fitted so that mean,
# mean square, P97 - P3 and the raw stSNR at all three noise levels are what the challenge's participants published.
FRACTIONS = np.array([0, 0.01, 0.02, 0.03, 0.06, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998,
                      0.999, 0.9996, 1])  # fmt: skip
BRIGHTNESS = np.array([0.5, 1.3, 7.2, 68, 94, 113, 151, 193, 242, 302, 347, 382, 450, 595, 786, 1137, 1504, 2176,
                       4500])  # fmt: skip


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
        odd = np.array([0.0, self.row_shift])
        for start in range(0, len(movie), 32):  # blocks stay in the processor's cache
            block = (weights[:, start : start + 32].T @ flat).reshape(-1, *self.base.shape)
            for t, canvas in enumerate(block, start):
                if self.row_shift:
                    for parity in (0, 1):
                        moved = _shifted(canvas, self.motion[t] + (0, odd[parity]), self.margin)
                        movie[t, parity::2] = moved[parity::2]
                else:
                    movie[t] = _shifted(canvas, self.motion[t], self.margin)
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


@dataclass(frozen=True)
class World:
    """What to draw. Lengths in pixels, densities per 100 x 100 pixels, times in seconds, brightness relative to
    neuropil of 1."""

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
    neuropil_change: float = 0.12
    neuropil_scale: float = 25.0
    psf: tuple[float, float] = (0.9, 0.9)
    vessels: float = 0.9  # expected number
    vessel_width: float = 7.0
    vignette: float = 0.2
    bleaching: float = 0.03
    flicker: float = 0.0
    jitter: float = 0.0
    drift: float = 0.0
    row_shift: float = 0.0
    background: float = 0.02  # even light over the whole field


def challenge_scene(seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """A scene with the challenge's statistics, in the challenge's units (mean about 204).

    seed: >= FIRST_EVALUATION_SEED is reserved for evaluation. The same seed gives the same scene.
    """
    rng = np.random.default_rng(seed)
    scene = build_scene(_challenge_world(rng), rng, frames, size)
    scene = with_profile(scene, BRIGHTNESS * np.exp(rng.normal(0, 0.05)))
    return with_dynamics(scene, 0.01 * np.exp(rng.normal(0, 0.15)))


def _challenge_world(rng: np.random.Generator) -> World:
    return World(
        decay=2.1 * np.exp(rng.normal(0, 0.1)),
        soma_density=rng.uniform(10, 28),
        soma_radius=rng.uniform(4, 7.5),
        soma_brightness=rng.uniform(1.5, 3),
        spread=rng.uniform(0.5, 0.8),
        blurred_density=rng.uniform(4, 14),
        axon_density=rng.uniform(5, 25),
        dendrites=rng.uniform(0.2, 0.6),
        psf=(rng.uniform(0.7, 1.1),) * 2,
        vessel_width=rng.uniform(4, 10),
        vignette=rng.uniform(0, 0.3),
        bleaching=rng.uniform(0, 0.03),
    )


def random_scene(rng: np.random.Generator, frames: int, size: Size) -> Scene:
    """A scene for training: half of the draws near the challenge's statistics, half from the wide world.

    Units are arbitrary (the mean is about 204 or about 1); everything else varies from draw to draw.
    """
    if rng.random() < 0.5:
        world = _with_motion(rng, _varied(rng, _challenge_world(rng)))
        scene = with_profile(build_scene(world, rng, frames, size), _varied_profile(rng))
        return with_dynamics(scene, 0.01 * np.exp(rng.normal(0, 0.8)))
    return build_scene(_with_motion(rng, _wide_world(rng)), rng, frames, size)


def _varied(rng: np.random.Generator, world: World) -> World:
    """Around the challenge: other clocks, cells and optics by a factor of up to about two."""
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


def _varied_profile(rng: np.random.Generator) -> np.ndarray:
    """The challenge's brightness distribution with another contrast, another tail and other shadows."""
    median, p97, p3 = np.interp([0.5, 0.97, 0.03], FRACTIONS, BRIGHTNESS)
    body = median * (np.clip(BRIGHTNESS, p3, p97) / median) ** rng.uniform(0.6, 1.5)
    tail = np.maximum(BRIGHTNESS / p97, 1) ** rng.uniform(0.4, 1.2)
    shadow = np.minimum(BRIGHTNESS / p3, 1) ** rng.uniform(0, 1.1)
    return body * tail * shadow


def _wide_world(rng: np.random.Generator) -> World:
    """Any plausible recording: cells of 3 to 15 pixels, 5 to 60 Hz, 0.15 to 2 s, dense, sparse, blurred or static."""
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
    """Some wide worlds are of a special kind; each leaves out or exaggerates what others balance."""
    kind = rng.choice(
        ["mixed", "axons", "blurred", "neuropil", "empty", "static"], p=[0.5, 0.14, 0.1, 0.1, 0.08, 0.08]
    )
    if kind == "axons":
        return replace(world, soma_density=0, blurred_density=0, dendrites=0, neuropil=rng.uniform(0.02, 0.3),
                       axon_density=rng.uniform(8, 60), axon_brightness=rng.uniform(0.5, 2))  # fmt: skip
    if kind == "blurred":  # like one-photon light: everything swims in its neighbours' glow
        wide = rng.uniform(1.5, 2.6)
        return replace(world, psf=(wide, wide), background=rng.uniform(0.5, 4), blur=rng.uniform(2, 4),
                       neuropil_scale=rng.uniform(20, 60))  # fmt: skip
    if kind == "neuropil":
        return replace(
            world, soma_density=0.2 * world.soma_density, neuropil=1.5, neuropil_change=rng.uniform(0.2, 0.8)
        )
    if kind == "empty":
        return replace(
            world, soma_density=0.1 * world.soma_density, blurred_density=0, axon_density=2, neuropil=0.02
        )
    if kind == "static":
        return replace(world, silent=1.0, neuropil_change=0.0, events=0.0)
    return world


def _with_motion(rng: np.random.Generator, world: World) -> World:
    if rng.random() < 0.7:
        return world
    return replace(
        world, jitter=_log_uniform(rng, 0.05, 1.0), drift=rng.choice([0.0, _log_uniform(rng, 0.2, 2.0)])
    )


def different_scene(kind: str, seed: int, frames: int = 500, size: Size = 128) -> Scene:
    """A scene of a kind outside the training's worlds, for evaluation only; kind is one of DIFFERENT_KINDS.

    other-optics: large cells, long oblique blur, a scanner with odd rows out of phase. axons: a sparse bundle with
    strong boutons on black. one-photon: wide blur, glowing background, vessels. fast-60hz: indicator of 60 ms decay.
    Mean brightness is 204, so that the challenge's noise levels keep their meaning.
    """
    worlds = {
        "other-optics": World(psf=(2.6, 1.0), soma_radius=18, soma_density=2.2, row_shift=1.3, vignette=0.9,
                              decay=0.8, frame_rate=15, jitter=0.15, axon_density=4, vessel_width=22),
        "axons": World(soma_density=0, blurred_density=0, dendrites=0, neuropil=0.01, neuropil_change=0,
                       background=0.005, axon_density=6, axon_brightness=2.5, boutons=3.5, bundle=0.97,
                       change=2.5, decay=0.5, spikes=0.4, spread=1.0, vessels=0),
        "one-photon": World(psf=(3.2, 3.2), background=6, neuropil=2, neuropil_change=0.1, neuropil_scale=80,
                            soma_radius=7, soma_brightness=0.8, blurred_density=25, blur=4.5, axon_density=0,
                            dendrites=0, vessels=3, vessel_width=14, frame_rate=20, decay=0.7, vignette=0.5),
        "fast-60hz": World(frame_rate=60, rise=0.006, decay=0.06, spikes=3.0, bursts=0.3, silent=0.1, change=0.6,
                           events=0.5, neuropil_change=0.05),
    }  # fmt: skip
    if kind not in worlds:
        raise ValueError(f"kind must be one of {', '.join(DIFFERENT_KINDS)}, not {kind!r}")
    scene = build_scene(worlds[kind], np.random.default_rng([seed, *kind.encode()]), frames, size)
    factor = np.float32(204 / _mean_image(scene).mean())
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
    light *= anatomy.vessels(
        rng, shape, rng.poisson(world.vessels * np.sqrt(np.prod(shape)) / 128), world.vessel_width
    )
    traces = _traces(world, rng, (len(images), len(clouds)), frames)
    base = (images.sum(0) + neuropil + world.background * (0.2 + 0.8 * light)) * light
    footprints = np.concatenate([images, clouds]) * light
    brightness = activity.bleaching(rng, frames, world.bleaching, world.flicker)
    return Scene(base, footprints, traces, brightness, motion, margin, cell_count, world.row_shift)


def _sources(
    world: World, rng: np.random.Generator, shape: anatomy.Shape
) -> tuple[anatomy.Image, anatomy.Image, int]:
    """Cells with their dendrites, axons, cells out of focus (K, H, W); where cells leave no room; number of cells."""
    area = shape[0] * shape[1] / 1e4
    edge = max(world.psf)
    centres = anatomy.scatter(rng, shape, rng.poisson(world.soma_density * area), 1.7 * world.soma_radius)
    radii = world.soma_radius * rng.uniform(0.75, 1.2, len(centres))
    bodies, filled = anatomy.somata(rng, shape, centres, radii, edge)
    bodies *= world.soma_brightness * rng.lognormal(0, world.spread, (len(bodies), 1, 1)).astype(np.float32)
    branches = world.dendrites * anatomy.dendrites(rng, shape, centres, world.soma_radius)
    branches *= bodies.max((1, 2), initial=0)[:, None, None] * 0.8
    bodies += anatomy.blur(branches, world.psf) * (1 - filled)
    count = rng.poisson(world.axon_density * area)
    fibres = anatomy.blur(anatomy.axons(rng, shape, count, world.boutons, world.bundle), world.psf)
    fibres *= 2 * world.axon_brightness * rng.lognormal(0, world.spread, (count, 1, 1)).astype(np.float32)
    haze = _haze(world, rng, shape, rng.poisson(world.blurred_density * area))
    room = np.prod(1 - 0.92 * filled, axis=0) if len(filled) else np.ones(shape, np.float32)
    cell_count = len(bodies) if world.soma_density else len(fibres)
    return np.concatenate([bodies, fibres * (0.3 + 0.7 * room), haze]), room, cell_count


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
    rest = world.neuropil * anatomy.mesh(rng, shape, world.psf) * room
    count = int(np.clip(np.prod(shape) / world.neuropil_scale**2, 2, 12)) if world.neuropil_change else 0
    parts = [
        np.exp(0.7 * anatomy.smooth_field(rng, shape, world.neuropil_scale)) * rest for _ in range(count)
    ]
    return np.array(parts, np.float32).reshape(-1, *shape) / max(count, 1) ** 0.5, rest


def _traces(world: World, rng: np.random.Generator, counts: tuple[int, int], frames: int) -> activity.Traces:
    """Change over rest of the sources and of the neuropil's parts, (K + N, T)."""
    rate = world.frame_rate
    firing = Firing(world.rise * rate, world.decay * rate, world.spikes / rate, world.bursts, world.events / rate,
                    world.silent)  # fmt: skip
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
    """The same scene with the temporal mean's quantiles at FRACTIONS moved to `brightness`, dF/F unchanged."""
    mean = np.maximum(_mean_image(scene), 1e-9)
    have = np.maximum.accumulate(np.quantile(mean, FRACTIONS) * (1 + 1e-6 * np.arange(len(FRACTIONS))))
    wanted = np.exp(np.interp(np.log(mean), np.log(have), np.log(brightness)))
    factor = (wanted / mean).astype(np.float32)
    return replace(scene, base=scene.base * factor, footprints=scene.footprints * factor)


def with_dynamics(scene: Scene, fraction: float) -> Scene:
    """The same temporal mean, with activity scaled to `fraction` of the signal's power (less if that went below 0)."""
    power = float(np.mean(_mean_image(scene).astype(np.float64) ** 2))
    flat = scene.footprints.reshape(len(scene.footprints), -1)
    centred = scene.traces - scene.traces.mean(1, keepdims=True)
    covariance = centred @ centred.T / scene.traces.shape[1]
    variance = float(np.sum(covariance * (flat @ flat.T)) / flat.shape[1])
    scale = np.float32(np.sqrt(fraction * power / variance)) if variance > 0 else np.float32(1)
    moved = np.tensordot(scene.traces.mean(1) * (1 - scale), scene.footprints, 1)  # keeps the temporal mean
    base = np.maximum(scene.base + moved, 0.02 * scene.base)
    return replace(scene, base=base, footprints=scene.footprints * scale)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
