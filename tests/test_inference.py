"""One movie's way through the network: tiles, slabs, offsets, missing voxels, odd sizes."""

import threading
import tracemalloc
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from denoise import inference, network, survey
from denoise.adaptation import MIN_GAIN, MIN_STANDARD_ERRORS
from denoise.blindspot import context_of
from denoise.context import Context
from denoise.inference import (
    SLAB_BYTES,
    SLAB_FRAMES,
    SLAB_MEMORY_DIVISOR,
    Result,
    Settings,
    denoise_movie,
    middle_excerpt,
    plan_slabs,
)
from denoise.motion import Motion
from denoise.movies import MovieError
from denoise.network import Chunks, Geometry, Network, choose_geometry
from denoise.readout import Cleaner, Readout
from denoise.tracking import estimate_motion
from evaluation import harm
from evaluation.metrics import score
from evaluation.smoothed import (
    SMOOTHINGS,
    displaced,
    filtered,
    mean_of_frames,
    moved,
    out_of_phase,
    recorded,
    repeated,
    unaware,
)
from model import MovieNet, StreamState, UNet3D, UNetConfig, load_model
from simulation import LEVELS, challenge_scene, different_scene, digitize, noisy
from simulation.activity import wander

WEIGHTS = Path(__file__).parents[1] / "best_model_n2v.pth"
CPU = torch.device("cpu")
TINY = UNetConfig(channels=(4, 6, 8), context_channels=(4, 6, 8), bottom_blocks=1)


