"""Interpret ScanImage's header of a TIFF: the order of its pages, and the time between images of a plane.

Source: ScanImage's documentation of its BigTIFF format.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import tifffile

from denoise.movies import as_number, fail, plausible_interval

FRAMES_PER_VOLUME = (  # of a fast stack, since 2020 and before; numbers of slices do not include flyback frames
    "hStackManager.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolume",
)
SLICES = ("hStackManager.actualNumSlices", "hStackManager.numSlices")  # the latter may be of an earlier stack
# Settings that must agree, under SI.hStackManager.
STACK_SETTINGS = ("stackMode", "actualNumSlices", "framesPerSlice", "numFramesPerVolume")


def scanimage_settings(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return ScanImage's settings, "SI.hChannels.channelSave" and so on (since 2016); {} for other programs' files."""
    return (tif.scanimage_metadata or {}).get("FrameData", {}) if tif.is_scanimage else {}


class _VolumeLayout(NamedTuple):
    """The order in which ScanImage saved the images of a channel.

    planes: of a volume; 1 without volumes.
    frames: consecutive frames of a plane before the next plane; infinite where the settings set no end.
    fast: volumes follow each other while the scanner runs.
    """

    planes: float
    frames: float
    fast: bool = False


def _positive_setting(settings: dict[str, Any], *names: str) -> float:
    """Return the first of these settings that is a positive number, 1 if none is."""
    numbers = (as_number(settings.get(f"SI.{name}")) for name in names)
    return next((number for number in numbers if number > 0), 1.0)


def _frames_averaged(settings: dict[str, Any]) -> float:
    """Return the number of acquired frames averaged into one of the file. All other settings count acquired frames."""
    return _positive_setting(settings, "hScan2D.logAverageFactor")


def _volume_layout(settings: dict[str, Any]) -> _VolumeLayout:
    """Return the layout of the volumes. In a fast stack each frame is of a plane of its own, flyback frames included."""
    enabled = [bool(settings.get(f"SI.{name}.enable")) for name in ("hFastZ", "hStackManager")]
    mode = settings.get("SI.hStackManager.stackMode")  # from 2020 on
    fast = mode == "fast" if mode else enabled[0]
    planes = _positive_setting(settings, *(FRAMES_PER_VOLUME if fast else ()), *SLICES)
    if not any(enabled) or planes == 1:
        return _VolumeLayout(1, math.inf)
    averaged = _frames_averaged(settings)
    if fast:
        return _VolumeLayout(planes / averaged, 1, fast=True)
    return _VolumeLayout(planes, _positive_setting(settings, "hStackManager.framesPerSlice") / averaged)


def _check_volume(path: Path, settings: dict[str, Any], volume: _VolumeLayout) -> None:
    """Refuse averages across the end of a volume or of a slow stack's plane, and contradictory counts."""
    averaged = _frames_averaged(settings)
    acquired = _positive_setting(settings, "hStackManager.numFramesPerVolume")
    acquired_per_plane = 1 if volume.fast else volume.frames * averaged
    is_integral = volume.planes % 1 == 0 and not volume.frames % 1 > 0  # inf % 1 is NaN, which passes
    if not is_integral or acquired not in (1, _positive_setting(settings, *SLICES) * acquired_per_plane):
        found = [f"{name} {settings.get(f'SI.hStackManager.{name}')}" for name in STACK_SETTINGS]
        found.append(f"logAverageFactor {averaged:g}")
        fail(
            path,
            f"expected whole planes and volumes by ScanImage's header, found {', '.join(found)}; save each plane as "
            "a movie of its own",
        )


def scanimage_axes(path: Path, settings: dict[str, Any], pages: int) -> tuple[str, tuple[int, ...]]:
    """Return axes and sizes of all pages, without y and x. Raises MovieError where the settings cannot be true of them.

    Channels vary fastest, then the planes of a volume, then time. A slow stack has all frames of a plane before those of
    the next.
    """
    saved_channels = settings["SI.hChannels.channelSave"]
    channels = len(saved_channels) if isinstance(saved_channels, (list, tuple)) else 1
    volume = _volume_layout(settings)
    if volume.planes != 1:
        _check_volume(path, settings, volume)
    planes, endless = int(volume.planes), math.isinf(volume.frames)
    frames = 1 if endless else int(volume.frames)
    volumes, remaining = divmod(pages, channels * planes * frames)
    if endless:
        frames, volumes = volumes, 1
    expected = f"expected {channels} channel(s) of {planes} plane(s)"
    if remaining or not frames or not volumes:
        of_frames = f" of {frames} frames" if frames > 1 else ""
        expected = f"{expected}{of_frames}, as ScanImage's header says"
        fail(path, f"{expected}, found {pages} pages; save the last volume whole, or leave it out")
    if frames > 1 and volumes > 1:
        found = f"{volumes} volumes with {frames} frames of each in turn"
        fail(path, f"{expected} one after the other, found {found}; save each volume as its own file")
    if frames > 1:
        return "ZTC", (planes, frames, channels)
    return "TZC", (volumes, planes, channels)


def scanimage_interval(settings: dict[str, Any]) -> float | None:
    """Return the seconds from one image of a plane to the next; None for volumes of a slow stack (rate unknown)."""
    volume = _volume_layout(settings)
    if volume.fast:
        volume_rate = as_number(settings.get("SI.hRoiManager.scanVolumeRate")) or math.nan
        return plausible_interval(1 / volume_rate)
    if volume.frames == 1:
        return None
    frame_rate = as_number(settings.get("SI.hRoiManager.scanFrameRate")) or math.nan
    return plausible_interval(_frames_averaged(settings) / frame_rate)
