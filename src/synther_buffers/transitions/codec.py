"""Between transitions and the float matrix the diffusion model sees: flatten, one-hot, normalise, and back.

The matrix has one column per element of a continuous or binary field and one per category of a categorical one; its
width depends on the spec (and on whether terminals are modelled), never on the data. Two things are learned from data:

* the *frame*, how continuous columns are normalised: the denoiser's weights are only meaningful in it, so it is fixed
  when training starts afresh and kept as long as training continues;
* the *support*, what legal values look like (ranges, the few values of a few-valued column, rates of ones): it only
  matters when rows are decoded, so it follows the data at every fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .transitions import Field, Transitions, TransitionSpec

#: A normalised column with values beyond this is heavy-tailed and gets compressed by asinh, to values within it.
HEAVY_TAIL = 8.0
#: A float column with at most this many distinct values gets exactly those values back.
FEW_VALUES = 16
#: A continuous column whose smallest or largest value is at least this share of the rows, and in at least so many of
#: them, has that value by a limit (clipped velocities, saturated actions), and gets it back exactly as often.
LIMIT_SHARE, LIMIT_ROWS = 0.002, 8
#: Relative to the values: what varies or moves by less only does so by rounding.
_ROUNDING = 1e-9
#: Rows per chunk when statistics are taken, in float64.
_CHUNK = 65_536


@dataclass(frozen=True)
class _Block:
    """Where one field lies in the matrix."""

    field: Field
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)


@dataclass
class Frame:
    """Normalisation of the matrix's columns, all ``[D]`` float64: ``x = (f((raw - mean) / scale)) / spread``.

    ``f`` is asinh in heavy-tailed columns and the identity elsewhere; ``spread`` brings the compressed columns back
    to unit variance, or to less where a few rare values would lie beyond `HEAVY_TAIL`. Constant columns have scale 0
    and are always 0 in the matrix.
    """

    mean: Tensor
    scale: Tensor
    heavy: Tensor
    spread: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))


class Codec:
    """Encodes transitions of a spec as float32 rows ``[N, D]`` and decodes such rows into legal transitions.

    Args:
        spec: the fields.
        next_observation_change: model the next observation's float elements as the change from the observation. The
            published code models the next observation itself; the change keeps one-step dynamics sharper because
            its normalised noise is small against the step, not against the range of the observation.
        normalize_reward: z-score the reward as any other column (Gym); if False leave it as it is (DMC).
        model_terminals: have a column for `terminated` (Gym); if False no synthetic row is terminal (DMC).
    """

    def __init__(
        self,
        spec: TransitionSpec,
        *,
        next_observation_change: bool = True,
        normalize_reward: bool = True,
        model_terminals: bool = True,
    ) -> None:
        self.spec = spec
        self.next_observation_change = next_observation_change
        self.normalize_reward = normalize_reward
        self.model_terminals = model_terminals
        self._blocks: list[_Block] = []
        start = 0
        for field in spec.fields:
            if field.name == "terminated" and not model_terminals:
                continue
            width = sum(field.num_categories) if field.kind == "categorical" else field.size
            self._blocks.append(_Block(field, start, start + width))
            start += width
        self.dim = start
        self.frame: Frame | None = None
        self.support: dict[str, _Support] = {}

    # -- learning from data ------------------------------------------------------------------------------------------

    def fit_frame(self, transitions: Transitions) -> None:
        """Take the normalisation from the data (two passes in float64)."""
        self.frame = self._measure_frame(transitions)

    def fit_support(self, transitions: Transitions) -> None:
        """Take ranges, few-valued columns and rates of ones from the data."""
        columns = transitions.flat()
        self.support = {
            block.field.name: _Support.measure(block.field, columns[block.field.name])
            for block in self._blocks
            if block.field.kind != "categorical"
        }

    def frame_drift(self, transitions: Transitions) -> float:
        """How far the data have moved from the frame: 0 not at all, 1 about as far as a warm start should follow.

        The largest over columns of the mean's shift in frame units, and of the log-ratio of the scales to base 3.
        Infinite where a column that was constant now varies.
        """
        if self.frame is None:
            return math.inf
        now = self._measure_frame(transitions)
        was, constant = self.frame, self.frame.scale == 0
        moved = (now.mean - was.mean).abs() > _ROUNDING * torch.maximum(now.mean.abs(), was.mean.abs())
        if bool((constant & ((now.scale > 0) | moved)).any()):
            return math.inf
        old_scale = torch.where(constant, 1.0, was.scale)
        shift = (now.mean - was.mean).abs() / old_scale
        ratio = torch.where(now.scale > 0, (now.scale / old_scale).log().abs() / math.log(3.0), 0.0)
        return float(torch.maximum(shift, ratio)[~constant].max()) if bool((~constant).any()) else 0.0

    def _measure_frame(self, transitions: Transitions) -> Frame:
        total = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
        low = torch.full((self.dim,), math.inf, dtype=torch.float64, device="cpu")
        high = -low
        for raw in self._raw_chunks(transitions):
            total += raw.sum(0)
            low = torch.minimum(low, raw.amin(0))
            high = torch.maximum(high, raw.amax(0))
        mean = total / len(transitions)
        squares = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
        for raw in self._raw_chunks(transitions):
            squares += (raw - mean).square().sum(0)
        scale = (squares / len(transitions)).sqrt()
        constant = low == high
        # A difference of floats is never exactly constant: what only varies by rounding counts as constant.
        constant |= scale <= _ROUNDING * torch.maximum(low.abs(), high.abs())
        mean = torch.where(low == high, low, mean)
        scale = torch.where(constant, 0.0, scale)

        fixed = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        for block in self._blocks:
            if block.field.kind != "continuous" or (block.field.name == "reward" and not self.normalize_reward):
                fixed[block.columns] = True
        mean = torch.where(fixed, 0.0, mean)
        scale = torch.where(fixed, 1.0, scale)

        safe = torch.where(scale == 0, 1.0, scale)
        extreme = torch.maximum((low - mean).abs(), (high - mean).abs()) / safe
        heavy = (extreme > HEAVY_TAIL) & ~fixed & (scale > 0)
        spread = torch.ones(self.dim, dtype=torch.float64, device="cpu")
        if bool(heavy.any()):
            # The compressed column is not centred exactly; its root mean square is what should be 1. One flag in
            # 50,000 rows would still lie 220 of them out.
            moment = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
            for raw in self._raw_chunks(transitions):
                moment += _compress((raw - mean) / safe).square().sum(0)
            bounded = torch.maximum((moment / len(transitions)).sqrt(), _compress(extreme) / HEAVY_TAIL)
            spread = torch.where(heavy, bounded, spread)
        return Frame(mean, scale, heavy, spread)

    # -- encoding ----------------------------------------------------------------------------------------------------

    def encode(self, transitions: Transitions, device: torch.device | str = "cpu") -> Tensor:
        """The rows as a normalised float32 matrix ``[N, D]`` on `device`."""
        frame = self._frame()
        out = torch.empty((len(transitions), self.dim), dtype=torch.float32, device=device)
        safe = torch.where(frame.scale == 0, 1.0, frame.scale)
        row = 0
        for raw in self._raw_chunks(transitions):
            x = (raw - frame.mean) / safe
            x = torch.where(frame.heavy, _compress(x), x) / frame.spread
            x[:, frame.scale == 0] = 0.0
            out[row : row + len(x)] = x.to(out)
            row += len(x)
        return out

    def _raw_chunks(self, transitions: Transitions) -> Iterator[Tensor]:
        """The unnormalised matrix in float64 on the CPU, a chunk of rows at a time."""
        columns = transitions.flat()
        for start in range(0, len(transitions), _CHUNK):
            rows = {name: tensor[start : start + _CHUNK].cpu() for name, tensor in columns.items()}
            parts = []
            for block in self._blocks:
                field = block.field
                value = rows[field.name].reshape(len(rows["reward"]), -1)
                if field.kind == "categorical":
                    parts.append(_one_hot(field, value))
                elif field.kind == "binary":
                    parts.append(value.double() * 2.0 - 1.0)
                elif self._is_change(field):
                    parts.append(value.double() - rows[_previous(field)].reshape(len(value), -1).double())
                else:
                    parts.append(value.double())
            yield torch.cat(parts, dim=1)

    def _is_change(self, field: Field) -> bool:
        return self.next_observation_change and field.kind == "continuous" and field.name.startswith("next_observation")

    # -- decoding ----------------------------------------------------------------------------------------------------

    def decode(self, matrix: Tensor, out: Transitions, decisions: Decisions) -> None:
        """Write the rows of a float32 matrix ``[n, D]`` into `out`, n rows of this spec, as legal transitions.

        `decisions` holds the thresholds that turn model outputs into few-valued and binary columns. `terminated`
        comes out False: `DiffusionUpsampler` draws it from the whole decoded row.
        """
        columns = out.flat()
        raw = self._denormalize(matrix)
        decoded: dict[str, Tensor] = {}
        for block in self._blocks:
            field = block.field
            if field.name == "terminated":
                continue
            value = raw[:, block.columns]
            if field.kind == "categorical":
                decoded[field.name] = _from_one_hot(field, value)
            elif field.kind == "binary":
                decoded[field.name] = value > decisions.binary[field.name].to(value)
            else:
                if self._is_change(field):
                    # The observation as decoded, so that s' - s is what the model meant.
                    value = value + decoded[_previous(field)].to(value.dtype)
                decoded[field.name] = self._legalize(field, value, decisions)
        for field in self.spec.fields:
            target = columns[field.name]
            if field.name == "terminated":
                target.zero_()
                continue
            target.copy_(decoded[field.name].reshape(target.shape))

    def decide(self, matrix: Tensor) -> Decisions:
        """Thresholds under which these generated rows ``[n, D]`` have the data's rates of ones, few values and limits.

        They lie on the CPU, like all that the codec knows.

        A threshold halfway between two values starves the rarer one, because a model that is unsure answers with the
        mean. Ranking the rows by the model's answer and cutting at the data's rate keeps the rate and the order.
        """
        raw = self._denormalize(matrix)
        decisions = Decisions({}, {}, {})
        absolute: dict[str, Tensor] = {}
        for block in self._blocks:
            field, value = block.field, raw[:, block.columns]
            if field.kind == "categorical":
                absolute[field.name] = _from_one_hot(field, value)
                continue
            if self._is_change(field):
                value = value + absolute[_previous(field)].reshape(value.shape).to(value.dtype)
            support = self.support[field.name]
            if field.kind == "binary":
                decisions.binary[field.name] = _column_quantiles(value, 1.0 - support.rate)
                continue
            decisions.few_valued[field.name] = {
                column: torch.quantile(value[:, column], cumulative.to(value)).cpu()
                for column, (_, cumulative) in support.values.items()
            }
            at_low, at_high = support.limits
            decisions.limits[field.name] = (_column_quantiles(value, at_low), _column_quantiles(value, 1.0 - at_high))
            absolute[field.name] = self._legalize(field, value, decisions)
        return decisions

    def _legalize(self, field: Field, value: Tensor, decisions: Decisions) -> Tensor:
        """Values of a continuous field as they can occur in its rows."""
        value = self.support[field.name].legalize(
            value, decisions.few_valued.get(field.name), decisions.limits.get(field.name)
        )
        # Writing into a tensor of integers truncates.
        return value if field.torch_dtype.is_floating_point else value.round()

    def _denormalize(self, matrix: Tensor) -> Tensor:
        """Model outputs in the units of the data, float64 on their own device."""
        frame = self._frame()
        mean, scale, spread = (tensor.to(matrix.device) for tensor in (frame.mean, frame.scale, frame.spread))
        x = matrix.double() * spread
        heavy = frame.heavy.to(matrix.device)
        if bool(frame.heavy.any()):
            x = torch.where(heavy, _expand(x), x)
        return x * scale + mean

    def _frame(self) -> Frame:
        if self.frame is None:
            raise RuntimeError("the codec has not seen any data yet: fit it first.")
        return self.frame

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Frame and support, as CPU tensors and plain data."""
        return {
            "frame": None if self.frame is None else self.frame.state_dict(),
            "support": {name: support.state_dict() for name, support in self.support.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.frame = None if state["frame"] is None else Frame(**state["frame"])
        self.support = {name: _Support(**support) for name, support in state["support"].items()}


@dataclass
class Decisions:
    """Thresholds of decoding.

    Attributes:
        binary: of a field, ``[size]``.
        few_valued: of a field's few-valued columns, ascending.
        limits: of a continuous field, the values up to which a row is at the lower limit and above which it is at the
            upper one, ``[size]`` each.
    """

    binary: dict[str, Tensor]
    few_valued: dict[str, dict[int, Tensor]]
    limits: dict[str, tuple[Tensor, Tensor]]


@dataclass
class _Support:
    """What the values of one field look like in the data.

    Attributes:
        low, high: observed range per element, ``[size]`` float64, within the field's own bounds.
        rate: share of ones per element (binary).
        values: element -> (its few distinct values ascending, cumulative shares of all but the last).
        limits: share of rows at `low` and at `high` per element, ``[2, size]``, 0 where that is no limit (continuous).
    """

    low: Tensor
    high: Tensor
    rate: Tensor
    values: dict[int, tuple[Tensor, Tensor]]
    limits: Tensor

    @classmethod
    def measure(cls, field: Field, tensor: Tensor) -> _Support:
        value = tensor.reshape(len(tensor), -1)
        if not value.is_floating_point():
            value = value.double()  # torch cannot reduce or sort some integers, uint16 for one
        low, high = value.amin(0).double().cpu(), value.amax(0).double().cpu()
        rate = value.sum(0, dtype=torch.float64).cpu() / len(value)
        values: dict[int, tuple[Tensor, Tensor]] = {}
        limits = torch.zeros((2, value.shape[1]), dtype=torch.float64, device="cpu")
        if field.kind == "continuous":
            if field.low and field.name == "action":
                low = torch.maximum(low, torch.tensor(field.low, dtype=torch.float64, device="cpu"))
                high = torch.minimum(high, torch.tensor(field.high, dtype=torch.float64, device="cpu"))
            first = value[: 4 * FEW_VALUES**2]
            for column in range(value.shape[1]):
                # Most columns show too many values in their first rows; only the others are worth a full sort.
                if len(torch.unique(first[:, column])) > FEW_VALUES:
                    continue
                distinct, counts = torch.unique(value[:, column], return_counts=True)
                if len(distinct) <= min(FEW_VALUES, len(value) // 8):
                    shares = counts.double().cpu().cumsum(0)[:-1] / len(value)
                    values[column] = (distinct.double().cpu().clamp(low[column], high[column]), shares)
            at = torch.stack(((value <= low.to(value)).sum(0), (value >= high.to(value)).sum(0))).double().cpu()
            limits = torch.where(at >= max(LIMIT_ROWS, LIMIT_SHARE * len(value)), at / len(value), 0.0)
            limits[:, low == high] = 0.0
            limits[:, list(values)] = 0.0
        return cls(low, high, rate, values, limits)

    def legalize(self, value: Tensor, cuts: dict[int, Tensor] | None, limits: tuple[Tensor, Tensor] | None) -> Tensor:
        """Clip to the range, and give columns with limits or of few values these values back."""
        if limits is not None:
            value = torch.where(value <= limits[0].to(value), -math.inf, value)
            value = torch.where(value > limits[1].to(value), math.inf, value)
        value = torch.minimum(torch.maximum(value, self.low.to(value)), self.high.to(value))
        for column, (distinct, _) in self.values.items():
            bins = torch.zeros(len(value), dtype=torch.int64, device=value.device)
            if cuts is not None and column in cuts:
                bins = torch.searchsorted(cuts[column].to(value), value[:, column].contiguous())
            value[:, column] = distinct.to(value)[bins]
        return value

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def _previous(field: Field) -> str:
    """The observation's field that belongs to a field of the next observation."""
    return field.name.removeprefix("next_")


def _compress(x: Tensor) -> Tensor:
    """asinh: linear around 0, logarithmic in the tails, exactly invertible."""
    return torch.asinh(x)


def _expand(x: Tensor) -> Tensor:
    # Generated values may overshoot; sinh of a large one would overflow before the range clips it.
    return torch.sinh(x.clamp(-40.0, 40.0))


def _one_hot(field: Field, value: Tensor) -> Tensor:
    """Categories ``[n, size]`` as columns of -1 and 1, ``[n, sum(num_categories)]``."""
    parts = []
    for element, count in enumerate(field.num_categories):
        if field.values:
            table = torch.tensor(field.values, dtype=torch.float64, device="cpu")
            distance = (value[:, element, None].double() - table).abs()
            index = distance.argmin(1)
            legal = bool((distance.amin(1) <= 1e-5 * table.abs().amax()).all())
        else:
            index = value[:, element].long() - field.start[element]
            legal = bool(((index >= 0) & (index < count)).all())
        if not legal:
            wanted = field.values or f"{field.start[element]} to {field.start[element] + count - 1}"
            raise ValueError(
                f"{field.name}[{element}] holds values outside its categories ({wanted}); found "
                f"{value[:, element].min().item()} to {value[:, element].max().item()}. "
                "Check that the spec matches the data."
            )
        parts.append(torch.nn.functional.one_hot(index, count).double() * 2.0 - 1.0)
    return torch.cat(parts, dim=1)


def _from_one_hot(field: Field, value: Tensor) -> Tensor:
    """The category with the largest column, ``[n, size]``, in the field's own values."""
    parts = []
    for element, scores in enumerate(torch.split(value, list(field.num_categories), dim=1)):
        index = scores.argmax(1)
        parts.append(
            torch.tensor(field.values, device=value.device)[index] if field.values else index + field.start[element]
        )
    return torch.stack(parts, dim=1)


def _column_quantiles(value: Tensor, probability: Tensor) -> Tensor:
    """For each column j of ``[n, size]`` the value that a share ``probability[j]`` of the rows does not exceed.

    On the CPU, like `probability`.
    """
    ordered = value.sort(dim=0).values
    probability = probability.to(value)
    position = (probability * len(value)).round().long() - 1
    cut = ordered.gather(0, position.clamp(min=0)[None])[0]
    cut = torch.where(position < 0, -math.inf, cut)
    # A column that is always 0 in the data stays so in rows that exceed every one of these.
    return torch.where(probability == 1.0, math.inf, cut).cpu()
