"""Memory and number formats: what makes PyTorch quick on the processor or GPU at hand."""

from __future__ import annotations

import ctypes

import torch


def keep_memory(*, large_blocks: bool = False) -> None:
    """Tell glibc to keep freed memory: asking the system for it again in every step costs a fifth of the time.

    Args:
        large_blocks: keep blocks of more than 32 MiB, too. For training, which takes the same blocks at every step.
            Where sizes vary it would hold several times the memory: 8 GB instead of 1 to 3 to extract layers of 10,000
            images.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library, as on macOS
    trim_threshold, mmap_threshold, mmap_max, arena_max = -1, -3, -4, -8
    mallopt(mmap_threshold, 32 * 2**20)
    if large_blocks:
        mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def has_bfloat16(device: str) -> bool:
    """Whether the hardware computes in bfloat16 itself; emulating it would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
