"""--format same: what is written in the input's own format, read by that format's own library."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from test_containers import pixels, save_by_tables, save_nwb, save_ome_zarr, save_zarr

from denoise import same
from denoise.atomic import LEFTOVER, remove_leftovers
from denoise.formats import open_recording
from denoise.layout import plan_movies
from denoise.movies import MovieError
from denoise.outputs import ZarrWriter, output_writer

h5py = pytest.importorskip("h5py")
tables = pytest.importorskip("tables")
tensorstore = pytest.importorskip("tensorstore")

ALL = (None, None)


def copy(source: Path, target: Path, dtype: str, frames: Any = ALL, dataset: str | None = None) -> None:
    """Write the frames as they are, in blocks of unlike size, part after part."""
    with (
        open_recording(source, frames, dataset) as recording,
        output_writer(target, recording, np.dtype(dtype)) as writer,
    ):
        for part in recording.parts:
            count = part.movie.info.shape[0]
            for start in range(0, count, 3):
                writer.append_to(part, part.movie.read(start, min(count, start + 3)).astype(dtype))


# ---- MetaImage, NRRD, NIfTI


def image_of(movie: np.ndarray) -> sitk.Image:
    """With a spacing, an origin, a turned direction, and a comment of the lab's."""
    image = sitk.GetImageFromArray(movie, isVector=False)
    image.SetSpacing([0.002, 0.001, 0.1, 1.0][: image.GetDimension()])
    image.SetOrigin([3.0, -4.0, 5.0, 0.0][: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetDirection([0, 1, 0, 1, 0, 0, 0, 0, -1])
    return image


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "names", ["a.mha a.mha", "a.mhd a.mha", "a.nrrd a.nrrd", "a.nii a.nii", "a.nii.gz a.nii"]
)
def test_simpleitk_reads_the_same_image(tmp_path: Path, names: str, compressed: bool, dtype: str) -> None:
    source, target = names.split()
    movie = pixels(8, 7, 9, dtype="int16")
    given = image_of(movie)
    given.SetMetaData("note", "by the lab")
    sitk.WriteImage(given, str(tmp_path / source), compressed)
    plan = plan_movies(tmp_path / source, tmp_path / "out", same=True)
    assert plan.jobs[0].output == tmp_path / "out" / target
    (tmp_path / "out").mkdir()
    copy(tmp_path / source, plan.jobs[0].output, dtype, (1, 6))
    image = sitk.ReadImage(str(plan.jobs[0].output))
    given = sitk.ReadImage(str(tmp_path / source))  # as the format keeps it
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), movie[1:6].astype(dtype))
    assert sitk.GetArrayFromImage(image).dtype == dtype
    assert image.GetSpacing() == given.GetSpacing()
    assert image.GetOrigin() == given.GetOrigin()
    assert image.GetDirection() == given.GetDirection()
    if not target.endswith(".nii"):
        assert image.GetMetaData("note") == "by the lab"


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii"])
def test_axes_of_length_one_are_kept_by_these(tmp_path: Path, name: str) -> None:
    movie = pixels(8, 1, 7, 9)
    sitk.WriteImage(image_of(movie), str(tmp_path / name))
    (tmp_path / "out").mkdir()
    copy(tmp_path / name, tmp_path / "out" / name, "float32", (None, 5))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / name))), movie[:5]
    )


def test_a_big_endian_nifti_becomes_little_endian(tmp_path: Path) -> None:
    movie = pixels(4, 5, 6, dtype="int16")
    sitk.WriteImage(image_of(movie), str(tmp_path / "a.nii"))
    content = (tmp_path / "a.nii").read_bytes()
    big = struct.Struct(">" + same.NIFTI_HEADER.format[1:])
    head = big.pack(*same.NIFTI_HEADER.unpack(content[: same.NIFTI_HEADER.size]))
    (tmp_path / "b.nii").write_bytes(head + bytes(4) + movie.astype(">i2").tobytes())
    copy(tmp_path / "b.nii", tmp_path / "c.nii", "int16")
    assert (tmp_path / "c.nii").read_bytes() == content


# ---- HDF5, NWB


