"""Sentences of the findings whose numbers come from the result files: figures stand in braces, by their keys."""

from __future__ import annotations

FACTS = {
    "exit_labels": [
        (
            "published",
            "Training block 1 moved the head it shares with block 0, whose held-out perplexity changed by a "
            "fraction of {block0_drift} (I2).",
        ),
        (
            "published",
            "Block 0 alone had a perplexity of {block0_val_ppl} on the windows held back from its training "
            "and of {block0_heldout_ppl} on the text of the final figures (I5).",
        ),
    ],
    "loss_prediction": [
        (
            "published",
            "Under the published protocol a share of {unseen_target_share} of the targets never occurred in "
            "training (I9); of those with a loss above 14 nats it is {unseen_target_share_above14} (J4).",
        ),
        (
            "corrected",
            "Corrected, a share of {worse_than_uniform} of the tokens is predicted worse than by the uniform "
            "distribution.",
        ),
        (
            "corrected",
            "One constant answer, easy or hard, is right for a share of {classify.mlp2.majority_accuracy} of "
            "the tokens; the two-layer classifier for {classify.mlp2.accuracy}.",
        ),
    ],
    "inference_confidence": [
        (
            "corrected",
            "Share of the oracle's loss gap, corrected: largest probability {max_prob.oracle_share}, largest "
            "logit {max_logit.oracle_share}, max minus mean {max_minus_mean.oracle_share}, margin "
            "{margin.oracle_share}.",
        ),
    ],
    "low_rank_readout": [
        (
            "corrected",
            "At rank 32 the softmax confidence correlates with the exact one at {softmax_corr.32} (plain) "
            "and at {weighted_centred.softmax_corr.32} (weighted by the states and centred), for a share of "
            "{flop_share.32} of the readout's FLOPs.",
        ),
    ],
    "hierarchy_and_lagged_caches": [
        (
            "corrected",
            "Of HRM's lead over lagged caches with OACD on 20,000 characters, a share of {20k.share.deep_supervision} "
            "is lost without deep supervision; training the lagged caches on the task closes a share of "
            "{20k.share.task_loss}.",
        ),
        (
            "corrected",
            "At equal updates on 20,000 characters, in nats: deep supervision {20k.diff.hrm_minus_hrm_one_segment} with "
            "two levels and {20k.diff.one_level_segments_minus_one_level} with one; a second level "
            "{20k.diff.hrm_minus_one_level_segments} with deep supervision and "
            "{20k.diff.hrm_one_segment_minus_one_level} without.",
        ),
        (
            "corrected",
            "At equal FLOPs: deep supervision {20k.flops.diff.hrm_minus_hrm_one_segment} with two levels and "
            "{20k.flops.diff.one_level_segments_minus_one_level} with one; a second level "
            "{20k.flops.diff.hrm_minus_one_level_segments} with deep supervision and "
            "{20k.flops.diff.hrm_one_segment_minus_one_level} without. Lagged caches trained on the task are "
            "{20k.flops.diff.lct_task_1_minus_hrm} from HRM then, instead of {20k.diff.lct_task_1_minus_hrm} at equal "
            "updates; OACD makes features worse than those of layers as drawn, by "
            "{20k.flops.diff.lct_oacd_1_minus_untrained_1} and {20k.flops.diff.lct_oacd_2_minus_untrained_2} (one and two "
            "layers).",
        ),
    ],
    "segment_memory": [
        (
            "published",
            "As published, Infini-attention before HRM lowers its perplexity by a share of {gain.infini_reset} with a memory "
            "emptied after every window and of {gain.infini_carry} with one carried on; one seed, and the leak (F5) in both. "
            "A negative share raises it.",
        ),
        (
            "corrected",
            "Earlier text of the same document against an empty memory, 20,000 characters, in nats: "
            "{20k.diff.infini_carry_minus_infini_reset} before HRM, {20k.diff.input_carry_minus_input_reset} before a "
            "transformer layer, {20k.diff.hidden_carry_minus_hidden_reset} inside it.",
        ),
        (
            "corrected",
            "On 500,000 characters: {500k.diff.input_carry_minus_input_reset} before a transformer layer, "
            "{500k.diff.hidden_carry_minus_hidden_reset} inside it; against a memory of another place of the text, "
            "in the same models, {500k.carried_minus_foreign.input_carry} and "
            "{500k.carried_minus_foreign.hidden_carry}.",
        ),
        (
            "corrected",
            "The published leak (F5) alone, everything else equal: {20k.diff.infini_leak_minus_infini_reset} nats.",
        ),
    ],
    "iterated_refinement": [
        (
            "corrected",
            "On 20,000 characters one layer refined twice against one layer, in nats at equal updates: "
            "{20k.diff.irt_minus_standard}; against one that updates as often per batch {20k.diff.irt_minus_repeated}; against "
            "two layers, which cost as much in use, {20k.diff.irt_minus_standard_2} at equal updates and "
            "{20k.flops.diff.irt_minus_standard_2} at equal FLOPs of training; against one layer unrolled twice "
            "{20k.diff.irt_minus_unrolled}.",
        ),
        (
            "corrected",
            "On 500,000 characters, in the same order: {500k.diff.irt_minus_standard}, {500k.diff.irt_minus_repeated}, "
            "{500k.diff.irt_minus_standard_2}, {500k.flops.diff.irt_minus_standard_2} and {500k.diff.irt_minus_unrolled}.",
        ),
    ],
    "layer_supervision": [
        (
            "corrected",
            "Four layers, 20,000 characters, in nats: sum of losses against the last alone {20k.diff.sum_minus_standard} at equal "
            "updates and {20k.flops.diff.sum_minus_standard} at equal FLOPs, weighted against sum "
            "{20k.diff.weighted_minus_sum}, mean against sum {20k.diff.normalised_minus_sum}.",
        ),
        (
            "corrected",
            "Eight layers: {20k.diff.sum_8_minus_standard_8} at equal updates, {20k.flops.diff.sum_8_minus_standard_8} at equal FLOPs. "
            "From one layer to the next the loss falls by at least {20k.least_step.sum} with four layers and by "
            "{20k.least_step.sum_8} with eight; where that is negative, some layer raises it.",
        ),
        (
            "corrected",
            "On 500,000 characters: {500k.diff.sum_minus_standard} at equal updates, {500k.flops.diff.sum_minus_standard} at equal "
            "FLOPs.",
        ),
    ],
    "adding_a_layer": [
        (
            "published",
            "As published, a fourth layer takes the perplexity from {ppl.full_append_1} to {ppl.full_append}; training on "
            "without one takes it to {ppl.no_growth}.",
        ),
    ],
    "greedy_growth": [
        (
            "published",
            "As published, greedy growth goes from a perplexity of {ppl.greedy_1} with one layer to {ppl.greedy_4} with "
            "four; one layer that trains on through the same stages goes from {ppl.no_growth_1} to {ppl.no_growth_4}.",
        ),
    ],
    "progressive_growth": [
        (
            "published",
            "As published, progressive growth goes from a perplexity of {ppl.standard_1} with one layer to "
            "{ppl.standard_4} with four, with LPT to {ppl.lpt_4}; one layer that trains on through the same stages "
            "goes to {ppl.no_growth_4}.",
        ),
    ],
    "layer_contribution": [
        (
            "published",
            "Classed by their final loss, easy tokens of the pangram gain {gain.easy} nats from depth and hard ones "
            "{gain.hard}; the text has {contexts} distinct places (F16).",
        ),
        (
            "corrected",
            "On 20,000 characters depth takes {20k.gain.easy} nats off the easy and {20k.gain.hard} off the hard class where "
            "classes are by the model's own final loss (F13); by the loss of other seeds' models it is "
            "{20k.others.gain.easy} and {20k.others.gain.hard}, by its own loss at layer 1 {20k.first.gain.easy} and "
            "{20k.first.gain.hard}.",
        ),
        (
            "corrected",
            "On 500,000 characters, by the loss of other seeds' models: {500k.others.gain.easy} off the easy class, "
            "{500k.others.gain.hard} off the hard one.",
        ),
        (
            "corrected",
            "The step of layer 1 has length {20k.norm.all.1}, that of layer 2 {20k.norm.all.2}; leaving the layer out costs "
            "{20k.needed.1} and {20k.needed.2} nats.",
        ),
    ],
    "early_exit_feasibility": [
        (
            "published",
            "On the pangram a share of {exit.0.8} of the tokens leaves at threshold 0.8; there correctness flags agree at "
            "{flag_agreement.0.8}, predictions at {agreement.0.8}.",
        ),
        (
            "corrected",
            "At threshold 0.8 a share of {20k.exit.0.8} leaves (20,000 characters). Where as many leave as published, flags "
            "agree at {20k.flag_agreement_at.0.8}, predictions at {20k.agreement_at.0.8}; with a head trained on every "
            "layer predictions agree at {20k.lpt.agreement_at.0.8}.",
        ),
        (
            "corrected",
            "On 500,000 characters predictions agree at {500k.agreement_at.0.8}, with a head trained on every layer at "
            "{500k.lpt.agreement_at.0.8}.",
        ),
    ],
    "confidence_routing": [
        (
            "published",
            "On the pangram every model is best after epoch {best_epoch.routed}, and its perplexity rises from there: routed "
            "{ppl.routed}, two layers {ppl.two_layers}, three {ppl.three_layers}, four {ppl.four_layers}; who leaves by "
            "confidence instead of at random, as many, makes {diff.routed_minus_random} nats.",
        ),
        (
            "corrected",
            "At equal compute of use, routed minus fixed depth in nats (20,000 characters): two layers "
            "{20k.diff.shallow_exit_minus_two_layers}, three {20k.diff.budget_minus_three_layers}, four "
            "{20k.diff.deep_exit_minus_four_layers}; at equal training FLOPs too "
            "{20k.flops.diff.shallow_exit_minus_two_layers}, {20k.flops.diff.budget_minus_three_layers} and "
            "{20k.flops.diff.deep_exit_minus_four_layers}.",
        ),
        (
            "corrected",
            "On 500,000 characters: {500k.diff.shallow_exit_minus_two_layers}, {500k.diff.budget_minus_three_layers} and "
            "{500k.diff.deep_exit_minus_four_layers}; who leaves by confidence at threshold 0.8 instead of at "
            "random, as many: {500k.diff.routed_minus_random}; at the compute of three layers {500k.diff.budget_minus_random}.",
        ),
        (
            "corrected",
            "At threshold 0.8 the executor saves {20k.layer_saving.routed} of the layers and {20k.flop_saving.routed} of the "
            "FLOPs (20,000 characters), {500k.layer_saving.routed} and {500k.flop_saving.routed} (500,000).",
        ),
    ],
    "routing_losses": [
        (
            "published",
            "On the pangram, after the best epoch: half of each exit's loss {ppl.routed}, full LPT {ppl.lpt}, routing aware "
            "{ppl.routing_aware}; one seed.",
        ),
        (
            "corrected",
            "Mean confidence minus accuracy at the shallow exit, 20,000 characters: half of each exit's loss "
            "{20k.over.routed.2}, full LPT {20k.over.lpt.2}, routing aware {20k.over.routing_aware.2}; calibration errors "
            "{20k.ece.routed.2}, {20k.ece.lpt.2} and {20k.ece.routing_aware.2}.",
        ),
        (
            "corrected",
            "On 500,000 characters: {500k.over.routed.2}, {500k.over.lpt.2} and {500k.over.routing_aware.2}; calibration "
            "errors {500k.ece.routed.2}, {500k.ece.lpt.2} and {500k.ece.routing_aware.2}.",
        ),
        (
            "corrected",
            "Full LPT minus half of each exit's loss in nats, at threshold 0.8 and at the compute of three layers: "
            "{20k.diff.lpt_minus_routed} and {20k.diff.budget_lpt_minus_routed} (20,000 characters), "
            "{500k.diff.lpt_minus_routed} and {500k.diff.budget_lpt_minus_routed} (500,000).",
        ),
    ],
    "selective_output": [
        (
            "published",
            "As published, validation text has a perplexity of {rule_ppl.carried} by the rule of training and of {ppl.carried} "
            "by next tokens; a share of {visible.carried} of the scored targets is among the inputs (H1), of the fixed-skip "
            "successor's {visible.fixed_carried}.",
        ),
        (
            "corrected",
            "Of a mismatch of {mismatch.carried} nats between training and use, carried targets (H1) make "
            "{mismatch_from.leak} and the double shift (H2) {mismatch_from.double_shift}; the same model and gate trained on "
            "next tokens have {mismatch.ordinary}.",
        ),
        (
            "corrected",
            "Next tokens, perplexity on test text: {ppl.ordinary} trained on them, {ppl.carried} by the published loss, "
            "{ppl.leak_only} without the double shift, {ppl.shift_only} without carried targets.",
        ),
        (
            "corrected",
            "Skipped steps that reveal nothing, in nats against none: {diff.straight_through_minus_ordinary} with a learnt "
            "gate (score function: {diff.score_function_minus_ordinary}), {diff.evenly_minus_ordinary} at even distances, "
            "{diff.always_minus_ordinary} before every token; at equal FLOPs {diff.straight_through_minus_ordinary_long}, "
            "{diff.evenly_minus_ordinary_long} and {diff.always_minus_ordinary_long}.",
        ),
        (
            "corrected",
            "Where as many tokens take a skipped step: the gate against a threshold on entropy {diff.placed.gate_minus_entropy}, "
            "the gate against even distances {diff.placed.gate_minus_fixed}, entropy against even distances "
            "{diff.placed.entropy_minus_fixed}; in the gate's own model the gate against entropy "
            "{diff.skipping.gate_minus_entropy.straight_through}.",
        ),
        (
            "corrected",
            "Where as many tokens are left unsaid: a gate trained towards entropy against entropy itself "
            "{diff.spoken.gate_minus_entropy.ordinary}, entropy against saying everything "
            "{diff.spoken.entropy_minus_all.ordinary}.",
        ),
        (
            "corrected",
            "Gate and entropy correlate at {gate_entropy_r.ordinary} where the gate is trained towards entropy (H3) and at "
            "{gate_entropy_r.straight_through} where it learns from what a skipped step buys.",
        ),
    ],
    "reversal": [
        (
            "published",
            "As published, forward sentences have a perplexity of {ppl.forward}, backward ones that name their subject twice "
            "{ppl.repeated} (H6), well-formed backward ones {ppl.backward}.",
        ),
        (
            "corrected",
            "Backward minus forward, trained facts beyond control facts, nats per token: {reversal.ordinary}, selective "
            "model {reversal.selective}, trained both ways {reversal.both_ways}, without any facts {reversal.no_facts}.",
        ),
        (
            "corrected",
            "Without any facts, published sentences are {repeated.gap.no_facts} nats per token harder backwards, well-formed "
            "ones {gap.no_facts}.",
        ),
        (
            "corrected",
            "Facts learnt forwards are likelier than facts never seen by {learnt.ordinary} nats per token forwards and by "
            "{learnt_backward.ordinary} backwards; of the answer alone {answer.learnt.ordinary} and "
            "{answer.learnt_backward.ordinary}.",
        ),
        (
            "corrected",
            "Among trained facts of the same relation the right answer is likelier than the others' by "
            "{associated.forward.ordinary} nats per token forwards and by {associated.backward.ordinary} backwards; selective "
            "model {associated.forward.selective} and {associated.backward.selective}, trained both ways "
            "{associated.forward.both_ways} and {associated.backward.both_ways}.",
        ),
    ],
    "context_inputs": [
        (
            "published",
            "As published: perplexity {ppl.all_334} at an effective rank of {rank.all_334} with token input at all layers, "
            "{ppl.first} at {rank.first} with token input at the first; under the settings of the latter the former has {ppl.all} "
            "at {rank.all}.",
        ),
        (
            "corrected",
            "With all else equal, token input at all layers changes the loss by {diff.all_minus_first} nats and the rank by "
            "{rank_diff.all_minus_first}.",
        ),
        (
            "corrected",
            "Where the weight of diversity alone changes the rank, the loss changes by {slope.all} nats per unit of rank with token "
            "input at all layers and by {slope.first} at the first; from the two forms of input one would read {slope.between}. "
            "Across all arms rank and loss correlate at {correlation.arms}.",
        ),
        (
            "corrected",
            "Controls, in nats: phase 1 against blocks as drawn {diff.all_minus_all_untrained} (all layers) and "
            "{diff.first_minus_first_untrained} (first), contexts against none {diff.all_minus_all_none} and "
            "{diff.first_minus_all_none}, a past against none {diff.all_minus_all_token_only}.",
        ),
        (
            "corrected",
            "Ranks to hold these against: Gaussian vectors {null.random.all}, contexts of the token alone {null.token_only.all} (all "
            "layers) and {null.token_only.first} (first). Stopping with patience 1 costs {patience_1.nats.all} and "
            "{patience_1.nats.first} nats, with patience 3 {patience_3.nats.all} and {patience_3.nats.first}.",
        ),
    ],
    "parallel_contexts": [
        (
            "published",
            "As published, the cosine is {cos.all}; contexts of the same token elsewhere have {null.same_token.cos.all}, of any other "
            "position {null.other.cos.all}.",
        ),
        (
            "corrected",
            "Corrected, the cosine is {cos.all} (all layers) and {cos.first} (first), centred {centred.cos.all} and "
            "{centred.cos.first}; contexts of the same token elsewhere have {null.same_token.cos.all} and "
            "{null.same_token.cos.first}, centred {null.same_token.centred.cos.all} and {null.same_token.centred.cos.first}.",
        ),
        (
            "corrected",
            "Of what a context knows beyond its token, the parallel one loses a share of {unexplained.all} and {unexplained.first}; "
            "learning from it costs {diff.parallel_minus_sequential.all} and {diff.parallel_minus_sequential.first} nats.",
        ),
        (
            "corrected",
            "In use, contexts of the same token elsewhere cost {nats.same_token.all} and {nats.same_token.first} nats, four parallel "
            "passes from nothing {nats.passes.4.all} and {nats.passes.4.first}.",
        ),
        (
            "corrected",
            "A cache takes {seconds.one_by_one.all} s over one stream, {seconds.sequential.all} s with documents side by side and "
            "{seconds.parallel.all} s in parallel (all layers).",
        ),
    ],
    "context_scaling": [
        (
            "published",
            "As published, exponents are {alpha.first} (first layer) and {alpha.all} (all layers); the same models on one common text "
            "have {common_alpha.first} and {common_alpha.all}.",
        ),
        (
            "corrected",
            "Corrected, over six amounts: exponents {alpha.first} (first layer), {alpha.all} (all layers) and {alpha.transformer} "
            "(transformer); the law of five amounts misses the sixth by {extrapolation.first}, {extrapolation.all} and "
            "{extrapolation.transformer}.",
        ),
        (
            "corrected",
            "At the largest amount, against the transformer, in nats: {diff.first_minus_transformer.6} (first layer) and "
            "{diff.all_minus_transformer.6} (all layers), with {parameter_ratio.first_over_transformer} and "
            "{parameter_ratio.all_over_transformer} times its parameters.",
        ),
        (
            "corrected",
            "Accuracy changes by {last_step.accuracy.first} in the last step, by {patience_1.last_step.accuracy.first} with "
            "patience 1.",
        ),
    ],
}
"""Sentences by study and protocol; one that names a figure which a result file lacks is left out."""
