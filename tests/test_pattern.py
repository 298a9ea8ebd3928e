"""What stays where it is while the scene moves is found, and nothing is where all moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moving import displaced, smooth_noise

from denoise.motion import Motion
from denoise.pattern import PARTS, Parts, in_common
from simulation.activity import wander

FRAMES, SIZE, EDGE = 200, 64, 8


def movie(pattern: np.ndarray, activity: float = 0.0, noise: float = 1.0) -> tuple[torch.Tensor, Motion]:
    """A scene that jitters by a pixel, in which one part of four is brighter by `activity`, under a pattern (Y, X)."""
    random = np.random.default_rng(0)
    by = wander(random, FRAMES, 1.0, 0.5).clip(1 - EDGE, EDGE - 1)
    scene = 3 * displaced(smooth_noise(SIZE + 2 * EDGE, SIZE + 2 * EDGE), by)
    cells = displaced(np.maximum(smooth_noise(SIZE + 2 * EDGE, SIZE + 2 * EDGE, seed=1), 1), by)
    when = (np.arange(FRAMES) // (FRAMES // 4) == 2)[:, None, None]
    frames = (scene + activity * when * cells)[:, EDGE:-EDGE, EDGE:-EDGE] + pattern
    frames = frames + noise * random.standard_normal(frames.shape)
    return torch.from_numpy(frames.astype(np.float32)), Motion(torch.from_numpy(by).float()).whole()


def parts_of(frames: torch.Tensor, motion: Motion, size: int = FRAMES) -> Parts:
    held = motion.hold(frames, 0)
    parts = Parts(FRAMES, frames[0], held.nanmean(0).nan_to_num())
    for start in range(0, FRAMES, size):
        parts.update(frames[start : start + size], held[start : start + size], start)
    return parts


@pytest.mark.parametrize("kind", ["columns", "pixels"])
def test_a_fixed_pattern_is_found_and_taken_from_the_scene(kind: str) -> None:
    random = np.random.default_rng(3)
    shape = {"columns": (1, SIZE), "pixels": (SIZE, SIZE)}[kind]
    pattern = np.broadcast_to(0.5 * random.standard_normal(shape), (SIZE, SIZE))
    frames, motion = movie(pattern)
    parts = parts_of(frames, motion)
    found = parts.pattern(motion)
    inner = (slice(16, -16), slice(16, -16))  # at the edges there is no telling
    true = torch.from_numpy(pattern - pattern.mean()).float()
    assert (found - true)[inner].square().mean() < 0.12 * true[inner].square().mean()
    without = parts_of(movie(np.zeros((SIZE, SIZE)))[0], motion)
    scene, expected = parts.scene(motion, found), without.scene(motion, torch.zeros_like(found))
    with_it = parts.scene(motion, torch.zeros_like(found))
    left, before = ((its - expected)[inner].var() for its in (scene, with_it))
    assert left < 0.5 * before


@pytest.mark.parametrize("activity", [0.0, 10.0])
@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_where_all_moves_there_is_no_pattern(activity: float, noise: float) -> None:
    """Cells that are active in one part of the movie, when the scene happened to be somewhere, are none."""
    frames, motion = movie(np.zeros((SIZE, SIZE)), activity, noise)
    assert parts_of(frames, motion).pattern(motion).square().mean() < 0.01 * noise**2


def test_a_slow_drift_does_not_tell_what_stays() -> None:
    frames, motion = movie(np.ones((1, SIZE)) * np.arange(SIZE) % 2)
    parts = parts_of(frames, motion)
    assert parts.pattern(motion).any()
    slow = Motion(torch.linspace(-3, 3, FRAMES)[:, None].expand(-1, 2)).whole()
    assert not parts.pattern(slow).any()


def test_sums_do_not_depend_on_how_frames_come() -> None:
    frames, motion = movie(np.zeros((SIZE, SIZE)))
    frames[5, 7, 9] = torch.nan
    at_once, in_blocks = parts_of(frames, motion), parts_of(frames, motion, 37)
    for one, other in zip(at_once.parts, in_blocks.parts):
        torch.testing.assert_close(one.field.value, other.field.value)
        torch.testing.assert_close(one.canvas.value, other.canvas.value)
    first = at_once.parts[0]
    assert first.frames == range(FRAMES // PARTS)
    torch.testing.assert_close(first.field.value, frames[: FRAMES // PARTS].nanmean(0))
    whole = at_once.scene(motion, torch.zeros(SIZE, SIZE))
    held = motion.hold(frames, 0).nanmean(0)
    seen = held.isfinite()
    torch.testing.assert_close(whole[seen], held[seen], atol=1e-4, rtol=1e-4)


def test_what_images_have_in_common_is_more_than_chance() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(PARTS, 40, 30, generator=random)
    assert not in_common(noise).any()
    shared = torch.randn(40, 30, generator=random)
    found = in_common(shared + 0.5 * noise)
    # a Wiener filter of a signal of variance 1 in the mean of four images of noise of variance 1/4 each
    assert float((found - shared).square().mean()) == pytest.approx(1 / 17, rel=0.3)


def test_frames_are_held_without_the_pattern_and_released_with_it() -> None:
    pattern = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    frames, motion = movie(np.zeros((SIZE, SIZE)))
    scene = motion.hold(frames, 0).nanmean(0).nan_to_num()
    for known in (motion, Motion(motion.by, margins=motion.margins, scene=scene)):
        without = known.hold(frames, 0)
        both = Motion(known.by, margins=known.margins, scene=known.scene, pattern=pattern)
        torch.testing.assert_close(both.hold(frames + pattern, 0), without, equal_nan=True, atol=1e-4, rtol=0)
        canvas = without.nan_to_num()
        torch.testing.assert_close(both.release(canvas, 0), known.release(canvas, 0) + pattern)
    scaled = both.rescaled(2.0, 3.0)
    torch.testing.assert_close(scaled.pattern, 2 * pattern)
    torch.testing.assert_close(scaled.scene, 2 * scene + 3)
