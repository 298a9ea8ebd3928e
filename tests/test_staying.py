"""Pixels that stay where they are are told from those that move with the scene."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from moving import displaced, in_blocks, moving_movie, smooth_noise

from denoise.staying import StaticPixels
from denoise.tracking import estimate_motion, moves
from simulation.activity import wander

EDGE, SIZE = 20, 128


def lens(size: int = SIZE, radius: float = 54.0) -> torch.Tensor:
    """Return the transmission (Y, X) of a round lens, whose edge is a pixel or two wide."""
    y = torch.arange(size)[:, None] - (size - 1) / 2
    return torch.sigmoid(radius - torch.hypot(y, y.T))


def predicted(seed: int, by: np.ndarray) -> torch.Tensor:
    """Return a noisy mean of a scene, displaced as it would appear in the frames: (T, Y, X)."""
    mean = smooth_noise(SIZE + 2 * EDGE, SIZE + 2 * EDGE)
    mean = mean + 0.3 * np.random.default_rng(seed).standard_normal(mean.shape).astype(np.float32)
    return torch.from_numpy(displaced(mean, by)[:, EDGE:-EDGE, EDGE:-EDGE])


@pytest.fixture
def by() -> np.ndarray:
    return wander(np.random.default_rng(3), 200, 0.8, 0.0)


def static_pixels(frames: torch.Tensor, by: np.ndarray) -> StaticPixels:
    static = StaticPixels(frames.mean(0))
    movies = frames, predicted(1, by), predicted(2, by)
    for block, first, second in zip(*(movie.split(64) for movie in movies)):
        static.update(block, first, second)
    return static


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_no_pixel_of_a_moving_scene_is_static_whatever_the_noise_of_its_means(
    noise: float, by: np.ndarray
) -> None:
    static = static_pixels(moving_movie(smooth_noise(168, 168), by, noise), by)
    assert not static.mask.any()
    assert static.contradiction == 0


def test_columns_that_do_not_move_are_static(by: np.ndarray) -> None:
    frames = moving_movie(smooth_noise(168, 168), by, 1.0)
    frames[:, :, :30] = torch.from_numpy(smooth_noise(SIZE, 30, seed=1))
    frames[:, :, :30] += torch.randn(200, SIZE, 30, generator=torch.Generator().manual_seed(0))
    frames[:50, 60:70] = torch.nan  # missing frames are ignored
    mask = static_pixels(frames, by).mask
    assert mask[:, :26].all()
    assert not mask[:, 42:].any()


def test_no_pixel_is_static_where_frames_move_against_the_prediction(by: np.ndarray) -> None:
    """Half of the field moves the other way: the displacements are no movement of the scene."""
    frames = moving_movie(smooth_noise(168, 168), by, 1.0)
    frames[:, :, 64:] = moving_movie(smooth_noise(168, 168), -by, 1.0)[:, :, 64:]
    static = static_pixels(frames, by)
    assert static.contradiction > 0.01
    assert not static.mask.any()


@pytest.mark.parametrize(("noise", "error"), [(0.3, 0.02), (2.0, 0.06)])
def test_the_edge_of_a_lens_does_not_bias_displacements(noise: float, error: float, by: np.ndarray) -> None:
    """The scene is bright, and dark outside of the lens."""
    scene = 5 + smooth_noise(168, 168)
    frames = moving_movie(scene, by, 0.0) * lens()
    frames += noise * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    assert moves(in_blocks(frames))
    estimated = estimate_motion(partial(in_blocks, frames)).shifts.numpy()
    errors = (estimated - estimated.mean(0)) - (by - by.mean(0))
    assert errors.std(0).max() < error


def test_movement_is_detected_in_the_inner_half_too(by: np.ndarray) -> None:
    """The bright edge of a narrow lens is all that regions of the whole field show, but for the four in its middle."""
    scene, light = 60 + smooth_noise(168, 168), lens(radius=40.0)
    noise = 2.0 * torch.randn(200, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert moves(in_blocks(moving_movie(scene, by, 0.0) * light + noise))
    assert not moves(in_blocks(torch.from_numpy(scene)[EDGE:-EDGE, EDGE:-EDGE] * light + noise))
