"""Glitches: voxels alone beyond noise and scene, against answers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.glitches import (
    MAX_CHANCE,
    MAX_SHARE,
    MAX_SPREAD,
    MOVING_SHIFT,
    STILL_SHIFT,
    excess_in_time,
    glitches,
    noise_limit,
)
from evaluation.benchmark import WEIGHTS, denoised
from model import load_model
from simulation import challenge_scene, noisy

NOISE = 0.5, 4.0
PLACE = (3, 4, 5)


def flat(frames: int = 7, brightness: float = 50.0) -> torch.Tensor:
    return torch.full((frames, 9, 11), brightness)


def found(frames: torch.Tensor, expected: torch.Tensor, *, moving: bool = False) -> list[list[int]]:
    places: list[list[int]] = glitches(frames, expected, NOISE, moving).nonzero().tolist()
    return places


def limit(brightness: float) -> float:
    return float(noise_limit(torch.tensor(brightness), NOISE))


def test_noise_limit_is_bernsteins() -> None:
    gain, read_variance = NOISE
    x = limit(100.0)
    assert math.exp(-(x**2) / (2 * (gain * 100 + read_variance + gain * x / 3))) == pytest.approx(MAX_CHANCE)
    photons_alone = -2 / 3 * gain * math.log(MAX_CHANCE)
    assert limit(-100.0) == pytest.approx(photons_alone)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_excess_in_time(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    frames, expected = rng.integers(0, 5, (2, length, 2, 3)).astype(np.float32)
    difference = frames - expected
    for (t, y, x), value in np.ndenumerate(
        excess_in_time(torch.from_numpy(frames), torch.from_numpy(expected)).numpy()
    ):
        nearest = {0: (1, 2), length - 1: (length - 2, length - 3)}.get(t, (t - 1, t + 1))
        others, own = difference[list(nearest) if length > 2 else t, y, x], difference[t, y, x]
        assert value == own - np.clip(own, others.min(), others.max())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [PLACE, (0, 4, 5), (6, 4, 5), (3, 0, 0), (3, 8, 10), (0, 0, 10)])
def test_one_voxel_beyond_noise(sign: int, place: tuple[int, int, int]) -> None:
    expected = flat()
    for factor, places in ((1.01, [list(place)]), (0.99, [])):
        frames = expected.clone()
        frames[place] += sign * factor * limit(50.0)
        assert found(frames, expected) == places


def test_in_an_active_cell_its_brightness_counts() -> None:
    expected = flat()
    frames = expected.clone()
    frames[:, 3:6, 4:7] += 300.0
    frames[PLACE] += (limit(50.0) + limit(350.0)) / 2
    assert found(frames, expected) == []
    frames[PLACE] += limit(350.0)
    assert found(frames, expected) == [list(PLACE)]


def test_light_lasts() -> None:
    expected = flat()
    frames = expected.clone()
    frames[3:5, 4, 5] += 1000.0
    assert found(frames, expected) == []


@pytest.mark.parametrize("step", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_light_spreads(step: tuple[int, int]) -> None:
    expected = flat()
    for factor, places in ((0.9, [list(PLACE)]), (1.1, [])):
        frames = expected.clone()
        frames[PLACE] += 1000.0
        # the other way, as where edges move
        frames[3, 4 + step[0], 5 + step[1]] -= factor * MAX_SPREAD * 1000
        assert found(frames, expected) == places


@pytest.mark.parametrize("moving", [False, True])
def test_a_displaced_edge_is_no_glitch(moving: bool) -> None:
    expected = flat()
    expected[:, :, 6:] += 1000.0
    explained = (MOVING_SHIFT if moving else STILL_SHIFT) * 1000
    for factor, places in ((1.01, [list(PLACE)]), (0.99, [])):
        frames = expected.clone()
        frames[PLACE] += factor * (explained + limit(50.0))
        assert found(frames, expected, moving=moving) == places


def test_beside_missing_voxels() -> None:
    expected = flat()
    frames = expected.clone()
    frames[PLACE] += 1000.0
    frames[3, 3], frames[3, 4, 6] = torch.nan, torch.nan
    assert found(frames, expected) == [list(PLACE)]
    frames[2, 4, 5] = torch.nan  # whether it lasts cannot be told
    assert found(frames, expected) == []


@pytest.mark.parametrize("length", [1, 2])
def test_two_frames_tell_nothing(length: int) -> None:
    frames = flat(length)
    frames[0, 4, 5] += 1000.0
    assert found(frames, flat(length)) == []


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_many_are_no_glitches(factor: float) -> None:
    expected = torch.full((60, 40, 50), 10.0)
    frames = expected.clone()
    count = round(factor * MAX_SHARE * frames.numel())
    places = torch.cartesian_prod(
        *(torch.arange(0, side, step) for side, step in ((60, 3), (40, 2), (50, 2)))
    )
    places = places[:count]
    frames[places.unbind(1)] += 1000.0
    assert found(frames, expected) == ([] if factor > 1 else places.tolist())


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0, 3))
def test_noise_has_none(seed: int, photons: float, read_noise: float) -> None:
    """Down to a hundredth of a photon in each voxel: a photon in the dark is no glitch."""
    rng = np.random.default_rng(seed)
    expected = torch.full((40, 30, 30), photons)
    noise = rng.poisson(expected.numpy()) + rng.normal(0, read_noise, expected.shape)
    assert not glitches(torch.from_numpy(noise).float(), expected, (1.0, read_noise**2), False).any()


def test_voxels_of_another_place_do_not_come_out() -> None:
    """One voxel in 200, in a recording of 30 dB: they passed for what the network missed, and a third came out."""
    clean = np.maximum(challenge_scene(5_000_100, 150, 96).clean(), 0)
    movie = noisy(clean, 0.15, 13.5, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    t, y, x = (rng.integers(low, high, movie.size // 200) for low, high in ((0, 150), (2, 96), (0, 96)))
    damaged = movie.copy()
    damaged[t, y, x] = movie[t, y - 2, x]
    output = denoised(damaged, load_model(WEIGHTS, torch.device("cpu")))
    error, left = (np.mean((image - clean)[t, y, x] ** 2) for image in (damaged, output))
    assert left < error / 1000
