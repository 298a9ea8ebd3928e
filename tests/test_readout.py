"""What is kept of a prediction, against answers worked out by hand, closed forms and noise alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise.context import Context, ContextSums
from denoise.readout import (
    BLOCK_OVERLAP,
    BLOCK_SIZE,
    COURSE_WINDOW,
    FAINT_PILOT,
    FOOTPRINT_WINDOW,
    HALF_COURSE,
    IMAGE_WINDOW,
    MAX_COURSE_STEP,
    REJECTED_MISFIT,
    TRUSTED_MISFIT,
    Readout,
    Window,
    add_back_residual,
    clean_courses,
    clean_image,
    clean_where_trusted,
    clean_windows,
    correct_pilot,
    excess_variance,
    noise_edge,
    noise_variance_ratio,
    quartimax,
    significant_part,
    smooth_noise,
    strongest_patterns,
)
from denoise.tiling import tile_axis, tile_grid
from denoise.waves import dct_matrix


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Smoothing:
    """Stands for the networks: the mean of nine neighbours, of three frames."""

    def clean_courses(self, courses: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool1d(courses[:, None], 3, 1, 1, count_include_pad=False)[:, 0]

    def clean_footprints(
        self, footprints: Sequence[torch.Tensor], places: Sequence[Sequence[slice]]
    ) -> list[torch.Tensor]:
        pool = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        return [pool(images[:, None])[:, 0] for images in footprints]


SMOOTHING = Smoothing()


def cell(frames: int = 200, side: int = 32) -> torch.Tensor:
    """One cell that is active slowly: (T, Y, X), of temporal mean 0."""
    t, y, x = torch.arange(frames), torch.arange(side), torch.arange(side)
    course = torch.sin(2 * math.pi * t / 100)
    blob = torch.exp(-((y[:, None] - side / 2) ** 2 + (x - side / 2) ** 2) / 18)
    movie = course[:, None, None] * blob
    return movie - movie.mean(0)


def context_of(movie: torch.Tensor) -> Context:
    sums = ContextSums(movie.mean(0))
    sums.update(movie)
    return sums.context()


# ---- patterns


def test_the_edge_of_a_block() -> None:
    """Of 32 x 32 pixels, noise smooth over 16 frames and 20 pixels; of one pixel, over half as many frames."""
    assert noise_edge(1600, BLOCK_SIZE, BLOCK_SIZE) == pytest.approx(10 + BLOCK_SIZE / 20**0.5)
    assert noise_edge(33, 1, 1) == pytest.approx(2 + 1)
    assert noise_edge(500, 1, BLOCK_SIZE) > noise_edge(
        500, 5, 5
    )  # a line of 32 pixels is not one smooth pixel


def test_a_pattern_gets_the_amplitude_that_the_recording_has() -> None:
    """The prediction is a tenth too low; the recording has no noise."""
    truth = 20 * cell()
    kept = significant_part(0.9 * truth, truth, 1.0, SMOOTHING)
    strength = float(truth.norm())
    assert 0.99 < float(kept.norm()) / strength <= 1
    cosine = float((kept * truth).sum()) / float(kept.norm()) / strength
    assert cosine == pytest.approx(1, abs=1e-4)


def test_a_signal_in_noise_comes_out_closer_than_predicted() -> None:
    truth, noise = 3 * cell(), normal(200, 32, 32)
    smooth = torch.nn.functional.avg_pool3d(noise[None, None], (9, 5, 5), 1, (4, 2, 2))[0, 0]
    prediction = 0.8 * truth + smooth
    kept = significant_part(prediction.clone(), truth + noise, 1.0, SMOOTHING)
    assert float((kept - truth).square().mean()) < 0.2 * float((prediction - truth).square().mean())


@pytest.mark.parametrize("shape", [(40, 16, 24), (200, 32, 32), (100, 50, 41)])
def test_noise_alone_leaves_nothing(shape: tuple[int, int, int]) -> None:
    """What a smoothing network makes of noise does not stand out of it."""
    noise = normal(*shape)
    smooth = torch.nn.functional.avg_pool3d(noise[None, None], (17, 5, 5), 1, (8, 2, 2))[0, 0]
    assert not significant_part(smooth, noise, 1.0, SMOOTHING).any()


@pytest.mark.parametrize("shape", [(500, 1, 96), (200, 96, 1), (64, 1, 32)])
def test_noise_alone_leaves_nothing_in_a_line(shape: tuple[int, int, int]) -> None:
    """There a network smooths over fewer pixels, and over fewer frames."""
    noise = normal(*shape)
    size = [9, *(min(5, side) for side in shape[1:])]
    smooth = torch.nn.functional.avg_pool3d(noise[None, None], size, 1, [side // 2 for side in size])[0, 0]
    assert not significant_part(smooth, noise, 1.0, SMOOTHING).any()


def test_a_prediction_without_any_support_is_dropped() -> None:
    assert not significant_part(cell(), 0.3 * normal(200, 32, 32), 1.0, SMOOTHING).any()
    assert not significant_part(10 * cell(), -10 * cell(), 1.0, SMOOTHING).any()


def test_more_patterns_than_are_looked_for_at_first_are_all_found() -> None:
    strong = 100 * normal(64, 32, 32)
    strong -= strong.mean(0)
    kept = significant_part(strong.clone(), strong, 1.0, SMOOTHING)
    assert float((kept - strong).norm() / strong.norm()) < 0.01


def test_the_strongest_patterns_are_those_of_the_decomposition() -> None:
    matrix = normal(60, 8, seed=1) * torch.tensor([50.0, 30, 20, 10, 5, 2, 1, 0.5]) @ normal(8, 300, seed=2)
    _, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    u, v, found = strongest_patterns(matrix, matrix, 8)
    assert torch.allclose(found, values[:8], rtol=1e-3)
    assert torch.allclose((u * found) @ v.mT, matrix, atol=1e-2 * float(values[0]))


def test_blocks_make_no_seams_and_no_block_knows_of_those_far_away() -> None:
    far = torch.zeros(200, 32, 96)
    far[:, :, :32] = 20 * cell()
    kept = significant_part(far, far, 1.0, SMOOTHING)
    assert not kept[:, :, 64:].any()
    assert float((kept - far).square().mean()) < 1e-3 * float(far.square().mean())


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70))
def test_any_size(frames: int, height: int, width: int) -> None:
    movie = normal(frames, height, width)
    kept = significant_part(movie, movie, 1.0, SMOOTHING)
    assert kept.shape == movie.shape
    assert kept.isfinite().all()


def test_the_same_at_every_call() -> None:
    movie = normal(64, 40, 40)
    torch.manual_seed(1)
    first = significant_part(5 * movie, 5 * movie, 1.0, SMOOTHING)
    assert first.any()
    torch.manual_seed(2)
    assert torch.equal(first, significant_part(5 * movie, 5 * movie, 1.0, SMOOTHING))


def test_blocks_are_blended_as_if_each_had_the_whole_prediction_before_it() -> None:
    """The answer takes the prediction's place while blocks below still read it."""
    movie = normal(60, 77, 45)
    movie += 20 * torch.nn.functional.pad(cell(), (6, 7, 20, 25))[:60]
    prediction = torch.nn.functional.avg_pool3d(movie[None, None], 5, 1, 2)[0, 0]
    expected = torch.zeros_like(movie)
    for where, weights in tile_grid([tile_axis(size, BLOCK_SIZE, BLOCK_OVERLAP, 1) for size in (77, 45)]):
        place = (slice(None), *where)
        block = significant_part(prediction[place].clone(), movie[place], 1.0, SMOOTHING)
        expected[place] += block * torch.from_numpy(weights)
    assert expected.any()
    torch.testing.assert_close(
        significant_part(prediction, movie, 1.0, SMOOTHING), expected, rtol=1e-4, atol=1e-4
    )


