"""Glitches: voxels alone beyond noise and scene, against answers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.glitches import MAX_CHANCE, MAX_SHARE, MIN_EXCESS, glitches, noise_limit

GAIN, READ_VARIANCE = 0.5, 4.0
PLACE = (3, 4, 5)


def scene(frames: int = 7) -> torch.Tensor:
    image = 10 + 5 * torch.arange(9.0)[:, None] + 200 * (torch.arange(11.0) == 6)
    return image.expand(frames, -1, -1)


def found(frames: torch.Tensor, expected: torch.Tensor) -> list[list[int]]:
    places: list[list[int]] = glitches(frames, expected, GAIN, READ_VARIANCE).nonzero().tolist()
    return places


def limit(brightness: float) -> float:
    return float(noise_limit(torch.tensor(brightness), GAIN, READ_VARIANCE))


def test_noise_limit_is_bernsteins() -> None:
    x = limit(100.0)
    assert math.exp(-(x**2) / (2 * (GAIN * 100 + READ_VARIANCE + GAIN * x / 3))) == pytest.approx(MAX_CHANCE)
    assert float(noise_limit(torch.tensor(-100.0), GAIN, READ_VARIANCE)) == pytest.approx(
        2 * GAIN * -math.log(MAX_CHANCE) / 3  # no variance is left: photons alone
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [PLACE, (0, 4, 5), (6, 4, 5), (3, 0, 0), (3, 8, 10), (0, 0, 10)])
def test_one_voxel_beyond_noise(sign: int, place: tuple[int, int, int]) -> None:
    expected = scene()
    brightness = float(expected[place])
    for factor, places in ((1.01, [list(place)]), (0.99, [])):
        frames = expected.clone()
        frames[place] += sign * factor * limit(brightness)
        assert found(frames, expected) == places


def test_in_an_active_cell_its_brightness_counts() -> None:
    expected = scene()
    frames = expected.clone()
    frames[:, 3:6, 4:7] += 300.0
    usual, active = limit(float(expected[PLACE])), limit(float(expected[PLACE]) + 300)
    frames[PLACE] += (usual + active) / 2
    assert found(frames, expected) == []
    frames[PLACE] += active
    assert found(frames, expected) == [list(PLACE)]


def test_light_spreads_over_neighbours_or_lasts() -> None:
    expected, height = scene(), 1000.0
    for step in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1), (1, 1, -1)):
        neighbour = tuple(np.add(PLACE, step))
        for share, places in ((0.9, [list(PLACE)]), (1.1, [])):  # of the most that a neighbour of a glitch has
            frames = expected.clone()
            frames[PLACE] += height
            frames[neighbour] += share * height / (1 + MIN_EXCESS)
            assert found(frames, expected) == places


def test_missing_neighbours_are_left_out() -> None:
    expected = scene()
    frames = expected.clone()
    frames[PLACE] += 1000.0
    frames[PLACE[0], PLACE[1]] = torch.nan
    frames[PLACE] = 1000.0
    assert found(frames, expected) == [list(PLACE)]
    frames[2:5, 3:6, 4:7] = torch.nan  # all
    frames[PLACE] = 1000.0
    assert found(frames, expected) == []


def test_a_single_frame_tells_nothing() -> None:
    frames = scene(1).clone()
    frames[0, 4, 5] += 1000.0
    assert found(frames, scene(1)) == []


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_many_are_no_glitches(factor: float) -> None:
    expected = torch.full((60, 40, 50), 10.0)
    frames = expected.clone()
    count = round(factor * MAX_SHARE * frames.numel())
    places = torch.cartesian_prod(torch.arange(0, 60, 2), torch.arange(0, 40, 2), torch.arange(0, 50, 2))[:count]
    frames[places.unbind(1)] += 1000.0
    assert found(frames, expected) == ([] if factor > 1 else places.tolist())


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0, 3))
def test_noise_has_none(seed: int, photons: float, read_noise: float) -> None:
    """Down to a hundredth of a photon in each voxel: a photon in the dark is no glitch."""
    rng = np.random.default_rng(seed)
    expected = torch.full((40, 30, 30), photons)
    noise = rng.poisson(expected.numpy()) + rng.normal(0, read_noise, expected.shape)
    assert not glitches(torch.from_numpy(noise).float(), expected, 1.0, read_noise**2).any()
