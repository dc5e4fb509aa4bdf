"""Seed 002, section 4: does perplexity fall with the amount of text by a power law, and faster than a transformer's?

    python -m studies.context_scaling.study --corpus sotu

Published: four amounts of text, each with its own validation text (G2), patience 1 (G3); the same models are also judged on one
common text ("common"). Corrected: six amounts that span a factor of 32, doubled from one to the next, drawn anew for every seed,
smaller ones within larger ones; one calibration and one test text for all; equal updates at every amount, the best look by the
calibration text. Arms: token input at every layer (all), at the first alone (first), and a plain transformer of as many
parameters that starts from the same embedding and is judged on the same targets.

``alpha`` and ``r2`` are of ln PPL = ln A + alpha ln tokens; ``extrapolation`` is ln of the perplexity at the largest amount over
what the law of the others promises for it. Numbers after a point count the amounts, from 1. Patience is a rule for the looks.
Writes metrics/studies/context_scaling.<corpus>.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.machine.device import seed_all
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.states.statistics import Readout, predictions
from offramp.systems.context_vectors.training import FixedPoint, find_contexts
from offramp.training.losses import total_nll
from studies.common.workers import PUBLISHED_SEED, Outcome, run_arms, study_main
from studies.common.contexts import FLAWS as KNOWN_FLAWS
from studies.common.contexts import (
    SEEDS,
    SHARED,
    Read,
    Stream,
    SubWords,
    build,
    published_values,
    read_corrected,
    sub_words,
)
from studies.common.curves import curves_figure
from studies.common.results import study_params
from studies.common.subwords import shuffled
from studies.common.text import StudyText
from studies.measures.power_law import extrapolation_error, fit_power_law

STUDY = "context_scaling"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [KNOWN_FLAWS[code] for code in ("G2", "G3", "G4", "G6")]
CONTEXT_ARMS = ("first", "all")
ARMS = (*CONTEXT_ARMS, "transformer")
WINDOW = 128
"""Of the transformer; a piece is a whole number of windows and their last target."""
PATIENCES = {"": None, "patience_1.": 1}
"""Prefixes of the keys, and the looks without a better one after which training stops."""


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(words: SubWords, arm: str, tokens: int, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm at one amount of text, as the seed ran it; ``settings`` are the transformer's."""
    if arm == "transformer":  # for comparison; the seed had none
        _, seen = train_transformer(
            words, words.published(tokens)[0], settings | SHARED["corrected"], PUBLISHED_SEED
        )
        return {"common_ppl": math.exp(seen.nll["test"][seen.best("calibration")])}
    return published_values(words, arm, tokens, SHARED["published"])


