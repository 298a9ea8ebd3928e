"""Warnings about a movie: what is odd in it, as its survey found, and what was done about that."""

from __future__ import annotations

from collections.abc import Iterator

from denoise.missing import MAX_FILLED_GAP
from denoise.smoothing import UNCORRELATED
from denoise.survey import Survey

MAX_SHARE = 1e-3  # of voxels that are saturated or wrapped, without a warning


def warnings_of(survey: Survey) -> Iterator[str]:
    """Yield all warnings about a movie."""
    yield from value_warnings(survey)
    yield from missing_warnings(survey)
    yield from kept_frame_warnings(survey)
    yield from pixel_warnings(survey)
    yield from noise_warnings(survey)


def value_warnings(survey: Survey) -> Iterator[str]:
    """Warn of odd intensities and of an odd order of frames."""
    low, high = survey.normalization.low, survey.normalization.high
    if low == high:
        yield f"the percentiles coincide, at {low:.5g}: most voxels have this one value"
    if survey.wrapped_share > MAX_SHARE:
        yield (
            f"{survey.wrapped_share:.2%} of the voxels are above 49151 and all others below 16384: negative numbers "
            "that were written as unsigned ones? Write the movie anew as signed integers"
        )
    elif survey.saturated_share > MAX_SHARE:
        yield (
            f"{survey.saturated_share:.2%} of the voxels have one value, the largest of all: the detector was "
            "saturated, so peaks there are too low"
        )
    if survey.interleaving.period:
        yield (
            f"frames that are {survey.interleaving.period} apart are alike, and neighbours are not (planes or channels "
            "in turn?): better write each as a movie of its own"
        )


def missing_warnings(survey: Survey) -> Iterator[str]:
    """Warn of voxels and lines that were lost, and filled."""
    if survey.invalid_voxels:
        yield (
            f"{survey.invalid_voxels} voxels were NaN, infinite or alone beyond any scale; "
            "they were filled from their neighbours"
        )
    if survey.dropped_lines:
        yield (
            f"{survey.dropped_lines} rows or columns hold one single value in some frames (dropped by the microscope, "
            "or a border that registration left); they were filled"
        )


def kept_frame_warnings(survey: Survey) -> Iterator[str]:
    """Warn of rows and frames that stay as they were recorded."""
    is_flash = survey.flashes.all(1)
    flashes, partial_flashes = int(is_flash.sum()), survey.flashes[~is_flash]
    if partial_flashes.any():
        yield (
            f"{int(partial_flashes.sum())} rows in {int(partial_flashes.any(1).sum())} frames are brighter or darker "
            "throughout than before and after (a laser that stimulates cells); they stay as they were recorded, and "
            "the others are denoised without them"
        )
    if flashes:
        yield (
            f"{flashes} frames are brighter or darker throughout than those around them (a flash, a stage that "
            "flies back); they stay as they were recorded, and the others are denoised without them"
        )
    gaps = int(survey.kept_rows.all(1).sum()) - flashes
    if gaps and not survey.kept_rows.all():
        yield (
            f"{gaps} frames, more than {MAX_FILLED_GAP} in a row, hold one single value (a closed shutter, or nothing "
            "was recorded); they stay as they are"
        )


def pixel_warnings(survey: Survey) -> Iterator[str]:
    """Warn of hot pixels and of pixels that never change."""
    hot = int(survey.odd_pixels.hot.sum())
    if hot and not survey.motion.still:
        yield f"{hot} pixels are far noisier than those around them (hot pixels); they were filled from their neighbours"
    elif hot:
        yield (
            f"{hot} pixels are far noisier than those around them (hot pixels); they keep their mean, and how "
            "they change was filled from their neighbours"
        )
    constant = survey.odd_pixels.constant.isfinite()
    if constant.any() and not constant.all():
        yield (
            f"{int(constant.sum())} pixels never change (a border that registration left, a mask, stuck pixels); "
            "they stay as they are"
        )


def noise_warnings(survey: Survey) -> Iterator[str]:
    """Warn of noise that voxels share, unless the metadata have it."""
    for name, lines in zip(("row", "column"), survey.lines):
        if lines.variance:
            yield (
                f"the voxels of a {name} share {lines.share:.1%} of the variance of their noise in each frame "
                "(line noise): that was taken out"
            )
    pattern = survey.motion.pattern
    if pattern is not None:
        level = survey.context.mean.mean()
        deviation = survey.normalization.scale * float((pattern.apply(level) - level).std())
        yield (
            f"rows and columns of the camera differ by {deviation:.3g} (root mean square; fixed pattern), while the "
            "scene moves: the output keeps that; the scene was denoised without it"
        )
    if survey.context.frame_correlation != UNCORRELATED:
        shared = 1 - 1 / survey.context.frame_correlation.variance
        yield (
            f"neighbouring frames share {shared:.0%} of their noise (repeated, averaged or interpolated frames): better "
            "denoise the recording as it was before that"
        )
