"""The current synthetic rows, and drawing from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..transitions import Transitions


class SyntheticSet:
    """Rows on a device, drawn with replacement by their own generator.

    The last `num_policy` rows may be of another kind, with a share of the draws of their own. Within each kind all rows
    are equally likely.

    Args:
        device: of the rows.
        seed: of the draws.

    Attributes:
        rows: the rows, None before the first refresh.
        num_policy: of the last rows, those with the policy's actions.
        policy_share: of the draws, how many are of these rows.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self.rows: Transitions | None = None
        self.num_policy, self.policy_share = 0, 0.0
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw_indices(self, num_rows: int) -> Tensor:
        """Indices into `rows`, ``[num_rows]`` int64 on the set's device.

        Raises:
            RuntimeError: there are no rows yet.
        """
        count = len(self.served())
        if self.num_policy == 0:
            return torch.randint(count, (num_rows,), generator=self._generator, device=self.device)
        others = count - self.num_policy
        plain = torch.randint(others, (num_rows,), generator=self._generator, device=self.device)
        policy = torch.randint(others, count, (num_rows,), generator=self._generator, device=self.device)
        chance = torch.rand(num_rows, generator=self._generator, device=self.device, dtype=torch.float32)
        return torch.where(chance < self.policy_share, policy, plain)

    def replace_rows(self, rows: Transitions) -> None:
        """Serve another set."""
        self.rows, self.num_policy = rows, 0

    def replace_policy_rows(self, rows: Transitions, share: float) -> None:
        """Serve other policy rows in place of the last rows of the set, in new memory.

        Args:
            rows: fewer than the set has.
            share: of the draws.
        """
        served, count = self.served().flat(), len(rows)
        first = len(self.served()) - count
        new = rows.to(self.device).flat()
        self.rows = Transitions.from_flat({name: torch.cat((served[name][:first], new[name])) for name in served})
        self.num_policy, self.policy_share = count, share

    def served(self) -> Transitions:
        """The rows.

        Raises:
            RuntimeError: there are none yet.
        """
        if self.rows is None:
            raise RuntimeError("there are no synthetic rows before the first refresh; ask split() how to mix.")
        return self.rows

    def to(self, device: torch.device) -> None:
        """Move the rows to another device."""
        if device == self.device:
            return
        # A generator cannot move to another device: the new one is seeded by a draw of the old one.
        seed = int(torch.randint(2**62, (), generator=self._generator, device=self.device))
        rows = None if self.rows is None else self.rows.to(device)
        self.device, self._generator, self.rows = device, torch.Generator(device).manual_seed(seed), rows

    def state_dict(self) -> dict[str, Any]:
        """Rows and generator: CPU tensors and plain data."""
        return {
            "rows": None if self.rows is None else self.rows.to("cpu").flat(),
            "drawn_on": self.device.type,
            "generator": self._generator.get_state().cpu(),
            "num_policy": self.num_policy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. On another type of device, later draws have a new seed."""
        rows = None if state["rows"] is None else Transitions.from_flat(state["rows"]).to(self.device)
        if state["drawn_on"] == self.device.type:
            self._generator.set_state(state["generator"])
        self.rows = rows
        self.num_policy = state.get("num_policy", 0)
