"""Relevance by curiosity: rows whose next observation a model of the environment does not expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.network import linear
from ..evaluation.points import Units
from ..public_paths import public
from ..transitions import RowOrder, Transitions, TransitionSpec
from ..upsampling.seeds import derive_seed, generator
from ..validation import whole_number
from .base import FieldGuidance

#: Sizes of the networks (PGR's code has 256 units and three layers in the encoder), and how they are trained.
_WIDTH, _BATCH, _RATE = 256, 256, 3e-4
#: Rows that a module can see in its steps, at most.
_MOST_ROWS = 100_000
#: Rows whose error is computed at a time, and consecutive rows, which resemble each other, that go to one half.
_ROWS_AT_ONCE, _RUN = 8_192, 25


@public
@dataclass(frozen=True, kw_only=True)
class Curiosity(FieldGuidance):
    """The error of an intrinsic-curiosity module (Pathak et al. 2017) that is trained on the real rows.

    An encoder turns observations into features from which an inverse model can tell the action, so that what the
    agent cannot influence does not count; a forward model predicts the next observation's features. Its mean squared
    error is the relevance (Wang et al., "Prioritized Generative Replay", ICLR 2025, equation 6). Two modules are
    trained afresh at each refresh, on the CPU, on half of the rows each, and each row is judged by the module that did
    not learn it: what a network has memorised does not surprise it. That takes about 20 seconds of a CPU core.

    Attributes:
        steps: gradient steps of each module, with 256 rows.
    """

    steps: int = 500

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        super().__post_init__()
        object.__setattr__(self, "steps", whole_number("guidance.steps", self.steps, 1))

    def relevance(self, transitions: Transitions, order: RowOrder) -> Tensor:
        """The rank of the error among the rows of its half, from 0 to 1, ``[N]``."""
        half = torch.arange(len(transitions), device="cpu") // _RUN % 2
        found = torch.empty(len(transitions), device="cpu")
        for number in (0, 1):
            learned, judged = (half == number).nonzero()[:, 0], (half != number).nonzero()[:, 0]
            if len(judged):
                draws = generator(derive_seed(0, "curious rows", number))
                chosen = torch.randperm(len(learned), generator=draws, device="cpu")[:_MOST_ROWS]
                train = transitions[learned[chosen].to(transitions.device)] if len(learned) else transitions
                error = self.trained(train, number)(transitions[judged.to(transitions.device)])
                # Ranks, because the features of the two modules have scales of their own.
                found[judged] = (error.argsort().argsort() + 0.5) / len(judged)
        return found

    @torch.inference_mode(False)
    def trained(self, transitions: Transitions, number: int = 0) -> Callable[[Transitions], Tensor]:
        """A module that is trained on these rows, as the function that tells its error on any rows."""
        spec = self.spec_of(transitions)
        units = Units.measure(transitions, spec)
        columns = _inputs(transitions, spec, units)
        draws = generator(derive_seed(0, "curiosity", number))
        module = _CuriosityModule(columns[0].shape[1], columns[1].shape[1], draws)
        optimizer = torch.optim.Adam(module.parameters(), lr=_RATE, fused=True)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(self.steps):
                index = torch.randint(len(columns[0]), (_BATCH,), generator=draws, device="cpu")
                observation, action, next_observation = (column[index] for column in columns)
                forward, inverse = module(observation, action, next_observation)
                optimizer.zero_grad(set_to_none=True)
                (forward.mean() + F.mse_loss(inverse, action)).backward()
                optimizer.step()

        @torch.no_grad()
        def error(rows: Transitions) -> Tensor:
            starts = range(0, len(rows), _ROWS_AT_ONCE)
            with torch.autocast("cpu", enabled=False):
                return torch.cat(
                    [module(*_inputs(rows[start : start + _ROWS_AT_ONCE], spec, units))[0] for start in starts]
                )

        return error


class _CuriosityModule(nn.Module):
    """Encoder, inverse model and forward model."""

    def __init__(self, observation: int, action: int, draws: torch.Generator) -> None:
        super().__init__()
        self.encoder = _mlp((observation, _WIDTH, _WIDTH, _WIDTH), draws)
        self.inverse = _mlp((2 * _WIDTH, _WIDTH, _WIDTH, action), draws)
        self.dynamics = _mlp((_WIDTH + action, _WIDTH, _WIDTH, _WIDTH), draws)

    def forward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> tuple[Tensor, Tensor]:
        """The forward model's error of each row ``[n]``, and the inverse model's action ``[n, action]``."""
        now, then = self.encoder(observation), self.encoder(next_observation)
        expected = self.dynamics(torch.cat((now, action), 1))
        # The features are there for the inverse model; if the forward loss reached them, they could shrink to nothing.
        return (expected - then.detach()).square().mean(1), self.inverse(torch.cat((now, then), 1))


def _mlp(sizes: tuple[int, ...], draws: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [linear(fan_in, fan_out, draws, "cpu"), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _inputs(rows: Transitions, spec: TransitionSpec, units: Units) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, actions and next observations as standardised float32 columns on the CPU."""
    flat = rows.flat()
    # The next observation in the units of the observation, because the encoder takes both.
    then = {field.name: flat[f"next_{field.name}"] for field in spec.observation}
    return (
        units.columns(spec.observation, flat).float(),
        units.columns((spec.action,), flat).float(),
        units.columns(spec.observation, then).float(),
    )
