"""``synther-buffers estimate``: what the refreshes of a run will take on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .names import PRESETS, completion
from .parts import JsonOption, failing, log_to_stderr, usage, write_json

if TYPE_CHECKING:
    from ..transitions import Transitions, TransitionSpec

#: The environment is stepped for so many steps or seconds, whichever comes first.
_STEPS, _SECONDS = 500, 5.0


def estimate(
    env: Annotated[
        str,
        typer.Option(
            help="A Gymnasium environment, like Walker2d-v5; a random policy steps it for a moment.", show_default=False
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Environment steps of the run.", show_default=False)],
    retrain_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="As of the buffer; by default a tenth of the rows, 500 to 10,000.", show_default=False
        ),
    ] = None,
    start_after: Annotated[
        int | None,
        typer.Option(min=1, help="As of the buffer; by default `--retrain-every`, or 1,000.", show_default=False),
    ] = None,
    buffer_size: Annotated[int, typer.Option(min=1, help="Real rows that the buffer holds.")] = 1_000_000,
    num_synthetic: Annotated[
        int | None, typer.Option(min=1, help="As of the buffer; by default it follows the rows.", show_default=False)
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=f"The buffer's `upsampler`: auto (by device), {', '.join(PRESETS)}.",
            autocompletion=completion("auto", *PRESETS),
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto is CUDA where there is one.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of PyTorch on the CPU; by default its own choice.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the refreshes of a run will take here: how many, seconds, memory.

    The speed of this machine is measured for some seconds. What the agent's own gradient steps take is not in it.

        synther-buffers estimate --env Walker2d-v5 --steps 100000 --retrain-every 5000
    """  # fmt: skip
    log_to_stderr(quiet=False)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with failing():
        from ..replay.cost import estimate_cost
        from ..replay.schedule import RefreshSchedule

        spec, rows, per_step = _rows(env)
        with usage():
            found = estimate_cost(
                spec,
                steps,
                rows=rows,
                buffer_size=buffer_size,
                retrain_every=retrain_every,
                start_after=start_after,
                num_synthetic=num_synthetic,
                upsampler=preset,
                upsampler_device=device,
            )
    if as_json:
        write_json({**found.to_dict(), "environment_seconds": per_step * steps})
        return
    if not found.num_refreshes:
        first = RefreshSchedule(retrain_every, start_after, buffer_size).first
        typer.echo(f"no refresh in {steps:,} steps: the first one would come at {first:,}")
        return
    typer.echo(
        f"refreshes: {found.num_refreshes:,} in {steps:,} steps, {_duration(found.seconds)} in all; "
        f"the first {_duration(found.first_seconds)}, the last {_duration(found.last_seconds)}"
    )
    typer.echo(f"memory: about {found.memory_bytes / 2**20:,.0f} MiB beyond the buffer itself, at the last refresh")
    typer.echo(f"for comparison: {_duration(per_step * steps)} in the environment itself")
    typer.echo(f"measured on {found.device} with {torch.get_num_threads()} threads, as busy as the machine is now")


def _rows(name: str) -> tuple[TransitionSpec, Transitions, float]:
    """The spec, some rows of a random policy, and the seconds of a step."""
    import gymnasium
    import numpy as np
    import torch

    from ..transitions import Transitions, TransitionSpec

    with usage():
        try:
            env = gymnasium.make(name)
        except gymnasium.error.Error as error:
            raise ValueError(f"--env is {name!r}: {error}") from error
        spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    written: list[tuple[Any, Any, float, Any, bool]] = []
    start = time.perf_counter()
    while len(written) < _STEPS and time.perf_counter() - start < _SECONDS:
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        written.append((observation, action, float(reward), following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    per_step = (time.perf_counter() - start) / len(written)
    env.close()

    def column(values: Any) -> Any:
        if isinstance(values[0], dict):
            return {key: column([value[key] for value in values]) for key in values[0]}
        return torch.from_numpy(np.array(values))

    observations, actions, rewards, followings, terminals = (list(values) for values in zip(*written, strict=True))
    rows = Transitions(
        column(observations),
        column(actions),
        torch.tensor(rewards, dtype=torch.float32),
        column(followings),
        torch.tensor(terminals, dtype=torch.bool),
    ).flat()
    # Some environments return other dtypes than their spaces say; a buffer stores those of the spaces.
    dtypes = {field.name: field.torch_dtype for field in spec.fields}
    return spec, Transitions.from_flat({name: value.to(dtypes[name]) for name, value in rows.items()}), per_step


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
