"""Coverage-guided fuzzing of the readers: whatever the bytes of a file, open_recording reads or refuses them.

    PYTHONPATH=tests python -m tests.guided CORPUS -max_total_time=600

Options are libFuzzer's; CORPUS is a folder to which the good files of tests.fuzz are added. Needs atheris
(https://github.com/google/atheris), which installs on Linux. The first byte of an input selects the
file's suffix, the others are its content. An input that crashes the interpreter, takes over 20 s or 1 GiB of memory, or
raises anything but a MovieError is kept as a file and ends the run.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["denoise", "tifffile"]):
    from denoise.formats import SUFFIXES, open_recording
    from denoise.movies import MovieError
    from denoise.survey import blocks
import fuzz

BASELINE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB of torch and the readers
LIMITS = ("-timeout=20", f"-rss_limit_mb={BASELINE + 1024}", "-max_len=20000")


def read(path: Path) -> None:
    """Read all frames of all movies of a file, as a run does."""
    try:
        with open_recording(path) as recording:
            for part in recording.parts:
                for _ in blocks(part.movie):
                    pass
    except MovieError as refused:
        if "\n" in str(refused):
            raise AssertionError("a refusal of several lines") from refused


def add_good_files(corpus: Path) -> None:
    """Add the good files of tests.fuzz to the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in fuzz.seeds(Path(folder)):
            suffix_index = next(n for n, suffix in enumerate(SUFFIXES) if seed.name.endswith(suffix))
            if seed.is_file():
                (corpus / seed.name).write_bytes(bytes([suffix_index]) + seed.read_bytes())


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    add_good_files(corpus)
    with tempfile.TemporaryDirectory() as folder:

        def test_one_input(data: bytes) -> None:
            path = Path(folder) / f"movie{SUFFIXES[data[0] % len(SUFFIXES)]}" if data else Path(folder) / "x"
            path.write_bytes(data[1:])
            read(path)

        atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[1:]], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