def test_noise_that_rows_share_counts_as_larger() -> None:
    white = normal(64, 64, 64)
    along_rows = (white + white.roll(1, -1)) / math.sqrt(2)  # neighbours along x: correlation 1/2
    assert smooth_noise(white) == pytest.approx(1, abs=0.05)
    assert smooth_noise(along_rows) == pytest.approx(math.sqrt(2), abs=0.05)


def test_fast_changes_and_fine_structure_are_read_in_the_recording() -> None:
    """The prediction holds a cell's footprint and time course, both blurred."""
    t, y, x = torch.arange(256), torch.arange(32), torch.arange(32)
    course = 30 * torch.exp(-(t % 64) / 8.0) * (t % 64 > 0)
    blob = torch.exp(-((y[:, None] - 16) ** 2 + (x - 16) ** 2) / 12)
    truth = course[:, None, None] * blob
    truth -= truth.mean(0)
    blurred = torch.nn.functional.avg_pool3d(truth[None, None], (9, 5, 5), 1, (4, 2, 2))[0, 0]
    blurred -= blurred.mean(0)
    kept = significant_part(blurred.clone(), truth + normal(256, 32, 32), 1.0, SMOOTHING)
    assert float((kept - truth).square().mean()) < 0.1 * float((blurred - truth).square().mean())


