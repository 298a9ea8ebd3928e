"""Movies that move, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import fourier_shift, gaussian_filter

from denoise.motion import Motion
from simulation.activity import wander


def smooth_noise(*shape: int, seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """An image without waves that are too fine to be displaced, of variance 1."""
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return (image / image.std()).astype(np.float32)


def displaced(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image (Y, X) further on by (T, 2) pixels, exactly, as if it went on at the other side: (T, Y, X)."""
    waves = np.fft.fft2(image)
    return np.stack([np.fft.ifft2(fourier_shift(waves, its)).real for its in by]).astype(np.float32)


def seen(scene: np.ndarray, by: np.ndarray, noise: float, edge: int = 20) -> torch.Tensor:
    """The inner part of a moving scene with white noise, which new parts of it come into: (T, Y, X)."""
    frames = displaced(scene, by)[:, edge:-edge, edge:-edge]
    return torch.from_numpy(
        frames + noise * np.random.default_rng(1).standard_normal(frames.shape).astype(np.float32)
    )


def oddly(frames: torch.Tensor, phase: float) -> torch.Tensor:
    """Frames (n, Y, X) whose odd rows lie so many pixels further on, as if they went on at the other side."""
    frames = frames.clone()
    waves = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(frames.shape[2]) * phase)
    frames[:, 1::2] = torch.fft.irfft(torch.fft.rfft(frames[:, 1::2]) * waves, n=frames.shape[2])
    return frames


class Waves:
    """A scene of variance 1 that is known between pixels, too."""

    def __init__(self, seed: int, count: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.waves = rng.uniform(-0.12, 0.12, (count, 2)) * 2 * np.pi
        self.phases = rng.uniform(0, 2 * np.pi, count)

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """At such places."""
        total = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        for wave, phase in zip(self.waves, self.phases):
            total += np.cos(wave[0] * y + wave[1] * x + phase)
        return total * np.sqrt(2 / len(self.waves))

    def bent(self, motion: Motion, frame: int, height: int, width: int) -> np.ndarray:
        """As one frame (Y, X) of a movie that moves so has it."""
        by, bends = (its[frame].double().numpy() for its in (motion.shifts, motion.deformation))
        rows, columns = np.mgrid[:height, :width].astype(float)
        columns[1::2] -= motion.phase
        y, x = rows, columns
        for _ in range(20):
            v = 3**0.5 * np.clip((y - (height - 1) / 2) / motion.half_size[0], -1, 1)
            u = 3**0.5 * np.clip((x - (width - 1) / 2) / motion.half_size[1], -1, 1)
            shapes = np.stack([v, u, (v * v - 1) * 5**0.5 / 2, v * u, (u * u - 1) * 5**0.5 / 2])
            away_y, away_x = np.tensordot(bends.T, shapes, 1) + by[:, None, None]
            y, x = rows - away_y, columns - away_x
        return self.at(y, x)


def in_blocks(frames: torch.Tensor, size: int = 64) -> Iterator[torch.Tensor]:
    yield from frames.split(size)


def bent_movie(
    frames: int, size: int, jitter: float, bends: float, seed: int = 0
) -> tuple[torch.Tensor, Motion]:
    """A movie under noise of variance 1 that moves and whose field turns, is stretched and curved, and its motion."""
    rng = np.random.default_rng(seed)
    by = torch.from_numpy(wander(rng, frames, jitter, jitter)).float()
    amounts = np.stack([wander(rng, frames, bends, 0.0) for _ in range(5)], 1)
    motion = Motion(by, deformation=torch.from_numpy(amounts).float(), half_size=(size / 2, size / 2))
    scene = Waves(seed)
    movie = np.stack([scene.bent(motion, t, size, size) for t in range(frames)]) * 2
    return torch.from_numpy(movie + rng.standard_normal(movie.shape)).float(), motion


def field_of(motion: Motion, size: int) -> torch.Tensor:
    """Displacements of every eighth pixel from the mean ones: (T, ., ., 2)."""
    places = torch.arange(0, size, 8) - (size - 1) / 2
    away = torch.stack([motion.displacement(axis, places[:, None], places) for axis in (0, 1)], 3)
    return away - away.mean(0)
