"""Movement is found where there is some, held still without loss, and given back to the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import fourier_shift, gaussian_filter

from denoise.agreement import (
    LEAST,
    agreeing,
    agreement,
    alike,
    fit_weights,
    fitted,
    in_cells,
    middles_of,
    steadied,
    weighted_median,
)
from denoise.motion import STILL, TAPS, Motion, along_x, along_y, between, polynomials
from denoise.phase import in_phase, phase_of
from denoise.tracking import (
    Follower,
    Scene,
    Tracker,
    as_known,
    held_scenes,
    in_sight,
    motion_of,
    pieces,
    tracker_of,
    tracking,
)
from simulation.activity import wander


def smooth_noise(*shape: int, seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """An image without waves that are too fine to be displaced, of variance 1."""
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return (image / image.std()).astype(np.float32)


def displaced(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An image (Y, X) further on by (T, 2) pixels, exactly, as if it went on at the other side: (T, Y, X)."""
    waves = np.fft.fft2(image)
    return np.stack([np.fft.ifft2(fourier_shift(waves, its)).real for its in by]).astype(np.float32)


def seen(scene: np.ndarray, by: np.ndarray, noise: float, edge: int = 20) -> torch.Tensor:
    """The inner part of a moving scene with white noise, which new parts of it come into: (T, Y, X)."""
    frames = displaced(scene, by)[:, edge:-edge, edge:-edge]
    return torch.from_numpy(
        frames + noise * np.random.default_rng(1).standard_normal(frames.shape).astype(np.float32)
    )


def oddly(frames: torch.Tensor, phase: float) -> torch.Tensor:
    """Frames (n, Y, X) whose odd rows lie so many pixels further on, as if they went on at the other side."""
    frames = frames.clone()
    waves = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(frames.shape[2]) * phase)
    frames[:, 1::2] = torch.fft.irfft(torch.fft.rfft(frames[:, 1::2]) * waves, n=frames.shape[2])
    return frames


class Waves:
    """A scene of variance 1 that is known between pixels, too."""

    def __init__(self, seed: int, count: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.waves = rng.uniform(-0.12, 0.12, (count, 2)) * 2 * np.pi
        self.phases = rng.uniform(0, 2 * np.pi, count)

    def at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """At such places."""
        total = np.zeros(np.broadcast_shapes(y.shape, x.shape))
        for wave, phase in zip(self.waves, self.phases):
            total += np.cos(wave[0] * y + wave[1] * x + phase)
        return total * np.sqrt(2 / len(self.waves))

    def bent(self, motion: Motion, frame: int, height: int, width: int) -> np.ndarray:
        """As one frame (Y, X) of a movie that moves so has it."""
        by, bends = (its[frame].double().numpy() for its in (motion.by, motion.bends))
        rows, columns = np.mgrid[:height, :width].astype(float)
        columns[1::2] -= motion.phase
        y, x = rows, columns
        for _ in range(20):
            v = 3**0.5 * np.clip((y - (height - 1) / 2) / motion.half[0], -1, 1)
            u = 3**0.5 * np.clip((x - (width - 1) / 2) / motion.half[1], -1, 1)
            shapes = np.stack([v, u, (v * v - 1) * 5**0.5 / 2, v * u, (u * u - 1) * 5**0.5 / 2])
            away_y, away_x = np.tensordot(bends.T, shapes, 1) + by[:, None, None]
            y, x = rows - away_y, columns - away_x
        return self.at(y, x)


def in_blocks(frames: torch.Tensor, size: int = 64) -> Iterator[torch.Tensor]:
    yield from frames.split(size)


def tells_of_movement(frames: torch.Tensor) -> bool:
    tracker = tracker_of(frames[:64])
    return tracker.moves(tracker.displacements(frames))


def test_whole_pixels_are_moved_without_loss() -> None:
    frames = torch.randn(3, 9, 11)
    motion = Motion(torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 4.0]])).whole()
    assert motion.margins == ((2, 3), (4, 1))
    held = motion.hold(frames, 0)
    assert held.shape == (3, 9 + 5, 11 + 5)
    for frame, canvas, (y, x) in zip(frames, held, [(0, 0), (2, -1), (-3, 4)]):
        top, left = 2 - y, 4 - x  # what lies further on in the frame goes further back
        torch.testing.assert_close(canvas[top : top + 9, left : left + 11], frame, atol=1e-5, rtol=0)
        assert int(canvas.isnan().sum()) == canvas.numel() - frame.numel()
    torch.testing.assert_close(motion.release(held.nan_to_num(), 0), frames, atol=1e-4, rtol=0)