def test_pytables_reads_the_hdf5(tmp_path: Path) -> None:
    movie = pixels(10, 7, 9)
    save_by_tables(tmp_path / "a.h5", movie=movie, trace=np.zeros(5))
    with tables.open_file(tmp_path / "a.h5", "a") as file:
        file.set_node_attr("/lab", "mouse", "M12")
        file.set_node_attr("/lab/movie", "element_size_um", np.array([1, 0.5, 0.25]))
    copy(tmp_path / "a.h5", tmp_path / "b.h5", "float32", (2, 9))
    with tables.open_file(tmp_path / "b.h5") as file:
        node = file.get_node("/lab/movie")
        assert node.dtype == np.float32
        np.testing.assert_array_equal(node[:], movie[2:9])
        assert file.get_node_attr("/lab", "mouse") == "M12"
    with open_recording(tmp_path / "b.h5") as recording:
        assert recording.info.pixel_size == (0.5, 0.25)


@pytest.mark.parametrize("timing", [{}, {"rate": None, "timestamps": np.arange(10) * 0.08 + 1}])
def test_pynwb_finds_the_nwb_valid(tmp_path: Path, timing: dict[str, Any]) -> None:
    pynwb = pytest.importorskip("pynwb")
    movie = pixels(10, 7, 9)
    save_nwb(tmp_path / "a.nwb", {"green": movie, "red": pixels(10, 5, 6)}, conversion=0.5, **timing)
    copy(tmp_path / "a.nwb", tmp_path / "b.nwb", "float32", (2, 9), "green")
    assert pynwb.validate(path=str(tmp_path / "b.nwb")) == []
    with pynwb.NWBHDF5IO(tmp_path / "a.nwb", "r") as old, pynwb.NWBHDF5IO(tmp_path / "b.nwb", "r") as new:
        given, found = old.read(), new.read()
        series = found.acquisition["green"]
        np.testing.assert_array_equal(series.data[:], movie[2:9])
        assert (series.conversion, series.imaging_plane.name, list(found.acquisition)) == (
            0.5,
            "Plane",
            ["green"],
        )
        assert found.session_start_time == given.session_start_time
        assert found.object_id != given.object_id
        if timing:
            np.testing.assert_allclose(series.timestamps[:], np.arange(2, 9) * 0.08 + 1)
        else:
            assert (series.rate, series.starting_time) == (12.5, 0.16)


LINKS = {"as pynwb's": "/acquisition/green/timestamps", "chain": "/acquisition/near/timestamps",
         "circle": "/acquisition/red/timestamps", "nowhere": "/acquisition/blue/timestamps"}  # fmt: skip


@pytest.mark.parametrize("link", [*LINKS, "out"])
def test_times_that_series_share_are_kept_if_they_lie_in_the_file(tmp_path: Path, link: str) -> None:
    pynwb = pytest.importorskip("pynwb")
    movies = {"green": pixels(10, 5, 6), "red": pixels(10, 7, 9)}
    save_nwb(tmp_path / "a.nwb", movies, rate=None, timestamps=np.arange(10) * 0.08 + 1)
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        file["acquisition/near"] = h5py.SoftLink("green")
        del file["acquisition/red/timestamps"]
        elsewhere = h5py.ExternalLink("b.h5", "/x")
        file["acquisition/red/timestamps"] = h5py.SoftLink(LINKS[link]) if link in LINKS else elsewhere
    there = link in ("as pynwb's", "chain")
    with open_recording(tmp_path / "a.nwb", dataset="red") as recording:
        assert recording.info.frame_interval == (pytest.approx(0.08) if there else None)
    if there:
        copy(tmp_path / "a.nwb", tmp_path / "b.nwb", "float32", (2, 9), "red")
        with pynwb.NWBHDF5IO(tmp_path / "b.nwb", "r") as new:
            times = new.read().acquisition["red"].timestamps[:]
        np.testing.assert_allclose(times, np.arange(2, 9) * 0.08 + 1)
    else:
        with pytest.raises(MovieError, match="expected starting_time or timestamps in /acquisition/red"):
            copy(tmp_path / "a.nwb", tmp_path / "b.nwb", "float32", (2, 9), "red")
        assert [path.name for path in tmp_path.iterdir()] == ["a.nwb"]


