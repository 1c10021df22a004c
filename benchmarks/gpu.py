"""Does the GPU path work, and how fast is it? One command for a machine with a CUDA GPU and no network.

    make gpu                                                    # here: fills .gpu/ with what has to travel
    python benchmarks/gpu.py --out OUT [--budget 360] [--only NAME ...]    # there
    python benchmarks/gpu.py --page                             # docs/results/gpu.md of benchmarks/results/gpu.jsonl

Each step runs in a process of its own, with its own limit, so that a step that fails or hangs costs itself alone.
Results are appended to OUT/gpu.jsonl as they come, the most valuable first. The exit status is 1 if a test failed. With
--toy everything runs in a small size, on a CPU too, where what needs CUDA is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.jsonl"
PAGE = ROOT / "docs" / "results" / "gpu.md"
DATA = ROOT / ".gpu" / "rows.npz"
#: The name of a step and the most seconds that it may take, in the order of what is worth most.
LIMITS = {
    "machine": 40,
    "tests": 120,
    "same_rows": 45,
    "refresh": 60,
    "elsewhere": 150,
    "paper": 80,
    "profile": 40,
    "wide": 60,
    "batches": 40,
}


# -- steps, each in a process of its own -------------------------------------------------------------------------------


def machine_step(toy: bool) -> dict[str, Any]:
    """The card, and its two ceilings: a large copy, and large matrix products."""
    import torch

    device = _device()
    on_cuda = device.type == "cuda"
    size = 256 if toy or not on_cuda else 8_192
    out: dict[str, Any] = {"tflops": {}}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        out["tflops"][name] = 2 * size**3 / _seconds(lambda matrix=matrix: matrix @ matrix, device) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn((2**20 if toy or not on_cuda else 2**31) // 4, device=device)
    target = torch.empty_like(source)
    out["copy_tb_per_s"] = 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e12
    if on_cuda:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        out["driver"] = driver.stdout.strip()
    return out


def same_rows_step(toy: bool) -> dict[str, Any]:
    """The same seed twice gives the same rows; rows of a CPU and of a GPU have the same distribution."""
    import torch

    from synther_buffers import PRESETS, DiffusionUpsampler, NetworkConfig, measure_fidelity

    spec, rows = _rows(1_000 if toy else 20_000)
    preset = PRESETS["cpu"]
    config = replace(
        preset,
        network=NetworkConfig(width=64, depth=2, embedding_dim=32, activation="swiglu"),
        training=replace(preset.training, bfloat16=False),
        sampler=replace(preset.sampler, bfloat16=False),
        train_steps=30 if toy else 1_500,
        terminal_steps=50 if toy else 500,
        outcome_steps=20 if toy else preset.outcome_steps,
    )
    num_rows, draws, trained = 500 if toy else 10_000, {}, {}
    for name, device in {"first": _device(), "second": _device(), "cpu": torch.device("cpu")}.items():
        trained[name] = DiffusionUpsampler(spec, config, device, seed=1)
        trained[name].fit(rows)
        draws[name] = trained[name].sample(num_rows).to("cpu")
    moved = DiffusionUpsampler(spec, config, "cpu", seed=1)
    moved.load_state_dict(trained["second"].state_dict())
    draws["moved"] = moved.sample(num_rows)
    draws["again"] = trained["first"].sample(num_rows).to("cpu")
    first, second = draws["first"].flat(), draws["second"].flat()
    out: dict[str, Any] = {"same_bits": all(torch.equal(first[name], second[name]) for name in first)}
    # What two draws of one model on one device differ by, what a draw of it on the CPU does, and what a model that was
    # trained on the CPU does: it has other noise in training.
    for label, other in (("same_device", "again"), ("moved_to_cpu", "moved"), ("trained_on_cpu", "cpu")):
        fidelity = measure_fidelity(draws[other], draws["first"], spec)
        out[label] = {
            "marginal": fidelity.marginal,
            "correlation": fidelity.correlation,
            "auc": _auc(draws[other], draws["first"]),
        }
    return out


def refresh_step(toy: bool) -> dict[str, Any]:
    """The default refresh of 50,000 rows by phase, with graphs and without."""
    import measuring

    from synther_buffers import DiffusionUpsampler
    from synther_buffers.diffusion.cuda_graph import eager
    from synther_buffers.upsampling.presets import resolve_config

    device = _device()
    spec, rows = _rows(1_000 if toy else 50_000)
    config = resolve_config("auto", device)
    num_synthetic = config.num_synthetic
    if toy:
        config, num_synthetic = measuring.toy(config), 500

    def refresh(upsampler: DiffusionUpsampler, warm: bool) -> dict[str, float]:
        phases = dict(upsampler.fit(rows, warm_start=warm).phases)
        start = time.perf_counter()
        drawn = upsampler.sample(num_synthetic)
        float(drawn.reward[-1])
        return {**phases, "sample": time.perf_counter() - start}

    warm_up = replace(config, train_steps=20, terminal_steps=5, outcome_steps=20)
    DiffusionUpsampler(spec, warm_up, device).fit(rows)  # CUDA's libraries set themselves up
    upsampler = DiffusionUpsampler(spec, config, device)
    out: dict[str, Any] = {"num_synthetic": num_synthetic, "train_steps": config.train_steps}
    out["scratch"], out["warm"] = refresh(upsampler, False), refresh(upsampler, True)
    # Without graphs a part of the steps, scaled.
    part = replace(config, train_steps=max(config.train_steps // 20, 5))
    with eager():
        without = refresh(DiffusionUpsampler(spec, part, device), False)
    without["train"] *= config.train_steps / part.train_steps
    out["scratch_eager_scaled"] = without
    for name in ("scratch", "warm", "scratch_eager_scaled"):
        out[f"{name}_seconds"] = sum(out[name].values())
    return out


def paper_step(toy: bool) -> dict[str, Any]:
    """The paper's preset: 100,000 steps and a million rows at 255 evaluations, scaled from a part."""
    import torch
    from measuring import COLUMNS, denoiser_of, num_weights

    from synther_buffers import PRESETS
    from synther_buffers.diffusion.cuda_graph import eager
    from synther_buffers.diffusion.sampling import RowSampler
    from synther_buffers.diffusion.training import train_denoiser

    device = _device()
    rows = torch.randn(1_000 if toy else 50_000, COLUMNS, device=device)
    low, high = rows.aminmax(dim=0)
    out: dict[str, Any] = {}
    for precision, tf32, bfloat16 in (("float32", False, False), ("tf32", True, False), ("bfloat16", False, True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        paper = PRESETS["paper-online"]
        config = replace(
            paper,
            training=replace(paper.training, bfloat16=bfloat16),
            sampler=replace(paper.sampler, bfloat16=bfloat16),
        )
        if toy:
            config = replace(config, network=replace(config.network, width=32))
        denoiser = denoiser_of(config, rows)
        for graphs in (True, False):
            steps, num_rows = (2_000, 100_000) if graphs else (200, 65_536)
            if toy:
                steps, num_rows = 2, 50

            def train(steps: int, config: Any = config, denoiser: Any = denoiser) -> None:
                train_denoiser(denoiser, rows, steps, config.training, torch.Generator(device).manual_seed(0))

            def sample(num_rows: int, config: Any = config, denoiser: Any = denoiser) -> None:
                sampler = RowSampler(
                    denoiser.requires_grad_(False),
                    config.sampler,
                    num_rows=num_rows,
                    low=low,
                    high=high,
                    sigma_max=80.0,
                    seed=0,
                )
                sampler.draw(0, num_rows)

            with eager() if not graphs else _nothing():
                train(5)
                step_seconds = _once(lambda: train(steps), device) / steps  # noqa: B023
                row_seconds = _once(lambda: sample(num_rows), device) / num_rows  # noqa: B023
            out[f"{precision}{'' if graphs else '_eager'}"] = {
                "train_seconds": step_seconds * config.train_steps,
                "sample_seconds": row_seconds * config.num_synthetic,
            }
        out["weights"] = num_weights(config, rows)
    torch.backends.cuda.matmul.allow_tf32 = False
    nfe = PRESETS["paper-online"].sampler.solver.num_function_evaluations
    out["train_operations"] = 6 * out["weights"] * 256 * 100_000
    out["sample_operations"] = 2 * out["weights"] * nfe * 1_000_000
    return out


def profile_step(toy: bool) -> dict[str, Any]:
    """Kernels, launches and waits of training steps and of a draw."""
    import torch
    from measuring import COLUMNS, denoiser_of
    from torch.profiler import ProfilerActivity, profile

    from synther_buffers.diffusion.sampling import RowSampler
    from synther_buffers.diffusion.training import TrainingStep
    from synther_buffers.upsampling.presets import resolve_config

    device = _device()
    config = resolve_config("auto", device)
    rows = torch.randn(2_000 if toy else 50_000, COLUMNS, device=device)
    step = TrainingStep(denoiser_of(config, rows), rows, config.training, torch.Generator(device).manual_seed(0))
    low, high = rows.aminmax(dim=0)
    num_rows = 2_048 if toy else 2 * 65_536
    sampler = RowSampler(
        denoiser_of(config, rows), config.sampler, num_rows=num_rows, low=low, high=high, sigma_max=20.0, seed=0
    )
    for _ in range(5):
        step()
    count = 2 if toy else 50

    def steps() -> None:
        for _ in range(count):
            step.learning_rate.fill_(1e-3)
            step()

    out: dict[str, Any] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    works = {"training_step": (steps, count), "draw": (lambda: sampler.draw(0, num_rows), 1)}
    for name, (work, per) in works.items():
        with profile(activities=activities) as profiled:
            work()
        _wait(device)
        events = profiled.key_averages()
        launches = {event.key: event.count for event in events if event.key.startswith("cuda")}
        # The profiler itself waits for the device once, at its end: cudaDeviceSynchronize is left out.
        waits = {
            event.key: event.count
            for event in events
            if event.key in ("cudaStreamSynchronize", "cudaEventSynchronize", "aten::item", "aten::_local_scalar_dense")
        }
        kernels = sorted(
            ((event.key, event.self_device_time_total) for event in events if event.self_device_time_total > 0),
            key=lambda pair: -pair[1],
        )
        out[name] = {
            "waits": waits,
            "launches": {key: count / per for key, count in launches.items()},
            "kernels_us": {key[:80]: round(micros / per, 2) for key, micros in kernels[:12]},
        }
    return out


def wide_step(toy: bool) -> dict[str, Any]:
    """A whole refresh of rows with 715 columns, as of Humanoid-v5, with its peak of memory."""
    import measuring
    import torch

    from synther_buffers import DiffusionUpsampler, Transitions
    from synther_buffers.transitions import TransitionSpec
    from synther_buffers.upsampling.presets import resolve_config

    device = _device()
    observations, actions, num_rows = (20, 3, 500) if toy else (348, 17, 20_000)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(observations, observations, generator=generator) / observations**0.5
    observation = torch.randn(num_rows, observations, generator=generator) @ mixing
    following = 0.9 * observation + 0.1 * torch.randn(num_rows, observations, generator=generator)
    rows = Transitions(
        observation=observation,
        action=torch.rand(num_rows, actions, generator=generator) * 2 - 1,
        reward=observation[:, 0].clone(),
        next_observation=following,
        terminated=following[:, 0] > 1.5,
    )
    config = resolve_config("auto", device)
    config = measuring.toy(config) if toy else replace(config, train_steps=2_000)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    upsampler = DiffusionUpsampler(TransitionSpec.infer(rows), config, device)
    phases = dict(upsampler.fit(rows).phases)
    start = time.perf_counter()
    drawn = upsampler.sample(200 if toy else 100_000)
    float(drawn.reward[-1])
    phases["sample"] = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"phases": phases, "seconds": sum(phases.values()), "peak_gib": peak}


def elsewhere_step(toy: bool) -> dict[str, Any]:
    """What refreshes on the GPU cost an agent on a CPU: none, here, and in a process of their own."""
    flags = ["--toy", "--agent=sb3", "--utd=1"] if toy else ["--steps=2500", "--retrain-every=500"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    }  # fmt: skip
    script = [sys.executable, str(ROOT / "benchmarks" / "refresh_elsewhere.py")]
    # At the same time, which is fair where there are cores for all of them, as beside a GPU.
    runs = {
        way: subprocess.Popen([*script, "--way", way, *flags], env=environment, stdout=subprocess.PIPE, text=True)
        for way in ("none", "here", "process")
    }
    lines = {way: json.loads(run.communicate()[0].splitlines()[-1]) for way, run in runs.items()}
    names = ("seconds", "refreshes", "refresh_seconds", "bytes_job", "bytes_result")
    return {way: {name: line[name] for name in names} for way, line in lines.items()}


def batches_step(toy: bool) -> dict[str, Any]:
    """`sample(256)` of buffers on the device, against the frameworks' own."""
    import numpy as np
    import torch
    from gymnasium import spaces
    from measuring import alternate

    device, size = _device(), 1_000 if toy else 50_000
    out = {}
    try:
        from stable_baselines3.common.buffers import ReplayBuffer
        from synther_buffers.sb3 import SynthERBuffer

        from synther_buffers.upsampling.augmentation import Bootstrap

        both = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1.0, 1.0, (6,), np.float32)
        options = {"upsampler": Bootstrap, "retrain_every": size, "num_synthetic": size, "progress_bar": False}
        buffers = ReplayBuffer(size, *both, device=device), SynthERBuffer(size, *both, device=device, **options)
        row = (np.ones((1, 17)), np.ones((1, 17)), np.zeros((1, 6)), np.ones(1), np.zeros(1, bool), [{}])
        for buffer in buffers:
            for _ in range(size):
                buffer.add(*row)
            buffer.sample(256)
        assert buffers[1].synthetic.num_refreshes == 1
        calls = [lambda buffer=buffer: (buffer.sample(256), _wait(device)) for buffer in buffers]
        theirs, ours = alternate(*calls, 5 if toy else 200, 3 if toy else 15)
        out["sb3"] = {"own_us": theirs * 1e6, "ours_us": ours * 1e6, "ratio": ours / theirs}
    except ImportError as error:
        out["sb3"] = {"left_out": str(error)}
    try:
        from synther_buffers.torchrl import SynthERStorage
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

        from synther_buffers.upsampling.augmentation import Bootstrap

        options = {"upsampler": Bootstrap, "retrain_every": size, "num_synthetic": size, "progress_bar": False}
        flags = {name: torch.zeros(size, 1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        following = {"observation": torch.randn(size, 17), "reward": torch.ones(size, 1), **flags}
        rows = TensorDict(
            {"observation": torch.randn(size, 17), "action": torch.rand(size, 6), **flags, "next": following}, [size]
        ).to(device)
        calls = []
        for storage in (LazyTensorStorage(size, device=device), SynthERStorage(size, device=device, **options)):
            buffer = TensorDictReplayBuffer(storage=storage, batch_size=256)
            buffer.extend(rows)
            buffer.sample()
            calls.append(lambda buffer=buffer: (buffer.sample(), _wait(device)))
        theirs, ours = alternate(*calls, 5 if toy else 200, 3 if toy else 15)
        out["torchrl"] = {"own_us": theirs * 1e6, "ours_us": ours * 1e6, "ratio": ours / theirs}
    except ImportError as error:
        out["torchrl"] = {"left_out": str(error)}
    return out


STEPS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "machine": machine_step,
    "same_rows": same_rows_step,
    "refresh": refresh_step,
    "elsewhere": elsewhere_step,
    "paper": paper_step,
    "profile": profile_step,
    "wide": wide_step,
    "batches": batches_step,
}


# -- running them ------------------------------------------------------------------------------------------------------


def run(out: Path, budget: float, only: list[str], toy: bool) -> int:
    """Run the steps; the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    lines, about, start = out / "gpu.jsonl", _about(), time.monotonic()
    results = {}
    for name, limit in LIMITS.items():
        if only and name not in only:
            continue
        left = budget - (time.monotonic() - start)
        if left < min(limit, 20):
            results[name] = {"skipped": f"only {left:.0f} s of the budget were left"}
        else:
            results[name] = run_step(name, out, min(limit, left), toy)
        with lines.open("a") as file:
            file.write(json.dumps({"step": name, **results[name], **about}) + "\n")
        print(f"{name}: {json.dumps(results[name])[:1_500]}", flush=True)
    print()
    for name, result in results.items():
        state = next((key for key in ("failed", "skipped") if key in result), "done")
        print(f"{name:<12}{state:<10}{result.get('seconds_in_all', 0.0):>7.1f} s")
    return int("failed" in results.get("tests", {}))


def run_step(name: str, out: Path, limit: float, toy: bool) -> dict[str, Any]:
    """One step in a process of its own."""
    start = time.monotonic()
    result_file = out / f"{name}.json"
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-v", "--durations=15", "-p", "no:cacheprovider"]
        command += ["-o", "faulthandler_timeout=60", *_testable()]
    else:
        command = [sys.executable, str(Path(__file__)), "--step", name, "--result", str(result_file)]
        command += ["--toy"] if toy else []
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a step may have started others
            process.wait()
            code = None
    tail = (out / f"{name}.log").read_text(errors="replace")[-1_500:]
    result: dict[str, Any] = {"seconds_in_all": time.monotonic() - start}
    if name == "tests":
        result["summary"] = tail.strip().splitlines()[-1] if tail.strip() else ""
        # 5: no test was chosen, which happens where there is no GPU.
        if code not in (0, 5):
            result["failed"] = f"ran past {limit:.0f} s" if code is None else tail
        return result
    if result_file.exists():
        result |= json.loads(result_file.read_text())
        result_file.unlink()
    elif code is None:
        result["failed"] = f"ran past {limit:.0f} s"
    else:
        result["failed"] = tail
    return result


def _testable() -> list[str]:
    """The files with tests for CUDA whose framework is here."""
    from importlib.util import find_spec

    needs = {"sb3": "stable_baselines3", "torchrl": "torchrl", "tianshou": "tianshou"}
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.cuda" in file.read_text()]
    return sorted(
        str(file.relative_to(ROOT)) for file in files if find_spec(needs.get(file.parent.name, "torch")) is not None
    )


# -- what travels ------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Fill `.gpu/`: wheels for Python 3.12 on x86-64 without their needs, and 50,000 rows."""
    import shutil

    folder = ROOT / ".gpu"
    wheels = folder / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    wheels.mkdir(parents=True)
    names = [
        "gymnasium", "farama-notifications", "stable-baselines3", "sb3-contrib", "tensordict", "torchrl", "pyvers",
        "orjson", "cloudpickle", "hoptorch", "importlib_metadata", "scikit-learn",
        # For benchmarks/few_rows.py and the learning benchmark.
        "mujoco==4.0.0", "mujoco-core==4.0.0", "glfw", "pyopengl", "sbx-rl", "tfp-nightly", "dm-tree", "decorator",
        "gast",
    ]  # fmt: skip
    pip = [sys.executable, "-m", "pip"]
    platforms = ["manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1"]
    target = [f"--platform={name}_x86_64" for name in platforms]
    target += ["--python-version=3.12", "--implementation=cp", "--only-binary=:all:"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    for name in names:
        subprocess.run(
            [*pip, "download", "--quiet", "--no-deps", *target, *constraints, "--dest", str(wheels), name], check=True
        )
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], check=True, cwd="/tmp"
    )
    collected = sorted((ROOT / "data").glob("*-50000-s0.npz"))
    _write_rows(collected[0] if collected else None)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    print(f".gpu/ has {size:.1f} MiB; in a copy of the repository with it, where there is a GPU:")
    print(
        "  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .gpu/wheels/*.whl\n"
        "  PYTHONPATH=/tmp/site python3 benchmarks/gpu.py --out OUT"
    )
    if size > 60:
        sys.exit("that is more than 60 MiB")