# ---- cleaning by a pilot


def test_a_coefficient_is_shrunk_to_its_share_of_signal() -> None:
    """One window, one pattern in it of strength 3 in the pilot: its share is 9 / (9 + 1)."""
    pattern = torch.outer(dct_matrix(8)[2], dct_matrix(8)[5])
    cleaned = clean_windows(5 * pattern[None], 3 * pattern[None], Window((8, 8), (8, 8)))
    assert torch.allclose(cleaned, 5 * 0.9 * pattern[None], atol=1e-5)


def test_noise_that_no_pilot_expects_is_removed() -> None:
    noisy, nothing = normal(2, 40, 33), torch.zeros(2, 40, 33)
    assert not clean_windows(noisy, nothing, IMAGE_WINDOW).any()


@given(
    st.sampled_from([IMAGE_WINDOW, FOOTPRINT_WINDOW, COURSE_WINDOW]),
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 40),
)  # fmt: skip
def test_what_the_pilot_is_sure_of_is_kept_at_any_size(
    window: Window, images: int, height: int, width: int
) -> None:
    noisy = normal(images, height, width)
    assert torch.allclose(
        clean_windows(noisy, torch.full_like(noisy, 1e6), window).isfinite(), torch.tensor(True)
    )
    kept = clean_windows(1e4 * noisy, 1e4 * noisy, window)
    assert float((kept - 1e4 * noisy).abs().max()) < 10


def test_the_stronger_a_time_course_the_more_counts_its_network() -> None:
    """The network adds one: half of that reaches a course of power HALF_COURSE, in noise of 1, that the filter keeps."""

    class Adds(Smoothing):
        def clean_courses(self, courses: torch.Tensor) -> torch.Tensor:
            return courses + 1

    certain = torch.full((1, 256), 1000.0)  # to the filter
    for power, share in ((0.0, 0.0), (HALF_COURSE, 0.5), (9 * HALF_COURSE, 0.9)):
        course = torch.full((1, 256), math.sqrt(power + 1))
        moved = clean_courses(course, certain, Adds()) - course
        torch.testing.assert_close(moved, torch.full_like(moved, share), rtol=1e-3, atol=1e-3)


