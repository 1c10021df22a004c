"""Seeds of everything random: one for each use, so that no use depends on the draws of others."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *counts: int) -> int:
    """A seed for one use.

    Args:
        seed: the user's.
        purpose: what it is for.
        counts: distinguish this use from others of the same purpose, such as the number of the fit.
    """
    entropy = [seed % 2**64, *counts, *purpose.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator on a device."""
    return torch.Generator(device).manual_seed(seed)
