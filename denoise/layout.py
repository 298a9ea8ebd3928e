"""Find the movies of an input folder, and plan where each output goes.

There are two layouts. The challenge's (an `inputs.json`, or the socket's folder) holds one image and gets one back, in
the folder that the platform reads. A plain folder holds any number of movies, and each becomes
`<same relative path>.tif`. Movies are recognized by suffix: only `inputs.json` and, to leave out the outputs of earlier
runs, their `metadata.json` are opened; nothing is written. Paths are examined by os.path, which returns False where
pathlib raises (link cycles, no access).
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
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from denoise import NAME
from denoise.console import NAMES_SHOWN, join_names
from denoise.containers import ZARR_SUFFIXES
from denoise.formats import SUFFIXES
from denoise.page_headers import TIFF_SUFFIXES
from denoise.records import METADATA, json_values, planned_outputs

# The challenge's names for its folders (grand-challenge.org, CIDC25).
INPUT_SOCKET = "stacked-neuron-images-with-noise"
OUTPUT_SOCKET = "stacked-neuron-images-with-reduced-noise"
OUTPUT_SUFFIXES = {suffix: suffix for suffix in SUFFIXES} | dict.fromkeys(TIFF_SUFFIXES, ".tif") | {
    ".mhd": ".mha", ".nii.gz": ".nii",
}  # suffix of the input -> of an output in the same format, a single uncompressed file  # fmt: skip
NUMBER_SEPARATOR = re.compile(r"(_X|[_\-. ]+)\Z")  # before a number, as in rec-1, or Andor's rec_X2
NON_TIME_LABEL = re.compile(  # before a number that counts something else than time
    r"(?:\A|[^a-z])(?:c|ch|chan|channel|fov|plane|pos|position|roi|site|slice|xy|z)[_\-. ]?\Z", re.IGNORECASE
)
# Formats of microscopes and cameras that cannot be read; users are told if such files are left out.
UNSUPPORTED_SUFFIXES = (
    *(".avi", ".czi", ".dcimg", ".ims", ".isxd", ".lif", ".lsm", ".mesc", ".mkv", ".mov", ".mp4"),
    *(".nd2", ".oib", ".oif", ".oir", ".raw", ".sbx", ".sif", ".stk", ".vsi"),
)
RAW_HEADER_SUFFIXES = (".mhd", ".nrrd")  # headers whose voxels may be in a .raw file beside them
MAX_INPUTS_JSON_BYTES = 1 << 20  # the platform's file has less than a thousand
METADATA_START = re.compile(rb'\s*\{\s*"program"\s*:\s*\{\s*"name"\s*:\s*"%s"' % NAME.encode())
METADATA_HEAD_BYTES = 1000  # read to match METADATA_START, more than enough


class LayoutError(Exception):
    """The folders cannot be used as they are; one line: what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Job:
    """One movie to denoise.

    name: path below the input folder, with "/" between parts.
    source: the movie's file.
    title: base for the names of further outputs of this job: a path without suffix, unique among the jobs.
    series: all files, in order, of a recording of several; `source` is the first of them.
    """

    name: str
    source: Path
    output: Path
    title: str
    series: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The movies to denoise; `layout` is "challenge", "folder" or "file".

    unusable: names of files that look like movies and cannot be any (such as broken links) -> reason.
    """

    layout: str
    jobs: list[Job]
    unusable: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _FoundFiles:
    """The files below a folder, sorted by use."""

    movies: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)  # like a movie but not usable as one -> reason
    linked_folders: list[Path] = field(default_factory=list)  # not entered
    others: list[Path] = field(default_factory=list)


def plan_movies(source: Path, output: Path, series: bool = False, same: bool = False) -> Plan:
    """Plan the outputs, below the folder `output`, of the movies of `source` (a folder, or one movie file).

    series: TIFF files of a folder whose names differ by one number alone are one movie (see _group_series).
    same: outputs have the inputs' formats where possible, in place of TIFF; the challenge's are always TIFF.

    Raises LayoutError where no movie is found, where a challenge input holds more than one, and where an output would
    overwrite an input or lie among the inputs.
    """
    root = _resolved(source)
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
        plan = replace(plan, jobs=[_with_own_suffix(job) for job in plan.jobs])
    _refuse_outputs_among_inputs(plan, root, output)
    return plan


def _with_own_suffix(job: Job) -> Job:
    suffix = OUTPUT_SUFFIXES[_split_suffix(job.source.name)[1]]
    return replace(job, output=job.output.with_name(job.output.name.removesuffix(".tif") + suffix))


def refuse_existing(plan: Plan, overwrite: bool) -> None:
    """Raise LayoutError if an output of `plan` exists (with `overwrite`: if it exists and is a folder).

    Also raise it if the challenge's output folder holds another image: the platform takes exactly one.
    """
    existing = [job.output for job in plan.jobs if os.path.lexists(job.output)]
    blocked = [path for path in existing if os.path.isdir(path) != _is_folder_name(path.name)]
    if blocked:
        raise LayoutError(
            f"{join_names(blocked)}: expected to write a movie there, found {_describe(blocked[0])}; "
            "choose another --output"
        )
    if existing and not overwrite:
        raise LayoutError(
            f"{join_names(existing)}: expected no output yet, found one of that name; "
            "choose another --output, or replace it with --overwrite"
        )
    if plan.layout == "challenge":
        _refuse_second_image(plan.jobs[0].output)


def output_names(names: Sequence[str]) -> list[str]:
    """Return the name of each movie's output, ending in `.tif`; names are distinct and relative, "/" between parts.

    Outputs are distinct even where a file system ignores case or Unicode normalization.

    >>> output_names(["a.mha", "b.tif", "b.nii.gz", "b_tif.mha"])
    ['a.tif', 'b_tif_2.tif', 'b_nii_gz.tif', 'b_tif.tif']
    """
    simple = [f"{_split_suffix(name)[0]}.tif" for name in names]
    counts = Counter(map(_case_key, simple))
    taken = {key for key, number in counts.items() if number == 1}
    return [
        target if counts[_case_key(target)] == 1 else _unique_name(name, taken)
        for name, target in zip(names, simple, strict=True)
    ]


def _unique_name(name: str, taken: set[str]) -> str:
    """Return the first of a_tif.tif, a_tif_2.tif, a_tif_3.tif, ... for a.tif that is not in `taken`; add it there."""
    stem, suffix = _split_suffix(name)
    base = f"{stem}{suffix.replace('.', '_')}"
    candidates = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
    free = next(f"{candidate}.tif" for candidate in candidates if _case_key(f"{candidate}.tif") not in taken)
    taken.add(_case_key(free))
    return free


def _plan_file(source: Path, root: Path, output: Path) -> Plan:
    # A link counts as a movie by its own name, or by that of its target.
    path = source if _is_movie_name(source.name) else root
    if not _is_movie_name(path.name):
        raise LayoutError(
            f"{source}: expected a movie ({', '.join(SUFFIXES)}), found another suffix; "
            "save it as TIFF, or give a movie or a folder of movies"
        )
    if not _is_movie(path):
        raise LayoutError(
            f"{source}: expected a movie file, found {_describe(path)}; give a movie or a folder of movies"
        )
    target = output_names([path.name])[0]
    return Plan("file", [Job(path.name, path, output / target, target.removesuffix(".tif"))])


def _plan_folder(source: Path, root: Path, output: Path, series: bool) -> Plan:
    files = _list_files(root, skip=_resolved(output))
    if root in files.unusable:
        raise LayoutError(f"{source}: {files.unusable[root]}; let this user read it, or give another --input")
    warnings = [
        f"{_relative(path, root)}: a link to a folder elsewhere, not followed"
        for path in _outside_of(files.linked_folders, root)
    ]
    warnings += _leave_out_earlier_results(files, root)
    if not files.movies and not files.unusable:
        raise LayoutError("; ".join([_no_movie_message(source, "a movie", files), *warnings[:NAMES_SHOWN]]))
    warnings += _warn_of_unsupported(files, root)
    if root in _resolved(output).parents:
        warnings.append(f"{output}: the output folder lies in the input folder; movies in it are not read")
    unusable = {_relative(path, root): reason for path, reason in files.unusable.items()}
    names = sorted((_relative(path, root) for path in files.movies), key=_natural_key)
    movies = _group_series(names, root.name) if series else [_Series(name, [name], []) for name in names]
    jobs = []
    for movie, target in zip(movies, output_names([movie.title for movie in movies]), strict=True):
        if duplicates := _files_of_same_number(movie):
            reason = f"expected each number once, found {duplicates[0]} and {duplicates[1]}; remove one"
            unusable[movie.title] = reason
            continue
        warnings += _warn_of_series(movie)
        paths = tuple(root / file for file in movie.files)
        job = Job(movie.name, paths[0], output / target, target.removesuffix(".tif"))
        jobs.append(replace(job, series=paths) if movie.numbers else job)
    return Plan("folder", jobs, unusable, warnings)


def _leave_out_earlier_results(files: _FoundFiles, root: Path) -> list[str]:
    """Move outputs of earlier runs from the movies to the other files; return a warning for each of their folders."""
    warnings = []
    for folder, results in _earlier_results(files.movies, root).items():
        files.movies = [path for path in files.movies if path not in results]
        files.others += sorted(results)
        warnings.append(
            f"{_relative(folder, root)}: {len(results)} result(s) that an earlier run wrote there, by its {METADATA}, "
            "left out; give that folder as --input to denoise them again"
        )
    return warnings


def _files_of_same_number(movie: _Series) -> list[str]:
    """Return the first two files of a series that have the same number, [] if there are none."""
    for i, (number, following) in enumerate(pairwise(movie.numbers)):
        if number == following:
            return movie.files[i : i + 2]
    return []


def _warn_of_series(movie: _Series) -> list[str]:
    """Return warnings about missing numbers, and about a number that may count something else than time."""
    warnings = _warn_of_gaps(movie.title, movie.numbers)
    if movie.doubt:
        warnings.append(
            f"{movie.name}: one movie by {movie.doubt}; leave --series out if they are recordings of their own"
        )
    return warnings


def _warn_of_unsupported(files: _FoundFiles, root: Path) -> list[str]:
    """Return a warning if there are recordings whose formats cannot be read."""
    header_folders = {path.parent for path in files.movies if path.name.lower().endswith(RAW_HEADER_SUFFIXES)}
    names = []
    for path in files.others:
        suffix = path.suffix.lower()
        has_header = suffix == ".raw" and path.parent in header_folders
        if suffix in UNSUPPORTED_SUFFIXES and not has_header:
            names.append(_relative(path, root))
    if not names:
        return []
    return [
        f"{len(names)} file(s) of formats that are not read, left out: {join_names(names)}; save them as TIFF"
    ]


class _Series(NamedTuple):
    """The files of one movie, in order.

    title: the movie's name, as if it were one file.
    numbers: of the files; [] for a single file.
    doubt: why the number may count something else than time, "" if there is no such reason.
    """

    title: str
    files: list[str]
    numbers: list[int]
    doubt: str = ""

    @property
    def name(self) -> str:
        """The name for people: that of the file, or those of the first and the last one."""
        return f"{self.files[0]} to {PurePosixPath(self.files[-1]).name}" if self.numbers else self.title


_Key = tuple[str, ...]  # the text before and after a series' number; (name,) of a file without number
_Groups = dict[_Key, list[tuple[int, str]]]  # (number, file) of the files that may be a series


def _group_series(names: list[str], top: str) -> list[_Series]:
    """Group files into movies: TIFF files of a folder that differ by one number alone, and each other file on its own.

    If names differ by several numbers, the last one counts that is not a number of channels, planes or positions. A file
    that lacks the number comes first, as programs number the files that follow a first one. A movie has the name of its
    files without the number, or that of the folder if nothing is left. names: in natural order. top: name of the folder.

    >>> def group(*names): return [series.files for series in _group_series(list(names), "top")]
    >>> group("d/x_2.tif", "d/x_10.TIFF", "y1.tif", "z.tif")
    [['d/x_2.tif', 'd/x_10.TIFF'], ['y1.tif'], ['z.tif']]
    >>> group("f1_ch0.tif", "f2_ch0.tif"), group("f1_ch0.tif", "f1_ch1.tif", "f2_ch0.tif")
    ([['f1_ch0.tif', 'f2_ch0.tif']], [['f1_ch0.tif', 'f2_ch0.tif'], ['f1_ch1.tif']])
    >>> group("x-1.tif", "x-2.tif", "x.tif"), group("Pos0.ome.tif", "Pos0_1.ome.tif"), group("x.tif", "x_X2.tif")
    ([['x.tif', 'x-1.tif', 'x-2.tif']], [['Pos0.ome.tif', 'Pos0_1.ome.tif']], [['x.tif', 'x_X2.tif']])
    """
    groups = _group_by_number(names)
    lowest = {key: min(group)[0] for key, group in groups.items()}
    first_files = _unnumbered_first_files(groups, lowest)
    for key, group in groups.items():
        groups[key] = [entry for entry in group if entry[1] not in first_files]
    for name, key in first_files.items():
        groups[key].append((min(1, lowest[key] - 1), name))  # 0 before 1; 1 before 2 or more
    series = [
        _make_series(key, sorted(group, key=itemgetter(0)), top) for key, group in groups.items() if group
    ]
    return sorted(series, key=lambda movie: _natural_key(movie.files[0]))


def _group_by_number(names: list[str]) -> _Groups:
    """Group files whose names differ by one number alone; a file without any number is a group of its own."""
    same_text: dict[tuple[str, ...], list[str]] = {}  # names that are equal but for their numbers
    for name in names:
        same_text.setdefault(tuple(_split_numbers(name)[::2]), []).append(name)
    groups: _Groups = {}
    for files in same_text.values():
        index = _choose_number([_split_numbers(name) for name in files])
        for name in files:
            parts = _split_numbers(name)
            key: _Key = ("".join(parts[:index]), "".join(parts[index + 1 :])) if index else (name,)
            groups.setdefault(key, []).append((int(parts[index]) if index else 0, name))
    return groups


def _split_numbers(name: str) -> list[str]:
    """Split a TIFF's name without suffix before and after each number of the file (not of its folder); else [name].

    >>> _split_numbers("d1/x_2.ome.tif"), _split_numbers("x.tif"), _split_numbers("x1.mha")
    (['d1/x_', '2', '.ome'], ['x.tif'], ['x1.mha'])
    """
    stem, suffix = _split_suffix(name)
    folder, slash, file = stem.rpartition("/")
    first, *others = re.split("([0-9]+)", file)
    return [f"{folder}{slash}{first}", *others] if others and suffix in TIFF_SUFFIXES else [name]


def _choose_number(files: list[list[str]]) -> int:
    """Return the index of the number that orders the files, 0 if their names have none. files: of _split_numbers."""
    indices = range(1, len(files[0]), 2)
    varying = [index for index in indices if len({parts[index] for parts in files}) > 1]
    of_time = [index for index in varying if not NON_TIME_LABEL.search(files[0][index - 1])]
    return max(of_time or varying or indices, default=0)


def _unnumbered_first_files(groups: _Groups, lowest: dict[_Key, int]) -> dict[str, _Key]:
    """Return the files that lack a group's number and come before it (x.tif before x-1.tif), each with the group's key.

    A file leaves its own group only if all files of that group do: Pos0 and Pos1 come before Pos0_1 and Pos1_1, but of
    x1, x2 and x1-1 the last stays alone. A group whose numbers begin with 0 has no file before it.
    """
    by_stem: dict[str, list[str]] = {}
    for name in (name for group in groups.values() for _, name in group):
        stem, suffix = _split_suffix(name)
        if suffix in TIFF_SUFFIXES:
            by_stem.setdefault(stem, []).append(name)
    candidates = {}
    for key, number in lowest.items():
        if len(key) == 2 and number > 0:
            stem = NUMBER_SEPARATOR.sub("", key[0]) + key[1]
            candidates.update(dict.fromkeys(by_stem.get(stem, []), key))
    movable: set[str] = set()
    for group in groups.values():
        group_names = {name for _, name in group}
        if group_names <= set(candidates):
            movable |= group_names
    return {
        name: key
        for name, key in candidates.items()
        if name in movable and any(other not in movable for _, other in groups[key])
    }


def _make_series(key: _Key, entries: list[tuple[int, str]], top: str) -> _Series:
    """Return the series of these (number, file), in order. top: name of the input folder."""
    files = [name for _, name in entries]
    if len(files) == 1:
        return _Series(files[0], files, [])
    folder, slash, before = key[0].rpartition("/")
    stem = NUMBER_SEPARATOR.sub("", before) + key[1] or PurePosixPath(folder).name or top
    title = f"{folder}{slash}{stem}{_split_suffix(files[0])[1]}"
    return _Series(title, files, [number for number, _ in entries], _number_doubt(before, key[1]))


def _number_doubt(before: str, after: str) -> str:
    """Return why a number may count something else than time, by the text before and after it; "" without reason.

    >>> _number_doubt("m_ch", "")
    "a number behind 'm_ch', which may count channels, planes or positions"
    >>> _number_doubt("Match", ""), _number_doubt("f", "_1")
    ('', 'a number that is not the last in the names')
    """
    if NON_TIME_LABEL.search(before):
        return f"a number behind {before!r}, which may count channels, planes or positions"
    return "a number that is not the last in the names" if re.search("[0-9]", after) else ""


def _warn_of_gaps(title: str, numbers: list[int]) -> list[str]:
    """Return a warning if numbers are missing between the first and the last.

    >>> _warn_of_gaps("x", [1, 2, 4, 9])
    ['x: expected files numbered 1 to 9, found none for 3, 5-8; the frames before and after count as neighbours']
    """
    missing = [
        f"{before + 1}-{after - 1}" if after - before > 2 else f"{before + 1}"
        for before, after in pairwise(numbers)
        if after - before > 1
    ]
    if not missing:
        return []
    expected = f"expected files numbered {numbers[0]} to {numbers[-1]}, found none for {join_names(missing)}"
    return [f"{title}: {expected}; the frames before and after count as neighbours"]


def _plan_challenge(source: Path, root: Path, output: Path) -> Plan:
    search_paths, warnings = _challenge_search_paths(root)
    search_path, movies = _find_challenge_movies(search_paths, root, _resolved(output), warnings)
    warnings = list(dict.fromkeys(warnings))
    if not movies:
        expected = f"one movie in images/{INPUT_SOCKET}"
        message = _no_movie_message(source, expected, _list_files(root, _resolved(output)))
        raise LayoutError("; ".join([message, *warnings[:NAMES_SHOWN]]))
    if len(movies) > 1:
        raise LayoutError(
            f"{search_path}: expected one movie, as the challenge takes one output, found {len(movies)}: "
            f"{join_names([path.name for path in movies])}; "
            f"leave one there, or give a folder without inputs.json and images/{INPUT_SOCKET} to denoise all"
        )
    name = _relative(movies[0], root)
    if not movies[0].is_relative_to(_socket_folder(root)):
        warnings.append(f"images/{INPUT_SOCKET}: expected the movie there, took {name}")
    target = output_names([movies[0].name])[0]
    job = Job(name, movies[0], output / "images" / OUTPUT_SOCKET / target, target.removesuffix(".tif"))
    return Plan("challenge", [job], warnings=warnings)


def _find_challenge_movies(
    search_paths: list[Path], root: Path, skip: Path, warnings: list[str]
) -> tuple[Path, list[Path]]:
    """Return the first of `search_paths` that holds a movie, and its movies; add warnings about ignored files."""
    for search_path in search_paths:
        files = _list_files(search_path, skip)
        outside = _outside_of(files.movies, root)
        movies = sorted(set(files.movies) - set(outside), key=lambda path: _natural_key(path.name))
        warnings += [f"{_relative(path, root)}: {reason}" for path, reason in files.unusable.items()]
        warnings += [
            f"{_relative(path, root)}: a link that leaves the input folder, ignored" for path in outside
        ]
        if movies:
            return search_path, movies
    return root, []


def _challenge_search_paths(root: Path) -> tuple[list[Path], list[str]]:
    """Return where to look for the challenge's image, in order, and warnings about inputs.json.

    These are the socket's path in inputs.json, the socket's usual folder, the paths of other sockets, and all of `root`:
    an unusual inputs.json must not keep a run from finding its image.
    """
    socket_paths: list[Path] = []
    other_paths: list[Path] = []
    entries, warnings = _read_inputs_json(root / "inputs.json")
    for entry in entries:
        slug, relative = _slug_and_path(entry)
        path = _path_inside(root, relative)
        if path is not None:
            (socket_paths if slug == INPUT_SOCKET else other_paths).append(path)
        elif relative is not None:
            shown = repr(relative)[:200]
            warnings.append(f"inputs.json: relative_path {shown} is no path inside the input folder, ignored")
    return [*socket_paths, _socket_folder(root), *other_paths, root], warnings


def _read_inputs_json(path: Path) -> tuple[list[object], list[str]]:
    """Return the entries of inputs.json; none if it is missing, none and a warning if it is invalid."""
    if not os.path.isfile(path):
        return [], []
    try:
        with path.open("rb") as file:
            # From bytes json accepts a byte order mark, unlike from text.
            entries = json.loads(file.read(MAX_INPUTS_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        return [], [f"inputs.json: expected JSON, found something else ({type(error).__name__}), ignored"]
    if not isinstance(entries, list):
        return [], [f"inputs.json: expected a list, found {type(entries).__name__}, ignored"]
    return entries, []


def _slug_and_path(entry: object) -> tuple[object, object]:
    """Return slug and relative_path of an entry of inputs.json, None for what is missing."""
    if isinstance(entry, dict):
        for key in ("socket", "interface"):  # the platform's key since December 2025, and its older one
            socket = entry.get(key)
            if isinstance(socket, dict):
                return socket.get("slug"), socket.get("relative_path")
    return None, None


def _path_inside(root: Path, relative: object) -> Path | None:
    """Return `relative` below `root`, links resolved; None if it is no path or leads out of `root`."""
    if not isinstance(relative, str):
        return None
    try:
        path = _resolved(root / relative)
    except (OSError, ValueError):  # a zero byte or a lone surrogate
        return None
    return path if path.is_relative_to(root) else None


def _earlier_results(movies: list[Path], root: Path) -> dict[Path, set[Path]]:
    """Return the movies that are outputs of this program, by the folder below `root` whose metadata.json lists them.

    Other movies in such a folder are no results: outputs may have been written beside recordings.
    """
    # A dict keeps the order of the movies.
    folders = dict.fromkeys(folder for path in movies for folder in path.parents if root in folder.parents)
    results_by_folder = {}
    for folder in filter(_has_our_metadata, folders):
        outputs = {_case_key(name) for name in planned_outputs(folder)}
        results = {
            path
            for path in movies
            if path.is_relative_to(folder) and _case_key(json_values(_relative(path, folder))) in outputs
        }
        if results:
            results_by_folder[folder] = results
    return results_by_folder


def _has_our_metadata(folder: Path) -> bool:
    """Whether a folder's metadata.json begins like those of this program. Others, of any size, are not read."""
    path = folder / METADATA
    try:
        if not os.path.isfile(path):  # opening a pipe would block for ever
            return False
        with path.open("rb") as file:
            return METADATA_START.match(file.read(METADATA_HEAD_BYTES)) is not None
    except OSError:
        return False


