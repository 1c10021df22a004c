"""The upsampler: learns real transitions, draws synthetic ones."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ..diffusion import samplers
from ..diffusion.evaluation import Evaluation
from ..diffusion.network import ResidualMLP
from ..diffusion.preconditioning import Preconditioner
from ..diffusion.training import NonFiniteLossError, evaluate_denoiser, train_denoiser
from ..transitions import Transitions, TransitionSpec
from ..transitions.codec import Codec
from ..transitions.normalizer import Normalizer
from ..transitions.values import Thresholds
from .presets import UpsamplerConfig, resolve_config, resolve_device
from .terminals import TerminalClassifier

logger = logging.getLogger(__name__)

#: Version of the state that `state_dict` and `save` write.
STATE_VERSION = 3
#: Fewer generated rows than this are decided by the thresholds that `fit` measured on as many of its own.
_CALIBRATION_ROWS = 4_096
#: From this many rows on a draw has the terminal rate of the data itself.
_OWN_RATE_ROWS = 1_000
#: Rows go through the sampler in blocks of at most so many: what a CPU's cache likes, and what keeps a GPU busy. The
#: size of a block decides which noise a row gets, so it follows free memory only where that is short.
_BLOCK_ROWS, _BLOCK_ROWS_CUDA = 2_048, 65_536
#: Blocks that are generated before their rows are decoded.
_BLOCKS_PER_CHUNK = 8
#: Evaluations of a block from which on it pays to record one.
_EVALUATIONS_TO_RECORD = 100


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        loss: mean training loss over the last tenth of the steps (1 is the untrained model's).
        held_out_loss: the loss on the held-out rows, NaN where there were none.
        steps: gradient steps, of both attempts where a warm start was given up.
        seconds: wall time.
        warm: the model goes on from the last one.
        reason: why it started from scratch, or "" if it did not.
        phases: seconds of each part: normalize, train, terminals, calibrate.
    """

    loss: float
    held_out_loss: float
    steps: int
    seconds: float
    warm: bool
    reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Upsampler(Protocol):
    """What `SyntheticReplay` asks of a model of transitions."""

    def fit(self, transitions: Transitions, *, held_out: Transitions | None = None) -> FitReport:
        """Learn real transitions; `held_out` rows may be used to judge, never to learn.

        Both may be views of a live buffer: copy what is kept beyond the call.
        """
        ...

    def sample(self, num_samples: int) -> Transitions:
        """Draw `num_samples` legal synthetic transitions."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


#: A picklable callable ``(spec, *, device, seed, progress_bar) -> Upsampler``.
UpsamplerFactory = Callable[..., Upsampler]


class DiffusionUpsampler:
    """EDM diffusion (Karras et al. 2022) over whole transitions, as SynthER does it (Lu et al. 2023).

    Args:
        spec: the fields of a transition.
        config: a preset's name (``auto`` picks by device) or an `UpsamplerConfig`.
        device: where it trains and samples; ``auto`` is CUDA where there is one.
        seed: of everything random in it; the global random streams are neither read nor moved.
        progress_bar: show one on terminals while fitting and sampling.

    Raises:
        ValueError: unknown preset, unusable device.
        TypeError: `config` is neither a name nor an `UpsamplerConfig`.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        config: str | UpsamplerConfig = "auto",
        device: str | torch.device = "auto",
        seed: int = 0,
        progress_bar: bool = False,
    ) -> None:
        self.spec = spec
        self.device = resolve_device(device)
        check_upsampler(config, self.device)
        self.config = resolve_config(config, self.device)
        self.seed = seed
        self.progress_bar = progress_bar
        self._codec: Codec | None = None
        self._terminals = TerminalClassifier(spec, self.device)
        self._denoiser: Preconditioner | None = None
        self._thresholds: Thresholds | None = None
        self._terminal_shift = 0.0
        self._sigma_max = self.config.sampler.sigma_max
        # Of the normalised columns that the model learned.
        self._low = self._high = torch.zeros(0, device=self.device)
        self._num_fits = 0
        self._num_draws = 0

    @torch.inference_mode(False)
    def fit(
        self, transitions: Transitions, warm_start: bool | None = None, *, held_out: Transitions | None = None
    ) -> FitReport:
        """Train on real transitions.

        A warm start goes on from the last model if the data still lie in its normalisation, and is given up
        for a training from scratch if it diverges or ends worse than the last model on the held-out rows. If anything
        fails the last model stays as it was.

        Args:
            transitions: finite rows of the spec, on any device.
            warm_start: None for what the configuration says.
            held_out: rows to judge a warm start by.

        Raises:
            ValueError: rows that do not match the spec, or none.
            NonFiniteLossError: training diverged.
        """
        start = time.perf_counter()
        self.spec.check(transitions)
        if len(transitions) == 0:
            raise ValueError("transitions has no rows; at least one is needed to learn from.")
        candidate = copy.copy(self)
        candidate._terminals = TerminalClassifier(self.spec, self.device)
        candidate._num_fits += 1
        candidate._num_draws = 0
        report = candidate._fit(
            transitions, self.config.warm_start if warm_start is None else warm_start, held_out, self
        )
        # Only now, with everything trained and checked, does the new model replace the last one.
        self.__dict__.update(candidate.__dict__)
        return FitReport(**{**vars(report), "seconds": time.perf_counter() - start})

    def _fit(
        self, transitions: Transitions, warm: bool, held_out: Transitions | None, last: DiffusionUpsampler
    ) -> FitReport:
        """`fit`, on a fresh copy of the last model's object."""
        clock = _Clock()
        reason = "no warm start" if not warm else "first fit" if last._denoiser is None else ""
        if not reason:
            assert last._codec is not None
            drift = last._codec.drift(transitions)
            if drift > 1.0:
                reason = f"the data left the model's normalisation (drift {drift:.2f} > 1)"
        warm_codec = last._codec if not reason else None
        self._codec = self._new_codec(transitions, None if warm_codec is None else warm_codec.normalizer)
        rows = self._encode(transitions, last._sigma_max)
        judged = self._encode_held_out(held_out)
        clock.lap("normalize")

        steps = 0
        if not reason:
            assert last._denoiser is not None
            before = self._judge(last._denoiser, judged)
            steps += self.config.warm_steps
            try:
                loss = self._train(copy.deepcopy(last._denoiser).requires_grad_(True), rows, self.config.warm_steps)
                if judged is not None and self._judge(self._denoiser, judged) > before:
                    reason = "a warm start ended worse on held-out rows than it began"
            except NonFiniteLossError as error:
                reason = f"a warm start diverged: {error}"
            if reason:
                self._codec = self._new_codec(transitions, None)
                rows = self._encode(transitions, last._sigma_max)
                judged = self._encode_held_out(held_out)
        if reason:
            loss = self._train(self._new_denoiser(), rows, self.config.train_steps)
            steps += self.config.train_steps
        del rows
        held_out_loss = self._judge(self._denoiser, judged)
        clock.lap("train")
        if self.config.model_terminals:
            self._terminals.fit(transitions, self.config.terminal_steps, self._generator("terminals", device="cpu"))
        clock.lap("terminals")
        self._calibrate()
        clock.lap("calibrate")
        return FitReport(loss, held_out_loss, steps, 0.0, not reason, reason, clock.phases)

    def _encode(self, transitions: Transitions, last_sigma_max: float) -> Tensor:
        """The training rows; sampling has to start from noise that reaches the largest of them, and to end within."""
        assert self._codec is not None
        rows = self._codec.encode(transitions, self.device)
        self._low, self._high = rows.aminmax(dim=0)
        largest, wanted = float(rows.abs().max()), self.config.sampler.sigma_max
        self._sigma_max = max(wanted, 2.0 * largest)
        if self._sigma_max > wanted and self._sigma_max != last_sigma_max:
            logger.warning(
                "The largest normalised value is %.1f; sampling starts at sigma_max=%.1f instead of %.1f to reach it.",
                largest, self._sigma_max, wanted,
            )  # fmt: skip
        return rows

    def _encode_held_out(self, held_out: Transitions | None) -> Tensor | None:
        assert self._codec is not None
        return None if held_out is None or len(held_out) == 0 else self._codec.encode(held_out, self.device)

    def _train(self, denoiser: Preconditioner, rows: Tensor, num_steps: int) -> float:
        with _progress("training", num_steps, self.progress_bar) as bar:

            def show(done: int, loss: float) -> None:
                bar.update(done - bar.n)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

            self._denoiser, loss = train_denoiser(
                denoiser, rows, num_steps, self.config.training, self._generator("training", num_steps), show
            )
        return loss

    def _judge(self, denoiser: Preconditioner | None, rows: Tensor | None) -> float:
        if denoiser is None or rows is None:
            return math.nan
        return evaluate_denoiser(denoiser, rows, self.config.training, self._generator("judging"))

    def _calibrate(self) -> None:
        """Measure decoding thresholds on rows of the new model, which also shows that it generates finite ones."""
        assert self._codec is not None
        evaluation = self._evaluation(_CALIBRATION_ROWS, self._block_rows())
        matrix = self._generate(evaluation, _CALIBRATION_ROWS, self._generator("calibration"))
        _check_finite(torch.isfinite(matrix).all())
        self._thresholds = self._codec.thresholds(matrix)
        if self.config.model_terminals:
            rows = self.spec.empty(len(matrix), self.device)
            self._codec.decode(matrix, rows, self._thresholds)
            self._terminal_shift = self._terminals.calibrate(self._terminals.logits(rows))

    @torch.inference_mode(False)
    def sample(self, num_samples: int) -> Transitions:
        """Draw synthetic transitions, on the upsampler's device.

        Args:
            num_samples: any number of rows; they are generated in chunks.

        Raises:
            RuntimeError: nothing was fitted yet.
            ValueError: a negative number.
        """
        if self._denoiser is None or self._codec is None or self._thresholds is None:
            raise RuntimeError("this upsampler has not been fitted yet: call fit(transitions) first.")
        if num_samples < 0:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 0.")
        generator = self._generator("sampling", self._num_draws)
        self._num_draws += 1
        out = self.spec.empty(num_samples, self.device)
        thresholds, logits = self._thresholds, []
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        evaluation = self._evaluation(num_samples, self._block_rows())
        chunk_rows = _BLOCKS_PER_CHUNK * evaluation.num_rows
        with _progress("sampling", num_samples, self.progress_bar) as bar:
            for start in range(0, num_samples, chunk_rows):
                count = min(chunk_rows, num_samples - start)
                matrix = self._generate(evaluation, count, generator)
                finite &= torch.isfinite(matrix).all()
                if start == 0 and count >= _CALIBRATION_ROWS:
                    thresholds = self._codec.thresholds(matrix)
                rows = out[start : start + count]
                self._codec.decode(matrix, rows, thresholds)
                if self.config.model_terminals:
                    logits.append(self._terminals.logits(rows))
                bar.update(count)
        _check_finite(finite)
        if logits:
            all_logits = torch.cat(logits)
            many = num_samples >= _OWN_RATE_ROWS
            shift = self._terminals.calibrate(all_logits) if many else self._terminal_shift
            out.terminated.copy_(self._terminals.draw(all_logits, shift, generator))
        return out

    @torch.inference_mode(False)
    def trajectory(self, num_samples: int) -> list[tuple[float, Tensor]]:
        """How noise becomes rows: what `sample` does, seen at every noise level. It does not count as a draw.

        The matrix has the columns of the spec's fields in their order, normalised: one per element, or one per category
        of a categorical element; `terminated` only where it is modelled, and the next observation's float columns as
        the change from the observation where that is what is modelled.

        Args:
            num_samples: rows to follow.

        Returns:
            Pairs of a noise level sigma and the rows there, ``[num_samples, D]`` float32 on the upsampler's device,
            from the noise of the largest level to the rows at level 0.

        Raises:
            RuntimeError: nothing was fitted yet.
            ValueError: `num_samples` is not positive.
        """
        if self._denoiser is None:
            raise RuntimeError("this upsampler has not been fitted yet: call fit(transitions) first.")
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
        states: list[tuple[float, Tensor]] = []
        evaluation = self._evaluation(num_samples, num_samples)  # one block: who watches sees all rows at once
        generator = self._generator("trajectory")
        self._generate(evaluation, num_samples, generator, lambda sigma, x: states.append((sigma, x)))
        return states

    def _evaluation(self, num_rows: int, block_rows: int) -> Evaluation:
        """The denoiser for a draw of `num_rows` rows, in blocks of at most `block_rows`, as equal as can be."""
        config = self.config.sampler
        num_blocks = max(math.ceil(num_rows / block_rows), 1)
        evaluations = num_blocks * samplers.num_function_evaluations(config.solver, config.num_steps)
        assert self._denoiser is not None
        return Evaluation(
            self._denoiser,
            max(math.ceil(num_rows / num_blocks), 1),
            self._low,
            self._high,
            bfloat16=config.bfloat16,
            record=evaluations >= _EVALUATIONS_TO_RECORD,
        )

    @torch.no_grad()
    def _generate(
        self, denoiser: Evaluation, num_rows: int, generator: torch.Generator, watch: samplers.Watch | None = None
    ) -> Tensor:
        """Rows of the matrix, ``[num_rows, D]`` float32, generated in whole blocks."""
        assert self._codec is not None
        config = self.config.sampler
        sigmas = samplers.karras_schedule(config.num_steps, config.sigma_min, self._sigma_max, config.rho)
        shape = (denoiser.num_rows, self._codec.dim)
        blocks = []
        with torch.autocast(self.device.type, enabled=False):
            for _ in range(math.ceil(num_rows / denoiser.num_rows)):
                x = sigmas[0] * torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)
                if config.solver == "stochastic-heun":
                    x = samplers.stochastic_heun(
                        denoiser, x, sigmas, generator,
                        s_churn=config.s_churn, s_tmin=config.s_tmin, s_tmax=config.s_tmax, s_noise=config.s_noise,
                        watch=watch,
                    )  # fmt: skip
                else:
                    x = samplers.sde_dpm_solver_2m(denoiser, x, sigmas, generator, watch)
                blocks.append(x)
        return torch.cat(blocks)[:num_rows]

    def _block_rows(self) -> int:
        assert self._codec is not None
        if self.device.type != "cuda":
            return _BLOCK_ROWS
        free, _ = torch.cuda.mem_get_info(self.device)
        per_row = 4 * (6 * self.config.network.width + 16 * self._codec.dim)
        return min(max(free // 4 // per_row, 1_024), _BLOCK_ROWS_CUDA)

    # -- persistence -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Model, normalisation, thresholds and counters: CPU tensors and plain data."""
        network = {} if self._denoiser is None else self._denoiser.state_dict()
        return {
            "version": STATE_VERSION,
            "num_fits": self._num_fits,
            "num_draws": self._num_draws,
            "sigma_max": self._sigma_max,
            "range": (self._low.cpu(), self._high.cpu()),
            "terminal_shift": self._terminal_shift,
            "denoiser": {name: tensor.cpu() for name, tensor in network.items()},
            "codec": None if self._codec is None else self._codec.state_dict(),
            "thresholds": None if self._thresholds is None else self._thresholds.state_dict(),
            "terminals": self._terminals.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state of another version of this library.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the state has version {state.get('version')!r}; this library reads version {STATE_VERSION}."
            )
        self._num_fits, self._num_draws = int(state["num_fits"]), int(state["num_draws"])
        self._sigma_max, self._terminal_shift = float(state["sigma_max"]), float(state["terminal_shift"])
        self._low, self._high = (bound.to(self.device) for bound in state["range"])
        codec, thresholds = state["codec"], state["thresholds" if "thresholds" in state else "decisions"]
        fitted = codec is not None and codec.get("frame", codec) is not None
        self._codec = Codec.from_state_dict(self.spec, codec, **self._codec_options()) if fitted else None
        self._thresholds = None if thresholds is None else Thresholds.from_state(thresholds)
        self._terminals.load_state_dict(state["terminals"])
        self._denoiser = None
        if state["denoiser"]:
            self._denoiser = self._new_denoiser()
            self._denoiser.load_state_dict(state["denoiser"])
            self._denoiser.requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Write the upsampler to one safetensors file; its header holds the rest as JSON. Nothing is pickled."""
        tensors: dict[str, Tensor] = {}
        header = {
            "version": STATE_VERSION,
            "spec": self.spec.to_dict(),
            "config": self.config.to_dict(),
            "seed": self.seed,
            "state": _take_tensors(self.state_dict(), tensors),
        }
        temporary = Path(f"{path}.tmp")
        safetensors.torch.save_file(tensors, temporary, metadata={"synther_buffers": json.dumps(header)})
        temporary.replace(path)

    @classmethod
    def load(
        cls, path: str | Path, *, spec: TransitionSpec | None = None, device: str | torch.device = "auto"
    ) -> DiffusionUpsampler:
        """Read what `save` wrote.

        Args:
            path: the file.
            spec: the spec that it must have been made for; None accepts any.
            device: where the upsampler shall run.

        Raises:
            ValueError: not such a file, another version's, or one for another spec.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["synther_buffers"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            saved_spec = TransitionSpec.from_dict(header["spec"])
            version = header["version"]
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an upsampler that this library saved ({error}).") from error
        if version != STATE_VERSION:
            raise ValueError(f"{path} has version {version!r}; this library reads version {STATE_VERSION}.")
        if spec is not None and spec != saved_spec:
            raise ValueError(f"{path} was made for other transitions: it has {saved_spec}, but you asked for {spec}.")
        upsampler = cls(saved_spec, UpsamplerConfig.from_dict(header["config"]), device, header["seed"])
        upsampler.load_state_dict(_put_tensors(header["state"], tensors))
        return upsampler

    # -- parts -------------------------------------------------------------------------------------------------------

    def _new_codec(self, transitions: Transitions, normalizer: Normalizer | None) -> Codec:
        return Codec.fit(self.spec, transitions, normalizer=normalizer, **self._codec_options())

    def _codec_options(self) -> dict[str, bool]:
        names = ("next_observation_change", "normalize_reward", "model_terminals")
        return {name: getattr(self.config, name) for name in names}

    def _new_denoiser(self) -> Preconditioner:
        assert self._codec is not None
        network = ResidualMLP(
            self._codec.dim,
            **vars(self.config.network),
            generator=self._generator("network", device="cpu"),
            device=self.device,
        )
        return Preconditioner(network, self.config.sigma_data)

    def _generator(self, purpose: str, index: int = 0, device: str | None = None) -> torch.Generator:
        """A generator of its own for each use, so that none depends on what others drew."""
        entropy = [self.seed % 2**64, self._num_fits, index, *purpose.encode()]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(device or self.device).manual_seed(seed)


def check_upsampler(upsampler: str | UpsamplerConfig | UpsamplerFactory, device: str | torch.device) -> None:
    """See that `upsampler` can be made, as far as that can be known before there is a spec.

    Raises:
        ValueError: unknown preset, unusable device.
        TypeError: a live upsampler (a buffer takes plain configuration, so that it can be pickled small), or nothing
            that can be called.
    """
    resolved = resolve_device(device)
    if isinstance(upsampler, str | UpsamplerConfig):
        if resolved.type == "mps":
            raise ValueError("device is 'mps', which has no float64, and decoding rows needs it; use 'cpu'.")
        resolve_config(upsampler, resolved)
    elif isinstance(upsampler, Upsampler) and not isinstance(upsampler, type):
        raise TypeError(
            f"upsampler is a live {type(upsampler).__name__}; pass its configuration, or a factory "
            "(spec, *, device, seed, progress_bar) -> Upsampler, so that saving the agent does not save the model too."
        )
    elif not callable(upsampler):
        raise TypeError(f"upsampler is {upsampler!r}; wanted the name of a preset, an UpsamplerConfig or a factory.")


def make_upsampler(
    upsampler: str | UpsamplerConfig | UpsamplerFactory,
    spec: TransitionSpec,
    *,
    device: str | torch.device,
    seed: int,
    progress_bar: bool,
) -> Upsampler:
    """The upsampler that a buffer's `upsampler` argument describes: a preset, a configuration, or a factory.

    Raises:
        ValueError, TypeError: as `check_upsampler`, or a factory that returns something else than an `Upsampler`.
    """
    check_upsampler(upsampler, device)
    if isinstance(upsampler, str | UpsamplerConfig):
        return DiffusionUpsampler(spec, upsampler, device, seed, progress_bar)
    made = upsampler(spec, device=device, seed=seed, progress_bar=progress_bar)
    if not isinstance(made, Upsampler):
        raise TypeError(
            f"the factory {upsampler!r} returned {made!r}, which has no fit, sample, state_dict and load_state_dict."
        )
    return made


def preset_rows(upsampler: Any, device: str | torch.device) -> int:
    """Rows of a synthetic set where nobody said how many: the configuration's, or 100,000 where there is none."""
    config = getattr(upsampler, "config", upsampler)
    if isinstance(config, str):
        config = resolve_config(config, resolve_device(device))
    return config.num_synthetic if isinstance(config, UpsamplerConfig) else 100_000


def _check_finite(finite: Tensor) -> None:
    """Raise unless it is True; asking a GPU means to wait for it, so once for all rows."""
    if not bool(finite):
        raise FloatingPointError("the model generated values that are not finite.")


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name] = now - self._last
        self._last = now


def _progress(what: str, total: int, shown: bool) -> tqdm:
    """A progress bar on terminals (`disable=None` hides it elsewhere), or a hidden one."""
    return tqdm(desc=f"synther: {what}", total=total, disable=None if shown else True, leave=False, unit_scale=True)


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor in nested plain data by a reference into `tensors`, for JSON."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _take_tensors(child, tensors)] for key, child in value.items()]}
    if isinstance(value, tuple | list):
        return {"list": [_take_tensors(child, tensors) for child in value]}
    return {"plain": value}


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_take_tensors`; lists come back as tuples."""
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _put_tensors(child, tensors) for key, child in content}
    if kind == "list":
        return tuple(_put_tensors(child, tensors) for child in content)
    return content
