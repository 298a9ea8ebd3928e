"""HDF5, NWB and Zarr made by other libraries than the readers: PyTables, pynwb, tensorstore; and hostile ones."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoise.containers import ArrayPages, container_files
from denoise.formats import open_recording
from denoise.movies import MovieError

h5py = pytest.importorskip("h5py")
tables = pytest.importorskip("tables")
tensorstore = pytest.importorskip("tensorstore")


def pixels(*sizes: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, sizes).astype(dtype)


def refused(path: Path, match: str, dataset: str | None = None) -> None:
    with pytest.raises(MovieError, match=match) as caught:
        open_recording(path, dataset=dataset)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_name_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.h5"
    path.touch()
    with pytest.raises(MovieError) as caught:
        open_recording(path)
    assert "a\\nb.h5': expected an HDF5 file, found an empty one" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- HDF5


def save_by_tables(path: Path, **arrays: np.ndarray) -> None:
    """Each array in the group /lab, compressed by zlib in chunks."""
    with tables.open_file(path, "w") as file:
        group = file.create_group("/", "lab")
        for name, array in arrays.items():
            filters = tables.Filters(complevel=3, complib="zlib", shuffle=True)
            file.create_carray(group, name, obj=array, filters=filters, chunkshape=(3, *array.shape[1:]))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".h5", ".HDF5"])
def test_hdf5_by_pytables(tmp_path: Path, dtype: str, suffix: str) -> None:
    movie = pixels(10, 7, 9, dtype=dtype)
    save_by_tables(
        tmp_path / f"a{suffix}", movie=movie, trace=np.zeros((5, 2)), volume=np.zeros((3, 2, 2, 2))
    )
    with open_recording(tmp_path / f"a{suffix}", (2, 9)) as recording:
        assert (recording.dataset, recording.info.dtype.name) == ("lab/movie", dtype)
        assert recording.sizes == (7, 7, 9)
        np.testing.assert_array_equal(recording.parts[0].movie.read(1, 6), movie[3:8])


def test_hdf5_of_several_movies_asks_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    save_by_tables(path, red=pixels(4, 5, 6), green=pixels(6, 5, 6))
    refused(
        path, r"expected one dataset .*lab/green \(6 x 5 x 6\), lab/red \(4 x 5 x 6\); give one by --dataset"
    )
    refused(path, "expected .* blue, found lab/green", "blue")
    with open_recording(path, dataset="/lab/red") as recording:
        assert recording.sizes == (4, 5, 6)


def test_what_holds_no_numbers_is_no_candidate(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["words"] = np.full((2, 2, 2), b"x")
        file["pairs"] = np.zeros((2, 2, 2), [("a", "i2"), ("b", "i2")])
        file["masks"] = np.zeros((2, 5, 6), bool)
        file.create_dataset("empty", (0, 5, 6), "uint16")
        file["movie"] = pixels(4, 5, 6)
    with open_recording(tmp_path / "a.h5") as recording:
        assert recording.dataset == "movie"
    refused(tmp_path / "a.h5", "expected one of uint8", "words")


@pytest.mark.parametrize("name", ["soft", "/folder/movie", "hard", "z/movie"])
def test_a_link_to_a_dataset_is_a_name_of_it(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["z/movie"] = pixels(4, 5, 6)
        file["hard"] = file["z/movie"]
        file["soft"] = h5py.SoftLink("/z/movie")
        file["folder"] = h5py.SoftLink("z")
        file["circle"] = h5py.SoftLink("circle")
    with open_recording(tmp_path / "a.h5", dataset=name) as recording:
        assert (recording.dataset, recording.sizes) == (name.strip("/"), (4, 5, 6))
    with open_recording(tmp_path / "a.h5") as recording:
        assert recording.sizes == (4, 5, 6)
    refused(tmp_path / "a.h5", "expected dataset of three axes .* circle, found", "circle")


def test_pixel_size_as_imagej_writes_it_into_hdf5(tmp_path: Path) -> None:
    save_by_tables(tmp_path / "a.h5", movie=pixels(4, 5, 6))
    with tables.open_file(tmp_path / "a.h5", "a") as file:
        file.set_node_attr("/lab/movie", "element_size_um", np.array([1, 0.5, 0.25]))
    with open_recording(tmp_path / "a.h5") as recording:
        assert recording.info.pixel_size == (0.5, 0.25)


@pytest.mark.parametrize("place", [0, 10**6, 10**12])
def test_a_damaged_index_of_chunks_is_refused(tmp_path: Path, place: int) -> None:
    """The address of a chunk leads elsewhere; libhdf5 by itself may end the program."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        movie = file.create_dataset("movie", data=pixels(7, 20, 18), chunks=(1, 20, 18), compression="lzf")
        chunks: list[Any] = []
        movie.id.chunk_iter(chunks.append)
    content, address = (tmp_path / "a.h5").read_bytes(), chunks[3].byte_offset.to_bytes(8, "little")
    assert content.count(address) == 1
    wrong = place.to_bytes(8, "little")
    (tmp_path / "a.h5").write_bytes(content.replace(address, wrong))
    refused(tmp_path / "a.h5", "damaged index")


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("written", [0, 20, 39])
def test_hdf5_that_was_not_written_to_its_end_is_refused(
    tmp_path: Path, compression: str | None, written: int
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        movie = file.create_dataset(
            "movie", (80, 5, 6), "uint16", chunks=(2, 5, 6), compression=compression, fillvalue=7
        )
        movie[: 2 * written] = pixels(2 * written, 5, 6)
    message = (
        f"expected 40 chunks of /movie, found {written}: cut off or never written, .* the fill value, 7; save"
    )
    refused(tmp_path / "a.h5", message)


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual", "soft link"])
def test_hdf5_that_points_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "raw").write_bytes(bytes(4 * 5 * 6 * 2))
    secret, path = tmp_path / "secret" / "s.h5", tmp_path / "a.h5"
    with h5py.File(secret, "w") as file:
        file["movie"] = pixels(4, 5, 6)
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["movie"] = h5py.ExternalLink(str(secret), "/movie")
        elif kind == "soft link":
            file["out"] = h5py.ExternalLink(str(secret), "/")
            file["movie"] = h5py.SoftLink("/out/movie")
        elif kind == "external storage":
            parts = [(str(tmp_path / "secret" / "raw"), 0, 240)]
            file.create_dataset("movie", (4, 5, 6), "uint16", external=parts)
        else:
            layout = h5py.VirtualLayout((4, 5, 6), "uint16")
            layout[...] = h5py.VirtualSource(str(secret), "movie", (4, 5, 6))
            file.create_virtual_dataset("movie", layout)
    for name in (None, "movie"):
        refused(
            path,
            "found none" if "link" in kind else "expected /movie in this file, found voxels in others",
            name,
        )


