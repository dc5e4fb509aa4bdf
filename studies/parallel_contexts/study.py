"""Can contexts that are made in parallel stand in for the recurrence, and what does the stand-in cost?
(Report context-vectors, section 2.)

Published: contexts as the last iteration of phase 1 left them, with noise and of the weights before the
last step, against the recurrence with the final weights. Corrected: one parallel pass without noise from
those contexts with the final weights, which is what the token block would learn to read, against the
recurrence over the same pieces; and what matters, the loss on test text, always by the recurrence, of a
token block that learnt from parallel contexts (parallel) or from exact ones (sequential). Arms are the two
forms of token input. Cut against the report: 48 wide instead of 768; the published text is as long.

Beside every cosine stand its nulls: contexts of other positions ("other"), contexts of the same token
elsewhere ("same_token"), and cosines once the mean is removed ("centred"). ``unexplained`` is the squared
error as a share of that between two contexts of the same token, which is twice the variance within a token:
0.5 where the parallel contexts know no more than the token. ``passes.k``: k parallel passes from nothing,
test text. Times are of caches of the training pieces on disk: one document after the other as the report had
it, documents side by side, and one parallel pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.systems.context_vectors.model import ContextVectorLM
from offramp.systems.context_vectors.recurrence import (
    TOGETHER,
    parallel,
    previous_contexts,
    sequential,
    settle,
)
from offramp.systems.context_vectors.store import write_contexts
from offramp.systems.context_vectors.training import find_contexts, reading_losses
from studies.common.context_models import (
    ContextModels,
    ContextText,
    Stream,
    build,
    context_text,
    contexts_of,
    final,
    parts_of,
    read,
)
from studies.common.curves import curves_figure
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.workers import run_arms

ARMS = ("all", "first")
EDGE = 100
"""Tokens at the beginning, in the middle and at the end that the report looked at."""
KINDS = ("parallel", "sequential")
"""Of contexts that token blocks learn from."""


class PublishedSizes(Settings):
    """Of the published protocol."""

    tokens: int


class CorrectedSizes(Settings):
    """Of the corrected protocol."""

    pieces: int
    most: int
    """Iterations of phase 1."""
    updates: int
    looks: int
    passes: list[int]
    """Parallel passes from nothing, rising."""


class ParallelContexts(Settings):
    """The settings of this study."""

    published: PublishedSizes
    corrected: CorrectedSizes


# Likeness ---------------------------------------------------------------------------------------------------


def likeness(contexts: Tensor, exact: Tensor, tokens: Tensor, seed: int) -> dict[str, float]:
    """How near ``contexts`` (N, D) are to the ``exact`` ones (N, D) of tokens (N,).

    Beside it stands what chance and the token alone give.
    """
    generator = torch.Generator().manual_seed(seed)
    elsewhere, others = same_token(tokens, generator), torch.randperm(len(tokens), generator=generator)
    twice = elsewhere != torch.arange(len(tokens))  # tokens that occur elsewhere too
    mean = exact.mean(dim=0)
    out = {
        "mse": float((contexts - exact).square().mean()),
        "relative_error": float(((contexts - exact).norm(dim=1) / exact.norm(dim=1)).mean()),
    }
    between = (exact[elsewhere] - exact)[twice].square().mean()
    out["unexplained"] = float((contexts - exact)[twice].square().mean() / between)
    for name, shift in (("", 0.0), ("centred.", mean)):
        cosine = F.cosine_similarity(contexts - shift, exact - shift, dim=1)
        out |= {f"{name}cos": float(cosine.mean()), f"{name}cos_min": float(cosine.min())}
        for null, rows in (("other", others), ("same_token", elsewhere)):
            kept = twice if null == "same_token" else slice(None)
            out[f"null.{null}.{name}cos"] = float(
                F.cosine_similarity(contexts[rows] - shift, exact - shift, dim=1)[kept].mean()
            )
        out[f"{name}cos_above_same_token"] = float(cosine[twice].mean()) - out[f"null.same_token.{name}cos"]
    return out


def same_token(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """For every token (N,) the place of another one that is the same, at random; its own place where there
    is none."""
    order = torch.randperm(len(tokens), generator=generator)
    order = order[tokens[order].argsort(stable=True)]  # equal tokens next to each other, in random order
    sorted_tokens = tokens[order]
    first = torch.searchsorted(sorted_tokens, sorted_tokens)
    last = torch.searchsorted(sorted_tokens, sorted_tokens, right=True) - 1
    place = torch.arange(len(tokens))
    out = torch.empty_like(order)
    out[order] = order[torch.where(place < last, place + 1, first)]
    return out


def by_position(contexts: Tensor, exact: Tensor, positions: Mapping[str, Tensor]) -> dict[str, float]:
    """MSE and cosine at the places (n,) of every name."""
    out: dict[str, float] = {}
    for name, rows in positions.items():
        out[f"mse.{name}"] = float((contexts[rows] - exact[rows]).square().mean())
        out[f"cos.{name}"] = float(F.cosine_similarity(contexts[rows], exact[rows], dim=1).mean())
    return out


def edges(length: int, count: int = 1) -> dict[str, Tensor]:
    """First ("early"), middle and last ("late") EDGE places of each of ``count`` documents of one length."""
    starts = {"early": 0, "middle": (length - EDGE) // 2, "late": length - EDGE}
    begins = torch.arange(count).unsqueeze(1) * length
    return {name: (begins + start + torch.arange(EDGE)).flatten() for name, start in starts.items()}


def along(values: Mapping[str, float]) -> dict[str, float]:
    """How much of the squared error is gone at the end of a text, and the cosine where it is least."""
    return {
        "mse_fall": values["mse.early"] - values["mse.late"],
        "cos_least": min(values[f"cos.{place}"] for place in ("early", "middle", "late")),
    }


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """Contexts of the last iteration against the recurrence."""
    settings, models, text = _given(job)
    jobs = [(text, arm, job.seeds[0], models, settings.published.tokens) for arm in job.arms]
    of_arms = run_arms(published_arm, jobs, job.processes)
    return Outcome([{name: value for of_arm in of_arms for name, value in of_arm.items()}])


def published_arm(
    text: ContextText, arm: str, seed: int, models: ContextModels, tokens: int
) -> dict[str, float]:
    """Values of one arm as the report measured it."""
    stream, validation = text.published(tokens)
    model = build(text, arm, seed, models)
    start = time.perf_counter()
    phase_1 = find_contexts(model, stream.tokens, stream.begins, models.published.fixed_point, seed)
    phase_1_seconds = time.perf_counter() - start
    # a ring: the recurrence begins with the last context of the iteration before
    goes_on = torch.zeros_like(stream.begins)
    exact = final(sequential(model, stream.tokens, goes_on, first=phase_1.before[-1]))
    out = likeness(phase_1.contexts, exact, stream.tokens, seed)
    out |= by_position(phase_1.contexts, exact, edges(len(stream)))
    out |= seconds(model, stream, phase_1.contexts)
    out |= {"iterations": phase_1.iterations, "seconds.phase_1": phase_1_seconds}
    out |= published_reading(text, model, arm, seed, models, stream, validation, phase_1.contexts)
    return {f"{name}.{arm}": value for name, value in (out | along(out)).items()}


def published_reading(
    text: ContextText,
    model: ContextVectorLM,
    arm: str,
    seed: int,
    models: ContextModels,
    stream: Stream,
    validation: Stream,
    contexts: Tensor,
) -> dict[str, float]:
    """Phase 2 on parallel contexts, which the report's program never ran, and on exact ones; both judged by
    the recurrence."""
    how = models.published
    judged = {"validation": (validation, list(parts_of(contexts_of(model, validation, "sequential"))))}
    nll = {}
    for kind in KINDS:
        curves = read(
            copied(text, model, arm, models),
            stream,
            contexts_of(model, stream, kind, contexts),
            judged,
            how=how.reading,
            looks=how.epochs,
            updates_per_look=None,
            seed=seed,
            select="validation",
            patience=how.patience,
        )
        nll[kind] = curves.nll["validation"][curves.best("validation")]
    return {f"ppl.{kind}": math.exp(value) for kind, value in nll.items()} | {
        "diff.parallel_minus_sequential": nll["parallel"] - nll["sequential"]
    }


def copied(text: ContextText, model: ContextVectorLM, arm: str, models: ContextModels) -> ContextVectorLM:
    """A model with the same weights, to be trained on its own."""
    out = build(text, arm, 0, models)
    out.load_state_dict(model.state_dict())
    return out


# Corrected --------------------------------------------------------------------------------------------------


Curves = dict[str, dict[float, float]]
"""By what is measured, its value by the number of parallel passes."""


def corrected(job: Job) -> Outcome:
    """One parallel pass with the final weights against the recurrence, and what readers lose by it."""
    settings, models, text = _given(job)
    jobs = [(text, arm, seed, models, settings.corrected) for seed in job.seeds for arm in job.arms]
    measured = {
        (arm, seed): one
        for (_, arm, seed, *_), one in zip(jobs, run_arms(corrected_arm, jobs, job.processes))
    }
    rows = [
        {f"{name}.{arm}": value for arm in job.arms for name, value in measured[arm, seed][0].items()}
        for seed in job.seeds
    ]

    def of_arms(measure: str) -> dict[str, list[dict[float, float]]]:
        return {arm: [measured[arm, seed][1][measure] for seed in job.seeds] for arm in job.arms}

    losses = curves_figure(
        "Loss that stand-ins for the recurrence cost, by parallel passes from nothing",
        of_arms("nats"),
        "parallel passes",
        "nats above the recurrence",
    )
    errors = curves_figure(
        "Relative error of contexts by parallel passes from nothing",
        of_arms("error"),
        "parallel passes",
        "relative error",
    )
    table = {name: value for name, value in errors.items() if name != "plot"}
    return Outcome(rows, {"passes": losses, "passes_error": table})


def corrected_arm(
    text: ContextText, arm: str, seed: int, models: ContextModels, sizes: CorrectedSizes
) -> tuple[dict[str, float], Curves]:
    """Values of one arm and random seed, and its curves by the number of passes."""
    stream = text.drawn(sizes.pieces, seed)
    model = build(text, arm, seed, models)
    how = replace(models.corrected.fixed_point, most=sizes.most)
    phase_1 = find_contexts(model, stream.tokens, stream.begins, how, seed)
    exact, one_pass = (
        final(contexts_of(model, stream, kind, phase_1.contexts)) for kind in ("sequential", "parallel")
    )
    out = likeness(one_pass, exact, stream.tokens, seed)
    out |= seconds(model, stream, phase_1.contexts) | {"iterations": phase_1.iterations}
    count = int(stream.begins.sum())
    out |= by_position(one_pass, exact, edges(len(stream) // count, count))
    out |= along(out)

    nll: dict[str, float] = {}
    for kind in KINDS:
        reader = copied(text, model, arm, models)
        streams = {split: text.held_out(split) for split in ("calibration", "test")}
        judged = {
            split: (held_out, list(parts_of(contexts_of(model, held_out, "sequential"))))
            for split, held_out in streams.items()
        }
        curves = read(
            reader,
            stream,
            contexts_of(model, stream, kind, phase_1.contexts),
            judged,
            how=models.corrected.reading,
            looks=sizes.looks,
            updates_per_look=sizes.updates // sizes.looks,
            seed=seed,
            select="calibration",
        )
        best = curves.best("calibration")
        nll[kind] = curves.nll["test"][best]
        out |= {f"ppl.{kind}": math.exp(nll[kind]), f"accuracy.{kind}": curves.accuracy["test"][best]}
    out["diff.parallel_minus_sequential"] = nll["parallel"] - nll["sequential"]
    test, errors, nats = text.held_out("test"), {}, {}
    whole = [torch.cat(of_layer) for of_layer in zip(*contexts_of(model, test, "sequential"))]
    for name, parts in stand_ins(model, test, whole, sizes.passes, seed):
        # the last reader, that of exact contexts
        losses, _ = reading_losses(reader, test.tokens, test.begins, parts_of(iter(parts)))
        nats[name] = float(losses.double().mean()) - nll["sequential"]
        errors[name] = float(((final(iter(parts)) - whole[-1]).norm(dim=1) / whole[-1].norm(dim=1)).mean())
    by_passes = {
        name: {float(count): values[f"passes.{count}"] for count in sizes.passes}
        for name, values in (("nats", nats), ("error", errors))
    }
    for measure, values in (("nats", nats), ("relative_error", errors)):
        out |= {f"{measure}.{name}": value for name, value in values.items()}
    return out, by_passes


def stand_ins(
    model: ContextVectorLM, stream: Stream, exact: list[Tensor], passes: Sequence[int], seed: int
) -> Iterator[tuple[str, list[list[Tensor]]]]:
    """Outputs of all layers that could take the place of the ``exact`` ones, each (N, d_i).

    Those of other positions, of the same token elsewhere, and after so many parallel passes from nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    places = {
        "other": torch.randperm(len(stream), generator=generator),
        "same_token": same_token(stream.tokens, generator),
    }
    for name, rows in places.items():
        yield name, [[output[rows] for output in exact]]
    contexts, done = torch.zeros_like(exact[-1]), 0
    for count in passes:  # the last pass also gives the outputs of all layers
        before = previous_contexts(
            settle(model, stream.tokens, stream.begins, contexts, count - 1 - done), stream.begins
        )
        outputs = list(parallel(model, stream.tokens, before))
        contexts, done = final(iter(outputs)), count
        yield f"passes.{count}", outputs


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[ParallelContexts, ContextModels, ContextText]:
    """Settings of this study and of the models, and the text as they read it."""
    models = ContextModels.of(job.shared["context_models"])
    return ParallelContexts.of(job.settings), models, context_text(job.text, models)


def seconds(model: ContextVectorLM, stream: Stream, contexts: Tensor) -> dict[str, float]:
    """How long caches of a stream take, on disk, and how many times faster the parallel pass is.

    That pass starts from ``contexts`` (N, D).
    """
    ways: dict[str, Callable[[], Iterator[list[Tensor]]]] = {
        "one_by_one": lambda: one_by_one(model, stream),
        "sequential": lambda: contexts_of(model, stream, "sequential"),
        "parallel": lambda: contexts_of(model, stream, "parallel", contexts),
    }
    out: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for name, way in ways.items():
            start = time.perf_counter()
            write_contexts(Path(folder, name), stream.tokens, stream.begins, way(), {})
            out[f"seconds.{name}"] = time.perf_counter() - start
    return out | {
        f"speedup.{name}": out[f"seconds.{name}"] / out["seconds.parallel"]
        for name in ("one_by_one", "sequential")
    }


def one_by_one(model: ContextVectorLM, stream: Stream) -> Iterator[list[Tensor]]:
    """The recurrence with one token at a time, as a stream without documents has it, in parts of equal
    length."""
    return sequential(model, stream.tokens, torch.arange(len(stream)) == 0, TOGETHER)