def test_a_part_of_an_nwb_stack_is_not_written_without_the_rest(tmp_path: Path) -> None:
    """pynwb opens no CorrectedImageStack without the series of its shifts."""
    save_nwb(tmp_path / "a.nwb", {"green": pixels(4, 5, 6)})
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        stack = file.create_group("processing/ophys/stack")
        stack.attrs["neurodata_type"] = "CorrectedImageStack"
        file.move("acquisition/green", "processing/ophys/stack/corrected")
    copy(tmp_path / "a.nwb", tmp_path / "b.tif", "float32")
    with pytest.raises(
        MovieError, match="found processing/ophys/stack/corrected/data, no series or a part of more; write"
    ):
        copy(tmp_path / "a.nwb", tmp_path / "b.nwb", "float32")


def test_a_link_out_of_the_file_is_not_copied(tmp_path: Path) -> None:
    save_nwb(tmp_path / "a.nwb", {"green": pixels(4, 5, 6)})
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        file["acquisition/green/more"] = h5py.ExternalLink("/etc/hostname", "/x")
        file["general/stolen"] = h5py.ExternalLink("/etc/hostname", "/x")
    copy(tmp_path / "a.nwb", tmp_path / "b.nwb", "float32")
    with h5py.File(tmp_path / "b.nwb") as file:
        assert "more" not in list(file["acquisition/green"])
        assert "stolen" not in list(file["general"])


def test_an_nwb_has_the_same_bytes_at_each_run(tmp_path: Path) -> None:
    """In another second, and in a process in which sets have another order."""
    source, outputs = tmp_path / "a.nwb", [tmp_path / f"{run}.nwb" for run in (1, 2)]
    save_nwb(source, {"green": pixels(4, 5, 6)})
    with h5py.File(source, "a") as file:
        for number in range(9):
            file[f"acquisition/green/note {number}"] = number
    for seed, output in enumerate(outputs, 1):
        code = f"from test_same import *; copy(Path({str(source)!r}), Path({str(output)!r}), 'float32')"
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)  # noqa: S603
        time.sleep(1.1)  # HDF5 counts seconds
    first, second = (output.read_bytes() for output in outputs)
    assert first == second


# ---- Zarr


@pytest.mark.parametrize("group", ["", "0"])  # the latter as bioformats2raw has it
@pytest.mark.parametrize(("driver", "metadata"), [("zarr", ".zattrs"), ("zarr3", "zarr.json")])
def test_tensorstore_reads_the_zarr(
    tmp_path: Path, driver: str, metadata: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same, "CHUNK_BYTES", 3 * 7 * 9 * 4)  # of 3 frames: the last chunk is not full
    movie = pixels(10, 2, 3, 7, 9)
    save_ome_zarr(tmp_path / "a.ome.zarr" / group, movie, driver)
    copy(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", "float32", (1, 9))
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(tmp_path / "b.ome.zarr" / "0")}}
    found = tensorstore.open(spec).result()
    assert found.dtype.name == "float32"
    np.testing.assert_array_equal(found.read().result(), movie[1:9])
    with open_recording(tmp_path / "b.ome.zarr") as recording:
        assert recording.info.pixel_size == (0.5, 0.25)
        assert recording.info.frame_interval == pytest.approx(0.05)
        assert recording.channels == ["GCaMP", "tdTomato"]
    document = json.loads((tmp_path / "b.ome.zarr" / metadata).read_text())
    image = document.get("attributes", {}).get("ome", document)
    assert [axis["name"] for axis in image["multiscales"][0]["axes"]] == list("tczyx")


