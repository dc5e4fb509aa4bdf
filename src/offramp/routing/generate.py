"""Generation with early exit, and self-speculation: a shallow exit drafts, full depth verifies.

Both go token by token over a ``Decoder``, for one row or many, and yield every step as it is made. The prompt
runs at full depth unless asked otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.routing.decoder import Decoder, Fed
from offramp.routing.executor import Policy, Work
from offramp.routing.policies import FixedExit
from offramp.routing.speculation import Speculation

COLDEST = 1e-6
"""Least temperature: logits divided by it are still finite, and all but ties are decided."""


@dataclass(frozen=True)
class Sampling:
    """Draw from the softmax at ``temperature``, from the fewest tokens that hold ``top_p`` of it.

    UserError for values outside their range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= COLDEST:
            raise UserError(
                f"temperature = {self.temperature}: give a number from {COLDEST} on, or none for greedy "
                "decoding"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: give a share above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed}: give a whole number from 0 to 2^63 - 1")


@dataclass
class Step:
    """Tokens made in one step."""

    rows: list[int]
    """Their rows; more than once where a draft was accepted."""
    tokens: list[int]
    exits: list[int]
    """The exit that predicted each."""


@dataclass
class Generated:
    """One row's new tokens."""

    tokens: list[int] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)


def generate(steps: Iterator[Step], rows: int) -> list[Generated]:
    """All of ``decode`` or ``speculate`` at once, by row."""
    out = [Generated() for _ in range(rows)]
    for step in steps:
        for row, token, exit in zip(step.rows, step.tokens, step.exits):
            out[row].tokens.append(token)
            out[row].exits.append(exit)
    return out


def decode(
    model: Blockwise,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    policy: Policy | None = None,
    *,
    kv: str = "propagate",
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    route_prompt: bool = False,
    work: Work | None = None,
) -> Iterator[Step]:
    """Continue every prompt by up to ``new_tokens`` tokens, or to one of ``stop``.

    Greedily without ``sampling``. Prompt and new tokens but the last, which is never read, must fit the
    model's window. ``policy`` says who leaves early (None: nobody), of the prompt's tokens only with
    ``route_prompt``; ``work`` counts what is executed. UserError for an empty prompt and where they do not
    fit.
    """
    decoder = _start(model, prompts, new_tokens, kv, work)
    choose = _Chooser(sampling, decoder.lengths.device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=decoder.lengths.device)
    fed = _feed_prompts(decoder, prompts, policy if route_prompt else None, starts)
    rows = list(range(len(prompts)))
    row_numbers = torch.arange(len(prompts), device=starts.device)
    for left in reversed(range(new_tokens)):
        token = choose(decoder, fed)
        tokens, exits = torch.stack((token, fed.exit)).tolist()  # a step is read once
        yield Step(rows, tokens, exits)
        going = [place for place, chosen in enumerate(tokens) if chosen not in stop]
        if not left or not going:
            return
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            places = torch.tensor(going, device=starts.device)
            row_numbers, token = row_numbers[places], token[places]
        fed = decoder.feed(row_numbers, token, policy, starts)


def speculate(
    model: Blockwise,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    speculation: Speculation,
    *,
    stop: Collection[int] = (),
    work: Work | None = None,
) -> Iterator[Step]:
    """Full-depth greedy decoding, faster where a shallow exit guesses it right (arXiv 2404.16710).

    Which exit drafts, and how many tokens, ``speculation`` chooses from what it measures (idea: arXiv
    2504.05598); it may draft from part of the vocabulary (arXiv 2502.14856).
    Drafted tokens keep what they computed: verification takes their states on from the drafting exit, all at
    once. The first steps are plain, to have something to compare with. UserError as ``decode``, and for an
    exit that is not before the last.
    """
    speculation.begin(model.config.num_blocks - 1, stop, model.config.vocab_size)
    decoder = _start(model, prompts, new_tokens, "recompute", work)
    choose = _Chooser(None, decoder.lengths.device)
    fed = _feed_prompts(decoder, prompts, None, None)
    token, rows = choose(decoder, fed), torch.arange(len(prompts), device=decoder.lengths.device)
    counts = [1] * len(prompts)
    yield Step(rows.tolist(), token.tolist(), fed.exit.tolist())
    while True:
        going = _going(token, stop) & torch.tensor(
            [counts[row] < new_tokens for row in rows.tolist()], device=rows.device
        )
        rows, token = rows[going], token[going]
        if not len(rows):
            return
        begin = time.perf_counter()
        if not speculation.pays or len(speculation.plain_seconds) < speculation.PLAIN_STEPS:
            fed = decoder.feed(rows, token, None)
            token = choose(decoder, fed)
            step = Step(rows.tolist(), token.tolist(), fed.exit.tolist())
            if speculation.pays:
                speculation.plain_seconds.append(time.perf_counter() - begin)
        else:
            exit = speculation.next_exit
            most = min(
                speculation.next_length(exit), new_tokens - max(counts[row] for row in rows.tolist()) - 1
            )
            step, token = _cycle(
                decoder,
                rows,
                token,
                most,
                exit,
                speculation,
                stop,
                left=[new_tokens - counts[row] for row in rows.tolist()],
            )
            drafting = speculation.by_exit[exit]
            drafting.cycle_seconds.append(time.perf_counter() - begin)
            drafting.cycle_tokens.append(len(step.tokens) / len(rows))
            speculation.judge(exit)
        for row in step.rows:
            counts[row] += 1
        yield step


