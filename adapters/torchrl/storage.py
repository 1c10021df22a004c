"""The storages: TorchRL's lazy ones, whose batches are partly synthetic after the first refresh."""

from __future__ import annotations

from torchrl.data import LazyMemmapStorage, LazyTensorStorage

from .mixing import SynthERStorageMixin


class SynthERStorage(SynthERStorageMixin, LazyTensorStorage):  # type: ignore[misc]
    """`LazyTensorStorage` whose batches are partly synthetic.

    ``TensorDictReplayBuffer(storage=SynthERStorage(100_000), batch_size=256)``

    Args: see `SynthERStorageMixin`; everything else is TorchRL's.
    """


class SynthERMemmapStorage(SynthERStorageMixin, LazyMemmapStorage):  # type: ignore[misc]
    """`LazyMemmapStorage` whose batches are partly synthetic; the synthetic set is held in memory.

    Args: see `SynthERStorageMixin`; everything else is TorchRL's.
    """