@dataclass
class Memory:
    """A movie in memory that notes which frames are read."""

    frames: np.ndarray
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def info(self) -> SimpleNamespace:
        return SimpleNamespace(shape=self.frames.shape, dtype=self.frames.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads.append((start, stop))
        return self.frames[start:stop].copy()


def model_of(scale: float = 0.3) -> UNet3D:
    torch.manual_seed(0)
    model = UNet3D(TINY)
    torch.nn.init.normal_(model.movie.head.weight, std=scale)
    torch.nn.init.normal_(model.mean.head.weight, std=scale)
    return model.eval().requires_grad_(False)


def run(
    frames: np.ndarray, model: UNet3D | None = None, settings: Settings | None = None
) -> tuple[np.ndarray, Result]:
    written: list[np.ndarray] = []
    stages: list[tuple[str, int, int]] = []
    result = denoise_movie(
        Memory(frames),
        model or model_of(),
        settings or Settings(),
        written.append,
        lambda *s: stages.append(s),
    )
    assert stages[-1] == ("denoising", len(frames), len(frames))
    return np.concatenate(written), result


def chunks_of(residual: torch.Tensor) -> Chunks:
    def chunks(start: int, size: int) -> Generator[torch.Tensor, None, None]:
        yield from residual[start:].split(size)

    return chunks


def predicted(net: Network, residual: torch.Tensor) -> torch.Tensor:
    return torch.cat([prediction for _, prediction in net.predict(chunks_of(residual), 0, len(residual))])


def example(shape: tuple[int, int, int], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    clean = (
        50 + 40 * np.sin(np.arange(shape[2]) / 3)[None, None, :] + np.arange(shape[0])[:, None, None] * 0.1
    )
    return rng.poisson(clean * np.ones(shape)).astype(dtype)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "choose_geometry", lambda *_: Geometry(16, 32, torch.float32))
    monkeypatch.setattr(inference, "SLAB_FRAMES", 50)


@pytest.fixture
def as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network says comes out as it is, so that cutting and blending can be told from the reading out."""

    class AsPredicted(Readout):
        def __init__(self, context: Context, static: torch.Tensor, cleaner: Cleaner) -> None:
            self.static = static

        def frames(self, residual: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
            return prediction + self.static

    monkeypatch.setattr(inference, "Readout", AsPredicted)


@given(
    st.integers(1, 3000),
    st.sampled_from([(64, 64), (256, 256), (512, 512)]),
    st.sampled_from([1e8, 1e9, 1e12]),
)
def test_slabs_cover_the_movie_in_bounded_memory(frames: int, size: tuple[int, int], free: float) -> None:
    slabs = plan_slabs((frames, *size), free)
    share = np.zeros(frames)
    for slab, following in zip(slabs, [*slabs[1:], None]):
        assert slab.start + slab.own == (following.start if following else frames)
        share[slab.start : slab.stop] += slab.weights
        length = slab.stop - slab.start
        assert length == 2 or length < 1.5 * SLAB_FRAMES
        assert length <= 2 or length * size[0] * size[1] * SLAB_BYTES * SLAB_MEMORY_DIVISOR <= free
    np.testing.assert_allclose(share, 1, atol=1e-6)


@pytest.mark.usefixtures("small_tiles", "as_predicted")
def test_a_network_that_changes_nothing_returns_the_mean_and_tiles_leave_no_trace() -> None:
    frames = example((150, 70, 45))
    out, result = run(frames, model_of(0.0))
    assert result.tiles == 8
    expected = frames.astype(np.float64).mean(0)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), rtol=1e-5)


@pytest.mark.usefixtures("small_tiles", "as_predicted")
@given(st.integers(1, 140), st.integers(1, 70), st.integers(1, 70), st.booleans())
@hypothesis.example(32, 32, 32, True)  # moves, and is shorter than what tells of lost detail
def test_identity_network_returns_the_movie(t: int, y: int, x: int, registered: bool) -> None:
    """With a network that gives back its input, cutting and blending, and what is undone and redone, must cancel."""
    frames = example((t, y, x))
    if registered:
        frames = displaced(1, -1, frames.astype(np.float32))
    model = model_of(0.0)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(MovieNet, "stream", lambda self, residual, *_: residual)
        out, _ = run(frames, model)
    np.testing.assert_allclose(out, frames, rtol=1e-4, atol=2e-2)


def in_float32(monkeypatch: pytest.MonkeyPatch, chunk: int = 64, tile: int = 1 << 20) -> None:
    monkeypatch.setattr(network, "choose_geometry", lambda *_: Geometry(chunk, tile, torch.float32))


def test_tiles_as_far_apart_as_the_network_reaches_equal_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = example((40, 640, 24))
    model = model_of()
    in_float32(monkeypatch)
    one_tile, one = run(frames, model)
    in_float32(monkeypatch, tile=424)
    overlap = -(-4 * TINY.reach[1] // 8) * 8  # its outer quarters are dropped
    monkeypatch.setattr(network, "OVERLAP", overlap)
    several_tiles, several = run(frames, model)
    assert (one.tiles, several.tiles) == (1, 2)
    np.testing.assert_allclose(several_tiles, one_tile, rtol=0, atol=1e-5 * one_tile.std())


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 40, 33), (2, 17, 9), (3, 1, 50), (5, 50, 1), (37, 5, 7), (20, 2, 80), (20, 80, 2)],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_any_shape(shape: tuple[int, int, int], dtype: str) -> None:
    out, _ = run(example(shape, dtype))
    assert out.shape == shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_constant_movie_comes_back_constant(dtype: str) -> None:
    out, _ = run(np.full((4, 20, 20), 77, dtype))
    assert (out == 77).all()


@pytest.mark.parametrize(
    ("scale", "shift"), [(3.0, 0.0), (1.0, -5000.0), (0.01, 300.0), (1e-12, 0.0), (1e12, 1e12)]
)
def test_offset_and_gain_are_undone_exactly(
    monkeypatch: pytest.MonkeyPatch, scale: float, shift: float
) -> None:
    in_float32(monkeypatch)
    frames = example((30, 24, 26)).astype(np.float64)
    plain, _ = run(frames)
    moved, _ = run(frames * scale + shift)
    expected = plain.astype(np.float64) * scale + shift
    np.testing.assert_allclose(moved, expected, rtol=0, atol=2 * np.spacing(np.float32(abs(expected).max())))


def test_missing_voxels_are_filled_and_told() -> None:
    frames = example((20, 24, 32)).astype(np.float32)
    frames[3, 4, 5], frames[6, 7, 8], frames[9, 10, 11] = np.nan, np.inf, -np.inf
    frames[12, 13] = 0
    out, result = run(frames)
    assert np.isfinite(out).all()
    assert out[12, 13].mean() > 10
    assert ["3 voxels" in result.warnings[0], "1 rows" in result.warnings[1]] == [True, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_movie_without_any_value_is_refused(value: float) -> None:
    with pytest.raises(MovieError, match="found NaN and infinities alone"):
        run(np.full((30, 8, 8), value, np.float32))


def test_a_dropped_frame_is_filled_like_its_neighbours(shipped: UNet3D) -> None:
    frames = example((24, 24, 20))
    frames[10] = 0
    out, result = run(frames, shipped)
    assert "24 rows or columns hold one single value" in result.warnings[0]
    assert abs(out[10] - (out[9] + out[11]) / 2).mean() < 0.05 * out[9].mean()


@pytest.mark.parametrize(
    ("place", "value"),
    [(np.s_[:, :2], 0), (np.s_[:, :, 24:], 0), (np.s_[:, 17], 7), (np.s_[:, :2], np.nan), (np.s_[:, 20, 20], np.nan)],
    ids=["border", "wide border", "lost row", "border of NaN", "masked pixel"],
)  # fmt: skip
def test_what_was_never_recorded_changes_nothing_beside_it(
    shipped: UNet3D, place: tuple[slice, ...], value: float
) -> None:
    """A constant stays as it is, NaN is filled; the rest errs no more than without them."""
    clean = challenge_scene(5000000, 100, 48).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0)).astype(np.float32)
    plain, plain_result = run(movie, shipped)
    movie[place] = value
    out, result = run(movie, shipped)
    there = np.zeros(movie.shape, bool)
    there[place] = True
    if np.isnan(value):
        assert out[there].mean() == pytest.approx(clean[there].mean(), rel=0.3)
    else:
        assert (out[there] == value).all()
    elsewhere = ~there
    error, usual = (float(((x - clean)[elsewhere] ** 2).mean()) for x in (out, plain))
    assert error < 1.1 * usual
    assert result.noise["gain"] == pytest.approx(plain_result.noise["gain"], rel=0.15)
    assert ["NaN" in result.warnings[0], "never change" in result.warnings[0]] == [
        np.isnan(value),
        not np.isnan(value),
    ]


@pytest.mark.parametrize(
    "smoothed", [partial(repeated, 2), partial(mean_of_frames, 3)], ids=["twice", "mean of three"]
)
def test_frames_that_share_noise_are_told_and_leave_none(
    shipped: UNet3D, smoothed: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Taken for white noise, it would stay in: then the output is hardly better than the recording."""
    clean = challenge_scene(5000000, 200, 64).clean()
    frames, truth = smoothed(noisy(clean, *LEVELS[1], np.random.default_rng(0))), smoothed(clean)
    out, result = run(frames, shipped, Settings(adapt_minutes=0.01))
    assert "share" in result.warnings[0]
    assert result.adaptation is None
    assert score(truth, out)["stsnr"] > score(truth, frames)["stsnr"] + 15
    noise = result.noise["gain"] * truth.mean() + result.noise["read_variance"]
    assert noise == pytest.approx(float(np.var(frames - truth)), rel=0.1)


def test_what_is_no_picture_comes_out_as_recorded_and_harms_no_other_frame(shipped: UNet3D) -> None:
    """A stimulus that lights up the field, and a shutter that is closed for long, over the border of blocks."""
    clean = challenge_scene(5000000, 200, 48).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0)).astype(np.float32)
    plain, _ = run(movie, shipped)
    odd = np.zeros(200, bool)
    odd[20::45] = odd[100:150] = True
    movie[20::45] += 5000
    movie[21, 3, 4] = movie[20, 5, 5] = np.nan
    movie[100:150] = 7
    out, result = run(movie, shipped)
    valid = np.isfinite(movie[odd])
    np.testing.assert_array_equal(out[odd][valid], movie[odd][valid])
    assert np.isfinite(out).all()
    starts = ("1 voxels", "3 frames are brighter", "50 frames, more")
    assert [warning.startswith(start) for warning, start in zip(result.warnings, starts)] == [True] * 3
    others, usual = (score(clean[~odd], x[~odd])["stsnr"] for x in (out, plain))
    assert others > usual - 1  # a quarter of the frames is missing


