"""The network: shapes, invariances, and checkpoints that are refused with a clear line."""

import contextlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import (
    ModelError,
    NeedsMoreFrames,
    StreamState,
    UNet3D,
    UNetConfig,
    depth_to_space,
    load_model,
    save_model,
    space_to_depth,
)

TINY = UNetConfig(channels=(4, 6, 8), context_channels=(4, 6, 8), course_channels=(4, 6), bottom_blocks=1)


def tiny(seed: int = 0) -> UNet3D:
    torch.manual_seed(seed)
    model = UNet3D(TINY)
    torch.nn.init.normal_(model.movie.head.weight)
    torch.nn.init.normal_(model.mean.head.weight)
    torch.nn.init.normal_(model.course.head.weight)
    return model.eval().requires_grad_(False)


@given(st.tuples(st.integers(1, 18), st.integers(1, 20), st.integers(1, 20)))
def test_any_size_comes_back(shape: tuple[int, int, int]) -> None:
    t, y, x = shape
    out = tiny()(torch.randn(1, 1, t, y, x), torch.randn(1, 5, y, x), torch.ones(1, 1, y, x))
    assert out.shape == (1, 1, t, y, x)
    assert torch.isfinite(out).all()


def test_output_scales_with_the_input() -> None:
    """No bias: three times the movie and context, three times what moves (Mohan et al., 2020)."""
    model = tiny()
    residual, images = torch.randn(1, 1, 16, 16, 16), torch.randn(1, 5, 16, 16)
    once, thrice = (model.decode(n * residual, model.encode(n * images)[0]) for n in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)


def test_the_mean_is_cleaned_by_itself_alone_and_by_its_noise() -> None:
    """The other images do not count; and a signal three times as strong is no noise three times as strong."""
    model = tiny()
    images = torch.randn(1, 5, 16, 16)
    others = torch.cat([images[:, :1], torch.randn(1, 4, 16, 16)], 1)
    torch.testing.assert_close(model.encode(others)[1], model.encode(images)[1])
    assert not torch.allclose(model.encode(3 * images)[1], 3 * model.encode(images)[1], rtol=0.01)


def test_the_error_of_means_is_that_of_eight_views_together() -> None:
    """So a mean that is mirrored or turned has such an error, where the size needs no padding."""
    model = tiny()
    images = torch.randn(1, 5, 16, 24)
    static = model.encode(images)[1]
    for axes in ((-2,), (-1,), (-2, -1)):
        torch.testing.assert_close(model.encode(images.flip(axes))[1], static.flip(axes))
    torch.testing.assert_close(model.encode(images.mT)[1], static.mT)
    mean, nothing = images[:, :1], torch.zeros(1, 1, 16, 24)
    turned = [model.mean(mean.flip(axes), nothing).flip(axes) for axes in ((), (-2, -1))]
    torch.testing.assert_close(model.error_of_means(mean, nothing, 2), (turned[0] + turned[1]) / 2)
    assert not torch.allclose(turned[0], turned[1])


@given(st.integers(1, 40))
def test_a_time_course_is_cleaned_by_itself_alone(frames: int) -> None:
    """Whatever its length, and those beside it; by its neighbours in time: the end is as if it went on for ever."""
    courses = torch.randn(3, frames)
    corrections = tiny().course(courses)
    assert corrections.shape == courses.shape
    torch.testing.assert_close(tiny().course(courses[1:2]), corrections[1:2])
    longer = torch.cat([courses, courses[:, -1:].expand(-1, -frames % 4)], 1)
    torch.testing.assert_close(tiny().course(longer)[:, :frames], corrections)


def test_no_parameter_is_a_bias_and_nothing_is_a_running_statistic() -> None:
    model = UNet3D(UNetConfig())
    assert all(parameter.ndim >= 3 for parameter in model.parameters())
    assert not list(model.buffers())


