"""bf16 where a model is measured: its layers run in it, decisions, readouts and statistics in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.analysis.suitability import of_states
from offramp.app.harness import RoutedLM
from offramp.app.project import open_project
from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.params import load_params
from offramp.routing.executor import Decision, Executor, Policy
from offramp.routing.policies import GivenExits
from offramp.states.collect import collect_states
from offramp.states.store import States
from pipeline._inputs import open_routing_inputs
from tests.conftest import REPOSITORY, repository_params
from tests.fixtures.small_project import make_project
from tests.models.test_pretrained import VOCAB, pair  # noqa: F401
from tests.routing.test_executor import make_model

CPU = torch.device("cpu")


def some_text(vocab):
    return torch.randint(vocab, (2, 4, 24), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def losses(model, tokens, targets, exit, precision):
    """(B, T) by one plain pass, read out in float32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        states = model(tokens)[exit]
    log_p = model.logits(exit, states).log_softmax(-1)
    return -log_p.gather(-1, targets[..., None])[..., 0]


def check_fixed_depths(model, vocab):
    tokens, targets = some_text(vocab)
    for exit in range(model.config.num_blocks):
        found = (
            Executor(model, precision="bf16").run(tokens, targets, GivenExits(torch.full((96,), exit))).loss
        )
        full = losses(model, tokens, targets, exit, "fp32")
        torch.testing.assert_close(found, losses(model, tokens, targets, exit, "bf16"), atol=1e-4, rtol=1e-4)
        assert 1e-4 < (found - full).abs().mean() < 0.1 * full.mean()


def test_fixed_depths_are_the_plain_pass_in_bf16():
    check_fixed_depths(make_model((1, 1, 2)), 50)
    check_fixed_depths(make_model((1, 1, 2), norm="post"), 50)


def test_so_they_are_on_transformers_architectures(pair):  # noqa: F811
    check_fixed_depths(pair[1], VOCAB)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
def test_routing_differs_from_fp32_by_rounding_alone(kv):
    model, (tokens, targets) = make_model((1, 1, 2)), some_text(50)
    given = GivenExits(torch.randint(3, (96,), generator=torch.Generator().manual_seed(4)))
    half, single = (
        Executor(model, kv, precision).run(tokens, targets, given) for precision in ("bf16", "fp32")
    )
    assert torch.equal(half.exit, single.exit)
    assert 1e-4 < (half.loss - single.loss).abs().mean() < 0.1 * single.loss.mean()


def test_decisions_are_made_in_float32():
    class Looks(Policy):
        reads_out = reads_before = True

        def decide(self, arrivals):
            seen.append(
                (
                    arrivals.states.dtype,
                    arrivals.read.dtype,
                    arrivals.before.dtype,
                    torch.is_autocast_enabled("cpu"),
                )
            )
            return Decision(arrivals.index % 2 == 0)

    seen: list = []
    Executor(make_model((1, 1, 2)), precision="bf16").run(*some_text(50), Looks())
    assert seen == [(torch.float32, torch.float32, torch.float32, False)] * 2


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    make_project(root, addresses, collect__precision="bf16")
    (root / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return root


def test_everything_that_measures_a_model_runs_it_as_its_states_were_collected(project):
    opened = open_project(project)
    states = States(open_artifact(project / "states/test", "states"))
    inputs = open_routing_inputs(load_params("evaluate", project), project)
    params = opened.params
    subject = of_states(
        opened.data, opened.lm, opened.model, states.artifact, params.routing, params.exits.hidden, rounds=1
    )
    assert {
        states.precision,
        inputs.executor.precision,
        subject.precision,
        RoutedLM(str(project)).executor.precision,
    } == {"bf16"}
    text = TokenWindows(opened.data, "test").batch(torch.arange(8))
    for exit in range(2):
        routed = inputs.executor.run(*text, GivenExits(torch.full((text[0].numel(),), exit)))
        np.testing.assert_allclose(
            states.column(f"loss_{exit}")[: text[0].numel()], routed.loss.flatten(), atol=1e-3
        )
        assert not np.allclose(routed.loss, losses(opened.model, *text, exit, "fp32"), atol=1e-3)


def test_states_that_do_not_say_it_are_refused(project):
    artifact = open_artifact(project / "states/test", "states")
    silent = replace(
        artifact, meta={name: value for name, value in artifact.meta.items() if name != "precision"}
    )
    with pytest.raises(
        UserError, match="states/test does not say in which precision the model ran; run `dvc repro`"
    ):
        States(silent).precision  # noqa: B018


def test_it_is_refused_where_the_device_has_none(data, tmp_path):
    absent = "cuda" if torch.backends.mps.is_available() else "mps"
    settings = repository_params(collect__precision="bf16").collect
    with pytest.raises(
        UserError,
        match=(
            rf"collect\.precision = 'bf16': the device {absent} has no bf16 here; "
            r"set collect\.precision: fp32"
        ),
    ):
        collect_states(
            make_model(vocab=data.meta["vocab_size"]),
            TokenWindows(data, "test"),
            tmp_path / "states",
            settings,
            params={},
            inputs={},
            device=torch.device(absent),
        )
