"""What the tests of other people's programs share: what a YAML file can say, and the mix of each update's rows."""

import json

import numpy as np

#: A diffusion upsampler that trains in a second, as plain data.
TINY = {
    "train_steps": 10,
    "warm_steps": 5,
    "terminal_steps": 10,
    "outcome_steps": 0,
    "num_synthetic": 300,
    "network": {"width": 16, "depth": 1, "embedding_dim": 8},
    "training": {"batch_size": 64, "bfloat16": False},
    "sampler": {"solver": {"num_steps": 4}, "bfloat16": False},
}


def log_of(path):
    """The refresh log's lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def synthetic_rows(buffer, batch):
    """True for the rows of an SB3 batch that are in the buffer's synthetic set, ``[N]``."""
    known = {row.tobytes() for row in buffer.synthetic.rows.observation.cpu().numpy()}
    return np.array([row.tobytes() in known for row in batch.observations.cpu().numpy()])


def recorded(model):
    """A list to which every batch is added that the algorithm samples from now on: batch, synthetic rows or None."""
    sample, batches = model.replay_buffer.sample, []

    def recording(*args, **kwargs):
        batch = sample(*args, **kwargs)
        replay = model.replay_buffer.synthetic
        batches.append((batch, None if replay.rows is None else synthetic_rows(model.replay_buffer, batch)))
        return batch

    model.replay_buffer.sample = recording
    return batches
