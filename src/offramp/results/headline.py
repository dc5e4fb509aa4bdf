"""The few numbers by which results are compared, of the stage report.

They are the only metrics of DVC: everything else that a stage measures lies in files that DVC keeps, and does
not list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from offramp.results.routing import Routing, Timing
from offramp.results.shape import MetricsFile


class Headline(MetricsFile):
    """Routing at the chosen threshold, in the order in which people compare it."""

    path = "metrics/headline.json"

    ppl: float
    full_ppl: float
    """Perplexity of full depth."""
    ppl_increase: float
    accuracy: float
    agreement: float
    shallow_ratio: float
    layer_saving: float
    flop_saving: float
    wall_saving: float
    """The only one of them that differs between equal runs: it was timed."""
    attained: float | None
    headroom: float | None

    @classmethod
    def of(cls, routing: Routing, timing: Timing) -> Self:
        """The same numbers where the stage evaluate wrote them."""
        return cls(
            ppl=routing.ppl,
            full_ppl=routing.controls.full.ppl,
            ppl_increase=routing.ppl_increase,
            accuracy=routing.accuracy,
            agreement=routing.agreement,
            shallow_ratio=routing.shallow_ratio,
            layer_saving=routing.layer_saving,
            flop_saving=routing.flop_saving,
            wall_saving=timing.wall_saving,
            attained=routing.attained,
            headroom=routing.headroom,
        )

    @classmethod
    def of_project(cls, root: Path) -> Self | None:
        """Of what the stage evaluate left in the project in ``root``; None before it has run."""
        routing, timing = Routing.read_if_there(root), Timing.read_if_there(root)
        return cls.of(routing, timing) if routing and timing else None
