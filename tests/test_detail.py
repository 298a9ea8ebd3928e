"""Detail that is lost with the noise, against answers worked out by hand and another solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from denoise.detail import (
    MAX_LOST,
    NO_DETAIL,
    TOLERANCE,
    Detail,
    estimate_detail,
    nonnegative_least_squares,
    squared_curvature,
)

NOISE = Detail(dark=10.0, read_variance=4.0, gain=0.5)


def scene(frames: int = 64, size: int = 48) -> torch.Tensor:
    """Bright and dark, smooth and fine: (T, Y, X)."""
    rng = np.random.default_rng(0)
    image = (
        10
        + 100 * rng.random((size, size)) ** 4 * np.linspace(0, 1, size)
        + 20 * np.linspace(0, 1, size)[:, None]
    )
    return torch.from_numpy(image).float().expand(frames, -1, -1)


def residual(frames: torch.Tensor, detail: Detail) -> torch.Tensor:
    """White, of the variance that is stated."""
    variance = detail.read_variance + detail.gain * (frames - detail.dark).clamp(min=0)
    variance = variance + detail.lost * squared_curvature(frames)
    return variance.sqrt() * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))


def test_curvature() -> None:
    y, x = torch.arange(5.0)[:, None], torch.arange(7.0)
    curved = squared_curvature((3 * y**2 - 2 * x**2 + x * y)[None])[0]
    torch.testing.assert_close(curved[2, 2:-2], torch.full((3,), 6.0**2 + 4.0**2))
    frame = torch.zeros(1, 3, 4)
    frame[0, 0, 0] = 2.0
    each = torch.tensor(
        [[4.0 + 4, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
    )  # beyond the edges it goes on with 2
    beyond = torch.nn.functional.pad(each[None], [1] * 4, mode="replicate")[0]
    expected = [[beyond[y : y + 3, x : x + 3].mean() for x in range(4)] for y in range(3)]
    torch.testing.assert_close(squared_curvature(frame)[0], torch.tensor(expected))


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_nonnegative_least_squares(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    terms, target = rng.random((count, 30)) * 10.0 ** rng.integers(-6, 6, (count, 1)), rng.standard_normal(30)
    found = nonnegative_least_squares(torch.from_numpy(terms), torch.from_numpy(target)).numpy()
    expected, distance = nnls(terms.T, target)
    assert (found >= 0).all()
    assert np.linalg.norm(found @ terms - target) == pytest.approx(distance, rel=1e-9)
    np.testing.assert_allclose(found * terms.max(1), expected * terms.max(1), atol=1e-6)


@pytest.mark.parametrize("lost", [0.0, 0.002])
def test_noise_and_lost_detail_are_told_apart(lost: float) -> None:
    detail = replace(NOISE, lost=lost)
    frames = scene()
    recording = frames + residual(frames, detail)
    recording[:, 5] = torch.nan
    recording[7, 20, 20] = 1e6  # one odd voxel
    estimate = estimate_detail(frames, recording)
    noise = [estimate.read_variance + estimate.gain * (bright - estimate.dark) for bright in (20.0, 60.0)]
    assert noise == pytest.approx([9.0, 29.0], rel=0.1)
    assert estimate.lost == pytest.approx(lost, rel=0.1, abs=2e-5)


@pytest.mark.parametrize("noisy", [True, False])
def test_more_than_can_be_lost_is_no_detail_unless_it_is_more_than_the_noise(noisy: bool) -> None:
    frames, lost = scene(), 5 * MAX_LOST
    mean = lost * float(squared_curvature(frames).mean())
    detail = Detail(dark=10.0, read_variance=mean * (2 if noisy else 0.5), lost=lost)
    found = estimate_detail(frames, frames + residual(frames, detail)).lost
    assert found == (MAX_LOST if noisy else pytest.approx(lost, rel=0.1))


@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_told_where_nothing_was_taken_away(missing: bool) -> None:
    frames = scene()
    assert estimate_detail(frames, torch.full_like(frames, torch.nan) if missing else frames) == NO_DETAIL


def test_what_is_lost_is_given_back_by_inverse_variances() -> None:
    frames = torch.full((1, 5, 7), 4.0)
    frames[0, 2, 3] += 20.0
    recording = frames + 6.0
    recording[0, 2, 2] = torch.nan
    detail = Detail(dark=4.0, read_variance=1.0, gain=0.05, lost=0.03)
    given_back = (detail.give_back(frames, recording) - frames)[0]
    lost = 0.03 * (2 * 40.0**2 + 4 * 20.0**2) / 9  # around the bright voxel, whose noise has the variance 2
    assert given_back[2, 3] == pytest.approx(6.0 * (1 - (1 + TOLERANCE) / (1 + lost / 2)))
    lost = 0.03 * 20.0**2 / 9  # two pixels further on
    assert given_back[2, 5] == pytest.approx(6.0 * max(0, 1 - (1 + TOLERANCE) / (1 + lost)))
    assert given_back[2, 6] == 0
    assert given_back[2, 2] == 0  # not recorded


def test_noise_alone_is_not_given_back() -> None:
    frames = scene()
    recording = frames + residual(frames, NOISE)
    assert torch.equal(estimate_detail(frames, recording).give_back(frames, recording), frames)
