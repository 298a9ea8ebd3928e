"""Training: it learns, resumes where it stopped, repeats itself by its seed, and takes anybody's recordings."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from denoise.blindspot import Samples, blind_errors, make_samples
from denoise.learning import Learner, Sampler, schedule
from denoise.readout import BLOCK_SIZE, noise_edge
from model import CourseNet, MeanNet, UNet3D, UNetConfig, load_model, save_model
from simulation import Footprints, FrameMeans
from training.recordings import (
    GROUPS,
    MAX_EXTRA_VARIANCE,
    VARIANCE_RANGE,
    FileRecordings,
    SimulatedCourses,
    SimulatedMeans,
    SimulatedRecordings,
)
from training.train import (
    CourseTask,
    ImageTask,
    Pool,
    Trainer,
    TrainingPlan,
    correlated_axes,
    input_and_target,
    main,
    next_batch,
    shift_odd_rows,
    usable_patches,
)

TINY = UNetConfig(channels=(8, 8, 8), context_channels=(8, 8, 8), course_channels=(8, 8), bottom_blocks=1)


def network() -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two short recordings: bright stripes in Poisson noise."""
    for number in range(2):
        rng = np.random.default_rng(number)
        clean = np.full((20, 24, 28), 30.0)
        clean[:, ::4] = 90
        tifffile.imwrite(
            tmp_path / f"movie{number}.tif", rng.poisson(clean).astype(np.uint16), photometric="minisblack"
        )
    return tmp_path


def arguments(folder: Path, out: Path, steps: int) -> list[str]:
    data = ["--movies", str(folder / "*.tif"), "--out", str(out), "--steps", str(steps)]
    return [
        *data,
        *[
            "--device",
            "cpu",
            "--workers",
            "0",
            "--batch",
            "1",
            "--pool",
            "2",
            "--refresh",
            "2",
            "--channels",
            "4",
            "4",
            "4",
        ],
    ]


def test_command_line_leaves_weights_log_and_curve_and_repeats_itself(folder: Path) -> None:
    one, two = folder / "a" / "w.pth", folder / "b" / "w.pth"
    for out in (one, two):
        main(arguments(folder, out, 3))
        assert sorted(p.name for p in out.parent.iterdir()) == ["w.csv", "w.png", "w.pth"]
    logs = [list(csv.reader(p.with_suffix(".csv").read_text().splitlines())) for p in (one, two)]
    assert [row[0] for row in logs[0]] == ["3"]
    assert float(logs[0][0][2]) == pytest.approx(float(logs[1][0][2]), rel=1e-3)
    assert load_model(one, torch.device("cpu")).config.channels == (4, 4, 4)
    record = torch.load(one, weights_only=True)["record"]
    assert record["plan"]["seed"] == 0
    assert record["step"] == 3
    assert record["data"].endswith("*.tif")


def test_no_movie_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no file"):
        FileRecordings(str(tmp_path / "*.tif"), 0, 1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--movies", "{}/none*.tif"],
            "/none*.tif: expected movies to train on, found no file; quote the pattern",
        ),
        (["--movies", "{}/bad.tif"], "/bad.tif: expected page 1 at byte "),
        (["--movies", "{}/torn.tif"], "/torn.tif: frames 0 to 20 cannot be read: "),
        (["--movies", "{}/torn.tif", "--workers", "1"], "/torn.tif: frames 0 to 20 cannot be read: "),
        (["--weights", "{}/none.pth"], "/none.pth: no such weights file"),
        (["--weights", "{}/bad.tif"], "/bad.tif: not a safe, complete checkpoint"),
        (["--out", "{}/bad.tif/w.pth"], "[Errno 17] File exists: "),
        (
            ["--out", "{}/bad.tif"],
            "/bad.tif: expected no such file yet, or bad.state beside it to go on from, found weights alone; ",
        ),
    ],
)
def test_what_cannot_be_trained_on_ends_in_one_line(folder: Path, options: list[str], line: str) -> None:
    (folder / "bad.tif").write_bytes(b"II*\0 no more")
    movie = np.random.default_rng(0).poisson(100, (20, 24, 28)).astype(np.uint16)
    tifffile.imwrite(folder / "torn.tif", movie, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(folder / "torn.tif") as tif:
        start, size = tif.pages[7].dataoffsets[0], tif.pages[7].databytecounts[0]
    content = bytearray((folder / "torn.tif").read_bytes())
    content[start : start + size] = b"x" * size
    (folder / "torn.tif").write_bytes(content)
    asked = arguments(folder, folder / "w.pth", 1)
    asked[1] = str(folder / "movie*.tif")
    with pytest.raises(SystemExit) as caught:
        main([*asked, *(option.format(folder) for option in options)])
    assert str(caught.value).removeprefix(str(folder)).startswith(line)
    assert "\n" not in str(caught.value)
    assert not (folder / "w.pth").exists()


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        *((f"--{name}", "0", "expected a whole number, 1 or more, found '0'")
          for name in ("steps", "batch", "pool", "refresh", "channels")),
        *(("--minutes", value, f"expected a number, more than 0, found '{value}'")
          for value in ("0", "nan", "inf", "x")),
        ("--rate", "-1e-3", "expected a number, more than 0, found '-1e-3'"),
        ("--workers", "-1", "expected a whole number, 0 or more, found '-1'"),
        ("--device", "cuda:99", "expected cpu, cuda or cuda:N, found 'cuda:99', and "),
        ("--device", "gpu", "expected cpu, cuda or cuda:N, found 'gpu', and "),
    ],
)  # fmt: skip
def test_what_no_training_can_go_by_is_refused(
    folder: Path, option: str, value: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments(folder, folder / "w.pth", 1), f"{option}={value}"])
    assert f"argument {option}: {line}" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "w.state").exists()


