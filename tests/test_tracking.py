"""Movement is detected and estimated where there is some, and only there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from moving import (
    bent_movie,
    displaced,
    displacement_field,
    in_blocks,
    moving_movie,
    shift_odd_rows,
    smooth_noise,
)
from scipy.ndimage import gaussian_filter

from denoise.motion import Motion
from denoise.phase import estimate_phase, phase_correction
from denoise.tracking import (
    Refiner,
    Scene,
    Tracker,
    crop_to_valid,
    estimate_motion,
    held_scenes,
    known_estimator,
    moves,
    numbered_pieces,
    smaller,
    tracking_estimator,
)
from simulation.activity import wander


def test_regions_without_structure_in_one_of_the_means_are_left_out() -> None:
    """One region has structure in only a quarter of the frames, which one of the means lacks."""
    scene = smooth_noise(168, 168)
    frames = moving_movie(scene, wander(np.random.default_rng(0), 64, 1.0, 0.0), 0.0)
    frames[:, 64:96, 32:64] = 0
    frames[16:32, 64:96, 32:64] = torch.from_numpy(scene[:32, :32])
    by = estimate_motion(lambda: in_blocks(frames)).shifts
    assert by.shape in {(64, 2), (0, 2)}


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_few_active_neurons_on_a_dark_background_do_not_displace_frames(seed: int) -> None:
    """As after the background was subtracted: frames with other neurons seemed to be 10 to 30 pixels away."""
    rng = np.random.default_rng(seed)
    by = wander(rng, 100, 2.0, 0.0)
    y, x = rng.uniform(16, 144, (2, 10))
    active = rng.random((100, 10)) < 0.2
    active |= np.roll(active, 1, 0)
    rows, columns = np.mgrid[:160, :160]
    frames = rng.normal(0, 0.8, (100, 160, 160))
    for t, neuron in np.argwhere(active):
        away = (rows - y[neuron] - by[t, 0]) ** 2 + (columns - x[neuron] - by[t, 1]) ** 2
        frames[t] += 20 * np.exp(-away / 18)
    movie = torch.from_numpy(frames.astype(np.float32))
    shifts = estimate_motion(lambda: in_blocks(movie)).shifts.numpy()
    errors = (shifts - shifts.mean(0)) - (by - by.mean(0))
    assert np.sqrt(np.square(errors).mean()) < 1


def test_errors_are_smaller_where_most_regions_say_so() -> None:
    others = torch.full((3, 16), 2.0)
    errors = torch.tensor([[1.9] * 16, [0.01] + [2.2] * 15, [2.0] * 16])
    errors[0, ::2] = 1.8
    assert smaller(errors, others).tolist() == [True, False, False]
    assert smaller(torch.ones(2, 0), torch.ones(2, 0)).tolist() == [False, False]


def test_displacements_are_found_where_rows_are_out_of_phase() -> None:
    by = wander(np.random.default_rng(3), 300, 0.8, 0.0)
    frames = shift_odd_rows(moving_movie(smooth_noise(168, 168), by, 1.0), 1.3)
    phase = estimate_phase(frames.mean(0))
    assert phase == pytest.approx(1.3, abs=0.15)
    estimated = estimate_motion(
        lambda: (phase_correction(phase).hold(block, 0) for block in in_blocks(frames))
    ).shifts.numpy()
    errors = (estimated - estimated.mean(0)) - (by - by.mean(0))
    assert errors.std(0).max() < 0.05


def test_a_frame_is_not_registered_to_a_mean_that_includes_it() -> None:
    """Each of the scenes lacks a quarter of the frames: those that are registered to it."""
    frames = torch.randn(64, 40, 40, generator=torch.Generator().manual_seed(0))
    pieces = list(numbered_pieces(in_blocks(frames), 16))
    assert [(fold, start) for fold, start, _ in pieces] == [(0, 0), (1, 16), (2, 32), (3, 48)]
    first = [Scene(frames.mean(0), torch.zeros(40, 40))] * 4  # without weights nothing is displaced
    scenes, motion = held_scenes(pieces, tracking_estimator(first, 4), first[0])
    assert not motion.shifts.any()
    for fold, scene in enumerate(scenes):
        others = torch.cat([frames[: 16 * fold], frames[16 * fold + 16 :]])
        torch.testing.assert_close(scene.mean, others.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(scene.variance, others.var(0, correction=0), atol=1e-4, rtol=0)
        torch.testing.assert_close(scene.fold_means, others.unflatten(0, (3, 16)).mean(1), atol=1e-5, rtol=0)


def test_pixels_count_that_are_visible_in_half_of_the_frames() -> None:
    """Half of them two pixels down, and one far to the right: by hand."""
    frames = torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(0))
    by = torch.zeros(64, 2)
    by[::2, 0] = 2
    by[0, 1] = 3
    padded = Scene(frames.mean(0), frames.var(0)).padded(4)
    scenes, _ = held_scenes(numbered_pieces([frames], 16), known_estimator(Motion(by)), padded)
    scenes = crop_to_valid(scenes)
    assert all(scene.mean.shape == (10, 8) for scene in scenes)
    assert scenes[0].margins == ((2, 0), (0, 0))
    held = Motion(by, margins=scenes[0].margins).hold(frames, 0)[16:]
    torch.testing.assert_close(scenes[0].mean, held.nanmean(0), atol=1e-4, rtol=0)


def test_noise_of_the_scene_does_not_bias_refined_displacements() -> None:
    """The means have noise, three times as strong as their gradients."""
    rng = torch.Generator().manual_seed(0)
    scene = smooth_noise(168, 168)
    by = 0.3 * torch.randn(200, 2, generator=rng)
    frames = moving_movie(scene, by.numpy(), 0.5)
    still = torch.from_numpy(scene[20:-20, 20:-20])
    means = still + 1.0 * torch.randn(3, 128, 128, generator=rng)
    refiner = Refiner(Scene(means.mean(0), torch.ones(128, 128), fold_means=means))
    shifts, displacements = refiner.refine(frames, Motion(torch.zeros(200, 2)))
    assert displacements.shape == (200, 16, 2)
    for estimated in (shifts, displacements.mean(1)):
        slope = (estimated * by).sum(0) / by.square().sum(0)
        np.testing.assert_allclose(slope, 1, atol=0.1)


@pytest.mark.parametrize("light", [1.0, 0.9, 1.2])
def test_light_that_changes_and_a_flash_are_no_displacement(light: float) -> None:
    """Uneven light, under noise, and a neuron that shines as bright as the brightest place of the field."""
    y, x = np.mgrid[:128, :128]
    scene = smooth_noise(128, 128, sigma=2.5) + 12 * np.exp(-((y - 30) ** 2 + (x - 90) ** 2) / 60**2)
    frame = light * scene + 14 * np.exp(-((y - 90) ** 2 + (x - 40) ** 2) / 8)
    noisy = frame + 2 * np.random.default_rng(0).standard_normal((20, 128, 128))
    tracker = Tracker(torch.from_numpy(scene.astype(np.float32)), torch.full((128, 128), 4.0), edge=16)
    assert not tracker.whole_pixel_shifts(torch.from_numpy(noisy.astype(np.float32)), 16).any()


@pytest.mark.parametrize(("noise", "error"), [(0.3, 0.01), (3.0, 0.08)])
@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_displacements_are_found(noise: float, error: float, drift: float) -> None:
    by = wander(np.random.default_rng(3), 300, 0.8, drift)
    frames = moving_movie(smooth_noise(168, 168), by, noise)
    assert moves(in_blocks(frames))
    estimated = estimate_motion(partial(in_blocks, frames)).shifts.numpy()
    errors = (estimated - estimated.mean(0)) - (by - by.mean(0))
    assert errors.std(0).max() < error
    assert float(np.abs(errors).max()) < 6 * error


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_activity_and_noise_are_no_movement(noise: float) -> None:
    """Neurons get brighter and darker by as much as the scene is bright; one of them fills a ninth of the field."""
    rng = np.random.default_rng(0)
    frames = moving_movie(smooth_noise(168, 168), np.zeros((300, 2)), noise).numpy()
    y, x = np.mgrid[:128, :128]
    for radius in (20, 8, 8, 8, 5, 5):
        cell = np.exp(-(((y - rng.uniform(20, 108)) ** 2 + (x - rng.uniform(20, 108)) ** 2) / radius**2))
        course = gaussian_filter(rng.standard_normal(300), 8)
        frames += 2 * cell.astype(np.float32) * (course / course.std())[:, None, None].astype(np.float32)
    assert not moves(in_blocks(torch.from_numpy(frames)))


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(60, 64, 64),
        moving_movie(smooth_noise(168, 168), wander(np.random.default_rng(0), 64, 1.0, 0.0), 0.1)[:, :31],
        torch.randn(8, 64, 64),
        torch.full((60, 64, 64), torch.nan),
    ],
    ids=["nothing", "narrow", "short", "missing"],
)
def test_movies_without_structure_or_too_small_ones_stand_still(frames: torch.Tensor) -> None:
    assert not moves(in_blocks(frames))
    assert estimate_motion(partial(in_blocks, frames)).still
    assert estimate_phase(frames[0].nan_to_num()) == 0


def test_displacements_of_missing_frames_are_interpolated() -> None:
    by = np.stack([np.linspace(0, 3, 200), np.zeros(200)], 1)
    frames = moving_movie(smooth_noise(168, 168), by, 0.3)
    frames[100:104] = torch.nan
    estimated = estimate_motion(partial(in_blocks, frames)).shifts.numpy()
    errors = (estimated - estimated.mean(0)) - (by - by.mean(0))
    assert float(np.abs(errors).max()) < 0.05


def test_displacements_below_a_pixel_are_exact() -> None:
    """Of a scene without noise, by least squares alone: errors of a twentieth of the displacement at most."""
    scene = smooth_noise(128, 128, sigma=2.5)
    by = np.array([[0.2, 0.0], [0.0, -0.2], [0.1, 0.15]], np.float32)
    tracker = Tracker(torch.from_numpy(scene), torch.ones(128, 128), edge=4)
    displacements = tracker.displacements(torch.from_numpy(displaced(scene, by)))
    assert displacements.shape == (3, 16, 2)
    np.testing.assert_allclose(displacements.mean(1), by, atol=0.01)


def test_shifts_of_whole_pixels_are_found() -> None:
    scene = smooth_noise(128, 128, sigma=2.5)
    by = np.array([[7, -3], [-8, 8], [0, 0]], np.float32)
    tracker = Tracker(torch.from_numpy(scene), torch.ones(128, 128), edge=8)
    brighter = 1.5 * torch.from_numpy(displaced(scene, by)) + 3  # light changes, and is no movement
    assert tracker.whole_pixel_shifts(brighter - 3, 8).tolist() == by.tolist()
    assert tracker.whole_pixel_shifts(torch.from_numpy(displaced(scene, by)), 8).tolist() == by.tolist()


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_bends_of_the_field_are_found(jitter: float) -> None:
    frames, motion = bent_movie(200, 96, jitter, 0.15)
    assert moves(in_blocks(frames))
    estimated = displacement_field(estimate_motion(partial(in_blocks, frames)), 96)
    true = displacement_field(motion, 96)
    bends = true - true.mean((1, 2), keepdim=True)
    assert float((estimated - true).std()) < 0.2 * float(bends.std())


def test_rigid_movement_has_no_bends() -> None:
    frames, _ = bent_movie(200, 96, 0.5, 0.0)
    motion = estimate_motion(partial(in_blocks, frames))
    assert len(motion.shifts)
    assert not len(motion.deformation)