@given(
    st.lists(st.tuples(*[st.floats(-6, 6)] * 2), min_size=1, max_size=3),
    st.integers(44, 60),
    st.sampled_from([0.0, 0.4, -1.3, 3.0]),
)
def test_what_is_held_and_released_is_as_recorded_inside(
    by: list[tuple[float, float]], size: int, phase: float
) -> None:
    """Waves of four pixels and more; the outermost TAPS pixels have neighbours that nobody knows."""
    image = torch.from_numpy(smooth_noise(size, size + 3, sigma=2.0))
    frames = oddly(image[None].repeat(len(by), 1, 1), phase)
    motion = Motion(torch.tensor(by), phase).whole()
    back = motion.release(motion.hold(frames, 0).nan_to_num(), 0)
    assert back.shape == frames.shape
    inner = slice(TAPS, -TAPS)
    torch.testing.assert_close(back[:, inner, inner], frames[:, inner, inner], atol=0.02, rtol=0)


def test_a_part_of_a_pixel_is_as_waves_say() -> None:
    """Against the displacement of all waves of a scene that goes on at the other side."""
    scene = smooth_noise(64, 64)
    by = np.array([[0.5, 0.0], [-0.3, 1.7], [0.25, -2.5]], np.float32)
    held = Motion(torch.from_numpy(by)).hold(torch.from_numpy(displaced(scene, by)), 0)
    for canvas in held:
        np.testing.assert_allclose(canvas[16:-16, 16:-16], scene[16:-16, 16:-16], atol=0.01)


def test_a_known_scene_loses_neither_fine_structure_nor_what_is_at_the_edge() -> None:
    """White noise as a scene has the finest waves; frames cut it where it is bright."""
    scene = smooth_noise(80, 80, sigma=0.3) + np.linspace(0, 40, 80, dtype=np.float32)
    by = np.array([[0.5, -0.4], [1.7, 0.6], [-1.2, 0.5], [-1.0, -0.7]], np.float32)
    frames = torch.from_numpy(displaced(scene, by)[:, 20:-20, 20:-20])
    motion = Motion(torch.from_numpy(by)).whole()
    errors = []
    for _ in range(3):
        held = motion.hold(frames, 0)
        told = held.nanmean(0)
        back = motion.release(told.expand(4, -1, -1), 0)
        errors.append(float((back - frames).square().mean()))
        motion = replace(motion, scene=told)
    assert errors[2] < errors[1] < 0.7 * errors[0]
    rescaled = motion.rescaled(2.0, 100.0)
    torch.testing.assert_close(
        rescaled.hold(2 * frames + 100, 0), 2 * motion.hold(frames, 0) + 100, equal_nan=True
    )


def test_cells_that_one_of_the_means_cannot_tell_of_are_not_asked() -> None:
    """One cell has its structure in a quarter of the frames alone, which one of the means lacks."""
    scene = smooth_noise(168, 168)
    frames = seen(scene, wander(np.random.default_rng(0), 64, 1.0, 0.0), 0.0)
    frames[:, 64:96, 32:64] = 0
    frames[16:32, 64:96, 32:64] = torch.from_numpy(scene[:32, :32])
    by = motion_of(lambda: in_blocks(frames)).by
    assert by.shape in {(64, 2), (0, 2)}


