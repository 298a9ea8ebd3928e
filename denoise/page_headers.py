"""The chain of a TIFF's page headers, walked to its end before a reader gets the file. Source: TIFF 6.0; BigTIFF.

tifffile takes a broken chain for the movie's end, and all pages to be like the first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from denoise.movies import fail

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")  # the last three: BigTIFF, as some programs name it

# What every page of a movie must share, with the value that a missing tag stands for.
LAYOUT_TAGS: dict[int, tuple[str, int | None]] = {
    256: ("ImageWidth", None),
    257: ("ImageLength", None),
    258: ("BitsPerSample", 1),
    259: ("Compression", 1),
    266: ("FillOrder", 1),
    277: ("SamplesPerPixel", 1),
    278: ("RowsPerStrip", 2**32 - 1),
    284: ("PlanarConfiguration", 1),
    317: ("Predictor", 1),
    322: ("TileWidth", None),
    323: ("TileLength", None),
    339: ("SampleFormat", 1),
}
SUBFILE_TYPE, THUMBNAIL = 254, 1  # a tag, and its bit
OF_EACH_SAMPLE = (258, 339)  # tags that have a number for each colour
INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}  # by tag type
MOST_TAGS = 4096


class _Dialect(NamedTuple):
    """How a TIFF writes its numbers: classic or Big, in either byte order (TIFF 6.0, section 2)."""

    order: str  # "little" or "big"
    entries: struct.Struct  # number of tags in a page header
    entry: struct.Struct  # one tag: code, type, count, value
    offset: struct.Struct  # of the next page header


def count_pages(path: Path) -> int:
    """Walk the chain of page headers; the number of pages, thumbnails left out.

    Raises MovieError for a chain that breaks off or runs in a circle, and for pages of unlike size or type.
    """
    pages, first = 0, None
    seen: set[int] = set()
    with path.open("rb") as file:
        dialect, offset = _dialect(path, file)
        while offset:
            if offset in seen:
                fail(path, f"expected a last page, found a circle of {len(seen)} pages; export it again")
            seen.add(offset)
            layout, offset = _page_header(path, file, dialect, offset, len(seen))
            if layout.pop(SUBFILE_TYPE, 0) & THUMBNAIL:
                continue
            pages += 1
            first = layout if first is None else first
            if layout != first:
                found = f"page {len(seen)} with {_difference(layout, first)}"
                fail(path, f"expected pages of one size and type, found {found}; save the movie without it")
    if not pages:
        fail(path, "expected a movie, found a TIFF without pages; export it again")
    return pages


def _dialect(path: Path, file: BinaryIO) -> tuple[_Dialect, int]:
    """The file's dialect and the offset of its first page header."""
    header = file.read(16)
    sign, order = {b"II": ("<", "little"), b"MM": (">", "big")}.get(header[:2], ("", ""))
    version = int.from_bytes(header[2:4], "big" if order == "big" else "little")
    if not sign or version not in (42, 43):
        fail(path, f"expected a TIFF, found a file that begins with {header[:4]!r}; check its name")
    big = version == 43
    entries, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    dialect = _Dialect(order, *(struct.Struct(sign + form) for form in (entries, entry, offset)))
    return dialect, dialect.offset.unpack(header[8:16] if big else header[4:8])[0]


def _page_header(
    path: Path, file: BinaryIO, dialect: _Dialect, offset: int, page: int
) -> tuple[dict[int, int], int]:
    """The layout of the page with its header at offset, and the next header's offset, 0 after the last."""
    file.seek(offset)
    count = file.read(dialect.entries.size)
    tags = dialect.entries.unpack(count)[0] if len(count) == dialect.entries.size else 0
    block = file.read(tags * dialect.entry.size) if tags <= MOST_TAGS else b""
    following = file.read(dialect.offset.size)
    if not block or len(following) < dialect.offset.size:
        fail(path, f"expected page {page} at byte {offset}, found none: cut off or damaged; copy it again")
    layout = {}
    for code, kind, number, value in dialect.entry.iter_unpack(block):
        if (code not in LAYOUT_TAGS and code != SUBFILE_TYPE) or (code in OF_EACH_SAMPLE and number != 1):
            continue
        if number != 1 or kind not in INTEGER_BYTES:  # tifffile would calculate with a list
            fail(
                path,
                f"expected one whole number as tag {code} of page {page}, found none: damaged; copy it again",
            )
        layout[code] = int.from_bytes(value[: INTEGER_BYTES[kind]], dialect.order)  # type: ignore[arg-type]
        if code in LAYOUT_TAGS and layout[code] == LAYOUT_TAGS[code][1]:
            del layout[code]
    return layout, dialect.offset.unpack(following)[0]


def _difference(layout: dict[int, int], first: dict[int, int]) -> str:
    """In what a page is not like the first."""
    code = next(code for code in LAYOUT_TAGS if layout.get(code) != first.get(code))
    name, default = LAYOUT_TAGS[code]
    return f"{name} {layout.get(code, default)} after {first.get(code, default)}"
