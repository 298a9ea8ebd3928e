"""Which movies are found, where their outputs go, and what is refused: denoise/layout.py."""

from __future__ import annotations

import doctest
import errno
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoise import NAME, console, layout
from denoise.formats import SUFFIXES
from denoise.layout import (
    INPUT_SOCKET,
    OUTPUT_SOCKET,
    LayoutError,
    Plan,
    output_names,
    plan_movies,
    refuse_existing,
)
from denoise.records import write_metadata

SOCKET_FOLDER = f"images/{INPUT_SOCKET}"
OUTPUT_FOLDER = f"images/{OUTPUT_SOCKET}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def inputs_json(folder: Path, entries: object) -> None:
    folder.joinpath("inputs.json").write_text(json.dumps(entries))


def entry(relative_path: object = SOCKET_FOLDER, slug: object = INPUT_SOCKET, key: str = "socket") -> dict:
    return {"file": None, "image": {"name": "a.tif"}, key: {"slug": slug, "relative_path": relative_path}}


def targets(plan: Plan, output: Path) -> dict[str, str]:
    return {job.name: job.output.relative_to(output).as_posix() for job in plan.jobs}


# ---- a plain folder


def test_folder_is_read_recursively_in_natural_order(source: Path, output: Path) -> None:
    touch(source, "m10.tif", "m2.TIFF", "M1.tif", "deep/er/x.nii.gz", "deep/y.Mha", "notes.txt", "image.dat")
    plan = plan_movies(source, output)
    assert plan.layout == "folder"
    assert [job.name for job in plan.jobs] == [
        "deep/er/x.nii.gz",
        "deep/y.Mha",
        "M1.tif",
        "m2.TIFF",
        "m10.tif",
    ]
    assert list(targets(plan, output).values()) == [
        "deep/er/x.tif",
        "deep/y.tif",
        "M1.tif",
        "m2.tif",
        "m10.tif",
    ]
    assert all(job.source.is_file() for job in plan.jobs)
    assert (plan.unusable, plan.warnings) == ({}, [])


def test_hidden_and_temporary_files_are_no_movies(source: Path, output: Path) -> None:
    touch(
        source,
        "a.tif",
        ".b.tif",
        "._a.tif",
        ".cache/c.tif",
        ".a.tif.123.part",
        "d.tif.part",
        "e.mhd",
        "e.raw",
    )
    plan = plan_movies(source, output)
    assert targets(plan, output) == {"a.tif": "a.tif", "e.mhd": "e.tif"}
    assert plan.warnings == []


def test_recordings_in_other_formats_are_told_of(source: Path, output: Path) -> None:
    touch(source, "a.tif", "b.CZI", "d/0.avi", "d/image.raw", "notes.txt", "metadata.xml")
    (warning,) = plan_movies(source, output).warnings
    assert warning == (
        "3 file(s) of formats that are not read, left out: b.CZI, d/0.avi, d/image.raw; save them as TIFF"
    )


def test_odd_names_survive(source: Path, output: Path) -> None:
    names = {
        "-rf.tif",
        "two\nlines.tif",
        " blank .tif",
        "caf\u00e9.tif",
        "a.b.c.tif",
        os.fsdecode(b"\xff.tif"),
    }
    touch(source, *names)
    assert targets(plan_movies(source, output), output) == {name: name for name in names}


def test_nothing_found_says_what_is_there(source: Path, output: Path) -> None:
    touch(source, "a.avi", "b.png", ".hidden.tif")
    with pytest.raises(
        LayoutError,
        match=r"input: expected a movie \(.*\.tif.*\), found only a\.avi, b\.png; save .* as TIFF, or give",
    ):
        plan_movies(source, output)
    (source / "a.avi").unlink()
    with pytest.raises(LayoutError, match=r"found only b\.png; give the folder"):
        plan_movies(source, output)


def test_many_other_files_are_not_all_listed(source: Path, output: Path) -> None:
    touch(source, *(f"{number}.png" for number in range(1000)))
    with pytest.raises(LayoutError, match="and 995 more") as caught:
        plan_movies(source, output)
    assert len(str(caught.value)) < 400


