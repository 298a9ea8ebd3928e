"""evaluation.samples, report, benchmark: hidden voxels, rows that are measured once, pages that keep other text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import benchmark, report, samples
from evaluation.baselines import BASELINES, Method, raw
from evaluation.samples import Case, Sample
from model import UNet3D, UNetConfig, save_model
from simulation import FIRST_EVALUATION_SEED, challenge_scene


@pytest.fixture
def rows_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "output" / "benchmark.csv"
    monkeypatch.setattr(benchmark, "ROWS", path)
    return path


def tiny_cases() -> list[Case]:
    """One small scene at each level."""
    scene = challenge_scene(FIRST_EVALUATION_SEED, 24, 48)
    return [Case("challenge", "scene 0", k, partial(samples.simulated, scene, k, 0)) for k in (1, 2, 3)]


class TestSamples:
    def test_the_benchmark_has_all_its_cases(self) -> None:
        todo = list(samples.cases(quick=False))
        assert len(todo) == 8 * 3 + 3 + 4 * 3 + 2 * 2 * 3 + 3
        assert len({(case.group, case.name, case.level) for case in todo}) == len(todo)
        assert len(list(samples.cases(quick=True))) == 9

    def test_simulated_movies_differ_between_scenes_and_levels_and_repeat(self) -> None:
        scene = challenge_scene(FIRST_EVALUATION_SEED, 4, 16)
        movies = [samples.simulated(scene, *k).movie for k in ((1, 0), (1, 1), (2, 0), (1, 0))]
        assert movies[0].dtype == np.int16
        np.testing.assert_array_equal(movies[0], movies[3])
        assert all((movies[0] != other).mean() > 0.9 for other in movies[1:3])

    @pytest.mark.parametrize("run", [1, 5])
    def test_hidden_voxels(self, run: int) -> None:
        """Every voxel has its own value here, which identifies the voxel that replaced another."""
        recording = np.arange(40 * 32 * 32, dtype=np.float32).reshape(40, 32, 32)
        sample = samples.hidden(recording, run)
        changed = sample.movie != recording
        assert 0.004 < changed.mean() < 0.0051
        step = np.abs(sample.movie - recording)[changed]
        np.testing.assert_array_equal(np.unique(step), [2 * 32])  # two rows away in the same frame and column
        assert sample.measure(recording) == {"heldout_error": 0.0}
        assert sample.measure(sample.movie) == {"heldout_error": (2 * 32) ** 2}
        assert sample.quality(sample.tuning_movie + 3.0) < sample.quality(
            recording[samples.middle_of(recording)]
        )

    def test_only_the_middle_of_a_run_counts(self) -> None:
        recording = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
        sample = samples.hidden(recording, 5)
        output = recording.copy()
        changed = sample.movie != recording
        inner = changed.copy()
        for shift in (-2, -1, 1, 2):
            inner &= np.roll(changed, shift, axis=2)
        output[~inner] = 1e6  # whatever stands elsewhere
        assert sample.measure(output)["heldout_error"] == 0

    def test_thinned_halves_add_up_and_are_independent(self) -> None:
        rng = np.random.default_rng(1)
        gain = 50.0
        recording = (gain * rng.poisson(6, (200, 30, 30))).astype(np.uint16)
        sample = samples.thinned(recording, gain)
        other = recording - sample.movie
        assert sample.measure(other)["heldout_error"] == pytest.approx(0, abs=1e-3)
        assert np.corrcoef(sample.movie.ravel(), other.ravel())[0, 1] == pytest.approx(0, abs=0.01)
        assert sample.movie.mean() == pytest.approx(gain * 3, rel=0.01)

    def test_noise_alone_is_tuned_on_a_scene(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(samples, "FRAMES", 20)
        monkeypatch.setattr(samples, "SIZE", 32)
        sample = samples.pure_noise(2)
        assert sample.movie.mean() == pytest.approx(204, rel=0.05)
        clean = challenge_scene(FIRST_EVALUATION_SEED, 20, 32).clean()
        assert sample.quality(clean[samples.middle_of(clean)]) == np.inf
        assert sample.measure(np.full(sample.movie.shape, 204.0)) == {
            "false_transients": 0,
            "false_height": 0,
        }


class TestBenchmark:
    def test_a_row_is_measured_once(self, rows_file: Path) -> None:
        calls = []

        def method(movie: np.ndarray) -> np.ndarray:
            calls.append(1)
            return raw(movie)

        def measure(counting: Method) -> list[dict[str, str]]:
            table = benchmark.Table(rows_file)
            benchmark.measure(tiny_cases()[:1], [counting], table, (), 1)
            return table.rows_of(tiny_cases()[0], [counting])

        first = measure(Method("counting", method))
        assert first
        assert measure(Method("counting", method)) == first
        assert len(calls) == 1
        measure(Method("counting", method, weights="0badcafe"))
        measure(Method("counting", method, code="0badcafe"))
        assert len(calls) == 3  # other weights, or another program, are another method

    def test_processes_of_their_own_give_the_same_rows(self, rows_file: Path) -> None:
        todo = tiny_cases()[:2]
        rows = {}
        for processes in (1, 2):
            table = benchmark.Table(rows_file.with_name(f"{processes}.csv"))
            benchmark.measure(todo, benchmark.all_methods(())[:2], table, (), processes)
            rows[processes] = [row | {"seconds": ""} for row in table.rows.values()]
        assert sorted(rows[1], key=str) == sorted(rows[2], key=str)
        assert len(rows[1]) == 4

    def test_rows_of_an_earlier_version_are_dropped(self, rows_file: Path) -> None:
        rows_file.parent.mkdir()
        rows_file.write_text("group,name\nchallenge,scene 0\n")
        table = benchmark.Table(rows_file)
        assert not table.rows
        benchmark.measure(tiny_cases()[:1], [BASELINES[0]], table, (), 1)
        assert len(benchmark.Table(rows_file).rows) == 1

    def test_slow_methods_get_some_cases_only(self) -> None:
        todo = list(samples.cases(quick=False))
        adapted = Method("adapted", raw, groups=benchmark.SLOW_GROUPS)
        chosen = [case for case in todo if benchmark.applies_to(adapted, case)]
        assert len(chosen) == 2 * 3 + 4 + 1
        assert all(benchmark.applies_to(BASELINES[0], case) for case in todo)

    def test_tuning_starts_from_what_was_best_for_a_movie_alike(self, rows_file: Path) -> None:
        table = benchmark.Table(rows_file)
        method = BASELINES[3]
        first, _, other_level = tiny_cases()
        assert table.tuning_start(first, method) == method.start
        row = dict.fromkeys(benchmark.COLUMNS, "") | benchmark.row_key(first, method)
        table.add(row | {"parameters": '{"width": 121}'})
        assert table.tuning_start(first, method) == {"width": 121}
        assert table.tuning_start(other_level, method) == method.start

    def test_baselines_are_tuned_on_the_part_alone(self) -> None:
        shapes = []

        def method(movie: np.ndarray, width: float) -> np.ndarray:
            shapes.append(movie.shape)
            return movie - width

        movie = np.zeros((4, 8, 8))
        sample = Sample(
            movie,
            lambda output: {"stsnr": float(output[0, 0, 0])},
            movie[:, :2, :2],
            lambda o: -abs(o + 9).sum(),
        )
        row = benchmark.measure_method(sample, Method("shift", method, {"width": 7}), {"width": 9})
        assert row["stsnr"] == "-9"
        assert shapes[-1] == (4, 8, 8)
        assert set(shapes[:-1]) == {(4, 2, 2)}

    def test_a_network_runs_as_a_method(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        small = UNetConfig(channels=(4, 8), context_channels=(4, 8), time_strides=(2, 2))
        save_model(tmp_path / "tiny.pth", UNet3D(small), {})
        methods = benchmark.network_methods(tmp_path / "tiny.pth")
        assert [method.name for method in methods] == ["tiny", "tiny, adapted"]
        movie = samples.simulated(challenge_scene(FIRST_EVALUATION_SEED, 21, 33), 2, 0).movie
        for method in methods:
            output = method.run(movie)
            assert output.shape == movie.shape
            assert output.dtype == np.float32
            assert np.isfinite(output).all()

    def test_from_the_command_line_to_the_tables(
        self, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(benchmark, "cases", lambda quick: tiny_cases())
        monkeypatch.setattr(benchmark, "all_methods", lambda weights: list(BASELINES[:4]))
        assert benchmark.main(["--quick", "--weights", "--processes", "1"]) == 0
        printed = capsys.readouterr().out
        assert "### Noise level 3, mean of 1 scenes" in printed
        assert "| moving average, tuned | " in printed
        assert len(rows_file.read_text().splitlines()) == 1 + 3 * 4

    def test_missing_weights_are_told_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert benchmark.main(["--weights", "nowhere.pth"]) == 1
        assert "nowhere.pth" in capsys.readouterr().err


class TestReport:
    def test_differences_by_hand(self) -> None:
        """2 and 4 dB behind: 3 on average, standard error 1. Errors 11 and 12 over 10 and 10: 15% +- 5%."""
        rows = [row("raw", "scene 0", 27), row("net", "scene 0", 29)]
        rows += [row("raw", "scene 1", 25), row("net", "scene 1", 29), row("raw", "scene 2", 3)]
        assert report.behind_ours(rows, "raw", 1) == [-2, -4]
        assert "| -3.00 ± 1.00 |" in report.markdown(rows)
        real = [row("raw", "FMI", 0, "real", 0), row("net", "FMI", 0, "real", 0)]
        for line, parts in zip(real, ("[11, 12]", "[10, 10]")):
            line |= {"stsnr": "", "heldout_error": "11", "heldout_parts": parts}
        assert "+15.00% ± 5.00%" in report.markdown(rows + real)

    def test_only_the_text_between_the_markers_changes(self) -> None:
        page = report.between_markers("# Quality\n\nby hand\n", "first")
        page = page + "\n## More by hand\n"
        changed = report.between_markers(page, "second")
        assert changed == page.replace("first", "second")
        assert changed.startswith("# Quality\n\nby hand\n")
        assert changed.endswith("## More by hand\n")

    def test_margin_by_hand(self) -> None:
        """Level 1: 30 against 27 and 29 against 28, so +2 on average; the least is the axons' -1."""
        rows = [row("raw", "scene 0", 27), row("PCA", "scene 0", 20), row("net", "scene 0", 30)]
        rows += [row("raw", "scene 1", 25), row("PCA", "scene 1", 28), row("net", "scene 1", 29)]
        rows += [row("raw", "axons", 21, "different"), row("net", "axons", 20, "different")]
        rows += [row(method, "scene 0", 10, level=level) for method in ("raw", "net") for level in (2, 3)]
        [sentence] = report.margins(rows)
        assert "+2.00 ± 1.00 / +0.00 / +0.00 dB" in sentence
        assert "-1.00 dB (axons, level 1)" in sentence

    def test_table_means_by_hand_and_dashes_for_what_is_not_known(self) -> None:
        rows = [row("raw", "scene 0", 27), row("raw", "scene 1", 28)]
        table = report.markdown(rows).split("### Noise level 1")[1].split("###")[0]
        assert "| raw | - | - | **27.50** | - |" in table

    def test_only_methods_in_the_tables_are_explained(self) -> None:
        rows = [row("raw", "scene 0", 27), row("net", "scene 0", 29)]
        assert "Noise2Void" not in report.markdown(rows)
        text = report.markdown([*rows, row("net, adapted", "scene 0", 30)])
        assert text.count('- "net, adapted": after 8 passes') == 1
        assert report.slow_methods([row(benchmark.KEYHOLE, "scene 0", 20)])

    def test_publish_and_panels(self, tmp_path: Path) -> None:
        case = tiny_cases()[1]
        methods = [BASELINES[0], BASELINES[4]]
        rows = benchmark.measure_case(case, methods, {m.name: m.start for m in methods})
        report.publish(tmp_path / "docs", "text", rows, benchmark.COLUMNS)
        assert "text" in (tmp_path / "docs" / "quality.md").read_text()
        assert len((tmp_path / "docs" / "quality.csv").read_text().splitlines()) == 3
        report.panels(tmp_path / "images", [case], methods, rows)
        assert (tmp_path / "images" / "benchmark.png").stat().st_size > 10_000


def row(method: str, name: str, stsnr: float, group: str = "challenge", level: int = 1) -> dict[str, str]:
    weights = "0badcafe" if method == "net" else ""
    case = {"group": group, "name": name, "level": str(level)}
    return case | {"method": method, "weights": weights, "stsnr": str(stsnr)}
