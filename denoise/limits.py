"""How many processors and how much memory this process may use: machine, control groups, resource limits.

Sources: the kernel's documents of cgroup-v2 (cpu.max, memory.max), cgroup-v1 (cpu.cfs_quota_us, memory.limit_in_bytes)
and proc (MemAvailable, VmData); getrlimit(2).
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
MIN_FREE_TO_KEEP = 8 << 30  # bytes of free memory, above which freed blocks are kept for reuse
PROC_STATUS = Path("/proc/self/status")
PROC_CGROUP, CGROUP_MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def limit_threads() -> None:
    """Let torch use no more threads than processors granted to this process: by default it counts the machine's."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, math.ceil(min(torch.get_num_threads(), allowed, cpu_quota()))))


def limit_memory() -> None:
    """Limit this process to the memory there is: an allocation error costs one movie, a kill by the kernel the run."""
    if sys.platform != "linux":
        return
    import resource

    total = total_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, total) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits, default=soft), hard))


def cpu_quota(membership: Path = PROC_CGROUP, mount: Path = CGROUP_MOUNT) -> float:
    """Return how many processors this process's control groups, and those above them, grant; infinite if no limit."""
    quotas = [math.inf]
    for folder in control_groups("cpu", membership, mount):
        version1 = [read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quota, period = read_text(folder / "cpu.max").split() or version1
        if quota.isdigit() and period.isdigit():  # not "max", -1, or no such file
            quotas.append(int(quota) / int(period))
    return min(quotas)


def total_memory(
    meminfo: Path = Path("/proc/meminfo"), membership: Path = PROC_CGROUP, mount: Path = CGROUP_MOUNT
) -> int:
    """Return this machine's memory and swap space in bytes, or less if control groups grant less; -1 if unknown."""
    sizes = [read_kernel_bytes(name, meminfo) for name in ("MemTotal", "SwapTotal")]
    limits = [sum(size or 0 for size in sizes)] if any(sizes) else []
    for folder in control_groups("memory", membership, mount):
        limit = read_first(folder / "memory.max", folder / "memory.limit_in_bytes")
        if limit.isdigit():  # not "max"
            limits.append(int(limit))
    return min(limits, default=-1)


def group_memory_left(membership: Path = PROC_CGROUP, mount: Path = CGROUP_MOUNT) -> float:
    """Return how many bytes this process's control groups, and those above them, still grant; infinite if no limit.

    Cached files (inactive_file) can be dropped, and do not count as used.
    """
    quotas = [math.inf]
    for folder in control_groups("memory", membership, mount):
        limit = read_first(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = read_first(folder / "memory.current", folder / "memory.usage_in_bytes")
        files = re.findall(r"^(?:total_)?inactive_file (\d+)$", read_text(folder / "memory.stat"), re.M)
        if limit.isdigit() and used.isdigit():
            quotas.append(int(limit) - int(used) + max(map(int, files), default=0))
    return min(quotas)


def control_groups(controller: str, membership: Path, mount: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of those above them, that may limit a resource."""
    for line in read_text(membership).splitlines():
        _, controllers, group = line.split(":", 2)  # version 2: "0::/group"; 1: "4:cpu,cpuacct:/group"
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        leaf = top / group.lstrip("/")
        yield from (leaf, *(parent for parent in leaf.parents if parent.is_relative_to(top)))


def reuse_memory() -> None:
    """Make the C library keep freed blocks for reuse, in one heap for all threads; call it before any thread starts.

    By default glibc returns every large block to the kernel, which fills the next one with zeros first: that took a
    sixth of the time for frames of 512 x 512. Kept blocks become fragmented in time, which costs a third more memory:
    so freed blocks are not kept where memory is scarce. Does nothing on other systems than Linux. Source: mallopt(3).
    """
    if free_memory(torch.device("cpu")) < MIN_FREE_TO_KEEP:
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 27), (M_TRIM_THRESHOLD, 1 << 28)):
            mallopt(parameter, value)


def free_memory(device: torch.device) -> float:
    """Return how many bytes can still be allocated on a device; on the CPU the least of what any limit leaves.

    Infinite where this is unknown, as on other systems than Linux.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return max(0, min(machine_memory_left(), group_memory_left(), process_memory_left()))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory is exhausted; torch raises a plain RuntimeError for the CPU's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def machine_memory_left() -> float:
    """Return how many bytes the machine has left; infinite where this is unknown."""
    available = read_kernel_bytes("MemAvailable", Path("/proc/meminfo"))
    return math.inf if available is None else available


def process_memory_left() -> float:
    """Return how many bytes RLIMIT_DATA and RLIMIT_AS leave to this process; infinite without such a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    remaining = [math.inf]
    for limit, name in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(limit)
        used = read_kernel_bytes(name)
        if soft != resource.RLIM_INFINITY and used is not None:
            remaining.append(soft - used)
    return min(remaining)


def peak_resident(status: Path = PROC_STATUS) -> int:
    """Return the peak resident memory of this process in bytes (on a Mac: of it or its parent); 0 where unknown."""
    peak = read_kernel_bytes("VmHWM", status)
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = (
        1 if sys.platform == "darwin" else 1024
    )  # of ru_maxrss, which includes the parent's: exec does not reset it
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory use of this process so far, in bytes: resident, and on the GPU if it is used."""
    peak = {"peak_memory": peak_resident()}
    if device.type == "cuda":
        peak["peak_gpu_memory"] = torch.cuda.max_memory_allocated(device)
    return peak


def hardware_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"^model name\s*:\s*(.+)$", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def read_kernel_bytes(name: str, path: Path = PROC_STATUS) -> int | None:
    """Read an entry such as "MemTotal: 1000 kB" of a file such as /proc/meminfo in bytes; None if it is not there."""
    match = re.search(rf"^{name}:\s*(\d+) kB$", read_text(path), re.M)
    return int(match[1]) << 10 if match else None


def read_first(*paths: Path) -> str:
    """Read the first of the files that is not empty, without surrounding white space: cgroup version 2 or else 1."""
    return next(filter(None, map(read_text, paths)), "").strip()


def read_text(path: Path) -> str:
    """Read a text file; empty if there is none, as on other systems than Linux."""
    try:
        return path.read_text()
    except OSError:
        return ""