def test_empty_and_missing_inputs_are_errors(source: Path, output: Path) -> None:
    with pytest.raises(LayoutError, match=r"found no file"):
        plan_movies(source, output)
    with pytest.raises(
        LayoutError, match=r"nowhere: expected a folder of movies or one movie, found nothing"
    ):
        plan_movies(source / "nowhere", output)


def test_what_looks_like_a_movie_and_is_none_is_told(source: Path, output: Path) -> None:
    touch(source, "good.tif", "folder.tif/inside.tif")
    os.mkfifo(source / "pipe.tif")
    (source / "broken.tif").symlink_to("/nowhere/x.tif")
    plan = plan_movies(source, output)
    assert targets(plan, output) == {"good.tif": "good.tif"}
    assert set(plan.unusable) == {"folder.tif", "pipe.tif", "broken.tif"}
    assert "found a folder" in plan.unusable["folder.tif"]
    assert "a link to /nowhere/x.tif, which is not there" in plan.unusable["broken.tif"]


def test_unreadable_folder_is_told(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(source, "good.tif", "closed/x.tif")
    scandir = os.scandir

    def guarded(folder: Path) -> Iterator[os.DirEntry[str]]:  # a mode of 0 would not stop root
        if folder == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = source / "closed"
    plan = plan_movies(source, output)
    assert targets(plan, output) == {"good.tif": "good.tif"}
    assert plan.unusable == {"closed": "expected a folder that can be read, found: Permission denied"}
    closed = source
    with pytest.raises(
        LayoutError, match=r"input: expected a folder that can be read, found: Permission denied"
    ):
        plan_movies(source, output)


def test_links_neither_loop_nor_lead_out(source: Path, output: Path, tmp_path: Path) -> None:
    touch(source, "deep/a.tif")
    touch(tmp_path, "elsewhere/b.tif")
    (source / "deep/up").symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "self.tif").symlink_to("self.tif")
    (source / "other").symlink_to(tmp_path / "elsewhere")
    (source / "linked.tif").symlink_to(tmp_path / "elsewhere/b.tif")
    plan = plan_movies(source, output)
    assert targets(plan, output) == {"deep/a.tif": "deep/a.tif", "linked.tif": "linked.tif"}
    assert list(plan.unusable) == ["self.tif"]
    assert plan.warnings == ["other: a link to a folder elsewhere, not followed"]


def test_input_may_be_a_link_or_one_file(source: Path, output: Path, tmp_path: Path) -> None:
    touch(source, "a.tif", "b.NII.GZ", "c.txt")
    (tmp_path / "link").symlink_to(source)
    assert targets(plan_movies(tmp_path / "link", output), output) == {"a.tif": "a.tif", "b.NII.GZ": "b.tif"}
    plan = plan_movies(source / "b.NII.GZ", output)
    assert (plan.layout, targets(plan, output)) == ("file", {"b.NII.GZ": "b.tif"})
    with pytest.raises(LayoutError, match=r"c\.txt: expected a movie"):
        plan_movies(source / "c.txt", output)


def test_one_file_may_be_a_link_whatever_its_name(source: Path, output: Path) -> None:
    touch(source, "a.tif", "0c1d2e3f")
    (source / "link.tif").symlink_to("0c1d2e3f")
    (source / "input").symlink_to("a.tif")
    assert targets(plan_movies(source / "link.tif", output), output) == {"link.tif": "link.tif"}
    assert targets(plan_movies(source / "input", output), output) == {"a.tif": "a.tif"}


# ---- names of outputs

NAME_PARTS = st.sampled_from(
    ["a", "A", "a_tif", "a_tif_2", "a_mha", "\u00e9", "e\u0301", "\u00df", "ss", "a.tif"]
)
NAMES = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(st.sampled_from(["d", "D"]), max_size=2),
    NAME_PARTS,
    st.sampled_from([*SUFFIXES, ".TIF", ".Nii.Gz"]),
)


