"""The study of a checkpoint, on a tiny one: its measures, and the whole of it from text to the page."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from offramp.analysis.oracle import RISES, attainable
from offramp.analysis.oracle import Path as Way
from offramp.errors import UserError
from offramp.params import load_params
from studies.checkpoint import process, projects, work
from studies.checkpoint.__main__ import main
from studies.checkpoint.arms import arms
from studies.checkpoint.ceilings import attainable_against
from studies.checkpoint.clock import in_turn, median
from studies.checkpoint.gather import benchmarks, joined
from studies.checkpoint.page import NOT_RUN, page
from studies.checkpoint.plan import WORK
from studies.checkpoint.projects import Project, Unit
from studies.checkpoint.results import Reached, first_told, read
from studies.checkpoint.search import Search
from studies.checkpoint.settings import FILE, read_settings
from tests.conftest import REPOSITORY
from tests.fixtures.checkpoints import save_checkpoint

rng = np.random.default_rng(0)
TOKENS = 4000
COSTS = np.array([0.4, 0.7, 1.0])


@pytest.fixture(scope="module")
def read_out():
    """Losses and divergences (3, N) in which depth helps, and groups (N,)."""
    loss = rng.exponential(2, (3, TOKENS)) + np.array([[0.6], [0.2], [0.0]])
    divergence = np.abs(loss - loss[-1]) * rng.uniform(0.5, 1, (3, TOKENS))
    divergence[-1] = 0
    return loss, divergence, np.arange(TOKENS) // 200


def test_against_its_own_full_depth_an_arm_attains_what_suitability_says(read_out):
    loss, divergence, groups = read_out
    ours = attainable_against(loss[-1], divergence, loss, COSTS, groups, 200)
    theirs = attainable(divergence, loss, COSTS, groups, 200).to_json()
    for rise, reached in ours.items():
        assert reached.flop_saving == theirs[rise]["flop_saving"]
        assert reached.interval == theirs[rise]["interval"] and reached.reached


def test_what_full_depth_lost_or_won_is_taken_off_or_added_to_the_rise(read_out):
    loss, divergence, groups = read_out
    way = Way.of(divergence, loss, COSTS)
    for gap in (0.02, -0.02):
        ours = attainable_against(loss[-1] + gap, divergence, loss, COSTS, groups, 50)
        for name, rise in RISES.items():
            (point,) = way.within([np.log1p(rise) + gap])
            assert ours[name].reached == (point is not None)
            assert ours[name].flop_saving == pytest.approx(point.flop_saving if point else 0.0, abs=1e-9)


def test_a_model_that_is_worse_throughout_attains_nothing(read_out):
    loss, divergence, groups = read_out
    ours = attainable_against(loss.min(0) - 1, divergence, loss, COSTS, groups, 50)
    assert all(not reached.reached and reached.flop_saving == 0 for reached in ours.values())


class Ladder(Search):
    """Candidates whose executed loss is 0.01 more than predicted for every place."""

    def run(self, place):
        self.tried[place] = 0.011 * place, 0.1 * place
        return self.tried[place]


@pytest.mark.parametrize(("rise", "wanted"), [(0.0001, 0), (0.034, 3), (0.06, 5), (5.0, 9)])
def test_a_search_ends_at_the_furthest_candidate_that_stays_within_the_rise(rise, wanted):
    path, predicted = [[1.0 - 0.1 * place] for place in range(10)], 0.01 * np.arange(10)
    search = Ladder(None, np.zeros(4), None, path, predicted, 0)
    assert search.furthest(rise, probes=5) == wanted
    assert len(search.tried) <= 5
    assert search.furthest(rise, probes=1) <= wanted


def test_pairs_change_who_begins_and_medians_know_how_sure_they_are():
    order = []
    pairs = [(lambda: order.append("a"), lambda: order.append("b"))] * 4
    assert in_turn(pairs, torch.device("cpu")).shape == (4, 2)
    assert "".join(order) == "baabbaab"
    assert median(np.array([1.0, 2.0, 3.0])) == (2.0, None)
    value, (low, high) = median(np.array([1.0, 1.1, 1.2, 1.3, 1.4]))
    assert low < value < high


def test_every_arm_differs_from_joint_training_in_what_it_is_named_for():
    settings = read_settings(FILE)
    known = {arm.name: arm for arm in arms(settings)}
    assert list(known)[:2] == ["final", "joint"]
    joint = known["joint"].overrides
    for name, added in (("layerskip", {"layer_dropout", "curriculum"}), ("lora", {"lora"})):
        more = known[name].overrides.keys() - joint.keys()
        assert {key.removeprefix("pretrain.") for key in more} == added
        assert joint.items() <= known[name].overrides.items()


# The whole study ----------------------------------------------------------------------------------------


TINY = {
    "candidates": [1, 2, 3],
    "exits": 2,
    "look_tokens": 2048,
    "looked_at": 16,
    "signals": ["learned", "max_prob", "saturation"],
    "probes": 2,
    "prompt": 8,
    "new_tokens": 6,
    "draft_length": 2,
    "draft_vocabulary": 100,
    "bootstrap": 50,
    "frozen_steps": 4,
    "lora": {"rank": 2, "alpha": 4},
}
TINY_CPU = {
    "tokens": 8 * 32 * 6,
    "timed_steps": 1,
    "looks": 2,
    "look_windows": 8,
    "routed_windows": 12,
    "control_windows": 8,
    "pairs": 5,
    "prompts": 5,
    "threads": 2,
}


@pytest.fixture(scope="module")
def tiny(addresses, tmp_path_factory) -> list[str]:
    """Arguments of a study of a tiny checkpoint on ten addresses, cut short."""
    folder = tmp_path_factory.mktemp("checkpoint")
    texts = folder / "text"
    texts.mkdir()
    for file in addresses.iterdir():
        (texts / file.name).write_text(file.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(texts.iterdir())[:3])
    save_checkpoint(folder / "tiny", 400, text)
    yaml = YAML()
    settings = yaml.load(FILE)
    settings.update(TINY)
    settings["devices"]["cpu"].update(TINY_CPU)
    settings["params"].update(
        {
            "window": 32,
            "corpus.source": "files",
            "corpus.paths": [str(texts)],
            "corpus.calibration_fraction": 0.4,
            "corpus.test_fraction": 0.2,
            "pretrain.frozen.tokens": 2048,
            "routing.curve_fractions": [0.3],
            "routing.bootstrap": 100,
            "exits.hidden": [8],
            "exits.max_epochs": 2,
        }
    )
    yaml.dump(settings, folder / "settings.yaml")
    return [
        *("--settings", str(folder / "settings.yaml"), "--checkpoint", str(folder / "tiny")),
        *("--folder", str(folder / "work")),
    ]


def here(arguments, folder, log, lock) -> int:
    """Stands in for a process of a unit's own, which takes seconds to begin: the same in this one."""
    record, key, module, *others = arguments

    def run():
        if module == WORK:
            work.main(others)
        else:
            stage = module.removeprefix("pipeline.")
            import_module(module).run(load_params(stage), Path("."))

    with contextlib.chdir(folder):
        process.recorded(Path(record), key, run)
    return 0