def test_hdf5_with_lies_in_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("movie", (10**9, 1000, 1000), "uint16", chunks=(1, 1000, 1000))  # nothing written
    refused(path, "cut off or never written")
    with h5py.File(path, "w") as file:
        file.create_dataset("movie", (2, 20_000, 20_000), "float64", chunks=(1, 20_000, 20_000))
    refused(path, "expected frames of at most 1024 MiB|expected chunks of at most 1024 MiB")
    with h5py.File(path, "w") as file:
        file.create_dataset("movie", data=np.zeros((4, 5, 6), [("a", "i2"), ("b", "i2")]))
    refused(path, "expected one of uint8")
    with h5py.File(path, "w") as file:
        file["movie"] = pixels(400, 5, 6)
    path.write_bytes(path.read_bytes()[:9000])
    refused(path, "cannot be opened|cut off")
    path.write_bytes(b"")
    refused(path, "found an empty one")
    path.write_bytes(b"II*\0")
    refused(path, "cannot be opened")


def test_compression_by_a_plugin_is_refused(tmp_path: Path) -> None:
    with tables.open_file(tmp_path / "a.h5", "w") as file:
        filters = tables.Filters(complevel=3, complib="blosc")
        file.create_carray("/", "movie", obj=pixels(4, 5, 6), filters=filters)
    refused(tmp_path / "a.h5", r"expected compression by gzip, .*, found filter 32001; repack it")


