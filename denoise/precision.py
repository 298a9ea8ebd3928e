"""The number format in which a processor computes a network fastest: asked here by inference and learning alike."""

from __future__ import annotations

import torch


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 or float16 where the processor computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """For learning: bfloat16 where there is it, else float32: float16 would need its gradients scaled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