def same_to_some_file_system(name: str) -> str:
    return unicodedata.normalize("NFD", name.casefold())


@given(st.lists(NAMES, unique=True))
def test_no_two_outputs_fall_together(names: list[str]) -> None:
    outputs = output_names(names)
    assert len(outputs) == len(names)
    assert all(target.endswith(".tif") for target in outputs)
    assert len({same_to_some_file_system(target) for target in outputs}) == len(names)
    assert [Path(target).parent for target in outputs] == [Path(name).parent for name in names]


@given(st.lists(st.from_regex(r"[a-z_0-9]{1,5}", fullmatch=True), unique=True))
def test_names_that_do_not_collide_are_kept(stems: list[str]) -> None:
    assert output_names([f"{stem}.mha" for stem in stems]) == [f"{stem}.tif" for stem in stems]


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (["a.tif", "a.mha"], ["a_tif.tif", "a_mha.tif"]),
        (["a.tif", "a.mha", "a_tif.nrrd"], ["a_tif_2.tif", "a_mha.tif", "a_tif.tif"]),
        (["x/a.nii", "x/a.nii.gz", "a.nii"], ["x/a_nii.tif", "x/a_nii_gz.tif", "a.tif"]),
        (["a.tif", "A.tif"], ["a_tif.tif", "A_tif_2.tif"]),
    ],
)
def test_colliding_outputs_are_named_after_their_suffix(names: list[str], outputs: list[str]) -> None:
    assert output_names(names) == outputs


def test_what_is_written_beside_movies_has_names_of_its_own(source: Path, output: Path) -> None:
    touch(source, "a.ome.tif", "a.ome.zarr/x", "d/b.mha", "d/b.nii.gz", "c.h5")
    for same in (False, True):
        titles = {job.name: job.title for job in plan_movies(source, output, same=same).jobs}
        assert titles == {
            "a.ome.tif": "a.ome",
            "a.ome.zarr": "a",  # though the output of the same format is a.ome.zarr
            "d/b.mha": "d/b_mha",
            "d/b.nii.gz": "d/b_nii_gz",
            "c.h5": "c",
        }
    assert plan_movies(source / "a.ome.tif", output).jobs[0].title == "a.ome"


def test_doctests() -> None:
    assert doctest.testmod(layout).failed == 0
    assert doctest.testmod(console) == (0, 1)


# ---- the challenge's layout


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".mha", ".TIF"])
def test_challenge_image_goes_to_the_output_socket(source: Path, output: Path, suffix: str) -> None:
    touch(source, f"{SOCKET_FOLDER}/0a1b.v2{suffix}")
    inputs_json(source, [entry()])
    plan = plan_movies(source, output)
    assert plan.layout == "challenge"
    assert targets(plan, output) == {f"{SOCKET_FOLDER}/0a1b.v2{suffix}": f"{OUTPUT_FOLDER}/0a1b.v2.tif"}
    assert plan.warnings == []


INPUTS_JSON = {
    "absent": None,
    "interface": json.dumps([entry(key="interface")]).encode(),
    "both": json.dumps([entry() | entry(key="interface")]).encode(),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps([entry()]).encode(),
    "utf-16": json.dumps([entry()]).encode("utf-16"),
    "unknown keys": json.dumps([{"new": 1, "kind": None}, entry() | {"pk": "x", "values": [1]}]).encode(),
    "trailing slash": json.dumps([entry(SOCKET_FOLDER + "/")]).encode(),
    "path to the file": json.dumps([entry(SOCKET_FOLDER + "/a.tif")]).encode(),
    "folder that is not there": json.dumps([entry("images/nowhere")]).encode(),
    "empty": b"",
    "garbage": b"\x00\xff{",
    "cut off": json.dumps([entry()]).encode()[:-5],
    "deep": b"[" * 100_000,
    "huge": json.dumps([entry(), "x" * layout.MAX_INPUTS_JSON_BYTES]).encode(),
    "a dictionary": json.dumps(entry()).encode(),
    "null": b"null",
    "a list of odd things": json.dumps([None, 1, "x", [], {}, {"socket": 3}, {"interface": []}]).encode(),
    "odd values": json.dumps([entry(7, slug={}), entry(None), entry({"a": []}), entry(slug=None)]).encode(),
    "no path": json.dumps([entry("\0"), entry("\ud800"), entry("x" * 10_000)]).encode(),
    "leads out": json.dumps([entry("../.."), entry("/etc"), entry("images/../../x")]).encode(),
    "other sockets": json.dumps([entry("images/other", slug="other"), entry()]).encode(),
}


