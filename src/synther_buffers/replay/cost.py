"""What the refreshes of a whole run will take on this machine, before it is started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch

from ..guidance.base import Guidance
from ..guidance.drawing import rows_drawn
from ..public_paths import public
from ..transitions import Transitions, TransitionSpec
from ..upsampling.cost import Speed, measure_speed
from ..upsampling.factory import DiffusionFactory, default_num_synthetic
from ..upsampling.presets import UpsamplerConfig, resolve_device
from ..validation import whole_number
from .holdout import SHARE
from .learnable_rows import MIN_ROWS
from .options import SyntheticKeywords, SyntheticOptions, split_keywords, too_long_interval
from .policy_rows import NUM_POLICY_ROWS
from .schedule import RefreshSchedule, redraw_interval

#: Refreshes that train from scratch. The second one has twice the rows of the first, which mostly leave its
#: normalisation; the later ones mostly continue. In 58 runs of the learning benchmark this rule gives 0.76 to 1.0 times
#: the steps that were taken, by task.
_FROM_SCRATCH = 2
#: Rows that are made up to be measured, and the share of them that are terminal.
_ROWS, _TERMINAL_SHARE = 512, 0.02
#: What a refresh takes for any number of rows: PyTorch's own memory, the network in training, blocks of generated rows.
_LEAST_MEMORY = 150 * 2**20


@public
@dataclass(frozen=True)
class CostEstimate:
    """What the refreshes of a run take, estimated from a measurement on this machine.

    Attributes:
        num_refreshes: in the whole run.
        seconds: wall time of all refreshes, rows with the policy's actions between them included.
        first_seconds, last_seconds: of the first and of the last refresh; 0 if there is none.
        num_synthetic: rows of the last synthetic set.
        memory_bytes: main memory beyond the framework's own buffer, at the peak of the last refresh.
        device: where the upsampler trains.
    """

    num_refreshes: int
    seconds: float
    first_seconds: float
    last_seconds: float
    num_synthetic: int
    memory_bytes: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def estimate_cost(
    spec: TransitionSpec,
    num_steps: int,
    *,
    rows: Transitions | None = None,
    buffer_size: int = 1_000_000,
    **options: Unpack[SyntheticKeywords],
) -> CostEstimate:
    """What the refreshes of a run will take here. It measures the machine's speed for a few seconds.

    The machine should be as busy as in the run, with the same number of threads (`torch.set_num_threads`). What the
    agent and the environment take is not in it, nor is what a guidance takes to find out the relevance. A refresh that
    stops early takes less; one whose data left the model's normalisation starts from scratch and takes more.

    Args:
        spec: of the transitions, as from `TransitionSpec.from_spaces(env.observation_space, env.action_space)`.
        num_steps: environment steps of the run, over all environments.
        rows: some real ones, at least one; None to make rows up. Whether any is terminal matters: without terminal rows
            a refresh trains no classifier of them.
        buffer_size: real rows that the buffer holds.
        options: of the buffer (`SyntheticOptions`): `retrain_every`, `start_after`, `upsampler` and so on.

    Raises:
        ValueError: an option out of range, a buffer that does not hold the rows of an interval between refreshes, or
            rows that do not match the spec.
        TypeError: an unknown option, or an upsampler of your own, whose speed is not known here.
    """
    chosen = SyntheticOptions(**split_keywords("estimate_cost", options)[0])
    num_steps, buffer_size = whole_number("num_steps", num_steps, 1), whole_number("buffer_size", buffer_size, 1)
    if chosen.synthetic_fraction > 0.0 and chosen.retrain_every is not None and chosen.retrain_every > buffer_size:
        raise ValueError(too_long_interval(chosen.retrain_every, f"buffer_size={buffer_size}", "buffer_size"))
    factory = chosen.factory()
    if not isinstance(factory, DiffusionFactory):
        raise TypeError(
            f"upsampler is {chosen.upsampler!r}, whose speed only a run can tell; wanted the name of a preset, an "
            "UpsamplerConfig or a mapping."
        )
    device, config = resolve_device(chosen.upsampler_device), factory.config
    if rows is None:
        rows = _made_up(spec)
    spec.check(rows)
    refreshes = _refreshes(chosen, num_steps, buffer_size) if chosen.synthetic_fraction > 0.0 else []
    learned = [max(round((1.0 - SHARE) * min(observed, buffer_size)), 1) for observed, _ in refreshes]
    if not learned:
        return CostEstimate(0, 0.0, 0.0, 0.0, 0, 0, str(device))
    speed = measure_speed(spec, rows, config, device)
    sizes = [chosen.num_synthetic or default_num_synthetic(factory, count) for count in learned]
    seconds = _seconds(speed, config, learned, [_rows_drawn(chosen, size) for size in sizes])
    return CostEstimate(
        num_refreshes=len(learned),
        seconds=sum(seconds) + _policy_rows(chosen, num_steps, refreshes) * speed.row,
        first_seconds=seconds[0],
        last_seconds=seconds[-1],
        num_synthetic=sizes[-1],
        memory_bytes=_memory(spec, learned[-1], sizes[-1]),
        device=str(device),
    )


def _refreshes(options: SyntheticOptions, num_steps: int, buffer_size: int) -> list[tuple[int, int]]:
    """Real transitions written at each refresh, and from it to the next one."""
    schedule, found = RefreshSchedule(options.retrain_every, options.start_after, buffer_size), []
    while schedule.next_refresh <= num_steps:
        schedule.num_observed = schedule.next_refresh
        if min(schedule.num_observed, buffer_size) >= MIN_ROWS:  # a refresh of fewer rows is skipped
            found.append((schedule.num_observed, schedule.interval(schedule.num_observed)))
        schedule.attempted()
    return found


def _seconds(speed: Speed, config: UpsamplerConfig, learned: list[int], sizes: list[int]) -> list[float]:
    before = [None if refresh < _FROM_SCRATCH else learned[refresh - 1] for refresh in range(len(learned))]
    return [
        speed.refresh_seconds(config, count, size, last)
        for count, size, last in zip(learned, sizes, before, strict=True)
    ]


def _rows_drawn(options: SyntheticOptions, num_synthetic: int) -> int:
    """Rows whose generation takes as long as that of a set."""
    guidance = options.guidance
    return rows_drawn(num_synthetic, guidance.by) if isinstance(guidance, Guidance) else num_synthetic


def _policy_rows(options: SyntheticOptions, num_steps: int, refreshes: list[tuple[int, int]]) -> int:
    """Rows with the policy's actions in the whole run."""
    if options.policy_share == 0.0:
        return 0
    draws = 0
    for observed, interval in refreshes:
        # At the refresh, and then again and again until the next one.
        draws += min(interval - 1, num_steps - observed) // redraw_interval(interval, options.redraw_every) + 1
    return NUM_POLICY_ROWS * draws


