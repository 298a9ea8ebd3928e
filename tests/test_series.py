"""A recording in several TIFF files as one movie: --series. The files are made by Pillow, or were by a microscope."""

from __future__ import annotations

import doctest
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from test_formats import OME, imagej, pixels, save_by_pillow

from denoise import layout
from denoise.formats import MAX_OPEN_FILES, open_recording, open_series
from denoise.layout import LayoutError, plan_movies
from denoise.movies import MovieError
from denoise.ome import ome_metadata_file
from denoise.outputs import output_writer


def planned(folder: Path, *names: str) -> layout.Plan:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return plan_movies(folder, folder.parent / "out", series=True)


def files_by_output(plan: layout.Plan, folder: Path) -> dict[str, list[str]]:
    """Relative path of each output -> its input files, in order."""
    return {
        job.output.relative_to(folder.parent / "out").as_posix(): [
            path.relative_to(folder).as_posix() for path in job.series or [job.source]
        ]
        for job in plan.jobs
    }


def test_numbered_files_are_one_movie_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    plan = planned(
        tmp_path / "in", "d/Img_10.tif", "d/Img_9.tif", "Img_1.tif", "d/Img_8.tif", "d/a.mha", "x.tif"
    )
    assert files_by_output(plan, tmp_path / "in") == {
        "d/Img.tif": ["d/Img_8.tif", "d/Img_9.tif", "d/Img_10.tif"],
        "Img_1.tif": ["Img_1.tif"],
        "d/a.tif": ["d/a.mha"],
        "x.tif": ["x.tif"],
    }
    assert [job.name for job in plan.jobs if job.series] == ["d/Img_8.tif to Img_10.tif"]
    assert plan.warnings == []


def test_the_last_number_counts_and_names_do_not_collide(tmp_path: Path) -> None:
    names = [
        "0001.tif",
        "0002.tif",
        "m1_1.tif",
        "m1_2.tif",
        "m2_1.tif",
        "m2_2.tif",
        "m-1.tif",
        "m-2.tif",
        "m.tif",
    ]
    found = files_by_output(planned(tmp_path / "day 1", *names), tmp_path / "day 1")
    assert found["day 1.tif"] == ["0001.tif", "0002.tif"], "named after its folder"
    assert (found["m1.tif"], found["m2.tif"]) == (["m1_1.tif", "m1_2.tif"], ["m2_1.tif", "m2_2.tif"])
    assert found["m.tif"] == ["m.tif", "m-1.tif", "m-2.tif"]
    assert len(found) == 4


@pytest.mark.parametrize(
    ("names", "movies"),
    [
        # Micro-Manager, a file for each 4 GB of each position
        (
            [f"run_MMStack_Pos{p}{n}.ome.tif" for p in (0, 1) for n in ("", "_1", "_2")],
            [[f"run_MMStack_Pos{p}{n}.ome.tif" for n in ("", "_1", "_2")] for p in (0, 1)],
        ),
        (["rec.tif", "rec_X2.tif", "rec_X3.tif"], [["rec.tif", "rec_X2.tif", "rec_X3.tif"]]),  # Andor
        (["rec.tiff", "rec-1.tif", "rec-2.TIF"], [["rec.tiff", "rec-1.tif", "rec-2.TIF"]]),
        (["d/rec.tif", "d/rec 1.tif", "rec.tif"], [["d/rec.tif", "d/rec 1.tif"], ["rec.tif"]]),
        # no file without the number: another folder, format, copies, a row from 0 on
        (["d/x_1.tif", "x.tif"], [["d/x_1.tif"], ["x.tif"]]),
        (["x_1.tif", "x.mha"], [["x.mha"], ["x_1.tif"]]),
        (["x (2).tif", "x.tif"], [["x (2).tif"], ["x.tif"]]),
        (["x_0.tif", "x_1.tif", "x.tif"], [["x.tif"], ["x_0.tif", "x_1.tif"]]),
        # a copy of one of a row does not take it away
        (["x1.tif", "x2.tif", "x1-1.tif"], [["x1.tif", "x2.tif"], ["x1-1.tif"]]),
        (["x.tif", "x_1.tif", "x_1_1.tif"], [["x.tif"], ["x_1.tif", "x_1_1.tif"]]),
    ],
)
def test_the_file_without_the_number_comes_first(
    tmp_path: Path, names: list[str], movies: list[list[str]]
) -> None:
    plan = planned(tmp_path / "in", *names)
    assert sorted(files_by_output(plan, tmp_path / "in").values()) == sorted(movies)
    assert (plan.warnings, plan.unusable) == ([], {})