def test_a_network_that_errs_moves_a_time_course_by_no_more_than_noise_does() -> None:
    """A flash of one frame, which a network takes for noise, keeps its height."""
    flash = torch.zeros(1, 128)
    flash[0, 64] = 1000

    class Flat(Smoothing):
        def clean_courses(self, courses: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(courses)

    filtered = clean_windows(flash[..., None], flash[..., None], COURSE_WINDOW)[..., 0]
    moved = clean_courses(flash, flash, Flat()) - filtered
    assert float(moved.abs().max()) <= MAX_COURSE_STEP


def test_images_are_cleaned_one_by_one() -> None:
    noisy, pilots = normal(3, 20, 31), normal(3, 20, 31, seed=1)
    cleaned = clean_windows(noisy, pilots, IMAGE_WINDOW)
    for one, image, pilot in zip(cleaned, noisy, pilots):
        assert torch.allclose(clean_windows(image[None], pilot[None], IMAGE_WINDOW)[0], one, atol=1e-5)


def test_what_is_expected_is_put_right_by_what_is_seen_the_more_the_larger_it_is() -> None:
    """By hand: of a strong window 40 is moved half way and 120 three quarters; a faint window counts by half."""
    strong = torch.tensor([[[40.0], [120], [0]]])
    put_right, weight = correct_pilot(strong + 10, strong)
    torch.testing.assert_close(put_right.flatten(), torch.tensor([45.0, 127.5, 0]), rtol=1e-4, atol=1e-4)
    assert float(weight) == pytest.approx(1, abs=1e-4)
    faint = torch.full((1, 3, 1), FAINT_PILOT)
    put_right, weight = correct_pilot(faint, faint)
    torch.testing.assert_close(put_right, faint * (0.5 + 0.5 * FAINT_PILOT / (FAINT_PILOT + 40) * 0.5))
    assert float(weight) == pytest.approx(2)
    assert not correct_pilot(strong, torch.zeros_like(strong))[0].any()


def test_a_pilot_is_trusted_as_long_as_it_misses_the_image_by_no_more_than_noise() -> None:
    image = 100 + normal(1, 40, 40)
    near, far = image - TRUSTED_MISFIT**0.5, image - REJECTED_MISFIT**0.5
    trusted = clean_windows(image, near, IMAGE_WINDOW, correct_pilot)
    fallback = normal(1, 40, 40, seed=1)
    torch.testing.assert_close(clean_where_trusted(image, near, fallback, IMAGE_WINDOW), trusted)
    torch.testing.assert_close(
        clean_where_trusted(image, far, fallback, IMAGE_WINDOW), clean_windows(image, fallback, IMAGE_WINDOW)
    )


def test_mixed_footprints_of_cells_are_told_apart() -> None:
    """Three cells that lie apart, of unlike brightness, mixed by a random rotation."""
    cells = torch.zeros(32, 32, 3)
    for n, (y, x) in enumerate([(2, 3), (10, 20), (22, 6)]):
        cells[y : y + 8, x : x + 8, n] = n + 2
    mixing = torch.linalg.qr(normal(3, 3)).Q
    mixed = cells.flatten(0, 1) @ mixing
    turn = quartimax(mixed)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3), atol=1e-5, rtol=0)
    apart = (mixed @ turn).abs()
    assert float(apart.sort(1).values[:, :-1].max()) < 0.02  # each pixel belongs to one of them
    assert quartimax(torch.ones(4, 1)).abs().tolist() == [[1]]


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 30))
def test_bands_of_an_image_have_no_seams(height: int, width: int, band: int) -> None:
    noisy = 3 * normal(height, width)
    pilot = noisy + normal(height, width, seed=1)
    image, half_pilot = noisy[None] / 2, pilot[None] / 2
    whole = 2 * clean_where_trusted(image, half_pilot, (image + half_pilot) / 2, IMAGE_WINDOW)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("denoise.readout.BAND_PIXELS", band * width)
        assert torch.allclose(clean_image(noisy, pilot, 2.0), whole, atol=1e-4)


def test_the_cosine_transform_is_orthonormal() -> None:
    assert torch.allclose(dct_matrix(8) @ dct_matrix(8).mT, torch.eye(8), atol=1e-6)
    assert torch.allclose(dct_matrix(2), torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2), atol=1e-6)


# ---- the mean image


