"""Rows that are out of phase are found, and put beside the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving import shift_odd_rows, smooth_noise

from denoise.motion import STILL, Motion
from denoise.phase import estimate_phase, phase_correction


@pytest.mark.parametrize("phase", [2.0, -1.0])
def test_odd_rows_are_put_beside_the_others_without_loss(phase: float) -> None:
    """By whole pixels, by hand: what lies further on is put back, and what is beyond in some rows is missing."""
    frames = torch.arange(4 * 7.0).reshape(1, 4, 7)
    motion = Motion(STILL.shifts, phase).with_full_margins()
    before = int(max(phase, 0))
    assert motion.margins == ((0, 0), (before, int(abs(phase)) - before))
    held = motion.hold(frames, 0)
    for row in range(4):
        first = before - (int(phase) if row % 2 else 0)
        expected = torch.full((held.shape[2],), torch.nan)
        expected[first : first + 7] = frames[0, row]
        torch.testing.assert_close(held[0, row], expected, equal_nan=True, atol=1e-4, rtol=0)
    torch.testing.assert_close(motion.release(held.nan_to_num(), 0), frames, atol=1e-3, rtol=0)
    cut = int(abs(phase))
    inner = phase_correction(phase).hold(frames, 0)
    torch.testing.assert_close(inner, held[:, :, before + cut : before + 7 - cut])


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("phase", [0.5, -0.8, 1.3, 3.0])
def test_rows_out_of_phase_are_found(phase: float, noise: float) -> None:
    image = torch.from_numpy(smooth_noise(128, 128))[None]
    image = shift_odd_rows(image, phase) + noise * torch.randn(
        128, 128, generator=torch.Generator().manual_seed(0)
    )
    assert estimate_phase(image[0]) == pytest.approx(phase, abs=0.03 + 0.1 * noise)


@given(st.integers(0, 2**31), st.integers(32, 130), st.floats(0.5, 8), st.floats(0, 4))
def test_rows_in_phase_are_left_alone(seed: int, size: int, sigma: float, noise: float) -> None:
    """Fine and coarse structure, bright or below the noise."""
    image = smooth_noise(size, size + 7, seed=seed, sigma=sigma)
    image = image + noise * np.random.default_rng(seed).standard_normal(image.shape)
    assert estimate_phase(torch.from_numpy(image.astype(np.float32))) == 0


@pytest.mark.parametrize("slant", [-2, -1, 1, 2])
def test_structure_that_slants_is_in_phase(slant: int) -> None:
    image = smooth_noise(128, 128)
    slanting = np.stack([np.roll(row, slant * number) for number, row in enumerate(image)])
    assert estimate_phase(torch.from_numpy(slanting)) == 0
