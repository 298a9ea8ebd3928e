"""Demonstration: denoise a simulated movie of known truth, score it, draw it (`python -m evaluation.demo`).

    simulate -> output/demo/input/example.tif -> process.py -> score -> output/proof_of_work.png

Exit status: that of process.py if it failed, 1 if the denoised movie scores no better than the noisy one,
else 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

from evaluation.baselines import moving_average
from evaluation.cells import pixels_of, trace_of
from evaluation.figures import proof_of_work
from evaluation.metrics import score
from evaluation.score import read
from simulation import FIRST_EVALUATION_SEED, LEVELS, Scene, challenge_scene, digitize, noisy

ROOT = Path(__file__).resolve().parents[1]
SEED = FIRST_EVALUATION_SEED + 100  # used neither by training nor by the benchmark
FRAMES, SIZE, LEVEL = 300, 128, 2
WIDTH = 63  # frames of the moving average for comparison


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder for all that is written")
    output = parser.parse_args(arguments).output
    scene = challenge_scene(SEED, FRAMES, SIZE)
    clean = scene.clean()
    noise = np.random.default_rng(SEED)
    recording = digitize(noisy(clean, *LEVELS[LEVEL], noise), np.int16, clip_at_zero=False)
    folder = output / "demo"
    source, result = folder / "input" / "example.tif", folder / "output" / "example.tif"
    save_movie(source, recording)
    save_movie(folder / "clean.tif", clean)
    print(f"example movie {recording.shape}, noise level {LEVEL} of the challenge: {source}", flush=True)
    status = denoise(source.parent, result.parent)
    if status:
        print(f"{ROOT / 'process.py'}: exit status {status}; there is nothing to show", file=sys.stderr)
        return status
    return report(output / "proof_of_work.png", scene, recording, read(result))


def save_movie(path: Path, movie: np.ndarray) -> None:
    """Write a TIFF (T, Y, X) that the challenge's platform accepts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_per_cm = (1e4, 1e4)  # the platform asks for a pixel size; here one micrometre
    tifffile.imwrite(
        path,
        movie,
        photometric="minisblack",
        metadata={"axes": "TYX"},
        resolution=pixels_per_cm,
        resolutionunit="CENTIMETER",
    )


def denoise(source: Path, result: Path) -> int:
    """Run process.py on a folder; return its exit status."""
    program = [sys.executable, str(ROOT / "process.py")]
    folders = ["--input", str(source), "--output", str(result), "--overwrite", "--adapt", "1"]
    return subprocess.run(program + folders, check=False).returncode  # noqa: S603 - our own program


def report(picture: Path, scene: Scene, recording: np.ndarray, denoised: np.ndarray) -> int:
    """Print the scores and draw the picture; return 1 if denoising did not help, else 0."""
    clean = scene.clean()
    movies = {
        "noisy": recording,
        f"{WIDTH}-frame moving average": moving_average(recording, WIDTH),
        "denoised": denoised,
    }
    values = {name: score(clean, movie) for name, movie in movies.items()}
    print(f"\n{'dB':<24}{'sSNR':>8}{'tSNR':>8}{'stSNR':>8}")
    for name, value in values.items():
        print(f"{name:<24}{value['ssnr']:8.2f}{value['tsnr']:8.2f}{value['stsnr']:8.2f}")
    before, average, after = (value["stsnr"] for value in values.values())
    panels = {
        f"Noisy, stSNR {before:.1f} dB": recording,
        f"Denoised, stSNR {after:.1f} dB": denoised,
        "Clean (truth)": clean,
    }
    title = f"Simulated two-photon movie of {len(clean)} frames, challenge noise level {LEVEL}"
    comparison = f"a {WIDTH}-frame moving average scores {average:.1f} dB"
    proof_of_work(picture, panels, liveliest_cells(scene, clean), f"{title}; {comparison}")
    print(f"picture: {picture}")
    if not after > before:
        print(
            f"denoised: expected more than the noisy {before:.2f} dB, found {after:.2f} dB", file=sys.stderr
        )
        return 1
    return 0


def liveliest_cells(scene: Scene, clean: np.ndarray) -> list[np.ndarray]:
    """Return the footprints (Y, X) of the two cells whose activity is strongest relative to the photon noise."""

    def signal_to_noise(footprint: np.ndarray) -> float:
        pixels = pixels_of(footprint)
        trace = trace_of(clean, pixels)
        return float(trace.std() * (pixels.sum() / trace.mean()) ** 0.5)

    return sorted((footprint for footprint, _ in scene.cells), key=signal_to_noise)[:-3:-1]


if __name__ == "__main__":
    sys.exit(main())
