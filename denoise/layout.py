"""Which movies an input folder holds, and where each output goes.

Two layouts. The challenge's (an `inputs.json`, or the socket's folder) holds one image and gets one image
back, in the folder that the platform reads. A plain folder holds any number of movies, and each becomes
`<same relative path>.tif`. A movie is known by its suffix: nothing is opened but `inputs.json` and, to leave out
what earlier runs wrote, their `metadata.json`; nothing is written. Files are asked about by os.path, which says no
where pathlib raises (looping links, no access).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from denoise import NAME
from denoise.console import NAMES_SHOWN, listed
from denoise.containers import ZARR_SUFFIXES
from denoise.formats import SUFFIXES
from denoise.page_headers import TIFF_SUFFIXES
from denoise.records import METADATA, planned_outputs, strict

INPUT_SOCKET = (
    "stacked-neuron-images-with-noise"  # the challenge's names for its folders (grand-challenge.org, CIDC25)
)
OWN_FORMATS = {suffix: suffix for suffix in SUFFIXES} | dict.fromkeys(TIFF_SUFFIXES, ".tif") | {
    ".mhd": ".mha", ".nii.gz": ".nii",
}  # of the input -> of an output of the same format, which is one file and not compressed  # fmt: skip
BEFORE_A_NUMBER = re.compile(r"(_X|[_\-. ]+)\Z")  # what goes with it, as in rec-1, or Andor's rec_X2
NO_TIME = re.compile(
    r"(?:\A|[^a-z])(?:c|ch|chan|channel|fov|plane|pos|position|roi|site|slice|xy|z)[_\-. ]?\Z", re.IGNORECASE
)
NOT_READ = (  # formats of microscopes and cameras, which are told of where they lie beside movies
    *(
        ".avi",
        ".czi",
        ".dcimg",
        ".ims",
        ".isxd",
        ".lif",
        ".lsm",
        ".mesc",
        ".mkv",
        ".mov",
        ".mp4",
        ".nd2",
    ),
    *(".oib", ".oif", ".oir", ".raw", ".sbx", ".sif", ".stk", ".vsi"),
)
HAS_RAW = (".mhd", ".nrrd")  # headers whose voxels may lie beside them in a file .raw
OUTPUT_SOCKET = "stacked-neuron-images-with-reduced-noise"
INPUTS_JSON_LIMIT = 1 << 20  # bytes; the platform's file has under a thousand
METADATA_BEGINS = re.compile(rb'\s*\{\s*"program"\s*:\s*\{\s*"name"\s*:\s*"%s"' % NAME.encode())
METADATA_HEAD = 1000  # bytes, more than enough for that


class LayoutError(Exception):
    """The folders cannot be used as they are; one line: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Job:
    """One movie to denoise: its name (path below the input folder, "/" between parts), file, and output.

    title: names what is written beside it: a path without a suffix that no other job has, whatever its format.
    series: all files, in order, of a recording that is one in several; `source` is the first of them.
    """

    name: str
    source: Path
    output: Path
    title: str
    series: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is to be done with an input: `layout` is "challenge", "folder" or "file".

    `unusable` maps the name of what looks like a movie and cannot be one (a broken link) to the reason.
    """

    layout: str
    jobs: list[Job]
    unusable: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Found:
    """What a walk met: movies, what cannot be one and why, links to folders (not entered), other files."""

    movies: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    linked: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def plan_movies(source: Path, output: Path, series: bool = False, same: bool = False) -> Plan:
    """The movies of `source` (a folder, or one movie file) and their places below the folder `output`.

    series: TIFF files of a folder whose names differ by one number alone are one movie (see _in_series).
    same: outputs have the inputs' formats where they can, in place of TIFF; the challenge's are always TIFF.

    Raises LayoutError where no movie is found, where a challenge input holds more than one, and where an
    output would overwrite an input or lie among the inputs.
    """
    root = _real(source)
    if not os.path.lexists(root):
        raise LayoutError(
            f"{source}: expected a folder of movies or one movie, found nothing of that name; "
            "give another --input (docker: mount the folder with -v /path/in:/input:ro)"
        )
    if not os.path.isdir(root) or _is_movie(root):
        plan = _plan_file(source, root, output)
    elif os.path.isfile(root / "inputs.json") or os.path.isdir(_socket_folder(root)):
        plan = _plan_challenge(source, root, output)
    else:
        plan = _plan_folder(source, root, output, series)
    if series and plan.layout != "folder":
        raise LayoutError(f"{source}: expected a folder of files that belong together, as --series needs one, "
                          f"found {'the challenge' if plan.layout == 'challenge' else 'a file'}; "
                          "give their folder, or leave --series out")  # fmt: skip
    if same and plan.layout != "challenge":
        plan = replace(plan, jobs=[_in_own_format(job) for job in plan.jobs])
    _refuse_outputs_among_inputs(plan, root, output)
    return plan


def _in_own_format(job: Job) -> Job:
    suffix = OWN_FORMATS[_split_suffix(job.source.name)[1]]
    return replace(job, output=job.output.with_name(job.output.name.removesuffix(".tif") + suffix))


def refuse_existing(plan: Plan, overwrite: bool) -> None:
    """Raise LayoutError if an output of `plan` exists (with `overwrite`: exists and is a folder).

    Also if the challenge's output folder already holds another image: the platform takes exactly one.
    """
    existing = [job.output for job in plan.jobs if os.path.lexists(job.output)]
    strange = [path for path in existing if os.path.isdir(path) != _is_folder_name(path.name)]
    if strange:
        raise LayoutError(
            f"{listed(strange)}: expected to write a movie there, found {_kind(strange[0])}; "
            "choose another --output"
        )
    if existing and not overwrite:
        raise LayoutError(
            f"{listed(existing)}: expected no output yet, found one of that name; "
            "choose another --output, or replace it with --overwrite"
        )
    if plan.layout == "challenge":
        _refuse_second_image(plan.jobs[0].output)


def output_names(names: Sequence[str]) -> list[str]:
    """The name of each movie's output, ending in `.tif`; names are distinct and relative, "/" between parts.

    No two are equal, not even where a file system takes upper for lower case or one Unicode form for another.

    >>> output_names(["a.mha", "b.tif", "b.nii.gz", "b_tif.mha"])
    ['a.tif', 'b_tif_2.tif', 'b_nii_gz.tif', 'b_tif.tif']
    """
    plain = [f"{_split_suffix(name)[0]}.tif" for name in names]
    claims = Counter(map(_file_key, plain))
    taken = {key for key, number in claims.items() if number == 1}
    return [
        wanted if claims[_file_key(wanted)] == 1 else _free_name(name, taken)
        for name, wanted in zip(names, plain, strict=True)
    ]


def _free_name(name: str, taken: set[str]) -> str:
    """For a.tif the first of a_tif.tif, a_tif_2.tif, a_tif_3.tif, ... not in `taken`, which it then joins."""
    stem, suffix = _split_suffix(name)
    base = f"{stem}{suffix.replace('.', '_')}"
    candidates = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    free = next(f"{candidate}.tif" for candidate in candidates if _file_key(f"{candidate}.tif") not in taken)
    taken.add(_file_key(free))
    return free


def _plan_file(source: Path, root: Path, output: Path) -> Plan:
    path = (
        source if _is_movie_name(source.name) else root
    )  # a link is a movie by its own name, or by its target's
    if not _is_movie_name(path.name):
        raise LayoutError(
            f"{source}: expected a movie ({', '.join(SUFFIXES)}), found another suffix; "
            "save it as TIFF, or give a movie or a folder of movies"
        )
    if not _is_movie(path):
        raise LayoutError(
            f"{source}: expected a movie file, found {_kind(path)}; give a movie or a folder of movies"
        )
    target = output_names([path.name])[0]
    return Plan("file", [Job(path.name, path, output / target, target.removesuffix(".tif"))])


def _plan_folder(source: Path, root: Path, output: Path, series: bool) -> Plan:
    found = _walk(root, skip=_real(output))
    if root in found.unusable:
        raise LayoutError(f"{source}: {found.unusable[root]}; let this user read it, or give another --input")
    warnings = [
        f"{_name(path, root)}: a link to a folder elsewhere, not followed"
        for path in _leaving(found.linked, root)
    ]
    for folder, results in _earlier_results(found.movies, root).items():
        found.movies = [path for path in found.movies if path not in results]
        found.others += sorted(results)
        warnings.append(f"{_name(folder, root)}: {len(results)} result(s) that an earlier run wrote there, by its "
                        f"{METADATA}, left out; give that folder as --input to denoise them again")  # fmt: skip
    if not found.movies and not found.unusable:
        raise LayoutError("; ".join([_nothing_found(source, "a movie", found), *warnings[:NAMES_SHOWN]]))
    warnings += _not_read(found, root)
    if root in _real(output).parents:
        warnings.append(f"{output}: the output folder lies in the input folder; movies in it are not read")
    unusable = {_name(path, root): reason for path, reason in found.unusable.items()}
    names = sorted((_name(path, root) for path in found.movies), key=_natural_key)
    rows = _in_series(names, root.name) if series else [_Row(name, [name], []) for name in names]
    jobs = []
    for row, target in zip(rows, output_names([row.title for row in rows]), strict=True):
        title, files, numbers, doubt = row
        twice = next((i for i, pair in enumerate(pairwise(numbers)) if pair[0] == pair[1]), None)
        if twice is not None:
            unusable[title] = (
                f"expected each number once, found {files[twice]} and {files[twice + 1]}; remove one"
            )
            continue
        warnings += _gaps(title, numbers)
        name = f"{files[0]} to {PurePosixPath(files[-1]).name}" if numbers else title
        if doubt:
            warnings.append(
                f"{name}: one movie by {doubt}; leave --series out if they are recordings of their own"
            )
        paths = tuple(root / file for file in files)
        job = Job(name, paths[0], output / target, target.removesuffix(".tif"))
        jobs.append(replace(job, series=paths) if numbers else job)
    return Plan("folder", jobs, unusable, warnings)


def _not_read(found: _Found, root: Path) -> list[str]:
    """A warning about recordings that are left out, since nothing here reads their formats."""
    headers = {path.parent for path in found.movies if path.name.lower().endswith(HAS_RAW)}
    left = [
        _name(path, root)
        for path in found.others
        if path.suffix.lower() in NOT_READ and not (path.suffix.lower() == ".raw" and path.parent in headers)
    ]
    if not left:
        return []
    return [f"{len(left)} file(s) of formats that are not read, left out: {listed(left)}; save them as TIFF"]


class _Row(NamedTuple):
    """One movie: a name, as if it were one file; its files in order, and their numbers if they are several.

    doubt: by which number they are one movie, if it may count something else than time.
    """

    title: str
    files: list[str]
    numbers: list[int]
    doubt: str = ""


_Key = tuple[str, ...]  # what stands before and behind a row's number; the name of a file that has no number
_Rows = dict[_Key, list[tuple[int, str]]]  # numbers and files


def _in_series(names: list[str], top: str) -> list[_Row]:
    """What is one movie each: TIFF files of a folder that differ by one number alone, and each other file.

    If names differ by several numbers, the last of them counts that does not count channels, planes or positions. The
    file that lacks the number comes first, as programs number what follows a first file. A movie is named by all but the
    number, or after the folder if nothing is left. `names` are in natural order.

    >>> def found(*names): return [row.files for row in _in_series(list(names), "top")]
    >>> found("d/x_2.tif", "d/x_10.TIFF", "y1.tif", "z.tif")
    [['d/x_2.tif', 'd/x_10.TIFF'], ['y1.tif'], ['z.tif']]
    >>> found("f1_ch0.tif", "f2_ch0.tif"), found("f1_ch0.tif", "f1_ch1.tif", "f2_ch0.tif")
    ([['f1_ch0.tif', 'f2_ch0.tif']], [['f1_ch0.tif', 'f2_ch0.tif'], ['f1_ch1.tif']])
    >>> found("x-1.tif", "x-2.tif", "x.tif"), found("Pos0.ome.tif", "Pos0_1.ome.tif"), found("x.tif", "x_X2.tif")
    ([['x.tif', 'x-1.tif', 'x-2.tif']], [['Pos0.ome.tif', 'Pos0_1.ome.tif']], [['x.tif', 'x_X2.tif']])
    """
    alike: dict[_Key, list[str]] = {}  # but for their numbers
    for name in names:
        alike.setdefault(tuple(_parts(name)[::2]), []).append(name)
    rows: _Rows = {}
    for files in alike.values():
        place = _place([_parts(name) for name in files])
        for name in files:
            parts = _parts(name)
            key: _Key = ("".join(parts[:place]), "".join(parts[place + 1 :])) if place else (name,)
            rows.setdefault(key, []).append((int(parts[place]) if place else 0, name))
    begins = {key: min(row)[0] for key, row in rows.items()}
    leads = _leads(rows, begins)
    rows = {key: [one for one in row if one[1] not in leads] for key, row in rows.items()}
    for name, key in leads.items():
        rows[key].append((min(1, begins[key] - 1), name))  # 0 before 1; 1 before 2 and what is later
    found = [_row(key, sorted(row, key=lambda one: one[0]), top) for key, row in rows.items() if row]
    return sorted(found, key=lambda row: _natural_key(row.files[0]))


def _parts(name: str) -> list[str]:
    """A TIFF's name cut before and behind each number of the file itself, without the suffix; else [name].

    >>> _parts("d1/x_2.ome.tif"), _parts("x.tif"), _parts("x1.mha")
    (['d1/x_', '2', '.ome'], ['x.tif'], ['x1.mha'])
    """
    stem, suffix = _split_suffix(name)
    folder, slash, file = stem.rpartition("/")
    before, *rest = re.split("([0-9]+)", file)
    return [f"{folder}{slash}{before}", *rest] if rest and suffix in TIFF_SUFFIXES else [name]


def _place(files: list[list[str]]) -> int:
    """Which of their parts is the number that tells files apart; 0 if they have none."""
    numbers = range(1, len(files[0]), 2)
    differ = [place for place in numbers if len({parts[place] for parts in files}) > 1]
    in_time = [place for place in differ if not NO_TIME.search(files[0][place - 1])]
    return max(in_time or differ or numbers, default=0)


def _leads(rows: _Rows, begins: dict[_Key, int]) -> dict[str, _Key]:
    """The files that lack a row's number, with that row; but not those in a row of their own with others that do not.

    So Pos0 and Pos1 lead Pos0_1 and Pos1_1, while of x1, x2, x1-1 the last is alone. A row that begins with 0 is whole.
    """
    files = [name for row in rows.values() for _, name in row]
    stems: dict[str, list[str]] = {}
    for name in files:
        stem, suffix = _split_suffix(name)
        if suffix in TIFF_SUFFIXES:
            stems.setdefault(stem, []).append(name)
    leads = {
        name: key
        for key, begin in begins.items()
        if len(key) == 2 and begin > 0
        for name in stems.get(BEFORE_A_NUMBER.sub("", key[0]) + key[1], [])
    }
    free = {name for row in rows.values() if all(name in leads for _, name in row) for _, name in row}
    return {
        name: key
        for name, key in leads.items()
        if name in free and any(one not in free for _, one in rows[key])
    }


def _row(key: _Key, numbered: list[tuple[int, str]], top: str) -> _Row:
    files = [name for _, name in numbered]
    if len(files) == 1:
        return _Row(files[0], files, [])
    folder, slash, start = key[0].rpartition("/")
    named = BEFORE_A_NUMBER.sub("", start) + key[1] or PurePosixPath(folder).name or top
    title = f"{folder}{slash}{named}{_split_suffix(files[0])[1]}"
    return _Row(title, files, [number for number, _ in numbered], _doubt(start, key[1]))


def _doubt(before: str, behind: str) -> str:
    """What makes a number doubtful as that of files that follow in time, by what stands around it in their names.

    >>> _doubt("m_ch", "")
    "a number behind 'm_ch', which may count channels, planes or positions"
    >>> _doubt("Match", ""), _doubt("f", "_1")
    ('', 'a number that is not the last in the names')
    """
    if NO_TIME.search(before):
        return f"a number behind {before!r}, which may count channels, planes or positions"
    return "a number that is not the last in the names" if re.search("[0-9]", behind) else ""


def _gaps(title: str, numbers: list[int]) -> list[str]:
    """A warning if numbers are missing between the first and the last.

    >>> _gaps("x", [1, 2, 4, 9])
    ['x: expected files numbered 1 to 9, found none for 3, 5-8; the frames before and after count as neighbours']
    """
    missing = [
        f"{before + 1}-{after - 1}" if after - before > 2 else f"{before + 1}"
        for before, after in pairwise(numbers)
        if after - before > 1
    ]
    if not missing:
        return []
    expected = f"expected files numbered {numbers[0]} to {numbers[-1]}, found none for {listed(missing)}"
    return [f"{title}: {expected}; the frames before and after count as neighbours"]


def _plan_challenge(source: Path, root: Path, output: Path) -> Plan:
    places, warnings = _image_places(root)
    place, movies = _first_with_movies(places, root, _real(output), warnings)
    warnings = list(dict.fromkeys(warnings))
    if not movies:
        message = _nothing_found(source, f"one movie in images/{INPUT_SOCKET}", _walk(root, _real(output)))
        raise LayoutError("; ".join([message, *warnings[:NAMES_SHOWN]]))
    if len(movies) > 1:
        raise LayoutError(
            f"{place}: expected one movie, as the challenge takes one output, found {len(movies)}: "
            f"{listed([path.name for path in movies])}; "
            f"leave one there, or give a folder without inputs.json and images/{INPUT_SOCKET} to denoise all"
        )
    name = _name(movies[0], root)
    if not movies[0].is_relative_to(_socket_folder(root)):
        warnings.append(f"images/{INPUT_SOCKET}: expected the movie there, took {name}")
    target = output_names([movies[0].name])[0]
    job = Job(name, movies[0], output / "images" / OUTPUT_SOCKET / target, target.removesuffix(".tif"))
    return Plan("challenge", [job], warnings=warnings)


def _first_with_movies(
    places: list[Path], root: Path, skip: Path, warnings: list[str]
) -> tuple[Path, list[Path]]:
    """The first of `places` that holds a movie, and its movies; what is passed over joins `warnings`."""
    for place in places:
        found = _walk(place, skip)
        leaving = _leaving(found.movies, root)
        movies = sorted(set(found.movies) - set(leaving), key=lambda path: _natural_key(path.name))
        warnings += [f"{_name(path, root)}: {reason}" for path, reason in found.unusable.items()]
        warnings += [f"{_name(path, root)}: a link that leaves the input folder, ignored" for path in leaving]
        if movies:
            return place, movies
    return root, []


def _image_places(root: Path) -> tuple[list[Path], list[str]]:
    """Where to look for the challenge's image, in order, and warnings about what is odd in inputs.json.

    First what inputs.json says for the socket, then the socket's usual folder, other sockets' folders, and
    all of `root`: an odd inputs.json must not cost a run its image.
    """
    own: list[Path] = []
    other: list[Path] = []
    entries, warnings = _read_inputs_json(root / "inputs.json")
    for entry in entries:
        slug, relative = _slug_and_path(entry)
        place = _place_inside(root, relative)
        if place is not None:
            (own if slug == INPUT_SOCKET else other).append(place)
        elif relative is not None:
            shown = repr(relative)[:200]
            warnings.append(f"inputs.json: relative_path {shown} is no path inside the input folder, ignored")
    return [*own, _socket_folder(root), *other, root], warnings


def _read_inputs_json(path: Path) -> tuple[list[object], list[str]]:
    """The entries of inputs.json, none of them if it is absent or odd, and a warning in the latter case."""
    if not os.path.isfile(path):
        return [], []
    try:
        with path.open("rb") as file:
            entries = json.loads(
                file.read(INPUTS_JSON_LIMIT)
            )  # bytes, not text: json then takes a byte order mark
    except (OSError, ValueError, RecursionError) as error:
        return [], [f"inputs.json: expected JSON, found something else ({type(error).__name__}), ignored"]
    if not isinstance(entries, list):
        return [], [f"inputs.json: expected a list, found {type(entries).__name__}, ignored"]
    return entries, []


def _slug_and_path(entry: object) -> tuple[object, object]:
    """The slug and the relative_path in one entry of inputs.json, None for what it lacks."""
    if isinstance(entry, dict):
        for key in ("socket", "interface"):  # the platform's word since December 2025, and the one before
            socket = entry.get(key)
            if isinstance(socket, dict):
                return socket.get("slug"), socket.get("relative_path")
    return None, None


def _place_inside(root: Path, relative: object) -> Path | None:
    """`relative` below `root`, links resolved; None if it is no path or leads out of `root`."""
    if not isinstance(relative, str):
        return None
    try:
        place = _real(root / relative)
    except (OSError, ValueError):  # a zero byte or a lone surrogate
        return None
    return place if place.is_relative_to(root) else None


def _earlier_results(movies: list[Path], root: Path) -> dict[Path, set[Path]]:
    """Those of the movies that are outputs of this program, by the folder below `root` whose metadata.json says so.

    Other movies in such a folder stay: an output may have been written beside recordings.
    """
    inside = dict.fromkeys(
        folder for path in movies for folder in path.parents if root in folder.parents
    )  # in the order of the movies
    found = {}
    for folder in filter(_is_of_a_run, inside):
        outputs = {_file_key(name) for name in planned_outputs(folder)}
        below = (path for path in movies if path.is_relative_to(folder))
        results = {path for path in below if _file_key(strict(_name(path, folder))) in outputs}
        if results:
            found[folder] = results
    return found


def _is_of_a_run(folder: Path) -> bool:
    """Whether a folder's metadata.json begins as this program writes it: others, of any size, are not read."""
    path = folder / METADATA
    try:
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return METADATA_BEGINS.match(file.read(METADATA_HEAD)) is not None
    except OSError:
        return False


