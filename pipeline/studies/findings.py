"""The findings as a short paper, docs/findings.md and its figures, and as a page, docs/findings.html, from all results.

    python -m pipeline.studies.findings

Reads metrics/claims.csv and metrics/studies/*.json; same results, same bytes. A study may have no results yet.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from offramp.analysis.verdict import FEWEST, LEVEL, SHARE, VERDICTS
from offramp.errors import UserError
from offramp.lineage.artifact import write_text
from offramp.report.claims import CORPORA, number, read_result
from offramp.report.figures import Figure
from offramp.report.studies import Claim, Part, Study, studies_page
from pipeline.studies._findings_plots import as_rows, draw_plot, plot_of
from pipeline.studies.ledger import CLAIMS, COLUMNS, LEDGER, read_claims

TEMPLATE = Path(__file__).with_name("findings.md.j2")
PAGE, FIGURES, HTML = Path("docs/findings.md"), Path("docs/figures"), Path("docs/findings.html")

STUDIES = {
    "exit_signals": "Which signal should decide that a token leaves?",
    "blockwise_gap": "Why does a block-wise model lose quality when tokens leave?",
    "exit_labels": "Which label should an exit classifier learn?",
    "loss_prediction": "Can the loss of a token be predicted from its hidden state?",
    "inference_confidence": "Which confidence, known before the token, tracks the loss?",
    "low_rank_readout": "Can a low-rank readout stand in for the full one?",
    "hierarchy_and_lagged_caches": "What explains the gain of a hierarchy of recurrent blocks?",
    "segment_memory": "Does a compressive memory help that cannot see the future?",
    "iterated_refinement": "Does refining a state in several passes help at equal updates and equal compute?",
    "layer_supervision": "Does it help to supervise every layer?",
    "adding_a_layer": "Does adding a layer destroy a trained model?",
    "greedy_growth": "Does growing layer by layer on frozen layers collapse?",
    "progressive_growth": "Does growing layer by layer with all layers learning collapse?",
    "layer_contribution": "What does each layer contribute, to easy and to hard tokens?",
    "early_exit_feasibility": "Is leaving after the first layer safe?",
    "confidence_routing": "Does routing by confidence beat both fixed depths?",
    "routing_losses": "Which training loss suits a routed model?",
    "context_inputs": "Should every layer of a recurrent context see the token, and is its effective rank the reason?",
    "parallel_contexts": "Can contexts made in parallel stand in for the recurrence?",
    "context_scaling": "Does a recurrence without attention follow a power law of text, and keep up with a transformer?",
    "selective_output": "What is a gate worth that lets a model decline to speak?",
    "reversal": "Does a model that learnt \"A is B\" know \"B is A\"?",
}
SEEDS = {
    "003": ("labels for exit classifiers", ("exit_labels",)),
    "004": ("predicting the loss of a token", ("loss_prediction", "inference_confidence", "low_rank_readout")),
    "001": ("recurrence, memory, supervision, growth and exits of character-level models",
            ("hierarchy_and_lagged_caches", "segment_memory", "iterated_refinement", "layer_supervision", "adding_a_layer",
             "greedy_growth", "progressive_growth", "layer_contribution", "early_exit_feasibility", "confidence_routing",
             "routing_losses")),
    "002": ("a recurrent context trained apart from what reads it", ("context_inputs", "parallel_contexts", "context_scaling")),
    "000": ("a model that may decline to speak", ("selective_output", "reversal")),
}
"""In the order of the page: what it is about comes first."""
HEADINGS = {"holds": "What holds", "artefact": "Artefacts: reproduced, but only through a flaw", "fails": "What fails",
            "inconclusive": "What remains open"}
COUNTED = {"holds": ("holds", "hold"), "artefact": ("is an artefact", "are artefacts"), "fails": ("fails", "fail"),
           "inconclusive": ("is inconclusive", "are inconclusive")}

FACTS = {
    "exit_labels": [
        ("published", "Training block 1 moved the head it shares with block 0, whose held-out perplexity changed by a "
                      "fraction of {block0_drift} (I2)."),
        ("published", "Block 0 alone had a perplexity of {block0_val_ppl} on the windows held back from its training "
                      "and of {block0_heldout_ppl} on the text of the final figures (I5)."),
    ],
    "loss_prediction": [
        ("published", "Under the published protocol a share of {unseen_target_share} of the targets never occurred in "
                      "training (I9); of those with a loss above 14 nats it is {unseen_target_share_above14} (J4)."),
        ("corrected", "Corrected, a share of {worse_than_uniform} of the tokens is predicted worse than by the uniform "
                      "distribution."),
        ("corrected", "One constant answer, easy or hard, is right for a share of {classify.mlp2.majority_accuracy} of "
                      "the tokens; the two-layer classifier for {classify.mlp2.accuracy}."),
    ],
    "inference_confidence": [
        ("corrected", "Share of the oracle's loss gap, corrected: largest probability {max_prob.oracle_share}, largest "
                      "logit {max_logit.oracle_share}, max minus mean {max_minus_mean.oracle_share}, margin "
                      "{margin.oracle_share}."),
    ],
    "low_rank_readout": [
        ("corrected", "At rank 32 the softmax confidence correlates with the exact one at {softmax_corr.32} (plain) "
                      "and at {weighted_centred.softmax_corr.32} (weighted by the states and centred), for a share of "
                      "{flop_share.32} of the readout's FLOPs."),
    ],
    "hierarchy_and_lagged_caches": [
        ("corrected", "Of HRM's lead over lagged caches with OACD on 20,000 characters, a share of {20k.share.deep_supervision} "
                      "goes without deep supervision; training the lagged caches on the task closes a share of "
                      "{20k.share.task_loss}."),
        ("corrected", "At equal updates on 20,000 characters, in nats: deep supervision {20k.diff.hrm_minus_hrm_one_segment} with "
                      "two levels and {20k.diff.one_level_segments_minus_one_level} with one; a second level "
                      "{20k.diff.hrm_minus_one_level_segments} with deep supervision and "
                      "{20k.diff.hrm_one_segment_minus_one_level} without."),
        ("corrected", "At equal FLOPs: deep supervision {20k.flops.diff.hrm_minus_hrm_one_segment} with two levels and "
                      "{20k.flops.diff.one_level_segments_minus_one_level} with one; a second level "
                      "{20k.flops.diff.hrm_minus_one_level_segments} with deep supervision and "
                      "{20k.flops.diff.hrm_one_segment_minus_one_level} without."),
    ],
    "segment_memory": [
        ("corrected", "Earlier text of the same document against an empty memory, 20,000 characters, in nats: "
                      "{20k.diff.infini_carry_minus_infini_reset} before HRM, {20k.diff.input_carry_minus_input_reset} before a "
                      "transformer layer, {20k.diff.hidden_carry_minus_hidden_reset} inside it."),
        ("corrected", "On 500,000 characters: {500k.diff.input_carry_minus_input_reset} before a transformer layer, "
                      "{500k.diff.hidden_carry_minus_hidden_reset} inside it; against a memory of another place of the text, "
                      "in the same models, {500k.carried_minus_foreign.input_carry} and "
                      "{500k.carried_minus_foreign.hidden_carry}."),
        ("corrected", "The published leak (F5) alone, everything else equal: {20k.diff.infini_leak_minus_infini_reset} nats."),
    ],
    "iterated_refinement": [
        ("corrected", "One layer refined twice against one layer, in nats at equal updates: {20k.diff.irt_minus_standard} (20,000 "
                      "characters) and {500k.diff.irt_minus_standard} (500,000); against one that updates as often per batch "
                      "{20k.diff.irt_minus_repeated} and {500k.diff.irt_minus_repeated}."),
        ("corrected", "Against two layers, which cost as much in use: {20k.diff.irt_minus_standard_2} and {500k.diff.irt_minus_standard_2} "
                      "at equal updates, {20k.flops.diff.irt_minus_standard_2} and {500k.flops.diff.irt_minus_standard_2} at equal FLOPs of "
                      "training; against one layer unrolled twice {20k.diff.irt_minus_unrolled} and {500k.diff.irt_minus_unrolled}."),
    ],
    "layer_supervision": [
        ("corrected", "Four layers, 20,000 characters, in nats: sum of losses against the last alone {20k.diff.sum_minus_standard} at equal "
                      "updates and {20k.flops.diff.sum_minus_standard} at equal FLOPs, weighted against sum "
                      "{20k.diff.weighted_minus_sum}, mean against sum {20k.diff.normalised_minus_sum}."),
        ("corrected", "Eight layers: {20k.diff.sum_8_minus_standard_8} at equal updates, {20k.flops.diff.sum_8_minus_standard_8} at equal FLOPs. "
                      "The smallest step of the loss from one layer to the next is {20k.least_step.sum} with four layers and "
                      "{20k.least_step.sum_8} with eight: positive where every layer lowers it."),
        ("corrected", "On 500,000 characters: {500k.diff.sum_minus_standard} at equal updates, {500k.flops.diff.sum_minus_standard} at equal "
                      "FLOPs."),
    ],
    "adding_a_layer": [
        ("published", "As published, a fourth layer takes the perplexity from {ppl.full_append_1} to {ppl.full_append}; training on "
                      "without one takes it to {ppl.no_growth}."),
    ],
    "greedy_growth": [
        ("published", "As published, greedy growth goes from a perplexity of {ppl.greedy_1} with one layer to {ppl.greedy_4} with "
                      "four; one layer that trains on through the same stages goes from {ppl.no_growth_1} to {ppl.no_growth_4}."),
    ],
    "progressive_growth": [
        ("published", "As published, progressive growth goes from a perplexity of {ppl.standard_1} with one layer to "
                      "{ppl.standard_4} with four, with LPT to {ppl.lpt_4}; one layer that trains on through the same stages "
                      "goes to {ppl.no_growth_4}."),
    ],
    "layer_contribution": [
        ("published", "Classed by their final loss, easy tokens of the pangram gain {gain.easy} nats from depth and hard ones "
                      "{gain.hard}; the text has {contexts} distinct places (F16)."),
        ("corrected", "On 20,000 characters depth takes {20k.gain.easy} nats off the easy and {20k.gain.hard} off the hard class where "
                      "classes are by the model's own final loss (F13); by the loss of other seeds' models it is "
                      "{20k.others.gain.easy} and {20k.others.gain.hard}, by its own loss at layer 1 {20k.first.gain.easy} and "
                      "{20k.first.gain.hard}."),
        ("corrected", "On 500,000 characters, by the loss of other seeds' models: {500k.others.gain.easy} off the easy class, "
                      "{500k.others.gain.hard} off the hard one."),
        ("corrected", "The step of layer 1 has length {20k.norm.all.1}, that of layer 2 {20k.norm.all.2}; leaving the layer out costs "
                      "{20k.needed.1} and {20k.needed.2} nats."),
    ],
    "early_exit_feasibility": [
        ("published", "On the pangram a share of {exit.0.8} of the tokens leaves at threshold 0.8; there correctness flags agree at "
                      "{flag_agreement.0.8}, predictions at {agreement.0.8}."),
        ("corrected", "At threshold 0.8 a share of {20k.exit.0.8} leaves (20,000 characters). Where as many leave as published, flags "
                      "agree at {20k.flag_agreement_at.0.8}, predictions at {20k.agreement_at.0.8}; with a head trained on every "
                      "layer predictions agree at {20k.lpt.agreement_at.0.8}."),
        ("corrected", "On 500,000 characters predictions agree at {500k.agreement_at.0.8}, with a head trained on every layer at "
                      "{500k.lpt.agreement_at.0.8}."),
    ],
    "confidence_routing": [
        ("corrected", "At equal compute of use, routed minus fixed depth in nats (20,000 characters): two layers "
                      "{20k.diff.shallow_exit_minus_two_layers}, three {20k.diff.budget_minus_three_layers}, four "
                      "{20k.diff.deep_exit_minus_four_layers}; at equal training FLOPs too "
                      "{20k.flops.diff.shallow_exit_minus_two_layers}, {20k.flops.diff.budget_minus_three_layers} and "
                      "{20k.flops.diff.deep_exit_minus_four_layers}."),
        ("corrected", "On 500,000 characters: {500k.diff.shallow_exit_minus_two_layers}, {500k.diff.budget_minus_three_layers} and "
                      "{500k.diff.deep_exit_minus_four_layers}; who leaves by confidence instead of at random, as many: "
                      "{500k.diff.budget_minus_random}."),
        ("corrected", "At threshold 0.8 the executor saves {20k.layer_saving.routed} of the layers and {20k.flop_saving.routed} of the "
                      "FLOPs (20,000 characters), {500k.layer_saving.routed} and {500k.flop_saving.routed} (500,000)."),
    ],
    "routing_losses": [
        ("corrected", "Mean confidence minus accuracy at the shallow exit, 20,000 characters: half of each exit's loss "
                      "{20k.over.routed.2}, full LPT {20k.over.lpt.2}, routing aware {20k.over.routing_aware.2}; calibration errors "
                      "{20k.ece.routed.2}, {20k.ece.lpt.2} and {20k.ece.routing_aware.2}."),
        ("corrected", "On 500,000 characters: {500k.over.routed.2}, {500k.over.lpt.2} and {500k.over.routing_aware.2}; calibration "
                      "errors {500k.ece.routed.2}, {500k.ece.lpt.2} and {500k.ece.routing_aware.2}."),
        ("corrected", "Full LPT minus half of each exit's loss in nats, at threshold 0.8 and at the compute of three layers: "
                      "{20k.diff.lpt_minus_routed} and {20k.diff.budget_lpt_minus_routed} (20,000 characters), "
                      "{500k.diff.lpt_minus_routed} and {500k.diff.budget_lpt_minus_routed} (500,000)."),
    ],
    "selective_output": [
        ("published", "As published, validation text has a perplexity of {rule_ppl.carried} by the rule of training and of {ppl.carried} "
                      "by next tokens; a share of {visible.carried} of the scored targets is among the inputs (H1), of the fixed-skip "
                      "successor's {visible.fixed_carried}."),
        ("corrected", "Of a mismatch of {mismatch.carried} nats between training and use, carried targets (H1) make "
                      "{mismatch_from.leak} and the double shift (H2) {mismatch_from.double_shift}; the same model and gate trained on "
                      "next tokens have {mismatch.ordinary}."),
        ("corrected", "Next tokens, perplexity on test text: {ppl.ordinary} trained on them, {ppl.carried} by the published loss, "
                      "{ppl.leak_only} without the double shift, {ppl.shift_only} without carried targets."),
        ("corrected", "Skipped steps that reveal nothing, in nats against none: {diff.straight_through_minus_ordinary} with a learnt "
                      "gate (score function: {diff.score_function_minus_ordinary}), {diff.evenly_minus_ordinary} at even distances, "
                      "{diff.always_minus_ordinary} before every token; at equal FLOPs {diff.straight_through_minus_ordinary_long}, "
                      "{diff.evenly_minus_ordinary_long} and {diff.always_minus_ordinary_long}."),
        ("corrected", "Where as many tokens take a skipped step: the gate against a threshold on entropy {diff.placed.gate_minus_entropy}, "
                      "the gate against even distances {diff.placed.gate_minus_fixed}, entropy against even distances "
                      "{diff.placed.entropy_minus_fixed}; in the gate's own model the gate against entropy "
                      "{diff.skipping.gate_minus_entropy.straight_through}."),
        ("corrected", "Where as many tokens are left unsaid: a gate trained towards entropy against entropy itself "
                      "{diff.spoken.gate_minus_entropy.ordinary}, entropy against saying everything "
                      "{diff.spoken.entropy_minus_all.ordinary}."),
        ("corrected", "Gate and entropy correlate at {gate_entropy_r.ordinary} where the gate is trained towards entropy (H3) and at "
                      "{gate_entropy_r.straight_through} where it learns from what a skipped step buys."),
    ],
    "reversal": [
        ("published", "As published, forward sentences have a perplexity of {ppl.forward}, backward ones that name their subject twice "
                      "{ppl.repeated} (H6), well-formed backward ones {ppl.backward}."),
        ("corrected", "Backward minus forward, trained facts beyond control facts, nats per token: {reversal.ordinary}, selective "
                      "model {reversal.selective}, trained both ways {reversal.both_ways}, without any facts {reversal.no_facts}."),
        ("corrected", "Without any facts, published sentences are {repeated.gap.no_facts} nats per token harder backwards, well-formed "
                      "ones {gap.no_facts}."),
        ("corrected", "Facts learnt forwards are likelier than facts never seen by {learnt.ordinary} nats per token forwards and by "
                      "{learnt_backward.ordinary} backwards; of the answer alone {answer.learnt.ordinary} and "
                      "{answer.learnt_backward.ordinary}."),
        ("corrected", "Among trained facts of the same relation the right answer is likelier than the others' by "
                      "{associated.forward.ordinary} nats per token forwards and by {associated.backward.ordinary} backwards; selective "
                      "model {associated.forward.selective} and {associated.backward.selective}, trained both ways "
                      "{associated.forward.both_ways} and {associated.backward.both_ways}."),
    ],
    "context_inputs": [
        ("published", "As published: perplexity {ppl.all_334} at an effective rank of {rank.all_334} with token input at all layers, "
                      "{ppl.first} at {rank.first} with token input at the first; under the settings of the latter the former has {ppl.all} "
                      "at {rank.all}."),
        ("corrected", "With all else equal, token input at all layers changes the loss by {diff.all_minus_first} nats and the rank by "
                      "{rank_diff.all_minus_first}."),
        ("corrected", "Where the weight of diversity alone changes the rank, the loss changes by {slope.all} nats per unit of rank with token "
                      "input at all layers and by {slope.first} at the first; from the two forms of input one would read {slope.between}. "
                      "Across all arms rank and loss correlate at {correlation.arms}."),
        ("corrected", "Controls, in nats: phase 1 against blocks as drawn {diff.all_minus_all_untrained} (all layers) and "
                      "{diff.first_minus_first_untrained} (first), contexts against none {diff.all_minus_all_none} and "
                      "{diff.first_minus_all_none}, a past against none {diff.all_minus_all_token_only}."),
        ("corrected", "Ranks to hold these against: Gaussian vectors {null.random.all}, contexts of the token alone {null.token_only.all} (all "
                      "layers) and {null.token_only.first} (first). Stopping with patience 1 costs {patience_1.nats.all} and "
                      "{patience_1.nats.first} nats, with patience 3 {patience_3.nats.all} and {patience_3.nats.first}."),
    ],
    "parallel_contexts": [
        ("published", "As published, the cosine is {cos.all}; contexts of the same token elsewhere have {null.same_token.cos.all}, of any other "
                      "position {null.other.cos.all}."),
        ("corrected", "Corrected, the cosine is {cos.all} (all layers) and {cos.first} (first), centred {centred.cos.all} and "
                      "{centred.cos.first}; contexts of the same token elsewhere have {null.same_token.cos.all} and "
                      "{null.same_token.cos.first}, centred {null.same_token.centred.cos.all} and {null.same_token.centred.cos.first}."),
        ("corrected", "Of what a context knows beyond its token, the parallel one loses a share of {unexplained.all} and {unexplained.first}; "
                      "learning from it costs {diff.parallel_minus_sequential.all} and {diff.parallel_minus_sequential.first} nats."),
        ("corrected", "In use, contexts of the same token elsewhere cost {nats.same_token.all} and {nats.same_token.first} nats, four parallel "
                      "passes from nothing {nats.passes.4.all} and {nats.passes.4.first}."),
        ("corrected", "A cache takes {seconds.one_by_one.all} s over one stream, {seconds.sequential.all} s with documents side by side and "
                      "{seconds.parallel.all} s in parallel (all layers)."),
    ],
    "context_scaling": [
        ("published", "As published, exponents are {alpha.first} (first layer) and {alpha.all} (all layers); the same models on one common text "
                      "have {common_alpha.first} and {common_alpha.all}."),
        ("corrected", "Corrected, over six amounts: exponents {alpha.first} (first layer), {alpha.all} (all layers) and {alpha.transformer} "
                      "(transformer); the law of five amounts misses the sixth by {extrapolation.first}, {extrapolation.all} and "
                      "{extrapolation.transformer}."),
        ("corrected", "At the largest amount, against the transformer, in nats: {diff.first_minus_transformer.6} (first layer) and "
                      "{diff.all_minus_transformer.6} (all layers), with {parameter_ratio.first_over_transformer} and "
                      "{parameter_ratio.all_over_transformer} times its parameters."),
        ("corrected", "Accuracy changes by {last_step.accuracy.first} in the last step, by {patience_1.last_step.accuracy.first} with "
                      "patience 1."),
    ],
}
"""Sentences by study and protocol; one that names a figure which a result file lacks is left out."""

MEASURES = {"final_ppl": "perplexity", "random_ppl": "at random", "accuracy": "accuracy",
            "shallow_ratio": "leaving early", "layer_saving": "layers saved", "executed_layer_saving": "layers skipped",
            "flop_saving": "FLOPs saved"}
"""Columns of the table of labels."""

LONGEST = 40
"""Rows of a table above which the findings point to the result file."""

Row = dict[str, str]


def write_findings(root: Path = Path(".")) -> Path:
    """Write docs/findings.md, docs/findings.html and docs/figures/<study>.<corpus>.svg under ``root``.

    Raises UserError if the ledger is missing or was written for other claims.
    """
    from jinja2 import Environment, StrictUndefined

    views = {name: _view(root, name, asks) for name, asks in STUDIES.items()}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True)
    rows = _ledger(root)
    for name, view in views.items():
        own = [row for row in rows if row["study"] == name]
        view |= {"claims": len(own), "counts_text": _counts(own) if own else ""}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        views=views, seeds=_seeds(rows, views), **_protocols(views), fewest=FEWEST, share_band=number(SHARE),
        level_percent=number(100 * LEVEL))
    for view in views.values():
        for part in view["parts"]:
            if part["plot"]:
                write_text(root / FIGURES / part["plot"]["file"], part["plot"]["svg"])
    write_text(root / PAGE, re.sub(r"\n{3,}", "\n\n", page))
    write_text(root / HTML, studies_page(_parts(rows, views)))
    return root / PAGE


# The ledger ---------------------------------------------------------------------------------------------------------

def _ledger(root: Path) -> list[Row]:
    path = root / LEDGER
    if not path.exists():
        raise UserError(f"{LEDGER} is missing; run python -m pipeline.studies.ledger")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    claims = {claim.id: claim for claim in read_claims()}
    if columns != COLUMNS or [row["id"] for row in rows] != list(claims):
        raise UserError(f"{LEDGER} was not written from {CLAIMS.name}/*.yaml as they are; run python -m pipeline.studies.ledger")
    return [row | {"conclusion": claims[row["id"]].conclusion, "study": claims[row["id"]].study,
                   "corrected_text": _with_interval(row)} for row in rows]


def _with_interval(row: Row) -> str:
    return f"{row['corrected']} [{row['ci_low']}, {row['ci_high']}]" if row["ci_low"] else row["corrected"]


def _seeds(rows: list[Row], views: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for seed, (title, studies) in SEEDS.items():
        own = [row for row in rows if row["seed"] == seed]
        conclusions = [row for row in own if row["conclusion"]]
        found = {flaw: None for name in studies for part in views[name]["parts"] for flaw in part["flaws"]}
        groups = [{"heading": heading, "conclusions": [row for row in conclusions if row["verdict"] == verdict],
                   "figures": [_escaped(row) for row in own if row["verdict"] == verdict and not row["conclusion"]]}
                  for verdict, heading in HEADINGS.items() if any(row["verdict"] == verdict for row in own)]
        out.append({"name": f"seed {seed}", "title": title, "studies": studies, "total": len(own), "groups": groups,
                    "counts_text": _counts(own), "conclusions": len(conclusions),
                    "conclusion_counts_text": _counts(conclusions), "flaws": _one_per_code(list(found))})
    return out


def _parts(rows: list[Row], views: dict[str, Any]) -> list[Part]:
    """What the HTML page shows: the studies that belong to no seed, then those of each seed."""
    of_seeds = [name for _, studies in SEEDS.values() for name in studies]
    rest = [_study(view, []) for name, view in views.items() if name not in of_seeds]
    parts = [Part("Who decides that a token may leave early?", "", rest)]
    for seed, (title, studies) in SEEDS.items():
        own = [row for row in rows if row["seed"] == seed]
        shown = [_study(views[name], [row for row in own if row["study"] == name]) for name in studies]
        parts.append(Part(f"Seed {seed}: {title}", _counts(own), shown))
    return parts


def _study(view: dict[str, Any], rows: list[Row]) -> Study:
    plots = [part["plot"] for part in view["parts"] if part["plot"]]
    figures = [Figure(Path(plot["file"]).stem.replace(".", "-"), plot["title"], plot["note"], plot["svg"]) for plot in plots]
    claims = [Claim(*(row[name] for name in ("id", "statement", "published", "rerun", "corrected_text", "verdict", "reason")))
              for row in rows]
    several = len(view["parts"]) > 1
    sentences = [f"{part['corpus']}: {text}" if several else text for part in view["parts"] for text in part["sentences"]]
    return Study(view["name"], view["asks"], sentences, figures, claims)


def _counts(rows: list[Row]) -> str:
    """How many hold, fail, are artefacts or inconclusive; in words what is none."""
    counts = Counter(row["verdict"] for row in rows)
    parts = [f"{counts[verdict] or 'none'} {COUNTED[verdict][counts[verdict] != 1]}" for verdict in HEADINGS]
    assert set(HEADINGS) == set(VERDICTS)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _one_per_code(flaws: list[str]) -> list[str]:
    """Flaws in order of their codes (I1, J2, ...), one wording of each."""
    by_code: dict[str, str] = {}
    for flaw in flaws:
        by_code.setdefault(flaw.split()[0], flaw)
    return sorted(by_code.values(), key=lambda flaw: (flaw[0], int(re.sub(r"\D", "", flaw.split()[0]) or 0)))


# The studies --------------------------------------------------------------------------------------------------------

def _view(root: Path, study: str, asks: str) -> dict[str, Any]:
    results = {corpus: read_result(root, study, corpus) for corpus in CORPORA}
    return {"name": study, "asks": asks,
            "parts": [_part(study, corpus, result) for corpus, result in results.items() if result]}


def _part(study: str, corpus: str, result: dict[str, Any]) -> dict[str, Any]:
    tables = [_table(figure, study, corpus) for _, figure in sorted(result.get("figures", {}).items())
              if isinstance(figure, dict) and "rows" in figure]
    if study == "exit_labels":
        tables += _label_table(result)
    plot = plot_of(result)
    drawn = plot and {"title": f"{plot.title}, {CORPORA[corpus]}", "file": f"{study}.{corpus}.svg",
                      "note": plot.note, "svg": draw_plot(plot)}
    sentences = [*result.get("sentences", []), *_facts(study, result)]
    return {"corpus": CORPORA[corpus], "sentences": sentences, "tables": tables, "plot": drawn,
            "flaws": result.get("flaws", []), "result": result}


def _facts(study: str, result: dict[str, Any]) -> list[str]:
    out = []
    for protocol, sentence in FACTS.get(study, []):
        values = result.get(protocol, {}).get("values", {})
        names = re.findall(r"{([\w.]+)}", sentence)
        if all(name in values for name in names):
            out.append(re.sub(r"{([\w.]+)}", lambda found, values=values: cell(values[found[1]]), sentence))
    return out


def _label_table(result: dict[str, Any]) -> list[dict[str, str]]:
    values = result.get("corrected", {}).get("values", {})
    arms = [key.removeprefix("final_ppl.") for key in values if key.startswith("final_ppl.")]
    rows = [[arm, *(values.get(f"{measure}.{arm}") for measure in MEASURES)] for arm in sorted(arms)]
    note = "At random: as many tokens leave, drawn at random. Intervals over seeds."
    return [{"title": "The corrected protocol, by label", "note": note,
             "markdown": _markdown(["label", *MEASURES.values()], rows)}] if rows else []


def _table(figure: dict[str, Any], study: str, corpus: str) -> dict[str, str]:
    rows = [[row.get(column) for column in figure["columns"]] for row in as_rows(figure)]
    shown = _markdown(figure["columns"], rows) if len(rows) <= LONGEST else (
        f"{len(rows)} rows, in `metrics/studies/{study}.{corpus}.json`.")
    return {"title": figure.get("title", ""), "note": figure.get("note", ""), "markdown": shown}


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(str(entry).replace("|", "\\|") for entry in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A table's cell: a number, {value, low, high} or [value, low, high], an interval [low, high], or text."""
    if isinstance(value, dict):
        value = [value["value"], *(bound for bound in (value.get("low"), value.get("high")) if bound is not None)]
    if isinstance(value, list | tuple):
        *first, low, high = value if len(value) > 1 else [*value, None, None]
        return " ".join([*map(cell, first), *([f"[{number(low)}, {number(high)}]"] if low is not None else [])])
    if value is None:
        return "-"
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _escaped(row: Row) -> Row:
    return {name: value.replace("|", "\\|") if isinstance(value, str) else value for name, value in row.items()}


