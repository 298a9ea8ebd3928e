"""What a process may use, by control groups, resource limits and the machine."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from denoise import limits, network
from denoise.estimate import ALLOCATOR_FACTOR, working_bytes
from denoise.limits import (
    cpu_quota,
    free_memory,
    group_memory_left,
    peak_resident,
    process_memory_left,
    total_memory,
)
from evaluation.bench import memory_settings
from model import UNet3D, UNetConfig

ROOT = Path(__file__).parents[1]


def control_groups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """As the kernel shows them: where a process says what groups it is in, and the folder of all groups' files."""
    (folder / "self").write_text(membership)
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "self", folder / "cgroup"


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/a/b", {"a/b/memory.max": "1000", "a/b/memory.current": "300",
                     "a/b/memory.stat": "anon 1\ninactive_file 50\n"}, 750),
        ("0::/a/b", {"a/b/memory.max": "max", "a/b/memory.current": "300",
                     "a/memory.max": "900", "a/memory.current": "400"}, 500),
        ("0::/", {"memory.max": "700", "memory.current": "100"}, 600),
        ("3:cpu:/x\n4:memory:/x", {"memory/x/memory.limit_in_bytes": "800", "memory/x/memory.usage_in_bytes": "300",
                                   "memory/x/memory.stat": "inactive_file 7\ntotal_inactive_file 20\n"}, 520),
        ("4:memory:/x", {"memory/x/memory.limit_in_bytes": "9223372036854771712", "memory/x/memory.usage_in_bytes": "5"},
         9223372036854771707),
        ("0::/a", {}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_memory_left_to_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], left: float
) -> None:
    assert group_memory_left(*control_groups(tmp_path, membership, files)) == left


def test_resource_limits_count_what_is_used_already(monkeypatch: pytest.MonkeyPatch) -> None:
    status = "VmPeak:\t 9000 kB\nVmSize:\t 3000 kB\nVmData:\t 1000 kB\n"
    monkeypatch.setattr(limits, "read_text", lambda path: status)
    rules = {resource.RLIMIT_DATA: resource.RLIM_INFINITY, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (rules[which], resource.RLIM_INFINITY))
    assert process_memory_left() == math.inf
    rules |= {resource.RLIMIT_DATA: 4 << 20, resource.RLIMIT_AS: 5 << 20}
    assert process_memory_left() == (5 << 20) - (3000 << 10)
    rules[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert process_memory_left() == (4 << 20) - (1000 << 10)


def test_the_peak_is_this_process_own(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 9000 kB\nVmHWM:\t 3000 kB\n")
    assert peak_resident(tmp_path / "status") == 3000 << 10
    assert 1 << 20 < peak_resident(tmp_path / "none") < 1 << 50
    code = "from denoise.limits import peak_resident; print(peak_resident())"
    kept = np.ones(80_000_000)  # of the process that starts it
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    assert int(ended.stdout) < kept.nbytes


def test_the_least_of_all_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for left, (machine, group, process) in ((3, (3, 4, 5)), (2, (3, 2, 5)), (1, (3, 4, 1)), (0, (3, -1, 4))):
        monkeypatch.setattr(limits, "machine_memory_left", lambda value=machine: value)
        monkeypatch.setattr(limits, "group_memory_left", lambda value=group: value)
        monkeypatch.setattr(limits, "process_memory_left", lambda value=process: value)
        assert free_memory(torch.device("cpu")) == left


def test_what_lacks_is_told_however_little_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "free_memory", lambda device: 37_000_000)
    monkeypatch.setattr(network, "precision", lambda device: torch.bfloat16)
    with pytest.raises(MemoryError, match=r"150 x 170 pixels take 0\.0[0-9]+ GB more"):
        network.choose_geometry(UNet3D(UNetConfig()), (150, 170))


def test_float32_is_told_to_take_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors that do not compute in half precision, by as much as the network then takes."""
    shape, device = (500, 512, 512), torch.device("cpu")
    estimates = []
    for able in ({"avx512_bf16": True}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        estimates.append(working_bytes(shape, device, report=False))
    pixels = shape[1] * shape[2]
    more = 16 * pixels * network.VOXEL_BYTES + pixels * network.STATE_BYTES
    assert estimates[1] - estimates[0] == pytest.approx(ALLOCATOR_FACTOR * more, abs=1)


@pytest.mark.parametrize(
    ("membership", "quotas", "processors"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        (
            "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("5:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_cpu_quota(tmp_path: Path, membership: str, quotas: dict[str, str], processors: float) -> None:
    assert cpu_quota(*control_groups(tmp_path, membership, quotas)) == processors


def test_memory_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/a/b\n4:memory:/c\n5:cpu:/d\n")
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  1 kB\nSwapTotal:  24 kB\n")
    paths = tmp_path / "meminfo", tmp_path / "self", tmp_path / "cgroup"
    assert total_memory(*paths) == 1024 * 1024
    for folder, name, text, bytes_ in (
        ("a/b", "memory.max", "max", 1024 * 1024),
        ("memory/c", "memory.limit_in_bytes", "9223372036854771712", 1024 * 1024),
        ("d", "memory.max", "5", 1024 * 1024),
        ("a", "memory.max", "700\n", 700),
    ):
        (tmp_path / "cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / folder / name).write_text(text)
        assert total_memory(*paths) == bytes_
    assert total_memory(tmp_path / "no", tmp_path / "such", tmp_path) == -1


@pytest.mark.parametrize(
    ("rounds", "settings"), [(24, {}), (3, memory_settings())], ids=["by itself", "in the image"]
)
def test_memory_that_is_freed_is_used_again(rounds: int, settings: dict[str, str]) -> None:
    """Large blocks as the network's, again and again: in the end the kernel has to give no new page for them.

    A block that lies aligned may need a larger hole than it left. Holes grow together in time, with what the image sets
    at once.
    """
    code = (
        "import resource, torch; from denoise import limits; pages = []\n"
        "limits.MIN_FREE_TO_KEEP = 0; limits.reuse_memory()\n"
        "one, other = torch.ones(15_000_000), torch.ones(15_000_000)\n"
        f"for _ in range({rounds}):\n"
        "    del one; one = torch.ones(15_000_000)\n"
        "    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(pages[-1] - pages[-2])"
    )
    line, environment = [sys.executable, "-c", code], os.environ | settings
    ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    assert int(ended.stdout) < 100


OTHER_SYSTEM = """
import os, sys
import SimpleITK, tifffile, torch  # these ask what system it is, and would not find their own files
from denoise import limits

limits.read_text = lambda path: ""
sys.platform = sys.argv.pop(1)
if sys.platform == "win32":
    sys.modules["resource"] = sys.modules["fcntl"] = None
    for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "sched_getaffinity"):
        delattr(os, name)
import process
sys.exit(process.main())
"""


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_systems_that_tell_nothing_of_memory_denoise_too(tmp_path: Path, system: str) -> None:
    movie = np.random.default_rng(0).poisson(50, (8, 16, 16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", movie, photometric="minisblack")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".a.tif.0123abcd.calcium-denoiser.part").touch()
    options = ["--input", str(tmp_path / "a.tif"), "--output", str(tmp_path / "out"), "--adapt", "off"]
    command = [sys.executable, "-c", OTHER_SYSTEM, system, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (0, "")
    assert tifffile.imread(tmp_path / "out" / "a.tif").shape == movie.shape