@pytest.mark.parametrize(("driver", "metadata"), [("zarr", ".zattrs"), ("zarr3", "zarr.json")])
def test_a_zarr_keeps_what_ome_says_of_its_axes_and_channels(
    tmp_path: Path, driver: str, metadata: str
) -> None:
    save_ome_zarr(tmp_path / "a.ome.zarr", pixels(10, 2, 3, 7, 9), driver)
    file = tmp_path / "a.ome.zarr" / metadata
    text = json.loads(file.read_text())
    image = text["attributes"]["ome"] if driver == "zarr3" else text
    image["omero"] = {
        "channels": [{"label": name, "color": "00FF00"} for name in ("a", "b")],
        "name": "slice 7",
    }
    (scales,) = image["multiscales"]
    scales["name"] = "mouse 12"
    shift = {"type": "translation", "translation": [100.0, 0.0, -7.0, 20.0, 30.0]}
    scales["datasets"][0]["coordinateTransformations"].append(shift)
    scales["coordinateTransformations"].append(shift)
    file.write_text(json.dumps(text))
    for frames, begin in ((ALL, 100.0), ((2, 9), 150.0)):  # in steps of 25, which the whole's scale doubles
        copy(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr", "float32", frames)
        found = json.loads((tmp_path / "b.ome.zarr" / metadata).read_text())
        found = found["attributes"]["ome"] if driver == "zarr3" else found
        assert found["omero"] == image["omero"]
        (written,) = found["multiscales"]
        scale, moved = written["datasets"][0]["coordinateTransformations"]
        assert scale == scales["datasets"][0]["coordinateTransformations"][0]
        assert moved == {**shift, "translation": [begin, *shift["translation"][1:]]}
        for word in ("name", "axes", "coordinateTransformations"):
            assert written[word] == scales[word]


def test_a_zarr_keeps_the_steps_of_the_axes_that_are_left(tmp_path: Path) -> None:
    save_ome_zarr(tmp_path / "a.zarr", pixels(10, 2, 1, 7, 9), "zarr")
    copy(tmp_path / "a.zarr", tmp_path / "b.zarr", "float32")
    (written,) = json.loads((tmp_path / "b.zarr" / ".zattrs").read_text())["multiscales"]
    assert [axis["name"] for axis in written["axes"]] == list("tcyx")
    assert written["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [25, 1, 0.25, 0.125]}
    ]


def test_a_zarr_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    save_zarr(tmp_path / "a.zarr", pixels(10, 7, 9), "zarr3")
    with (
        open_recording(tmp_path / "a.zarr") as recording,
        pytest.raises(MovieError, match="expected 10 frames to write, found 4"),
        output_writer(tmp_path / "b.zarr", recording, np.dtype("float32")) as writer,
    ):
        writer.append_to(recording.parts[0], np.zeros((4, 7, 9), np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    copy(tmp_path / "a.zarr", tmp_path / "b.zarr", "float32", (None, 3))
    copy(tmp_path / "a.zarr", tmp_path / "b.zarr", "float32")  # replaces it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]
    with open_recording(tmp_path / "b.zarr") as recording:
        assert recording.sizes == (10, 7, 9)


def test_a_zarr_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_zarr(tmp_path / "a.zarr", pixels(4, 5, 6), "zarr3")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(same, "_write_json", full)
    with pytest.raises(MovieError, match=r"b\.zarr: the folder cannot be created: No space left on device"):
        copy(tmp_path / "a.zarr", tmp_path / "b.zarr", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_frames_of_a_zarr_are_written_inside_the_with_block(tmp_path: Path) -> None:
    save_zarr(tmp_path / "a.zarr", pixels(4, 5, 6), "zarr3")
    with open_recording(tmp_path / "a.zarr") as recording:
        writer = ZarrWriter(tmp_path / "b.zarr", recording, np.dtype("float32"))
        with pytest.raises(ValueError, match="inside the with block"):
            writer.append_to(recording.parts[0], np.zeros((4, 5, 6), np.float32))


def test_leftover_folders_go_unless_their_writer_lives(tmp_path: Path) -> None:
    save_zarr(tmp_path / "a.zarr", pixels(10, 7, 9), "zarr")
    dead = tmp_path / ".b.zarr.0123abcd.calcium-denoiser.part"
    (dead / "0").mkdir(parents=True)
    (dead / "0" / "c").touch()
    with (
        open_recording(tmp_path / "a.zarr") as recording,
        ZarrWriter(tmp_path / "c.zarr", recording, np.dtype("float32")) as writer,
    ):
        assert remove_leftovers([tmp_path]) == [dead]
        assert sum(bool(LEFTOVER.fullmatch(path.name)) for path in tmp_path.iterdir()) == 1
        writer.append_to(recording.parts[0], np.zeros((10, 7, 9), np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "c.zarr"]