def _memory(spec: TransitionSpec, num_rows: int, num_synthetic: int) -> int:
    """Bytes: copies of the rows that are learned, their matrix in float32 and float64, and two synthetic sets."""
    row, columns = spec.empty(1).nbytes, sum(field.width for field in spec.fields)
    return _LEAST_MEMORY + num_rows * (row + 12 * columns) + 2 * num_synthetic * row


def _made_up(spec: TransitionSpec) -> Transitions:
    """Legal rows with values as ordinary as they come; the time of a refresh does not depend on them."""
    draws = torch.Generator().manual_seed(0)
    columns = {}
    for field in spec.fields:
        shape = (_ROWS, field.size)
        if field.kind == "continuous":
            low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (field.low, field.high))
            value = torch.randn(shape, generator=draws, dtype=torch.float64).clamp(low, high)
        elif field.kind == "binary":
            value = (torch.rand(shape, generator=draws) < (_TERMINAL_SHARE if field.name == "terminated" else 0.5)) + 0
        else:
            count = torch.tensor(field.num_categories)
            index = (torch.rand((_ROWS, len(count)), generator=draws) * count).long()
            value = torch.tensor(field.values)[index] if field.values else index + torch.tensor(field.start)
        columns[field.name] = value.to(field.torch_dtype).reshape(_ROWS, *field.shape)
    return Transitions.from_flat(columns)
