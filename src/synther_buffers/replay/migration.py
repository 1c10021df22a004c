"""Converts pickles of version 3 to the current format."""

from __future__ import annotations

from typing import Any

from ..upsampling.presets import UpsamplerConfig
from .options import SyntheticOptions

#: Version of the states that `SyntheticReplay.state_dict` returns.
STATE_VERSION = 4


def migrate_pickle(pickled: dict[str, Any]) -> dict[str, Any]:
    """What `SyntheticReplay.__getstate__` returns, from it or from the attributes that version 3 pickled."""
    if "state" in pickled:
        return pickled
    given, usage = pickled["_upsampler_args"], pickled["_usage"]
    drawn_on, drawn = pickled["_generator"]
    rows, config = pickled["rows"], pickled["config"]
    options = SyntheticOptions(
        upsampler=given["upsampler"],
        upsampler_device=given["device"],
        retrain_every=pickled["retrain_every"],
        start_after=pickled["start_after"],
        num_synthetic=pickled["num_synthetic"],
        synthetic_fraction=pickled["synthetic_fraction"],
        seed=pickled["seed"],
        progress_bar=given["progress_bar"],
        refresh_log=pickled["refresh_log"],
    )
    spec = pickled["spec"]
    if config is None and isinstance(given["upsampler"], UpsamplerConfig):
        config = given["upsampler"]
    return {
        "options": options,
        "spec": spec,
        "infers_spec": pickled["_infers_spec"],
        "num_synthetic": pickled["num_synthetic"],
        "device": pickled["device"],
        "state": {
            "version": STATE_VERSION,
            "spec": None if spec is None else spec.to_dict(),
            "num_observed": usage.num_observed,
            "next_refresh": pickled["_next_refresh"],
            "num_batches": usage.num_batches,
            "hold_out": pickled["_hold_out"].state_dict(),
            "warned": sorted(pickled["_warned"]),
            "reports": [report.to_dict() for report in pickled["reports"]],
            "set": {
                "rows": None if rows is None else rows.flat(),
                "drawn_on": drawn_on,
                "generator": drawn,
            },
            "upsampler": pickled["upsampler"],
            "config": None if config is None else config.to_dict(),
        },
    }
