"""What a run leaves in metadata.json, and whether a movie's output is still what an earlier run wrote.

A record of a finished movie holds size and SHA-256 of the files that it was read from and of its output, and
what the output was made with. All must be as they were for an output to count as complete.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from denoise import NAME
from denoise.atomic import write_file

METADATA = "metadata.json"
FEW = 2  # files that each have an entry of their own
LARGEST = 1 << 28  # bytes of a metadata.json: a hundred thousand movies

Record = dict[str, Any]


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> Record:
    """Name, size in bytes and SHA-256 of a file."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}


def fingerprints(paths: Sequence[Path]) -> list[Record]:
    """Those of each file; of many, as a series of images is, one of them all: of the list of theirs."""
    if len(paths) <= FEW:
        return [fingerprint(path) for path in paths]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name.encode('utf-8', 'surrogateescape')!r} {sha256(path)}\n".encode())
    names = f"{paths[0].name} to {paths[-1].name}"
    return [{"name": names, "files": len(paths), "size": _size(paths), "sha256": digest.hexdigest()}]


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def files_at(path: Path) -> list[Path]:
    """A file itself, or all files below a folder, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def is_complete(record: Record, inputs: Sequence[Path], made_with: Record, output: Path) -> bool:
    """Whether a record tells of this very movie, made in this way, and its output is there as it was written."""
    if record.get("made_with") != strict(made_with):
        return False
    return _are_as_told(record.get("input_files"), inputs) and _are_as_told(
        [record.get("output_file")], files_at(output)
    )


def _are_as_told(told: object, paths: Sequence[Path]) -> bool:
    """The sizes are compared first: to read large files takes a while."""
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        return False
    try:
        same_size = sum(one.get("size", 0) for one in told) == _size(paths)
        return same_size and told == strict(fingerprints(paths))
    except (OSError, TypeError):
        return False


def saved_there(record: Record, path: Path) -> bool:
    """Whether a file holds the weights that a record tells to have been saved there."""
    try:
        return record.get("saved_weights") == strict({"path": path, "sha256": sha256(path)})
    except OSError:
        return False


def read_metadata(folder: Path) -> Record:
    """A folder's metadata.json; {} if there is none, or it is not this program's."""
    path = folder / METADATA
    try:
        told = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else {}
        return told if told["program"]["name"] == NAME else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def planned_outputs(folder: Path) -> set[str]:
    """The names of all outputs that earlier runs wrote to a folder, or were about to."""
    return {record["output"] for record in _records(folder)}


def read_records(folder: Path) -> dict[str, Record]:
    """The records of finished movies in a folder's metadata.json, by output name; {} if it cannot be read."""
    return {r["output"]: r for r in reversed(_records(folder)) if r.get("status") == "ok"}


def _records(folder: Path) -> list[Record]:
    """The last run's records come first. What does not look like a record is left out."""
    told = read_metadata(folder)
    listed = [told.get(kind) for kind in ("movies", "earlier")]
    found = [record for records in listed if isinstance(records, list) for record in records]
    return [r for r in found if isinstance(r, dict) and isinstance(r.get("output"), str)]


def write_metadata(folder: Path, metadata: Record) -> None:
    """Replace a folder's metadata.json, complete or not at all. Raises OSError."""
    text = json.dumps(strict(metadata), indent=2, allow_nan=False)
    write_file(folder / METADATA, text.encode() + b"\n")


def strict(value: Any) -> Any:
    """The value in what JSON knows: NaN and infinity become null, a path text, a name's odd bytes escapes."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, (str, Path)):
        return str(value).encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
