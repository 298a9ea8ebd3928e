"""evaluation: cells, the score command and the demo, on small movies with known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile

from evaluation import cells, demo
from evaluation import score as score_command
from evaluation.baselines import temporal_mean
from evaluation.metrics import linearity
from simulation import FIRST_EVALUATION_SEED, LEVELS, Scene, challenge_scene, noisy


def pulse(peak: int, frames: int = 120, decay: float = 10.0, height: float = 50.0) -> np.ndarray:
    """A trace of 100 with one transient that peaks at `peak` with 100 + height."""
    time = np.arange(frames) - peak
    return 100 + height * np.where(time >= 0, np.exp(-np.maximum(time, 0) / decay), np.exp(time / 2.0))


def movie_of(trace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A movie of one round cell with this trace on a field of 100, and the cell's footprint."""
    footprint = (np.hypot(*np.mgrid[-8:8, -8:8]) < 4).astype(np.float32)
    return 100 + (trace - 100)[:, None, None] * footprint, footprint


def test_linearity_by_hand() -> None:
    clean = np.array([1.0, 2, 3, 6]).reshape(4, 1, 1)
    values = linearity(clean, 0.5 * clean + 3)
    assert values == pytest.approx({"bias": 1.5 / 3, "slope": 0.5})
    assert math.isnan(linearity(np.full((2, 1, 1), 7.0), np.ones((2, 1, 1)))["slope"])


def test_transient_is_found_from_foot_to_peak() -> None:
    [(foot, peak)] = cells.isolated_transients(pulse(60))
    assert peak == 60
    assert 30 <= foot < 50


def test_transient_on_the_shoulder_of_another_is_not_isolated() -> None:
    trace = pulse(40, height=80) + pulse(55, height=80) - 100
    assert [peak for _, peak in cells.isolated_transients(trace)] == [40]


def test_amplitude_and_correlation_of_a_halved_transient() -> None:
    clean, footprint = movie_of(pulse(60))
    values = cells.score_cells(clean, 100 + (clean - 100) / 2, [footprint])
    assert values == pytest.approx({"trace_correlation": 1.0, "amplitude_kept": 0.5})
    values = cells.score_cells(clean, np.full_like(clean, 100.0), [footprint])
    assert values == {"trace_correlation": 0.0, "amplitude_kept": 0.0}


def test_noise_does_not_bias_the_amplitude() -> None:
    clean, footprint = movie_of(pulse(60))
    rng = np.random.default_rng(0)
    kept = [
        cells.score_cells(clean, rng.normal(clean, 20), [footprint])["amplitude_kept"] for _ in range(100)
    ]
    assert np.mean(kept) == pytest.approx(1, abs=0.3 * float(np.std(kept)))


def test_cells_without_pixels_or_transients_have_no_score() -> None:
    clean, footprint = movie_of(pulse(60))
    speck = np.zeros_like(footprint)
    speck[3, 3] = 1
    assert all(
        math.isnan(value) for value in cells.score_cells(clean, clean, [speck, 0 * footprint]).values()
    )
    flat = np.full_like(clean, 100.0)
    assert math.isnan(cells.score_cells(flat, flat, [footprint])["amplitude_kept"])


def test_false_transients_are_counted_once_each() -> None:
    output = np.random.default_rng(1).normal(204, 3, (200, 40, 40)).astype(np.float32)
    before = cells.score_noise(output)["false_transients"]
    output[50:60, 10:16, 10:16] += 30
    output[120:125, 30:36, 25:31] += 30
    assert cells.score_noise(output)["false_transients"] == before + 2
    assert cells.score_noise(np.full((20, 8, 8), 204.0)) == {"false_transients": 0, "false_height": 0}


@pytest.mark.parametrize(("frames", "side", "transients"), [(10, 8, 1), (2, 8, 0), (10, 2, 1), (50, 8, 1)])
def test_false_transients_last_and_cover_a_cell(frames: int, side: int, transients: int) -> None:
    """A flash of two frames is dropped; a bright speck fills its 5 x 5 surroundings."""
    output = np.random.default_rng(1).normal(204, 3, (200, 40, 40)).astype(np.float32)
    before = cells.score_noise(output)["false_transients"]
    output[50 : 50 + frames, 10 : 10 + side, 10 : 10 + side] += 100
    assert before == 0
    assert cells.score_noise(output)["false_transients"] == transients


def test_a_ripple_among_ripples_is_no_transient_and_one_on_a_flat_output_is() -> None:
    output = np.full((50, 16, 16), 204.0)
    output[20:30, 4:12, 4:12] += 1.5
    assert cells.score_noise(output)["false_transients"] == 1
    output += np.random.default_rng(2).normal(0, 5, output.shape)
    assert cells.score_noise(output)["false_transients"] == 0


def test_score_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, output = tmp_path / "clean.tif", tmp_path / "output.tif"
    tifffile.imwrite(clean, np.full((5, 6, 7), 100, np.int16), photometric="minisblack")
    tifffile.imwrite(output, np.full((5, 6, 7), 101, np.float32), photometric="minisblack")
    assert score_command.main([str(clean), str(output)]) == 0
    assert "stSNR = 40.0000 dB" in capsys.readouterr().out
    assert score_command.main([str(clean), str(clean), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stsnr"] is None  # infinite, which JSON does not know


def test_score_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, output = tmp_path / "clean.tif", tmp_path / "output.tif"
    tifffile.imwrite(clean, np.ones((5, 6, 7), np.int16), photometric="minisblack")
    assert score_command.main([str(clean), str(output)]) == 1
    assert str(output) in capsys.readouterr().err
    tifffile.imwrite(output, np.ones((4, 6, 7), np.int16), photometric="minisblack")
    assert score_command.main([str(clean), str(output)]) == 1
    error = capsys.readouterr().err
    assert "(5, 6, 7) and (4, 6, 7)" in error
    assert error.count("\n") == 1


class TestDemo:
    """The demo's report, on a tiny scene; the whole demo is `make demo`."""

    @pytest.fixture
    def example(self) -> tuple[Scene, np.ndarray]:
        scene = challenge_scene(FIRST_EVALUATION_SEED + 100, 30, 64)
        return scene, noisy(scene.clean(), *LEVELS[2], np.random.default_rng(0))

    def test_shows_scores_and_picture(
        self, example: tuple[Scene, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene, recording = example
        assert demo.report(tmp_path / "new" / "proof.png", scene, recording, temporal_mean(recording)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines if line][:4] == ["dB", "noisy", "63-frame", "denoised"]
        assert (tmp_path / "new" / "proof.png").stat().st_size > 50_000

    def test_fails_when_denoising_did_not_help(
        self, example: tuple[Scene, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene, recording = example
        assert demo.report(tmp_path / "proof.png", scene, recording, recording) == 1
        assert "expected more than the noisy" in capsys.readouterr().err

    def test_passes_on_the_exit_status_of_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = tmp_path / "process.py"
        program.write_text("import sys; sys.exit(3)")
        monkeypatch.setattr(demo, "ROOT", tmp_path)
        monkeypatch.setattr(demo, "FRAMES", 3)
        assert demo.main(["--output", str(tmp_path / "out")]) == 3
        assert "exit status 3" in capsys.readouterr().err
        assert tifffile.imread(tmp_path / "out" / "demo" / "input" / "example.tif").shape == (3, 128, 128)
