"""Arms: plain settings of the agent and of its buffer, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from synther_buffers import PRESETS, UpsamplerConfig
from synther_buffers.guidance.names import NAMES
from synther_buffers.upsampling.augmentation import Bootstrap, GaussianNoise

from .tasks import Task
from .upsamplers import Oracle, OracleDynamics


@dataclass(frozen=True)
class Arm:
    """One column of the comparison.

    Attributes:
        utd: critic updates per environment step; None for the task's control's.
        policy_delay: critic updates per update of actor and temperature; None for the task's control's.
        upsampler: None for real rows alone; ``bootstrap``, ``gaussian``, ``oracle``, ``oracle-dynamics`` or
            ``diffusion``.
        preset: of the diffusion model.
        changes: of the preset; a mapping changes a part, as in ``{"training": {"weight_decay": 1.0}}``.
        retrain_every: environment steps between refreshes.
        num_synthetic: rows of the synthetic set; None for the preset's.
        synthetic_fraction: share of each batch.
        policy_share: share of the synthetic rows with the present policy's actions.
        guidance: name of what chooses the synthetic rows; None for rows like the data.
        guided_by: how, see `synther_buffers.Guidance`.
    """

    utd: int | None = None
    policy_delay: int | None = None
    upsampler: str | None = None
    preset: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    retrain_every: int = 1_000
    num_synthetic: int | None = None
    synthetic_fraction: float = 0.5
    policy_share: float = 0.0
    guidance: str | None = None
    guided_by: str = "condition"

    def for_task(self, task: Task) -> Arm:
        """With the update rule of the task's control where it has none of its own, and tiny on a toy task."""
        control = ARMS[task.control]
        arm = replace(self, utd=self.utd or control.utd, policy_delay=self.policy_delay or control.policy_delay)
        if arm.upsampler is None:
            arm = replace(arm, synthetic_fraction=0.0)
        if not task.toy:
            return arm
        # One toy run stands for all arms that differ in a share, or in what guides them.
        return replace(
            arm,
            retrain_every=100,
            num_synthetic=200,
            policy_share=0.5 if self.policy_share else 0.0,
            guidance="td-error" if self.guidance else None,
        )

    def settings(self) -> dict[str, Any]:
        """Plain data that a line holds."""
        settings = asdict(self) | {"changes": dict(self.changes)}
        # Lines from before these were settings do not have them.
        if not self.policy_share:
            del settings["policy_share"]
        if self.guidance is None:
            del settings["guidance"], settings["guided_by"]
        return settings


#: Real rows alone, under the three update rules.
REAL_ONLY = ("utd1", "utd10", "utd20-delay")

_REGULARIZED = {"weight_decay": 1.0, "dropout": 0.2}
_SHORT = {"training": _REGULARIZED, "budget": {"full_rows": 50_000, "few_rows": 2_000, "power": 2 / 3}}
_PASSES = {"training": _REGULARIZED, "budget": {"full_rows": 10_000, "few_rows": 2_000, "power": 1.0}}

#: Arms whose code is gone but not their runs: all outcomes predicted by a regression, beside the model and in it.
FORMER_ARMS = ("passes-regressed", "outcomes", "outcomes-delay")