def test_rows_in_which_cells_were_stimulated_come_out_as_recorded_and_harm_no_others(shipped: UNet3D) -> None:
    """They seemed to be light that flickers, and movement."""
    clean = challenge_scene(5_000_000, 128, 64).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0)).astype(np.float32)
    plain, _ = run(movie, shipped)
    lit = np.zeros((128, 64), bool)
    lit[15::30, 20:40] = True
    movie[lit] += 3000
    out, result = run(movie, shipped)
    np.testing.assert_array_equal(out[lit], movie[lit])
    assert result.warnings[0].startswith("88 rows in 4 frames")  # with one beside at each side
    assert result.motion == (0, 0)
    assert result.flicker == 0
    lit[15::30, 19:41] = True
    error, usual = (np.square(x - clean)[~lit].mean() for x in (out, plain))
    assert error < 1.1 * usual


def test_a_flash_in_a_dim_beginning_is_one_though_the_movie_is_far_brighter_later() -> None:
    frames = example((200, 24, 20)).astype(np.float32)
    frames[:100] /= 20
    frames[30] += 5  # a sixth of the movie's range, and all of that of its first frames
    out, result = run(frames)
    np.testing.assert_array_equal(out[30], frames[30])
    assert result.warnings[0].startswith("1 frames are brighter")
    frames[30] = np.nan
    without, _ = run(frames)
    others = np.arange(200) != 30
    np.testing.assert_allclose(out[others], without[others], rtol=0, atol=0.05)


def test_noise_that_is_louder_here_or_now_stays_out(shipped: UNet3D) -> None:
    """A recording that bleached in an uneven field, both divided out."""
    clean = challenge_scene(5000000, 200, 64).clean()
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    light = np.exp(-np.arange(200) / 150)[:, None, None] / (1 + y**2 + x**2)
    movie = (noisy((clean * light).astype(np.float32), *LEVELS[1], np.random.default_rng(0)) / light).astype(
        np.float32
    )
    out, _ = run(movie, shipped)
    assert score(clean, out)["stsnr"] > score(clean, movie)["stsnr"] + 20


@pytest.mark.parametrize(
    ("odd", "warning"),
    [
        (lambda movie: np.clip(movie * 50, 0, 4095), "largest of all"),
        (lambda movie: movie.astype(np.int16), "negative numbers"),
        (lambda movie: movie + 300 * (np.arange(40) % 3)[:, None, None] * np.eye(24, 20), "3 apart"),
    ],
)
def test_what_looks_wrong_is_told(odd: Callable[[np.ndarray], np.ndarray], warning: str) -> None:
    movie = example((40, 24, 20)).astype(np.float64) - (60 if warning == "negative numbers" else 0)
    assert warning in run(odd(movie).astype(np.uint16))[1].warnings[0]
    assert run(example((40, 24, 20)))[1].warnings == []


@pytest.mark.parametrize("damage", [1e38, -1.7e38, 3e38])
def test_one_damaged_voxel_stays_one_voxel(damage: float) -> None:
    frames = example((24, 24, 20)).astype(np.float32)
    frames[5, 6, 7] = damage
    out, result = run(frames)
    assert np.isfinite(out).all()
    assert out.max() < 1000
    assert "1 voxels" in result.warnings[0]


@pytest.mark.parametrize("value", [2e3, 65535, 1e8, -1e12])
def test_one_bright_voxel_changes_no_other(value: float) -> None:
    """A movie of mean 70: what is far beyond it and alone in space and time counts as missing."""
    frames = example((24, 24, 20)).astype(np.float32)
    outs = []
    for damage in (np.nan, value):
        frames[5, 6, 7] = damage
        outs.append(run(frames)[0])
    np.testing.assert_array_equal(outs[1], outs[0])


def test_few_negative_numbers_written_as_unsigned_ones_change_no_other() -> None:
    frames = example((24, 24, 20)).astype(np.int16)
    frames[5, 6, 7], frames[15, 16, 7] = -1, -3
    missing = frames.astype(np.float32)
    missing[frames < 0] = np.nan
    out, result = run(frames.astype(np.uint16))
    np.testing.assert_allclose(out, run(missing)[0], atol=0.1)
    assert "2 voxels were NaN, infinite or alone" in result.warnings[0]


