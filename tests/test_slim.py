"""Slimming: channels without effect are removed, the others stay, and the output of the network stays the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import ModelError, UNet3D, UNetConfig, load_model, save_model
from training import slim
from training.slim import InputCorrelations, prune_channels, record_inputs

CONFIG = UNetConfig(
    channels=(32, 32, 32), context_channels=(32, 32, 32), course_channels=(32, 32), bottom_blocks=1
)
TAPS = 3


def correlations(inputs: Tensor) -> Tensor:
    """Correlation matrix of channels and taps of inputs (N, C, TAPS)."""
    flat = inputs.flatten(1).double()
    return flat.mT @ flat / len(flat)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(silent: int = 0) -> UNet3D:
    """A network; where `silent` is given, the channels of every block from that one on are zero."""
    torch.manual_seed(0)
    model = UNet3D(CONFIG)
    with torch.no_grad():
        for head in (model.movie.head, model.mean.head, model.course.head):
            head.weight.normal_()
        for block in model.blocks().values() if silent else []:
            block.first.weight[silent:] = 0
    return model.eval().requires_grad_(False)


def outputs(model: UNet3D) -> list[Tensor]:
    """Outputs of all subnetworks for the same noise."""
    movie, images, error = normal(2, 1, 16, 24, 24), normal(2, 5, 24, 24, seed=1), torch.ones(2, 1, 24, 24)
    return [model(movie, images, error), model.course(normal(3, 40, seed=2))]


def test_silent_channels_go() -> None:
    inputs = normal(500, 48, TAPS)
    audible = torch.arange(0, 48, 3)  # 16 of 48
    silent = torch.ones(48, dtype=torch.bool)
    silent[audible] = False
    inputs[:, silent] = 0
    weight = normal(8, 48, TAPS, seed=1)
    kept, fitted, error = prune_channels(correlations(inputs), weight)
    assert kept == audible.tolist()
    torch.testing.assert_close(fitted, weight[:, audible])
    assert abs(error) < 1e-9


def test_channels_that_repeat_others_go_and_those_take_over_their_weight() -> None:
    once = normal(500, 16, TAPS)
    weight = normal(8, 32, TAPS, seed=1)
    kept, fitted, error = prune_channels(correlations(torch.cat([once, 2 * once], 1)), weight)
    assert len(kept) == 16
    assert sorted(channel % 16 for channel in kept) == list(range(16))
    again = normal(50, 16, TAPS, seed=2)
    inputs = torch.cat([again, 2 * again], 1)
    output = torch.einsum("nct,dct->nd", inputs[:, kept], fitted)
    expected = torch.einsum("nct,dct->nd", inputs, weight)
    torch.testing.assert_close(output, expected, rtol=0.01, atol=0.01)
    assert error < 1e-4


def test_channels_that_are_needed_stay_as_they_are() -> None:
    weight = normal(8, 32, TAPS, seed=1)
    kept, fitted, error = prune_channels(correlations(normal(500, 32, TAPS)), weight)
    assert kept == list(range(32))
    assert torch.equal(fitted, weight)
    assert error == 0


def test_the_error_stays_within_the_tolerance() -> None:
    """Half of the channels have half of the tolerance in power, or four times the tolerance, beside the others."""
    inputs = normal(4000, 32, TAPS)
    weight = normal(8, 32, TAPS, seed=1)
    for share, expected in ((0.5 * slim.TOLERANCE, 16), (4 * slim.TOLERANCE, 32)):
        faint = inputs.clone()
        faint[:, 16:] *= share**0.5
        kept, _, error = prune_channels(correlations(faint), weight)
        assert len(kept) == expected
        assert error < slim.TOLERANCE


def test_a_network_gives_the_same_output_without_its_silent_channels(tmp_path: Path) -> None:
    model = network(silent=16)
    with record_inputs(model) as recorders:
        expected = outputs(model)
    slimmed, errors = slim.slim_network(model, recorders)
    assert slimmed.config.hidden == (16,) * len(model.blocks())
    assert max(errors) < 1e-4
    save_model(tmp_path / "slim.pth", slimmed, {})
    loaded = load_model(tmp_path / "slim.pth", torch.device("cpu"))
    assert sum(x.numel() for x in loaded.parameters()) < sum(x.numel() for x in model.parameters())
    for output, wide_output in zip(outputs(loaded), expected):
        torch.testing.assert_close(output, wide_output, rtol=0.02, atol=0.02)  # saved in float16
    # the given network is not changed
    assert all(block.first.out_channels == 32 for block in model.blocks().values())


def test_correlations_are_those_of_what_the_convolution_sees() -> None:
    """Outputs computed from the correlations have the power of the convolution's own outputs."""
    model = network()
    block = model.blocks()["course.encoder.0"]
    recorder = InputCorrelations(block, torch.Generator().manual_seed(0))
    x = normal(8, 32, 400).relu()
    recorder.record(block.second, (x,))
    weight = block.second.weight.double().flatten(1)
    assert ((weight @ recorder.correlations) * weight).sum() / len(weight) == pytest.approx(1)
    second = block.second(x).square().mean()
    mean = recorder.correlations.diagonal().mean()  # over channels and taps, relative to the output power
    assert mean * second == pytest.approx(float(x.square().mean()), rel=0.05)


def test_the_command_writes_weights_that_tell_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "wide.pth", network(silent=16), {"step": 7})
    monkeypatch.setattr(slim, "run_training_batches", lambda model, batches, workers: outputs(model))
    slim.main(["--weights", str(tmp_path / "wide.pth"), "--out", str(tmp_path / "slim.pth")])
    checkpoint = torch.load(tmp_path / "slim.pth", weights_only=True)
    assert checkpoint["record"]["from"] == {"step": 7}
    assert checkpoint["record"]["slim"]["batches"] == slim.BATCHES
    assert {"device", "torch", "commit"} < checkpoint["record"].keys()
    assert set(checkpoint["config"]["hidden"]) == {16}
    assert "movie.encoder.0: 32 -> 16 channels" in capsys.readouterr().out


def test_missing_weights_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.pth: no such weights file") as caught:
        slim.main(["--weights", str(tmp_path / "none.pth"), "--out", str(tmp_path / "slim.pth")])
    assert "\n" not in str(caught.value)


def test_weights_of_another_number_of_blocks_are_refused(tmp_path: Path) -> None:
    model = network()
    save_model(tmp_path / "odd.pth", model, {})
    checkpoint = torch.load(tmp_path / "odd.pth", weights_only=True)
    checkpoint["config"]["hidden"] = (16, 16)
    torch.save(checkpoint, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=r"odd\.pth: expected a checkpoint of this network"):
        load_model(tmp_path / "odd.pth", torch.device("cpu"))
