"""Some windows of a split with a model that runs them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from offramp.corpus.windows import TokenWindows
from offramp.routing.executor import Executor, Policy
from offramp.routing.split import RoutedSplit, run_split


@dataclass(frozen=True)
class Text:
    """Windows of a split, and who runs them."""

    executor: Executor
    windows: TokenWindows
    chosen: Tensor
    """Numbers of the windows."""
    batch_size: int

    def of(self, chosen: Tensor) -> Text:
        """Other windows of the split."""
        return replace(self, chosen=chosen)

    def run(self, policy: Policy) -> RoutedSplit:
        """Route all of them."""
        return run_split(self.executor, self.windows, self.chosen, policy=policy, batch_size=self.batch_size)