def _walk(top: Path, skip: Path) -> _Found:
    """Every file at or below `top`, but hidden ones and those in the folder `skip`. A Zarr folder counts as a file.

    Links to folders are not entered: no loop, and nothing outside. A link to a file counts as the file.
    """
    found = _Found()
    if _is_movie(top):
        found.movies.append(top)
    folders = deque([top] if os.path.isdir(top) and top not in found.movies else [])
    while folders:
        folder = folders.popleft()
        try:
            with os.scandir(folder) as entries:
                visible = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
        except OSError as error:
            found.unusable[folder] = f"expected a folder that can be read, found: {error.strerror}"
            continue
        folders += [
            Path(entry.path) for entry in visible if _is_plain_folder(entry) and Path(entry.path) != skip
        ]
        for entry in visible:
            if not _is_plain_folder(entry):
                _sort_in(Path(entry.path), found)
    return found


def _sort_in(path: Path, found: _Found) -> None:
    """Put a directory entry that is not to be entered where it belongs in `found`."""
    if not _is_movie_name(path.name):
        (found.linked if os.path.isdir(path) else found.others).append(path)
    elif _is_movie(path):
        found.movies.append(path)
    else:
        found.unusable[path] = f"expected a movie file, found {_kind(path)}; rename or remove it"


