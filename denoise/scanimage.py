"""What ScanImage's header tells of a TIFF: the order of its pages, and the time between images of a plane.

Source: ScanImage's documentation of its BigTIFF format.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import tifffile

from denoise.movies import as_number, fail, plausible_interval

FRAMES_OF_A_VOLUME = (  # of a fast stack, from 2020 on and before; the slices alone lack the flyback
    "hStackManager.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolumeWithFlyback",
    "hFastZ.numFramesPerVolume",
)
SLICES = ("hStackManager.actualNumSlices", "hStackManager.numSlices")  # the latter may be of an earlier stack
STACK = ("stackMode", "actualNumSlices", "framesPerSlice", "numFramesPerVolume")  # what must agree


def scanimage_settings(tif: tifffile.TiffFile) -> dict[str, Any]:
    """ScanImage's settings, "SI.hChannels.channelSave" and so on (2016 and later); {} of another program."""
    return (tif.scanimage_metadata or {}).get("FrameData", {}) if tif.is_scanimage else {}


class _Volume(NamedTuple):
    """How ScanImage saved the images of a channel, as its settings tell.

    planes: of a volume; 1 where there are none.
    frames: of a plane before the next plane follows; infinite where the settings set no end.
    fast: volumes follow each other while the scanner runs.
    """

    planes: float
    frames: float
    fast: bool = False


def _setting(told: dict[str, Any], *names: str) -> float:
    """The first of these settings that is a positive number; 1 if none is."""
    numbers = (as_number(told.get(f"SI.{name}")) for name in names)
    return next((number for number in numbers if number > 0), 1.0)


def _average(told: dict[str, Any]) -> float:
    """Frames that were averaged into one of the file; all other settings count them as they were acquired."""
    return _setting(told, "hScan2D.logAverageFactor")


def _volume(told: dict[str, Any]) -> _Volume:
    """Each frame of a volume in a fast stack is of a plane of its own, those of the flyback too."""
    enabled = [bool(told.get(f"SI.{name}.enable")) for name in ("hFastZ", "hStackManager")]
    mode = told.get("SI.hStackManager.stackMode")  # from 2020 on
    fast = mode == "fast" if mode else enabled[0]
    planes = _setting(told, *(FRAMES_OF_A_VOLUME if fast else ()), *SLICES)
    if not any(enabled) or planes == 1:
        return _Volume(1, math.inf)
    average = _average(told)
    if fast:
        return _Volume(planes / average, 1, fast=True)
    return _Volume(planes, _setting(told, "hStackManager.framesPerSlice") / average)


def _check_volume(path: Path, told: dict[str, Any], volume: _Volume) -> None:
    """Refuse averages over the end of a volume or of a slow stack's plane, and counts that contradict each other."""
    average, acquired = _average(told), _setting(told, "hStackManager.numFramesPerVolume")
    of_plane = 1 if volume.fast else volume.frames * average
    whole = volume.planes % 1 == 0 and not volume.frames % 1 > 0  # NaN for those without end
    if not whole or acquired not in (1, _setting(told, *SLICES) * of_plane):
        found = [f"{name} {told.get(f'SI.hStackManager.{name}')}" for name in STACK]
        found.append(f"logAverageFactor {average:g}")
        fail(
            path,
            f"expected whole planes and volumes by ScanImage's header, found {', '.join(found)}; save each plane as "
            "a movie of its own",
        )


def scanimage_axes(path: Path, told: dict[str, Any], pages: int) -> tuple[str, tuple[int, ...]]:
    """Axes and sizes of all pages, without y and x. Raises MovieError where the settings cannot be true of them.

    Pages follow each other channel by channel, then plane by plane of a volume, then in time. A slow stack has all
    frames of a plane, then those of the next.
    """
    saved = told["SI.hChannels.channelSave"]
    channels = len(saved) if isinstance(saved, (list, tuple)) else 1
    volume = _volume(told)
    if volume.planes != 1:
        _check_volume(path, told, volume)
    planes, endless = int(volume.planes), math.isinf(volume.frames)
    frames = 1 if endless else int(volume.frames)
    volumes, rest = divmod(pages, channels * planes * frames)
    if endless:
        frames, volumes = volumes, 1
    expected = f"expected {channels} channel(s) of {planes} plane(s)"
    if rest or not frames or not volumes:
        of_frames = f" of {frames} frames" if frames > 1 else ""
        expected = f"{expected}{of_frames}, as ScanImage's header says"
        fail(path, f"{expected}, found {pages} pages; save the last volume whole, or leave it out")
    if frames > 1 and volumes > 1:
        found = f"{volumes} volumes with {frames} frames of each in turn"
        fail(path, f"{expected} one after the other, found {found}; save each volume as its own file")
    if frames > 1:
        return "ZTC", (planes, frames, channels)
    return "TZC", (volumes, planes, channels)


def scanimage_interval(told: dict[str, Any]) -> float | None:
    """Seconds from one image of a plane to the next; not told of the volumes of a slow stack."""
    volume = _volume(told)
    if volume.fast:
        return plausible_interval(1 / (as_number(told.get("SI.hRoiManager.scanVolumeRate")) or math.nan))
    if volume.frames == 1:
        return None
    return plausible_interval(
        _average(told) / (as_number(told.get("SI.hRoiManager.scanFrameRate")) or math.nan)
    )