def _write_rows(collected: Path | None) -> None:
    """Rows of a file of `examples/collect.py`, or of a random policy where there is none."""
    import numpy as np

    if collected is not None:
        with np.load(collected) as file:
            arrays = {name: file[name] for name in file.files if name != "about"}
    else:
        from refresh import random_transitions

        _, rows = random_transitions("Walker2d-v5", 50_000)
        arrays = {
            "observations": rows.observation.numpy(),
            "actions": rows.action.numpy(),
            "rewards": rows.reward.numpy(),
            "next_observations": rows.next_observation.numpy(),
            "terminals": rows.terminated.numpy(),
        }
    small = {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()}
    DATA.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(DATA, **small)


# -- the page ----------------------------------------------------------------------------------------------------------


def page(lines: list[dict[str, Any]]) -> str:
    """`docs/results/gpu.md` of the recorded lines; a later line of a step replaces an earlier one."""
    steps = {line["step"]: line for line in lines if not {"failed", "skipped"} & set(line)}
    head = "# On a GPU\n\n"
    if not steps:
        return head + "No GPU has run this yet. `make gpu` says how to.\n"
    about = next(iter(steps.values()))
    commits = {}
    for name, line in steps.items():
        commits.setdefault(line["commit"], []).append(f"`{name}`")
    measured = "; ".join(f"{commit}: {', '.join(names)}" for commit, names in commits.items())
    text = (
        f"{about['gpu']}, PyTorch {about['torch']}, {about['date']}. `make gpu` prepares what has to travel\nand "
        "prints the command; `python benchmarks/gpu.py --page` writes this page of `benchmarks/results/gpu.jsonl`.\n"
        f"Steps by commit: {measured}.\n\n"
    )
    text += "| target | measured | |\n|---|--:|---|\n"
    for name, seconds, limit in _targets(steps):
        text += f"| {name} | {seconds:.1f} s | {'met' if seconds <= limit else 'missed'} |\n"
    if "profile" in steps:
        waits = sum(steps["profile"]["training_step"]["waits"].values())
        text += f"| no wait of the host between two checks of the training loop | {waits} waits | "
        text += f"{'met' if waits == 0 else 'missed'} |\n"
    if "paper" in steps:
        text += _paper_table(steps)
    if "refresh" in steps:
        refresh = steps["refresh"]
        text += "\nThe default's refresh, seconds by phase:\n\n"
        names = list(refresh["scratch"])
        text += f"| | {' | '.join(names)} | in all |\n|---|{'--:|' * (len(names) + 1)}\n"
        labels = {
            "scratch": "from scratch",
            "warm": "warm",
            "scratch_eager_scaled": "from scratch, without graphs (scaled)",
        }
        for key, label in labels.items():
            text += f"| {label} | {' | '.join(f'{refresh[key][name]:.2f}' for name in names)} | "
            text += f"{refresh[f'{key}_seconds']:.1f} |\n"
    if "elsewhere" in steps:
        text += _elsewhere_text(steps["elsewhere"])
    if "profile" in steps:
        text += _profile_table(steps["profile"]["training_step"]["kernels_us"])
    if "wide" in steps:
        wide = steps["wide"]
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in wide["phases"].items())
        text += f"\nRows of 715 columns: {wide['seconds']:.1f} s ({phases}), {wide['peak_gib']:.2f} GiB at the peak.\n"
    if "same_rows" in steps:
        same = steps["same_rows"]
        text += (
            f"\nThe same seed twice gives {'the same' if same['same_bits'] else 'other'} rows, bit for bit. Rows of a "
        )
        text += "small model that was trained here against\n\n"
        text += "| | marginal similarity | correlation | AUC |\n|---|--:|--:|--:|\n"
        labels = {
            "same_device": "other rows of it",
            "moved_to_cpu": "rows of it drawn on a CPU",
            "trained_on_cpu": "rows of one trained on a CPU, with other noise",
        }
        for key, label in labels.items():
            if key in same:
                figures = (f"{same[key][name]:.3f}" for name in ("marginal", "correlation", "auc"))
                text += f"| {label} | {' | '.join(figures)} |\n"
    if "batches" in steps:
        text += "\n`sample(256)` on the device, in times of the framework's own: "
        pairs = ((name, steps["batches"].get(name, {})) for name in ("sb3", "torchrl"))
        text += ", ".join(f"{name} {result['ratio']:.2f}" for name, result in pairs if "ratio" in result) + ".\n"
    if "tests" in steps:
        text += f"\nTests that need CUDA: {steps['tests']['summary'].strip('= ')}.\n"
    return head + text


