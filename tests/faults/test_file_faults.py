"""Whatever happens to an upsampling: no half-written output, nobody else's file touched, and it can go on.

A few dozen seeded cases; `--fault-cases 1000` runs as many of each kind.
"""

import os

import numpy as np
import pytest
from file_faults import Fault, run, start, wait
from toys import gaussian

from synther_buffers.datasets import open_dataset, write_dataset

OUTPUTS = ("{}.npz", "{}.hdf5", "toys/{}-v0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two datasets, and what an undisturbed upsampling of them gives, by output and upsampler."""
    folder = tmp_path_factory.mktemp("data")
    datasets = [write_dataset(folder / f"{seed}.npz", gaussian(300, seed=seed)) for seed in range(2)]
    known = {}

    def reference(dataset, output, upsampler):
        key = (dataset, output, upsampler)
        if key not in known:
            place = folder / f"reference-{len(known)}"
            place.mkdir()
            outcome = run(place, datasets[dataset], named(place, output), upsampler)
            assert outcome.ended == "done", outcome
            known[key] = content(place, output)
        return known[key]

    return datasets, reference


def named(folder, output):
    """The output's argument: a path, or an id in Minari's store, which is the folder."""
    name = output.format("synthetic")
    return name if "/" in name else folder / name


def content(folder, output):
    """What a complete output holds, or None where there is none."""
    path = folder / output.format("synthetic")
    if not os.path.lexists(path):
        return None
    if path.is_dir():
        flat = open_dataset(path).subset(10**6).flat()
        return {name: tensor.tolist() for name, tensor in flat.items()}
    return path.read_bytes()


def left_over(folder, output):
    """What lies beside the output."""
    known = {output.format("synthetic"), "toys", "toys/namespace_metadata.json"}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if name not in known and not name.startswith(f"{output.format('synthetic')}/")}


def case(number, *words):
    """The generator of a case."""
    return np.random.default_rng([number, *"".join(words).encode()])


def draw(generator, kind):
    """A fault somewhere in a run: it has 60 to 150 file events and writes files of up to 30 kB."""
    last = 150 if kind in ("kill", "error", "appear") else 30_000
    return Fault(
        kind, int(np.exp(generator.uniform(0, np.log(last)))) if kind != "kill" else int(generator.integers(1, 110))
    )


def goes_on(folder, dataset, output, upsampler, expected):
    """Left alone, it completes the output, and nothing else stays."""
    outcome = run(folder, dataset, named(folder, output), upsampler, resume=True)
    assert outcome.ended == "done", outcome
    assert content(folder, output) == expected
    assert not left_over(folder, output)


@pytest.mark.parametrize("kind", ["kill", "kill_write", "error", "full_disk"])
def test_interrupted_runs_go_on(tmp_path, data, fault_case, kind):
    """One to three interruptions, then a run that is left alone."""
    generator = case(fault_case, kind)
    output = str(generator.choice(OUTPUTS[:2] if kind in ("full_disk", "kill_write") else OUTPUTS))
    upsampler = str(generator.choice(["model", "bootstrap"]))
    (dataset, _), reference = data
    expected = reference(0, output, upsampler)
    for _ in range(int(generator.integers(1, 4))):
        outcome = run(tmp_path, dataset, named(tmp_path, output), upsampler, draw(generator, kind), resume=True)
        assert outcome.ended in ("done", "killed", "OSError", "ValueError"), outcome
        if outcome.ended == "ValueError":
            assert "wait for it" not in outcome.said, "a lock has outlived its process"
            assert kind in ("error", "full_disk")
        assert content(tmp_path, output) in (None, expected)
    goes_on(tmp_path, dataset, output, upsampler, expected)


def test_other_data_after_a_kill_never_get_the_old_rows(tmp_path, data, fault_case):
    generator = case(fault_case, "other")
    output = str(generator.choice(OUTPUTS[:2]))
    (ours, other), reference = data
    first = run(tmp_path, ours, named(tmp_path, output), "bootstrap", draw(generator, "kill"))
    if content(tmp_path, output) is not None:
        named(tmp_path, output).unlink()
    second = run(tmp_path, other, named(tmp_path, output), "bootstrap")
    if second.ended == "done":
        assert content(tmp_path, output) == reference(1, output, "bootstrap")
    else:
        assert first.ended == "killed"
        assert (second.ended, content(tmp_path, output)) == ("ValueError", None)
        assert "unfinished run" in second.said


