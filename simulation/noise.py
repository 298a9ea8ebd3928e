"""Detector and digitizer: Poisson and read noise, row-correlated noise, lost rows, rounding, clipping.

Noise model: variance = gain * clean + read_variance, independent between voxels unless row_correlation is given.
LEVELS are those that participants of the AI4Life calcium imaging denoising challenge published.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from simulation.scene import Size, random_scene

LEVELS = {1: (28.0, 2500.0), 2: (249.0, 2700.0), 3: (991.0, 3700.0)}  # level: (gain, read variance)
MANY_PHOTONS = 30.0  # above, a skewed Gaussian approximates the Poisson distribution up to its third moment
MEAN_FRAMES = 32  # frames of a scene whose mean stands for the mean of a whole recording
NEIGHBOURHOOD = 5  # pixels; side of the squares over whose mean brightness the noise model is evaluated
DARK_QUANTILE = 0.03  # of a mean image; subtracted as its black level
# norm of footprints, in noise standard deviations; weaker ones vanish in noise
STRENGTH_RANGE = (20.0, 1500.0)
BLOCK_FRAMES = 16  # drawn at a time, so that they fit into the processor's cache


def noisy(
    clean: NDArray[np.float32],
    gain: float,
    read_variance: float,
    rng: np.random.Generator,
    *,
    offset: float = 0.0,
    row_correlation: float = 0.0,
) -> NDArray[np.float32]:
    """Add noise to a clean movie (T, Y, X); returns float32 in the clean movie's units plus `offset`.

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
    for start in range(0, len(clean), BLOCK_FRAMES):
        block = clean[start : start + BLOCK_FRAMES]
        exposure = _photons(block / np.float32(gain), rng)
        exposure *= np.float32(gain)
        if read_variance:
            exposure += np.float32(read_variance**0.5) * rng.standard_normal(block.shape, np.float32)
        if row_correlation:
            exposure = block + _correlate_rows(exposure - block, row_correlation)
        result[start : start + BLOCK_FRAMES] = exposure
    return result + np.float32(offset) if offset else result


