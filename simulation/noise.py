"""What the detector and the digitizer make of a clean movie: scaled Poisson and Gaussian noise, and vices.

Noise model: variance = gain * clean + read_variance, independent between voxels unless asked otherwise.
LEVELS are those that participants of the AI4Life calcium imaging denoising challenge published.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from simulation.scene import Size, random_scene

LEVELS = {1: (28.0, 2500.0), 2: (249.0, 2700.0), 3: (991.0, 3700.0)}  # level: (gain, read variance)
MANY_PHOTONS = 30.0  # from here on a skewed Gaussian stands for the Poisson distribution (third moment kept)
MOMENTS = 32  # frames of a scene whose mean stands for that of a whole recording
NEIGHBOURHOOD = 5  # pixels over whose mean brightness the noise is taken
DARKEST = 0.03  # quantile of a mean image from which it is counted
STRENGTHS = (20.0, 1500.0)  # of footprints, in noise deviations; weaker ones are not told from noise
BLOCK = 16  # frames drawn at once: small enough for the processor's cache


def noisy(
    clean: NDArray[np.float32],
    gain: float,
    read_variance: float,
    rng: np.random.Generator,
    *,
    offset: float = 0.0,
    row_correlation: float = 0.0,
) -> NDArray[np.float32]:
    """One noisy exposure of a clean movie (T, Y, X), float32, in the clean movie's units plus `offset`.

    gain: brightness units a photon (> 0); read_variance: Gaussian part, units squared (>= 0);
    row_correlation: correlation of the noise of neighbouring pixels along x, 0 to 0.5 (a slow detector).
    Raises ValueError for a gain, variance or correlation outside these ranges.
    """
    if not (gain > 0 and read_variance >= 0 and 0 <= row_correlation <= 0.5):
        raise ValueError(
            f"need gain > 0, read_variance >= 0, 0 <= row_correlation <= 0.5; "
            f"got {gain}, {read_variance}, {row_correlation}"
        )
    result = np.empty(clean.shape, np.float32)
    for start in range(0, len(clean), BLOCK):
        block = clean[start : start + BLOCK]
        exposed = _photons(block / np.float32(gain), rng)
        exposed *= np.float32(gain)
        if read_variance:
            exposed += np.float32(read_variance**0.5) * rng.standard_normal(block.shape, np.float32)
        if row_correlation:
            exposed = block + _along_rows(exposed - block, row_correlation)
        result[start : start + BLOCK] = exposed
    return result + np.float32(offset) if offset else result


def _photons(expected: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Photon counts for an expectation >= 0; a skewed Gaussian where there are many."""
    normal = rng.standard_normal(expected.shape, np.float32)
    counts = expected + np.sqrt(expected) * normal + (normal * normal - 1) / np.float32(6)
    few = expected < MANY_PHOTONS
    counts[few] = rng.poisson(expected[few])
    return counts


def _along_rows(noise: NDArray[np.float32], correlation: float) -> NDArray[np.float32]:
    """Mix each voxel's noise with its left neighbour's: that lag-1 correlation, the same variance."""
    share = (1 - np.sqrt(1 - 4 * correlation**2)) / (2 * correlation)
    mixed = noise.copy()
    mixed[..., 1:] += np.float32(share) * noise[..., :-1]
    mixed[..., 1:] /= np.float32(np.sqrt(1 + share**2))
    return mixed


def drop_rows(movie: NDArray[Any], fraction: float, rng: np.random.Generator) -> NDArray[Any]:
    """A copy of a movie (T, Y, X) in which this fraction of its rows is zero, as after a lost trigger."""
    lost = rng.random(movie.shape[:2]) < fraction  # (T, Y)
    return np.where(lost[..., None], movie.dtype.type(0), movie)


def digitize(movie: NDArray[np.float32], dtype: type, clip_at_zero: bool) -> NDArray[Any]:
    """Round and clip a movie to an integer type's range; float32 is only clipped, and only if asked."""
    low = 0.0 if clip_at_zero else -np.inf
    if dtype is np.float32:
        return np.maximum(movie, np.float32(low))
    limits = np.iinfo(dtype)
    return np.clip(np.rint(movie), max(low, limits.min), limits.max).astype(dtype)


def random_recording(rng: np.random.Generator, frames: int, size: Size) -> NDArray[Any]:
    """A noisy recording (T, Y, X) for training, int16, uint16 or float32: random scene, random detector.

    Raw SNR is log-uniform from -12 to 25 dB; gain, offset, read noise, clipping, rounding and vices vary.
    Seed rng from a SeedSequence of your own; evaluation seeds (see simulation.scene) never come through here.
    """
    clean = random_scene(rng, frames, size).clean()
    clean *= np.float32(_digital_mean(rng) / max(float(clean.mean()), 1e-6))
    gain, read_variance = _random_noise(rng, clean)
    read = read_variance**0.5
    clip = rng.random() < 0.3
    offset = 0.0 if clip else rng.choice([0.0, rng.uniform(0, 5 * read + 0.5 * gain), rng.uniform(0, 2000)])
    correlation = _random_row_correlation(rng)
    movie = noisy(clean, gain, read_variance, rng, offset=offset, row_correlation=correlation)
    movie = _digitized(rng, movie, clip)
    return drop_rows(movie, 10 ** rng.uniform(-4, -1.7), rng) if rng.random() < 0.1 else movie