def _cycle(
    decoder: Decoder,
    rows: Tensor,
    token: Tensor,
    most: int,
    exit: int,
    speculation: Speculation,
    stop: Collection[int],
    *,
    left: list[int],
) -> tuple[Step, Tensor]:
    """Draft up to ``most`` tokens at an exit after ``token`` (R,) of each row, and verify them.

    Returns the step, and each row's last token. left (R,): how many tokens each row may still grow by.
    """
    start, policy = decoder.lengths.clone(), FixedExit(exit)
    begin, feeds = time.perf_counter(), 0
    drafts: dict[int, list[int]] = {row: [] for row in rows.tolist()}
    drafting, guess = rows, token
    for place in range(most + 1):
        fed, feeds = decoder.feed(drafting, guess, policy), feeds + 1
        if place == most:
            break
        probability, guess = _guessed(decoder, fed, exit, speculation)
        sure = (probability >= speculation.confidence) & _going(guess, stop)
        drafting, guess = drafting[sure], guess[sure]
        if not len(drafting):
            break
        for row, drafted in zip(drafting.tolist(), guess.tolist()):
            drafts[row].append(drafted)
    drafted_at = time.perf_counter()
    numbers = torch.cat([decoder.numbers(row, int(start[row])) for row in rows.tolist()])
    states = decoder.deepen(numbers)
    full = (
        decoder.logits(torch.full_like(numbers, decoder.model.config.num_blocks - 1), states)
        .argmax(-1)
        .tolist()
    )
    speculation.by_exit[exit].time(drafted_at - begin, feeds, time.perf_counter() - drafted_at)
    step, ends, lengths, accepted, judged = Step([], [], []), [], start.clone(), 0, 0
    for row, room in zip(rows.tolist(), left):
        verified, full = full[: len(drafts[row]) + 1], full[len(drafts[row]) + 1 :]
        right = next(
            (i for i, (guessed, true) in enumerate(zip(drafts[row], verified)) if guessed != true),
            len(drafts[row]),
        )
        kept = verified[: min(right + 1, room)]
        accepted, judged = accepted + right, judged + min(right + 1, len(drafts[row]))
        step.rows += [row] * len(kept)
        step.tokens += kept
        ends.append(kept[-1])
        lengths[row] += len(kept)
    step.exits = [decoder.model.config.num_blocks - 1] * len(step.tokens)
    decoder.forget(lengths)
    speculation.by_exit[exit].count(sum(map(len, drafts.values())), accepted, judged)
    return step, torch.tensor(ends, device=rows.device)


def _guessed(decoder: Decoder, fed: Fed, exit: int, speculation: Speculation) -> tuple[Tensor, Tensor]:
    """The likeliest token of those that can be drafted and its probability among them, (N,) each.

    A readout of part of the vocabulary is counted as a whole one.
    """
    if speculation.vocabulary is None:
        probability, guess = decoder.logits(fed.exit, fed.states).softmax(-1).max(-1)
        return probability, guess
    decoder.work.count_readouts(exit, len(fed.states))
    rows = speculation.readout(decoder.model.readout_matrix(exit))
    inputs = decoder.model.readout_input(exit, fed.states).to(rows.dtype)
    probability, place = F.linear(inputs, rows).softmax(-1).max(-1)
    return probability, speculation.vocabulary.to(place.device)[place]


def _start(
    model: Blockwise, prompts: Sequence[Sequence[int]], new_tokens: int, kv: str, work: Work | None
) -> Decoder:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("a prompt is empty; give at least one token to continue")
    if new_tokens < 1:
        raise UserError(f"new_tokens = {new_tokens}: ask for at least one")
    decoder = Decoder(model, len(prompts), kv, max(map(len, prompts)) + new_tokens - 1)
    if work is not None:
        decoder.work = work
    return decoder


def _feed_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], policy: Policy | None, starts: Tensor | None
) -> Fed:
    """Feed every prompt; what became of the last token of each."""
    device = decoder.lengths.device
    sizes = torch.tensor([len(prompt) for prompt in prompts], device=device)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(sizes)
    fed = decoder.feed(
        rows, torch.tensor([token for prompt in prompts for token in prompt], device=device), policy, starts
    )
    ends = sizes.cumsum(0) - 1
    return Fed(
        fed.exit[ends],
        fed.states[ends],
        fed.confidence[ends],
        None if fed.argmax is None else fed.argmax[ends],
    )


def _going(tokens: Tensor, stop: Collection[int]) -> Tensor:
    """bool (N,): tokens that do not end their row."""
    return ~torch.isin(tokens, torch.tensor(sorted(stop), dtype=tokens.dtype, device=tokens.device))


class _Chooser:
    """The next token of every row."""

    def __init__(self, sampling: Sampling | None, device: torch.device):
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(sampling.seed) if sampling else None

    def __call__(self, decoder: Decoder, fed: Fed) -> Tensor:
        if self.sampling is None:
            return self._greedy(decoder, fed)
        scores, order = (
            (decoder.logits(fed.exit, fed.states).float() / self.sampling.temperature)
            .softmax(-1)
            .sort(-1, descending=True)
        )
        scores[scores.cumsum(-1) - scores >= self.sampling.top_p] = 0
        return order.gather(1, torch.multinomial(scores, 1, generator=self.generator)).squeeze(1)

    def _greedy(self, decoder: Decoder, fed: Fed) -> Tensor:
        """The argmax; not read out again where the policy had to."""
        if fed.argmax is None:
            return decoder.logits(fed.exit, fed.states).argmax(-1)
        out, unread = fed.argmax.clone(), fed.argmax < 0
        if bool(unread.any()):
            out[unread] = decoder.logits(fed.exit[unread], fed.states[unread]).argmax(-1)
        return out