def test_light_is_no_damage() -> None:
    """A spot of two pixels, or one pixel in two frames, stays however bright; so do many single voxels."""
    frames = example((24, 24, 20)).astype(np.float32)
    one = np.ravel_multi_index((5, 6, 7), frames.shape)
    many = np.random.default_rng(0).choice(frames.size, 20, replace=False)
    for spot in ([one, one + 1], [one, one + 24 * 20], many):
        movie = frames.copy()
        movie.flat[spot] = 1e6
        assert run(movie)[1].warnings == []


def test_adaptation_is_told_and_read_from_the_movie() -> None:
    frames = example((40, 32, 32))
    _, result = run(frames, settings=Settings(adapt_minutes=0.01))
    assert result.adaptation is not None
    before, after, chance = (
        float(str(result.adaptation[name])) for name in ("error_before", "error_after", "chance")
    )
    assert result.adaptation["kept"] == (before - after > max(MIN_GAIN, MIN_STANDARD_ERRORS * chance))


@pytest.mark.parametrize(("failures", "chunk", "tiles"), [(1, 32, 1), (2, 16, 1), (3, 16, 4)])
@pytest.mark.usefixtures("as_predicted")
def test_a_gpu_that_is_too_small_gets_smaller_parts_and_the_same_result_comes_out(
    monkeypatch: pytest.MonkeyPatch, failures: int, chunk: int, tiles: int
) -> None:
    in_float32(monkeypatch, tile=128)
    frames = example((256, 128, 128))
    expected, _ = run(frames)
    sizes: list[tuple[int, ...]] = []
    stream = MovieNet.stream

    def too_much(
        self: MovieNet, residual: torch.Tensor, features: list[torch.Tensor], past: StreamState, ended: bool
    ) -> torch.Tensor:
        """As a GPU that has no room for what it got, so many times, at frame 128 and later."""
        sizes.append(tuple(residual.shape[2:]))
        answer = stream(self, residual, features, past, ended)
        if len(sizes) > 2 and len(sizes) <= 2 + failures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return answer

    monkeypatch.setattr(MovieNet, "stream", too_much)
    out, result = run(frames)
    assert {size[0] for size in sizes[2 + failures :]} == {chunk}  # no more is tried that did not do
    assert result.tiles == tiles
    assert len(result.warnings) == failures
    assert all("CUDA out of memory: went on" in text for text in result.warnings)
    np.testing.assert_allclose(out, expected, rtol=0, atol=(1e-4 if tiles == 1 else 0.03) * expected.std())


def test_no_other_error_is_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(MovieNet, "stream", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(example((40, 16, 16)))


@pytest.mark.parametrize(("brightest", "type_"), [(20_000.0, torch.float16), (1e9, torch.float32)])
def test_float16_holds_thousands_of_noise_units_and_what_it_cannot_hold_is_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, brightest: float, type_: torch.dtype
) -> None:
    residual = torch.randn(160, 16, 16)
    residual[150, 5, 6] = brightest
    outputs = []
    for dtype in (torch.float32, torch.float16):
        monkeypatch.setattr(network, "choose_geometry", lambda *_, dtype=dtype: Geometry(16, 1 << 20, dtype))
        net = Network(model_of(), context_of(torch.randn(32, 16, 16)))
        with torch.inference_mode():
            outputs.append(predicted(net, residual))
    assert net.geometry.dtype == type_
    assert net.notes == ["intensities too large for float16: went on in float32"] * (type_ == torch.float32)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.05, atol=0.001 * brightest)


