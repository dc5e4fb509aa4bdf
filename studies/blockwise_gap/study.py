"""The open question of seed 003: why is the final perplexity worse than in training? And is block-wise training any good?

``python -m studies.blockwise_gap.study --corpus sotu``. Every switch of block-wise training turned on its own, from the
corrected configuration towards the seed's and from the seed's towards the corrected one, three seeds each, on the same
documents; and joint and final training at equal training FLOPs. Routing is executed on test documents at the seed's exit
ratio, by max softmax with a threshold from calibration documents. Writes metrics/studies/blockwise_gap.<corpus>.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
from functools import partial
from typing import Any

import numpy as np
import torch

from offramp.machine.device import setup
from offramp.models.native import BlockwiseLM
from offramp.routing.evaluate import run_split
from offramp.routing.executor import Executor
from offramp.states.statistics import Readout, predictions
from studies.common.choosing import Views, fit_view, losses, nll_at_share
from studies.common.results import over_seeds, study_params, write_results
from studies.common.text import CORPORA, study_text
from studies.common.zoo import ARMS, CPU, ZooModel, trained_and_held_back, zoo
from studies.exit_labels.study import LabelPolicy

TRAINED = [arm for arm in ARMS if "three exits" not in arm]
FROM_BASE = {
    "head frozen": "head: frozen",
    "head shared": "head: shared",
    "hard tokens": "tokens: hard",
    "hard tokens repacked": "tokens: hard and context: repack",
    "embedding frozen": "embedding: frozen",
    "base, exited state input": "exited_state: input",
}
FROM_PUBLISHED = {
    "published, embedding trained": "embedding: trained",
    "published, head frozen": "head: frozen",
    "published, context kept": "context: keep",
    "published, all tokens in context": "tokens: all and context: keep",
    "published, exited state output": "exited_state: output",
}
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    corpus = parser.parse_args().corpus
    text, settings = study_text(corpus), study_params("blockwise_gap")
    setup("cpu", 1)
    models = zoo(text, TRAINED)
    with multiprocessing.get_context("spawn").Pool(study_params("zoo")["processes"]) as pool:
        rows = pool.map(partial(measure, settings=settings), models, chunksize=1)
    seeds = study_params("zoo")["seeds"]
    found = {seed: {} for seed in seeds}
    for model, row in zip(models, rows):
        found[model.seed] |= {
            f"{arm}:{key}": value for arm, values in row.items() for key, value in values.items()
        }
    merged = [values | differences(values) for values in found.values()]
    figures, sentences = report(over_seeds(merged), settings)
    write_results("blockwise_gap", corpus, text.record(), [], None, merged, figures, sentences=sentences)


def measure(model: ZooModel, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Figures by arm: the trained one, and what it becomes when exited tokens stand for something else. NLL in nats.

    ``exit_0``, ``full`` on test documents; ``exit_0_same_documents`` on held-back windows of training documents;
    ``routed`` at the exit ratio by max softmax, ``share`` that left, ``random`` at that share; ``learned.<share>`` by a
    gain classifier.
    """
    setup("cpu", 1)
    loss, lm = losses(model.test), model.load()
    out = {
        "exit_0": float(loss[0].mean()),
        "full": float(loss[-1].mean()),
        "exit_0_same_documents": first_exit_nll(lm, model),
    }
    views = Views(model, 0)
    classifier, _ = fit_view(model, 0, "gain", views, "state", study_params("exit_signals"), [128])
    with torch.no_grad():
        score = classifier(views.get(model.test, "state")).numpy()
    out |= {f"learned.{share}": nll_at_share(score, loss, share) for share in settings["fractions"]}
    found = {
        model.arm: out | routed(model, "input" if model.arm.startswith("published") else "output", settings)
    }
    if model.arm == "base":
        found["base, exited state input"] = out | routed(model, "input", settings)
    if model.arm == "published":
        found["published, exited state output"] = out | routed(model, "output", settings)
    return found


