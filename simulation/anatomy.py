"""Structures in a field of view: somata, processes, neuropil and vessels as images, one per independent source.

All are drawn at random on a canvas of shape (Y, X) in pixels, with non-negative float32 brightness. They resemble
cortex under a two-photon microscope: somata with dark nuclei, thin bright processes and dark vessels. No recording
is copied.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.signal import lfilter

Image = NDArray[np.float32]
Shape = tuple[int, int]
MAX_AXON_IMAGES = 120  # limits time and memory: in a large field several axons share an image


def smooth_field(rng: np.random.Generator, shape: Shape, scale: float) -> Image:
    """Draw a Gaussian random field (Y, X) of mean about 0 and variance 1 that varies over `scale` pixels."""
    rows, columns = (_bumps(rng, length, scale) for length in shape)  # (Y, N), (X, M)
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)  # (N, M)
    return (rows @ knots @ columns.T).astype(np.float32)  # (Y, X)


def _bumps(rng: np.random.Generator, length: int, scale: float) -> Image:
    """Return Gaussian bumps on a randomly shifted grid: (length, N), each row of unit norm."""
    centres = np.arange(-3 * scale, length + 3 * scale, scale) + rng.uniform(0, scale)
    distance = np.arange(length)[:, None] - centres[None]  # (length, N)
    bumps = np.exp(-(distance**2) / (2 * scale**2))
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def curves(
    rng: np.random.Generator, starts: np.ndarray, angles: np.ndarray, steps: int, bend: float
) -> np.ndarray:
    """Draw smooth random paths in half-pixel steps, (N, steps, 2) as (y, x), from starts (N, 2), angles (N,)."""
    innovations = rng.normal(0, bend * 0.006, (len(starts), steps))
    curvature = lfilter([1.0], [1.0, -0.97], innovations, axis=1)  # correlated over 30 steps: no spirals
    heading = angles[:, None] + np.cumsum(curvature, axis=1)
    displacement = 0.5 * np.stack([np.sin(heading), np.cos(heading)], axis=-1)  # (N, steps, 2)
    return starts[:, None] + np.cumsum(displacement, axis=1)


def paint(paths: np.ndarray, weights: np.ndarray, owners: np.ndarray, count: int, shape: Shape) -> Image:
    """Add weights (N, S) at the points of paths (N, S, 2) to images (count, Y, X); path n to image owners[n]."""
    y, x = np.rint(paths[..., 0]).astype(int), np.rint(paths[..., 1]).astype(int)
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    flat = (owners[:, None] * shape[0] + y) * shape[1] + x
    total = np.bincount(flat[inside], weights[inside], count * shape[0] * shape[1])
    return total.reshape(count, *shape).astype(np.float32)


def blur(images: Image, psf: Sequence[float]) -> Image:
    """Blur each image of (N, Y, X) by the Gaussian point spread function, standard deviations (y, x) in pixels."""
    return gaussian_filter(images, (0, *psf), mode="constant", truncate=3.0)


def _soft_step(distance: np.ndarray) -> np.ndarray:
    """Return a sigmoid of the distance to an edge, positive inside."""
    return 1 / (1 + np.exp(-np.clip(4 * distance, -30, 30)))


def soma(
    rng: np.random.Generator, shape: Shape, centre: np.ndarray, radius: float, edge: float
) -> tuple[Image, Image]:
    """Draw a cell body cut by the focal plane: its brightness (bright ring, dark nucleus), its filled outline.

    edge: blur of the outline in pixels. Both images are (Y, X), 0 to about 1.
    """
    depth = rng.uniform(-0.8, 0.8)  # distance of the focal plane from the cell's centre, in radii
    yy, xx = np.indices(shape, dtype=np.float32)
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.75, 1.0)
    dy, dx = yy - centre[0], xx - centre[1]
    along, across = dy * np.cos(angle) + dx * np.sin(angle), dx * np.cos(angle) - dy * np.sin(angle)
    theta = np.arctan2(across, along)
    lobes = sum(rng.normal(0, 0.05) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    outline = radius * np.sqrt(1 - depth**2) * (1 + lobes)
    distance = np.hypot(along, across / squeeze)
    body = _soft_step((outline - distance) / edge)
    nucleus_radius = radius * np.sqrt(max(rng.uniform(0.5, 0.72) ** 2 - depth**2, 0))
    shift = rng.uniform(-0.12, 0.12, 2) * radius
    distance = np.hypot(along - shift[0], across / squeeze - shift[1])
    nucleus = (
        _soft_step((nucleus_radius - distance) / edge) * rng.uniform(0.55, 0.95)
        if nucleus_radius > 0.5
        else 0
    )
    texture = np.exp(0.15 * smooth_field(rng, shape, 2.0))
    return (body * (1 - nucleus) * texture).astype(np.float32), body.astype(np.float32)


def somata(
    rng: np.random.Generator, shape: Shape, centres: np.ndarray, radii: np.ndarray, edge: float
) -> tuple[Image, Image]:
    """Draw cell bodies at centres (N, 2): brightness (N, Y, X) and the filled outlines (N, Y, X)."""
    bright = np.zeros((len(centres), *shape), np.float32)  # (N, Y, X)
    filled = np.zeros_like(bright)
    for n, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
        reach = 1.4 * radius + 3 * edge
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach), shape).astype(int)
        if np.any(high <= low):
            continue
        window = (n, slice(low[0], high[0]), slice(low[1], high[1]))
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        bright[window], filled[window] = soma(rng, size, centre - low, float(radius), edge)
    return bright, filled


def scatter(rng: np.random.Generator, shape: Shape, count: int, spacing: float) -> np.ndarray:
    """Draw random centres (N, 2), N <= count, no two closer than `spacing` pixels; some are just outside the field."""
    candidates = rng.uniform(-spacing / 2, np.array(shape) + spacing / 2, (6 * count, 2))
    centres = np.full((count, 2), np.inf)
    placed = 0
    for candidate in candidates:
        if placed < count and np.all(np.hypot(*(candidate - centres[:placed]).T) >= spacing):
            centres[placed] = candidate
            placed += 1
    return centres[:placed]


def dendrites(rng: np.random.Generator, shape: Shape, centres: np.ndarray, radius: float) -> Image:
    """Draw two to five tapering processes around each centre, without blur: (N, Y, X)."""
    if not len(centres):
        return np.zeros((0, *shape), np.float32)
    owners = np.repeat(np.arange(len(centres)), rng.integers(2, 6, len(centres)))
    angles = rng.uniform(0, 2 * np.pi, len(owners))
    starts = centres[owners] + 0.8 * radius * np.stack([np.sin(angles), np.cos(angles)], 1)
    steps = int(rng.uniform(8, 16) * radius)
    paths = curves(rng, starts, angles, steps, bend=0.6)
    taper = np.exp(-np.arange(steps) / (rng.uniform(0.2, 0.6, (len(owners), 1)) * steps))
    return paint(paths, 0.5 * taper, owners, len(centres), shape)


def axons(rng: np.random.Generator, shape: Shape, count: int, boutons: float, alignment: float) -> Image:
    """Draw `count` thin long processes with bright boutons, without blur: (K, Y, X), K = min(count, MAX_AXON_IMAGES).

    boutons: their brightness relative to the shaft; alignment: 0 for random directions, 1 for a common direction.
    """
    steps = 2 * int(rng.uniform(0.5, 1.3) * max(shape)) + 8
    common = rng.uniform(0, 2 * np.pi)
    angles = common + (1 - alignment) * rng.uniform(-np.pi, np.pi, count)
    middle = rng.uniform(0, 1, (count, 2)) * shape
    starts = middle - 0.25 * steps * np.stack([np.sin(angles), np.cos(angles)], 1)
    paths = curves(rng, starts, angles, steps, bend=0.5)
    from_end = np.minimum(np.arange(steps), np.arange(steps)[::-1])
    taper = np.minimum(1, from_end / 30)  # axons leave the focal plane slowly
    weights = taper * np.exp(0.3 * np.cumsum(rng.normal(0, 0.15, (count, steps)), axis=1).clip(-4, 4))
    swelling = rng.random((count, steps)) < rng.uniform(0.02, 0.08)  # a bouton every 6 to 25 pixels
    swelling = gaussian_filter(swelling.astype(np.float32), (0, 1.6)) * 4
    images = min(count, MAX_AXON_IMAGES)
    return paint(
        paths, weights * (0.4 + boutons * swelling), np.arange(count) % max(images, 1), images, shape
    )


def mesh(rng: np.random.Generator, shape: Shape, psf: Sequence[float], fibres: float) -> Image:
    """Draw neuropil at rest, (Y, X), mean about 1: thin fibres (this share of the light), times smooth density."""
    count = max(4, int(np.prod(shape) / 12))
    starts = rng.uniform(-10, 10, (count, 2)) + rng.uniform(0, 1, (count, 2)) * shape
    paths = curves(rng, starts, rng.uniform(0, 2 * np.pi, count), 40, bend=1.5)
    weights = np.repeat(rng.lognormal(0, 0.9, (count, 1)), 40, axis=1)
    fibre_image = blur(paint(paths, weights, np.zeros(count, int), 1, shape), psf)[0]
    density = np.exp(0.15 * smooth_field(rng, shape, 5.0) + 0.2 * smooth_field(rng, shape, 20.0))
    return (1 - fibres + fibres * fibre_image / max(float(fibre_image.mean()), 1e-6)) * density


def vessels(rng: np.random.Generator, shape: Shape, count: int, width: float) -> Image:
    """Draw the light transmitted, (Y, X), 0 to 1, by `count` curved vessels of about `width` pixels, some blurred."""
    light = np.ones(shape, np.float32)
    steps = 4 * max(shape) + 2  # half-pixel steps: from anywhere to beyond the border
    for _ in range(count):
        start = rng.uniform(0, 1, (2,)) * shape
        angles = rng.uniform(0, 2 * np.pi) + np.array([0, np.pi])
        paths = curves(rng, np.stack([start, start]), angles, steps, bend=0.25)  # (2, steps, 2)
        core = paint(paths, np.ones(paths.shape[:2]), np.zeros(2, int), 1, shape)[0] > 0
        distance = distance_transform_edt(~core)
        radius, edge = width * rng.uniform(0.3, 0.8), rng.uniform(0.7, 2.5)
        light *= 1 - rng.uniform(0.7, 0.99) * _soft_step((radius - distance) / edge)
    return light


def vignette(rng: np.random.Generator, shape: Shape, strength: float) -> Image:
    """Draw uneven illumination (Y, X): 1 at a spot near the centre, about 1 - strength in the far corners."""
    centre = (0.5 + rng.uniform(-0.2, 0.2, 2)) * shape
    yy, xx = np.indices(shape, dtype=np.float32)
    distance = np.hypot((yy - centre[0]) / shape[0], (xx - centre[1]) / shape[1]) / 0.7
    return (1 - strength * np.clip(distance, 0, 1) ** 2).astype(np.float32)
