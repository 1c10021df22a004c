"""A classifier of rows for a rare label that few of the columns determine."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.network import linear

_WIDTH = 64
_BATCH_SIZE = 512
_LEARNING_RATE = 5e-3
#: Share of rows with the label in a training batch. Rare ones are drawn more often than they occur, so the log-odds are
#: too large, and those who use them choose the cut.
_POSITIVE_SHARE = 0.25


class RareClassifier:
    """Two hidden layers of 64, with a group lasso on the columns, so that few of them are used.

    Args:
        net: ``[n, width]`` to log-odds ``[n, 1]``.
    """

    def __init__(self, net: nn.Sequential) -> None:
        self._net = net.requires_grad_(False)

    @classmethod
    @torch.inference_mode(False)
    @torch.enable_grad()
    def fit(
        cls, features: Tensor, label: Tensor, penalty: Tensor, num_steps: int, generator: torch.Generator
    ) -> RareClassifier:
        """Learn which rows have a label.

        Args:
            features: ``[N, width]`` float32, standardised.
            label: ``[N]`` bool; some rows have it and some have not.
            penalty: ``[width]``, weight of each column in the group lasso.
            num_steps: gradient steps.
            generator: source of weights and minibatches, on the CPU.
        """
        device = features.device
        first = linear(features.shape[1], _WIDTH, generator, device)
        net = _build(first, generator, device)
        rate = float(label.double().mean())
        positive, negative = features[label], features[~label]
        num_positive = int(_BATCH_SIZE * max(_POSITIVE_SHARE, min(rate, 0.75)))
        target = torch.zeros(_BATCH_SIZE, device=device, dtype=torch.float32)
        target[:num_positive] = 1.0
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        draws = torch.Generator(device).manual_seed(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=1e-3, fused=True)
        with torch.autocast(device.type, enabled=False):
            for step in range(num_steps):
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * (1.0 - step / num_steps)
                rows = torch.cat(
                    [
                        source[torch.randint(len(source), (count,), generator=draws, device=device)]
                        for source, count in ((positive, num_positive), (negative, _BATCH_SIZE - num_positive))
                    ]
                )
                loss = F.binary_cross_entropy_with_logits(net(rows).squeeze(1), target)
                loss = loss + (penalty * first.weight.norm(dim=0)).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return cls(net)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Log-odds ``[n]`` of the label, too large because training drew it more often than it occurs."""
        with torch.autocast(features.device.type, enabled=False):
            return self._net(features).squeeze(1)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, as CPU tensors."""
        return {name: tensor.cpu() for name, tensor in self._net.state_dict().items()}

    @classmethod
    def from_state(cls, state: dict[str, Any], width: int, device: torch.device) -> RareClassifier:
        """What `state_dict` returned, of rows with so many columns.

        Raises:
            RuntimeError: tensors of other names or shapes.
        """
        generator = torch.Generator().manual_seed(0)
        net = _build(linear(width, _WIDTH, generator, device), generator, device)
        net.load_state_dict(state)
        return cls(net)


def _build(first: nn.Linear, generator: torch.Generator, device: torch.device) -> nn.Sequential:
    return nn.Sequential(
        first,
        nn.SiLU(),
        linear(_WIDTH, _WIDTH, generator, device),
        nn.SiLU(),
        linear(_WIDTH, 1, generator, device),
    )
