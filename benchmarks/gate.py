"""What the quality gate would make of the models that other benchmarks have recorded: does it leave good ones alone?

    python benchmarks/gate.py [--out FILE]

It reads the refreshes of the default in the learning benchmark's lines (1,000 to 5,000 rows; the arms whose model is
that of the default) and the models of `few_rows.py` (5,000 rows and more). `outcome_gap` is known of the newer
lines alone; a figure that was not recorded does not count, as in the gate itself. The first refresh of a run stands
apart.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

from measuring import RESULTS, write

from synther_buffers import Fidelity, FitReport, RefreshReport
from synther_buffers.evaluation.copies import ClosestRecord
from synther_buffers.replay.quality_gate import judge

#: Arms of the learning benchmark whose rows are those of the default model.
ARMS = ("default", "default-often", "default-three-quarters", "default-delay", "few-rows-passes", "passes-often")


def share(figures: dict[str, float]) -> float:
    """The share of `synthetic_fraction` that the gate leaves to a model with these figures."""

    def fidelity(suffix: str) -> Fidelity:
        known = [figures.get(f"{name}_similarity{suffix}", math.nan) for name in ("marginal", "correlation")]
        return Fidelity(known[0], known[1], "", math.nan)

    closest = ClosestRecord(
        math.nan, math.nan, figures.get("closest_record_ratio", math.nan), figures.get("copy_share", math.nan)
    )
    report = RefreshReport(
        refresh=1,
        num_observed=0,
        num_real=0,
        num_held_out=0,
        num_dropped=0,
        num_synthetic=0,
        fit=FitReport(math.nan, figures["held_out_loss"], 0, 0.0, False),
        fit_seconds=0.0,
        sample_seconds=0.0,
        seconds=0.0,
        fidelity=fidelity(""),
        fidelity_real=fidelity("_of_real"),
        closest=closest,
        outcome_gap=figures.get("outcome_gap", math.nan),
    )
    return judge(report).share


def refreshes() -> Iterator[tuple[str, int, float, bool]]:
    """``(kind, rows, share, whether the gap of outcomes is known)`` of each recorded model."""
    for file in ("reporting", "choosing"):
        for text in (RESULTS / f"learning_{file}.jsonl").read_text().splitlines():
            line = json.loads(text)
            if line["arm"] in ARMS and line["agent"] == "sbx":
                for number, found in enumerate(line["refreshes"]):
                    kind = "first" if number == 0 else "later"
                    yield kind, int(found["real_rows"]), share(found), "outcome_gap" in found
    for text in (RESULTS / "few_rows.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["name"] in ("default", "default-warm") and line["rows"] >= 5_000:
            fidelity, closest = line["figures"]["fidelity"], line["figures"]["closest"]
            found = {
                "held_out_loss": line["loss"]["judges"],
                "copy_share": closest["share_closer"],
                "closest_record_ratio": closest["ratio"],
                # Of real rows against real rows nothing was recorded; at best they are the same.
                **{f"{name}_similarity": fidelity[name] for name in ("marginal", "correlation")},
                **{f"{name}_similarity_of_real": 1.0 for name in ("marginal", "correlation")},
            }
            yield "alone", line["rows"], share(found), False


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="where to write the JSON (default: benchmarks/results/gate.json)")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for kind, rows, served, gap in refreshes():
        group = found.setdefault(
            kind, {"models": 0, "whole": 0, "none": 0, "with_outcome_gap": 0, "rows": [rows, rows]}
        )
        group["models"] += 1
        group["whole"] += served == 1.0
        group["none"] += served == 0.0
        group["with_outcome_gap"] += gap
        group["rows"] = [min(group["rows"][0], rows), max(group["rows"][1], rows)]
    for kind, group in found.items():
        print(kind, group)
    write("gate", found, args.out)


if __name__ == "__main__":
    main()
