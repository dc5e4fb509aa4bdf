"""Settings of the study of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from studies.common.cache import ROOT
from studies.common.settings import Settings
from studies.common.study import read_yaml

FILE = Path(__file__).with_name("settings.yaml")
LM = "models/lm"

CONTROL = "final"
"""The arm whose full depth all others are held against."""


class Machine(Settings):
    """How much is trained and measured on one kind of device, and in which pieces."""

    tokens: int
    batch_size: int
    gradient_checkpointing: bool
    precisions: list[str]
    timed_steps: int
    looks: int
    look_windows: int
    routed_windows: int
    control_windows: int
    measured_batch: int
    pairs: int
    prompts: int
    snapshot_seconds: float
    threads: int


class Lora(Settings):
    rank: int
    alpha: float


class StudySettings(Settings):
    """The contents of settings.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    candidates: list[int]
    exits: int
    look_tokens: int
    looked_at: int
    signals: list[str]
    probes: int
    prompt: int
    new_tokens: int
    draft_length: int
    draft_vocabulary: int
    bootstrap: int
    params: dict[str, Any]
    exit_weights: float
    layer_dropout: float
    curriculum: str | None
    lora: Lora
    frozen_steps: int
    frozen_learning_rate: float
    devices: dict[str, Machine]


@dataclass(frozen=True)
class Choice:
    """What measurement has chosen for all arms."""

    exits_after: list[int]
    precision: str


def read_settings(path: Path = FILE) -> StudySettings:
    """The settings. UserError that names field and value."""
    return StudySettings.of(read_yaml(path))


def checkpoint_of(settings: StudySettings) -> Path:
    """The folder of the checkpoint."""
    return (ROOT / settings.checkpoint).resolve()