def test_an_image_is_cleaned_by_its_pilot() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(37.0), indexing="ij")
    truth = 20 * torch.sin(y / 5) * torch.cos(x / 7)
    cleaned = clean_windows((truth + normal(48, 37))[None], truth[None], IMAGE_WINDOW)[0]
    assert (
        float((cleaned - truth).square().mean()) < 0.15
    )  # of 1: six or seven patterns of 64 are needed here


@given(st.integers(1, 20), st.integers(1, 20))
def test_an_image_of_any_size_without_detail_keeps_its_brightness(height: int, width: int) -> None:
    image = torch.full((height, width), 7.0)
    assert torch.allclose(clean_windows(image[None], image[None], IMAGE_WINDOW)[0], image, rtol=0.03)


# ---- giving back


def test_a_cell_that_errs_by_as_much_as_the_noise_is_moved_as_inverse_variances_say() -> None:
    """Residual variance 4 times the noise's: after the tolerance of 1.2, a share of 1 - 1.2 / 4 = 0.7."""
    frames = torch.zeros(16, 64, 64)
    # as Gaussian noise of variance 4 on average, but smooth
    recording = 2 * math.sqrt(2 / math.pi) * normal(16, 1, 1).sign().expand(-1, 64, 64)
    gain = torch.zeros(64, 64)
    assert excess_variance(frames, recording, gain)[0, 0, 0] == pytest.approx(4 / 1.2, rel=1e-4)
    assert torch.allclose(
        add_back_residual(frames.clone(), recording, gain, [torch.ones_like(gain)]),
        0.7 * recording,
        atol=1e-4,
    )


def test_noise_alone_is_not_given_back_and_one_odd_voxel_opens_no_cell() -> None:
    frames, recording, gain = torch.zeros(64, 40, 40), normal(64, 40, 40), torch.zeros(40, 40)
    recording[30, 20, 20] = 1e6
    assert not add_back_residual(frames, recording, gain, [torch.ones_like(gain)]).any()


def test_noise_that_grows_with_brightness_is_expected_to() -> None:
    frames = torch.full((32, 16, 16), 8.0)
    recording = frames + 3 * normal(32, 16, 16)  # variance 9 = 1 + gain * 8
    assert torch.equal(
        add_back_residual(frames.clone(), recording, torch.ones(16, 16), [torch.ones(16, 16)]), frames
    )


def test_noise_that_is_louder_than_its_model_is_no_error() -> None:
    """In a corner, as where light was uneven and divided out; in half of the frames, as where an offset drifts."""
    frames, gain = torch.zeros(128, 64, 64), torch.zeros(64, 64)
    recording = normal(128, 64, 64)
    recording[:, 32:, 32:] *= 3
    recording[64:] *= 2
    assert not add_back_residual(frames.clone(), recording, gain, [torch.ones_like(gain)] * 4).any()
    light = 2 * normal(128, 1, 1, seed=1)  # which the network missed
    given = add_back_residual(frames, recording + light, gain, [torch.ones_like(gain)] * 4)
    assert float((given - light)[:, :16, :16].square().mean()) < 0.6 * 4


def test_a_shutter_that_is_closed_at_first_tells_nothing_of_the_noise() -> None:
    frames, gain = torch.zeros(200, 64, 64), torch.zeros(64, 64)
    recording = normal(200, 64, 64)
    for dark in (-3.0, -3 + 0.01 * normal(70, 64, 64)):  # all alike, or nearly so
        recording[:70] = dark
        given = add_back_residual(frames.clone(), recording, gain, [torch.ones_like(gain)] * 4)
        assert given.isfinite().all()
        assert not given[80:].any()


def test_the_noise_of_a_movie_that_grows_brighter_is_not_overestimated() -> None:
    """After a step of the brightness: its variance is 0.2 in the dim half, 1.8 in the bright one."""
    gain = torch.full((64, 64), 0.8)
    frames = torch.cat([torch.full((64, 64, 64), -1.0), torch.full((64, 64, 64), 1.0)])
    recording = frames + (1 + gain * frames).sqrt() * normal(128, 64, 64)
    assert torch.equal(add_back_residual(frames.clone(), recording, gain, [torch.ones_like(gain)]), frames)