@dataclass(frozen=True)
class FrameMeans:
    """What is left of a noisy recording when the frames of each of several groups are averaged; not digitized."""

    means: NDArray[np.float32]  # (groups, Y, X)
    frames: int  # in each group
    gain: float  # noise model: variance of a voxel = gain * brightness + read_variance
    read_variance: float


def random_frame_means(rng: np.random.Generator, groups: int, frames: int, size: Size) -> FrameMeans:
    """A random recording as `random_recording` makes them, reduced to the means of `groups` times `frames` frames.

    Of all but their noise the groups hold the same, as if frames were dealt out at random: the scene is the mean of
    MOMENTS of its frames, and its noise that of a mean.
    """
    clean = random_scene(rng, MOMENTS, size).clean().mean(0, keepdims=True)  # (1, Y, X)
    clean *= np.float32(_digital_mean(rng) / max(float(clean.mean()), 1e-6))
    gain, read_variance = _random_noise(rng, clean)
    every = np.repeat(clean, groups, axis=0)
    shared = _random_row_correlation(rng)
    means = noisy(every, gain / frames, read_variance / frames, rng, row_correlation=shared)
    return FrameMeans(means, frames, gain, read_variance)


@dataclass(frozen=True)
class Footprints:
    """What each of several groups of frames shows of one footprint, and the recording's mean; in units of the noise."""

    images: NDArray[np.float32]  # (groups, Y, X), the noise's variance is 1
    mean: NDArray[np.float32]  # (Y, X), over its darkest pixels, in units of the noise of one frame


def random_footprints(rng: np.random.Generator, groups: int, frames: int, size: Size) -> Footprints:
    """A footprint of a random recording of so many frames.

    It is what frames sum up to when they are weighted by a time course: about half of a random scene's sources, with
    either sign, and the scene's edges where it moves.
    """
    scene = random_scene(rng, MOMENTS, size)
    clean = scene.clean().mean(0)  # (Y, X)
    gain, read_variance = _random_noise(rng, clean[None])
    noise = np.sqrt(gain * uniform_filter(clean, NEIGHBOURHOOD) + read_variance)
    weights = rng.standard_normal(len(scene.footprints)) * rng.lognormal(0, 0.7, len(scene.footprints))
    weights *= rng.random(len(weights)) < 0.5
    inner = slice(scene.margin, -scene.margin or None)
    footprint = np.tensordot(weights.astype(np.float32), scene.footprints[:, inner, inner], 1)
    if scene.margin:
        footprint += rng.normal(0, 0.1) * np.gradient(clean, axis=int(rng.integers(2)))
    footprint /= noise
    strength = np.exp(rng.uniform(*np.log(STRENGTHS)))  # root of the sum of squares in 32 x 32 pixels
    footprint *= strength / 32 / max(float(np.sqrt(np.mean(np.square(footprint)))), 1e-6)
    white = rng.standard_normal((groups + 1, *footprint.shape), np.float32)
    shared = _random_row_correlation(rng)
    group_noise, in_mean = np.split(_along_rows(white, shared) if shared else white, [groups])
    mean = (clean - np.quantile(clean, DARKEST)) / noise + in_mean[0] / np.sqrt(frames)
    return Footprints(footprint.astype(np.float32) + group_noise, mean.astype(np.float32))


def _random_row_correlation(rng: np.random.Generator) -> float:
    """Most detectors are fast enough to tell pixels apart."""
    return rng.uniform(0.1, 0.4) if rng.random() < 0.15 else 0.0


def _digital_mean(rng: np.random.Generator) -> float:
    """Mean brightness in the digitizer's units."""
    return float(np.exp(rng.uniform(np.log(30), np.log(4000))))


def _random_noise(rng: np.random.Generator, clean: NDArray[np.float32]) -> tuple[float, float]:
    """Gain and read variance for a raw SNR of -12 to 25 dB, most of the noise usually from photons."""
    sample = clean[::7, ::2, ::2]
    typical = np.minimum(
        sample, np.quantile(sample, 0.99)
    )  # one dazzling cell must not set the field's noise
    power, mean = float(np.mean(np.square(typical))), float(clean.mean())
    variance = power / 10 ** (rng.uniform(-1.2, 2.5))
    photons = 1 - 0.9 * rng.random() ** 3
    return photons * variance / max(mean, 1e-6), (1 - photons) * variance


def _digitized(rng: np.random.Generator, movie: NDArray[np.float32], clip: bool) -> NDArray[Any]:
    kind = rng.choice(["int16", "uint16", "float32"], p=[0.5, 0.35, 0.15])
    if kind == "float32":
        return digitize(movie, np.float32, clip)
    top = float(movie.max())
    if top > 32000:  # a detector that is used sensibly does not saturate
        movie = movie * np.float32(32000 / top)
    if kind == "uint16" and not clip:  # an offset keeps the noise's lower half
        movie = movie - min(float(movie.min()), 0.0)
    return digitize(movie, np.int16 if kind == "int16" else np.uint16, clip)