@pytest.mark.parametrize("content", INPUTS_JSON.values(), ids=INPUTS_JSON.keys())
def test_no_inputs_json_costs_a_run_its_image(source: Path, output: Path, content: bytes | None) -> None:
    touch(source, f"{SOCKET_FOLDER}/a.tif", "images/other/b.tif")
    if content is not None:
        (source / "inputs.json").write_bytes(content)
    plan = plan_movies(source, output)
    assert targets(plan, output) == {f"{SOCKET_FOLDER}/a.tif": f"{OUTPUT_FOLDER}/a.tif"}


@pytest.mark.parametrize("name", ["garbage", "null", "odd values", "leads out", "huge"])
def test_odd_inputs_json_is_told(source: Path, output: Path, name: str) -> None:
    touch(source, f"{SOCKET_FOLDER}/a.tif")
    (source / "inputs.json").write_bytes(INPUTS_JSON[name] or b"")
    warnings = plan_movies(source, output).warnings
    assert warnings
    assert all(warning.startswith("inputs.json: ") and warning.endswith("ignored") for warning in warnings)


def test_inputs_json_names_the_folder(source: Path, output: Path) -> None:
    touch(source, "moved/here/a.mha")
    inputs_json(source, [entry("moved/here")])
    plan = plan_movies(source, output)
    assert targets(plan, output) == {"moved/here/a.mha": f"{OUTPUT_FOLDER}/a.tif"}


@pytest.mark.parametrize("place", ["images/other-socket", "", "deep/er"])
def test_an_image_elsewhere_is_taken_with_a_warning(source: Path, output: Path, place: str) -> None:
    touch(source, str(Path(place) / "a.tif"))
    inputs_json(source, [entry("images/other-socket", slug="other-socket")])
    plan = plan_movies(source, output)
    assert list(targets(plan, output).values()) == [f"{OUTPUT_FOLDER}/a.tif"]
    assert plan.warnings == [f"{SOCKET_FOLDER}: expected the movie there, took {Path(place) / 'a.tif'}"]


@pytest.mark.parametrize("relative_path", [SOCKET_FOLDER, f"{SOCKET_FOLDER}/a.tif", "images"])
def test_an_image_in_its_place_is_no_warning_however_it_is_named(
    source: Path, output: Path, relative_path: str
) -> None:
    touch(source, f"{SOCKET_FOLDER}/a.tif")
    inputs_json(source, [entry(relative_path)])
    assert plan_movies(source, output).warnings == []


def test_more_than_one_image_is_an_error_that_names_them(source: Path, output: Path) -> None:
    touch(source, f"{SOCKET_FOLDER}/b.tif", f"{SOCKET_FOLDER}/a.mha")
    with pytest.raises(LayoutError, match=r"expected one movie.* found 2: a\.mha, b\.tif; leave one"):
        plan_movies(source, output)
    plan = plan_movies(source / SOCKET_FOLDER, output)  # as the message advises
    assert len(plan.jobs) == 2


def test_no_image_is_an_error_that_says_what_was_odd(source: Path, output: Path) -> None:
    touch(source, f"{SOCKET_FOLDER}/notes.txt")
    inputs_json(source, [entry("../secret")])
    expected = (
        rf"expected one movie in {SOCKET_FOLDER} .*found only inputs\.json, notes\.txt; .*'\.\./secret'"
    )
    with pytest.raises(LayoutError, match=expected):
        plan_movies(source, output)