@given(st.permutations([2, 3, 4]))
def test_depth_to_space_undoes_space_to_depth(strides: list[int]) -> None:
    x = torch.arange(2 * 3 * 12 * 24 * 12.0).reshape(2, 3, 12, 24, 12)
    packed = space_to_depth(x, strides)
    assert packed.shape == (2, 3 * 24, 12 // strides[0], 24 // strides[1], 12 // strides[2])
    assert torch.equal(depth_to_space(packed, strides), x)


def test_space_to_depth_by_hand() -> None:
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert space_to_depth(x, (2, 2))[0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_far_frames_count() -> None:
    """The temporal reach is more than 100 frames: a change 60 frames away is felt on both sides."""
    model = tiny()
    residual = torch.zeros(1, 1, 160, 16, 16)
    changed = residual.clone()
    changed[0, 0, 80] = 5
    images = torch.randn(1, 5, 16, 16)
    features, _ = model.encode(images)
    felt = (
        (model.decode(changed, features) - model.decode(residual, features))
        .abs()
        .amax((0, 1, 3, 4))
        .nonzero()
    )
    assert felt.min() < 80 - 50
    assert felt.max() > 80 + 50


def streamed(
    model: UNet3D, residual: torch.Tensor, features: list[torch.Tensor], sizes: list[int]
) -> torch.Tensor:
    """The answer to a movie that comes in chunks of so many frames."""
    state, parts, chunks = StreamState(), [], residual.split(sizes, 2)
    for number, chunk in enumerate(chunks, 1):
        with contextlib.suppress(NeedsMoreFrames):
            parts.append(model.movie.stream(chunk, features, state, number == len(chunks)))
    return torch.cat(parts, 2)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=9), st.sampled_from([4, 8, 16]))
def test_a_movie_in_chunks_gets_the_answer_of_the_whole(lengths: list[int], step: int) -> None:
    sizes = [step * n for n in lengths]
    sizes[-1] += -sum(sizes) % 16
    model = tiny()
    residual = torch.randn(1, 1, sum(sizes), 16, 8)
    features, _ = model.encode(torch.randn(1, 5, 16, 8))
    out = streamed(model, residual, features, sizes)
    torch.testing.assert_close(out, model.movie(residual, features), rtol=1e-5, atol=1e-5)


def test_what_the_past_keeps_does_not_grow() -> None:
    model = tiny()
    features, _ = model.encode(torch.randn(1, 5, 16, 8))
    state, kept = StreamState(), []
    for _ in range(40):
        with contextlib.suppress(NeedsMoreFrames):
            model.movie.stream(torch.randn(1, 1, 16, 16, 8), features, state, False)
        kept.append(sum(x.numel() for parts in state.frames.values() for x in parts))
    assert len(set(kept[12:])) == 1


@pytest.mark.parametrize("config", [TINY, UNetConfig(channels=(3, 4), time_strides=(2, 2))])
def test_an_answer_depends_on_what_lies_within_reach_and_on_no_more(config: UNetConfig) -> None:
    torch.manual_seed(0)
    model = UNet3D(replace(config, context_channels=(4, 4, 4)[: len(config.channels)])).double()
    for layer in model.movie.parameters():
        torch.nn.init.uniform_(layer, 0.01, 0.02)  # positive: nothing cancels
    reach, grid = config.reach, config.grid
    for axis in range(3):
        size = [g if a != axis else 2 * -(-reach[a] // g) * g + 2 * g for a, g in enumerate(grid)]
        middle = [n // 2 // g * g for n, g in zip(size, grid)]
        residual = torch.zeros(1, 1, *size, dtype=torch.float64)
        residual[0, 0, middle[0], middle[1], middle[2]] = 1
        features = [
            torch.zeros(1, c, size[1] >> i, size[2] >> i, dtype=torch.float64)
            for i, c in enumerate(config.channels, 1)
        ]
        touched = model.movie(residual, features)[0, 0].nonzero()[:, axis] - middle[axis]
        assert -reach[axis] <= touched.min()
        assert touched.max() <= reach[axis]
        assert touched.max() > reach[axis] - 2 * grid[axis]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    save_model(path, model, {"seed": 1})
    loaded = load_model(path, torch.device("cpu"))
    assert loaded.config == TINY
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


class Hostile:
    """Unpickled without care, it would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.victim,)


def test_hostile_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    torch.save({"config": {}, "model": Hostile(victim)}, path)
    with pytest.raises(ModelError, match=r"evil\.pth: not a safe") as caught:
        load_model(path, torch.device("cpu"))
    assert "weights_only" not in str(caught.value)  # torch's own words advise to load it unsafely
    path.write_bytes(pickle.dumps(Hostile(victim)))
    with pytest.raises(ModelError, match="refused"):
        load_model(path, torch.device("cpu"))
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off", b"II*\0 a movie"])
def test_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path, torch.device("cpu"))
    assert "bad.pth: not a safe, complete checkpoint: it was refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_truncated_missing_and_foreign_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_model(path, tiny(), {})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match="complete"):
        load_model(path, torch.device("cpu"))
    with pytest.raises(ModelError, match="no such weights file"):
        load_model(tmp_path / "none.pth", torch.device("cpu"))
    torch.save({"config": {"images": 5}, "model": {"layer.weight": torch.zeros(1)}}, path)
    with pytest.raises(ModelError, match="another"):
        load_model(path, torch.device("cpu"))
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="found list"):
        load_model(path, torch.device("cpu"))
