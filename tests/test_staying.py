"""What stays where it is while the scene moves is told from what goes along."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from moving import displaced, in_blocks, seen, smooth_noise

from denoise.staying import Staying
from denoise.tracking import motion_of, moves
from simulation.activity import wander

EDGE, SIZE = 20, 128


def lens(size: int = SIZE, radius: float = 54.0) -> torch.Tensor:
    """The light (Y, X) that comes through a round lens, whose edge is a pixel or two wide."""
    y = torch.arange(size)[:, None] - (size - 1) / 2
    return torch.sigmoid(radius - torch.hypot(y, y.T))


def shown(seed: int, by: np.ndarray) -> torch.Tensor:
    """A noisy mean of a scene as it would show in frames that it moves through (T, Y, X)."""
    mean = smooth_noise(SIZE + 2 * EDGE, SIZE + 2 * EDGE)
    mean = mean + 0.3 * np.random.default_rng(seed).standard_normal(mean.shape).astype(np.float32)
    return torch.from_numpy(displaced(mean, by)[:, EDGE:-EDGE, EDGE:-EDGE])


@pytest.fixture
def by() -> np.ndarray:
    return wander(np.random.default_rng(3), 200, 0.8, 0.0)


def staying(frames: torch.Tensor, by: np.ndarray) -> Staying:
    found = Staying(frames.mean(0))
    for part, first, second in zip(*(its.split(64) for its in (frames, shown(1, by), shown(2, by)))):
        found.update(part, first, second)
    return found


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_what_moves_goes_along_whatever_the_noise_of_its_means(noise: float, by: np.ndarray) -> None:
    found = staying(seen(smooth_noise(168, 168), by, noise), by)
    assert not found.pixels.any()
    assert found.against == 0


def test_what_stands_still_in_a_part_of_the_field_stays(by: np.ndarray) -> None:
    frames = seen(smooth_noise(168, 168), by, 1.0)
    frames[:, :, :30] = torch.from_numpy(smooth_noise(SIZE, 30, seed=1))
    frames[:, :, :30] += torch.randn(200, SIZE, 30, generator=torch.Generator().manual_seed(0))
    frames[:50, 60:70] = torch.nan  # what is missing tells nothing
    stays = staying(frames, by).pixels
    assert stays[:, :26].all()
    assert not stays[:, 42:].any()


def test_frames_that_do_not_move_as_is_said_tell_nothing(by: np.ndarray) -> None:
    """Half of them move the other way: what was found is no movement of the scene."""
    frames = seen(smooth_noise(168, 168), by, 1.0)
    frames[:, :, 64:] = seen(smooth_noise(168, 168), -by, 1.0)[:, :, 64:]
    found = staying(frames, by)
    assert found.against > 0.01
    assert not found.pixels.any()


@pytest.mark.parametrize(("noise", "error"), [(0.3, 0.02), (2.0, 0.06)])
def test_the_edge_of_a_lens_does_not_hold_the_scene_back(noise: float, error: float, by: np.ndarray) -> None:
    """As bright as the scene is, its light ends there."""
    scene = 5 + smooth_noise(168, 168)
    frames = seen(scene, by, 0.0) * lens()
    frames += noise * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    assert moves(in_blocks(frames))
    found = motion_of(partial(in_blocks, frames)).shifts.numpy()
    away = (found - found.mean(0)) - (by - by.mean(0))
    assert away.std(0).max() < error


def test_movement_is_seen_in_the_inner_half_too(by: np.ndarray) -> None:
    """The bright edge of a narrow lens is all that cells of the whole field see, but for the four in its middle."""
    scene, light = 60 + smooth_noise(168, 168), lens(radius=40.0)
    noise = 2.0 * torch.randn(200, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert moves(in_blocks(seen(scene, by, 0.0) * light + noise))
    assert not moves(in_blocks(torch.from_numpy(scene)[EDGE:-EDGE, EDGE:-EDGE] * light + noise))