def _list_files(top: Path, skip: Path) -> _FoundFiles:
    """List the files at or below `top`, except hidden ones and those in the folder `skip`. A Zarr folder is one file.

    Links to folders are not entered: there could be cycles, or files outside. A link to a file counts as the file.
    """
    files = _FoundFiles()
    if _is_movie(top):
        files.movies.append(top)
    folders = deque([top] if os.path.isdir(top) and top not in files.movies else [])
    while folders:
        folder = folders.popleft()
        try:
            with os.scandir(folder) as entries:
                visible = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
        except OSError as error:
            files.unusable[folder] = f"expected a folder that can be read, found: {error.strerror}"
            continue
        folders += [
            Path(entry.path) for entry in visible if _is_plain_folder(entry) and Path(entry.path) != skip
        ]
        for entry in visible:
            if not _is_plain_folder(entry):
                _classify(Path(entry.path), files)
    return files


def _classify(path: Path, files: _FoundFiles) -> None:
    """Add a directory entry that is not to be entered to the list in `files` where it belongs."""
    if not _is_movie_name(path.name):
        (files.linked_folders if os.path.isdir(path) else files.others).append(path)
    elif _is_movie(path):
        files.movies.append(path)
    else:
        files.unusable[path] = f"expected a movie file, found {_describe(path)}; rename or remove it"


