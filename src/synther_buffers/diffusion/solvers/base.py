"""The interface of a solver: noise levels, a number of evaluations, and `solve`.

A solver goes down noise levels ``sigma_0 > ... > sigma_{N-1} > sigma_N = 0``, from ``x ~ N(0, sigma_0^2)``. It takes
any callable D, so tests can use one in closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...validation import finite_number, positive, whole_number

#: D, called with ``[n, D]`` rows and a ``[1]`` noise level.
Denoiser = Callable[[Tensor, Tensor], Tensor]
#: New standard normal noise for the current rows, ``[n, D]``.
Noise = Callable[[], Tensor]
#: Called with each noise level of the schedule and the solver's rows there; it must not change them.
Watch = Callable[[float, Tensor], None]


@dataclass(frozen=True)
class Solver(ABC):
    """A solver and its settings.

    Attributes:
        num_steps: noise levels N.
        sigma_min, sigma_max, rho: the schedule of noise levels (Karras et al. 2022, equation 5).
    """

    #: Its name in configuration files.
    name: ClassVar[str]

    num_steps: int
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        object.__setattr__(self, "num_steps", whole_number("sampler.solver.num_steps", self.num_steps, 1))
        object.__setattr__(self, "rho", positive("sampler.solver.rho", self.rho))
        for name in ("sigma_min", "sigma_max"):
            object.__setattr__(self, name, finite_number(f"sampler.solver.{name}", getattr(self, name)))
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sampler.solver.sigma_min={self.sigma_min} and sampler.solver.sigma_max={self.sigma_max}; "
                "wanted 0 < sigma_min < sigma_max."
            )

    def noise_levels(self, sigma_max: float | None = None) -> list[float]:
        """The ``num_steps + 1`` noise levels (Karras et al. 2022, equation 5), descending, the last one 0.

        Args:
            sigma_max: the first level; None for the configured one.
        """
        first = self.sigma_max if sigma_max is None else sigma_max
        if self.num_steps == 1:
            return [first, 0.0]
        low, high = self.sigma_min ** (1 / self.rho), first ** (1 / self.rho)
        shares = (step / (self.num_steps - 1) for step in range(self.num_steps))
        return [*((high + share * (low - high)) ** self.rho for share in shares), 0.0]

    @property
    @abstractmethod
    def num_function_evaluations(self) -> int:
        """Evaluations of D for each row (NFE)."""

    @abstractmethod
    def solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: list[float],
        noise: Noise,
        watch: Watch | None = None,
        corrector: Denoiser | None = None,
    ) -> Tensor:
        """The rows, ``[n, D]``, that noise becomes.

        Args:
            denoiser: D.
            x: ``[n, D]``, drawn from N(0, sigmas[0]^2); it is not written to.
            sigmas: descending noise levels that end with 0.
            noise: source of the noise that a stochastic solver adds.
            watch: called with the rows at every level, including the result at level 0.
            corrector: D of corrections to second order, in a solver that has them; None for `denoiser`.
        """


def level(sigma: float, x: Tensor) -> Tensor:
    """A noise level as the ``[1]`` tensor that D takes, created on the device without a copy from the host."""
    return torch.full((1,), sigma, device=x.device, dtype=x.dtype)