def test_a_movie_is_named_after_the_file_without_the_number(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "rec.tif", "rec_X2.tif", "Pos0.ome.tif", "Pos0_1.ome.tif")
    assert list(files_by_output(plan, tmp_path / "in")) == ["Pos0.ome.tif", "rec.tif"]


def test_files_between_the_one_without_number_and_the_next_are_missed(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "x.tif", "x_4.tif")
    assert len(plan.warnings) == 1
    assert "expected files numbered 1 to 4, found none for 2-3" in plan.warnings[0]


def test_one_number_that_is_not_the_last_makes_a_row_with_a_warning(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", *(f"file00{n}_chan0.tif" for n in range(3)), "a_1.tif", "a_2.tif")
    assert files_by_output(plan, tmp_path / "in") == {
        "a.tif": ["a_1.tif", "a_2.tif"],
        "file_chan0.tif": ["file000_chan0.tif", "file001_chan0.tif", "file002_chan0.tif"],
    }
    assert [warning.split(":")[0] for warning in plan.warnings] == ["file000_chan0.tif to file002_chan0.tif"]


def test_of_several_numbers_that_differ_the_last_one_counts(tmp_path: Path) -> None:
    """Bruker's, of two channels."""
    names = [f"TS-001_Cycle00001_Ch{c}_00000{t}.ome.tif" for c in (1, 2) for t in (1, 2, 3)]
    plan = planned(tmp_path / "in", *names)
    assert list(files_by_output(plan, tmp_path / "in").values()) == [names[:3], names[3:]]
    assert plan.warnings == []


@pytest.mark.parametrize(
    "names",
    [
        ("img_channel{}_position000_time{}_z000.tif", "01", "012"),  # Micro-Manager, one frame each
        ("file00{1}_chan{0}.tif", "01", "012"),  # suite2p
        ("rec_{1}_Pos{0}.tif", "12", "1234"),
    ],
)
def test_numbers_of_channels_and_positions_do_not_count_frames(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    form, others, times = names
    rows = [[form.format(other, time) for time in times] for other in others]
    plan = planned(tmp_path / "in", *rows[0], *rows[1])
    assert sorted(files_by_output(plan, tmp_path / "in").values()) == rows
    assert ["not the last in the names" in warning for warning in plan.warnings] == [True, True]


def test_files_that_may_be_channels_or_positions_are_one_movie_with_a_warning(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "m_ch1.tif", "m_ch2.tif")
    assert list(files_by_output(plan, tmp_path / "in").values()) == [["m_ch1.tif", "m_ch2.tif"]]
    assert "one movie by a number behind 'm_ch', which may count channels" in plan.warnings[0]


def test_endings_of_one_row_may_differ(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "x_1.tif", "x_2.TIFF", "x_3.tiff", "x_4.TIF")
    assert files_by_output(plan, tmp_path / "in") == {"x.tif": ["x_1.tif", "x_2.TIFF", "x_3.tiff", "x_4.TIF"]}


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True))
def test_order_of_any_numbers(numbers: list[int]) -> None:
    names = sorted((f"x_{number}.tif" for number in numbers), key=layout._natural_key)
    (series,) = layout._group_series(names, "top")
    assert series.title == "x.tif"
    assert series.files == [f"x_{number}.tif" for number in sorted(numbers)]


def test_gaps_are_told(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "x_1.tif", "x_2.tif", "x_4.tif", "x_9.tif")
    assert len(plan.warnings) == 1
    assert "expected files numbered 1 to 9, found none for 3, 5-8" in plan.warnings[0]
    assert doctest.testmod(layout).failed == 0


@pytest.mark.parametrize("names", [["x.tif", "x.tiff"], ["x_1.tiff", "x_1.tif"]])
def test_two_files_of_one_number_are_refused_whatever_their_endings(tmp_path: Path, names: list[str]) -> None:
    plan = planned(tmp_path / "in", *names, "x_1.tif", "x_2.tif")
    assert plan.jobs == []
    assert "expected each number once, found " in plan.unusable["x.tif"]
    assert all(name in plan.unusable["x.tif"] for name in names)


def test_a_number_twice_is_refused(tmp_path: Path) -> None:
    plan = planned(tmp_path / "in", "x_1.tif", "x_01.tif", "x_2.tif", "y.tif")
    assert list(files_by_output(plan, tmp_path / "in")) == ["y.tif"]
    assert plan.unusable == {"x.tif": "expected each number once, found x_01.tif and x_1.tif; remove one"}


def test_one_file_is_no_series(tmp_path: Path) -> None:
    (tmp_path / "x_1.tif").touch()
    with pytest.raises(LayoutError, match="expected a folder of files that belong together"):
        plan_movies(tmp_path / "x_1.tif", tmp_path / "out", series=True)


