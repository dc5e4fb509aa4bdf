"""All that is done, as one file of results, and as rows of metrics/benchmarks.json."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from offramp.analysis.oracle import RISES
from offramp.machine.versions import LIBRARIES
from offramp.results.benchmarks import PATH, Benchmark, read_benchmarks, verdict, write_benchmarks
from offramp.results.pretraining import Pretraining
from studies.checkpoint.arms import Arm, arms
from studies.checkpoint.plan import Plan
from studies.checkpoint.projects import Unit
from studies.checkpoint.results import (
    SPECULATION_BAR,
    SPEED_BAR,
    TIMED_RISE,
    ArmResults,
    Clocked,
    Drafted,
    Measures,
    Ran,
    Results,
    first_told,
)
from studies.checkpoint.settings import CONTROL, StudySettings

SPEED, SPECULATION = "checkpoint_speed_at_1_percent", "checkpoint_speculation"


def gathered(plan: Plan) -> Results:
    """The results so far: of all arms that are measured, also where fewer were wanted now."""
    plan = replace(plan, wanted=())
    units = plan.units()
    measured = {
        unit.project.folder.name for unit in units if unit.name == "measure" and unit.done is not None
    }
    made = [_of_arm(plan, arm, units) for arm in plan.arms if arm.name in measured]
    look, precision = (
        json.loads((plan.base.folder / f"{name}.json").read_text()) for name in ("look", "precision")
    )
    return Results(
        device=plan.device,
        machine=made[0].measures.machine if made else "",
        versions={name: version(LIBRARIES[name]) for name in ("numpy", "torch", "transformers")},
        settings=plan.settings.model_dump(),
        look=look,
        precision=precision,
        arms=made,
    )


def joined(results: Results, earlier: Results | None) -> Results:
    """``results`` with the arms of ``earlier`` that they lack: an arm is hours of work, so that one machine
    need not run them all.

    Arms belong together where settings, exits and precision are the same and the control's exits have, to
    the last digit, the same perplexities on test text. Otherwise nothing of ``earlier`` is kept, and a
    warning names what goes.
    """
    if earlier is None:
        return results
    if _study(results) != _study(earlier):
        gone = {arm.name for arm in earlier.arms} - {arm.name for arm in results.arms}
        if gone:
            logging.warning("arms of another study or control are left out: %s", ", ".join(sorted(gone)))
        return results
    known = {arm.name: arm for arm in (*earlier.arms, *results.arms)}
    names = [arm.name for arm in arms(StudySettings.of(results.settings)) if arm.name in known]
    return results.model_copy(update={"arms": [known[name] for name in names]})


def _study(results: Results) -> tuple[object, ...]:
    """What must be the same for arms of two runs to be set beside each other."""
    values = results.to_json()
    control = [arm for arm in results.arms if arm.name == CONTROL]
    exits = [exit.ppl for arm in control for exit in arm.measures.exits]
    return values["settings"], results.look["chosen"], results.precision["chosen"], exits


def _of_arm(plan: Plan, arm: Arm, units: Iterable[Unit]) -> ArmResults:
    project = plan.project(arm)
    records = {unit.name: unit.done for unit in units if unit.project == project}
    fitted = Pretraining.read(project.folder)
    (phase,) = fitted.phases.values()
    return ArmResults(
        name=arm.name,
        says=arm.says,
        trained_tokens=fitted.tokens_seen,
        best_step=phase.best_step,
        steps=phase.steps,
        ran={
            name: Ran(seconds=done.seconds, memory_gb=done.memory_gb, resumed=done.resumed, ended=done.ended)
            for name, done in records.items()
            if done is not None
        },
        measures=Measures.model_validate_json((project.folder / "measures.json").read_text()),
    )


def benchmarks(results: Results) -> list[Benchmark]:
    """The rows of metrics/benchmarks.json that the results support; none where no arm was timed.

    Both are of the arm that calibration text chooses, at batch 1: test text decides whether the rise was
    kept, and so whether the bar can be met, but not which arm is shown. The machine is as it was while that
    arm was timed.
    """
    arm = first_told(results.arms)
    if arm is None:
        return []
    speed, drafted = arm.measures.decoding, arm.measures.drafting
    assert speed is not None and drafted is not None  # of what was chosen all is timed
    may_meet = _rise(arm) <= RISES[TIMED_RISE]
    return [
        _row(SPEED, speed, SPEED_BAR, _held_against(arm), arm, may_meet=may_meet),
        _row(
            SPECULATION,
            drafted,
            SPECULATION_BAR,
            f"plain decoding of the same model at batch 1, drafting after {drafted.layers} layers from "
            f"{drafted.vocabulary} tokens; "
            f"{drafted.accepted} of {drafted.drafted} drafted tokens accepted, "
            f"{'the same tokens' if drafted.same else 'OTHER TOKENS'}",
            arm,
        ),
    ]


def _held_against(arm: ArmResults) -> str:
    chosen = arm.measures.chosen
    assert chosen is not None
    return (
        f"decoding at batch 1 of the control at full depth; the arm {arm.name} by {chosen.signal}, "
        f"thresholds chosen on calibration text for 1 % more perplexity: {chosen.ppl_rise:.2%} on "
        f"{chosen.tokens} test tokens, "
        f"{chosen.shallow_ratio:.1%} leave, {chosen.executed_saving:.1%} of the FLOPs saved"
    )


def _rise(arm: ArmResults) -> float:
    chosen = arm.measures.chosen
    return math.inf if chosen is None else chosen.ppl_rise


def _row(
    name: str, measured: Clocked | Drafted, bar: float, held: str, arm: ArmResults, may_meet: bool = True
) -> Benchmark:
    """A row; where it may not meet its bar it counts as full depth, and its words tell the speed."""
    value, interval, limit = measured.speed, measured.interval, f">= {bar}"
    if not may_meet:
        held = f"{held}; more than 1 % on test text, so its {value:.2f}x count as none"
        value, interval = 1.0, [1.0, 1.0]
    return Benchmark(
        name=name,
        value=value,
        unit="x speed",
        bar=limit,
        held_against=held,
        n=measured.pairs,
        interval=interval,
        verdict=verdict(value, interval, limit),
        machine=arm.measures.machine,
        commit=arm.measures.commit,
        date=arm.ran["measure"].ended.split()[0],
    )


def write_rows(rows: list[Benchmark], root: Path) -> None:
    """Put rows into metrics/benchmarks.json below ``root``, in place of those of the same name."""
    file = root / PATH
    kept = read_benchmarks(file) if file.exists() else {}
    write_benchmarks(file, (kept | {row.name: row for row in rows}).values())
