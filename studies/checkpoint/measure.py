"""What an arm is worth on test text: its ceilings, what signals reach of them, and seconds.

Everything is held against the control's full depth: a rise of 1 % is one over its perplexity on the same
tokens. Shapes: K exits, N tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp.analysis.oracle import RISES
from offramp.artifacts.artifact import open_artifact
from offramp.artifacts.files import write_json
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.machine.device import setup
from offramp.models.blockwise import Blockwise
from offramp.models.store import load_model
from offramp.params import read_params
from offramp.results.routing import CurvePoint
from offramp.routing.cost import exit_costs
from offramp.routing.executor import Executor
from offramp.routing.search import Text
from offramp.routing.speculation import most_frequent
from offramp.routing.split import CachedSplit, spread_windows, token_rows
from offramp.states.resampling import GroupSums, interval
from offramp.states.store import States
from offramp.tracking.git import last_commit
from studies.checkpoint import clock
from studies.checkpoint.arms import arms
from studies.checkpoint.ceilings import attainable_against
from studies.checkpoint.results import TIMED_RISE, AtShare, Attained, ExitQuality, Measures
from studies.checkpoint.search import Search, costs_of, saving_of, searches
from studies.checkpoint.settings import CONTROL, LM, StudySettings
from studies.common.cache import ROOT


def run(folder: Path, settings: StudySettings, device_name: str, name: str) -> None:
    """Write measures.json to the arm's project."""
    measurement = _Measurement(folder, settings, device_name, name)
    write_json(folder / name / "measures.json", measurement.measures().to_json())