@pytest.mark.parametrize("where", ["read", "write", "progress"])
def test_an_error_in_any_thread_ends_all_and_is_told(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    class Broken(BaseException):
        """Like a stop signal, no Exception."""

    def fail(*_: object) -> None:
        raise Broken(where)

    movie = Memory(example((300, 16, 16)))
    stages: list[int] = []

    def progress(stage: str, done: int, frames: int) -> None:
        stages.append(done)
        if stage == "denoising" and where == "progress" and done:
            fail()
        if stage == "denoising" and where == "read" and not done:
            monkeypatch.setattr(movie, "read", fail)

    write = fail if where == "write" else lambda frames: None
    before = threading.active_count()
    with pytest.raises(Broken, match=where):
        denoise_movie(movie, model_of(), Settings(), write, progress)
    assert threading.active_count() == before


def test_part_of_a_movie_is_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that starts within the movie, as after an error or on another machine: the same bits."""
    in_float32(monkeypatch, chunk=32)
    frames = torch.from_numpy(example((520, 24, 16)).astype(np.float32))
    context = context_of(frames)
    residual = context.whiten(frames)
    net = Network(model_of(), context)
    with torch.inference_mode():
        whole = predicted(net, residual)
        parts = list(net.predict(chunks_of(residual), 250, 431))
    assert torch.equal(torch.cat([prediction for _, prediction in parts]), whole[250:431])
    assert torch.equal(torch.cat([asked for asked, _ in parts]), residual[250:431])


def test_footprints_of_blocks_are_cleaned_together_as_each_alone() -> None:
    """Three blocks in a row, the last one narrower, the one between them with nothing in it."""
    net = Network(model_of(), context_of(torch.randn(20, 32, 60)))
    places = [(slice(0, 32), slice(start, start + width)) for start, width in ((0, 32), (20, 32), (32, 28))]
    footprints = [torch.randn(n, 32, column.stop - column.start) for n, (_, column) in zip((2, 0, 1), places)]
    together = net.clean_footprints(footprints, places)
    assert [cleaned.shape for cleaned in together] == [cleaned.shape for cleaned in footprints]
    for cleaned, one, place in zip(together, footprints, places):
        alone = net.clean_footprints([one], [place])[0]
        torch.testing.assert_close(cleaned, alone, rtol=0.02, atol=0.02)  # bfloat16
    assert float((together[0] - footprints[0]).abs().max()) > 0.1


GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "free", "chunk", "tile"),
    [
        ((128, 128), 16 * GIB, 64, 128),
        ((256, 256), 16 * GIB, 16, 256),
        ((512, 512), 3 * GIB, 16, 512),
        ((490, 490), 3 * GIB, 16, 496),
        ((512, 796), 3 * GIB, 16, 800),
        ((10, 3000), 3 * GIB, 16, 3000),
        ((2048, 2048), 64 * GIB, 16, 2048),
        ((2048, 2048), 7 * GIB, 16, 1040),
    ],
)
def test_what_is_computed_at_once_fits_the_memory(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], free: int, chunk: int, tile: int
) -> None:
    monkeypatch.setattr(network, "free_memory", lambda device: free)
    monkeypatch.setattr(network, "precision", lambda device: torch.bfloat16)
    geometry = choose_geometry(UNet3D(UNetConfig()), size)
    assert (geometry.chunk, geometry.tile) == (chunk, tile)


def test_too_little_memory_is_told_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "free_memory", lambda device: GIB)
    with pytest.raises(MemoryError, match=r"2048 x 2048 pixels take .* GB more"):
        choose_geometry(model_of(), (2048, 2048))


def test_frames_are_read_twice_and_no_more() -> None:
    movie = Memory(example((200, 16, 16)))
    denoise_movie(movie, model_of(), Settings(), lambda frames: None, lambda *stage: None)
    counts = np.zeros(200, int)
    for start, stop in movie.reads:
        counts[start:stop] += 1
    assert (counts == 2).all()


@pytest.fixture(scope="module")
def shipped() -> UNet3D:
    return load_model(WEIGHTS, torch.device("cpu"))


@pytest.mark.parametrize(("level", "stored"), [(1, 30.20), (2, 24.36), (3, 20.36)])
def test_shipped_weights_on_a_small_scene(shipped: UNet3D, level: int, stored: float) -> None:
    """The score that the committed weights reached when they were committed, to a tenth of a dB."""
    clean = challenge_scene(1_000_100, frames=100, size=64).clean()
    movie = noisy(clean, *LEVELS[level], np.random.default_rng(level)).round().astype(np.int16)
    out, _ = run(movie, shipped)
    error, power = (out.astype(np.float64) - clean) ** 2, clean.astype(np.float64) ** 2
    spatial = 10 * np.log10(power.sum((1, 2)) / error.sum((1, 2))).mean()
    temporal = 10 * np.log10(power.sum(0) / error.sum(0)).mean()
    assert (spatial + temporal) / 2 == pytest.approx(stored, abs=0.1)


@pytest.mark.parametrize("scene", ["challenge", "fast, 60 Hz", "axons whose rows move"])
@pytest.mark.parametrize("target", [-10, 20, 40])
def test_denoising_does_no_harm(shipped: UNet3D, scene: str, target: int) -> None:
    """Of a movie that is hardly noisy the recording itself counts; see evaluation/harm.py for all levels."""
    before, after = harm.scores(harm.SCENES[scene](200, 64), target, shipped)
    assert before == pytest.approx(target, abs=4)
    assert after > before


@pytest.mark.parametrize("name", ["none", "filter 0.15, 0.7, 0.15", "registered, linear"])
def test_smoothing_is_undone_and_told(shipped: UNet3D, name: str) -> None:
    """Which brings decibels, and changes nothing where nothing was smoothed; see evaluation/smoothed.py."""
    movie, clean = recorded("challenge", SMOOTHINGS[name], 1, 200, 64)
    out, result = run(movie, shipped)
    without = unaware(movie, shipped)
    if name == "none":
        assert result.smoothing == result.motion == (0, 0)
        assert result.row_phase == result.flicker == 0
        np.testing.assert_array_equal(out, without)
    else:
        assert result.smoothing == pytest.approx((0.15, 0.15) if "filter" in name else (0.1, 0.1), abs=0.02)
        assert score(clean, out)["stsnr"] > score(clean, without)["stsnr"] + 3


@pytest.mark.parametrize("name", ["filter 0.15, 0.7, 0.15", "registered, linear"])
def test_smoothed_frames_may_be_of_any_size(
    shipped: UNet3D, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pieces need not fill a block: of frames of 192 x 192 one has 28, 28 and 8."""
    movie, _ = recorded("challenge", SMOOTHINGS[name], 1, 100, 32)
    expected, _ = run(movie, shipped)
    monkeypatch.setattr(survey, "PIECE_VOXELS", 28 * 32 * 32)
    np.testing.assert_allclose(run(movie, shipped)[0], expected, atol=1e-3 * np.ptp(expected))


@pytest.mark.parametrize("level", [1, 2])
def test_what_moves_is_held_still_and_comes_out_where_it_was(shipped: UNet3D, level: int) -> None:
    """By decibels better; a dropped row is filled, a frame that another light flashed in comes out as recorded."""
    movie, clean = recorded("challenge", SMOOTHINGS["moves by 1 pixel"], level, 200, 64)
    movie[50] += 8000
    movie[90, 20] = 0
    out, result = run(movie, shipped)
    assert min(result.motion) > 1
    np.testing.assert_array_equal(out[50], movie[50])
    others = np.arange(200) != 50
    scores = [score(clean[others], x[others])["stsnr"] for x in (out, unaware(movie, shipped))]
    assert scores[0] > scores[1] + (3 if level == 1 else 1)
    assert np.abs(out[90, 20] - clean[90, 20]).mean() < 1.2 * np.abs(out[91, 20] - clean[91, 20]).mean() + 20
    scaled, scaled_result = run(3 * movie.astype(np.float32) + 70, shipped)
    assert scaled_result.motion == pytest.approx(result.motion, abs=1e-3)
    np.testing.assert_allclose((scaled - 70) / 3, out, atol=1e-3 * float(np.abs(out).max()))


def test_pixels_that_change_at_first_alone_hide_no_movement(shipped: UNet3D) -> None:
    """As of a time stamp whose hours change: in the excerpt on which holding still is tried they never do."""
    movie, _ = recorded("challenge", SMOOTHINGS["moves by 1 pixel"], 1, 200, 64)
    movie[:, 2:6, 2:6] = 4000
    movie[:10, 2:6, 2:6] = 0
    assert min(run(movie, shipped)[1].motion) > 1


@pytest.mark.parametrize("odd", ["pixels", "infinity"])
def test_a_heartbeat_is_held_still_whatever_single_voxels_are(shipped: UNet3D, odd: str) -> None:
    """Every fourth frame at the same place is no plane of a stack; hot and stuck pixels do not move with the scene."""
    phase = np.pi / 2 * np.arange(200) + 0.3
    by = 1.4 * np.stack([np.sin(phase), 0.35 * np.cos(phase)], 1)
    clean = moved(challenge_scene(1_000_340, 200, 64).clean(), by).clip(0)
    random = np.random.default_rng(0)
    movie = noisy(clean, 5.0, 100.0, random)
    single = random.random((64, 64)) < 0.004
    stuck, hot = single & (np.arange(64) < 32), single & (np.arange(64) >= 32)
    if odd == "pixels":
        movie[:, stuck] = 5000
        movie[:, hot] += random.normal(0, 800, (200, int(hot.sum()))).astype(np.float32)
    else:
        movie[64, 5, 7], movie[70, 9, 30] = np.inf, 1e30
    out, result = run(movie, shipped)
    assert result.motion[0] > 1
    assert not any("planes" in warning for warning in result.warnings)
    warnings = [warning for warning in result.warnings if "pixels" in warning]
    if odd == "pixels":
        assert (out[:, stuck] == 5000).all()
        noisy_ones, constant = (int(warning.split()[0]) for warning in warnings)
        assert (noisy_ones >= hot.sum(), constant) == (True, stuck.sum())
    valid = ~stuck
    error = np.square(out - clean)[:, valid].mean()
    assert error < 0.1 * (5.0 * clean.mean() + 100)  # of the noise's variance


def test_cells_that_answer_in_turn_are_not_held_still(shipped: UNet3D) -> None:
    """All of them wax and wane in one rhythm, each in its own time: halves of the field agree on displacements."""
    clean = waxing_and_waning(100, 128, seed=0)
    movie = np.random.default_rng(0).poisson(clean).astype(np.float32)
    motions: list[Motion] = []

    def noted(blocks: Callable[[], Iterable[torch.Tensor]]) -> Motion:
        motions.append(estimate_motion(blocks))
        return motions[0]

    with patch.object(inference, "estimate_motion", noted):
        _, result = run(movie, shipped)
    assert (min(motions[0].max_displacement) > 0.3, motions[0].contradiction > 0) == (True, True)
    assert result.motion == (0, 0)  # held by that, it would score 1.5 dB less


def waxing_and_waning(frames: int, size: int, seed: int) -> np.ndarray:
    """Photons of cells of 3 pixels (T, Y, X) that differ in when they are bright, and in nothing else."""
    random = np.random.default_rng(seed)
    spots = (random.random((size, size)) < 1 / 400) * 2 * np.pi * 9 * random.uniform(20, 60, (size, size))
    phases = random.uniform(0, 2 * np.pi, (size, size))
    images = (spots, spots * np.cos(phases) / 2, spots * np.sin(phases) / 2)
    still, cosine, sine = (gaussian_filter(image, 3, mode="wrap") for image in images)
    phase = 2 * np.pi * np.arange(frames)[:, None, None] / frames
    return (still + 30 + np.cos(phase) * cosine + np.sin(phase) * sine).astype(np.float32)


def test_how_a_camera_s_columns_differ_does_not_move_with_the_scene(shipped: UNet3D) -> None:
    """Held still with it, it would be noise."""
    movie, clean = recorded("challenge", SMOOTHINGS["moves by 1 pixel, columns differ by 5%"], 1, 128, 96)
    out, result = run(movie, shipped)
    with patch("denoise.survey.estimate_pattern", lambda _, held, __: (None, held)):
        without, _ = run(movie, shipped)
    assert score(clean, out)["stsnr"] > score(clean, without)["stsnr"] + 1
    (warning,) = (text for text in result.warnings if "fixed pattern" in text)
    differ = float(warning.split(" differ by ")[1].split()[0])
    assert differ == pytest.approx(0.05 * float(clean.mean()), rel=0.25)


def test_the_middle_excerpt_a_trial_keeps_no_whole_frames() -> None:
    class Large(Memory):
        def read(self, start: int, stop: int) -> np.ndarray:
            return np.zeros((stop - start, 1024, 1024), np.uint16)

    movie = Large(np.broadcast_to(np.uint16(0), (300, 1024, 1024)))
    tracemalloc.start()
    excerpt, start, (rows, columns) = middle_excerpt(movie)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert excerpt.info.shape == (128, 128, 128)
    assert (start, rows.start % 2, columns.stop - columns.start) == (86, 0, 128)
    assert peak < 80e6  # two blocks of frames, and the excerpt; all 128 frames are 268 MB


@pytest.mark.parametrize("moving", [False, True])
def test_light_that_flickers_is_held_steady_and_comes_out(shipped: UNet3D, moving: bool) -> None:
    """By decibels better; where the sample moves too. A frame that another light flashed in comes out as recorded."""
    scene = challenge_scene(1_000_100, 200, 64).clean()
    light = 1 + 0.1 * np.random.default_rng(3).standard_normal((200, 1, 1)).astype(np.float32)
    by = wander(np.random.default_rng(7), 200, 1.0, 0.0)
    clean = (moved(scene, by).clip(0) if moving else scene) * light
    movie = digitize(noisy(clean, *LEVELS[1], np.random.default_rng(0)), np.int16, clip_at_zero=False)
    movie[50] += 8000
    movie[90, 20] = 0
    out, result = run(movie, shipped)
    assert result.flicker == pytest.approx(0.1 * clean.mean(), rel=0.2)
    assert (min(result.motion) > 1) == moving
    np.testing.assert_array_equal(out[50], movie[50])
    others = np.arange(200) != 50
    scores = [score(clean[others], x[others])["stsnr"] for x in (out, unaware(movie, shipped))]
    assert scores[0] > scores[1] + 1.5
    slope = np.polyfit(clean[others].mean((1, 2)), out[others].mean((1, 2)), 1)[0]
    assert slope == pytest.approx(1, abs=0.02)  # its flicker is the recording's
    scaled, scaled_result = run(3 * movie.astype(np.float32) + 70, shipped)
    assert scaled_result.flicker == pytest.approx(3 * result.flicker, rel=1e-3)
    np.testing.assert_allclose((scaled - 70) / 3, out, atol=2e-3 * float(np.abs(out).max()))


def test_bright_pixels_in_light_that_flickers_are_not_hot(shipped: UNet3D) -> None:
    """There light changes by more than noise does. One other pixel is hot, and one is stuck."""
    scene = challenge_scene(5_000_020, 200, 64).clean()
    scene[:, 28:31, 28:31] += np.outer([1, 3, 1], [1, 3, 1]) * np.float32(600)
    light = 1 + 0.3 * np.random.default_rng(3).standard_normal((200, 1, 1), np.float32).clip(-2, 2)
    clean = (scene * light).astype(np.float32)
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0))
    movie[:, 20, 20] += 3000 * np.random.default_rng(1).standard_normal(200, np.float32)
    movie[:, 40, 40] = 4000
    out, result = run(movie, shipped)
    assert result.flicker > 0
    counts = [warning.split(" pixels")[0] for warning in result.warnings if "pixels" in warning]
    assert counts == ["1", "1"]
    error = np.square(out - clean).mean(0)
    error[[20, 40], [20, 40]] = 0
    assert error[29, 29] < 0.3 * LEVELS[1][0] * scene[:, 29, 29].mean()
    assert np.ptp(out[:, 20, 20]) < 1000
    np.testing.assert_allclose(out[:, 40, 40], 4000, rtol=1e-6)