def test_a_missing_package_is_named_with_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_by_tables(tmp_path / "a.h5", movie=pixels(4, 5, 6))
    save_zarr(tmp_path / "a.zarr", pixels(4, 5, 6), "zarr")
    for name in ("h5py", "zarr"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(tmp_path / "a.h5", r"expected the package h5py .*pip install -r requirements-formats\.txt")
    refused(tmp_path / "a.zarr", r"expected the package zarr .*pip install -r requirements-formats\.txt")


# ---- NWB


def save_nwb(path: Path, movies: dict[str, np.ndarray], **options: Any) -> None:
    """By pynwb: each movie as a TwoPhotonSeries of one imaging plane."""
    pynwb = pytest.importorskip("pynwb")
    ophys = pytest.importorskip("pynwb.ophys")
    file = pynwb.NWBFile("a session", "id", datetime(2026, 1, 1, tzinfo=timezone.utc))
    device = file.create_device(name="Microscope")
    channel = ophys.OpticalChannel(name="green", description="GCaMP", emission_lambda=510.0)
    plane = file.create_imaging_plane(
        name="Plane", optical_channel=channel, imaging_rate=30.0, description="V1", device=device,
        excitation_lambda=920.0, indicator="GCaMP6s", location="V1",
        grid_spacing=[5e-7, 2.5e-7], grid_spacing_unit="meters",
    )  # fmt: skip
    for name, movie in movies.items():
        settings = {"unit": "n.a.", "rate": 12.5} | options
        file.add_acquisition(ophys.TwoPhotonSeries(name=name, data=movie, imaging_plane=plane, **settings))
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


def test_nwb_by_pynwb_with_rate_pixel_size_and_conversion(tmp_path: Path) -> None:
    movie = pixels(10, 7, 9)
    save_nwb(tmp_path / "a.nwb", {"green": movie}, conversion=0.5, offset=3.0, unit="photons")
    with open_recording(tmp_path / "a.nwb", (1, None)) as recording:
        assert recording.dataset == "acquisition/green/data"
        assert recording.info.frame_interval == 0.08
        assert recording.info.pixel_size == pytest.approx((0.5, 0.25))
        assert "times 0.5, plus 3.0, they are in photons" in recording.info.notes[0]
        np.testing.assert_array_equal(recording.parts[0].movie.read(0, 9), movie[1:])


def test_nwb_with_timestamps_and_two_series(tmp_path: Path) -> None:
    times = np.arange(4) * 0.2
    save_nwb(
        tmp_path / "a.nwb", {"green": pixels(4, 5, 6), "red": pixels(4, 6, 5)}, rate=None, timestamps=times
    )
    refused(
        tmp_path / "a.nwb",
        r"expected one TwoPhotonSeries, found acquisition/green \(4 x 5 x 6\), .*--dataset",
    )
    for name in ("red", "acquisition/red", "/acquisition/red/data"):
        with open_recording(tmp_path / "a.nwb", dataset=name) as recording:
            assert recording.sizes == (4, 6, 5)
            assert recording.info.frame_interval == pytest.approx(0.2)
            assert recording.info.notes == ()


def test_nwb_of_volumes_or_of_movies_elsewhere_is_refused(tmp_path: Path) -> None:
    save_nwb(tmp_path / "a.nwb", {"green": pixels(4, 5, 6, 2)})
    refused(tmp_path / "a.nwb", "to be a movie .T, Y, X., found 4 x 5 x 6 x 2")
    outside = {"external_file": ["a.tif"], "format": "external", "starting_frame": [0], "num_samples": 4}
    save_nwb(tmp_path / "b.nwb", {"green": None}, **outside)  # type: ignore[dict-item]
    refused(tmp_path / "b.nwb", "external_file")


def add_series(path: Path, name: str, neurodata: str, like: str) -> Any:
    """By h5py: another series of these data, linked to as pynwb does, with a rate."""
    with h5py.File(path, "a") as file:
        series = file.create_group(name)
        series.attrs["neurodata_type"] = neurodata
        series["data"] = h5py.SoftLink(like)
        series.create_dataset("starting_time", data=0.0).attrs["rate"] = 4.0


def test_nwb_series_that_cannot_be_meant_are_no_candidates(tmp_path: Path) -> None:
    """Movies in other files, the same data by a link, a camera's film beside the imaging."""
    path = tmp_path / "a.nwb"
    save_nwb(path, {"green": pixels(4, 5, 6)})
    add_series(path, "acquisition/again", "TwoPhotonSeries", "/acquisition/green/data")
    with h5py.File(path, "a") as file:
        for name, neurodata, shape in (
            ("outside", "TwoPhotonSeries", (0, 0, 0)),
            ("film", "ImageSeries", (9, 8, 7)),
        ):
            file.create_dataset(f"acquisition/{name}/data", shape, "uint8", fillvalue=0)
            file[f"acquisition/{name}"].attrs["neurodata_type"] = neurodata
        file["acquisition/film/data"][...] = 1
        file["acquisition/outside/external_file"] = ["a.tif"]
    for wanted, name, interval in ((None, "green", 0.08), ("again", "again", 0.25), ("film", "film", None)):
        with open_recording(path, dataset=wanted) as recording:
            assert recording.dataset == f"acquisition/{name}/data"
            assert recording.info.frame_interval == interval
    refused(path, "external_file", "outside")
    with h5py.File(path, "a") as file:
        del file["acquisition/green"]
    refused(path, "external_file")  # and not the film in its place


def test_nwb_series_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    save_nwb(path, {"green": pixels(4, 5, 6)})
    add_series(path, "processing/ophys/green", "ImageSeries", "/acquisition/green/data")
    refused(
        path, "expected TwoPhotonSeries green, found acquisition/green .*, processing/ophys/green", "green"
    )
    with open_recording(path, dataset="processing/ophys/green") as recording:
        assert recording.info.frame_interval == 0.25


def test_nwb_of_an_image_series_alone_keeps_its_rate(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nwb", "w") as file:
        file["raw"] = pixels(4, 5, 6)
    add_series(tmp_path / "a.nwb", "processing/ophys/corrected", "ImageSeries", "/raw")
    with open_recording(tmp_path / "a.nwb") as recording:
        assert recording.info.frame_interval == 0.25


# ---- Zarr


def save_zarr(path: Path, array: np.ndarray, driver: str, **metadata: Any) -> None:
    """An array by tensorstore; driver "zarr" or "zarr3"."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    made = tensorstore.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result()
    made.write(array).result()


AXES = [
    {"name": "t", "type": "time", "unit": "millisecond"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


def described(names: str) -> dict[str, Any]:
    """OME's metadata for an image of these axes, in two resolutions, 20 frames a second by both scales together."""
    scale = {"t": 25, "c": 1, "z": 4, "y": 0.25, "x": 0.125}
    array_scale = [{"type": "scale", "scale": [scale[name] for name in names]}]
    image_scale = [{"type": "scale", "scale": [2.0 for _ in names]}]
    return {
        "multiscales": [{
            "axes": [axis for axis in AXES if axis["name"] in names],
            "datasets": [{"path": "0", "coordinateTransformations": array_scale}, {"path": "1"}],
            "coordinateTransformations": image_scale,
        }],
        "omero": {"channels": [{"label": "GCaMP"}, {"label": "tdTomato"}]},
    }  # fmt: skip


CODECS: dict[str, dict[str, Any]] = {
    "zarr": {"compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, "dimension_separator": "/"},
    "zarr3": {"codecs": [{"name": "sharding_indexed", "configuration": {
        "chunk_shape": [2, 1, 1, 4, 9], "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                                                   {"name": "zstd", "configuration": {"level": 3}}]}}]},
}  # fmt: skip


def save_ome_zarr(path: Path, movie: np.ndarray, driver: str) -> None:
    """Of version 0.4 or 0.5: (T, C, Z, Y, X) and a smaller one."""
    shapes: dict[str, Any] = {"chunks": [4, 1, 1, 4, 9]} if driver == "zarr" else {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 2, 1, 8, 9]}}}  # fmt: skip
    save_zarr(path / "0", movie, driver, **CODECS[driver], **shapes)
    save_zarr(path / "1", movie[..., ::2, ::2], driver)
    image = described("tczyx")
    if driver == "zarr":
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(image))
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **image}}}
        (path / "zarr.json").write_text(json.dumps(group))


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_ome_zarr_by_tensorstore(tmp_path: Path, driver: str) -> None:
    movie = pixels(10, 2, 3, 7, 9)
    save_ome_zarr(tmp_path / "a.ome.zarr", movie, driver)
    with open_recording(tmp_path / "a.ome.zarr", (1, 9)) as recording:
        assert (recording.axes, recording.sizes, recording.dataset) == ("TCZYX", (8, 2, 3, 7, 9), "0")
        assert recording.info.pixel_size == (0.5, 0.25)
        assert recording.info.plane_spacing == 8
        assert recording.info.frame_interval == pytest.approx(0.05)
        assert recording.channels == ["GCaMP", "tdTomato"]
        assert recording.parts[4].name == "channel 2 (tdTomato), plane 2"
        for part, (c, z) in zip(recording.parts, np.ndindex(2, 3)):
            np.testing.assert_array_equal(part.movie.read(2, 7), movie[3:8, c, z])