def test_output_over_a_later_file_of_the_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x_1.tif").touch()
    (tmp_path / "x_2.tif").symlink_to(tmp_path / "out" / "x.tif")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.tif").touch()
    with pytest.raises(LayoutError, match="found an input movie"):
        plan_movies(tmp_path, tmp_path / "out", series=True)


def test_real_single_frames_are_the_beginning_of_the_real_movie(data: Path) -> None:
    plan = plan_movies(data / "fmi_frames", Path("/nowhere"), series=True)
    assert [path.name for path in plan.jobs[0].series] == [f"Img_{number}.tif" for number in range(1, 25)]
    with (
        open_series(plan.jobs[0].series) as series,
        open_recording(data / "fmi_2p_first800.tif", (None, 24)) as movie,
    ):
        assert series.info.shape == movie.info.shape == (24, 256, 256)
        np.testing.assert_array_equal(series.parts[0].movie.read(0, 24), movie.parts[0].movie.read(0, 24))


def save_pieces(folder: Path, voxels: np.ndarray, cuts: list[int], **description: str) -> list[Path]:
    """Files of (T, ..., Y, X) frames cut before these frames; description: of a file of so many frames."""
    paths = []
    for number, piece in enumerate(np.split(voxels, cuts)):
        path = folder / f"x_{number}.tif"
        save_by_pillow(path, piece.reshape(-1, *voxels.shape[-2:]), description.get(f"t{len(piece)}", ""))
        paths.append(path)
    return paths


@pytest.mark.parametrize("frames", [(None, None), (4, 12), (-3, None)])
def test_multi_page_files_with_frames_chosen(tmp_path: Path, frames: tuple[int | None, int | None]) -> None:
    voxels = pixels(15)
    paths = save_pieces(tmp_path, voxels, [5, 6, 14])  # files of 5, 1, 8 and 1 pages
    wanted = voxels[slice(*frames)]
    with open_series(paths, frames) as series:
        movie = series.parts[0].movie
        assert movie.info.shape == wanted.shape
        for start, stop in ((0, len(wanted)), (1, len(wanted)), (0, 1)):
            np.testing.assert_array_equal(movie.read(start, stop), wanted[start:stop])


def test_channels_are_taken_apart_in_every_file(tmp_path: Path) -> None:
    voxels = pixels(7, 2)
    texts = {f"t{n}": imagej(2, 1, n) for n in (3, 1)}
    paths = save_pieces(tmp_path, voxels, [3, 6], **texts)  # the last file has one frame of two channels
    with (
        open_series(paths) as series,
        output_writer(tmp_path / "out.tif", series, np.dtype("uint16")) as writer,
    ):
        assert (series.axes, series.sizes) == ("TCYX", (7, 2, 7, 9))
        for part in series.parts:
            for start in range(7):
                writer.append_to(part, part.movie.read(start, start + 1))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), voxels)


def test_ome_that_speaks_of_all_files_is_not_one_file_s_shape(tmp_path: Path) -> None:
    voxels = pixels(3)
    description = OME.format(
        order="CZT", T=3, C=1, Z=1, channels=""
    )  # as Bruker's software repeats it in each file
    paths = save_pieces(tmp_path, voxels, [1, 2], t1=description)
    with open_series(paths) as series:
        assert series.info.shape == (3, 7, 9)
        assert (series.info.pixel_size, series.info.frame_interval) == ((0.25, 0.5), 0.1)
        np.testing.assert_array_equal(series.parts[0].movie.read(0, 3), voxels)


def test_what_is_told_of_the_first_file_is_told_of_the_series(tmp_path: Path) -> None:
    for number in range(2):
        tifffile.imwrite(tmp_path / f"x_{number}.tif", pixels(1)[0], photometric="miniswhite")
    with open_series([tmp_path / "x_0.tif", tmp_path / "x_1.tif"]) as series:
        assert [note.split(":")[0] for note in series.info.notes] == ["MinIsWhite"]


def blocks(*places: str, count: int) -> str:
    """OME's words for files x_0.tif, x_1.tif, ... of so many images, that begin at these places."""
    return "".join(
        f'<TiffData {place} IFD="0" PlaneCount="{count}"><UUID FileName="x_{number}.tif">urn:uuid:0</UUID></TiffData>'
        for number, place in enumerate(places)
    )


