"""The studies of exit signals and of block-wise training: their measures on known cases, and both on a tiny zoo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.models.native import BlockwiseLM, ModelConfig
from studies.blockwise_gap import study as blockwise_gap
from studies.common import zoo
from studies.common.choosing import _previous, headrooms, nll_at_share
from studies.common.results import over_seeds, study_params
from studies.common.text import Document, StudyText
from studies.exit_signals import study as exit_signals

TINY = {
    "words": 10**6,
    "calibration_fraction": 0.3,
    "test_fraction": 0.2,
    "vocab_size": 300,
    "window": 16,
    "width": 16,
    "heads": 2,
    "ffn_width": 32,
    "block_layers": [1, 2],
    "steps": 12,
    "long_steps": 12,
    "batch_size": 8,
    "learning_rate": 5.0e-3,
    "evaluate_every": 6,
    "evaluate_windows": 8,
    "seeds": [0, 1],
    "processes": 1,
}
FITS = study_params("exit_signals") | {"max_epochs": 3, "batch_size": 512, "fractions": [0.3, 0.5, 0.7]}


@pytest.mark.parametrize("arm", zoo.ARMS)
def test_every_arm_is_a_valid_configuration_that_differs_from_the_base_in_what_it_says(arm):
    base, params = (zoo.arm_params(name, 0, TINY) for name in ("base", arm))
    switches = {
        name: value
        for name, value in zoo.ARMS[arm].items()
        if name not in ("method", "head", "block_layers", "long")
    }
    assert params.pretrain.blockwise == base.pretrain.blockwise.model_copy(update=switches)
    assert params.model.block_layers == zoo.ARMS[arm].get("block_layers", TINY["block_layers"])
    assert (params.pretrain.steps == base.pretrain.steps) == ("method" not in zoo.ARMS[arm])


@pytest.mark.parametrize("method", ["joint", "final"])
def test_joint_and_final_training_execute_as_many_flops_as_block_wise(method):
    """Counted by torch on one batch of each kind of step; a step more or less is the rounding."""
    config = ModelConfig(300, 16, 16, 2, 32, (1, 2), tied=False, heads_per_exit=True)
    model, tokens = BlockwiseLM(config), torch.randint(300, (4, 16))

    def flops(exits, trained):
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is mine for mine in trained))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            x, loss = model.embed(tokens), 0.0
            for exit in range(max(exits) + 1):
                x = model.run_block(exit, x)
                if exit in exits:
                    loss = loss + model.logits(exit, x).logsumexp(-1).sum()
            loss.backward()
        return counter.get_total_flops()

    everything = list(model.parameters())
    first = [
        *model.embedding.parameters(),
        *model.blocks[0].parameters(),
        *model.norms[0].parameters(),
        model.heads[0],
    ]
    second = [*model.blocks[1].parameters(), *model.norms[1].parameters(), model.heads[1]]
    blockwise = TINY["steps"] / 2 * (flops([0], first) + flops([1], second))
    step = flops([0, 1] if method == "joint" else [1], everything)
    assert abs(zoo.equal_flops_steps(method, TINY) * step - blockwise) < step


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.2, 0.5, 0.8]))
def test_headroom_is_one_for_the_oracle_and_zero_for_chance_on_average(seed, share):
    generator = np.random.default_rng(seed)
    loss = generator.exponential(size=(2, 400)) * np.array([[1.2], [1.0]])
    key = f"headroom.{share}"
    assert headrooms(loss[1] - loss[0], loss, [share])[key] == pytest.approx(1)
    chance = np.mean([headrooms(generator.random(400), loss, [share])[key] for _ in range(60)])
    assert abs(chance) < 0.1
    assert nll_at_share(generator.random(400), loss, 0.0) == pytest.approx(loss[1].mean())


def test_the_previous_token_is_none_at_the_start_of_a_sequence():
    states = type("States", (), {"column": lambda self, name: np.array([0, 1, 2, 0, 1])})()
    assert _previous(torch.arange(1.0, 6.0).unsqueeze(1), states).flatten().tolist() == [0, 1, 2, 0, 4]


def test_one_price_weighs_the_best_deeper_exit():
    """Going from exit 0 to exit 1 is worth it where that alone pays, even if full depth does not."""
    gains = [np.array([[0.5, 0.5], [0.0, 0.1]]), np.array([[0.0], [0.9]])]
    assert exit_signals._priced(gains, np.array([0.2, 0.4, 1.0]), 1.0).tolist() == [1, 0]
    assert exit_signals._priced(gains, np.array([0.2, 0.4, 1.0]), 100.0).tolist() == [0, 0]
    assert exit_signals._priced(gains, np.array([0.2, 0.4, 1.0]), 0.01).tolist() == [1, 2]


def test_chance_mixes_the_two_best_fixed_depths():
    loss, costs = np.array([[4.0], [2.0], [1.0]]), np.array([0.25, 0.5, 1.0])
    assert exit_signals._random(loss, costs, 0.25) == pytest.approx(1.5)  # half at exit 1, half at full depth


@pytest.fixture(scope="module")
def tiny_zoo(tmp_path_factory):
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    documents = [Document(f"d{n}", " ".join(generator.choice(words, 600))) for n in range(10)]
    text = StudyText("sotu", "made up", documents[:8], documents[8:])
    place = zoo.folder(tmp_path_factory.mktemp("zoo"), "sotu") / "zoo"
    data = zoo.study_data(text, place, zoo.arm_params("base", 0, TINY), TINY)
    arms = [
        arm
        for arm in zoo.ARMS
        if arm in ("base", "published", "published, head frozen", "joint, three exits")
    ]
    for arm in arms:
        zoo._make((place, arm, 0, TINY))
    assert all(zoo._made(data, place, arm, 0, TINY) for arm in arms)
    assert zoo._made(data, place, "base", 0, TINY | {"steps": 13}) is None  # made with other settings
    return {arm: zoo._open(data, place, arm, 0, TINY) for arm in arms}


def test_held_back_windows_are_not_trained_on(tiny_zoo):
    trained, held_back = zoo.trained_and_held_back(tiny_zoo["base"].data)
    assert set(trained.indices.tolist()).isdisjoint(held_back.indices.tolist())
    assert len(held_back) == pytest.approx((len(trained) + len(held_back)) / 5, abs=1)


def test_a_frozen_head_is_the_control_that_shares_block_0_and_a_shared_one_moves_on(tiny_zoo):
    moved, frozen = (tiny_zoo[arm].load() for arm in ("published", "published, head frozen"))
    for mine, other in zip(moved.blocks[0].parameters(), frozen.blocks[0].parameters()):
        assert torch.equal(mine, other)
    assert not torch.equal(moved.readout_matrix(0), frozen.readout_matrix(0))


def test_exit_signals_measures_every_signal_label_view_and_width(tiny_zoo):
    found = exit_signals.measure(tiny_zoo["base"], FITS)
    names = {key.split(".headroom")[0] for key in found if ".headroom" in key}
    assert {
        "max_prob",
        "saturation",
        "label gain",
        "label easy",
        "view both",
        "view state + previous exit",
        "width wide",
        "loss oracle",
    } <= names
    three = exit_signals.measure(tiny_zoo["joint, three exits"], FITS)
    values = over_seeds(
        [
            {f"base:{k}": v for k, v in found.items()}
            | {f"{exit_signals.THREE_EXITS}:{k}": v for k, v in three.items()}
        ]
        * 2
    )
    figures, sentences = exit_signals.report(values, ["base"], FITS, 2)
    assert set(figures) == {"headroom, base", "three exits"} and len(sentences) == 1


def test_blockwise_gap_parts_add_up_to_the_gap(tiny_zoo):
    settings = study_params("blockwise_gap")
    found = {}
    for arm in ("base", "published", "published, head frozen"):
        for name, values in blockwise_gap.measure(tiny_zoo[arm], settings).items():
            found |= {f"{name}:{key}": value for key, value in values.items()}
    assert (
        0.2 < found["base:share"] < 0.8
        and found["published, exited state output:routed"] != found["published:routed"]
    )
    arms = {*blockwise_gap.FROM_BASE, *blockwise_gap.FROM_PUBLISHED, "block-wise", "joint", "final"}
    for arm in arms:  # the other arms are of no consequence here
        found = {
            f"{arm}:{key.removeprefix('base:')}": value
            for key, value in found.items()
            if key.startswith("base:")
        } | found
    gap = blockwise_gap.differences(found)
    parts = gap["gap:evaluation set"] + gap["gap:head moved by block 1"] + gap["gap:block 1 and routing"]
    assert gap["gap:published"] == pytest.approx(parts)