def steps_logged(out: Path) -> list[str]:
    return [row[0] for row in csv.reader(out.with_suffix(".csv").read_text().splitlines())]


def test_the_log_holds_one_training_and_each_of_its_steps_once(folder: Path) -> None:
    """Another training's rows are gone; so are those after the step from which an interrupted one goes on."""
    out = folder / "w.pth"
    out.with_suffix(".csv").write_text("100,1.0,0.9\n")
    main(arguments(folder, out, 1))
    assert steps_logged(out) == ["1"]
    with pytest.raises(SystemExit, match="found weights alone"):
        main(arguments(folder, out, 1))
    stopped = Trainer(TrainingPlan(), UNet3D(replace(UNetConfig(), channels=(4, 4, 4))))
    torch.save(stopped.state() | {"step": 2}, out.with_suffix(".state"))
    out.with_suffix(".csv").write_text("1,1.0,0.9\n2,2.0,0.8\n4,4.0,0.7\n")
    main(arguments(folder, out, 3))
    assert steps_logged(out) == ["1", "2", "3"]


def test_simulated_recordings_are_the_seeds_own() -> None:
    one, two = SimulatedRecordings(3, 10)[4], SimulatedRecordings(3, 10)[4]
    assert torch.equal(one, two)
    assert one.dtype == torch.float16
    assert one.ndim == 3
    assert not torch.equal(one.float().mean(), SimulatedRecordings(4, 10)[4].float().mean())


def flicker(count: int) -> list[torch.Tensor]:
    """Recordings whose every frame is brighter or darker as a whole, by three times the noise."""
    generator = torch.Generator().manual_seed(0)
    levels = 3 * torch.randn(count, 48, 1, 1, generator=generator)
    return list((levels + torch.randn(count, 48, 32, 32, generator=generator)).half())


def test_blind_training_learns_what_a_voxel_cannot_tell() -> None:
    """The noise counts flicker as its own here: a mean errs by one such variance, a frame's neighbours know better."""
    trainer = Trainer(TrainingPlan(steps=60, rate=1e-2, batch=1), network())
    sampler = Sampler(Pool(iter(flicker(3)), 3, torch.device("cpu")), 0)
    errors = [float(trainer.learn(sampler.samples((16, 32), 2), trainer.progress())) for _ in range(60)]
    assert np.mean(errors[-10:]) < 0.75 * np.mean(errors[:5])
    assert trainer.progress() == 1


def test_resuming_gives_back_the_state() -> None:
    plan = TrainingPlan(steps=10)
    trainer, other = (Trainer(plan, network()) for _ in range(2))
    sampler = Sampler(Pool(iter(flicker(1)), 1, torch.device("cpu")), 0)
    trainer.learn(sampler.samples((4, 16), 1), trainer.progress())
    other.restore(trainer.state())
    batch = sampler.samples((4, 16), 1)
    assert other.step == 1
    for expected, restored in zip((trainer.model, trainer.average), (other.model, other.average)):
        assert all(torch.equal(one, two) for one, two in zip(expected.parameters(), restored.parameters()))
    assert float(trainer.learn(batch, trainer.progress())) == float(other.learn(batch, other.progress()))