@pytest.mark.parametrize(
    ("order", "sizes", "held", "found"),
    [
        ("CZT", {"T": 4, "C": 1, "Z": 1}, blocks("", 'FirstT="2"', count=2), None),
        (
            "TCZ",
            {"T": 2, "C": 3, "Z": 1},
            blocks('FirstC="1"', 'FirstC="1"', count=2),
            None,
        ),  # of one channel
        ("TCZ", {"T": 2, "C": 2, "Z": 1}, blocks("", 'FirstC="1"', count=2), "2 channel(s), 1 plane(s)"),
        ("TCZ", {"T": 2, "C": 1, "Z": 2}, blocks("", 'FirstZ="1"', count=2), "1 channel(s), 2 plane(s)"),
        ("CZT", {"T": 2, "C": 2, "Z": 1}, blocks("", 'FirstT="1"', count=2), "2 channel(s)"),  # in each file
        ("CZT", {"T": 2, "C": 2, "Z": 1}, "<TiffData/>", "2 channel(s)"),  # of which it does not say
    ],
)
def test_files_of_several_channels_or_planes_by_ome_do_not_follow_in_time(
    tmp_path: Path, order: str, sizes: dict[str, int], held: str, found: str | None
) -> None:
    description = OME.format(order=order, channels="", **sizes).replace("<TiffData/>", held)
    paths = save_pieces(tmp_path, pixels(4), [2], t2=description)
    if found is None:
        with open_series(paths) as series:
            assert series.info.shape == (4, 7, 9)
        return
    with pytest.raises(MovieError, match=re.escape(f"found 1 image(s), {found}")):
        open_series(paths)


BINARY_ONLY = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><BinaryOnly MetadataFile="{}"/></OME>'
)


@pytest.mark.parametrize(
    ("sizes", "places", "found"),
    [
        (
            {"T": 2, "C": 3, "Z": 1},
            ("", 'FirstC="1"', 'FirstC="1" FirstT="1"'),
            None,
        ),  # later files of a channel
        ({"T": 1, "C": 1, "Z": 3}, ("", 'FirstZ="1"', 'FirstZ="2"'), "1 channel(s), 2 plane(s)"),
    ],
)
def test_one_file_may_tell_of_all_others(
    tmp_path: Path, sizes: dict[str, int], places: tuple[str, ...], found: str | None
) -> None:
    """As Bruker's do: planes of a volume do not follow in time, whatever file of it is asked."""
    description = OME.format(order="CZT", channels="", **sizes)
    paths = save_pieces(tmp_path, pixels(3), [1, 2])
    save_by_pillow(paths[0], pixels(3)[:1], description.replace("<TiffData/>", blocks(*places, count=1)))
    for path in paths[1:]:
        save_by_pillow(path, pixels(3)[:1], BINARY_ONLY.format(paths[0].name))
    if found:
        with pytest.raises(MovieError, match=re.escape(f"found 1 image(s), {found}")):
            open_series(paths[1:])
        return
    with open_series(paths[1:]) as series:
        assert series.info.shape == (2, 7, 9)
        assert (series.info.pixel_size, series.info.frame_interval) == ((0.25, 0.5), 0.1)


@pytest.mark.parametrize("name", ["gone.tif", "../x_0.tif", "link.tif", "", "x.companion.ome"])
def test_what_tells_of_a_file_lies_beside_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    outside = tmp_path / "x_0.tif"
    save_by_pillow(outside, pixels(1), OME.format(order="CZT", channels="", T=1, C=1, Z=1))
    (folder / "link.tif").symlink_to(outside)
    path = folder / "x_1.tif"
    save_by_pillow(path, pixels(1), BINARY_ONLY.format(name))
    assert ome_metadata_file(path) == path


def test_a_file_read_without_the_others_of_its_movie_tells_of_them(tmp_path: Path) -> None:
    held = blocks("", 'FirstT="2"', 'FirstT="4"', count=2)
    description = OME.format(order="CZT", channels="", T=6, C=1, Z=1).replace("<TiffData/>", held)
    paths = save_pieces(tmp_path, pixels(6), [2, 4], t2=description)
    with open_recording(paths[1]) as recording:
        assert recording.info.shape == (2, 7, 9)
        (note,) = recording.info.notes
        assert "which are not read with it (x_0.tif and 1 more): --series" in note
    with open_series(paths) as series:
        assert (series.info.shape, series.info.notes) == ((6, 7, 9), ())
    with open_recording(paths[0].rename(tmp_path / "copy.tif")) as recording:
        assert recording.info.notes == ()