@pytest.mark.parametrize("noise", [1, 5])
def test_what_loses_by_being_held_still_is_not(shipped: UNet3D, noise: float) -> None:
    """A slow drift in a recording with hardly any noise: interpolation costs more than the network loses."""
    by = np.linspace(0, 1.5, 200)[:, None] * np.ones(2)
    clean = moved(challenge_scene(1, 200, 64).clean(), by)
    movie = (clean + np.random.default_rng(0).normal(0, noise, clean.shape)).astype(np.float32)
    out, result = run(movie, shipped)
    assert result.motion == (0, 0)
    assert score(clean, out)["stsnr"] > score(clean, movie)["stsnr"] + 2


def test_planes_in_turn_are_told_and_not_taken_for_one_scene_that_moves(shipped: UNet3D) -> None:
    planes = [challenge_scene(7_000_000 + plane, 60, 64).clean() for plane in range(2)]
    clean = np.stack(planes, 1).reshape(-1, 64, 64)
    movie = digitize(noisy(clean, *LEVELS[1], np.random.default_rng(0)), np.int16, clip_at_zero=False)
    out, result = run(movie, shipped)
    assert result.motion == result.smoothing == (0, 0)
    assert any("frames that are 2 apart" in text for text in result.warnings)
    np.testing.assert_array_equal(out, unaware(movie, shipped))


