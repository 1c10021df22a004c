"""Training steps, regularisation and size of the synthetic set, by the number of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..diffusion.config import TrainingConfig
from ..public_paths import public
from ..validation import positive, whole_number

if TYPE_CHECKING:
    from .presets import UpsamplerConfig

#: With fewer steps nothing is learned, even of few rows.
_FEWEST_STEPS = 100
#: Smaller shares of dropout are not worth its cost, a tenth of a training step's time.
_LEAST_DROPOUT = 0.05
#: Synthetic rows for each real one, and their minimum.
_SYNTHETIC_PER_REAL, _FEWEST_SYNTHETIC = 10, 20_000


@public
@dataclass(frozen=True)
class RowBudget:
    """Scales training steps, regularisation and the synthetic set with the number of rows.

    A denoiser first learns what the rows have in common and then, after a number of steps in proportion to the rows,
    memorises the rows (Bonnaire et al., NeurIPS 2025) and generates copies. So every number of rows gets the same
    number of passes, few rows get more weight decay and dropout, and training keeps the weights with the lowest loss on
    held-out rows (`synther_buffers.diffusion.early_stopping`). Measured in docs/results/few_rows.md.

    Attributes:
        full_rows: with this many rows or more, a fit takes all of its steps.
        few_rows: up to this many rows, weight decay and dropout are as configured; with more rows they fall as the
            steps rise, so that weight decay shrinks a weight by the same factor in every training.
        power: exponent of the number of rows in steps and regularisation.
    """

    full_rows: int = 10_000
    few_rows: int = 2_000
    power: float = 1.0

    def __post_init__(self) -> None:
        """Reject values out of range with an error that names them."""
        for name in ("full_rows", "few_rows"):
            object.__setattr__(self, name, whole_number(f"budget.{name}", getattr(self, name), 1))
        object.__setattr__(self, "power", positive("budget.power", self.power))

    def steps(self, most: int, num_rows: int) -> int:
        """Gradient steps for `num_rows` rows, if `full_rows` rows get `most`."""
        share = min(num_rows / self.full_rows, 1.0) ** self.power
        return max(round(most * share), min(most, _FEWEST_STEPS))

    def regularization(self, num_rows: int) -> float:
        """Factor of weight decay and dropout, in (0, 1]."""
        return min(self.few_rows / num_rows, 1.0) ** self.power


def regularized(config: UpsamplerConfig, num_rows: int) -> TrainingConfig:
    """The training configuration with weight decay and dropout for this number of rows."""
    training = config.training
    if config.budget is None:
        return training
    strength = config.budget.regularization(num_rows)
    dropout = training.dropout * strength
    return replace(
        training,
        weight_decay=training.weight_decay * strength,
        dropout=dropout if dropout >= _LEAST_DROPOUT else 0.0,
    )


def train_steps(config: UpsamplerConfig, num_rows: int) -> int:
    """Gradient steps of a training from scratch."""
    return config.train_steps if config.budget is None else config.budget.steps(config.train_steps, num_rows)


def warm_steps(config: UpsamplerConfig, num_rows: int, num_rows_before: int) -> int:
    """Gradient steps that continue from a model of `num_rows_before` rows: their share is the share of new rows.

    In a full ring buffer the number of rows does not tell how many are new, so `config.warm_steps` is the minimum. The
    steps of a training from scratch are the maximum.
    """
    if config.budget is None:
        return config.warm_steps
    least = config.budget.steps(config.warm_steps, num_rows)
    new = max(1.0 - num_rows_before / num_rows, 0.0)
    scratch = train_steps(config, num_rows)
    return min(max(least, round(new * scratch)), scratch)


def terminal_steps(config: UpsamplerConfig, num_rows: int) -> int:
    """Gradient steps of the classifier of terminal rows."""
    return config.terminal_steps if config.budget is None else config.budget.steps(config.terminal_steps, num_rows)


def synthetic_rows(config: UpsamplerConfig, num_rows: int) -> int:
    """Default size of a synthetic set: `config.num_synthetic`; with a budget, smaller for few rows."""
    if config.budget is None:
        return config.num_synthetic
    return min(max(_SYNTHETIC_PER_REAL * num_rows, _FEWEST_SYNTHETIC), config.num_synthetic)
