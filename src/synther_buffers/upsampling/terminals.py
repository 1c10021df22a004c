"""Which synthetic rows are terminal: a classifier on the whole row, drawn at the data's rate.

A threshold on the column that the diffusion model generates makes too few rows terminal, because a rare flag is noisy
and biased towards its mean. In most environments, whether a row is terminal is a sharp function of the next
observation. A small classifier learns that function from the real rows and is applied to each decoded synthetic row.

The joint distribution of the columns of synthetic rows is slightly wrong, so a classifier that uses many correlated
columns makes errors there. A group lasso on its inputs makes it use few of them. Fields other than the next observation
have a larger weight in the lasso, so that they are used only where the next observation is not enough.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transitions import Transitions, TransitionSpec
from .rare_classifier import RareClassifier

#: Group-lasso weights of the next observation's columns and of all others (see benchmarks/terminals.py).
_PENALTY_NEXT, _PENALTY_OTHER = 3e-3, 1e-1


class TerminalClassifier:
    """Learns ``p(terminated | s, a, r, s')`` and draws flags for rows.

    Args:
        spec: the fields of a transition.
        device: where it trains and runs.
    """

    def __init__(self, spec: TransitionSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.rate = 0.0
        self._classifier: RareClassifier | None = None
        self._mean = torch.zeros(0, dtype=torch.float64, device="cpu")
        self._scale = torch.ones(0, dtype=torch.float64, device="cpu")

    @torch.inference_mode(False)
    def fit(self, transitions: Transitions, num_steps: int, generator: torch.Generator) -> None:
        """Learn from real rows; if all or none of them are terminal, only the rate is stored.

        Args:
            transitions: real rows.
            num_steps: gradient steps.
            generator: source of weights and minibatches, on the CPU.
        """
        label = transitions.terminated.to(self.device)
        self.rate = float(label.double().mean())
        self._classifier = None
        if self.rate in (0.0, 1.0):
            return
        columns = self._columns(transitions)
        self._mean = torch.cat([value.double().mean(0) for value in columns.values()])
        self._scale = torch.cat([_scale(value) for value in columns.values()])
        penalty = torch.cat(
            [
                torch.full_like(value[0], _PENALTY_NEXT if _is_next(name) else _PENALTY_OTHER, dtype=torch.float32)
                for name, value in columns.items()
            ]
        )
        self._classifier = RareClassifier.fit(self._normalize(columns), label, penalty, num_steps, generator)

    @torch.no_grad()
    def logits(self, transitions: Transitions) -> Tensor:
        """Uncalibrated log-odds ``[n]`` of each row being terminal."""
        if self._classifier is None:
            return torch.full((len(transitions),), float("inf") if self.rate else float("-inf"), device=self.device)
        return self._classifier.logits(self._normalize(self._columns(transitions)))

    def calibrate(self, logits: Tensor) -> float:
        """The shift of the log-odds with which the mean probability of these rows is the data's rate."""
        if self._classifier is None:
            return 0.0
        low, high = -60.0, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            if float(torch.sigmoid(logits.double() + middle).mean()) < self.rate:
                low = middle
            else:
                high = middle
        return high

    @staticmethod
    def draw(logits: Tensor, shift: float, generator: torch.Generator) -> Tensor:
        """Flags ``[n]`` drawn with probability ``sigmoid(logits + shift)``; their number is off by less than one.

        Systematic sampling: every row has its own probability, but all draws share one random number, so that sampling
        adds no noise to the rate of a large set.
        """
        # On the CPU: CUDA's cumulative sums differ from run to run, and raise an error where that is forbidden.
        cumulative = torch.sigmoid(logits.double() + shift).cpu().cumsum(0)
        offset = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).cpu()
        counts = (cumulative + offset).floor()
        flags = torch.diff(counts, prepend=torch.zeros(1, dtype=torch.float64, device="cpu")) > 0
        return flags.to(logits.device)

    def _columns(self, transitions: Transitions) -> dict[str, Tensor]:
        """Every field except `terminated` on the device, ``[n, width]`` each, categories as one-hot columns."""
        columns = transitions.flat()
        out = {}
        for field in self.spec.fields:
            if field.name == "terminated":
                continue
            value = columns[field.name].to(self.device).reshape(len(transitions), -1)
            if field.kind == "categorical" and not field.values:
                value = torch.cat(
                    [
                        F.one_hot(value[:, element].long() - start, count)
                        for element, (start, count) in enumerate(zip(field.start, field.num_categories, strict=True))
                    ],
                    dim=1,
                )
            out[field.name] = value
        return out

    def _normalize(self, columns: dict[str, Tensor]) -> Tensor:
        """The network's input, ``[n, width]`` float32; normalised in float64, a field at a time."""
        widths = [value.shape[1] for value in columns.values()]
        frame = zip(columns.values(), self._mean.split(widths), self._scale.split(widths), strict=True)
        return torch.cat([((value.double() - mean) / scale).float() for value, mean, scale in frame], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Rate, normalisation and weights, as CPU tensors."""
        net = {} if self._classifier is None else self._classifier.state_dict()
        return {"rate": self.rate, "mean": self._mean.cpu(), "scale": self._scale.cpu(), "net": net}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rate = float(state["rate"])
        self._mean, self._scale = state["mean"].to(self.device), state["scale"].to(self.device)
        self._classifier = None
        if state["net"]:
            self._classifier = RareClassifier.from_state(state["net"], len(self._mean), self.device)


def _scale(value: Tensor) -> Tensor:
    """Standard deviation of each column ``[N, width]``, in float64; infinite for a constant one."""
    value = value.double()
    low, high = value.aminmax(dim=0)
    return torch.where(low == high, torch.inf, value.std(0))


def _is_next(name: str) -> bool:
    return name.startswith("next_observation")