def _targets(steps: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, seconds and the most that they may be."""
    rows = []
    if "paper" in steps:
        paper = steps["paper"]["bfloat16"]
        rows.append(("the paper's 100,000 steps (bfloat16): 40 s", paper["train_seconds"], 40.0))
        rows.append(("1,000,000 rows at 255 evaluations (bfloat16): 15 s", paper["sample_seconds"], 15.0))
    if "refresh" in steps:
        rows.append(("the default's refresh of 50,000 rows: 10 s", steps["refresh"]["scratch_seconds"], 10.0))
    return rows


def _elsewhere_text(ways: dict[str, dict[str, Any]]) -> str:
    """What refreshes cost an agent that computes on a CPU."""
    none, here, process = (ways[name]["seconds"] for name in ("none", "here", "process"))
    return (
        "\nSAC (sbx) on a CPU, HalfCheetah-v5, 10 updates a step from step 1,000 to 2,500, a refresh every 500 steps\n"
        f"on the GPU: {none:.0f} s without synthetic rows, {here:.0f} s with refreshes in the agent's process "
        f"({here / none:.2f} times),\n{process:.0f} s with refreshes in one of their own ({process / none:.2f} times). "
        f"{ways['here']['refreshes']} refreshes took {ways['here']['refresh_seconds']:.0f} s.\n"
    )


def _profile_table(kernels: dict[str, float]) -> str:
    """Where a training step spends its time, and what would mend it."""
    text = "\nKernels of one training step of the `gpu` preset, microseconds:\n\n| kernel | us |\n|---|--:|\n"
    for name, micros in kernels.items():
        text += f"| `{name.replace('|', ' ')}` | {micros:.0f} |\n"
    return text + (
        "\nThe largest sums over the batch: the gradients of the biases, in bfloat16. It takes longer than any matrix\n"
        "product although it moves few bytes. A backward pass of our own, which multiplies by a vector of ones\n"
        "instead, made the step a tenth shorter (no line was kept): too little for code that every network would\n"
        "need. Steps of 2,048 rows generate no better rows ([few rows](few_rows.md), `wide-2048`).\n"
        "\nThe kernels were measured with a network 640 wide, then the preset's; the refresh and the wide rows with\n"
        "the present one, 192 wide.\n"
    )


def _paper_table(steps: dict[str, Any]) -> str:
    paper, peaks = steps["paper"], steps.get("machine", {}).get("tflops", {})
    text = "\nThe paper's preset, scaled from 2,000 steps and 100,000 rows (without graphs 200 and 65,536):\n\n"
    text += (
        "| precision | training, s | times the floor | a million rows, s | times the floor |\n|---|--:|--:|--:|--:|\n"
    )
    for precision in ("float32", "tf32", "bfloat16"):
        for suffix, label in (("", ""), ("_eager", ", without graphs")):
            entry = paper[precision + suffix]
            text += f"| {precision}{label}"
            for part in ("train", "sample"):
                seconds = entry[f"{part}_seconds"]
                floor = paper[f"{part}_operations"] / (peaks[precision] * 1e12) if precision in peaks else None
                text += f" | {seconds:.1f} | {seconds / floor:.1f}" if floor else f" | {seconds:.1f} | "
            text += " |\n"
    return text + "\nThe floor is the matrix products alone at the speed of a large one on this card.\n"


# -- helpers -----------------------------------------------------------------------------------------------------------


def _about() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    commit = (
        os.environ.get("COMMIT")
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "commit": commit}


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _once(work: Callable[[], Any], device: Any) -> float:
    """Seconds of one call, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _seconds(work: Callable[[], Any], device: Any) -> float:
    """The least seconds of a call, after two that warm up."""
    for _ in range(2):
        work()
    return min(_once(work, device) for _ in range(7))


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _rows(count: int) -> tuple[Any, Any]:
    """Spec and rows of the file that travels, or of a random walk where it is not there."""
    import torch

    from synther_buffers import Transitions
    from synther_buffers.transitions import TransitionSpec

    if DATA.exists():
        from synther_buffers.datasets import open_dataset

        dataset = open_dataset(DATA)
        return dataset.spec, dataset.subset(min(count, len(dataset)))
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(count, 17, generator=generator)
    following = 0.9 * observation + 0.1 * torch.randn(count, 17, generator=generator)
    action = torch.rand(count, 6, generator=generator) * 2 - 1
    rows = Transitions(observation, action, observation[:, 0].clone(), following, following[:, 0] > 1.8)
    return TransitionSpec.infer(rows), rows


def _auc(left: Any, right: Any) -> float | None:
    """Of a classifier that tells the two sets apart, 0.5 if it cannot; None without scikit-learn."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.metrics import roc_auc_score
    except ImportError:
        return None
    import numpy as np

    def matrix(rows: Any) -> Any:
        return np.concatenate([tensor.reshape(len(rows), -1).double().numpy() for tensor in rows.flat().values()], 1)

    x, y = np.concatenate([matrix(left), matrix(right)]), np.repeat([0, 1], [len(left), len(right)])
    train = np.random.default_rng(0).random(len(y)) < 0.5
    model = HistGradientBoostingClassifier(random_state=0).fit(x[train], y[train])
    return float(roc_auc_score(y[~train], model.predict_proba(x[~train])[:, 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the results")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds for everything")
    parser.add_argument("--only", nargs="*", default=[], choices=list(LIMITS), help="these steps alone")
    parser.add_argument("--toy", action="store_true", help="a small size, to see that it runs")
    parser.add_argument("--prepare", action="store_true", help="fill .gpu/ with what has to travel")
    parser.add_argument("--page", action="store_true", help="write docs/results/gpu.md")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare()
    elif args.page:
        lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
        PAGE.write_text(page(lines))
    elif args.step:
        args.result.write_text(json.dumps(STEPS[args.step](args.toy)))
    else:
        sys.exit(run(args.out, args.budget, args.only, args.toy))


if __name__ == "__main__":
    main()