def test_positions_by_ome_do_not_follow_in_time(tmp_path: Path) -> None:
    description = OME.format(order="CZT", T=2, C=1, Z=1, channels="")
    image = description[description.index("<Image") : description.index("</OME>")]
    images = [
        image.replace("<TiffData/>", block + "</TiffData>")
        for block in blocks("", "", count=2).split("</TiffData>")[:2]
    ]
    description = description.replace(image, "".join(images)).replace('SizeT="2"', 'SizeT="4"')
    with pytest.raises(MovieError, match=r"found 2 image\(s\)"):
        open_series(save_pieces(tmp_path, pixels(4), [2], t2=description))


def test_the_odd_file_is_named_with_both_values(tmp_path: Path) -> None:
    paths = save_pieces(tmp_path, pixels(4), [1, 2, 3])
    save_by_pillow(paths[2], np.zeros((1, 7, 8), np.uint16), "")
    message = (
        r"x_2\.tif: expected frames of Y 7 x X 9, uint16, as in x_0\.tif, found frames of Y 7 x X 8, uint16"
    )
    with pytest.raises(MovieError, match=message):
        open_series(paths)
    save_by_pillow(paths[2], np.zeros((1, 7, 9), np.uint8), "")
    with pytest.raises(MovieError, match=r"x_2\.tif: .*found frames of Y 7 x X 9, uint8"):
        open_series(paths)


def test_few_files_are_open_at_a_time_and_none_at_last(tmp_path: Path) -> None:
    paths = save_pieces(tmp_path, pixels(40), list(range(1, 40)))
    for path in paths:
        tifffile.imwrite(path, pixels(40)[int(path.stem[2:])], compression="zlib", metadata=None)  # held open
    with open_series(paths) as series:
        np.testing.assert_array_equal(series.parts[0].movie.read(0, 40), pixels(40))
        assert len(series.source.opened) == MAX_OPEN_FILES  # type: ignore[attr-defined]
    # the fixture no_file_left_open looks for the rest


def save_ndtiff(folder: Path, voxels: np.ndarray, cuts: list[int], axis: str = "time") -> list[Path]:
    """Files of (T, Y, X) frames cut before these, and the index that tells of all, as Micro-Manager 2 saves them."""
    (height, width), size = voxels.shape[1:], voxels[0].nbytes
    paths, index, count = [], b"", 0
    for number, frames in enumerate(np.split(voxels, cuts)):
        path = folder / f"run_NDTiffStack{f'_{number}' if number else ''}.tif"
        content = struct.pack("<2sH6I", b"II", 42, 38, 483729, 3, 3, 2355492, 10) + b"{}".ljust(10)
        for page, frame in enumerate(frames):
            begin = len(content) + 2 + 12 * 10 + 4
            tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, begin), (277, 1)]
            tags += [(278, height), (279, size), (51123, 28)]
            content += struct.pack("<H", len(tags))
            for code, value in tags:
                kind, length = (2, 10) if code == 51123 else (4, 1)
                content += struct.pack("<HHII", code, kind, length, value)
            content += struct.pack("<I", begin + size if page + 1 < len(frames) else 0) + frame.tobytes()
            axes, name = json.dumps({axis: count}).encode(), path.name.encode()
            index += struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name
            index += struct.pack("<Iiiiiiii", begin, width, height, 1, 0, 0, 0, 0)
            count += 1
        path.write_bytes(content)
        paths.append(path)
    (folder / "NDTiff.index").write_bytes(index)
    return paths


def test_parts_of_an_ndtiff_are_one_movie(tmp_path: Path) -> None:
    """Its index tells of all files together, whichever of them is asked."""
    voxels = pixels(9)
    paths = save_ndtiff(tmp_path, voxels, [4, 8])  # of 4, 4 and 1 frames
    assert list(plan_movies(tmp_path, tmp_path / "out", series=True).jobs[0].series) == paths
    with open_series(paths) as series:
        assert series.info.shape == (9, 7, 9)
        np.testing.assert_array_equal(series.parts[0].movie.read(0, 9), voxels)
    with pytest.raises(
        MovieError, match="expected 9 frames by its description, found 4 pages; --series makes one"
    ):
        open_recording(paths[1])


def test_an_ndtiff_of_one_file_is_a_movie_as_its_index_tells(tmp_path: Path) -> None:
    (path,) = save_ndtiff(tmp_path, pixels(4), [])
    with open_recording(path) as recording:
        assert recording.info.axes == "TYX"
        np.testing.assert_array_equal(recording.parts[0].movie.read(0, 4), pixels(4))


def test_parts_of_an_ndtiff_of_channels_are_refused(tmp_path: Path) -> None:
    paths = save_ndtiff(tmp_path, pixels(4), [2], axis="channel")
    with pytest.raises(MovieError, match="found 2 pages; export it again"):
        open_series(paths)