def _photons(expected: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw photon counts for an expectation >= 0; from a skewed Gaussian where it is above MANY_PHOTONS."""
    normal = rng.standard_normal(expected.shape, np.float32)
    counts = expected + np.sqrt(expected) * normal + (normal * normal - 1) / np.float32(6)
    few = expected < MANY_PHOTONS
    counts[few] = rng.poisson(expected[few])
    return counts


def _correlate_rows(noise: NDArray[np.float32], correlation: float) -> NDArray[np.float32]:
    """Mix each voxel's noise with its left neighbour's, for this lag-1 correlation and the same variance."""
    share = (1 - np.sqrt(1 - 4 * correlation**2)) / (2 * correlation)
    mixed = noise.copy()
    mixed[..., 1:] += np.float32(share) * noise[..., :-1]
    mixed[..., 1:] /= np.float32(np.sqrt(1 + share**2))
    return mixed


def drop_rows(movie: NDArray[Any], fraction: float, rng: np.random.Generator) -> NDArray[Any]:
    """Return a copy of a movie (T, Y, X) in which this fraction of the rows is zero, as after lost triggers."""
    lost = rng.random(movie.shape[:2]) < fraction  # (T, Y)
    return np.where(lost[..., None], movie.dtype.type(0), movie)


def digitize(movie: NDArray[np.float32], dtype: type, clip_at_zero: bool) -> NDArray[Any]:
    """Round and clip a movie to an integer type's range; float32 is only clipped at zero, if clip_at_zero."""
    low = 0.0 if clip_at_zero else -np.inf
    if dtype is np.float32:
        return np.maximum(movie, np.float32(low))
    limits = np.iinfo(dtype)
    return np.clip(np.rint(movie), max(low, limits.min), limits.max).astype(dtype)


def random_recording(rng: np.random.Generator, frames: int, size: Size) -> NDArray[Any]:
    """Simulate a noisy recording (T, Y, X) for training, int16, uint16 or float32: random scene, random detector.

    Raw SNR is log-uniform from -12 to 25 dB; gain, offset, read noise, clipping, rounding and artifacts vary.
    Seed rng from a SeedSequence, never from the evaluation's seeds (see simulation.scene).
    """
    clean = random_scene(rng, frames, size).clean()
    clean *= np.float32(_digital_mean(rng) / max(float(clean.mean()), 1e-6))
    gain, read_variance = _random_noise(rng, clean)
    read_noise = read_variance**0.5
    clip = rng.random() < 0.3
    offset = (
        0.0 if clip else rng.choice([0.0, rng.uniform(0, 5 * read_noise + 0.5 * gain), rng.uniform(0, 2000)])
    )
    correlation = _random_row_correlation(rng)
    movie = noisy(clean, gain, read_variance, rng, offset=offset, row_correlation=correlation)
    movie = _random_digitization(rng, movie, clip)
    return drop_rows(movie, 10 ** rng.uniform(-4, -1.7), rng) if rng.random() < 0.1 else movie


@dataclass(frozen=True)
class FrameMeans:
    """Mean images of several groups of frames of a noisy recording, and its noise model; not digitized."""

    means: NDArray[np.float32]  # (groups, Y, X)
    frames: int  # in each group
    gain: float  # noise model: variance of a voxel = gain * brightness + read_variance
    read_variance: float


def random_frame_means(rng: np.random.Generator, groups: int, frames: int, size: Size) -> FrameMeans:
    """Simulate the mean images of `groups` groups of `frames` frames of a random recording.

    The groups differ in their noise alone, as if frames were assigned to groups at random: the clean image is the mean
    of MEAN_FRAMES frames of the scene, and the noise is that of a mean of `frames` frames.
    """
    clean = random_scene(rng, MEAN_FRAMES, size).clean().mean(0, keepdims=True)  # (1, Y, X)
    clean *= np.float32(_digital_mean(rng) / max(float(clean.mean()), 1e-6))
    gain, read_variance = _random_noise(rng, clean)
    repeated = np.repeat(clean, groups, axis=0)  # (groups, Y, X)
    correlation = _random_row_correlation(rng)
    means = noisy(repeated, gain / frames, read_variance / frames, rng, row_correlation=correlation)
    return FrameMeans(means, frames, gain, read_variance)


@dataclass(frozen=True)
class Footprints:
    """Noisy images of one footprint, one for each of several groups of frames, and the recording's mean image."""

    images: NDArray[np.float32]  # (groups, Y, X), noise variance 1
    mean: NDArray[np.float32]  # (Y, X), above its darkest pixels, in standard deviations of one frame's noise


def random_footprints(rng: np.random.Generator, groups: int, frames: int, size: Size) -> Footprints:
    """Simulate a footprint of a random recording of `frames` frames.

    A footprint is a sum of frames weighted by a time course. It contains about half of the scene's sources, with
    either sign, and the scene's edges if the scene moves.
    """
    scene = random_scene(rng, MEAN_FRAMES, size)
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
    strength = np.exp(rng.uniform(*np.log(STRENGTH_RANGE)))  # norm over 32 x 32 pixels
    footprint *= strength / 32 / max(float(np.sqrt(np.mean(np.square(footprint)))), 1e-6)
    white = rng.standard_normal((groups + 1, *footprint.shape), np.float32)
    correlation = _random_row_correlation(rng)
    noise_images = _correlate_rows(white, correlation) if correlation else white
    group_noise, mean_noise = noise_images[:groups], noise_images[groups]
    mean = (clean - np.quantile(clean, DARK_QUANTILE)) / noise + mean_noise / np.sqrt(frames)
    return Footprints(footprint.astype(np.float32) + group_noise, mean.astype(np.float32))


def _random_row_correlation(rng: np.random.Generator) -> float:
    """Draw the correlation of neighbours in a row; mostly 0, since most detectors are fast enough."""
    return rng.uniform(0.1, 0.4) if rng.random() < 0.15 else 0.0


def _digital_mean(rng: np.random.Generator) -> float:
    """Draw the mean brightness in the digitizer's units."""
    return float(np.exp(rng.uniform(np.log(30), np.log(4000))))


def _random_noise(rng: np.random.Generator, clean: NDArray[np.float32]) -> tuple[float, float]:
    """Draw gain and read variance for a raw SNR of -12 to 25 dB; usually photons make most of the noise."""
    sample = clean[::7, ::2, ::2]
    clipped = np.minimum(sample, np.quantile(sample, 0.99))  # a very bright cell must not determine the noise
    power, mean = float(np.mean(np.square(clipped))), float(clean.mean())
    variance = power / 10 ** (rng.uniform(-1.2, 2.5))
    photon_share = 1 - 0.9 * rng.random() ** 3
    return photon_share * variance / max(mean, 1e-6), (1 - photon_share) * variance


def _random_digitization(rng: np.random.Generator, movie: NDArray[np.float32], clip: bool) -> NDArray[Any]:
    """Digitize a movie to a random type, after scaling or shifting values that its range would cut off."""
    kind = rng.choice(["int16", "uint16", "float32"], p=[0.5, 0.35, 0.15])
    if kind == "float32":
        return digitize(movie, np.float32, clip)
    top = float(movie.max())
    if top > 32000:  # a detector that is used properly does not saturate
        movie = movie * np.float32(32000 / top)
    if kind == "uint16" and not clip:  # an offset preserves negative noise
        movie = movie - min(float(movie.min()), 0.0)
    return digitize(movie, np.int16 if kind == "int16" else np.uint16, clip)
