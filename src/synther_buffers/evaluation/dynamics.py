"""Errors of rows in a simulator: of their dynamics, rewards and terminal flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..transitions import Observation, Transitions, TransitionSpec
from .points import Units, check_rows, thin
from .simulators import Simulator


@dataclass(frozen=True)
class SimulatedRows:
    """The result of simulating each of N rows; NaN and False for rows that cannot be simulated.

    Attributes:
        dynamics_error: ``[N]`` float64, ``mean_j ((s'_j - sim_j) / std_j)^2`` over the elements of the next
            observation.
        reward_error: ``[N]`` float64, ``((r - sim) / std)^2``.
        terminated: ``[N]`` bool, the simulator's flag.
        simulated: ``[N]`` bool, whether the row could be simulated.
    """

    dynamics_error: Tensor
    reward_error: Tensor
    terminated: Tensor
    simulated: Tensor


@dataclass(frozen=True)
class SimulatorError:
    """Summary of `SimulatedRows`.

    Attributes:
        dynamics_mean, dynamics_median: of the squared error, in [0, inf), lower is better; 1 is the error of always
            predicting the mean next observation.
        reward_mean, reward_median: the same for the reward.
        terminal_agreement: share of rows whose flag is the simulator's, higher is better.
        terminal_precision: share of rows flagged terminal that are terminal in the simulator; NaN if none is flagged.
        terminal_recall: share of rows terminal in the simulator that are flagged; NaN if none is.
        num_rows: rows that were simulated.
        share_simulated: share of the given rows that were simulated; compare errors only of sets with similar shares.
    """

    dynamics_mean: float
    dynamics_median: float
    reward_mean: float
    reward_median: float
    terminal_agreement: float
    terminal_precision: float
    terminal_recall: float
    num_rows: int
    share_simulated: float


def simulate(rows: Transitions, spec: TransitionSpec, simulator: Simulator, real: Transitions) -> SimulatedRows:
    """Take each row's action from its observation in the simulator, and compare the outcome with the row.

    The dynamics error is that of SynthER's figure 5 (Lu et al. 2023), in the units of the real rows.

    Args:
        rows: to simulate, all of them.
        spec: their fields.
        simulator: takes the steps.
        real: rows whose standard deviations are the units.

    Raises:
        ValueError: rows that do not match the spec or are not finite, n-step rows, or a simulator that returns shapes
            different from the rows'.
    """
    check_rows(spec, 1, rows=rows, real=real)
    if len(spec.discounts) > 1:
        raise ValueError("rows are of several steps, which no single step of a simulator can be compared with.")
    following, reward, terminated = simulator.step(_to_numpy(rows.observation), _to_numpy(rows.action))
    answer = Transitions(
        rows.observation, rows.action, _to_tensors(reward), _to_tensors(following), _to_tensors(terminated)
    ).flat()
    given, units = rows.flat(), Units.measure(real, spec)
    differences = {}
    for field in spec.fields:
        if field.name in ("reward", "terminated") or field in spec.next_observation:
            wanted = given[field.name].shape
            if field.name not in answer or answer[field.name].shape != wanted:
                found = f"shape {tuple(answer[field.name].shape)}" if field.name in answer else "nothing"
                raise ValueError(f"the simulator returned {found} as {field.name}; wanted shape {tuple(wanted)}.")
            differences[field.name] = units.difference(field, given[field.name], answer[field.name])
    dynamics = torch.cat([differences[field.name] for field in spec.next_observation], dim=1).square().mean(1)
    rewards = differences["reward"].square().mean(1)
    simulated = torch.isfinite(dynamics) & torch.isfinite(rewards)
    return SimulatedRows(
        torch.where(simulated, dynamics, math.nan),
        torch.where(simulated, rewards, math.nan),
        answer["terminated"].bool() & simulated,
        simulated,
    )


def simulator_error(
    real: Transitions,
    synthetic: Transitions,
    spec: TransitionSpec,
    simulator: Simulator,
    *,
    seed: int = 0,
    max_rows: int = 5_000,
) -> SimulatorError:
    """Errors of dynamics, rewards and terminal flags of at most `max_rows` synthetic rows; see `simulate`.

    Raises:
        ValueError: as `simulate`.
    """
    rows = thin(synthetic, max_rows, seed)
    result = simulate(rows, spec, simulator, real)
    done = result.simulated
    flagged, true = rows.terminated.cpu()[done], result.terminated[done]
    hits = float((flagged & true).sum())
    return SimulatorError(
        dynamics_mean=float(result.dynamics_error[done].mean()),
        dynamics_median=_median(result.dynamics_error[done]),
        reward_mean=float(result.reward_error[done].mean()),
        reward_median=_median(result.reward_error[done]),
        terminal_agreement=float((flagged == true).double().mean()),
        terminal_precision=hits / float(flagged.sum()) if bool(flagged.any()) else math.nan,
        terminal_recall=hits / float(true.sum()) if bool(true.any()) else math.nan,
        num_rows=int(done.sum()),
        share_simulated=float(done.double().mean()),
    )


def _median(values: Tensor) -> float:
    return float(torch.quantile(values, 0.5)) if len(values) else math.nan


def _to_numpy(observation: Observation) -> Any:
    if isinstance(observation, Tensor):
        return observation.cpu().numpy()
    return {key: _to_numpy(value) for key, value in observation.items()}


def _to_tensors(answer: Any) -> Any:
    if isinstance(answer, Mapping):
        return {key: _to_tensors(value) for key, value in answer.items()}
    return torch.as_tensor(np.asarray(answer), device="cpu")
