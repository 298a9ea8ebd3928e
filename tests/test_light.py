"""Light that flickers is found, held steady, and given back; activity and noise are no flicker."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from denoise.agreement import solver
from denoise.light import STEADY, Light, Photometer, estimate_light, flicker_course, flickers, pixel_moments
from denoise.tracking import MotionDetector


def scene(size: int = 64, seed: int = 0) -> torch.Tensor:
    """An image (Y, X) of some structure on a background, positive."""
    image = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 2.0, mode="wrap")
    return torch.from_numpy((3 + image / image.std()).astype(np.float32))


def recording(course: torch.Tensor, noise: float, offset: float = 0.0) -> torch.Tensor:
    """The scene in light that differs by parts (T,), with white noise: (T, Y, X)."""
    frames = scene() * (1 + course[:, None, None]) + offset
    return frames + noise * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))


def random_course(frames: int, rms: float) -> torch.Tensor:
    return rms * torch.randn(frames, generator=torch.Generator().manual_seed(0))


def tells_of_flicker(frames: torch.Tensor) -> bool:
    return flickers(Photometer(*MotionDetector(frames[:64]).field).brightness(frames))


def light_found(frames: torch.Tensor) -> Light:
    return estimate_light(partial(frames.split, 64))


@given(
    st.lists(st.tuples(st.floats(0.25, 3), st.floats(-10, 10)), min_size=1, max_size=4),
    st.floats(0.1, 100),
    st.floats(-1000, 1000),
)
def test_what_is_held_and_released_is_as_recorded_in_any_units(
    light: list[tuple[float, float]], scale: float, shift: float
) -> None:
    frames = torch.randn(len(light) + 2, 3, 4)
    original = Light(*torch.tensor([(1.0, 0.0)] * 2 + light, dtype=torch.float64).T)
    held = original.hold(frames[2:], 2)
    assert held.dtype == torch.float32
    torch.testing.assert_close(
        held, (frames[2:] - original.offset[2:, None, None].float()) / original.gain[2:, None, None].float()
    )
    torch.testing.assert_close(original.release(held, 2), frames[2:], atol=1e-4, rtol=1e-5)
    rescaled = original.rescaled(scale, shift)
    torch.testing.assert_close(
        rescaled.hold(scale * frames + shift, 0),
        scale * original.hold(frames, 0) + shift,
        atol=1e-2 * scale + 1e-3,
        rtol=1e-3,
    )
    back = rescaled.rescaled(1 / scale, -shift / scale)
    torch.testing.assert_close(
        torch.stack([back.gain, back.offset]),
        torch.stack([original.gain, original.offset]),
        atol=1e-6,
        rtol=0,
    )


def test_frames_that_got_hardly_any_light_are_missing_and_come_out_dark() -> None:
    """A shutter is closed in every fifth frame: what stands for the scene there comes out as what was recorded."""
    course = torch.zeros(200)
    course[::5] = -1
    light = light_found(recording(course, 0.1, offset=50.0))
    held = light.hold(recording(course, 0.1, offset=50.0), 0)
    assert held[::5].isnan().all()
    assert not held[1::5].isnan().any()
    released = light.release(held.nanmean(0).expand(5, -1, -1), 0)
    torch.testing.assert_close(released[0], torch.full((64, 64), 50.0), atol=0.1, rtol=0)


def test_in_steady_light_frames_pass_untouched() -> None:
    frames = torch.randn(3, 4, 5)
    assert STEADY.hold(frames, 7) is frames
    assert STEADY.release(frames, 7) is frames
    assert STEADY.flicker(100.0) == 0


def test_flicker_is_told_by_steps_of_brightness() -> None:
    """Gains of 1.1 and 0.9 in turn, of a level of 50: steps of 10."""
    gain = torch.tensor([1.1, 0.9] * 10, dtype=torch.float64)
    assert Light(gain, torch.zeros(20, dtype=torch.float64)).flicker(50.0) == pytest.approx(10 / 2**0.5)


@pytest.mark.parametrize(("noise", "rms"), [(0.1, 0.03), (1.0, 0.03), (1.0, 0.1), (3.0, 0.1)])
def test_flicker_is_found_and_held(noise: float, rms: float) -> None:
    """What is left of it is what two numbers a frame have of the noise of 4,096 pixels, and less by the filter."""
    course = random_course(200, rms)
    frames = recording(course, noise, offset=50.0)
    assert tells_of_flicker(frames)
    light = light_found(frames)
    held = light.hold(recording(course, 0.0, offset=50.0), 0)
    assert float(held.std(0).square().mean()) < 3 * noise**2 / 4096
    assert float(light.gain.mean()) == pytest.approx(1, abs=1e-4)


def test_flicker_is_found_in_narrow_fields() -> None:
    """As of a scanner that is fast because it scans few rows."""
    course = random_course(300, 0.1)
    frames = recording(course, noise=1.0)[:, :16]
    assert tells_of_flicker(frames)
    light = light_found(frames)
    assert float((light.gain - 1 - course + course.mean()).abs().max()) < 0.06


@pytest.mark.parametrize("cut", [3.0, 4.5])
def test_flicker_is_held_where_bright_pixels_are_cut_off(cut: float) -> None:
    """Most pixels of the scene are at some time, or half of them; the others tell of the light."""
    course = random_course(200, 0.15)
    light = light_found(recording(course, 0.1).clamp(max=cut))
    torch.testing.assert_close(light.gain.float() - 1, course - course.mean(), atol=0.04, rtol=0)


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_activity_and_noise_are_no_flicker(noise: float) -> None:
    """Cells that are active in turn, and neuropil that brightens slowly all over."""
    frames = recording(0.05 * torch.sin(torch.arange(300) / 30), noise)
    rng = np.random.default_rng(2)
    for _ in range(40):
        y, x = rng.integers(4, 60, 2)
        spikes = rng.random(300) < 0.02
        trace = np.convolve(spikes, np.exp(-np.arange(50) / 10))[:300]
        frames[:, y - 3 : y + 4, x - 3 : x + 4] += torch.from_numpy(trace).float()[:, None, None]
    assert not tells_of_flicker(frames)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(100, 64, 64),
        torch.randn(100, 64, 64),
        recording(random_course(20, 0.1), 0.1),
        recording(random_course(100, 0.1), 0.1)[:, :15, :15],
        torch.full((100, 64, 64), torch.nan),
    ],
    ids=["nothing", "noise", "few frames", "few pixels", "missing"],
)
def test_what_tells_nothing_is_in_steady_light(frames: torch.Tensor) -> None:
    assert not tells_of_flicker(frames)


def test_a_movie_without_its_usual_brightness_is_in_steady_light() -> None:
    """What is left of the scene is noise: by its size, light would differ by several times itself."""
    frames = recording(random_course(300, 0.1), noise=1.0)
    around = torch.stack([frames[max(0, t - 25) : t + 26].mean(0) for t in range(300)])
    assert not light_found(frames).steady
    assert light_found(frames - around + 3).steady


def test_a_process_that_runs_through_the_field_is_no_light() -> None:
    """It flickers, in one pixel of each row and the two beside, and most cells of the field have it."""
    course = random_course(300, 0.5)
    frames = recording(torch.zeros(300), 0.3)
    lit = recording(course, 0.3)
    for row in range(64):
        frames[:, row, row - 1 : row + 2] = lit[:, row, row - 1 : row + 2]
        frames[:, row, 62 - row : 65 - row] = lit[:, row, 62 - row : 65 - row]
    assert light_found(frames).steady
    assert not light_found(lit).steady


def test_a_movie_of_one_brightness_is_in_steady_light() -> None:
    assert light_found(torch.ones(40, 40, 40)).steady


def test_frames_that_show_nothing_are_lit_as_those_beside() -> None:
    course = random_course(100, 0.1)
    course[50] = 0.9  # in a frame that was lost
    frames = recording(course, 0.1)
    frames[50] = torch.nan
    frames[20, 5] = torch.nan
    gain = light_found(frames).gain
    between = (gain[49] + gain[51]) / 2
    assert float(gain[50]) == pytest.approx(float(between), abs=0.05)
    assert float((gain[:50] - 1 - course[:50] + course[:50].mean()).abs().max()) < 0.03


def test_moments_are_those_of_all_frames() -> None:
    frames = torch.randn(50, 6, 7) + 1000
    frames[3, 2] = torch.nan
    frames[5:45:8, 0, 1] = 2000  # 5 of 50, in several blocks
    mean, variance, count, clipped = pixel_moments(frames.split(16))
    torch.testing.assert_close(mean, frames.nanmean(0))
    torch.testing.assert_close(count, frames.isfinite().sum(0).double())
    assert float(clipped[0, 1]) == pytest.approx(0.1)
    assert int(clipped.count_nonzero()) == 1
    expected = torch.from_numpy(np.nanvar(frames.numpy(), axis=0))
    torch.testing.assert_close(variance, expected, atol=1e-3, rtol=1e-3)


def test_the_solver_tells_amounts_of_patterns_exactly() -> None:
    patterns, weights = torch.randn(2, 50), torch.rand(50)
    solved = solver(patterns * weights, patterns)
    assert solved is not None
    amounts = solved @ (3 * patterns[0] - 2 * patterns[1])
    torch.testing.assert_close(amounts, torch.tensor([3.0, -2.0]), atol=1e-4, rtol=0)


def test_the_mixture_is_that_in_which_both_halves_flicker_alike() -> None:
    """Of two amounts 0.6 and 0.8 of one course; what each half has of its own is no flicker."""
    course = random_course(400, 1.0)
    shared = course[:, None, None] * torch.tensor([0.6, 0.8])
    own = torch.randn(400, 2, 2, generator=torch.Generator().manual_seed(3))
    estimate, mixture = flicker_course(shared + own)
    assert abs(float(mixture @ torch.tensor([0.6, 0.8]))) > 0.98
    assert abs(float(np.corrcoef(estimate, course)[0, 1])) > 0.75