def _is_plain_folder(entry: os.DirEntry[str]) -> bool:
    """A folder to look into: no link, and not one that is named like a movie and so has to be told of."""
    return entry.is_dir(follow_symlinks=False) and not _is_movie_name(entry.name)


def _refuse_outputs_among_inputs(plan: Plan, root: Path, output: Path) -> None:
    """No output overwrites an input or lies in one, as Zarr is a folder, or where the next run would read it as a movie.

    An output folder below the input folder is allowed, as the walk leaves it out.
    """
    inputs = {_file_id(path) for job in plan.jobs for path in (job.source, *job.series)} - {None}
    apart = not os.path.isdir(root) or root in _real(output).parents
    for job in plan.jobs:
        place = _real(job.output)
        if inputs & {_file_id(path) for path in (place, *place.parents)}:
            raise LayoutError(
                f"{job.output}: expected a new file as output, found an input movie there; choose another --output"
            )
        if not apart and place.is_relative_to(root):
            raise LayoutError(
                f"{job.output}: expected outputs apart from the inputs, found both in {root}; "
                "choose another --output"
            )


def _refuse_second_image(output: Path) -> None:
    others = [path for path in _walk(output.parent, output).movies if path.name != output.name]
    if others:
        raise LayoutError(
            f"{output.parent}: expected no other image, since the challenge takes exactly one, found "
            f"{listed([path.name for path in others])}; remove it, or choose another --output"
        )