@pytest.mark.parametrize("lines", [1, 2])  # all lines alike, and each by itself
def test_interpolation_keeps_constants_and_leaves_white_noise_white(lines: int) -> None:
    """By what becomes of a sample that is alone."""
    frames = torch.zeros(5, lines, 220)
    frames[..., 110] = 1
    places = torch.linspace(0, 1, 5)[:, None, None] + torch.arange(20, 200)
    weights = between(frames, places.expand(-1, lines, -1), 2)[:, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(5), atol=1e-3, rtol=0)
    power = weights.square().sum(1)
    assert float(power.min()) > 0.9
    assert float(power.max()) < 1 + 1e-5
    beside = (weights[:, 1:] * weights[:, :-1]).sum(1) / power
    assert float(beside.abs().max()) < 0.11


@pytest.mark.parametrize("lines", [1, 5])  # all lines alike, and each by itself
def test_samples_beyond_the_last_ones_that_tell_are_as_those(lines: int) -> None:
    """Each line has another one of five samples."""
    places = torch.tensor([-2.5, -1.5, -0.5]).expand(1, lines, -1)
    samples = torch.eye(5)[None]
    assert between(samples, places, 2).abs().amax(2).gt(1e-3).all()
    inner = between(samples, places + 4, 2, beyond=0.5)  # 1.5 to 3.5
    assert inner.abs().amax(2).gt(1e-3).tolist() == [[False, True, True, True, True]]


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    st.lists(st.floats(-0.4, 0.4), min_size=10, max_size=10),
    st.sampled_from([0.0, 1.3]),
)
def test_a_field_that_bends_is_held_and_released(by: list[float], bends: list[float], phase: float) -> None:
    """Against a scene that is known between pixels, where the displacement is told by the formula."""
    scene, (height, width) = Waves(0), (60, 70)
    motion = Motion(
        torch.tensor([by]), phase, bends=torch.tensor(bends).view(1, 5, 2), half=(height / 2, width / 2)
    ).whole()
    (top, bottom), (left, right) = motion.margins
    frame = scene.bent(motion, 0, height, width)
    canvas = scene.at(*np.mgrid[-top : height + bottom, -left : width + right])
    held, released = (
        way(torch.from_numpy(its)[None].float(), 0)[0].numpy()
        for way, its in ((motion.hold, frame), (motion.release, canvas))
    )
    inner = slice(TAPS + 6, -TAPS - 6)
    shown = held[top : top + height, left : left + width] - canvas[top : top + height, left : left + width]
    assert np.abs(shown[inner, inner]).max() < 0.02
    assert np.abs(released - frame)[inner, inner].max() < 0.02


def test_missing_voxels_stay_missing_and_spoil_no_others() -> None:
    frames = torch.from_numpy(np.stack([smooth_noise(40, 40)] * 5)) + 100
    spoilt = frames.clone()
    spoilt[2, 17] = torch.nan
    motion = Motion(torch.full((5, 2), 0.4))
    held = motion.hold(spoilt, 0)
    lost = held.isnan()
    assert lost[2, 16:18].any(0).all()
    assert int(lost.sum()) == 40
    torch.testing.assert_close(held[~lost], motion.hold(frames, 0)[~lost], atol=1e-4, rtol=0)


@pytest.mark.parametrize("phase", [2.0, -1.0])
def test_odd_rows_are_put_beside_the_others_without_loss(phase: float) -> None:
    """By whole pixels, by hand: what lies further on is put back, and what is beyond in some rows is missing."""
    frames = torch.arange(4 * 7.0).reshape(1, 4, 7)
    motion = Motion(STILL.by, phase).whole()
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
    inner = in_phase(phase).hold(frames, 0)
    torch.testing.assert_close(inner, held[:, :, before + cut : before + 7 - cut])


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("phase", [0.5, -0.8, 1.3, 3.0])
def test_rows_out_of_phase_are_found(phase: float, noise: float) -> None:
    image = torch.from_numpy(smooth_noise(128, 128))[None]
    image = oddly(image, phase) + noise * torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    assert phase_of(image[0]) == pytest.approx(phase, abs=0.03 + 0.1 * noise)


