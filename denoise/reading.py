"""Open movie files of all formats but containers, to be read by ranges of frames.

    open_movie(path) -> Movie       info (shape, dtype, pixel size, ...) and read(start, stop) -> (n, Y, X)
    open_pages(path) -> Pages       a TIFF of more axes, each of its images as a frame

TIFF is read by denoise.tiff; MetaImage, NRRD and NIfTI by denoise.itk.
"""

from __future__ import annotations

import stat
from pathlib import Path

from denoise.itk import ITK_READERS, open_itk, voxel_file
from denoise.movies import Movie, Pages, convert_errors, fail
from denoise.page_headers import TIFF_SUFFIXES
from denoise.tiff import open_tiff, open_tiff_pages

SUFFIXES: tuple[str, ...] = (*TIFF_SUFFIXES, *ITK_READERS)  # what open_movie reads, in upper or lower case


def open_movie(path: Path) -> Movie:
    """Open a TIFF, MetaImage, NRRD or NIfTI file that holds one movie (T, Y, X); close it after use.

    A file of three axes, the first of length 1, is a movie of one frame. A single image (Y, X) is an error unless the
    file declares a time axis of length 1 (OME, ImageJ with frames=1, our own); colours and several channels or planes
    are errors. Files are read from disk range by range; only text and rare encodings of MetaImage and NRRD are kept in
    memory as a whole from the first read on.

    Raises MovieError.
    """
    path = Path(path)
    with convert_errors(path, "the file cannot be opened"):
        _check_file(path)
        return open_tiff(path) if path.name.lower().endswith(TIFF_SUFFIXES) else open_itk(path)


def open_pages(path: Path, of_series: bool = False) -> Pages:
    """Open a TIFF of any axes (..., Y, X) with each of its images as a frame. Raises MovieError.

    of_series: it is one file of a series; the shape in its OME-XML may be that of all files together.
    """
    path = Path(path)
    with convert_errors(path, "the file cannot be opened"):
        _check_file(path)
        return open_tiff_pages(path, of_series)


def movie_files(path: Path) -> list[Path]:
    """Return the files that open_movie reads: the movie, and a file beside it with its voxels. Raises MovieError."""
    with convert_errors(path, "the file cannot be opened"):
        _check_file(path)
        voxels = path if path.name.lower().endswith(TIFF_SUFFIXES) else voxel_file(path)
        return list(dict.fromkeys([path, voxels]))


def _check_file(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        fail(path, f"expected a file {', '.join(SUFFIXES)}, found another ending; convert it to TIFF")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would block for ever
        fail(path, "expected a file, found a folder, pipe or device; give a movie file")
    if status.st_size == 0:
        fail(path, "expected a movie, found an empty file; copy or export it again")
