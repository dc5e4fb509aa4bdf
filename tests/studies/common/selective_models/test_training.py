"""Training of the small selective models: what the published loss scores, and what batches hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offramp.systems.selective_output.training import CarryOver, lags
from studies.common.selective_models.training import (
    END,
    SelectiveModels,
    build,
    fact_windows,
    gates_of,
    method_of,
    mixed,
    published_windows,
    train_corrected,
    train_published,
)
from studies.common.study import study_of
from studies.common.subwords import Subwords, shuffled, subwords
from studies.common.text import Document, StudyText

WINDOW = 32


def words(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta", "union", "people"], count))


@pytest.fixture(scope="module")
def data() -> Subwords:
    documents = [Document(str(place), words(200, place)) for place in range(11)]
    return subwords(StudyText("sotu", "made up", documents[:8], documents[8:]), 280, 0.2)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SelectiveModels:
    """Tiny ones with a short window."""
    text = StudyText("sotu", "made up", [], [])
    job = study_of("selective_output").job(text, "published", tmp_path_factory.mktemp("cache"), tiny=True)
    given = SelectiveModels.of(job.shared["selective_models"])
    published = given.published.model_copy(update={"windows": 20, "facts": 6, "max_epochs": 2})
    return given.model_copy(update={"window": WINDOW, "published": published})


def test_what_the_published_loss_scores_has_mostly_been_read_already(data):
    """Where a model keeps silent at every other place, nearly all scored targets are among its inputs."""
    tokens, targets = data.windows("train", WINDOW)
    speaks = torch.arange(WINDOW - 1).expand(len(tokens), -1) % 2 == 1
    wanted = CarryOver().targets(tokens, targets, speaks)
    behind = lags(speaks)
    for place in range(WINDOW - 1):
        for lag in set(behind[:, place].tolist()):
            assert lag < 0 or torch.equal(wanted[:, place], tokens[:, place - lag])  # the target is an input
    assert (behind[speaks] >= 0).float().mean() > 0.8


def test_no_corrected_target_is_among_its_inputs(data, models):
    """A place's attempts do not change with its target: nothing of it is read, whatever is skipped."""
    model = build(data.vocab_size, 0, models)
    tokens, _ = data.windows("test", WINDOW)
    other = tokens.clone()
    other[:, 10:] = (other[:, 10:] + 7) % data.vocab_size
    for one, two in zip(model.attempts(tokens, 1), model.attempts(other, 1)):
        torch.testing.assert_close(one[:, 9], two[:, 9])


def test_published_windows_are_padded_facts_among_windows_of_one_stream(data, models):
    (tokens, targets), held_out = published_windows(data, ["alpha is beta", "gamma is delta"], models, 42)
    assert len(held_out[0]) == 2 and len(tokens) == 18 + 2
    assert (tokens[-1] == END).sum() > 10 and (targets[-1] == END).sum() > 10  # padding is in the loss
    assert not {tuple(row) for row in held_out[0].tolist()} & {tuple(row) for row in tokens.tolist()}


def test_facts_are_mixed_into_batches_without_padding(data):
    facts = [data.encode("alpha is beta"), data.encode("gamma is delta")]
    window = next(fact_windows(facts, WINDOW, 0))
    assert len(window) == WINDOW + 1 and window[0] == END and (window == END).sum() < 12
    batches = shuffled(*data.windows("train", WINDOW), 8, 0)
    tokens, targets = next(mixed(batches, fact_windows(facts, WINDOW, 0), 0.25))
    assert (tokens[:, 0] == END).tolist() == [True, True] + [False] * 6
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_runs_say_how_gates_and_losses_went(data, models):
    run = train_published(data, "carried", 42, models)
    assert len(run.gates) == len(run.silent) == len(run.fitted.curve) == 2
    assert gates_of(run.model, run.chosen_by[0]).shape == (2, WINDOW - 1)
    progress = run.progress()
    expected = math.log(progress["first_rule_ppl"] / progress["best_rule_ppl"])
    assert progress["rule_fall"] == pytest.approx(expected)
    assert progress["silent_fall"] == pytest.approx(run.silent[0] - run.silent[-1])
    assert progress["last_gate"] == run.gates[-1] and progress["looks"] == 2
    assert progress["best_train_ppl"] == pytest.approx(math.exp(run.train_nll[run.fitted.best_look - 1]))


def test_where_the_threshold_alone_decides_closed_gates_leave_one_output_per_window(models):
    method = method_of("threshold_alone", models)
    assert isinstance(method, CarryOver)
    closed = torch.zeros(2, WINDOW - 1)
    assert method.spoken(closed).sum(1).tolist() == [1, 1]
    opened = closed.clone()
    opened[0, 3] = 1.0
    assert method.spoken(opened)[0].nonzero().flatten().tolist() == [3]


def test_flawed_losses_are_learnt_for_longer(data, models):
    longer = models.corrected.flawed.model_copy(update={"updates": 4})
    given = models.model_copy(
        update={"corrected": models.corrected.model_copy(update={"flawed": longer, "updates": 2})}
    )
    updates = {
        arm: train_corrected(data, arm, 0, given).fitted.curve[-1][0] for arm in ("carried", "ordinary")
    }
    assert updates == {"carried": 4, "ordinary": 2}