@pytest.mark.parametrize(
    ("unit", "seconds"),
    [("nanosecond", 1e-9), ("microsecond", 1e-6), ("millisecond", 1e-3), ("second", 1.0), ("minute", 60.0),
     ("hour", 3600.0), ("fortnight", None)],
)  # fmt: skip
def test_frame_interval_of_ome_zarr_in_any_unit(tmp_path: Path, unit: str, seconds: float | None) -> None:
    save_ome_zarr(tmp_path / "a.zarr", pixels(4, 1, 1, 7, 9), "zarr")
    file = tmp_path / "a.zarr" / ".zattrs"
    file.write_text(file.read_text().replace("millisecond", unit))
    with open_recording(tmp_path / "a.zarr") as recording:
        assert recording.info.frame_interval == (seconds and pytest.approx(50 * seconds))


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_images_in_groups_as_bioformats2raw_writes_them(tmp_path: Path, driver: str) -> None:
    path, movie = tmp_path / "a.zarr", pixels(10, 2, 3, 7, 9)
    save_ome_zarr(path / "0", movie, driver)
    save_ome_zarr(path / "0" / "labels" / "cells", movie, driver)
    (path / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    for name in (None, "0/0"):
        with open_recording(path, dataset=name) as recording:
            assert (recording.axes, recording.dataset) == ("TCZYX", "0/0")
            assert recording.info.pixel_size == (0.5, 0.25)
            assert recording.channels == ["GCaMP", "tdTomato"]
            np.testing.assert_array_equal(recording.parts[1].movie.read(0, 10), movie[:, 0, 1])
    save_ome_zarr(path / "1", movie, driver)
    refused(path, r"found 0/0 \(10 x 2 x 3 x 7 x 9\), 1/0 \(10 x .*; give one by --dataset")


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_plain_zarr_of_one_array(tmp_path: Path, driver: str) -> None:
    movie = pixels(10, 7, 9, dtype="float32")
    save_zarr(tmp_path / "a.zarr", movie, driver)
    save_zarr(tmp_path / "b.zarr" / "lab" / "x", movie, driver)
    save_zarr(tmp_path / "b.zarr" / "y", movie[:2], driver)
    with open_recording(tmp_path / "a.zarr") as recording:
        np.testing.assert_array_equal(recording.parts[0].movie.read(0, 10), movie)
    refused(tmp_path / "b.zarr", r"found lab/x \(10 x 7 x 9\), y \(2 x 7 x 9\); give one by --dataset")
    with open_recording(tmp_path / "b.zarr", dataset="lab/x") as recording:
        assert (recording.dataset, recording.sizes) == ("lab/x", (10, 7, 9))


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("fill", [0, 7])
def test_zarr_of_chunks_that_are_not_stored(tmp_path: Path, driver: str, fill: int) -> None:
    how: dict[str, Any] = {"chunks": [2, 70, 90], "dtype": "<u2"} if driver == "zarr" else {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 70, 90]}}, "data_type": "uint16"
    }  # fmt: skip
    movie = np.full((10, 70, 90), fill, np.uint16)
    for name in ("empty", "sparse"):
        if name == "sparse":
            movie[4] = pixels(70, 90)
        path = tmp_path / f"{name}.zarr"
        save_zarr(path, movie, driver, fill_value=fill, **how)
        (path / "9.9.9").touch()  # no chunk of this array
        with open_recording(path) as recording:
            np.testing.assert_array_equal(recording.parts[0].movie.read(0, 10), movie)
            missing = 5 if name == "empty" else 4
            note = f"{missing} of 5 chunks are not stored: their voxels are taken as the fill value, {fill}"
            assert recording.info.notes == (note,)