@pytest.mark.parametrize("relative_path", ["../secret", "link", "images/link/..", "link/x.tif"])
def test_challenge_input_is_not_left(source: Path, output: Path, tmp_path: Path, relative_path: str) -> None:
    touch(tmp_path, "secret/x.tif")
    (source / "link").symlink_to(tmp_path / "secret")
    (source / "images").mkdir()
    (source / "images/link").symlink_to(tmp_path / "secret")
    inputs_json(source, [entry(relative_path), entry(str(tmp_path / "secret"))])
    with pytest.raises(LayoutError, match="no path inside the input folder, ignored"):
        plan_movies(source, output)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_links_out_of_the_socket_folder_are_ignored(
    source: Path, output: Path, tmp_path: Path, kind: str
) -> None:
    touch(tmp_path, "secret/x.tif")
    socket_folder = source / SOCKET_FOLDER
    socket_folder.parent.mkdir()
    if kind == "folder":
        socket_folder.symlink_to(tmp_path / "secret")
    else:
        socket_folder.mkdir()
        (socket_folder / "x.tif").symlink_to(tmp_path / "secret/x.tif")
    with pytest.raises(LayoutError, match=r"x\.tif: a link that leaves the input folder, ignored"):
        plan_movies(source, output)


def test_challenge_input_may_be_a_link(source: Path, output: Path, tmp_path: Path) -> None:
    touch(source, f"{SOCKET_FOLDER}/a.tif")
    inputs_json(source, [entry()])
    (tmp_path / "link").symlink_to(source)
    plan = plan_movies(tmp_path / "link", output)
    assert targets(plan, output) == {f"{SOCKET_FOLDER}/a.tif": f"{OUTPUT_FOLDER}/a.tif"}


# ---- outputs that exist, or would be inputs


def test_outputs_are_kept_apart_from_inputs(source: Path) -> None:
    touch(source, "a.tif", "b.mha")
    with pytest.raises(LayoutError, match=r"a\.tif: expected a new file as output, found an input movie"):
        plan_movies(source, source)
    (source / "a.tif").unlink()
    with pytest.raises(LayoutError, match=r"b\.tif: expected outputs apart from the inputs"):
        plan_movies(source, source)


def test_one_file_is_not_its_own_output(source: Path, tmp_path: Path) -> None:
    touch(source, "a.tif", "b.mha")
    with pytest.raises(LayoutError, match="found an input movie"):
        plan_movies(source / "a.tif", source)
    assert targets(plan_movies(source / "b.mha", source), source) == {"b.mha": "b.tif"}
    (tmp_path / "out").symlink_to(source)
    with pytest.raises(LayoutError, match="found an input movie"):
        plan_movies(source / "a.tif", tmp_path / "out")


@pytest.mark.parametrize("given", [".", "a.zarr"])
@pytest.mark.parametrize("below", ["", "0/new"])
def test_no_output_lies_in_a_movie_that_is_a_folder(source: Path, given: str, below: str) -> None:
    touch(source, "a.zarr/0/.zarray")
    with pytest.raises(LayoutError, match=r"a\.tif: expected a new file as output, found an input movie"):
        plan_movies(source / given, source / "a.zarr" / below)
    assert len(plan_movies(source / "a.zarr", source).jobs) == 1  # beside it


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_linked_input_is_not_overwritten(source: Path, output: Path, link: object) -> None:
    touch(source, "a.tif")
    output.mkdir()
    link(source / "a.tif", output / "a.tif")  # type: ignore[operator]
    with pytest.raises(LayoutError, match="found an input movie"):
        plan_movies(source, output)


def test_output_folder_inside_the_input_is_not_read(source: Path) -> None:
    touch(source, "a.tif", "results/a.tif", "results/old.tif")
    plan = plan_movies(source, source / "results")
    assert targets(plan, source / "results") == {"a.tif": "a.tif"}
    assert "lies in the input folder" in plan.warnings[0]


