"""Memory over windows in reading order: what is read of it, and that training follows the order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.systems.ensemble import Ensemble, Optimisation
from offramp.systems.segment_memory.model import InfiniConfig, InfiniLM
from offramp.systems.segment_memory.streams import Streams, cut_streams
from offramp.systems.segment_memory.training import stream_updates, streams_nll

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}
HOW = Optimisation(learning_rate=1e-2)


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


def streams(length: int = 121, rows: int = 2) -> Streams:
    return cut_streams(text(length), torch.zeros(length, dtype=torch.long), 6, rows)


def remembering(**changes) -> Ensemble:
    return Ensemble(lambda seed: InfiniLM(InfiniConfig(**{**SMALL, "hrm": "v2", **changes})), [0, 1])


@pytest.mark.parametrize("place", ["none", "input", "hidden", "gated"])
def test_carried_memories_equal_reading_window_by_window(place):
    ensemble, text_streams = remembering(place=place), streams()
    net = ensemble.member(1)
    memory, total = net.empty_memory(2), 0.0
    with torch.no_grad():
        for tokens, targets in zip(text_streams.tokens, text_streams.targets):
            carried = None
            for _ in range(2):
                logits, carried = net(tokens, memory, carried)
            memory = carried.memory
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    carried_nll = streams_nll(ensemble, text_streams, "carry", 2)[1].item()
    assert carried_nll == pytest.approx(total / text_streams.targets.numel(), rel=1e-5)
    reset = streams_nll(ensemble, text_streams, "reset", 2)[1].item()
    assert (reset == pytest.approx(carried_nll, abs=1e-7)) == (place == "none")


def test_a_new_document_empties_the_memory():
    ensemble, whole = remembering(), streams()
    cut = Streams(whole.tokens, whole.targets, torch.ones_like(whole.begins))
    torch.testing.assert_close(
        streams_nll(ensemble, cut, "carry", 1), streams_nll(ensemble, whole, "reset", 1)
    )


def test_a_foreign_memory_is_that_of_the_other_row():
    ensemble, one = remembering(place="input"), streams()
    swapped = Streams(
        *(part.flip(1) for part in (one.tokens, one.targets, one.begins))
    )  # two rows: the other is the neighbour
    torch.testing.assert_close(
        streams_nll(ensemble, one, "foreign", 1), streams_nll(ensemble, swapped, "foreign", 1)
    )
    same = Streams(*(part[:, :1].expand_as(part) for part in (one.tokens, one.targets, one.begins)))
    torch.testing.assert_close(
        streams_nll(ensemble, same, "foreign", 1), streams_nll(ensemble, same, "carry", 1)
    )
    assert not torch.allclose(
        streams_nll(ensemble, one, "foreign", 1), streams_nll(ensemble, one, "carry", 1), atol=1e-6
    )


def test_memory_cannot_be_carried_over_shuffled_windows_except_by_the_mistakes_name():
    ensemble, shuffled = remembering(), streams().shuffled(torch.Generator().manual_seed(0))

    def step(mode: str) -> Callable[[int], None]:
        return stream_updates(ensemble, lambda number: [shuffled] * 2, mode, segments=1, how=HOW)

    for mode in ("carry", "foreign"):
        with pytest.raises(UserError, match="these are shuffled"):
            step(mode)(0)
    step("carry_shuffled")(0)
    with pytest.raises(UserError, match="memory = 'forever'"):
        streams_nll(ensemble, shuffled, "forever", 1)


def test_a_pass_over_the_streams_follows_another_and_begins_with_empty_memories():
    ensemble, one = remembering(place="input"), streams()
    asked = []

    def passes(number: int) -> list[Streams]:
        asked.append(number)
        return [one] * 2

    still = Optimisation(learning_rate=0.0, weight_decay=0.0)
    step = stream_updates(ensemble, passes, "carry", segments=2, how=still)
    seen: list[torch.Tensor] = []
    whole = Ensemble.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Ensemble,
            "__call__",
            lambda self, function, *batch: (seen.append(batch[2][0].matrix), whole(self, function, *batch))[
                1
            ],
        )
        for number in range(len(one.tokens) + 1):
            step(number)
    assert asked == [0, 1] and len(seen) == 2 * (len(one.tokens) + 1)
    filled = [bool(memory.any()) for memory in seen[::2]]
    assert filled == [False, *[True] * (len(one.tokens) - 1), False]