ARMS: dict[str, Arm] = {
    "utd1": Arm(1, 1),
    # Stable-Baselines3's rule: the actor and the temperature are updated at each gradient step.
    "utd10": Arm(10, 1),
    # The published rule: one actor and one temperature update per environment step.
    "utd20-delay": Arm(20, 20),
    "bootstrap": Arm(upsampler="bootstrap", num_synthetic=10_000),
    # Real rows with noise of 0.1 standard deviations on both observations, as often anew as the chosen arm's rows.
    "gaussian": Arm(upsampler="gaussian", num_synthetic=10_000, retrain_every=500),
    "oracle": Arm(upsampler="oracle", num_synthetic=10_000),
    "oracle-dynamics": Arm(upsampler="oracle-dynamics", num_synthetic=10_000),
    # The first released default: as many steps for any number of rows, and the weights at the end.
    "constant-budget": Arm(
        upsampler="diffusion", changes={"budget": None, "training": {"weight_decay": 0.0, "dropout": 0.0}}
    ),
    # Steps and regularisation follow the rows, and the weights at the least held-out loss are served. The first follows
    # the 2/3 power of the rows up to 50,000, the second takes as many passes over any number of rows up to 10,000.
    "few-rows": Arm(upsampler="diffusion", changes=_SHORT),
    "few-rows-passes": Arm(upsampler="diffusion", changes=_PASSES),
    # The same under the published update rule, and with a smaller share of each batch.
    "passes-delay": Arm(20, 20, upsampler="diffusion", changes=_PASSES),
    "passes-quarter": Arm(upsampler="diffusion", changes=_PASSES, synthetic_fraction=0.25),
    "passes-three-quarters": Arm(upsampler="diffusion", changes=_PASSES, synthetic_fraction=0.75),
    # Refreshed twice as often.
    "passes-often": Arm(upsampler="diffusion", changes=_PASSES, retrain_every=500),
    # The default: of the outcomes, only those are predicted that the model got wrong. On a task where there are none,
    # its rows are those of `few-rows-passes`, bit for bit. Also refreshed twice as often; so, with one update per step;
    # with a larger share of each batch; and under the published update rule, where the oracle tells what is to be had.
    "default": Arm(upsampler="diffusion"),
    "default-often": Arm(upsampler="diffusion", retrain_every=500),
    "default-utd1": Arm(1, 1, upsampler="diffusion", retrain_every=500),
    "default-three-quarters": Arm(upsampler="diffusion", synthetic_fraction=0.75),
    "default-delay": Arm(20, 20, upsampler="diffusion"),
    "oracle-delay": Arm(20, 20, upsampler="oracle", num_synthetic=10_000),
    # A part of the synthetic rows with the present policy's actions, drawn anew every 100 steps.
    **{
        f"policy-{share}": Arm(upsampler="diffusion", retrain_every=500, policy_share=share)
        for share in (0.05, 0.2, 0.5)
    },
    # More of the rows that a relevance of the real rows wants (docs/guidance.md), in both ways.
    **{
        f"guided-{guidance}": Arm(upsampler="diffusion", retrain_every=500, guidance=guidance)
        for guidance in ("curiosity", "novelty", "return", "td-error")
    },
    **{
        f"resampled-{guidance}": Arm(
            upsampler="diffusion", retrain_every=500, guidance=guidance, guided_by="resampling"
        )
        for guidance in ("curiosity", "td-error")
    },
    # With fewer updates, and real rows alone under that rule.
    "passes-utd4": Arm(4, 1, upsampler="diffusion", changes=_PASSES),
    "utd4": Arm(4, 1),
    # With a network of as many weights as the paper's and more steps, which takes a GPU.
    "passes-wide": Arm(
        upsampler="diffusion",
        preset="gpu",
        changes={
            "network": {"width": 640, "embedding_dim": 256},
            "training": {**_REGULARIZED, "learning_rate": 1.2e-3},
            "budget": _PASSES["budget"],
            "train_steps": 20_000,
            "warm_steps": 7_000,
        },
    ),
}


def buffer_kwargs(arm: Arm, task: Task, seed: int) -> dict[str, Any]:
    """What `SynthERBuffer` takes, for an arm that `Arm.for_task` has completed."""
    kwargs: dict[str, Any] = {
        "retrain_every": arm.retrain_every,
        "synthetic_fraction": arm.synthetic_fraction,
        "seed": seed,
        "progress_bar": False,
    }
    if arm.policy_share:
        kwargs["policy_share"] = arm.policy_share
    if arm.guidance is not None:
        kwargs["guidance"] = replace(NAMES[arm.guidance](), by=arm.guided_by)
    if arm.num_synthetic is not None:
        kwargs["num_synthetic"] = arm.num_synthetic
    if arm.upsampler is None:
        return kwargs
    if arm.upsampler == "diffusion":
        kwargs["upsampler"] = _model(arm, task)
    else:
        factories = {
            "bootstrap": Bootstrap,
            "gaussian": GaussianNoise,
            "oracle": partial(Oracle, task=task),
            "oracle-dynamics": partial(OracleDynamics, task=task, config=_model(arm, task)),
        }
        if arm.upsampler not in factories:
            raise ValueError(f"upsampler is {arm.upsampler!r}; wanted one of {[*factories, 'diffusion', None]}.")
        kwargs["upsampler"] = factories[arm.upsampler]
    return kwargs


def _model(arm: Arm, task: Task) -> str | UpsamplerConfig:
    if task.toy:
        tiny = replace(PRESETS["cpu"], network=replace(PRESETS["cpu"].network, width=16, depth=1))
        return replace(tiny, train_steps=20, warm_steps=10, terminal_steps=10, outcome_steps=10)
    if not arm.changes:
        return arm.preset
    config = PRESETS["cpu" if arm.preset == "auto" else arm.preset]
    parts = {
        name: replace(getattr(config, name), **value) if isinstance(value, Mapping) else value
        for name, value in arm.changes.items()
    }
    return replace(config, **parts)
