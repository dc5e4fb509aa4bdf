"""The study as a list of units, in the order in which they are run.

What is measured first (which exits, which precision) decides parameters of all arms, so the plan grows: as
long as a look is not done, it ends there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.artifacts.files import write_json
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.weights import weight_digests
from offramp.errors import UserError
from offramp.lineage.code import code_digest
from studies.checkpoint.arms import Arm, arms, shared_params
from studies.checkpoint.projects import Project, Unit, key_of
from studies.checkpoint.settings import CONTROL, Choice, StudySettings, checkpoint_of
from studies.common.cache import ROOT

BASE, EXPORTED = "base", "exported"
"""The project in which exits and precision are chosen, and the control's model as a checkpoint."""
SETTINGS = "settings.json"
"""In the folder: what steps of the study read."""
WORK = "studies.checkpoint.work"
READS = {
    "look": ("candidates", "exits", "look_tokens", "looked_at", "threads"),
    "precision": ("batch_size", "gradient_checkpointing", "precisions", "timed_steps", "threads"),
    "export": (),
    "measure": (
        *("signals", "probes", "prompt", "new_tokens", "draft_length", "draft_vocabulary", "bootstrap"),
        *("routed_windows", "measured_batch", "pairs", "prompts", "threads"),
    ),
}
"""What each step of the study reads of its settings."""


@dataclass(frozen=True)
class Plan:
    """The study on one kind of device, in a folder."""

    folder: Path
    device: str
    settings: StudySettings
    wanted: tuple[str, ...] = ()
    """Arms to run; all of them where none is named. The control is always run."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Parameters of the product over those of all arms."""

    @property
    def base(self) -> Project:
        return Project(self.folder / BASE)

    def project(self, arm: Arm) -> Project:
        return Project(self.folder / arm.name)

    @property
    def arms(self) -> list[Arm]:
        """Those that are run. UserError for a name that no arm has."""
        known = arms(self.settings)
        names = [arm.name for arm in known]
        if unknown := [name for name in self.wanted if name not in names]:
            raise UserError(f"--arm {unknown[0]!r} is not an arm; choose from {', '.join(names)}")
        return [arm for arm in known if not self.wanted or arm.name in (*self.wanted, CONTROL)]

    def make(self) -> None:
        """Make the folder and the project of the first looks; UserError where there is no checkpoint."""
        checkpoint = checkpoint_of(self.settings)
        if not (checkpoint / "config.json").exists():
            raise UserError(
                f"checkpoint = {checkpoint} is no checkpoint; run `make smollm2`, or give --checkpoint"
            )
        least = len(self.settings.candidates) + 1  # of steps, with an exit at every candidate
        self.base.make(self.shared | {"pretrain.steps": max(least, self.shared["pretrain.steps"])})
        write_json(self.folder / SETTINGS, self.settings.model_dump() | {"device": self.device})

    @property
    def shared(self) -> dict[str, Any]:
        return shared_params(self.settings, self.device, checkpoint_of(self.settings)) | self.extra

    @property
    def choice(self) -> Choice | None:
        """What the looks chose, once they are done."""
        files = [self.base.folder / name for name in ("look.json", "precision.json")]
        if not all(file.exists() for file in files):
            return None
        look, precision = (json.loads(file.read_text()) for file in files)
        return Choice(look["chosen"], precision["chosen"])

    def first_units(self) -> list[Unit]:
        """Text, and the looks that choose exits and precision."""
        weights = weight_digests(Checkpoint(str(checkpoint_of(self.settings))))
        prepared = self.base.stage_key("prepare", key_of(weights))
        look = self._step_key("look", prepared)
        precision = self._step_key("precision", look)
        return [
            Unit(self.base, "prepare", ["pipeline.prepare"], prepared),
            Unit(self.base, "look", [WORK, "look", str(self.folder)], look),
            Unit(self.base, "precision", [WORK, "precision", str(self.folder)], precision),
        ]

    def units(self) -> list[Unit]:
        """All units that can be known by now."""
        first = self.first_units()
        choice = self.choice
        if choice is None or not all(unit.done for unit in first):
            return first
        units, keys = list(first), {}
        for arm in self.arms:
            made = self._units_of(arm, choice, first[0].key, keys)
            keys[arm.name] = next(unit.key for unit in made if unit.name == "collect")
            units += made
        return units

    def make_arm(self, arm: Arm, choice: Choice) -> Project:
        """The project of an arm, with its parameters as the looks have chosen them."""
        project = self.project(arm)
        exported = {"model.name_or_path": str((self.folder / EXPORTED).resolve())} if arm.of_control else {}
        project.make(
            {
                **self.shared,
                "model.exits_after": choice.exits_after,
                "pretrain.precision": choice.precision,
                **arm.overrides,
                **exported,
            }
        )
        project.link("data", self.base.folder / "data")
        return project

    def _units_of(self, arm: Arm, choice: Choice, prepared: str, keys: dict[str, str]) -> list[Unit]:
        project = self.make_arm(arm, choice)
        units, read = [], prepared
        if arm.of_control:
            read = self._step_key("export", keys[CONTROL])
            units.append(Unit(project, "export", [WORK, "export", str(self.folder)], read))
        stages = ["pretrain", "collect", *(["train_exits"] if arm.signals else [])]
        for stage in [*stages, *(["sweep"] if arm.shares else [])]:
            read = project.stage_key(stage, read)
            units.append(Unit(project, stage, [f"pipeline.{stage}"], read))
        measured = self._step_key("measure", key_of(read, keys.get(CONTROL)))
        units.append(Unit(project, "measure", [WORK, "measure", str(self.folder), arm.name], measured))
        return units

    def _step_key(self, step: str, read: str) -> str:
        """The key of a step of the study: its code, and what it reads of the settings."""
        machine = self.settings.devices[self.device]
        values = {
            name: getattr(machine if hasattr(machine, name) else self.settings, name) for name in READS[step]
        }
        return key_of(step, values, self.device, code_digest(f"studies.checkpoint.{step}", ROOT), read)
