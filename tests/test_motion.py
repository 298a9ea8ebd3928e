"""Movement is held still without loss, and given back to the output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from moving import Waves, displaced, shift_odd_rows, smooth_noise

from denoise.motion import STILL, TAPS, Motion, fill_missing, interpolate, polynomials, resample_x, resample_y


def test_whole_pixels_are_moved_without_loss() -> None:
    frames = torch.randn(3, 9, 11)
    motion = Motion(torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 4.0]])).with_full_margins()
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
@example([(0.0, -1e-9)], 44, 0.0)  # 1 - 1e-9 is rounded to 1
@example([(0.0, -1e-9), (0.0, 0.0)], 44, 0.0)
def test_what_is_held_and_released_is_as_recorded_inside(
    shifts: list[tuple[float, float]], size: int, phase: float
) -> None:
    """Waves of four pixels and more; the outermost TAPS pixels have neighbours that nobody knows."""
    image = torch.from_numpy(smooth_noise(size, size + 3, sigma=2.0))
    frames = shift_odd_rows(image[None].repeat(len(shifts), 1, 1), phase)
    motion = Motion(torch.tensor(shifts), phase).with_full_margins()
    back = motion.release(motion.hold(frames, 0).nan_to_num(), 0)
    assert back.shape == frames.shape
    inner = slice(TAPS, -TAPS)
    torch.testing.assert_close(back[:, inner, inner], frames[:, inner, inner], atol=0.02, rtol=0)


def test_missing_voxels_are_filled_from_neighbouring_frames_else_from_those_around() -> None:
    frames = torch.zeros(4, 1, 9) + torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]
    frames[1, 0, 0] = torch.nan  # between 1 and 4
    frames[3, 0, 1] = torch.nan  # after 4
    frames[1:3, 0, 4] = torch.nan  # after 1, and before 8
    frames[:3, 0, 8] = torch.nan  # in frame 1 neither frame tells, only the pixels beside
    filled = fill_missing(frames)
    expected = torch.zeros(4, 1, 9) + torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]
    expected[1, 0, 0], expected[3, 0, 1], expected[1:3, 0, 4] = 2.5, 4.0, torch.tensor([1.0, 8.0])
    expected[2, 0, 8] = 8.0
    torch.testing.assert_close(filled, expected)


def test_a_part_of_a_pixel_is_as_waves_say() -> None:
    """Against the displacement of all waves of a scene that goes on at the other side."""
    scene = smooth_noise(64, 64)
    shifts = np.array([[0.5, 0.0], [-0.3, 1.7], [0.25, -2.5]], np.float32)
    held = Motion(torch.from_numpy(shifts)).hold(torch.from_numpy(displaced(scene, shifts)), 0)
    for canvas in held:
        np.testing.assert_allclose(canvas[16:-16, 16:-16], scene[16:-16, 16:-16], atol=0.01)


def test_a_known_scene_loses_neither_fine_structure_nor_what_is_at_the_edge() -> None:
    """White noise as a scene has the finest waves; frames cut it where it is bright."""
    scene = smooth_noise(80, 80, sigma=0.3) + np.linspace(0, 40, 80, dtype=np.float32)
    shifts = np.array([[0.5, -0.4], [1.7, 0.6], [-1.2, 0.5], [-1.0, -0.7]], np.float32)
    frames = torch.from_numpy(displaced(scene, shifts)[:, 20:-20, 20:-20])
    motion = Motion(torch.from_numpy(shifts)).with_full_margins()
    errors = []
    for _ in range(3):
        held = motion.hold(frames, 0)
        mean = held.nanmean(0)
        back = motion.release(mean.expand(4, -1, -1), 0)
        errors.append(float((back - frames).square().mean()))
        motion = replace(motion, scene=mean)
    assert errors[2] < errors[1] < 0.7 * errors[0]
    rescaled = motion.rescaled(2.0, 100.0)
    torch.testing.assert_close(
        rescaled.hold(2 * frames + 100, 0), 2 * motion.hold(frames, 0) + 100, equal_nan=True
    )


@pytest.mark.parametrize("lines", [1, 2])  # all lines alike, and each by itself
def test_interpolation_keeps_constants_and_leaves_white_noise_white(lines: int) -> None:
    """By what becomes of a sample that is alone."""
    frames = torch.zeros(5, lines, 220)
    frames[..., 110] = 1
    places = torch.linspace(0, 1, 5)[:, None, None] + torch.arange(20, 200)
    weights = interpolate(frames, places.expand(-1, lines, -1), 2)[:, 0]
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
    assert interpolate(samples, places, 2).abs().amax(2).gt(1e-3).all()
    inner = interpolate(samples, places + 4, 2, border=0.5)  # 1.5 to 3.5
    assert inner.abs().amax(2).gt(1e-3).tolist() == [[False, True, True, True, True]]


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    st.lists(st.floats(-0.4, 0.4), min_size=10, max_size=10),
    st.sampled_from([0.0, 1.3]),
)
def test_a_field_that_bends_is_held_and_released(
    shift: list[float], deformation: list[float], phase: float
) -> None:
    """Against a scene that is known between pixels, displaced by the formula."""
    scene, (height, width) = Waves(0), (60, 70)
    motion = Motion(
        torch.tensor([shift]),
        phase,
        deformation=torch.tensor(deformation).view(1, 5, 2),
        half_size=(height / 2, width / 2),
    ).with_full_margins()
    (top, bottom), (left, right) = motion.margins
    frame = scene.bent(motion, 0, height, width)
    canvas = scene.at(*np.mgrid[-top : height + bottom, -left : width + right])
    held, released = (
        resample(torch.from_numpy(image)[None].float(), 0)[0].numpy()
        for resample, image in ((motion.hold, frame), (motion.release, canvas))
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


def test_where_nothing_moves_frames_pass_untouched() -> None:
    frames = torch.randn(4, 6, 7)
    assert STILL.hold(frames, 0) is frames
    assert STILL.release(frames, 0) is frames
    assert STILL.max_displacement == (0, 0)


def test_interpolated_frames_are_those_of_both_axes() -> None:
    frames = torch.from_numpy(np.outer(np.arange(30.0), np.ones(20)).astype(np.float32))[None]
    interpolated = resample_y(resample_x(frames, torch.tensor([[[9.5]]]), 0.0), torch.tensor([[[12.25]]]))
    assert float(interpolated) == pytest.approx(12.25, abs=0.02)


def test_polynomials_are_as_strong_and_independent() -> None:
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(-99.5, 100), torch.arange(-149.5, 150), indexing="ij")
    )
    shapes = polynomials(y, x, (100, 150))
    torch.testing.assert_close(shapes @ shapes.T / len(y), torch.eye(6), atol=1e-3, rtol=0)
