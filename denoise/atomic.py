"""Files that appear complete or not at all, in folders that one run writes at a time.

A file is written under a hidden name beside its own, `.<name>.<random>.calcium-denoiser.part`, and gets its own
name when it is on the disk. Its writer holds a lock on it, which the kernel lifts when the process ends, however
it ends: a temporary file that can be locked is a dead run's, and may go. The lock on a folder is the folder's
own, so that no lock file remains either. Where there are no locks (some network folders), nothing is removed.
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

ENDING = ".calcium-denoiser.part"
LEFTOVER = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(ENDING)}", re.DOTALL)
NAME_SHOWN = 40  # characters of at most 4 bytes: the temporary name stays within 255 bytes

_under_way: set[Path] = set()  # temporary files of this process


class PartFile:
    """A file under way: write to `file`, then `keep` or `discard` it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = _part_name(path)
        _under_way.add(self._part)  # before it exists: discard_all may come at any time
        try:
            self.file: BinaryIO = self._part.open("x+b")
        except BaseException:
            self._forget()
            raise
        _lock(self.file.fileno())

    def keep(self) -> None:
        """Put the file on the disk, and under its name; an older one of that name is replaced."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if fcntl is None:
            self.file.close()  # Windows renames no open file; elsewhere the lock holds until it is renamed
        self._part.replace(self.path)
        self.file.close()
        _under_way.discard(self._part)
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing; after `keep` this does nothing."""
        with suppress(OSError):  # a full disk refuses the buffer's rest, which nobody wants
            self.file.close()
        self._forget()

    def _forget(self) -> None:
        _remove(self._part)


class PartFolder:
    """A folder under way: fill `folder`, then `keep` or `discard` it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = _part_name(path)
        _under_way.add(self.folder)
        try:
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY)
            _lock(self._lock)
        except BaseException:
            self._forget()
            raise

    def keep(self) -> None:
        """Put the folder on the disk, and under its name.

        An older one makes room just before; should the run be killed in between, there is neither.
        """
        for place, _, names in os.walk(self.folder):
            for name in names:
                _sync_file(Path(place) / name)
            _sync_folder(Path(place))
        old = _part_name(self.path)
        _under_way.add(old)
        if self.path.is_dir():
            self.path.replace(old)
        self.folder.replace(self.path)
        os.close(self._lock)
        _sync_folder(self.path.parent)
        _under_way.discard(self.folder)
        _remove(old)

    def discard(self) -> None:
        """Leave nothing; after `keep` this does nothing."""
        if self.folder in _under_way:
            os.close(self._lock)
            self._forget()

    def _forget(self) -> None:
        _remove(self.folder)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file when all of the content is on the disk; on an error leave it as it was. Raises OSError."""
    part = PartFile(path)
    try:
        part.file.write(content)
        part.keep()
    finally:
        part.discard()


def discard_all() -> None:
    """Remove every temporary file of this process, which is about to end; any thread may call it."""
    for part in list(_under_way):
        _remove(part)


def remove_leftovers(folders: Iterable[Path]) -> list[Path]:
    """Remove what dead runs left in these folders; the temporary files of live ones stay. Raises nothing."""
    found = [path for folder in folders for path in _list(folder) if LEFTOVER.fullmatch(path.name)]
    return [path for path in found if _remove_if_dead(path)]


@contextmanager
def sole_use(folder: Path) -> Iterator[bool]:
    """Hold a folder against other runs; False where the system has no locks. Raises BlockingIOError if held."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _part_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAME_SHOWN]}.{uuid.uuid4().hex[:8]}{ENDING}")


def _remove(part: Path) -> None:
    """Remove a file or folder under way, if it is there. Raises nothing."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        part.unlink(missing_ok=True)
    _under_way.discard(part)


def _lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False if that cannot be done here."""
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
    folder = path.is_dir()
    try:
        mode = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR
        handle = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not _lock(handle):
            return False
        if folder:
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
    """Make the new name last where the system can; the content itself is on the disk already."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some network folders refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
