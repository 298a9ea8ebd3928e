"""The number format in which a processor computes a network fastest: asked here by inference and learning alike."""

from __future__ import annotations

import torch

SHORT = 48  # frames: three steps at the coarsest level of the network


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 or float16 where the processor computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def autocast(device: torch.device, learned_frames: int = SHORT) -> torch.autocast:
    """bfloat16 where there is it, else float32, where float16 will not do: it would need gradients to be scaled.

    Learning from fewer than SHORT frames takes float32 on a CPU: over one or two steps in time, oneDNN's (3.12) bfloat16
    gradient of a 3-D convolution with respect to its weights is wrong, partly memory that was never written.
    """
    able = precision(device) == torch.bfloat16 and (device.type != "cpu" or learned_frames >= SHORT)
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
