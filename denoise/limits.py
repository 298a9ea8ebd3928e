"""What this process may use: processors and memory, by the machine, its control groups and its resource limits.

Sources: the kernel's documents of cgroup-v2 (cpu.max, memory.max), cgroup-v1 (cpu.cfs_quota_us, memory.limit_in_bytes)
and proc (MemAvailable, VmData); getrlimit(2).
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
PLENTY = 8 << 30  # bytes of free memory
STATUS = Path("/proc/self/status")
MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quota(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> float:
    """Processors that the control groups of this process, and those above them, grant; infinite if no limit."""
    quotas = [math.inf]
    for folder in control_groups("cpu", membership, mount):
        old = [read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quota, period = read_text(folder / "cpu.max").split() or old
        if quota.isdigit() and period.isdigit():  # not "max", -1, or no such file
            quotas.append(int(quota) / int(period))
    return min(quotas)


def memory_there(
    meminfo: Path = Path("/proc/meminfo"), membership: Path = MEMBERSHIP, mount: Path = MOUNT
) -> int:
    """Bytes of memory and swap space of this machine, or less if its control groups grant less; -1 if unknown."""
    sizes = [told_bytes(name, meminfo) for name in ("MemTotal", "SwapTotal")]
    limits = [sum(size or 0 for size in sizes)] if any(sizes) else []
    for folder in control_groups("memory", membership, mount):
        limit = (read_text(folder / "memory.max") or read_text(folder / "memory.limit_in_bytes")).strip()
        limits += [int(limit)] if limit.isdigit() else []
    return min(limits, default=-1)


def memory_quota(membership: Path = MEMBERSHIP, mount: Path = MOUNT) -> float:
    """Bytes that the control groups of this process, and those above them, still grant; infinite if no limit.

    What they hold of files can be dropped, and does not count as used.
    """
    quotas = [math.inf]
    for folder in control_groups("memory", membership, mount):
        limit, used = (
            (read_text(folder / new) or read_text(folder / old)).strip()
            for new, old in (
                ("memory.max", "memory.limit_in_bytes"),
                ("memory.current", "memory.usage_in_bytes"),
            )
        )
        files = re.findall(r"^(?:total_)?inactive_file (\d+)$", read_text(folder / "memory.stat"), re.M)
        if limit.isdigit() and used.isdigit():
            quotas.append(int(limit) - int(used) + max(map(int, files), default=0))
    return min(quotas)


def control_groups(controller: str, membership: Path, mount: Path) -> Iterator[Path]:
    """The folders of this process's control group, and of those above it, that may limit what is asked for."""
    for line in read_text(membership).splitlines():
        _, controllers, group = line.split(":", 2)  # version 2: "0::/group"; 1: "4:cpu,cpuacct:/group"
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        leaf = top / group.lstrip("/")
        yield from (leaf, *(parent for parent in leaf.parents if parent.is_relative_to(top)))


def reuse_memory() -> None:
    """Let the C library keep what is freed for the next chunk, in one heap for all threads; call it before any starts.

    By itself glibc gives every large block back to the kernel, which fills the next one with zeros first: that took a
    sixth of the time for frames of 512 x 512. What is kept falls into pieces in time, a third of all: not where memory
    is scarce. Elsewhere than on Linux this does nothing. Source: mallopt(3).
    """
    if free_memory(torch.device("cpu")) < PLENTY:
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 27), (M_TRIM_THRESHOLD, 1 << 28)):
            mallopt(parameter, value)


def free_memory(device: torch.device) -> float:
    """Bytes that may still be allocated on a device; on the CPU the least of what any limit leaves.

    Infinite where the system does not tell, as on other systems than Linux.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return max(0, min(machine_memory(), memory_quota(), data_limit()))


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory; torch has no type for it where the CPU's is meant."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def machine_memory() -> float:
    """Bytes that the machine has left; infinite where it does not tell."""
    found = told_bytes("MemAvailable", Path("/proc/meminfo"))
    return math.inf if found is None else found


def data_limit() -> float:
    """Bytes that RLIMIT_DATA and RLIMIT_AS leave to this process; infinite where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    left = [math.inf]
    for limit, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(limit)
        used = told_bytes(name)
        if soft != resource.RLIM_INFINITY and used is not None:
            left.append(soft - used)
    return min(left)


def peak_resident(status: Path = STATUS) -> int:
    """The most bytes of memory that this process has held, on a Mac that it or its starter has; 0 where none is told."""
    found = told_bytes("VmHWM", status)
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, which outlives the change of program
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def told_bytes(name: str, path: Path = STATUS) -> int | None:
    """What the kernel tells under a name, as in /proc/meminfo; None where it does not."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", read_text(path), re.M)
    return int(found[1]) << 10 if found else None


def read_text(path: Path) -> str:
    """The file's text; empty if there is no such file, as on other systems than Linux."""
    try:
        return path.read_text()
    except OSError:
        return ""