def first_exit_nll(lm: BlockwiseLM, model: ZooModel) -> float:
    """Mean NLL of exit 0 on the held-back windows of training documents."""
    windows, readout, total, count = (
        trained_and_held_back(model.data)[1],
        Readout(lm.readout_matrix(0)),
        0.0,
        0,
    )
    with torch.no_grad():
        for indices in torch.arange(len(windows)).split(BATCH):
            tokens, targets = windows.batch(indices)
            states = lm.run_block(0, lm.embed(tokens)).flatten(0, 1)
            total += (
                predictions(lm.readout_input(0, states), readout, targets.flatten())[0].double().sum().item()
            )
            count += targets.numel()
    return total / count


def routed(model: ZooModel, exited_state: str, settings: dict[str, Any]) -> dict[str, float]:
    """Executed on the test split: a token leaves at exit 0 where max softmax reaches its calibration quantile."""
    lm, windows, loss = model.load(exited_state), model.windows("test"), losses(model.test)
    threshold = float(np.quantile(model.calibration.column("max_prob_0"), 1 - settings["exit_ratio"]))
    run = run_split(
        Executor(lm),
        windows,
        torch.arange(len(windows)),
        LabelPolicy(lm, None, threshold),
        BATCH,
        CPU,
        name=model.arm,
    )
    share = float((run.exit == 0).mean())
    return {
        "routed": float(run.loss.mean(dtype=np.float64)),
        "share": share,
        "random": share * float(loss[0].mean()) + (1 - share) * float(loss[-1].mean()),
    }


def differences(values: dict[str, float]) -> dict[str, float]:
    """What each switch does to the routed NLL, seed by seed; the steps from training PPL to final PPL; block-wise against others."""
    measured = [
        "routed",
        "full",
        *(key.removeprefix("base:") for key in values if key.startswith("base:learned.")),
    ]
    out = {
        f"from {start}:{arm}:{key}": values[f"{arm}:{key}"] - values[f"{start}:{key}"]
        for start, arms in (("base", FROM_BASE), ("published", FROM_PUBLISHED))
        for arm in arms
        for key in measured
    }
    # the arm with a frozen head has the same initial weights, so the same block 0, and its head as it was when that was judged
    before = values["published, head frozen:exit_0"]
    out["gap:published"] = values["published:routed"] - values["published, head frozen:exit_0_same_documents"]
    out["gap:evaluation set"] = before - values["published, head frozen:exit_0_same_documents"]
    out["gap:head moved by block 1"] = values["published:exit_0"] - before
    out["gap:block 1 and routing"] = values["published:routed"] - values["published:exit_0"]
    out["gap:base"] = values["base:routed"] - values["base:exit_0_same_documents"]
    for other in ("joint", "final"):
        for key in [
            key.removeprefix("block-wise:")
            for key in values
            if key.startswith(("block-wise:learned.", "block-wise:full"))
        ]:
            out[f"block-wise minus {other}:{key}"] = values[f"block-wise:{key}"] - values[f"{other}:{key}"]
    return out


