"""How a camera's columns and rows differ is found while the scene moves, and nothing is where all moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving import displaced, smooth_noise

from denoise.motion import FixedPattern, Motion
from denoise.pattern import common_signal, estimate_pattern, significant_slope
from denoise.waves import dct_matrix
from simulation.activity import wander

FRAMES, SIZE, EDGE = 200, 96, 8
INNER = slice(16, -16)  # at the edges there is no telling


def scene(activity: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Frames without noise of a scene that jitters by a pixel, and how; parts of it are active in a quarter of them."""
    shifts = wander(np.random.default_rng(0), FRAMES, 1.0, 0.5).clip(1 - EDGE, EDGE - 1)
    shape = SIZE + 2 * EDGE, SIZE + 2 * EDGE
    cells = displaced(np.maximum(smooth_noise(*shape, seed=1), 1), shifts)
    when = (np.arange(FRAMES) // (FRAMES // 4) == 2)[:, None, None]
    frames = 30 + 5 * displaced(smooth_noise(*shape), shifts) + activity * when * cells
    return frames[:, EDGE:-EDGE, EDGE:-EDGE], shifts


def pattern_found(frames: np.ndarray, shifts: np.ndarray, noise: float = 1.0) -> FixedPattern | None:
    noisy = frames + noise * np.random.default_rng(1).standard_normal(frames.shape)
    recorded = torch.from_numpy(noisy.astype(np.float32))
    motion = Motion(torch.from_numpy(shifts).float()).with_full_margins()
    held = motion.hold(recorded, 0).nanmean(0).nan_to_num()
    pattern, _ = estimate_pattern(recorded.mean(0), held, motion)
    return pattern


def lines(axis: int, deviation: float) -> np.ndarray:
    """How columns (1) or rows (0) differ, of mean 0: (1, X) or (Y, 1)."""
    random = np.random.default_rng(3)
    values = deviation * random.standard_normal((1, SIZE) if axis else (SIZE, 1))
    return values - values.mean()


@pytest.mark.parametrize("axis", [0, 1])
def test_columns_or_rows_that_differ_are_found(axis: int) -> None:
    frames, shifts = scene()
    pattern = pattern_found(frames + lines(axis, 1.0), shifts)
    assert pattern is not None
    differences = (pattern.apply(torch.full((SIZE, SIZE), 30.0)) - 30).numpy()
    true = np.broadcast_to(lines(axis, 1.0), differences.shape)
    assert np.square(differences - true)[INNER, INNER].mean() < 0.1 * np.square(true)[INNER, INNER].mean()
    assert float((pattern.gain - 1).abs().max()) < 0.02


def test_a_gain_is_told_from_an_offset() -> None:
    frames, shifts = scene()
    pattern = pattern_found(frames * (1 + lines(1, 0.05)), shifts, noise=0.3)
    assert pattern is not None
    true = torch.from_numpy(np.broadcast_to(lines(1, 0.05), (SIZE, SIZE)).copy())[INNER, INNER]
    gain = pattern.gain[INNER, INNER] - 1
    assert float((gain - true).square().mean() / true.square().mean()) < 0.1


@pytest.mark.parametrize("activity", [0.0, 30.0])
@pytest.mark.parametrize("noise", [0.01, 1.0, 5.0])
def test_where_all_moves_there_is_no_pattern(activity: float, noise: float) -> None:
    """What is active while the scene happens to be somewhere is none."""
    assert pattern_found(*scene(activity), noise) is None


def test_what_wrong_displacements_leave_of_the_scene_is_no_pattern() -> None:
    frames, shifts = scene()
    assert pattern_found(frames, 0.6 * shifts, noise=0.1) is None


@given(st.floats(0.5, 1.5), st.floats(-5, 5), st.floats(0.1, 100), st.floats(-100, 100))
def test_a_pattern_is_taken_and_given_back_in_any_units(
    gain: float, offset: float, scale: float, shift: float
) -> None:
    frames = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    pattern = FixedPattern(torch.full((3, 4), gain), torch.full((3, 4), offset))
    torch.testing.assert_close(pattern.apply(pattern.remove(frames)), frames, atol=1e-4, rtol=1e-4)
    removed = pattern.rescaled(scale, shift).remove(frames * scale + shift)
    expected = pattern.remove(frames) * scale + shift
    torch.testing.assert_close(removed, expected, atol=1e-3 * (scale + abs(shift)), rtol=1e-4)


def test_a_pattern_stays_in_the_frames_and_not_on_the_canvas() -> None:
    frames, shifts = scene()
    motion = Motion(torch.from_numpy(shifts).float()).with_full_margins()
    pattern = FixedPattern(
        1 + torch.from_numpy(lines(1, 0.05)).float(), torch.from_numpy(lines(0, 1.0)).float()
    )
    clean = torch.from_numpy(frames.astype(np.float32))
    held = replace(motion, pattern=pattern).hold(pattern.apply(clean), 0)
    torch.testing.assert_close(held, motion.hold(clean, 0), equal_nan=True, atol=1e-3, rtol=1e-4)
    back = replace(motion, pattern=pattern).release(held.nan_to_num(), 0)
    torch.testing.assert_close(back, pattern.apply(motion.release(held.nan_to_num(), 0)))


def test_lines_have_in_common_what_all_of_them_tell() -> None:
    random = torch.Generator().manual_seed(0)
    shared, own = torch.randn(64, generator=random), torch.randn(4, 64, generator=random)
    assert not common_signal(own).any()
    common, dct = common_signal(shared + 0.1 * own), dct_matrix(64)
    fine = dct[4:]  # the lowest frequencies are not estimated
    assert float((fine @ (common - shared)).square().mean() / shared.square().mean()) < 0.02
    assert float((dct[:4] @ common).abs().max()) < 1e-5


def test_signals_hardly_ever_have_something_in_common_by_chance() -> None:
    """At five standard errors of each octave 2% do, since four signals tell little of their noise; at 2.5 17% would."""
    own = torch.randn(500, 4, 64, generator=torch.Generator().manual_seed(1))
    assert sum(bool(common_signal(signals).any()) for signals in own) <= 15


@pytest.mark.parametrize(("slope", "found"), [(0.49, 0.0), (0.51, 0.51), (-0.51, 0.0)])
def test_a_slope_counts_from_five_standard_errors_on(slope: float, found: float) -> None:
    """100 pixels of regressor 1 or -1, and noise of variance 1 that is orthogonal to it: the standard error is 0.1."""
    regressor = torch.tensor([1.0, -1.0]).repeat(50).view(10, 10)
    residual = slope * regressor + torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(25).view(10, 10)
    unknown = torch.full((1, 10), torch.nan)
    result = significant_slope(torch.cat([residual, unknown]), torch.cat([regressor, 9 + 0 * regressor[:1]]))
    assert float(result) == pytest.approx(found, abs=1e-6)