def test_smooth_noise_is_not_given_back_and_smooth_errors_are() -> None:
    """Registration makes noise smooth everywhere; what the network misses is smooth where there is a signal."""
    noise, gain = normal(128, 65, 65), torch.zeros(64, 64)
    smooth = (noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]) / 2
    frames = torch.zeros(128, 64, 64)
    assert not add_back_residual(frames.clone(), smooth, gain, [torch.ones_like(gain)]).any()
    missed = 0.2 * noise[:, 1:, 1:]  # the noise model took the change of a cell from frame to frame for noise
    missed[:, 8:24, 8:24] += 3 * normal(128, 1, 1, seed=1)
    given = add_back_residual(frames, missed, gain, [torch.ones_like(gain)])
    assert float((given - missed)[:, 8:24, 8:24].square().mean()) < 0.1 * float(
        missed[:, 8:24, 8:24].square().mean()
    )


def test_what_was_not_recorded_tells_nothing_of_the_noise() -> None:
    """In half of the field the recording is what was predicted, without noise: that is no reason to doubt the rest."""
    recording, valid = normal(64, 64, 64), torch.ones(64, 64)
    recording[:, :, 20:52] = valid[:, 20:52] = 0
    frames, gain = torch.zeros(64, 64, 64), torch.zeros(64, 64)
    assert not add_back_residual(frames.clone(), recording, gain, [valid]).any()
    masked, unmasked, nothing_valid = (
        noise_variance_ratio(recording, torch.ones(64, 64, 64), mask)
        for mask in (valid, torch.ones(64, 64), torch.zeros(64, 64))
    )
    assert unmasked < 0.6
    assert 0.9 < masked <= 1
    assert nothing_valid == 1


def test_a_frame_that_the_network_has_missed_is_given_back() -> None:
    frames, recording, gain = torch.zeros(64, 64, 64), normal(64, 64, 64), torch.zeros(64, 64)
    recording[30] += 10
    given = add_back_residual(frames, recording, gain, [torch.ones_like(gain)])
    assert float((given[30] - 10).square().mean()) < 1.1  # the noise of the recording, and little more
    assert float(given[20].abs().max()) == 0


# ---- a movie as a whole


def test_missing_voxels_take_what_was_predicted() -> None:
    truth = 20 * cell()
    recording = truth + 100 + normal(200, 32, 32)
    context = context_of(recording)
    residual = context.whiten(recording)
    readout = Readout(context, torch.zeros(1, 32, 32), SMOOTHING)
    prediction = truth / context.noise
    whole = readout.frames(residual.clone(), prediction.clone())
    residual[25] = 0
    missing = readout.frames(residual, prediction)
    assert float((missing[25] - whole[25]).abs().max()) < 0.2 * float(whole[25].abs().max())


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_short_movies_stay_finite_and_keep_their_brightness(frames: int) -> None:
    recording = 100 + normal(frames, 24, 24)
    context = context_of(recording)
    answer = Readout(context, torch.zeros(1, 24, 24), SMOOTHING).frames(
        context.whiten(recording), torch.zeros(frames, 24, 24)
    )
    assert answer.isfinite().all()
    assert float(context.restore(answer).mean()) == pytest.approx(float(recording.mean()), abs=0.1)


def test_a_drift_from_slab_to_slab_is_followed() -> None:
    """Of a long movie, frames whose mean image lies above the whole's: it is read in them."""
    long = 100 + normal(400, 16, 16)
    long[200:] += 5
    context = context_of(long)
    readout = Readout(context, torch.zeros(1, 16, 16), SMOOTHING)
    residual = context.whiten(long)
    half = readout.frames(residual[200:].clone(), residual[200:].mean(0).expand(200, 16, 16).clone())
    restored = context.restore(half)
    assert float(restored.mean()) == pytest.approx(105, abs=0.3)