@given(st.integers(0, 2**31), st.integers(32, 130), st.floats(0.5, 8), st.floats(0, 4))
def test_rows_in_phase_are_left_alone(seed: int, size: int, sigma: float, noise: float) -> None:
    """Fine and coarse structure, bright or below the noise."""
    image = smooth_noise(size, size + 7, seed=seed, sigma=sigma)
    image = image + noise * np.random.default_rng(seed).standard_normal(image.shape)
    assert phase_of(torch.from_numpy(image.astype(np.float32))) == 0


@pytest.mark.parametrize("slant", [-2, -1, 1, 2])
def test_structure_that_slants_is_in_phase(slant: int) -> None:
    image = smooth_noise(128, 128)
    slanting = np.stack([np.roll(row, slant * number) for number, row in enumerate(image)])
    assert phase_of(torch.from_numpy(slanting)) == 0


def test_displacements_are_found_where_rows_are_out_of_phase() -> None:
    by = wander(np.random.default_rng(3), 300, 0.8, 0.0)
    frames = oddly(seen(smooth_noise(168, 168), by, 1.0), 1.3)
    phase = phase_of(frames.mean(0))
    assert phase == pytest.approx(1.3, abs=0.15)
    found = motion_of(lambda: (in_phase(phase).hold(block, 0) for block in in_blocks(frames))).by.numpy()
    away = (found - found.mean(0)) - (by - by.mean(0))
    assert away.std(0).max() < 0.05