@pytest.mark.parametrize("size", [64, 67])
def test_rows_out_of_phase_are_put_in_phase_and_come_out_where_they_were(shipped: UNet3D, size: int) -> None:
    """In fields of any size, at its edges too, and wherever an excerpt of it starts."""
    clean = out_of_phase(1.3, challenge_scene(1, 200, size).clean()).clip(0)
    movie = digitize(noisy(clean, *LEVELS[1], np.random.default_rng(0)), np.int16, clip_at_zero=False)
    movie[90, 21] = 0
    with patch("denoise.inference.TRIAL_SIZE", (100, size - 2)):  # which starts at an odd row
        out, result = run(movie, shipped)
    assert result.row_phase == 1  # of 1.3: whole pixels lose nothing
    assert result.motion == (0, 0)
    without = unaware(movie, shipped)
    gains = [
        score(clean[..., part], out[..., part])["stsnr"]
        - score(clean[..., part], without[..., part])["stsnr"]
        for part in (slice(None), slice(0, 3), slice(-3, None))
    ]
    assert gains[0] > 0.3, gains
    assert min(gains[1:]) > -0.5, gains
    assert np.abs(out[90, 21] - clean[90, 21]).mean() < 1.2 * np.abs(out[91, 21] - clean[91, 21]).mean() + 20