def test_what_appears_meanwhile_is_left_alone(tmp_path, data, fault_case):
    generator = case(fault_case, "appear")
    output = str(generator.choice(OUTPUTS[:2]))
    (dataset, _), reference = data
    outcome = run(tmp_path, dataset, named(tmp_path, output), "bootstrap", draw(generator, "appear"))
    if content(tmp_path, output) == b"someone else's":
        assert outcome.ended == "ValueError"
        assert "appeared" in outcome.said or "exists already" in outcome.said
        again = run(tmp_path, dataset, named(tmp_path, output), "bootstrap", resume=True)
        assert (again.ended, content(tmp_path, output)) == ("ValueError", b"someone else's")
        named(tmp_path, output).unlink()
    goes_on(tmp_path, dataset, output, "bootstrap", reference(0, output, "bootstrap"))


def test_two_processes_on_one_output(tmp_path, data, fault_case):
    """One of them writes it; the other one is told, or finds it complete. A kill of either does no harm."""
    generator = case(fault_case, "two")
    output = str(generator.choice(OUTPUTS[:2]))
    upsampler = str(generator.choice(["model", "bootstrap"]))
    (dataset, _), reference = data
    expected = reference(0, output, upsampler)
    resume = bool(generator.integers(2))
    faults = [draw(generator, "kill") if generator.integers(3) == 0 else Fault() for _ in range(2)]
    outcomes = [
        wait(started)
        for started in [
            start(tmp_path, dataset, named(tmp_path, output), upsampler, fault, resume=resume) for fault in faults
        ]
    ]
    for outcome in outcomes:
        assert outcome.ended in ("done", "killed", "ValueError"), outcome
        if outcome.ended == "ValueError":
            assert any(words in outcome.said for words in ("another process", "exists already", "unfinished run")), (
                outcome
            )
    assert content(tmp_path, output) in (None, expected)
    if all(fault.kind == "none" for fault in faults):
        assert any(outcome.ended == "done" for outcome in outcomes)
    goes_on(tmp_path, dataset, output, upsampler, expected)


PLANTED = ("settings.json", "settings.json.tmp", "fit.json", "model.safetensors", "model.safetensors.tmp", "lock",
           "output", "rows-000000.safetensors", "rows-000001.safetensors.tmp", "notes.txt", "rows", "")  # fmt: skip


def test_planted_folders_and_links_are_not_followed(tmp_path, data, fault_case):
    """Nothing outside the folder changes, and what was planted reaches no output."""
    generator = case(fault_case, "planted")
    output = str(generator.choice(OUTPUTS[:2]))
    (dataset, _), reference = data
    victim, outside = tmp_path / "victim", tmp_path / "outside"
    victim.write_bytes(b"precious")
    outside.mkdir()
    (outside / "rows-000000.safetensors").write_bytes(b"precious")
    folder = tmp_path / "run"
    folder.mkdir()
    work = folder / f"{output.format('synthetic')}{generator.choice(['.partial', '.partial', '.partial.removing'])}"
    if generator.integers(5) == 0:
        work.symlink_to(generator.choice([outside, victim, tmp_path / "nowhere"]))
    else:
        work.mkdir()
        for name in generator.choice(PLANTED, int(generator.integers(1, 4)), replace=False):
            if name:  # otherwise the folder may be empty
                plant(work / str(name), str(generator.choice(["link", "hard", "file", "folder"])), victim)
    outcome = run(folder, dataset, named(folder, output), "model", resume=bool(generator.integers(2)))
    assert victim.read_bytes() == b"precious"
    assert [path.read_bytes() for path in outside.iterdir()] == [b"precious"]
    assert outcome.ended in ("done", "ValueError"), outcome
    found = content(folder, output)
    assert found == (reference(0, output, "model") if outcome.ended == "done" else None)
    if outcome.ended == "ValueError":
        assert str(work).removesuffix(".removing") in outcome.said


def plant(path, kind, victim):
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard":
        path.hardlink_to(victim)
    elif kind == "file":
        path.write_bytes(b"{}")
    else:
        path.mkdir()
