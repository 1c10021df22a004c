"""Ours beside the published SynthER code: a training step and a generated row, in turn on the same machine.

    git clone https://github.com/conglu1997/SynthER /tmp/SynthER
    git -C /tmp/SynthER checkout e6835a54e85a5614b54bb6c582007f4580334031     # the commit that was measured
    pip install einops ema-pytorch accelerate gin-config
    python benchmarks/published.py --source /tmp/SynthER [--toy]

Its classes run unchanged, configured by its own config/online/sac_synther_openai.gin, on columns of Walker2d's sizes
(17 + 6 + 1 + 17 + 1 = 42). What its modules import but these classes do not use (environments, an ODE solver) and its
logging to a server are replaced by empty stand-ins, REDQ's replay buffer by one that draws rows as REDQ does.

That both compute the same is checked before anything is timed: the same number of weights; and from the same weights,
rows and noise the same loss, gradient and, without churn, generated rows, but for rounding.

What is timed of it:

- step: `REDQTrainer.train_on_batch`, which is loss, backward, clipping, optimiser, moving average and schedule
- bare step: the same without what accelerate and its trainer wrap around it
- online loop: `REDQTrainer.train_from_redq_buffer`, which is steps on batches out of the replay buffer
- offline loop: `Trainer.train`, which is steps on batches of its DataLoader, with the sizes of the online configuration
- row: `SimpleDiffusionGenerator.sample` of few rows, from all 128 noise levels (255 evaluations)
- evaluation of a row in its batch: the same in its own batch of 100,000 rows from two levels (3 evaluations)

and of ours `train_denoiser` and `DiffusionUpsampler.sample`, decoding and terminals included, each of the preset
that is named: ``default`` is what ``auto`` stands for on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from measuring import alternate, denoiser_of, machine, use_settings, write
from torch import Tensor

from synther_buffers import PRESETS, DiffusionUpsampler, Transitions, TransitionSpec, UpsamplerConfig
from synther_buffers.diffusion.edm import Preconditioner, denoising_loss
from synther_buffers.diffusion.solvers import HeunSolver
from synther_buffers.diffusion.training import train_denoiser
from synther_buffers.upsampling.presets import resolve_config, resolve_device

OBSERVATION, ACTION = 17, 6
#: Module that its training steps run through, and the package it comes from.
NEEDED = {"einops": "einops", "ema_pytorch": "ema-pytorch", "accelerate": "accelerate", "gin": "gin-config"}
#: What its modules import and nothing here calls, but for `wandb.log`, which then does nothing.
UNUSED = {
    "d4rl": [],
    "gym": ["Env"],
    "gym.wrappers": [],
    "gym.wrappers.flatten_observation": ["FlattenObservation"],
    "redq": [],
    "redq.algos": [],
    "redq.algos.core": ["ReplayBuffer"],
    "torchdiffeq": ["odeint"],
    "wandb": ["log"],
}
#: The relative differences that rounding allows.
ROUNDING = 1e-4
DIFFERENCES = ("loss", "gradient", "samples")


class ReplayBuffer:
    """What its online loop asks of REDQ's replay buffer: NumPy arrays, and uniform batches of their rows."""

    def __init__(self, rows: np.ndarray) -> None:
        """`rows` is ``[N, 42]`` float32: observation, action, reward, next observation, terminal."""
        self.ptr = len(rows)
        ends = np.cumsum([OBSERVATION, ACTION, 1, OBSERVATION])
        parts = [np.ascontiguousarray(part) for part in np.split(rows, ends, axis=1)]
        self.obs1_buf, self.acts_buf, self.obs2_buf = parts[0], parts[1], parts[3]
        self.rews_buf, self.done_buf = parts[2][:, 0], parts[4][:, 0]

    def sample_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        index = np.random.randint(0, self.ptr, size=batch_size)  # noqa: NPY002 -- REDQ draws from the global stream
        return {
            "obs1": self.obs1_buf[index],
            "obs2": self.obs2_buf[index],
            "acts": self.acts_buf[index],
            "rews": self.rews_buf[index],
            "done": self.done_buf[index],
        }