def test_smoothing_is_found_where_rows_are_out_of_phase(shipped: UNet3D) -> None:
    """By neighbours as they were recorded, not as they are put in phase."""
    clean = out_of_phase(1.3, challenge_scene(1, 100, 64).clean()).clip(0)
    movie = filtered([0.15, 0.7, 0.15], noisy(clean, *LEVELS[1], np.random.default_rng(0)))
    _, result = run(movie, shipped)
    assert result.row_phase == 1
    assert result.smoothing == pytest.approx((0.15, 0.15), abs=0.02)


def test_what_is_out_of_phase_is_not_held_by_chance(shipped: UNet3D) -> None:
    """Smooth structure at low light, displaced by a sixth of a pixel: displacements would be found of three pixels."""
    clean = different_scene("other-optics", 2, 128, 96).clean()
    movie = digitize(noisy(clean, *LEVELS[3], np.random.default_rng(2)), np.int16, clip_at_zero=False)
    _, result = run(movie, shipped)
    assert result.row_phase == 1
    assert result.motion == (0, 0)


@pytest.mark.parametrize("gain", [1, 40])
def test_line_noise_is_taken_out_and_told(shipped: UNet3D, gain: float) -> None:
    """Of rows or columns, in any units; nothing else is: a row may be dropped, a border unrecorded."""
    movie, clean = (
        gain * x.astype(np.float32) - 100
        for x in recorded("challenge", SMOOTHINGS["line noise, as strong"], 2, 200, 64)
    )
    movie[30, 20] = movie.min()
    movie[:, :, :3] = 0
    out, result = run(movie, shipped)
    turned, turned_result = run(movie.swapaxes(1, 2).copy(), shipped)
    for each, word in ((result, "row"), (turned_result, "column")):
        assert any(f"voxels of a {word} share" in warning for warning in each.warnings)
    np.testing.assert_allclose(out[..., :3], 0, rtol=0, atol=1e-4 * gain)
    scores = {
        name: score(clean[..., 3:], x[..., 3:])["stsnr"]
        for name, x in (
            ("rows", out),
            ("columns", turned.swapaxes(1, 2)),
            ("unaware", unaware(movie, shipped)),
        )
    }
    assert scores["rows"] > scores["unaware"] + 10
    assert scores["columns"] == pytest.approx(scores["rows"], abs=1.0)
    # what lines add to whole frames is taken out with them
    assert result.flicker == turned_result.flicker == 0
    assert result.motion == turned_result.motion == (0, 0)


@pytest.mark.parametrize("kind", ["flash", "step"])
@pytest.mark.parametrize("target", [-10, 20, 35])
def test_a_jump_of_the_whole_field_does_no_harm(shipped: UNet3D, kind: str, target: int) -> None:
    before, after = harm.scores(harm.SCENES[f"challenge with a {kind}"](200, 64), target, shipped)
    assert before >= target
    assert after > before


def test_noise_alone_comes_out_flat(shipped: UNet3D) -> None:
    """What the real network makes of noise does not stand out of it: no frame differs from another."""
    movie = noisy(np.full((300, 64, 64), 204, np.float32), *LEVELS[2], np.random.default_rng(0))
    out, _ = run(movie, shipped)
    assert np.ptp(out, axis=0).max() < 1e-3 * 204


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("target", [7, 40])
def test_half_precision_costs_no_quality(
    shipped: UNet3D, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, target: int
) -> None:
    """That of newer GPUs and processors, and of older GPUs, against float32; recordings of so many dB."""
    clean = challenge_scene(1_000_101, frames=64, size=64).clean()
    factor = 10 ** ((7 - target) / 10)
    gain, read_variance = (factor * x for x in LEVELS[1])
    movie = noisy(clean, gain, read_variance, np.random.default_rng(0))
    outputs = []
    for dtype in (torch.float32, kind):
        monkeypatch.setattr(network, "precision", lambda device, dtype=dtype: dtype)
        outputs.append(run(movie, shipped)[0])
    scores = [score(clean, out)["stsnr"] for out in outputs]
    assert abs(scores[0] - scores[1]) < 0.02
    assert 10 * np.log10(np.square(clean).mean() / np.square(outputs[0] - outputs[1]).mean()) > 50


def test_a_gpu_computes_as_the_cpu_does(shipped: UNet3D) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: its results were not compared")
    clean = challenge_scene(1_000_101, frames=64, size=64).clean()
    movie = noisy(clean, *LEVELS[1], np.random.default_rng(0)).round().astype(np.int16)
    outputs = [run(movie, model)[0] for model in (shipped, load_model(WEIGHTS, torch.device("cuda")))]
    scores = [10 * np.log10((clean**2).sum() / ((out - clean) ** 2).sum()) for out in outputs]
    assert abs(scores[0] - scores[1]) < 0.02