def test_zarr_that_has_all_its_chunks_tells_of_none(tmp_path: Path) -> None:
    for driver in ("zarr", "zarr3"):
        save_ome_zarr(tmp_path / f"{driver}.ome.zarr", pixels(10, 2, 3, 7, 9), driver)
        with open_recording(tmp_path / f"{driver}.ome.zarr") as recording:
            assert recording.info.notes == ()


@pytest.mark.parametrize(("names", "shape"), [("zyx", (1, 7, 9)), ("czyx", (2, 1, 7, 9))])
def test_ome_zarr_of_one_plane_is_a_movie_of_one_frame(
    tmp_path: Path, names: str, shape: tuple[int, ...]
) -> None:
    movie = pixels(*shape)
    save_zarr(tmp_path / "a.zarr" / "0", movie, "zarr")
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps(described(names)))
    with open_recording(tmp_path / "a.zarr") as recording:
        assert recording.frame_axis == "T"
        frames = [part.movie.read(0, 1) for part in recording.parts]  # (1, Y, X) of each channel
        np.testing.assert_array_equal(frames, movie if names == "czyx" else movie[None])


def test_hostile_zarr_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    save_zarr(path, pixels(4, 5, 6), "zarr")
    array = json.loads((path / ".zarray").read_text())
    for lie, match in (
        ({"filters": [{"id": "pickle"}]}, "found pickle"),
        ({"dtype": "|O"}, "expected one of uint8"),
        ({"shape": [10**12, 5, 6]}, "cut off or never written"),
        ({"shape": [4, 10**6, 10**6]}, "expected frames of at most"),
        ({"chunks": [10**9, 5, 6]}, "expected chunks of at most"),
        ({"shape": [4, -5, 6]}, "expected sizes of an array"),
        ({"shape": "4"}, "expected"),
        ({"shape": [5, 5, 6], "chunks": [1, 5, 6], "fill_value": None}, "4 of 5 chunks are not stored; copy"),
    ):
        (path / ".zarray").write_text(json.dumps(array | lie))
        refused(path, match)
    (path / ".zarray").write_text(json.dumps(array))
    (tmp_path / "secret").write_bytes((path / "0.0.0").read_bytes())
    (path / "0.0.0").unlink()
    (path / "0.0.0").symlink_to(tmp_path / "secret")
    refused(path, "found a link")


