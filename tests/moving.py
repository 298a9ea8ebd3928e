"""Simulated movies that move, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import fourier_shift, gaussian_filter

from denoise.motion import Motion
from simulation.activity import wander


def smooth_noise(*shape: int, seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """Return an image of smooth noise, band-limited so that it can be displaced, of variance 1."""
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return (image / image.std()).astype(np.float32)


def displaced(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Shift a periodic image (Y, X) by (T, 2) pixels exactly, in the Fourier domain: (T, Y, X)."""
    spectrum = np.fft.fft2(image)
    return np.stack([np.fft.ifft2(fourier_shift(spectrum, shift)).real for shift in by]).astype(np.float32)


def moving_movie(scene: np.ndarray, by: np.ndarray, noise: float, edge: int = 20) -> torch.Tensor:
    """Return noisy frames (T, Y, X) of a scene (Y, X) shifted by (T, 2) pixels, without `edge` pixels at each side."""
    frames = displaced(scene, by)[:, edge:-edge, edge:-edge]
    return torch.from_numpy(
        frames + noise * np.random.default_rng(1).standard_normal(frames.shape).astype(np.float32)
    )


def shift_odd_rows(frames: torch.Tensor, phase: float) -> torch.Tensor:
    """Shift the odd rows of periodic frames (n, Y, X) along x by `phase` pixels."""
    frames = frames.clone()
    ramp = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(frames.shape[2]) * phase)
    frames[:, 1::2] = torch.fft.irfft(torch.fft.rfft(frames[:, 1::2]) * ramp, n=frames.shape[2])
    return frames


class Waves:
    """A scene of variance 1, a sum of random plane waves, that can be evaluated between pixels."""

    def __init__(self, seed: int, count: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.frequencies = rng.uniform(-0.12, 0.12, (count, 2)) * 2 * np.pi
        self.phases = rng.uniform(0, 2 * np.pi, count)

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the scene at rows y and columns x, which broadcast."""
        total = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        for (along_y, along_x), phase in zip(self.frequencies, self.phases):
            total += np.cos(along_y * y + along_x * x + phase)
        return total * np.sqrt(2 / len(self.phases))

    def bent(self, motion: Motion, frame: int, height: int, width: int) -> np.ndarray:
        """Return the scene as it appears in one frame (Y, X) of a movie with this motion."""
        by, bends = (x[frame].double().numpy() for x in (motion.shifts, motion.deformation))
        rows, columns = np.mgrid[:height, :width].astype(float)
        columns[1::2] -= motion.phase
        y, x = rows, columns
        for _ in range(20):
            v = 3**0.5 * np.clip((y - (height - 1) / 2) / motion.half_size[0], -1, 1)
            u = 3**0.5 * np.clip((x - (width - 1) / 2) / motion.half_size[1], -1, 1)
            basis = np.stack([v, u, (v * v - 1) * 5**0.5 / 2, v * u, (u * u - 1) * 5**0.5 / 2])
            shift_y, shift_x = np.tensordot(bends.T, basis, 1) + by[:, None, None]
            y, x = rows - shift_y, columns - shift_x
        return self.at(y, x)


def in_blocks(frames: torch.Tensor, size: int = 64) -> Iterator[torch.Tensor]:
    yield from frames.split(size)


def bent_movie(
    frames: int, size: int, jitter: float, bends: float, seed: int = 0
) -> tuple[torch.Tensor, Motion]:
    """Return a movie with noise of variance 1 that moves, turns, stretches and bends; and its motion."""
    rng = np.random.default_rng(seed)
    by = torch.from_numpy(wander(rng, frames, jitter, jitter)).float()
    coefficients = np.stack([wander(rng, frames, bends, 0.0) for _ in range(5)], 1)
    motion = Motion(by, deformation=torch.from_numpy(coefficients).float(), half_size=(size / 2, size / 2))
    scene = Waves(seed)
    movie = np.stack([scene.bent(motion, t, size, size) for t in range(frames)]) * 2
    return torch.from_numpy(movie + rng.standard_normal(movie.shape)).float(), motion


def displacement_field(motion: Motion, size: int) -> torch.Tensor:
    """Return displacements of every eighth pixel, less those of the mean over time: (T, Y / 8, X / 8, 2)."""
    positions = torch.arange(0, size, 8) - (size - 1) / 2
    field = torch.stack([motion.displacement(axis, positions[:, None], positions) for axis in (0, 1)], 3)
    return field - field.mean(0)
