"""Atomic writing: files appear complete or not at all, and only one run at a time writes to a folder.

A file is written under a hidden temporary name beside its final one, `.<name>.<random>.calcium-denoiser.part`, and
renamed when it is on the disk. Its writer holds a lock on it, which the kernel releases when the process ends, however
it ends: a temporary file that can be locked was left by a dead run, and may be removed. A folder is locked itself, so
that no lock file remains either. Where there are no locks (some network folders), nothing is removed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PART_SUFFIX = ".calcium-denoiser.part"
LEFTOVER = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(PART_SUFFIX)}", re.DOTALL)
NAME_LENGTH = 40  # characters of the final name in a temporary one, of 4 bytes at most: 255 are allowed

_temporary_paths: set[Path] = set()  # temporary files of this process


class PartFile:
    """A temporary file: write to `file`, then `keep` or `discard` it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = _temporary_path(path)
        _temporary_paths.add(self._part)  # before it exists: discard_all may come at any time
        try:
            self.file: BinaryIO = self._part.open("x+b")
        except BaseException:
            self._forget()
            raise
        _lock(self.file.fileno())

    def keep(self) -> None:
        """Flush the file to the disk and give it its final name; an older file of that name is replaced."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if fcntl is None:
            self.file.close()  # Windows renames no open file; elsewhere the lock holds until it is renamed
        self._part.replace(self.path)
        self.file.close()
        _temporary_paths.discard(self._part)
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary data; does nothing after `keep`."""
        with suppress(OSError):  # a full disk refuses what is still buffered, which is not needed
            self.file.close()
        self._forget()

    def _forget(self) -> None:
        _remove(self._part)


class PartFolder:
    """A temporary folder: fill `folder`, then `keep` or `discard` it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = _temporary_path(path)
        _temporary_paths.add(self.folder)
        try:
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY)
            _lock(self._lock)
        except BaseException:
            self._forget()
            raise

    def keep(self) -> None:
        """Flush the folder to the disk and give it its final name.

        An older folder is moved away just before; if the run is killed in between, there is neither.
        """
        for parent, _, names in os.walk(self.folder):
            for name in names:
                _sync_file(Path(parent) / name)
            _sync_folder(Path(parent))
        old = _temporary_path(self.path)
        _temporary_paths.add(old)
        if self.path.is_dir():
            self.path.replace(old)
        self.folder.replace(self.path)
        os.close(self._lock)
        _sync_folder(self.path.parent)
        _temporary_paths.discard(self.folder)
        _remove(old)

    def discard(self) -> None:
        """Remove the temporary data; does nothing after `keep`."""
        if self.folder in _temporary_paths:
            os.close(self._lock)
            self._forget()

    def _forget(self) -> None:
        _remove(self.folder)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace a file at once; on an error an older one stays as it was. Raises OSError."""
    part = PartFile(path)
    try:
        part.file.write(content)
        part.keep()
    finally:
        part.discard()


def discard_all() -> None:
    """Remove every temporary file of this process, which is about to end; may be called by any thread."""
    for part in list(_temporary_paths):
        _remove(part)


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove temporary files of dead runs, not of live ones, and return their paths. Raises nothing."""
    candidates = [path for folder in folders for path in _list(folder) if LEFTOVER.fullmatch(path.name)]
    return [path for path in candidates if _remove_if_dead(path)]


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder against other runs; False where the system has no locks. Raises BlockingIOError if it is locked."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAME_LENGTH]}.{uuid.uuid4().hex[:8]}{PART_SUFFIX}")


def _remove(part: Path) -> None:
    """Remove a temporary file or folder, if it exists. Raises nothing."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        part.unlink(missing_ok=True)
    _temporary_paths.discard(part)


def _lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where the system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(errno.EWOULDBLOCK, "in use by another run") from error
        return False
    return True


def _remove_if_dead(path: Path) -> bool:
    if fcntl is None:
        return False
    is_folder = path.is_dir()
    try:
        mode = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR
        handle = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not _lock(handle):
            return False
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:  # locked by its writer, or gone since
        return False
    finally:
        os.close(handle)
    return True


def _list(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's new names to the disk, where the system can; the content is there already."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network folders refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