def test_zarr_that_names_an_array_outside_is_refused(tmp_path: Path) -> None:
    save_zarr(tmp_path / "secret.zarr", pixels(4, 5, 6), "zarr")
    path = tmp_path / "a.zarr"
    path.mkdir()
    multiscales = {"axes": ["t", "y", "x"], "datasets": [{"path": "../secret.zarr"}]}
    (path / ".zattrs").write_text(json.dumps({"multiscales": [multiscales]}))
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    refused(path, "found none")
    refused(path, "found none", "../secret.zarr")


def test_all_files_of_a_zarr_are_known(tmp_path: Path) -> None:
    save_ome_zarr(tmp_path / "a.ome.zarr", pixels(10, 2, 3, 7, 9), "zarr")
    there = {path for path in (tmp_path / "a.ome.zarr").rglob("*") if path.is_file()}
    assert set(container_files(tmp_path / "a.ome.zarr")) == there


# ---- pages of an array


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_pages_of_any_array(leading: list[int], data: st.DataObject) -> None:
    array = np.arange(np.prod(leading) * 6).reshape(*leading, 2, 3)
    pages = array.reshape(-1, 2, 3)
    start = data.draw(st.integers(0, len(pages) - 1))
    stop = data.draw(st.integers(start + 1, len(pages)))
    step = data.draw(st.integers(1, 5))
    np.testing.assert_array_equal(ArrayPages(array).frames(start, stop, step), pages[start:stop:step])
