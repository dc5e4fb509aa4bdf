"""Does perplexity fall with the amount of text by a power law, and does effective rank stay as it is? (Report
context-vectors, sections 4 and 5.)

Published: the report's four amounts of text, each with its own validation text, patience 1; the same models
are also judged on one common text ("common"), and trained on to see what stopping cost.

Corrected: six amounts that span a factor of 32, doubled from one to the next, drawn anew for every random
seed, smaller ones within larger ones; one calibration and one test text for all; equal updates at every
amount, the best look by the calibration text. Arms: token input at every layer (all), at the first alone
(first), and a plain transformer of as many parameters that starts from the same embedding and is judged on
the same targets.

``alpha`` and ``r2`` are of ln PPL = ln A + alpha ln tokens, ``doubling_fall`` is the share by which twice the
text lowers the perplexity; ``extrapolation`` is ln of the perplexity at the largest amount over what the law
of the others promises for it. ``rank_variation`` is the span of the effective ranks over their mean. Numbers
after a point count the amounts, from 1. Patience is a rule for the looks. Cut against the report: 48 wide
instead of 768.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.machine.device import seed_all
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.states.statistics import Readout, predictions
from offramp.systems.context_vectors.training import Reading, find_contexts
from offramp.training.loop import Row, Selection, Training
from offramp.training.losses import total_nll
from studies.common.context_models import (
    ContextModels,
    ContextText,
    ReadingCurves,
    Stream,
    build,
    context_text,
    contexts_of,
    final,
    published_values,
    read_corrected,
)
from studies.common.curves import curves_figure
from studies.common.effective_rank import rank_share
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.subwords import shuffled
from studies.common.workers import run_arms
from studies.context_scaling.power_law import extrapolation_error, fit_power_law

CONTEXT_ARMS = ("first", "all")
ARMS = (*CONTEXT_ARMS, "transformer")
WINDOW = 128
"""Of the transformer; a piece is a whole number of windows and their last target."""
PATIENCES = {"": None, "patience_1.": 1}
"""Prefixes of the keys, and the looks without a better one after which training stops."""


class PublishedSizes(Settings):
    """Of the published protocol."""

    tokens: list[int]
    """Of every amount of text, rising."""


class Transformer(Settings):
    """The transformer, as ``ModelConfig`` has it."""

    heads: int
    ffn_width: int
    block_layers: tuple[int, ...]


class CorrectedSizes(Settings):
    """Of the corrected protocol, and of the transformer under both."""

    pieces: int
    """Of the largest amount of text."""
    sizes: int
    """Amounts of text."""
    updates: int
    looks: int
    transformer: Transformer
    transformer_rate: float


class ContextScaling(Settings):
    """The settings of this study."""

    published: PublishedSizes
    corrected: CorrectedSizes


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """Every amount of text with its own validation text; the transformer, which the report had not, at the
    largest."""
    settings, models, text = _given(job)
    tokens = settings.published.tokens
    of_arm = {arm: tokens if arm in CONTEXT_ARMS else tokens[-1:] for arm in job.arms}
    jobs = [
        (text, arm, count, job.seeds[0], models, settings.corrected)
        for arm in job.arms
        for count in reversed(of_arm[arm])
    ]
    values = {given[1:3]: one for given, one in zip(jobs, run_arms(published_arm, jobs, job.processes))}
    row = published_laws({arm: [values[arm, count] for count in of_arm[arm]] for arm in job.arms})
    return Outcome([row] if row else [])


def published_arm(
    text: ContextText, arm: str, tokens: int, seed: int, models: ContextModels, sizes: CorrectedSizes
) -> dict[str, float]:
    """Values of one arm at one amount of text, as the report ran it; ``sizes`` are the transformer's."""
    if arm == "transformer":
        stream, _ = text.published(tokens)
        _, curves = train_transformer(text, stream, sizes, models.corrected.reading, seed)
        return {"common_ppl": math.exp(curves.nll["test"][curves.best("calibration")])}
    return published_values(text, arm, tokens, models, models.published, seed)


