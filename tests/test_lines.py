"""Noise that the voxels of a row share is found by what it is, taken out, and nothing else is taken for it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.lines import LineNoise, estimate_line_noise, estimate_row_and_column_noise, extract_noise
from denoise.waves import dct_matrix, octaves
from simulation import LEVELS, challenge_scene, noisy


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cleaned(frames: torch.Tensor, lines: LineNoise) -> torch.Tensor:
    offsets = lines.offsets(lines.means(frames, frames.nanmean(0)))
    return frames - offsets.unsqueeze(-1).movedim(1, lines.axis)


@pytest.mark.parametrize("axis", [1, 2])
def test_what_lines_share_is_measured_and_taken_out(axis: int) -> None:
    own, shared = noise(200, 40, 160), 0.5 * noise(200, 40, seed=1)
    image = 5 * noise(40, 160, seed=2)  # stands still
    frames = (image + own + shared.unsqueeze(-1)).movedim(1, axis)
    lines = estimate_line_noise(frames[:64], axis)
    assert lines.share == pytest.approx(0.25 / 1.25, rel=0.15)
    assert lines.variance == pytest.approx(0.25, rel=0.15)
    assert estimate_line_noise(frames[:64], 3 - axis).variance == 0
    left = (cleaned(frames, lines).movedim(axis, 1) - image - own).mean(2)  # (T, lines)
    # what cannot be estimated: the mean of the voxels' own noise in a line, 1 / 160, and what a line has in all frames
    bound = 0.25 / 160 / (0.25 + 1 / 160) + 0.25 / 200
    assert 0.9 * bound < float(left.square().mean()) < 1.4 * bound


def test_what_rows_and_columns_share_is_taken_out_whole() -> None:
    """The mean of a frame has both in it: as light it would stay, and seem to flicker."""
    own = noise(200, 40, 160)
    rows, columns = 0.5 * noise(200, 40, 1, seed=1), 0.6 * noise(200, 1, 160, seed=2)
    frames = own + rows + columns
    left = frames
    for lines in estimate_row_and_column_noise(frames[:64]):
        offsets = lines.offsets(lines.means(frames, frames.mean(0)))
        left = left - offsets.unsqueeze(-1).movedim(1, lines.axis)
    left = left - own
    added = (frames - own).mean((1, 2)).square().mean()
    assert left.mean((1, 2)).square().mean() < 0.05 * added
    assert left.square().mean() < 1.3 * (1 / 160 + 1 / 40)  # what voxels' own noise brings to lines' means


def test_missing_voxels_stay_missing_and_say_nothing() -> None:
    frames = noise(64, 30, 90) + 0.5 * noise(64, 30, 1, seed=1)
    lost = frames.clone()
    lost[:, :, :20] = torch.nan  # a border that was never recorded
    lost[7, 3] = torch.nan  # a dropped row
    lines = estimate_line_noise(lost, 1)
    result = cleaned(lost, lines)
    assert torch.equal(result.isnan(), lost.isnan())
    expected = cleaned(frames[..., 20:], estimate_line_noise(frames[..., 20:], 1))
    others = torch.ones(64, 30, dtype=torch.bool)
    others[7, 3] = False
    # the dropped row leaves a trace in its neighbours' frequencies, far below the noise of a line
    assert float((result[..., 20:] - expected)[others].abs().max()) < 0.1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("event", ["none", "flicker", "bleaching", "shaking", "jump"])
def test_light_that_changes_is_no_line_noise(level: int, event: str) -> None:
    clean = challenge_scene(5_000_010, 64, 128).clean()
    rng = np.random.default_rng(level)
    if event == "flicker":
        clean = clean * rng.uniform(0.7, 1.3, (64, 1, 1)).astype(np.float32)
    elif event == "bleaching":
        clean = clean * np.exp(-np.arange(64, dtype=np.float32) / 30)[:, None, None]
    elif event == "shaking":
        clean = np.stack([np.roll(frame, rng.integers(-1, 2), 0) for frame in clean])
    elif event == "jump":
        clean[30:] = np.roll(clean[30:], (3, 2), (1, 2))
    for gain, read_variance in (LEVELS[level], (0.01, 0.1)):  # and hardly any noise
        frames = torch.from_numpy(noisy(clean, gain, read_variance, rng))
        assert [estimate_line_noise(frames, axis).variance for axis in (1, 2)] == [0, 0]


def test_noise_that_neighbours_share_is_no_line_noise() -> None:
    white = noise(64, 64, 137)
    assert estimate_line_noise(white.unfold(2, 8, 1).mean(-1), 1).variance == 0  # over runs of eight


def test_light_stays() -> None:
    """A cell that is active for 20 frames, in a narrow field: little of its light is taken for line noise."""
    light = torch.zeros(300, 40, 60)
    light[100:120, 12:24, 20:32] = 10
    frames = light + noise(300, 40, 60) + 0.5 * noise(300, 40, 1, seed=1)
    lines = estimate_line_noise(frames[:64], 1)
    assert lines.variance > 0
    change = lines.offsets(
        lines.means(light, torch.zeros(40, 60)) + lines.means(noise(300, 40, 60), torch.zeros(40, 60))
    )
    # what it adds to the means of its rows
    added = float(light[105:115, 14:22].mean((0, 2)).mean() * 12 / 60)
    assert float(change[105:115, 14:22].mean()) < 0.2 * added


@given(st.integers(1, 70))
def test_waves_are_orthonormal_and_each_has_an_octave(count: int) -> None:
    dct = dct_matrix(count)
    torch.testing.assert_close(dct @ dct.T, torch.eye(count), atol=1e-5, rtol=0)
    torch.testing.assert_close(dct[0], torch.full((count,), count**-0.5))
    expected = [0] + [int(np.log2(n)) + 1 for n in range(1, count)]
    assert octaves(count).tolist() == expected


@given(st.integers(2, 40), st.integers(16, 40), st.floats(0.1, 10), st.integers(0, 99))
def test_no_more_is_taken_out_than_there_is(frames: int, lines: int, variance: float, seed: int) -> None:
    means = noise(frames, lines, seed=seed)
    removed = extract_noise(means, variance, variance)
    assert float(removed.square().sum()) <= float(means.square().sum()) * (1 + 1e-5)
    torch.testing.assert_close(removed.mean(0), torch.zeros(lines), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 40, 60), (64, 15, 60), (64, 40, 39), (64, 16, 40), (3, 1, 1)])
def test_small_movies(shape: tuple[int, int, int]) -> None:
    frames = noise(*shape) + 3 * noise(shape[0], shape[1], 1, seed=1)
    lines = estimate_line_noise(frames, 1)
    means = lines.means(frames, frames.mean(0))
    assert (lines.variance > 0) == (shape == (64, 16, 40))
    assert lines.offsets(means).shape == means.shape == ((64, 16) if lines.variance else (shape[0], 0))