def test_a_frame_is_not_compared_to_a_mean_that_has_it_in() -> None:
    """Each of the scenes lacks a quarter of the frames: those that are held against it."""
    frames = torch.randn(64, 40, 40, generator=torch.Generator().manual_seed(0))
    numbered = list(pieces(in_blocks(frames), 16))
    assert [(fold, start) for fold, start, _ in numbered] == [(0, 0), (1, 16), (2, 32), (3, 48)]
    about = [Scene(frames.mean(0), torch.zeros(40, 40))] * 4  # without weights nothing is displaced
    scenes, motion = held_scenes(numbered, tracking(about, 4), about[0])
    assert not motion.by.any()
    for fold, scene in enumerate(scenes):
        others = torch.cat([frames[: 16 * fold], frames[16 * fold + 16 :]])
        torch.testing.assert_close(scene.mean, others.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(scene.variance, others.var(0, correction=0), atol=1e-4, rtol=0)
        torch.testing.assert_close(scene.parts, others.unflatten(0, (3, 16)).mean(1), atol=1e-5, rtol=0)


def test_pixels_count_that_are_seen_in_half_of_the_frames() -> None:
    """Half of them two pixels down, and one far to the right: by hand."""
    frames = torch.randn(64, 8, 8, generator=torch.Generator().manual_seed(0))
    by = torch.zeros(64, 2)
    by[::2, 0] = 2
    by[0, 1] = 3
    about = Scene(frames.mean(0), frames.var(0)).wider(4)
    scenes, _ = held_scenes(pieces([frames], 16), as_known(Motion(by)), about)
    scenes = in_sight(scenes)
    assert all(its.mean.shape == (10, 8) for its in scenes)
    assert scenes[0].margins == ((2, 0), (0, 0))
    held = Motion(by, margins=scenes[0].margins).hold(frames, 0)[16:]
    torch.testing.assert_close(scenes[0].mean, held.nanmean(0), atol=1e-4, rtol=0)


def test_cells_are_cut_out_in_their_places() -> None:
    images = torch.arange(2 * 6 * 9.0).reshape(2, 6, 9)
    cells = in_cells(images)  # of 2 x 3 pixels; the last row and columns of them are beyond
    assert cells.shape == (16, 2, 6)
    torch.testing.assert_close(cells[0, 1], images[1, :2, :3].flatten())
    torch.testing.assert_close(cells[6, 0], images[0, 2:4, 6:9].flatten())
    assert not cells[3::4].any()
    assert not cells[12:].any()


def test_what_is_off_its_place_is_found_at_any_noise_of_the_scene() -> None:
    """The scene that a follower knows has noise, three times as strong as its slopes are steep: that leaves no trace."""
    rng = torch.Generator().manual_seed(0)
    scene = smooth_noise(168, 168)
    by = 0.3 * torch.randn(200, 2, generator=rng)
    frames = seen(scene, by.numpy(), 0.5)
    still = torch.from_numpy(scene[20:-20, 20:-20])
    parts = still + 1.0 * torch.randn(3, 128, 128, generator=rng)
    follower = Follower(Scene(parts.mean(0), torch.ones(128, 128), parts=parts))
    whole, cells = follower.places(frames, Motion(torch.zeros(200, 2)))
    assert cells.shape == (200, 16, 2)
    for told in (whole, cells.mean(1)):
        slope = (told * by).sum(0) / by.square().sum(0)
        np.testing.assert_allclose(slope, 1, atol=0.1)


@pytest.mark.parametrize("light", [1.0, 0.9, 1.2])
def test_light_that_changes_and_a_flash_are_no_displacement(light: float) -> None:
    """Uneven light, under noise, and a cell that shines as bright as the brightest place of the field."""
    y, x = np.mgrid[:128, :128]
    scene = smooth_noise(128, 128, sigma=2.5) + 12 * np.exp(-((y - 30) ** 2 + (x - 90) ** 2) / 60**2)
    frame = light * scene + 14 * np.exp(-((y - 90) ** 2 + (x - 40) ** 2) / 8)
    noisy = frame + 2 * np.random.default_rng(0).standard_normal((20, 128, 128))
    tracker = Tracker(torch.from_numpy(scene.astype(np.float32)), torch.full((128, 128), 4.0), edge=16)
    assert not tracker.best_fit(torch.from_numpy(noisy.astype(np.float32)), 16).any()


def test_where_nothing_moves_frames_pass_untouched() -> None:
    frames = torch.randn(4, 6, 7)
    assert STILL.hold(frames, 0) is frames
    assert STILL.release(frames, 0) is frames
    assert STILL.reach == (0, 0)


@pytest.mark.parametrize(("noise", "error"), [(0.3, 0.01), (3.0, 0.08)])
@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_displacements_are_found(noise: float, error: float, drift: float) -> None:
    by = wander(np.random.default_rng(3), 300, 0.8, drift)
    frames = seen(smooth_noise(168, 168), by, noise)
    assert tells_of_movement(frames)
    found = motion_of(partial(in_blocks, frames)).by.numpy()
    away = (found - found.mean(0)) - (by - by.mean(0))
    assert away.std(0).max() < error
    assert float(np.abs(away).max()) < 6 * error


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_activity_and_noise_are_no_movement(noise: float) -> None:
    """Some cells get brighter and darker by as much as the scene is bright; one of them fills a ninth of the field."""
    rng = np.random.default_rng(0)
    frames = seen(smooth_noise(168, 168), np.zeros((300, 2)), noise).numpy()
    y, x = np.mgrid[:128, :128]
    for radius in (20, 8, 8, 8, 5, 5):
        cell = np.exp(-(((y - rng.uniform(20, 108)) ** 2 + (x - rng.uniform(20, 108)) ** 2) / radius**2))
        course = gaussian_filter(rng.standard_normal(300), 8)
        frames += 2 * cell.astype(np.float32) * (course / course.std())[:, None, None].astype(np.float32)
    assert not tells_of_movement(torch.from_numpy(frames))


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(60, 64, 64),
        torch.randn(40, 20, 64),
        torch.randn(8, 64, 64),
        torch.full((60, 64, 64), torch.nan),
    ],
    ids=["nothing", "narrow", "short", "missing"],
)
def test_what_tells_nothing_stands_still(frames: torch.Tensor) -> None:
    assert not tells_of_movement(frames)
    assert motion_of(partial(in_blocks, frames)).still
    assert phase_of(frames[0].nan_to_num()) == 0