def published_laws(of_arms: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """All keys of the published protocol, from what every arm came to at every amount."""
    out: dict[str, float] = {}
    for arm, amounts in of_arms.items():
        if arm == "transformer":
            continue
        out |= {
            f"{name}.{arm}.{place}": value
            for place, values in enumerate(amounts, 1)
            for name, value in values.items()
        }
        if "transformer" in of_arms:
            theirs = of_arms["transformer"][-1]["common_ppl"]
            out[f"common_diff.{arm}_minus_transformer"] = math.log(amounts[-1]["common_ppl"] / theirs)
        tokens = [values["tokens"] for values in amounts]
        ranks = rank_values([values["rank"] for values in amounts], [values["ppl"] for values in amounts])
        out |= {f"{name}.{arm}": value for name, value in ranks.items()}
        for prefix in ("", "common_"):
            ppl, accuracy = ([values[prefix + name] for values in amounts] for name in ("ppl", "accuracy"))
            out |= {
                f"{prefix}{name}.{arm}": value for name, value in law_values(tokens, ppl, accuracy).items()
            }
    if set(CONTEXT_ARMS) <= set(of_arms):
        out["diff.alpha.all_minus_first"] = out["alpha.all"] - out["alpha.first"]
        out |= {
            f"diff.all_minus_first.{place}": math.log(one["ppl"] / other["ppl"])
            for place, (one, other) in enumerate(zip(of_arms["all"], of_arms["first"]), 1)
        }
    return out


# Corrected --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What one arm came to at one amount of text."""

    tokens: int
    parameters: int
    nll: dict[str, float]
    """In nats on test text, by the prefix of the patience, a key of ``PATIENCES``."""
    accuracy: dict[str, float]
    """On test text, by the prefix of the patience."""
    epoch: dict[str, float]
    """Times through the training text until the best look, by the prefix of the patience."""
    rank: float | None = None
    """Effective rank of its contexts of test text as a share of their width; None for the transformer."""


def corrected(job: Job) -> Outcome:
    """Six amounts of text, judged on one test text."""
    settings, models, text = _given(job)
    sizes = settings.corrected
    amounts = amounts_of(text, sizes.pieces, sizes.sizes)
    jobs = [
        (text, arm, pieces, seed, models, sizes)
        for seed in job.seeds
        for arm in job.arms
        for pieces in reversed(amounts)
    ]
    trained = {given[1:4]: one for given, one in zip(jobs, run_arms(corrected_arm, jobs, job.processes))}
    by_seed = [
        {arm: [trained[arm, pieces, seed] for pieces in amounts] for arm in job.arms} for seed in job.seeds
    ]
    figure = curves_figure(
        "Perplexity of test text by training tokens",
        {arm: [_curve(of_arms[arm]) for of_arms in by_seed] for arm in job.arms},
        "training tokens",
        "perplexity",
        log=True,
    )
    return Outcome([corrected_values(of_arms) for of_arms in by_seed], {"scaling": figure})


def amounts_of(text: ContextText, largest: int, count: int) -> list[int]:
    """Pieces of ``count`` amounts of text, doubled up to the ``largest``; fewer where the text has not as
    many.

    UserError where the smallest amount would be nothing.
    """
    most, least = min(largest, len(text.pieces["train"])), 2 ** (count - 1)
    if most < least:
        raise UserError(
            f"text: {most} training pieces do not make {count} amounts that double; give text "
            f"for {least} of {text.pieces['train'].shape[1] - 1} tokens"
        )
    return [most // 2 ** (count - 1 - place) for place in range(count)]


def corrected_arm(
    text: ContextText, arm: str, pieces: int, seed: int, models: ContextModels, sizes: CorrectedSizes
) -> Trained:
    """One arm at one amount of text, of one random seed."""
    stream, reading = text.drawn(pieces, seed), models.corrected.reading
    model: nn.Module
    rank = None
    if arm == "transformer":
        model, curves = train_transformer(text, stream, sizes, reading, seed)
    else:
        model = contexts = build(text, arm, seed, models)
        find_contexts(contexts, stream.tokens, stream.begins, models.corrected.fixed_point, seed)
        rank = rank_share(final(contexts_of(contexts, text.held_out("test"), "sequential")))
        curves = read_corrected(
            text,
            contexts,
            stream,
            "sequential",
            how=reading,
            looks=sizes.looks,
            updates=sizes.updates,
            seed=seed,
        )
    best = {prefix: curves.best("calibration", patience) for prefix, patience in PATIENCES.items()}
    return Trained(
        tokens=len(stream),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        nll={prefix: curves.nll["test"][look] for prefix, look in best.items()},
        accuracy={prefix: curves.accuracy["test"][look] for prefix, look in best.items()},
        epoch={
            prefix: (look + 1) * (sizes.updates // sizes.looks) * reading.batch / len(stream)
            for prefix, look in best.items()
        },
        rank=rank,
    )


def train_transformer(
    text: ContextText, stream: Stream, sizes: CorrectedSizes, reading: Reading, seed: int
) -> tuple[BlockwiseLM, ReadingCurves]:
    """A transformer that sees a window at a time.

    It has as many looks, updates and tokens of an update as the context models, whose training is
    ``reading``.
    """
    seed_all(seed)
    width, shape = text.embedding.shape[1], sizes.transformer.model_dump()
    model = BlockwiseLM(ModelConfig(text.vocab_size, WINDOW, width, **shape, tied=False))
    with torch.no_grad():
        model.embedding.weight.copy_(text.embedding)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=sizes.transformer_rate, weight_decay=0.01, fused=True
    )
    batches, curves = shuffled(*windows(stream), reading.batch // WINDOW, seed), ReadingCurves()

    def step(update: int) -> None:
        tokens, targets = next(batches)
        optimiser.zero_grad(set_to_none=True)
        states = last_states(model, tokens)
        (total_nll(states, model.readout_matrix(0), targets.flatten()) / targets.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    def look(update: int) -> tuple[list[Row], None]:
        for split in ("calibration", "test"):
            tokens, targets = windows(text.held_out(split))
            with torch.no_grad():
                inputs = torch.cat([last_states(model, part) for part in tokens.split(WINDOW)])
            losses, argmax, _ = predictions(inputs, Readout(model.readout_matrix(0)), targets.flatten())
            right = float((argmax == targets.flatten()).double().mean())
            curves.nll.setdefault(split, []).append(float(losses.double().mean()))
            curves.accuracy.setdefault(split, []).append(right)
        return [], None

    between = sizes.updates // sizes.looks
    steps = between * sizes.looks
    looks = range(between, steps + 1, between)
    Training(step=step, look=look, steps=steps, looks=looks, selection=Selection[None]()).run()
    return model, curves


def last_states(model: BlockwiseLM, tokens: Tensor) -> Tensor:
    """What the readout is applied to, (B T, D), of windows (B, T)."""
    last = model.config.num_blocks - 1
    return model.readout_input(last, model(tokens)[last]).flatten(0, 1)


def windows(stream: Stream) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, WINDOW) of pieces.

    The targets are those of the context models, but for what does not fill a window.
    """
    pieces = stream.tokens.view(int(stream.begins.sum()), -1)
    rows = (pieces.shape[1] - 1) // WINDOW
    tokens, targets = (part[:, : rows * WINDOW].reshape(-1, WINDOW) for part in (pieces, pieces[:, 1:]))
    return tokens, targets


def corrected_values(of_arms: Mapping[str, Sequence[Trained]]) -> dict[str, float]:
    """All keys of one random seed, from what every arm came to at every amount."""
    out: dict[str, float] = {}
    for arm, amounts in of_arms.items():
        tokens = [trained.tokens for trained in amounts]
        out[f"parameters.{arm}"] = amounts[0].parameters
        out |= {f"tokens.{place}": count for place, count in enumerate(tokens, 1)}
        for prefix in PATIENCES:
            ppl = [math.exp(trained.nll[prefix]) for trained in amounts]
            shares = [trained.accuracy[prefix] for trained in amounts]
            out |= {f"{prefix}ppl.{arm}.{place}": value for place, value in enumerate(ppl, 1)}
            out |= {f"{prefix}accuracy.{arm}.{place}": value for place, value in enumerate(shares, 1)}
            out |= {
                f"{prefix}epoch.{arm}.{place}": trained.epoch[prefix]
                for place, trained in enumerate(amounts, 1)
            }
            out |= {f"{prefix}{name}.{arm}": value for name, value in law_values(tokens, ppl, shares).items()}
        out |= {
            f"patience_cost.{arm}.{place}": trained.nll["patience_1."] - trained.nll[""]
            for place, trained in enumerate(amounts, 1)
        }
        ranks = [trained.rank for trained in amounts if trained.rank is not None]
        if ranks:
            out |= {f"rank.{arm}.{place}": rank for place, rank in enumerate(ranks, 1)}
            of_ranks = rank_values(ranks, [math.exp(trained.nll[""]) for trained in amounts])
            out |= {f"{name}.{arm}": value for name, value in of_ranks.items()}
    for one, other in (("all", "first"), ("first", "transformer"), ("all", "transformer")):
        if {one, other} <= set(of_arms):
            pairs = enumerate(zip(of_arms[one], of_arms[other]), 1)
            out |= {f"diff.{one}_minus_{other}.{place}": a.nll[""] - b.nll[""] for place, (a, b) in pairs}
            out[f"diff.alpha.{one}_minus_{other}"] = out[f"alpha.{one}"] - out[f"alpha.{other}"]
            out[f"parameter_ratio.{one}_over_{other}"] = out[f"parameters.{one}"] / out[f"parameters.{other}"]
    return out


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[ContextScaling, ContextModels, ContextText]:
    """Settings of this study and of the models, and the text as they read it."""
    models = ContextModels.of(job.shared["context_models"])
    return ContextScaling.of(job.settings), models, context_text(job.text, models)


def law_values(tokens: Sequence[float], ppl: Sequence[float], accuracy: Sequence[float]) -> dict[str, float]:
    """The law that perplexity follows, how it goes on, and by how much accuracy rises from amount to
    amount."""
    law, steps = fit_power_law(tokens, ppl), [after - before for before, after in pairwise(accuracy)]
    return {
        "alpha": law.alpha,
        "r2": law.r2,
        "amplitude": law.amplitude,
        "alpha_range": law.high - law.low,
        "doubling_fall": 1 - 2**law.alpha,
        "extrapolation": extrapolation_error(tokens, ppl),
        "last_step.nll": math.log(ppl[-1] / ppl[-2]),
        "last_step.accuracy": steps[-1],
        "smallest_step.accuracy": min(steps),
    }


def rank_values(ranks: Sequence[float], ppl: Sequence[float]) -> dict[str, float]:
    """How much effective rank changes over the amounts, and its Pearson correlation with ln PPL; 0 where it
    does not change at all."""
    span = max(ranks) - min(ranks)
    correlation = float(np.corrcoef(ranks, np.log(ppl))[0, 1]) if span else 0.0
    return {"rank_variation": span / (sum(ranks) / len(ranks)), "rank_correlation": correlation}


def _curve(amounts: Sequence[Trained]) -> dict[float, float]:
    """Perplexity of test text by training tokens."""
    return {float(trained.tokens): math.exp(trained.nll[""]) for trained in amounts}
