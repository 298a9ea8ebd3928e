"""Check the chain of a TIFF's page headers to its end, before tifffile reads the file. Source: TIFF 6.0; BigTIFF.

tifffile takes a broken chain for the end of the movie, and assumes that all pages are like the first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from denoise.movies import fail

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")  # the last three: some programs' names for BigTIFF

# Tags that must be equal in all pages of a movie: name, and the default of a missing tag.
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
SUBFILE_TYPE, THUMBNAIL_BIT = 254, 1  # a tag, and the bit that marks thumbnails
PER_SAMPLE_TAGS = (258, 339)  # tags that have a value for each colour
INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}  # size of a value by tag type
MAX_TAGS = 4096  # in a page header; more are taken for damage


class _Encoding(NamedTuple):
    """How a TIFF encodes its numbers: classic or BigTIFF, in either byte order (TIFF 6.0, section 2)."""

    order: str  # "little" or "big"
    entries: struct.Struct  # number of tags in a page header
    entry: struct.Struct  # one tag: code, type, count, value
    offset: struct.Struct  # of the next page header


def count_pages(path: Path) -> int:
    """Walk the chain of page headers and return the number of pages, thumbnails left out.

    Raises MovieError for a chain that breaks off or forms a cycle, and for pages of different size or type.
    """
    pages, first = 0, None
    visited: set[int] = set()
    with path.open("rb") as file:
        encoding, offset = _read_encoding(path, file)
        while offset:
            if offset in visited:
                fail(path, f"expected a last page, found a circle of {len(visited)} pages; export it again")
            visited.add(offset)
            layout, offset = _read_page_header(path, file, encoding, offset, len(visited))
            if layout.pop(SUBFILE_TYPE, 0) & THUMBNAIL_BIT:
                continue
            pages += 1
            first = layout if first is None else first
            if layout != first:
                found = f"page {len(visited)} with {_difference(layout, first)}"
                fail(path, f"expected pages of one size and type, found {found}; save the movie without it")
    if not pages:
        fail(path, "expected a movie, found a TIFF without pages; export it again")
    return pages


def _read_encoding(path: Path, file: BinaryIO) -> tuple[_Encoding, int]:
    """Return the file's encoding and the offset of its first page header."""
    header = file.read(16)
    byte_order_sign, order = {b"II": ("<", "little"), b"MM": (">", "big")}.get(header[:2], ("", ""))
    version = int.from_bytes(header[2:4], "big" if order == "big" else "little")
    if not byte_order_sign or version not in (42, 43):
        fail(path, f"expected a TIFF, found a file that begins with {header[:4]!r}; check its name")
    big = version == 43
    entries, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    encoding = _Encoding(order, *(struct.Struct(byte_order_sign + form) for form in (entries, entry, offset)))
    return encoding, encoding.offset.unpack(header[8:16] if big else header[4:8])[0]


def _read_page_header(
    path: Path, file: BinaryIO, encoding: _Encoding, offset: int, page: int
) -> tuple[dict[int, int], int]:
    """Return the layout tags of the page whose header is at offset, and the next header's offset, 0 after the last."""
    file.seek(offset)
    count_field = file.read(encoding.entries.size)
    tag_count = encoding.entries.unpack(count_field)[0] if len(count_field) == encoding.entries.size else 0
    tags = file.read(tag_count * encoding.entry.size) if tag_count <= MAX_TAGS else b""
    next_offset = file.read(encoding.offset.size)
    if not tags or len(next_offset) < encoding.offset.size:
        fail(path, f"expected page {page} at byte {offset}, found none: cut off or damaged; copy it again")
    layout = {}
    for code, tag_type, count, value in encoding.entry.iter_unpack(tags):
        if (code not in LAYOUT_TAGS and code != SUBFILE_TYPE) or (code in PER_SAMPLE_TAGS and count != 1):
            continue
        if count != 1 or tag_type not in INTEGER_BYTES:  # tifffile would calculate with a list
            fail(
                path,
                f"expected one whole number as tag {code} of page {page}, found none: damaged; copy it again",
            )
        layout[code] = int.from_bytes(value[: INTEGER_BYTES[tag_type]], encoding.order)  # type: ignore[arg-type]
        if code in LAYOUT_TAGS and layout[code] == LAYOUT_TAGS[code][1]:
            del layout[code]
    return layout, encoding.offset.unpack(next_offset)[0]


def _difference(layout: dict[int, int], first: dict[int, int]) -> str:
    """Describe the first layout tag in which a page differs from the first page."""
    code = next(code for code in LAYOUT_TAGS if layout.get(code) != first.get(code))
    name, default = LAYOUT_TAGS[code]
    return f"{name} {layout.get(code, default)} after {first.get(code, default)}"
