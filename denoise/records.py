"""metadata.json: the records of a run, and whether a movie's output is still what an earlier run wrote.

The record of a finished movie holds size and SHA-256 of its input files and of its output, and the settings and
weights that it was made with. An output counts as complete only if all of these are unchanged.
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
MAX_SEPARATE_FILES = 2  # with an entry for each; more files of one movie share one entry
MAX_METADATA_BYTES = 1 << 28  # a hundred thousand movies

Record = dict[str, Any]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> Record:
    """Return name, size in bytes and SHA-256 of a file."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}


def fingerprints(paths: Sequence[Path]) -> list[Record]:
    """Return the fingerprint of each file; for many, such as a series of images, one of the list of their hashes."""
    if len(paths) <= MAX_SEPARATE_FILES:
        return [fingerprint(path) for path in paths]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name.encode('utf-8', 'surrogateescape')!r} {sha256(path)}\n".encode())
    names = f"{paths[0].name} to {paths[-1].name}"
    return [{"name": names, "files": len(paths), "size": _total_size(paths), "sha256": digest.hexdigest()}]


def _total_size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def list_files(path: Path) -> list[Path]:
    """Return the file itself, or all files below a folder, sorted."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def is_complete(record: Record, inputs: Sequence[Path], made_with: Record, output: Path) -> bool:
    """Return whether a record is of these inputs and settings, and its output is there as it was written."""
    if record.get("made_with") != json_values(made_with):
        return False
    outputs = [record.get("output_file")]
    return _are_unchanged(record.get("input_files"), inputs) and _are_unchanged(outputs, list_files(output))


def _are_unchanged(recorded: object, paths: Sequence[Path]) -> bool:
    """Return whether files have the recorded fingerprints; sizes are compared first, since hashing takes a while."""
    if not isinstance(recorded, list) or not all(isinstance(entry, dict) for entry in recorded):
        return False
    try:
        same_size = sum(entry.get("size", 0) for entry in recorded) == _total_size(paths)
        return same_size and recorded == json_values(fingerprints(paths))
    except (OSError, TypeError):
        return False


def has_saved_weights(record: Record, path: Path) -> bool:
    """Return whether a file still holds the weights that were saved there according to a record."""
    try:
        return record.get("saved_weights") == json_values({"path": path, "sha256": sha256(path)})
    except OSError:
        return False


def read_metadata(folder: Path) -> Record:
    """Read a folder's metadata.json; {} if there is none, or if another program wrote it."""
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_METADATA_BYTES else {}
        return metadata if metadata["program"]["name"] == NAME else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def planned_outputs(folder: Path) -> set[str]:
    """Return the names of all outputs that earlier runs wrote to a folder, or planned to write."""
    return {record["output"] for record in _records(folder)}


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records of finished movies from a folder's metadata.json, by output name; {} if it cannot be read."""
    records = reversed(
        _records(folder)
    )  # of several with the same output the first, which is the latest, counts
    return {record["output"]: record for record in records if record.get("status") == "ok"}


def _records(folder: Path) -> list[Record]:
    """Read all records of a folder, those of the last run first. What does not look like a record is left out."""
    metadata = read_metadata(folder)
    lists = [metadata.get(key) for key in ("movies", "earlier")]
    records = [record for entries in lists if isinstance(entries, list) for record in entries]
    return [
        record for record in records if isinstance(record, dict) and isinstance(record.get("output"), str)
    ]


def write_metadata(folder: Path, metadata: Record) -> None:
    """Replace a folder's metadata.json, complete or not at all. Raises OSError."""
    text = json.dumps(json_values(metadata), indent=2, allow_nan=False)
    write_file(folder / METADATA, text.encode() + b"\n")


def json_values(value: Any) -> Any:
    """Convert a value to JSON types: NaN and infinity become null, paths text, undecodable bytes of names escapes."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(item) for item in value]
    if isinstance(value, (str, Path)):
        return str(value).encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