def report(values: dict[str, dict[str, float]], settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    shares = settings["fractions"]
    arms = [*TRAINED, "base, exited state input", "published, exited state output"]
    interval = "mean and 95 % t interval over seeds"
    figures = {
        "attribution": {
            "title": "Where the seed's gap comes from (NLL in nats, positive is worse)",
            "note": f"published configuration; {interval}",
            "columns": ["step", "nats"],
            "rows": [
                [
                    "exit 0 on unseen windows of training documents -> routed on unseen documents (the gap)",
                    _cell(values["gap:published"]),
                ],
                [
                    "of it: unseen documents instead of unseen windows (head as block 0 left it)",
                    _cell(values["gap:evaluation set"]),
                ],
                [
                    "of it: the shared head that block 1 moved, at exit 0",
                    _cell(values["gap:head moved by block 1"]),
                ],
                ["of it: block 1 and routing against exit 0 alone", _cell(values["gap:block 1 and routing"])],
                ["the same gap in the corrected configuration", _cell(values["gap:base"])],
            ],
        },
        "switches from the corrected side": {
            "title": "One of the seed's choices added to the corrected configuration: change of NLL (nats, positive is worse)",
            "note": f"routed: at the seed's exit ratio by max softmax, executed; learned: by a gain classifier, cached; test documents, paired by seed, {interval}",
            **_switches(values, "base", FROM_BASE, shares),
        },
        "switches from the published side": {
            "title": "One of the seed's choices removed from the published configuration: change of NLL (nats, negative is better)",
            "note": f"the same measures; {interval}",
            **_switches(values, "published", FROM_PUBLISHED, shares),
        },
        "arms": {
            "title": "Every arm on test documents (NLL in nats)",
            "note": f"routed: by max softmax at the seed's exit ratio, executed; learned: a gain classifier, cached; {interval}",
            "columns": [
                "arm",
                "exit 0",
                "full depth",
                "routed",
                "random",
                *(f"learned, {share:.0%}" for share in shares),
            ],
            "rows": [
                [
                    arm,
                    *(_cell(values[f"{arm}:{key}"]) for key in ("exit_0", "full", "routed", "random")),
                    *(_cell(values[f"{arm}:learned.{share}"]) for share in shares),
                ]
                for arm in arms
            ],
        },
        "block-wise against the others": {
            "title": "Block-wise minus joint and final training at equal training FLOPs and equal inference FLOPs (NLL in nats)",
            "note": f"negative: block-wise is better; shares of tokens leaving by a gain classifier; {interval}",
            "columns": ["against", "full depth", *(f"{share:.0%} leave" for share in shares)],
            "rows": [
                [
                    other,
                    _cell(values[f"block-wise minus {other}:full"]),
                    *(_cell(values[f"block-wise minus {other}:learned.{share}"]) for share in shares),
                ]
                for other in ("joint", "final")
            ],
        },
    }
    gap = values["gap:published"]
    parts = {
        name: values[f"gap:{name}"]
        for name in ("evaluation set", "head moved by block 1", "block 1 and routing")
    }
    sentences = [
        f"With the seed's configuration the final NLL lies {_words(gap)} nats above that of training. The evaluation set accounts for "
        f"{_words(parts['evaluation set'])} of it, the head that block 1 moves for {_words(parts['head moved by block 1'])} "
        f"at exit 0, block 1 and routing for {_words(parts['block 1 and routing'])}.",
        "Against joint training at equal training FLOPs, block-wise training is "
        f"{_judged(values['block-wise minus joint:full'])} at full depth and {_judged(values[f'block-wise minus joint:learned.{shares[1]}'])} where "
        f"{shares[1]:.0%} of the tokens leave; against training the last exit only, "
        f"{_judged(values['block-wise minus final:full'])} at full depth and {_judged(values[f'block-wise minus final:learned.{shares[1]}'])} there.",
    ]
    return figures, sentences


def _switches(
    values: dict[str, dict[str, float]], start: str, arms: dict[str, str], shares: list[float]
) -> dict[str, Any]:
    keys = {
        "routed": "routed",
        "full depth": "full",
        **{f"learned, {share:.0%}": f"learned.{share}" for share in shares},
    }
    return {
        "columns": ["switch", *keys],
        "rows": [
            [name, *(_cell(values[f"from {start}:{arm}:{key}"]) for key in keys.values())]
            for arm, name in arms.items()
        ],
    }


def _judged(value: dict[str, float]) -> str:
    """Better, worse or not told apart, with the difference in nats."""
    verdict = "better" if value["high"] < 0 else "worse" if value["low"] > 0 else "not told apart"
    return f"{verdict} ({_words(value)} nats)"


def _cell(value: dict[str, float]) -> list[float]:
    return [value["value"], value["low"], value["high"]]


def _words(value: dict[str, float]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


if __name__ == "__main__":
    main()