@pytest.fixture(scope="module")
def studied(tiny, tmp_path_factory) -> Path:
    """The folder of a study of the control, joint exits and exits fitted to the control."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projects, "started", here)
        main([*tiny, "--arm", "joint", "--arm", "fitted"], home)
    assert not any(home.iterdir())  # other settings than the study's own are not published
    return Path(tiny[-1])


@pytest.mark.slow
def test_a_unit_runs_in_a_process_of_its_own_and_says_what_it_printed_where_it_fails(tmp_path):
    unit = Unit(Project(tmp_path), "look", ["json.tool", "--help"], "key")
    assert unit.done is None
    assert unit.run().memory_gb > 0
    assert unit.done.key == "key" and Unit(unit.project, "look", unit.command, "another").done is None
    with pytest.raises(UserError, match=r"step 'guess': not one of look, precision"):
        Unit(Project(tmp_path), "guess", [WORK, "guess", str(tmp_path)], "key").run()


@pytest.mark.slow
def test_the_whole_study_measures_every_arm_against_the_control(studied):
    results = read(studied / "results.json")
    control, joint, fitted = results.arms
    assert [arm.name for arm in results.arms] == ["final", "joint", "fitted"]
    assert control.trained_tokens == joint.trained_tokens == 8 * 32 * 6
    assert not control.measures.attained and control.measures.chosen is None
    for arm in (joint, fitted):
        assert len(arm.measures.attained) == 3 * len(TINY["signals"])
        assert arm.measures.drafting.same and arm.measures.scoring.pairs == 5
        assert {row.signal for row in arm.measures.at_shares} >= {"entropy", "max_prob", "learned", "random"}
        assert len(arm.measures.exits) == 3
    # exits fitted to the control read out a full depth that is the control's
    assert fitted.measures.exits[-1].ppl == pytest.approx(control.measures.exits[-1].ppl, rel=1e-5)
    assert fitted.measures.against_control["rise_1"].flop_saving == pytest.approx(
        fitted.measures.against_itself["rise_1"].flop_saving, abs=1e-3
    )
    assert fitted.measures.exits[0].ppl < control.measures.exits[0].ppl  # raw
    rows = benchmarks(results)
    assert {row.name for row in rows} == {"checkpoint_speed_at_1_percent", "checkpoint_speculation"}


@pytest.mark.slow
def test_arms_of_another_machine_are_kept_where_their_control_is_the_same_to_the_last_digit(studied, caplog):
    elsewhere = read(studied / "results.json")
    control, joint, fitted = elsewhere.arms
    here = elsewhere.model_copy(update={"arms": [control, with_measures(fitted, commit="abc1234")]})
    together = joined(here, elsewhere)
    assert [arm.name for arm in together.arms] == ["final", "joint", "fitted"]
    assert together.arms[1] == joint and together.arms[2] == here.arms[1]  # measured here counts
    assert "abc1234 (fitted)" in page(together)
    assert joined(here, None) == here

    *exits, full = control.measures.exits
    next_to_it = math.nextafter(full.ppl, math.inf)
    other = with_measures(control, exits=[*exits, full.model_copy(update={"ppl": next_to_it})])
    # the faster one is measured: which it is here is a matter of load
    not_chosen = "fp32" if elsewhere.precision["chosen"] == "bf16" else "bf16"
    for another in (
        elsewhere.model_copy(update={"arms": [other, joint]}),
        elsewhere.model_copy(update={"precision": {**elsewhere.precision, "chosen": not_chosen}}),
        elsewhere.model_copy(update={"settings": {**elsewhere.settings, "probes": 99}}),
    ):
        caplog.clear()
        assert joined(here, another) == here
        assert "left out: joint" in caplog.text


@pytest.mark.slow
def test_a_study_that_is_done_runs_nothing_again_and_says_so(studied, tiny, capsys):
    main([*tiny, "--arm", "joint", "--arm", "fitted", "--status"])
    lines = capsys.readouterr().out.splitlines()
    assert "17 of 17 units are done" in lines[0]
    assert all("done 20" in line for line in lines[1:])
    before = json.loads((studied / "results.json").read_text())
    main([*tiny, "--arm", "joint"])  # fewer are wanted, and all that is done is shown
    assert json.loads((studied / "results.json").read_text()) == before


@pytest.mark.slow
def test_the_exported_control_is_its_model_as_transformers_loads_it(studied):
    folder = studied
    theirs = load_file(folder / "exported/model.safetensors")
    ours = load_file(folder / "final/models/lm/weights.safetensors")
    assert torch.equal(theirs["model.norm.weight"], ours["norm.weight"])
    assert torch.equal(theirs["model.embed_tokens.weight"], ours["embedding.weight"])


@pytest.mark.slow
def test_the_page_shows_what_was_run_and_says_what_was_not(studied):
    assert page(None) == NOT_RUN
    text = page(read(studied / "results.json"))
    assert "Not run yet: frozen, layerskip, lora." in text
    for table in (
        "**Which exits.**",
        "**Attainable**",
        "**Attained**",
        "**By the clock**",
        "**Which signal**",
    ):
        assert table in text
    assert text.count("| joint |") > 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saving", "reached", "words", "hoped_for"),
    [
        (0.056, True, "saves at most 5.6% [5.6%, 5.6%]", True),
        (0.2, True, "that is 1.25x the speed", False),
        (0.0, False, "nothing can be saved: no arm's full depth stays within it", True),
    ],
)
def test_the_page_answers_first_what_can_be_saved(studied, saving, reached, words, hoped_for):
    results = read(studied / "results.json")
    ceiling = Reached(flop_saving=saving, interval=[saving, saving] if reached else None, reached=reached)
    arms = [
        arm.model_copy(
            update={
                "measures": arm.measures.model_copy(update={"against_control": dict.fromkeys(RISES, ceiling)})
            }
        )
        for arm in results.arms
    ]
    text = page(results.model_copy(update={"arms": arms}))
    assert words in text
    assert ("need 13%" in text) == hoped_for
    assert ("The full depth of joint alone" in text) == (not reached)


@pytest.mark.slow
def test_a_folder_stays_locked_while_the_process_of_a_unit_lives_though_its_parent_was_killed(tiny, tmp_path):
    folder = tmp_path / "work"
    arguments = [*tiny[:-1], str(folder)]
    sleeps = "import time; time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "from studies.checkpoint import projects\n"
            "from studies.checkpoint.__main__ import main\n"
            "def slow(command, folder, log, lock):\n"
            f"    child = subprocess.Popen([sys.executable, '-c', {sleeps!r}], pass_fds=(lock,))\n"
            "    print(child.pid, flush=True)\n"
            "    import time; time.sleep(60)\n"
            "projects.started = slow\n"
            f"main({arguments!r})\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}"},
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        with pytest.raises(UserError, match="is being worked on"):
            main(arguments)
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_cannot_be_run_is_named_before_anything_is(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint; run `make smollm2`"):
        main(["--checkpoint", str(tmp_path), "--folder", str(tmp_path / "work")], tmp_path)
    with pytest.raises(UserError, match="--device tpu: choose from cpu, cuda"):
        main(["--device", "tpu"], tmp_path)


@pytest.mark.slow
def test_rows_of_benchmarks_are_of_the_arm_that_calibration_text_chose(studied):
    results = read(studied / "results.json")
    for chosen in ("joint", "fitted"):
        for rise, kept in ((0.005, True), (0.5, False)):
            arms = [
                changed(
                    arm,
                    calibration_saving=0.9 if arm.name == chosen else 0.1,
                    calibration_rise=0.005,
                    ppl_rise=rise,
                )
                for arm in results.arms
            ]
            row = benchmarks(results.model_copy(update={"arms": arms}))[0]
            assert f"the arm {chosen} " in row.held_against
            assert (row.value, row.verdict) == ((1.2, "met") if kept else (1.0, "missed"))


@pytest.mark.slow
def test_an_arm_beyond_the_rise_on_calibration_text_is_told_only_where_none_stays_within_it(studied):
    arms = read(studied / "results.json").arms
    for joint, fitted, told in ((0.02, 0.005, "fitted"), (0.02, 0.03, "joint"), (0.005, 0.005, "joint")):
        rises = {"final": None, "joint": joint, "fitted": fitted}
        savings = {"final": None, "joint": 0.9, "fitted": 0.1}
        given = [
            changed(arm, calibration_rise=rises[arm.name], calibration_saving=savings[arm.name])
            for arm in arms
        ]
        assert first_told(given).name == told


@pytest.mark.slow
@pytest.mark.parametrize(("leaving", "told"), [(0.4, "Attained is"), (0.0, "at which anything leaves")])
def test_the_page_says_what_was_attained_or_that_nothing_left(studied, leaving, told):
    results = read(studied / "results.json")
    arms = [changed(arm, shallow_ratio=leaving) for arm in results.arms]
    assert told in page(results.model_copy(update={"arms": arms}))


def changed(arm, **values):
    """The arm with other values of what was chosen to be timed, and a clock that meets the bar."""
    chosen, decoding = arm.measures.chosen, arm.measures.decoding
    if chosen is None:
        return arm
    new = {
        "chosen": chosen.model_copy(update=values),
        "decoding": decoding.model_copy(update={"speed": 1.2, "interval": [1.16, 1.3]}),
    }
    return arm.model_copy(update={"measures": arm.measures.model_copy(update=new)})


def with_measures(arm, **values):
    return arm.model_copy(update={"measures": arm.measures.model_copy(update=values)})
