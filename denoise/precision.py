"""The number format in which a device computes a network fastest, for inference and training."""

from __future__ import annotations

import torch

MIN_FRAMES_BFLOAT16 = 48  # for training on a CPU: three steps at the coarsest level of the network


def precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 or float16 where the device computes in it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, learned_frames: int = MIN_FRAMES_BFLOAT16) -> torch.autocast:
    """Return a context that computes in bfloat16 where available, else in float32: float16 would need loss scaling.

    Training on fewer than MIN_FRAMES_BFLOAT16 frames uses float32 on a CPU: over one or two steps in time, oneDNN's
    (3.12) bfloat16 gradient of a 3-D convolution with respect to its weights is wrong, partly uninitialized memory.
    """
    reliable = device.type != "cpu" or learned_frames >= MIN_FRAMES_BFLOAT16
    enabled = precision(device) == torch.bfloat16 and reliable
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
