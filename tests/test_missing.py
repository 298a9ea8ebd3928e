"""What is no picture of the scene is found: lost rows and frames, flashes; and nothing else is."""

from itertools import product

import numpy as np
import pytest
import torch

from denoise.missing import (
    MAX_FILLED_GAP,
    WINDOW,
    blank_frames,
    dropped_rows,
    find_interleaving,
    flashing_rows,
    is_sudden,
    outliers,
    rows_to_keep,
    sampled_voxels,
    without_missing,
)
from simulation import LEVELS, challenge_scene, different_scene, noisy


def numbers(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def test_dropped_rows_but_no_border_and_no_dark_movie() -> None:
    movie = torch.rand(6, 5, 32) + 1
    movie[2, 3] = 0
    movie[4, 1] = 0
    movie[:, 0] = 0  # a border
    assert dropped_rows(movie).nonzero().tolist() == [[2, 3], [4, 1]]
    sparse = (torch.rand(50, 8, 32, generator=torch.Generator().manual_seed(0)) < 0.02).float()
    assert (sparse.amax(-1) == 0).any()  # rows without a photon, by chance
    assert not dropped_rows(sparse).any()


def test_silent_rows_of_a_background_that_was_cut_off_are_no_dropped_ones() -> None:
    """A row of cells that fire together in 4 of 40 frames, 0 everywhere else: nothing was lost."""
    movie = torch.zeros(40, 8, 256)
    movie[5:9, 3:6, ::2] = 100.0
    assert not dropped_rows(movie).any()
    movie[:, 0] = 7.0  # a border tells nothing of the background
    assert not dropped_rows(movie).any()


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_borders_that_change_from_frame_to_frame_are_lost_on_all_sides(value: float) -> None:
    """Up to 4 columns on either side and 3 rows, as registration to the nearest pixel leaves them; rarely none."""
    movie = torch.rand(60, 24, 20, generator=torch.Generator().manual_seed(0)) + 1
    for t in range(60):
        movie[t, : t % 4] = value
        movie[t, :, : max(0, t % 9 - 4)] = value
        movie[t, :, 20 - max(0, 4 - t % 9) :] = value
    values, missing = without_missing(movie.numpy().copy())
    torch.testing.assert_close(values.isnan(), movie == value)
    assert missing.voxels == 0
    movie[:, :, 0] = value  # constant in every frame
    values, _ = without_missing(movie.numpy().copy())
    assert (values[:, 3:, 0] == value).all()


def test_a_few_pixels_do_not_tell_of_lost_rows_flashes_or_planes() -> None:
    movie = torch.randn(640, 30, 2, generator=torch.Generator().manual_seed(0)).mul(1000).round()
    assert (movie[..., 0] == movie[..., 1]).any()
    assert not dropped_rows(movie).any()
    for pixels in (1, 2, 7):
        few = torch.from_numpy(
            np.random.default_rng(pixels).poisson(0.15, (64, 1, pixels)).astype(np.float32)
        )
        assert not flashing_rows(few).any()
        assert find_interleaving(few).period == 0


def test_blank_frames_but_no_silent_or_dark_ones() -> None:
    movie = torch.rand(20, 8, 32, generator=torch.Generator().manual_seed(0)) + 1
    movie[[3, 4]] = 0
    movie[7] = 5
    assert numbers(blank_frames(movie)) == [3, 4, 7]
    assert numbers(blank_frames(torch.zeros(5, 8, 32))) == [0, 1, 2, 3, 4]
    assert not blank_frames(torch.zeros(5, 7, 9)).any()  # too few voxels to tell
    cells = torch.zeros(20, 8, 32)
    cells[5:9, 3:6, ::2] = 100.0  # silent in all other frames, the background cut off
    assert not blank_frames(cells).any()
    photons = (torch.rand(50, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.02).float()
    assert (photons.flatten(1).amax(1) == 0).any()  # frames without a photon, by chance
    assert not blank_frames(photons).any()


def test_short_gaps_are_filled_and_longer_ones_stay() -> None:
    blank, flashes = torch.zeros(40, dtype=torch.bool), torch.zeros(40, 3, dtype=torch.bool)
    blank[3 : 3 + MAX_FILLED_GAP] = True
    blank[20 : 20 + MAX_FILLED_GAP + 1] = True
    flashes[35, 1] = True
    kept = rows_to_keep(blank, flashes)
    assert numbers(kept.all(1)) == [*range(20, 21 + MAX_FILLED_GAP)]
    assert kept[[10, 35]].tolist() == [[False] * 3, [False, True, False]]
    assert rows_to_keep(
        torch.ones(3, dtype=torch.bool), flashes[:3]
    ).all()  # there is nothing to fill them with


@pytest.mark.parametrize(
    ("side", "step"), [(20, 1), (63, 1), (96, 3), (128, 5), (255, 16), (256, 17), (320, 26), (512, 65)]
)
def test_what_is_looked_at_lies_in_many_columns(side: int, step: int) -> None:
    columns = torch.arange(side).expand(2, side, side)
    sampled = sampled_voxels(columns)
    assert sampled.shape == (2, -(-side * side // step))
    assert len(sampled.unique()) >= side / 3


@pytest.mark.parametrize(
    ("course", "sudden"),
    [
        ([0, 0, 2, 2, 0], True),
        ([0, 0, 2, 1.2, 0.3, 0], False),  # as it fades
        ([0, 1.1, 2, 2, 0], False),  # as it comes
        ([0, 0, -2, -2, 0], True),
    ],
)
def test_a_flash_comes_and_goes_by_half_of_its_height(course: list[float], sudden: bool) -> None:
    assert is_sudden(torch.tensor(course), 2.0, 2, 4) == sudden
    from_the_start = torch.tensor(course[2:])  # only the end tells
    assert is_sudden(from_the_start, 2.0, 0, 2) == (sudden or course[1] > 0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("where", [[0], [31], [63], [10, 11, 40], [*range(15, 64, 30)], [*range(3, 64, 4)]])
def test_flashes_are_found(level: int, where: list[int]) -> None:
    """As of a stimulus, brighter than the noise of a voxel; or darker ones."""
    clean = challenge_scene(5_000_020, 64, 64).clean()
    movie = torch.from_numpy(noisy(clean, *LEVELS[level], np.random.default_rng(0)))
    scale = float(movie.flatten().quantile(torch.tensor([0.03, 0.97])).diff())
    for height in (5.0, -5.0, 500.0):
        lit = movie / scale
        lit[where] += height
        flashes = flashing_rows(lit)
        assert numbers(flashes.all(1)) == numbers(flashes.any(1)) == where


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_flash_are_found_with_those_beside(level: int) -> None:
    """As while a laser stimulates cells for a part of a frame, from the middle of a row to that of another."""
    clean = challenge_scene(5_000_020, 64, 96).clean()
    movie = torch.from_numpy(noisy(clean, *LEVELS[level], np.random.default_rng(0)))
    movie /= float(movie.flatten().quantile(torch.tensor([0.03, 0.97])).diff())
    expected = torch.zeros(64, 96, dtype=torch.bool)
    for t in (5, 35, 36):
        movie[t, 20, 48:] += 4
        movie[t, 21:40] += 4
        movie[t, 40, :48] += 4
        expected[t, 20:41] = True
    assert torch.equal(flashing_rows(movie), expected)


def test_a_weak_flash_of_the_field_is_none_of_some_rows() -> None:
    """Rows that are brighter by chance seemed to be lit up alone."""
    clean = challenge_scene(5_000_020, 64, 96).clean()
    movie = torch.from_numpy(noisy(clean, *LEVELS[3], np.random.default_rng(0)))
    noise = float((movie[1:] - movie[:-1]).std()) / 2**0.5
    movie[15] += 1.3 * noise  # less than what is excluded
    movie /= float(movie.flatten().quantile(torch.tensor([0.03, 0.97])).diff())
    assert not flashing_rows(movie).any()


@pytest.mark.parametrize("kind", ["challenge", "axons", "one-photon", "fast-60hz"])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_activity_is_no_flash(kind: str, noise: float) -> None:
    scene = (
        challenge_scene(5_000_020, 64, 64)
        if kind == "challenge"
        else different_scene(kind, 5_000_020, 64, 64)
    )
    clean = scene.clean()
    all_at_once = np.exp(-((np.arange(64) - 30) % 64) / 3).astype(np.float32)  # three frames to fade
    step = np.where(np.arange(64) < 40, 1.0, 5.0).astype(np.float32)
    gone = np.where(np.abs(np.arange(64) - 30) <= WINDOW, 0.0, 1.0).astype(np.float32)
    for course in (np.ones(64, np.float32), 1 + 4 * all_at_once, step, gone):
        gain, read_variance = LEVELS[1]
        recording = noisy(
            clean * course[:, None, None], noise * gain, noise * read_variance, np.random.default_rng(0)
        )
        movie = torch.from_numpy(recording)
        movie /= float(movie.flatten().quantile(torch.tensor([0.03, 0.97])).diff())
        assert not flashing_rows(movie).any()


@pytest.mark.parametrize("step", [step for step in product((-1, 0, 1), repeat=3) if any(step)])
def test_a_voxel_beyond_the_range_is_lost_unless_any_of_its_26_neighbours_is_bright(
    step: tuple[int, int, int],
) -> None:
    """A neighbour is bright from a tenth of the voxel's value on; two voxels away it does not matter."""
    voxel, neighbour = np.array([5, 6, 7]), np.array([5, 6, 7]) + step
    values = torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, (12, 20, 20)).astype(np.float32))
    values[tuple(voxel)] = -100.0
    lost = torch.zeros(values.shape, dtype=torch.bool)
    lost[tuple(voxel)] = True
    assert torch.equal(outliers(values), lost)
    values[tuple(neighbour)] = 9.0
    values[tuple(voxel + 2 * np.array(step))] = 14.0
    assert torch.equal(outliers(values), lost)
    values[tuple(neighbour)] = 11.0
    assert not outliers(values).any()


@pytest.mark.parametrize("corner", list(product((0, -1), repeat=3)))
def test_voxels_in_corners_may_be_lost_too(corner: tuple[int, int, int]) -> None:
    values = torch.zeros(4, 5, 6)
    values[corner] = 1e6
    assert outliers(values)[corner]


@pytest.mark.parametrize(("count", "found"), [(1, 1), (5, 5), (6, 0)])
def test_many_voxels_beyond_the_range_are_no_errors(count: int, found: int) -> None:
    """One may be lost however small the movie, and 1 in 10,000: here 1 + 4."""
    values = torch.zeros(40, 1, 1000)
    values[::5, 0, 500][:count] = 100.0
    assert int(outliers(values).sum()) == found


def test_what_is_missing_is_counted_once() -> None:
    frames = np.random.default_rng(0).normal(0, 0.3, (40, 16, 16)).astype(np.float32)
    frames[3, 4, 5] = np.inf
    frames[5, 6] = 0.25
    frames[7] = 0.5
    frames[20] += 9
    frames[20, 3, 3] = np.nan
    frames[30, :, 0] = 0.125  # the frame was moved to the side
    values, missing = without_missing(frames.copy())
    assert (missing.voxels, missing.lines, numbers(missing.blank), numbers(missing.flashes.all(1))) == (
        1,
        2,
        [7],
        [20],
    )
    expected = np.zeros(frames.shape, bool)
    expected[3, 4, 5] = expected[5, 6] = expected[7] = expected[20] = expected[30, :, 0] = True
    np.testing.assert_array_equal(values.isnan().numpy(), expected)
    np.testing.assert_array_equal(values[~expected], frames[~expected])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_infinity_and_nan_are_told_alike(value: float) -> None:
    """A voxel, a row, and a gap of 10 frames: 1 + 16 + 10 x 256 voxels without a value, and nothing dropped."""
    frames = np.random.default_rng(0).normal(0, 0.3, (40, 16, 16)).astype(np.float32)
    frames[:, 0] = 0.25  # a border
    frames[3, 4, 5] = frames[5, 6] = frames[20:30] = value
    values, missing = without_missing(frames.copy())
    assert (missing.voxels, missing.lines, numbers(missing.blank), numbers(missing.flashes.all(1))) == (
        2577,
        0,
        [],
        [],
    )
    np.testing.assert_array_equal(values.numpy(), np.where(np.isinf(frames), np.nan, frames))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_planes_that_take_turns_are_told_by_their_number(count: int, level: int) -> None:
    planes = [challenge_scene(5_000_030 + plane, 64, 64).clean() for plane in range(count)]
    movie = np.stack([planes[t % count][t] for t in range(64)])
    frames = torch.from_numpy(noisy(movie, *LEVELS[level], np.random.default_rng(0)))
    assert find_interleaving(frames).period == count
    assert find_interleaving(frames[::count]).period == 0


@pytest.mark.parametrize("frames", [1, 3, 8, 64])
def test_noise_and_odd_voxels_do_not_take_turns(frames: int) -> None:
    movie = torch.randn(frames, 20, 30, generator=torch.Generator().manual_seed(0))
    movie.view(-1)[torch.randint(0, movie.numel(), (10,), generator=torch.Generator().manual_seed(1))] = 1e6
    assert find_interleaving(movie).period == 0


def test_light_that_flickers_does_not_take_turns() -> None:
    """Where it is more than the noise, frames of about the same light are alike, and their neighbours are not."""
    light = 1 + 0.3 * torch.randn(64, 1, 1, generator=torch.Generator().manual_seed(5))
    frames = light * torch.from_numpy(challenge_scene(5_000_030, 64, 64).clean())
    steps = [float((frames[lag:] - frames[:-lag]).square().mean()) for lag in range(1, 13)]
    assert min(steps) < 0.8 * steps[0]
    assert (
        find_interleaving(
            frames + torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
        ).period
        == 0
    )


def test_frames_that_are_dark_at_intervals_do_not_take_turns() -> None:
    """Every seventh frame got no light, which too few cells show to tell that it flickers."""
    clean = different_scene("axons", 7_100_011, 64, 64).clean()
    clean[6::7] = 0
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(9))
    assert find_interleaving(torch.from_numpy(movie)).period == 0