def _is_plain_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder to enter: no link, and not named like a movie, which has to be reported."""
    return entry.is_dir(follow_symlinks=False) and not _is_movie_name(entry.name)


def _refuse_outputs_among_inputs(plan: Plan, root: Path, output: Path) -> None:
    """Raise LayoutError if an output would overwrite an input, lie in one (Zarr is a folder), or be a later run's input.

    An output folder below the input folder is allowed: its contents are not read.
    """
    inputs = {_file_id(path) for job in plan.jobs for path in (job.source, *job.series)} - {None}
    outputs_are_read = os.path.isdir(root) and root not in _resolved(output).parents
    for job in plan.jobs:
        target = _resolved(job.output)
        if inputs & {_file_id(path) for path in (target, *target.parents)}:
            raise LayoutError(
                f"{job.output}: expected a new file as output, found an input movie there; choose another --output"
            )
        if outputs_are_read and target.is_relative_to(root):
            raise LayoutError(
                f"{job.output}: expected outputs apart from the inputs, found both in {root}; "
                "choose another --output"
            )


def _refuse_second_image(output: Path) -> None:
    others = [path for path in _list_files(output.parent, output).movies if path.name != output.name]
    if others:
        raise LayoutError(
            f"{output.parent}: expected no other image, since the challenge takes exactly one, found "
            f"{join_names([path.name for path in others])}; remove it, or choose another --output"
        )


def _no_movie_message(source: Path, expected: str, files: _FoundFiles) -> str:
    other_files = f"only {join_names([path.name for path in files.others])}" if files.others else "no file"
    advice = "give the folder that holds it as --input"
    if any(path.suffix.lower() in UNSUPPORTED_SUFFIXES for path in files.others):
        advice = f"save recordings of other formats as TIFF, or {advice}"
    return f"{source}: expected {expected} ({', '.join(SUFFIXES)}), found {other_files}; {advice}"


def _socket_folder(root: Path) -> Path:
    return root / "images" / INPUT_SOCKET


def _outside_of(paths: Iterable[Path], root: Path) -> list[Path]:
    """Return those of `paths` that are links, or reached by links, out of `root`."""
    return [path for path in paths if not _resolved(path).is_relative_to(root)]


def _resolved(path: Path) -> Path:
    """Return the path with all links resolved. Unlike Path.resolve this accepts cycles of links."""
    return Path(os.path.realpath(path))


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which are equal for paths to one file (also by hard links); None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def overlap(one: Path, other: Path) -> bool:
    """Whether two paths are the same file (also by links, or if case is ignored), or one contains the other."""
    first, second = (Path(_case_key(str(_resolved(path)))) for path in (one, other))
    nested = first.is_relative_to(second) or second.is_relative_to(first)
    return nested or _file_id(one) in {_file_id(other)} - {None}


def _describe(path: Path) -> str:
    if os.path.isdir(path):
        return "a folder"
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file" if os.path.isfile(path) else "no regular file"


def _is_movie_name(name: str) -> bool:
    return _split_suffix(name)[1] != ""


def _is_movie(path: Path) -> bool:
    """Whether a path has a movie's name and is a file, or a folder for Zarr."""
    exists = os.path.isdir if _is_folder_name(path.name) else os.path.isfile
    return _is_movie_name(path.name) and exists(path)


def _is_folder_name(name: str) -> bool:
    return name.lower().endswith(ZARR_SUFFIXES)


def _split_suffix(name: str) -> tuple[str, str]:
    """Return stem and suffix, ("a/b", ".nii.gz") for "a/b.NII.gz"; the suffix is empty if the name is no movie's."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):  # ".nii.gz" before any ".gz"
        if name.lower().endswith(suffix) and len(PurePosixPath(name).name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def _case_key(name: str) -> str:
    """Return a key that is equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key by which "x2" comes before "x10"."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts], name


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