def test_frames_that_show_nothing_are_between_those_around_them() -> None:
    by = np.stack([np.linspace(0, 3, 200), np.zeros(200)], 1)
    frames = seen(smooth_noise(168, 168), by, 0.3)
    frames[100:104] = torch.nan
    found = motion_of(partial(in_blocks, frames)).by.numpy()
    away = (found - found.mean(0)) - (by - by.mean(0))
    assert float(np.abs(away).max()) < 0.05


def test_a_cell_that_is_alone_counts_for_little() -> None:
    """Fifteen cells tell one course, with noise of 0.1; the last one tells another, as one full of activity does."""
    rng = torch.Generator().manual_seed(0)
    course = torch.randn(400, 1, 2, generator=rng)
    told = course + 0.1 * torch.randn(400, 16, 2, generator=rng)
    told[:, 15] += 3 * torch.randn(400, 2, generator=rng)
    weights, others = agreement(told)
    assert float(weights[15].max()) < 0.01
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    assert float((others[:, 15] - (course - course.mean(0))[:, 0]).abs().mean()) < 0.03
    assert alike(told, LEAST)


def test_chance_is_filtered_out() -> None:
    """A slow course under white noise: what is left of the noise is a small part."""
    rng = torch.Generator().manual_seed(0)
    course = torch.linspace(0, 6, 500).sin()[:, None].expand(-1, 2)
    halves = course[:, None] + 0.7 * torch.randn(500, 2, 2, generator=rng)
    error = (steadied(halves.mean(1), halves) - course).square().mean().sqrt()
    assert float(error) < 0.25 * float((halves.mean(1) - course).square().mean().sqrt())