def earlier_run(folder: Path, *outputs: str, name: str = NAME) -> None:
    """An output folder as a run leaves it."""
    touch(folder, *outputs)
    movies = [{"input": "x", "output": output, "status": "ok"} for output in outputs]
    write_metadata(folder, {"program": {"name": name, "version": "1"}, "movies": movies, "earlier": []})


def test_what_earlier_runs_wrote_is_left_out(source: Path, output: Path) -> None:
    touch(source, "a.tif", "day 1/b.mha", "out 1/mine.tif", "other/c.tif")
    earlier_run(source / "out 1", "a.tif", "day 1/b.tif", "c.zarr", "gone.tif")
    for name in ("gone.tif", "c.zarr"):
        (source / "out 1" / name).unlink()
    touch(source, "out 1/c.zarr/0/x")
    earlier_run(source / "day 1", "b.tif")  # beside the recording itself
    earlier_run(source / "other", "c.tif", name="other-program")
    plan = plan_movies(source, output)
    assert sorted(targets(plan, output)) == ["a.tif", "day 1/b.mha", "other/c.tif", "out 1/mine.tif"]
    assert plan.unusable == {}
    assert [warning.split(" that an earlier")[0] for warning in plan.warnings] == [
        "day 1: 1 result(s)",
        "out 1: 3 result(s)",
    ]


def test_what_earlier_runs_wrote_is_denoised_where_it_is_given_as_input(source: Path, output: Path) -> None:
    earlier_run(source, "a.tif")
    assert targets(plan_movies(source, output), output) == {"a.tif": "a.tif"}
    assert plan_movies(source, output).warnings == []
    with pytest.raises(
        LayoutError, match=r"found only .*a\.tif; .*; input: 1 result\(s\) that an earlier run wrote"
    ):
        plan_movies(source.parent, output)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"program": 3}', b'{"program": []}', None]
)
def test_no_odd_metadata_costs_a_movie(source: Path, output: Path, content: bytes | None) -> None:
    touch(source, "a.tif", "d/a.tif", "d/e/a.tif")
    if content is None:
        os.mkfifo(source / "d/metadata.json")
    else:
        begin = b'{"program": {"name": "calcium-denoiser"}, "movies": '
        (source / "d/metadata.json").write_bytes(content)
        (source / "d/e/metadata.json").write_bytes(begin + content)
    assert len(plan_movies(source, output).jobs) == 3


def test_input_inside_the_output_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.tif", "in/in/b.mha")
    with pytest.raises(LayoutError, match="expected outputs apart from the inputs"):
        plan_movies(tmp_path / "in", tmp_path)  # in/b.tif would be read as a movie by the next run
    (tmp_path / "in/in/b.mha").unlink()
    assert len(plan_movies(tmp_path / "in", tmp_path).jobs) == 1


def test_existing_output_is_refused_unless_overwritten(source: Path, output: Path) -> None:
    touch(source, "a.tif", "b.tif")
    plan = plan_movies(source, output)
    refuse_existing(plan, overwrite=False)
    touch(output, "b.tif")
    with pytest.raises(LayoutError, match=r"output/b\.tif: expected no output yet.* --overwrite"):
        refuse_existing(plan, overwrite=False)
    refuse_existing(plan, overwrite=True)
    (output / "a.tif").mkdir()
    with pytest.raises(LayoutError, match=r"output/a\.tif: expected to write a movie there, found a folder"):
        refuse_existing(plan, overwrite=True)


def test_second_image_beside_the_challenge_output_is_refused(source: Path, output: Path) -> None:
    touch(source, f"{SOCKET_FOLDER}/a.tif")
    touch(output, f"{OUTPUT_FOLDER}/a.tif", f"{OUTPUT_FOLDER}/.a.tif.1.part", f"{OUTPUT_FOLDER}/notes.txt")
    plan = plan_movies(source, output)
    refuse_existing(plan, overwrite=True)
    touch(output, f"{OUTPUT_FOLDER}/old.mha")
    with pytest.raises(LayoutError, match=r"expected no other image, .* found old\.mha; remove it"):
        refuse_existing(plan, overwrite=True)