def test_a_broken_batch_does_not_break_the_weights() -> None:
    trainer = Trainer(TrainingPlan(steps=10), network())
    sampler = Sampler(Pool(iter(flicker(1)), 1, torch.device("cpu")), 0)
    batch = sampler.samples((4, 16), 1)
    batch.target[:] = torch.inf
    trainer.learn(batch, trainer.progress())
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("frames", [1, 16, 32, 48, 64])
def test_gradients_are_those_of_float32_however_short_the_movie(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor with bfloat16; elsewhere both are float32."""
    generator = torch.Generator().manual_seed(0)
    movies = torch.randn(2, frames, 16, 16, generator=generator)
    samples = make_samples(movies, 0, frames, (False, False), generator)
    native = gradients(samples)
    monkeypatch.setattr("denoise.precision.precision", lambda device: torch.float32)
    for name, expected in gradients(samples).items():
        assert float((native[name] - expected).norm()) <= 0.2 * float(expected.norm()), name


def gradients(samples: Samples) -> dict[str, torch.Tensor]:
    """Of the weights of the 3-D network, after one batch."""
    model = UNet3D(TINY)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    Learner(model, 0.0, 0.9).learn(samples, 0.0)
    return {name: p.grad.clone() for name, p in model.movie.named_parameters() if p.grad is not None}


def test_row_correlated_noise_is_noticed() -> None:
    white = torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = white + 0.5 * white.roll(1, 2)
    assert correlated_axes(white) == (False, False)
    assert correlated_axes(rows) == (False, True)
    assert correlated_axes(rows.transpose(1, 2)) == (True, False)
    assert correlated_axes(white[:1]) == (False, False)
    assert correlated_axes(white[:, :3, :3]) == (False, False)


def test_small_movies_get_small_patches() -> None:
    pool = Pool(iter([torch.randn(9, 20, 30).half()]), 1, torch.device("cpu"))
    assert {patch for patch, _ in usable_patches(pool)} == {(9, 20), (8, 20), (4, 20), (2, 20), (1, 20)}
    samples = next_batch(Sampler(pool, 0), usable_patches(pool), 1)
    errors = blind_errors(samples.target, samples.target, samples.scored)
    assert errors.max() == 0


def test_patches_are_cut_to_what_the_pool_holds_now() -> None:
    """Of a pool whose recordings are replaced by smaller ones; what still fits is drawn as before."""
    sizes = [(9, 20, 30), (9, 20, 30), (5, 12, 16), (3, 14, 40)]
    pool = Pool(iter([torch.randn(size).half() for size in sizes]), 2, torch.device("cpu"))
    sampler = Sampler(pool, 0)
    assert sampler.samples((9, 20), 1).residual.shape == (1, 1, 9, 20, 20)
    pool.refresh()
    assert sampler.samples((9, 20), 1).residual.shape == (1, 1, 9, 20, 20)
    pool.refresh()
    assert sampler.samples((9, 20), 2).residual.shape == (2, 1, 5, 12, 12)  # the larger: 5 x 12 x 12 voxels
    assert sampler.samples((2, 14), 1).residual.shape == (1, 1, 2, 14, 14)


def test_rate_rises_and_falls_to_zero() -> None:
    assert [schedule(p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.01, 0.5, 0, 0])


def test_training_starts_at_the_mean() -> None:
    """Before the first step the prediction is 0: the movie is its mean."""
    model = UNet3D(TINY)
    out = model(torch.randn(1, 1, 16, 8, 8), torch.randn(1, 5, 8, 8), torch.ones(1, 1, 8, 8))
    assert (out == 0).all()


def test_of_the_frames_one_group_is_shown_and_the_others_are_the_target() -> None:
    """By hand: 25 frames a group, noise of variance 4 a voxel: a standard error of 2 / 5 for what is shown."""
    means = torch.tensor([10.0, 11, 12, 13])[:, None, None] + torch.arange(64.0).view(8, 8)
    image, guide, target = input_and_target(
        FrameMeans(means.numpy(), 25, 0.0, 4.0), lambda groups: groups - 3
    )
    black = 11 + 1  # the second darkest of 64 pixels
    torch.testing.assert_close(image, (means[1] - black) / 0.4)
    torch.testing.assert_close(target, ((means[0] + means[2] + means[3]) / 3 - black) / 0.4)
    assert not guide.any()


def test_a_footprint_is_shown_with_the_mean_for_a_guide() -> None:
    images, mean = np.arange(12.0, dtype=np.float32).reshape(3, 2, 2), np.ones((2, 2), np.float32)
    image, guide, target = input_and_target(Footprints(images, mean), lambda groups: 0)
    assert np.array_equal(image, images[0])
    assert np.array_equal(guide, mean)
    assert np.array_equal(target, (images[1] + images[2]) / 2)


def test_the_mean_of_a_single_frame_has_the_noise_that_its_pixels_show() -> None:
    noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    recording = FrameMeans((100 + 3 * noise).numpy(), 1, 50.0, 50.0)
    image, *_ = input_and_target(recording, lambda groups: 0)
    assert float(image.std()) == pytest.approx(1, abs=0.05)


def test_the_network_of_the_mean_learns_from_means_alone() -> None:
    """Stripes in noise: eight groups of frames err by 1 + 1 / 7 as they are, and hardly more than 1 / 7 when cleaned."""
    torch.manual_seed(0)
    task = ImageTask.__new__(ImageTask)
    task.plan, task.device = TrainingPlan(batch=4), torch.device("cpu")
    task.random = torch.Generator().manual_seed(0)
    stripes = 3.0 * (np.arange(32) // 4 % 2) * np.ones((8, 32, 1))
    rng = np.random.default_rng(0)
    task.recordings = [
        FrameMeans((stripes + rng.standard_normal((8, 32, 32))).astype(np.float32), 4, 0.0, 4.0)
        for _ in range(4)
    ]
    trainer = Trainer(TrainingPlan(steps=80, rate=3e-3), MeanNet(TINY))
    errors = [float(task.train_step(trainer)) for _ in range(80)]
    assert np.mean(errors[:2]) == pytest.approx(1 + 1 / 7, rel=0.1)
    assert np.mean(errors[-10:]) < 0.75


def test_the_network_of_means_learns_footprints_in_the_blocks_of_the_readout() -> None:
    """64 x 64 pixels, each the number of its block: four blocks, and every one is whole."""
    task = ImageTask.__new__(ImageTask)
    task.random, task.device = torch.Generator().manual_seed(0), torch.device("cpu")
    number = np.arange(4.0).reshape(2, 2).repeat(BLOCK_SIZE, 0).repeat(BLOCK_SIZE, 1).astype(np.float32)
    task.recordings = [Footprints(np.stack([number, number + 10]), number + 20)]
    image, guide, target = task.sample()
    assert image.shape == (4, 1, BLOCK_SIZE, BLOCK_SIZE)
    assert sorted(image[:, 0, 0, 0].tolist()) in ([0, 1, 2, 3], [10, 11, 12, 13])
    assert (image == image[:, :, :1, :1]).all()
    assert torch.equal(guide % 10, image % 10)
    assert torch.equal(target % 10, image % 10)
    assert torch.equal((target - image).abs(), torch.full_like(image, 10))


def test_a_scanner_out_of_phase_moves_odd_rows_along_x_alone() -> None:
    images = torch.arange(2 * 12 * 16.0).view(2, 12, 16)
    shifted = shift_odd_rows(images, 3)
    assert shifted.shape == (2, 4, 8)
    assert torch.equal(shifted[:, ::2], images[:, 4:8:2, 4:12])  # even rows stay
    assert torch.equal(shifted[:, 1::2], images[:, 5:8:2, 1:9])  # what lay three pixels to the left
    assert torch.equal(shift_odd_rows(images, 0), images[:, 4:-4, 4:-4])


def test_the_network_of_time_courses_learns_from_groups_of_pixels_alone() -> None:
    """Steps in noise: eight groups of pixels err by 1 + 1 / 7 as they are, and hardly more than 1 / 7 when cleaned."""
    torch.manual_seed(0)
    task = CourseTask.__new__(CourseTask)
    task.plan, task.device = TrainingPlan(batch=4), torch.device("cpu")
    task.random = torch.Generator().manual_seed(0)
    steps = 5.0 * (torch.arange(96) // 24 % 2)
    noise = torch.Generator().manual_seed(1)
    task.recordings = [steps + torch.randn(8, 8, 96, generator=noise) for _ in range(8)]
    trainer = Trainer(TrainingPlan(steps=80, rate=3e-3), CourseNet(TINY))
    errors = [float(task.train_step(trainer)) for _ in range(80)]
    assert np.mean(errors[:2]) == pytest.approx(1 + 1 / 7, rel=0.1)
    assert np.mean(errors[-10:]) < 0.6


def test_time_courses_of_a_batch_are_of_one_length_and_each_recording_counts_the_same() -> None:
    """Of two recordings one is three frames long, and the other, when both are drawn, is cut to that."""

    class Nothing(CourseNet):
        def forward(self, courses: torch.Tensor) -> torch.Tensor:
            lengths.append(courses.shape)
            return torch.zeros_like(courses)

    lengths: list[torch.Size] = []
    task = CourseTask.__new__(CourseTask)
    task.plan, task.device = TrainingPlan(batch=6), torch.device("cpu")
    task.random = torch.Generator().manual_seed(0)
    groups = torch.tensor([2.0, 0.0])[:, None, None]  # input and target differ by 2
    task.recordings = [groups.expand(2, 1, 3), 2 * groups.expand(2, 5, 9)]
    for _ in range(8):
        errors = task.errors(Nothing(TINY))
        assert len(errors) == 6
        assert set(errors.tolist()) <= {4.0, 16.0}
    assert {length for _, length in lengths} == {3, 9}
    assert {count for count, length in lengths if length == 9} == {30}


def test_simulated_time_courses_are_the_seeds_own_and_stand_out_of_their_noise() -> None:
    for number in range(12):
        item = SimulatedCourses(3, 20)[number]
        groups, _, frames = item.shape
        assert groups == GROUPS
        assert torch.equal(item, SimulatedCourses(3, 20)[number])
        variance = float((item - item.mean(0)).square().mean()) / (1 - 1 / GROUPS)
        assert 0.7 < variance < 1.2 * VARIANCE_RANGE[1] * (1 + MAX_EXTRA_VARIANCE)
        if len(item[0]) > 1:  # more than the one that stands for nothing
            edge = noise_edge(frames, BLOCK_SIZE, BLOCK_SIZE)
            strengths = (item.mean(0).square().sum(1) - frames / GROUPS).clamp(min=0).sqrt()
            assert float(strengths.max()) > 0.7 * edge


@pytest.mark.parametrize("part", ["mean", "course"])
def test_training_on_a_part_changes_that_network_alone(part: str, tmp_path: Path) -> None:
    before, after = tmp_path / "movie.pth", tmp_path / "all.pth"
    save_model(before, network(), {"step": 5})
    main([f"--{part}s", "--weights", str(before), "--out", str(after), "--steps", "2", "--batch", "1", "--pool", "2",
          "--refresh", "1", "--workers", "0", "--device", "cpu"])  # fmt: skip
    one, two = (load_model(path, torch.device("cpu")).state_dict() for path in (before, after))
    changed = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert changed == {part}
    record = torch.load(after, weights_only=True)["record"]
    assert record["step"] == 2
    assert record["from"] == {"step": 5}


def test_training_on_movies_leaves_a_network_of_means_that_is_given(folder: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "means.pth", tmp_path / "all.pth"
    given = UNet3D(replace(TINY, channels=(4, 4, 4)))
    torch.nn.init.normal_(given.mean.head.weight)
    save_model(before, given, {})
    main([*arguments(folder, after, 2), "--weights", str(before)])
    one, two = (load_model(path, torch.device("cpu")).state_dict() for path in (before, after))
    changed = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert changed == {"movie", "context"}


def test_simulated_means_are_the_seeds_own_and_of_many_lengths() -> None:
    items = [SimulatedMeans(3, 20)[n] for n in range(12)]
    assert len({item.frames for item in items if isinstance(item, FrameMeans)}) > 2
    assert any(isinstance(item, Footprints) for item in items)
    for number, first in enumerate(items):
        again = SimulatedMeans(3, 20)[number]
        one, two = (input_and_target(item, lambda groups: 3) for item in (first, again))
        assert all(torch.equal(a, b) for a, b in zip(one, two))