def test_what_two_halves_do_not_tell_alike_is_no_movement() -> None:
    """Noise of a pixel in either, of which nothing is in both."""
    halves = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not agreeing(halves).any()
    assert float(steadied(halves.mean(1), halves).std()) < 0.25
    assert agreeing(halves + 2 * torch.randn(500, 1, 2, generator=torch.Generator().manual_seed(1))).all()


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=9))
def test_the_weighted_median_is_that_of_repeated_values(pairs: list[tuple[int, int]]) -> None:
    values, weights = (torch.tensor(its, dtype=torch.float64) for its in zip(*pairs))
    every = sorted(value for value, count in pairs for _ in range(count))
    assert float(weighted_median(values, weights)) == every[(len(every) - 1) // 2]


def test_slopes_tell_displacements_below_a_pixel_exactly() -> None:
    """Of a scene without noise, by least squares alone: a twentieth of the displacement at most is left of it."""
    scene = smooth_noise(128, 128, sigma=2.5)
    by = np.array([[0.2, 0.0], [0.0, -0.2], [0.1, 0.15]], np.float32)
    tracker = Tracker(torch.from_numpy(scene), torch.ones(128, 128), edge=4)
    told = tracker.displacements(torch.from_numpy(displaced(scene, by)))
    assert told.shape == (3, 16, 2)
    np.testing.assert_allclose(told.mean(1), by, atol=0.01)


def test_whole_pixels_are_found_by_the_best_fit() -> None:
    scene = smooth_noise(128, 128, sigma=2.5)
    by = np.array([[7, -3], [-8, 8], [0, 0]], np.float32)
    tracker = Tracker(torch.from_numpy(scene), torch.ones(128, 128), edge=8)
    brighter = 1.5 * torch.from_numpy(displaced(scene, by)) + 3  # light changes, and is no movement
    assert tracker.best_fit(brighter - 3, 8).tolist() == by.tolist()
    assert tracker.best_fit(torch.from_numpy(displaced(scene, by)), 8).tolist() == by.tolist()


def test_interpolated_frames_are_those_of_both_axes() -> None:
    frames = torch.from_numpy(np.outer(np.arange(30.0), np.ones(20)).astype(np.float32))[None]
    there = along_y(along_x(frames, torch.tensor([[[9.5]]]), 0.0), torch.tensor([[[12.25]]]))
    assert float(there) == pytest.approx(12.25, abs=0.02)


def bent_movie(
    frames: int, size: int, jitter: float, bends: float, seed: int = 0
) -> tuple[torch.Tensor, Motion]:
    """A movie under noise of variance 1 that moves and whose field turns, is stretched and curved, and its motion."""
    rng = np.random.default_rng(seed)
    by = torch.from_numpy(wander(rng, frames, jitter, jitter)).float()
    amounts = np.stack([wander(rng, frames, bends, 0.0) for _ in range(5)], 1)
    motion = Motion(by, bends=torch.from_numpy(amounts).float(), half=(size / 2, size / 2))
    scene = Waves(seed)
    movie = np.stack([scene.bent(motion, t, size, size) for t in range(frames)]) * 2
    return torch.from_numpy(movie + rng.standard_normal(movie.shape)).float(), motion


def field_of(motion: Motion, size: int) -> torch.Tensor:
    """Displacements of every eighth pixel from the mean ones: (T, ., ., 2)."""
    places = torch.arange(0, size, 8) - (size - 1) / 2
    away = torch.stack([motion.displacement(axis, places[:, None], places) for axis in (0, 1)], 3)
    return away - away.mean(0)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_how_a_field_bends_is_found(jitter: float) -> None:
    frames, motion = bent_movie(200, 96, jitter, 0.15)
    assert tells_of_movement(frames)
    found, true = (field_of(its, 96) for its in (motion_of(partial(in_blocks, frames)), motion))
    rigid = true - true.mean((1, 2), keepdim=True)
    assert float((found - true).std()) < 0.2 * float(rigid.std())


def test_what_moves_as_a_whole_does_not_bend() -> None:
    frames, _ = bent_movie(200, 96, 0.5, 0.0)
    motion = motion_of(partial(in_blocks, frames))
    assert len(motion.by)
    assert not len(motion.bends)


def test_fits_tell_amounts_and_which_cells_err() -> None:
    """One of sixteen cells tells anything."""
    rng = torch.Generator().manual_seed(0)
    y, x = (
        its.flatten()
        for its in torch.meshgrid(torch.arange(-24, 32, 16), torch.arange(-30, 40, 20), indexing="ij")
    )
    shapes = polynomials(y, x, (32, 40))
    amounts = torch.randn(300, 6, 2, generator=rng)
    told = torch.einsum("tka,kc->tca", amounts, shapes)
    torch.testing.assert_close(fitted(told, shapes, torch.ones(16, 2)), amounts, atol=1e-4, rtol=0)
    told += 0.1 * torch.randn(told.shape, generator=rng)
    told[:, 5] = 3 * torch.randn(300, 2, generator=rng)
    weights = fit_weights(told, shapes)
    assert float(weights[5].max()) < 0.05 * float(weights[[4, 6]].min())
    torch.testing.assert_close(fitted(told, shapes, weights), amounts, atol=1.0, rtol=0)


def test_the_middle_of_a_cell_is_where_its_structure_is() -> None:
    """By hand: the outer two of three pixels, one of them three times as strong; and nothing at all."""
    strength = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    y, x = middles_of(strength, torch.tensor([-4.0, 9.0, 4.0]), torch.tensor([0.0, 9.0, 8.0]))
    assert y.tolist() == [2, 0]
    assert x.tolist() == [6, 0]


def test_polynomials_are_as_strong_and_independent() -> None:
    y, x = (
        its.flatten()
        for its in torch.meshgrid(torch.arange(-99.5, 100), torch.arange(-149.5, 150), indexing="ij")
    )
    shapes = polynomials(y, x, (100, 150))
    torch.testing.assert_close(shapes @ shapes.T / len(y), torch.eye(6), atol=1e-3, rtol=0)