def _nothing_found(source: Path, expected: str, found: _Found) -> str:
    there = f"only {listed([path.name for path in found.others])}" if found.others else "no file"
    advice = "give the folder that holds it as --input"
    if any(path.suffix.lower() in NOT_READ for path in found.others):
        advice = f"save recordings of other formats as TIFF, or {advice}"
    return f"{source}: expected {expected} ({', '.join(SUFFIXES)}), found {there}; {advice}"


def _socket_folder(root: Path) -> Path:
    return root / "images" / INPUT_SOCKET


def _leaving(paths: Iterable[Path], root: Path) -> list[Path]:
    """Those of `paths` that are links, or reached by links, out of `root`."""
    return [path for path in paths if not _real(path).is_relative_to(root)]


def _real(path: Path) -> Path:
    """The path with all links resolved; unlike Path.resolve it takes a loop of links without an exception."""
    return Path(os.path.realpath(path))


def _file_id(path: Path) -> tuple[int, int] | None:
    """What tells whether two paths are one file (also by hard link); None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def overlap(one: Path, other: Path) -> bool:
    """Whether two paths are one file, also by links or where upper and lower case are one, or one holds the other."""
    first, second = (Path(_file_key(str(_real(path)))) for path in (one, other))
    inside = first.is_relative_to(second) or second.is_relative_to(first)
    return inside or _file_id(one) in {_file_id(other)} - {None}


def _kind(path: Path) -> str:
    if os.path.isdir(path):
        return "a folder"
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file" if os.path.isfile(path) else "no regular file"


def _is_movie_name(name: str) -> bool:
    return _split_suffix(name)[1] != ""


def _is_movie(path: Path) -> bool:
    """Whether a movie can be there: a file, or a folder for Zarr, of a movie's name."""
    there = os.path.isdir if _is_folder_name(path.name) else os.path.isfile
    return _is_movie_name(path.name) and there(path)


def _is_folder_name(name: str) -> bool:
    return name.lower().endswith(ZARR_SUFFIXES)


def _split_suffix(name: str) -> tuple[str, str]:
    """("a/b", ".nii.gz") for "a/b.NII.gz"; an empty suffix if the name is no movie's."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):  # ".nii.gz" before any ".gz"
        if name.lower().endswith(suffix) and len(PurePosixPath(name).name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _file_key(name: str) -> str:
    """Equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts "x2" before "x10", as people do."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts], name


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