class Published:
    """The published model, its two trainers and its generator, as its scripts put them together.

    Args:
        source: a clone of its repository.
        rows: ``[N, 42]`` float32 on the CPU, not normalised.
        folder: where its trainers may write.
    """

    def __init__(self, source: Path, rows: Tensor, folder: str) -> None:
        for name in NEEDED:
            importlib.import_module(name)  # before the stand-ins, which some of these would look at
        for name, attributes in UNUSED.items():
            module = sys.modules[name] = module_from_spec(ModuleSpec(name, None))
            for attribute in attributes:
                setattr(module, attribute, lambda *_, **__: None)
        sys.path.insert(0, str(source))
        gin = importlib.import_module("gin")
        diffusion = importlib.import_module("synther.diffusion.elucidated_diffusion")
        utils = importlib.import_module("synther.diffusion.utils")
        self._generators = importlib.import_module("synther.diffusion.train_diffuser")
        with contextlib.chdir(source):  # its configuration includes others by relative paths
            gin.parse_config_files_and_bindings(["config/online/sac_synther_openai.gin"], [], skip_unknown=True)
        self.config = gin.config_str()
        self.buffer = ReplayBuffer(rows.numpy())

        def model() -> Any:
            return utils.construct_diffusion_model(
                inputs=torch.zeros(128, rows.shape[1]), skip_dims=[], disable_terminal_norm=True
            )

        self.model = model()
        self.online = diffusion.REDQTrainer(self.model, results_folder=folder, model_terminals=True)
        self.device = self.online.accelerator.device
        self.online.update_normalizer(self.buffer, device=self.device)
        offline_model = model()
        offline_model.normalizer.reset(rows)
        steps, batch_size = self.online.train_num_steps, self.online.batch_size
        self.offline = diffusion.Trainer(
            offline_model,
            torch.utils.data.TensorDataset(rows),
            train_batch_size=batch_size,
            small_batch_size=batch_size,
            train_lr=3e-4,
            lr_scheduler="cosine",
            train_num_steps=steps,
            save_and_sample_every=steps,
            results_folder=folder,
            use_gpu=self.device.type != "cpu",
        )
        self.batch = rows[:batch_size]

    def step(self) -> None:
        self.online.train_on_batch(self.batch, use_wandb=False)

    def bare_step(self) -> None:
        """Its loss, optimiser, clipping, moving average and schedule, without what its trainer wraps around them."""
        online = self.online
        self.model(self.batch.to(self.device)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        online.opt.optimizer.step()
        online.opt.optimizer.zero_grad()
        online.ema.update()
        online.lr_scheduler.step()

    def train_online(self, num_steps: int) -> None:
        with quiet():
            self.online.train_from_redq_buffer(self.buffer, num_steps)

    def train_offline(self, num_steps: int) -> None:
        self.offline.train_num_steps = self.offline.step + num_steps
        with quiet():
            self.offline.train()

    def sample(self, num_rows: int, num_steps: int) -> None:
        """`num_rows` in one batch, from `num_steps` noise levels."""
        env = SimpleNamespace(
            observation_space=SimpleNamespace(shape=(OBSERVATION,)), action_space=SimpleNamespace(shape=(ACTION,))
        )
        with quiet():
            self._generators.SimpleDiffusionGenerator(
                env, self.online.ema.ema_model, num_sample_steps=num_steps, sample_batch_size=num_rows
            ).sample(num_rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout or stderr."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its network's tensors under our names."""
    names = {
        "proj": "row_in",
        "time_mlp.1": "noise_in",
        "time_mlp.3": "noise_out",
        "residual_mlp.network.0": "widen",
        "residual_mlp.final_linear": "out",
    }
    out = {}
    for name, tensor in state.items():
        if name == "time_mlp.0.weights":
            out["frequencies"] = 2.0 * torch.pi * tensor  # it multiplies by 2 pi in every evaluation
            continue
        module, kind = name.rsplit(".", 1)
        if module.endswith(".linear"):  # residual_mlp.network.<1 + layer>.linear
            module = f"layers.{int(module.split('.')[2]) - 1}"
        out[f"{names.get(module, module)}.{kind}"] = tensor
    return out


def agreement(theirs: Any, rows: Tensor, config: UpsamplerConfig) -> dict[str, float | int]:
    """Relative differences of loss, gradient and generated rows, computed by both from the same weights and noise."""
    rows = rows.to(theirs.device)
    ours = denoiser_of(config, rows)
    ours.network.load_state_dict(renamed(theirs.net.state_dict()))
    torch.manual_seed(0)
    their_loss = theirs(rows)
    torch.manual_seed(0)  # it draws the levels first, then the noise
    sigma = (theirs.P_mean + theirs.P_std * torch.randn(len(rows), device=rows.device)).exp()
    noise = torch.randn_like(rows)
    our_loss = denoising_loss(ours, theirs.normalizer.normalize(rows), noise, sigma)
    their_loss.backward()
    our_loss.backward()
    gradients = renamed({name: weight.grad for name, weight in theirs.net.named_parameters() if weight.requires_grad})
    theirs.zero_grad()
    their_gradient = torch.cat([gradients[name].flatten() for name, _ in ours.network.named_parameters()])
    our_gradient = torch.cat([weight.grad.flatten() for weight in ours.network.parameters()])

    churn, theirs.S_churn = theirs.S_churn, 0.0  # Heun's method without noise can be compared row by row
    torch.manual_seed(0)
    generated = theirs.sample(len(rows), num_sample_steps=16, clamp=False, disable_tqdm=True)
    theirs.S_churn = churn
    torch.manual_seed(0)
    solver = HeunSolver(16, theirs.sigma_min, theirs.sigma_max, theirs.rho, s_churn=0.0)
    sigmas = solver.noise_levels()
    start = sigmas[0] * torch.randn_like(rows)
    with torch.no_grad():
        ends = solver.solve(ours, start, sigmas, lambda: torch.randn_like(rows))
    return {
        "their_weights": sum(weight.numel() for weight in theirs.net.parameters() if weight.requires_grad),
        "our_weights": sum(weight.numel() for weight in ours.network.parameters()),
        "their_loss": their_loss.item(),
        "our_loss": our_loss.item(),
        "loss": abs(our_loss.item() / their_loss.item() - 1.0),
        "gradient": ((our_gradient - their_gradient).norm() / their_gradient.norm()).item(),
        "samples": ((theirs.normalizer.unnormalize(ends) - generated).norm() / generated.norm()).item(),
    }


def artificial_rows(num_rows: int) -> Tensor:
    """``[N, 42]``: correlated normal columns of several scales, and a terminal in one row of a hundred."""
    generator = torch.Generator().manual_seed(0)
    width = 2 * OBSERVATION + ACTION + 1
    mixing = torch.randn(width, width, generator=generator)
    rows = torch.randn(num_rows, width, generator=generator) @ mixing + 3.0
    terminal = (torch.rand(num_rows, 1, generator=generator) < 0.01).float()
    return torch.cat((rows, terminal), dim=1)


def our_upsampler(rows: Tensor, config: UpsamplerConfig, device: torch.device) -> DiffusionUpsampler:
    """An upsampler of a configuration that can sample; the time of that does not depend on how well it was trained."""
    observation, action, reward, following, terminal = rows.split((OBSERVATION, ACTION, 1, OBSERVATION, 1), dim=1)
    transitions = Transitions(observation, action.tanh(), reward[:, 0], following, terminal[:, 0] > 0.5)
    spec = TransitionSpec.from_spaces(
        spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32), spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
    )
    # A fit generates rows as well, to measure thresholds on: here with one level, and all of them afterwards.
    one_level = replace(config.sampler, solver=replace(config.sampler.solver, num_steps=1))
    short = replace(config, train_steps=1, terminal_steps=1, sampler=one_level)
    upsampler = DiffusionUpsampler(spec, short, device)
    upsampler.fit(transitions)
    use_settings(upsampler, config)
    return upsampler


def our_training(
    denoiser: Preconditioner, encoded: Tensor, config: UpsamplerConfig, steps: int
) -> Callable[[], object]:
    """A call that takes `steps` training steps."""
    generator = torch.Generator(encoded.device).manual_seed(0)
    return lambda: train_denoiser(denoiser, encoded, steps, config.training, generator)


def compare(
    name: str, their: Callable[[], object], our: Callable[[], object], theirs_per: int, ours_per: int, rounds: int
) -> dict[str, float]:
    """Median seconds of both for one of the steps, rows or evaluations that a call takes, and their ratio."""
    medians = alternate(their, our, 1, rounds)
    theirs, ours = medians[0] / theirs_per, medians[1] / ours_per
    print(f"{name:<48}{theirs:>11.3e}{ours:>11.3e}{theirs / ours:>8.2f}", flush=True)
    return {"published_seconds": theirs, "our_seconds": ours, "ratio": theirs / ours}


def measure(theirs: Published, rows: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All timings by name; the name says what of ours stands against what of theirs."""
    device = resolve_device("auto")
    paper, default = resolve_config("paper-online", device), resolve_config("auto", device)
    encoded = theirs.model.normalizer.normalize(rows.to(device))
    steps, samples, batch, levels = args.steps, args.samples, args.batch, args.levels
    our_steps = our_training(denoiser_of(paper, encoded), encoded, paper, steps)
    our_default_steps = our_training(denoiser_of(default, encoded), encoded, default, steps)

    def their_steps() -> None:
        for _ in range(steps):
            theirs.step()

    def their_bare_steps() -> None:
        for _ in range(steps):
            theirs.bare_step()

    few, two, own = (
        our_upsampler(rows, config, device)
        for config in (
            replace(paper, sampler=replace(paper.sampler, solver=replace(paper.sampler.solver, num_steps=levels))),
            replace(paper, sampler=replace(paper.sampler, solver=replace(paper.sampler.solver, num_steps=2))),
            default,
        )
    )
    many = 32 * samples  # ours takes 16,384 rows at a time on a CPU
    evaluations = batch * HeunSolver(2).num_function_evaluations
    per_step = (steps, steps, args.rounds)
    print(f"\n{'seconds':<48}{'published':>11}{'ours':>11}{'ratio':>8}")
    return {
        name: compare(name, *calls)
        for name, calls in {
            "step: paper-online": (their_steps, our_steps, *per_step),
            "step: default": (their_steps, our_default_steps, *per_step),
            "bare step: paper-online": (their_bare_steps, our_steps, *per_step),
            "online loop: paper-online": (lambda: theirs.train_online(steps), our_steps, *per_step),
            "offline loop: paper-online": (lambda: theirs.train_offline(steps), our_steps, *per_step),
            "row: paper-online": (
                lambda: theirs.sample(samples, levels), lambda: few.sample(samples), samples, samples, args.rounds
            ),
            "row: default": (
                lambda: theirs.sample(samples, levels), lambda: own.sample(many), samples, many, args.rounds
            ),
            "evaluation of a row in its batch: paper-online": (
                lambda: theirs.sample(batch, 2), lambda: two.sample(batch), evaluations, evaluations, 1
            ),
        }.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="a clone of https://github.com/conglu1997/SynthER")
    parser.add_argument("--rows", type=int, default=50_000, help="of the data that is learned")
    parser.add_argument("--samples", type=int, default=512, help="rows to generate from all noise levels")
    parser.add_argument("--steps", type=int, default=50, help="training steps in one timing")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each")
    parser.add_argument("--toy", action="store_true", help="few steps and rows only, to see that it runs")
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/published.json)")
    args = parser.parse_args()
    args.batch, args.levels = 100_000, 128
    if args.toy:
        args.rows, args.samples, args.batch, args.steps, args.rounds, args.levels = 2_000, 64, 128, 2, 1, 4
    if args.source is None:
        print("nothing measured: give --source, a clone of https://github.com/conglu1997/SynthER.")
        return
    if not (args.source / "synther" / "diffusion" / "elucidated_diffusion.py").is_file():
        parser.error(
            f"--source is {args.source}, which has no synther/diffusion/elucidated_diffusion.py; wanted a clone."
        )
    commit = subprocess.run(
        ["git", "-C", args.source, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True,
    )  # fmt: skip
    if commit.returncode:
        parser.error(f"--source is {args.source}, whose commit git cannot tell ({commit.stderr.strip()}); clone it.")
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        parser.error(f"the published code needs packages that are not here: pip install {' '.join(missing)}")
    print(machine())
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- its loop draws from the global stream
    rows = artificial_rows(args.rows)
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            theirs = Published(args.source.resolve(), rows, folder)
        same = agreement(theirs.model, theirs.batch, PRESETS["paper-online"])
        print("\n".join(f"{name:<16}{value:>14.8g}" for name, value in same.items()))
        if same["their_weights"] != same["our_weights"] or max(same[name] for name in DIFFERENCES) > ROUNDING:
            raise SystemExit("the published code and ours do not compute the same; their times cannot be compared.")
        timings = measure(theirs, rows, args)
    hours = {
        "100,000 steps": 100_000 * timings["online loop: paper-online"]["published_seconds"] / 3600,
        "1,000,000 rows": 1_000_000 * timings["row: paper-online"]["published_seconds"] / 3600,
    }
    print("\na refresh of the published code, extrapolated: " + ", ".join(f"{n} {h:.1f} h" for n, h in hours.items()))
    results = {
        "commit": commit.stdout.strip(),
        "packages": {package: version(package) for package in NEEDED.values()},
        "sizes": {name: getattr(args, name) for name in ("rows", "samples", "batch", "levels", "steps", "rounds")},
        "their_config": theirs.config,
        "our_default": resolve_config("auto", resolve_device("auto")).to_dict(),
        "agreement": same,
        "timings": timings,
        "published_refresh_hours_extrapolated": hours,
    }
    write("published", results, args.out)


if __name__ == "__main__":
    main()