def published_laws(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """All keys of the published protocol, from what every arm came to at every amount, the transformer at the largest alone."""
    out: dict[str, float] = {}
    for arm, sizes in found.items():
        if arm == "transformer":
            continue
        out |= {
            f"{name}.{arm}.{place}": value
            for place, values in enumerate(sizes, 1)
            for name, value in values.items()
        }
        if "transformer" in found:
            theirs = found["transformer"][-1]["common_ppl"]
            out[f"common_diff.{arm}_minus_transformer"] = math.log(sizes[-1]["common_ppl"] / theirs)
        tokens = [values["tokens"] for values in sizes]
        for prefix in ("", "common_"):
            ppl, accuracy = ([values[prefix + name] for values in sizes] for name in ("ppl", "accuracy"))
            law = fit_power_law(tokens, ppl)
            out |= {
                f"{prefix}{name}.{arm}": value
                for name, value in (
                    ("alpha", law.alpha),
                    ("r2", law.r2),
                    ("amplitude", law.amplitude),
                    ("alpha_range", law.high - law.low),
                    ("extrapolation", extrapolation_error(tokens, ppl)),
                    ("last_step.accuracy", accuracy[-1] - accuracy[-2]),
                    ("smallest_step.accuracy", min(after - before for before, after in pairwise(accuracy))),
                )
            }
    if set(CONTEXT_ARMS) <= set(found):
        out["diff.alpha.all_minus_first"] = out["alpha.all"] - out["alpha.first"]
        out |= {
            f"diff.all_minus_first.{place}": math.log(one["ppl"] / other["ppl"])
            for place, (one, other) in enumerate(zip(found["all"], found["first"]), 1)
        }
    return out


# Corrected ------------------------------------------------------------------------------------------------------------


def amounts(words: SubWords, settings: dict[str, Any]) -> list[int]:
    """Pieces of each amount of text, doubled from one to the next; fewer where the text has not as many.

    UserError where the smallest amount would be nothing.
    """
    largest, least = min(settings["pieces"], len(words.pieces["train"])), 2 ** (settings["sizes"] - 1)
    if largest < least:
        raise UserError(
            f"text: {largest} training pieces do not make {settings['sizes']} amounts that double; give text "
            f"for {least} of {words.pieces['train'].shape[1] - 1} tokens"
        )
    return [largest // 2 ** (settings["sizes"] - 1 - place) for place in range(settings["sizes"])]


def corrected_arm(
    words: SubWords, arm: str, pieces: int, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """One arm at one amount: tokens, parameters, and loss and accuracy on test text by patience (keys of PATIENCES)."""
    stream = words.drawn(pieces, seed)
    settings = settings | SHARED["corrected"]
    if arm == "transformer":
        model, seen = train_transformer(words, stream, settings, seed)
    else:
        model = build(words, arm, seed)
        find_contexts(model, stream.tokens, stream.begins, FixedPoint(**settings["fixed_point"]), seed)
        seen = read_corrected(words, model, stream, "sequential", settings, seed)
    out: dict[str, Any] = {
        "tokens": len(stream),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for prefix, patience in PATIENCES.items():
        best = seen.best("calibration", patience)
        out |= {
            f"{prefix}nll": seen.nll["test"][best],
            f"{prefix}accuracy": seen.accuracy["test"][best],
            f"{prefix}epoch": (best + 1)
            * (settings["updates"] // settings["looks"])
            * settings["reading"]["batch"]
            / len(stream),
        }
    return out


def train_transformer(
    words: SubWords, stream: Stream, settings: dict[str, Any], seed: int
) -> tuple[BlockwiseLM, Read]:
    """A transformer that sees a window at a time: as many looks, updates and tokens of an update as the context models."""
    seed_all(seed)
    model = BlockwiseLM(
        ModelConfig(words.vocab_size, WINDOW, words.embedding.shape[1], **settings["transformer"], tied=False)
    )
    with torch.no_grad():
        model.embedding.weight.copy_(words.embedding)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings["transformer_rate"], weight_decay=0.01, fused=True
    )
    drawn, seen = shuffled(*windows(stream), settings["reading"]["batch"] // WINDOW, seed), Read()
    for _ in range(settings["looks"]):
        for tokens, targets in islice(drawn, settings["updates"] // settings["looks"]):
            optimiser.zero_grad(set_to_none=True)
            (
                total_nll(last_states(model, tokens), model.readout_matrix(0), targets.flatten())
                / targets.numel()
            ).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        for split in ("calibration", "test"):
            tokens, targets = windows(words.held_out(split))
            with torch.no_grad():
                inputs = torch.cat([last_states(model, part) for part in tokens.split(WINDOW)])
            losses, argmax, _ = predictions(inputs, Readout(model.readout_matrix(0)), targets.flatten())
            seen.nll.setdefault(split, []).append(float(losses.double().mean()))
            seen.accuracy.setdefault(split, []).append(float((argmax == targets.flatten()).double().mean()))
    return model, seen


def last_states(model: BlockwiseLM, tokens: Tensor) -> Tensor:
    """What the readout is applied to, (B T, D), of windows (B, T)."""
    last = model.config.num_blocks - 1
    return model.readout_input(last, model(tokens)[last]).flatten(0, 1)


def windows(stream: Stream) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, WINDOW) of pieces: the targets of the context models, but for what does not fill a window."""
    pieces = stream.tokens.view(int(stream.begins.sum()), -1)
    rows = (pieces.shape[1] - 1) // WINDOW
    tokens, targets = (part[:, : rows * WINDOW].reshape(-1, WINDOW) for part in (pieces, pieces[:, 1:]))
    return tokens, targets


def corrected_values(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """All keys of one seed, from what every arm came to at every amount."""
    out: dict[str, float] = {}
    for arm, sizes in found.items():
        tokens = [values["tokens"] for values in sizes]
        out[f"parameters.{arm}"] = sizes[0]["parameters"]
        out |= {f"tokens.{place}": count for place, count in enumerate(tokens, 1)}
        for prefix in PATIENCES:
            ppl = [math.exp(values[f"{prefix}nll"]) for values in sizes]
            shares = [values[f"{prefix}accuracy"] for values in sizes]
            steps = [after - before for before, after in pairwise(shares)]
            law = fit_power_law(tokens, ppl)
            out |= {f"{prefix}ppl.{arm}.{place}": value for place, value in enumerate(ppl, 1)}
            out |= {f"{prefix}accuracy.{arm}.{place}": value for place, value in enumerate(shares, 1)}
            out |= {
                f"{prefix}epoch.{arm}.{place}": values[f"{prefix}epoch"]
                for place, values in enumerate(sizes, 1)
            }
            out |= {
                f"{prefix}{name}.{arm}": value
                for name, value in (
                    ("alpha", law.alpha),
                    ("r2", law.r2),
                    ("amplitude", law.amplitude),
                    ("alpha_range", law.high - law.low),
                    ("extrapolation", extrapolation_error(tokens, ppl)),
                    ("last_step.accuracy", steps[-1]),
                    ("smallest_step.accuracy", min(steps)),
                )
            }
    for one, other in (("all", "first"), ("first", "transformer"), ("all", "transformer")):
        if {one, other} <= set(found):
            pairs = enumerate(zip(found[one], found[other]), 1)
            out |= {f"diff.{one}_minus_{other}.{place}": a["nll"] - b["nll"] for place, (a, b) in pairs}
            out[f"diff.alpha.{one}_minus_{other}"] = out[f"alpha.{one}"] - out[f"alpha.{other}"]
            out[f"parameter_ratio.{one}_over_{other}"] = out[f"parameters.{one}"] / out[f"parameters.{other}"]
    return out


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
        given = settings["published"]["tokens"]
        of_arm = {arm: given if arm in CONTEXT_ARMS else given[-1:] for arm in arms}
        jobs = [
            (words, arm, tokens, settings["corrected"]) for arm in arms for tokens in reversed(of_arm[arm])
        ]
        found = {job[1:3]: one for job, one in zip(jobs, run_arms(published_arm, jobs))}
        outcome.published = published_laws(
            {arm: [found[arm, tokens] for tokens in of_arm[arm]] for arm in arms}
        )
    if protocol in ("corrected", "both"):
        sizes = amounts(words, settings["corrected"])
        jobs = [
            (words, arm, pieces, settings["corrected"], seed)
            for seed in seeds
            for arm in arms
            for pieces in reversed(sizes)
        ]
        found = {job[1:3] + job[4:]: one for job, one in zip(jobs, run_arms(corrected_arm, jobs))}
        by_seed = [{arm: [found[arm, pieces, seed] for pieces in sizes] for arm in arms} for seed in seeds]
        outcome.corrected = [corrected_values(found) for found in by_seed]
        outcome.figures["scaling"] = curves_figure(
            "Perplexity of test text by training tokens",
            {arm: [_curve(found[arm]) for found in by_seed] for arm in arms},
            "training tokens",
            "perplexity",
            log=True,
        )
    return outcome


def _curve(sizes: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    return {float(values["tokens"]): math.exp(values["nll"]) for values in sizes}


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
