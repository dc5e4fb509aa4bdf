"""The arms of the study: what each overrides in the product's parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.checkpoint.settings import CONTROL, Machine, StudySettings

FROZEN_LOOKS = 4
"""Looks at calibration text while exits are tuned, the model frozen."""


@dataclass(frozen=True)
class Arm:
    """One way to give a checkpoint exits."""

    name: str
    says: str
    """What is done, in words."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Parameters of the product, by dotted name, over those of ``shared_params``."""
    trains: bool = True
    """Whether the checkpoint itself is trained, on the budget of tokens."""
    of_control: bool = False
    """Whether it begins with the model that the control ends with."""
    signals: bool = True
    """Whether its exits are worth asking: those of the control were never trained."""
    shares: bool = False
    """Whether all signals are compared at equal exit shares, too."""


def arms(settings: StudySettings) -> list[Arm]:
    """All arms, in the order in which they are run: what the others are held against first."""
    weights = [settings.exit_weights / settings.exits] * settings.exits + [1.0]
    joint = {"pretrain.method": "joint", "pretrain.exit_weights": weights}
    frozen = {
        "pretrain.method": "frozen",
        "pretrain.gradient_checkpointing": False,
        "pretrain.steps": settings.frozen_steps,
        "pretrain.evaluate_every": max(1, settings.frozen_steps // FROZEN_LOOKS),
        "pretrain.learning_rate": settings.frozen_learning_rate,
        "pretrain.patience": 3,
    }
    recipe = {
        "pretrain.layer_dropout": settings.layer_dropout,
        "pretrain.curriculum": settings.curriculum,
    }
    return [
        Arm(
            CONTROL,
            "fine-tuned without exits: the control",
            {"pretrain.method": "final", "pretrain.frozen.translator": "identity"},
            signals=False,
        ),
        Arm("joint", "trained with its exits, which begin by least squares", joint, shares=True),
        Arm(
            "fitted",
            "exits fitted to the control: by least squares, then tuned",
            frozen,
            trains=False,
            of_control=True,
            shares=True,
        ),
        Arm(
            "frozen",
            "exits fitted to the checkpoint as it is: by least squares, then tuned",
            frozen,
            trains=False,
            shares=True,
        ),
        Arm("layerskip", "as joint, with LayerSkip's layer dropout and curriculum", joint | recipe),
        Arm(
            "lora",
            "as joint, by adapters instead of all weights",
            joint | {"pretrain.lora": settings.lora.model_dump()},
        ),
    ]


def steps_of(settings: StudySettings, machine: Machine) -> int:
    """Steps that a budget of tokens is."""
    return max(1, machine.tokens // (machine.batch_size * settings.params["window"]))


def shared_params(settings: StudySettings, device: str, checkpoint: Path) -> dict[str, Any]:
    """Parameters of all arms, by dotted name, over those of the repository's params.yaml."""
    machine, steps = settings.devices[device], steps_of(settings, settings.devices[device])
    return {
        "model.source": "hf",
        "model.name_or_path": str(checkpoint),
        "tokenizer.kind": "pretrained",
        "model.exits_after": settings.candidates,
        "runtime.device": device,
        "runtime.threads": machine.threads,
        "runtime.snapshot_seconds": machine.snapshot_seconds,
        "pretrain.method": "joint",
        "pretrain.steps": steps,
        "pretrain.batch_size": machine.batch_size,
        "pretrain.gradient_checkpointing": machine.gradient_checkpointing,
        "pretrain.evaluate_every": max(1, steps // machine.looks),
        "pretrain.evaluate_windows": machine.look_windows,
        "collect.batch_size": machine.measured_batch,
        "routing.batch_size": machine.measured_batch,
        "routing.control_windows": machine.control_windows,
        **settings.params,
    }