def _protocols(views: dict[str, Any]) -> dict[str, Any]:
    """What was run: a row per study and corpus, what is missing, and the sentences of the limits."""
    runs = []
    for view in views.values():
        for part in view["parts"]:
            result = part["result"]
            text, corrected = result.get("text", {}), result.get("corrected", {})
            digest = f", `{text['sha256'][:12]}`" if text.get("sha256") else ""
            runs.append({"study": view["name"], "asks": view["asks"], "corpus": part["corpus"],
                         "published": result.get("published", {}).get("n", "-"), "corrected": corrected.get("n", "-"),
                         "interval": corrected.get("interval", "-"), "text": f"{text.get('source', '-')}{digest}"})
    return {"runs": runs, "missing": [f"`{name}`" for name, view in views.items() if not view["parts"]],
            "published_runs": _span({row["published"] for row in runs}, "once"),
            "seed_counts": _span({row["corrected"] for row in runs}, "no"), "corpora_text": _corpora_text(views)}


def _span(counts: set[Any], none: str) -> str:
    known = sorted(count for count in counts if isinstance(count, int))
    if not known:
        return none
    if none == "once":
        return "once" if known == [1] else f"{known[0]} to {known[-1]} times"
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _corpora_text(views: dict[str, Any]) -> str:
    seen = {part["corpus"] for view in views.values() for part in view["parts"]}
    if CORPORA["wikitext"] in seen:
        return ("There are two corpora, both English. Figures that depend on the text are judged on WikiText-2, the "
                "published one; conclusions on both.")
    return ("All results are on the State of the Union addresses. The seeds used WikiText-2: figures that depend on "
            "the text may differ for that reason alone, conclusions should not.")


def main() -> None:
    try:
        print(f"wrote {write_findings()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