class _Measurement:
    """An arm beside the control, opened."""

    def __init__(self, folder: Path, settings: StudySettings, device_name: str, name: str):
        self.settings, self.sizes = settings, settings.devices[device_name]
        self.device = setup(device_name, self.sizes.threads)
        self.project, self.control = folder / name, folder / CONTROL
        (self.arm,) = (arm for arm in arms(settings) if arm.name == name)
        self.params = read_params(self.project / "params.yaml")
        self.model = self._load(self.project)
        self.executor = Executor(self.model, self.params.routing.kv, self.params.collect.precision)
        self.data = open_artifact(folder / "base/data", "data")
        self.windows = {split: TokenWindows(self.data, split) for split in ("calibration", "test")}
        self.states = {split: _states(self.project, split) for split in self.windows}
        self.reference = {split: _states(self.control, split) for split in self.windows}
        for split, states in self.states.items():
            if states.artifact.inputs["data"] != self.reference[split].artifact.inputs["data"]:
                raise ValueError(f"{split}: the states of {name} and of the control are of other tokens")
        self.test = CachedSplit.of(self.states["test"])
        self.control_loss = _full_loss(self.reference["test"])

    def measures(self) -> Measures:
        """All of them; what asks exits, not of an arm whose exits were never trained."""
        test, draws = self.test, self.settings.bootstrap
        loss, divergence = np.stack(test.loss), np.stack(test.divergence)
        window = self.windows["test"].window
        costs = np.array(exit_costs(self.model, window, reads_out=False, decision_flops=0))
        attained, chosen, scoring, decoding, drafting = [], None, None, None, None
        if self.arm.signals:
            found = self._searches()
            attained = [self._attained(search, rise) for search in found.values() for rise in RISES]
            timed = [row for row in attained if row.rise == TIMED_RISE]
            chosen = max(timed, key=lambda row: row.calibration_saving)
            scoring, decoding, drafting = self._clocked(found[chosen.signal], chosen)
        return Measures(
            tokens=len(test.target),
            documents=len(np.unique(test.document)),
            exits=self._exits(),
            against_control=attainable_against(
                self.control_loss, divergence, loss, costs, test.document, draws
            ),
            against_itself=attainable_against(loss[-1], divergence, loss, costs, test.document, draws),
            attained=attained,
            at_shares=self._at_shares() if self.arm.shares else [],
            chosen=chosen,
            scoring=scoring,
            decoding=decoding,
            drafting=drafting,
            machine=clock.described(self.device),
            commit=None if (commit := last_commit(ROOT)) is None else commit.hash[:7],
        )

    def _exits(self) -> list[ExitQuality]:
        test, sizes = self.test, self.model.config.block_layers
        draws = GroupSums(test.document, dict(enumerate(test.loss))).resample(self.settings.bootstrap, 0)
        return [
            ExitQuality(
                layers=sum(sizes[: exit + 1]),
                ppl=float(np.exp(loss.mean(dtype=np.float64))),
                ppl_interval=interval(np.exp(draws[exit])),
                agreement=float((test.argmax[exit] == test.argmax[-1]).mean()),
            )
            for exit, loss in enumerate(test.loss)
        ]

    def _searches(self) -> dict[str, Search]:
        text = Text(self.executor, self.windows["calibration"], torch.empty(0), self.sizes.measured_batch)
        exits = Exits(open_artifact(self.project / "models/exits", "exits"))
        return searches(
            text,
            self.states["calibration"],
            self.reference["calibration"],
            exits,
            self.settings.signals,
            max(1, self.sizes.routed_windows // 2),
            self.params.routing.keep_first,
        )

    def _attained(self, search: Search, rise: str) -> Attained:
        """A signal at one rise: thresholds from calibration text, run on test text."""
        place = search.furthest(RISES[rise], self.settings.probes)
        calibration_loss, calibration_saving = search.run(place)
        windows = self.windows["test"]
        chosen = spread_windows(len(windows), self.sizes.routed_windows)
        text = Text(self.executor, windows, chosen, self.sizes.measured_batch)
        routed, rows = text.run(search.policy(place)), token_rows(chosen, windows.window)
        reference, document = self.control_loss[rows], self.test.document[rows]
        cost = costs_of(self.model, search.scorer, windows.window)[routed.exit]
        columns = {"loss": routed.loss, "reference": reference, "cost": cost}
        draws = GroupSums(document, columns).resample(self.settings.bootstrap, 0)
        mean = {name: float(values.mean(dtype=np.float64)) for name, values in columns.items()}
        return Attained(
            signal=search.scorer.signal,
            rise=rise,
            thresholds=search.path[place],
            calibration_saving=calibration_saving,
            calibration_rise=float(np.expm1(calibration_loss - search.reference.mean(dtype=np.float64))),
            flop_saving=1 - mean["cost"],
            interval=interval(1 - draws["cost"]),
            executed_saving=saving_of(text, routed, search.scorer),
            ppl=float(np.exp(mean["loss"])),
            ppl_rise=float(np.expm1(mean["loss"] - mean["reference"])),
            rise_interval=interval(np.expm1(draws["loss"] - draws["reference"])),
            shallow_ratio=float((routed.exit < self.test.last).mean()),
            tokens=len(rows),
            documents=len(np.unique(document)),
        )

    def _clocked(
        self, search: Search, chosen: Attained
    ) -> tuple[clock.Clocked, clock.Clocked, clock.Drafted]:
        sizes, new = self.sizes, self.settings.new_tokens
        control = self._load(self.control)
        policy = search.policy(search.path.index(chosen.thresholds))
        test, size = self.windows["test"], sizes.measured_batch
        spread = spread_windows(len(test), sizes.pairs * size)
        batches = [
            tuple(part.to(self.device) for part in test.batch(rows))
            for rows in spread.split(min(size, max(1, len(spread) // sizes.pairs)))
        ]
        plain = Executor(control, self.params.routing.kv, self.params.collect.precision)
        prompts, trial = self._prompts("test", sizes.prompts), self._prompts("calibration", clock.TRIALS)
        return (
            clock.scoring(plain, self.executor, policy, batches),  # type: ignore[arg-type]
            clock.decoding(control, self.model, policy, prompts, new, self.params.routing.kv),
            clock.drafting(
                self.model, trial, prompts, new, self.settings.draft_length, self._draft_vocabulary()
            ),
        )

    def _prompts(self, split: str, count: int) -> list[list[int]]:
        windows = self.windows[split]
        tokens, _ = windows.batch(spread_windows(len(windows), count))
        return tokens[:, : self.settings.prompt].tolist()

    def _draft_vocabulary(self) -> Tensor:
        """The tokens that occur most in training text."""
        train, counts = TokenWindows(self.data, "train"), torch.zeros(self.model.config.vocab_size)
        for rows in torch.arange(len(train)).split(4096):
            counts += torch.bincount(train.batch(rows)[0].flatten(), minlength=len(counts))
        return most_frequent(counts, self.settings.draft_vocabulary)

    def _at_shares(self) -> list[AtShare]:
        return [
            AtShare(
                signal=row.signal,
                share=row.fraction,
                shallow_ratio=row.shallow_ratio,
                ppl=row.ppl,
                attained=row.attained,
                interval=None
                if row.attained_low is None or row.attained_high is None
                else [row.attained_low, row.attained_high],
            )
            for row in CurvePoint.read(self.project)
        ]

    def _load(self, project: Path) -> Blockwise:
        lm = open_artifact(project / LM, "lm")
        return load_model(lm, project).to(self.device)


def _states(project: Path, split: str) -> States:
    return States(open_artifact(project / "states" / split, "states", verify=False))


def _full_loss(states: States) -> np.ndarray:
    return states.column(f"loss_{states.num_exits - 1}")
