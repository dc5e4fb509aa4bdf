"""The tables of docs/benchmarks.md, of the records in metrics/benchmarks.json: nobody copies a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from offramp.results.benchmarks import Benchmark


@dataclass(frozen=True)
class Line:
    """A line of a table: what was measured against what, of one or several records."""

    what: str
    against: str
    names: str
    """Records, apart by blanks."""
    text: str = "{} / {}"
    """With a place for each of their values."""
    bar: str = ""
    digits: int = 2

    def render(self, records: Mapping[str, Benchmark]) -> str:
        used = [records[name] for name in self.names.split()]
        measured = self.text.format(*(f"{record.value:.{self.digits}f}" for record in used))
        if len(used) == 1 and (sure := used[0].interval):
            measured += " [{}, {}]".format(*(f"{edge:.{self.digits}f}" for edge in sure))
        return f"| {self.what} | {self.against} | {measured} | {self.bar}{self._missed(used)} |"

    def _missed(self, used: list[Benchmark]) -> str:
        missed = [record.name for record in used if record.met is False]
        if not missed:
            return ""
        where = [name.rpartition("_batch")[2] for name in missed if "_batch" in name]
        return ", **missed**" + (f" at batch {where[0]}" if len(where) == 1 < len(used) else "")


def both(name: str) -> str:
    """The records of a row of decoding at both sizes of a batch."""
    return f"{name}_batch1 {name}_batch4"


GENERATE, CUT, PRODUCT = (
    "Transformers' `generate`",
    "plain decoding of a model cut off there",
    "time of the bare blocked matrix product",
)
TABLES: dict[str, tuple[Line, ...]] = {
    "compute": (
        Line(
            "routed scoring, nothing leaves (width 512, 12 layers, 32 windows)",
            "plain forward",
            "routed_nothing_exits",
            "{} of its speed",
            "0.97",
        ),
        Line("30 % leave", "`flop_saving`", "routed_30_exit", "{} of it in seconds"),
        Line(
            "50 / 70 / 90 % leave",
            "`flop_saving`",
            "routed_50_exit routed_70_exit routed_90_exit",
            "{} / {} / {}",
            "0.85",
        ),
        Line(
            "the same, 16 windows",
            "the same",
            "routed_50_exit_16_windows routed_70_exit_16_windows routed_90_exit_16_windows",
            "{} / {} / {}",
        ),
        Line(
            "keys and values of tokens that left, stacked over all later layers; 50 / 90 % left, native",
            "a row's in one product a layer",
            "stacked_key_values_native_50 stacked_key_values_native_90",
            "{}x / {}x the time",
        ),
        Line(
            "the same, SmolLM2",
            "the same",
            "stacked_key_values_smollm2_50 stacked_key_values_smollm2_90",
            "{}x / {}x the time",
        ),
        Line(
            "one parallel pass for routed perplexity, native / SmolLM2",
            "one token of each text per pass",
            "routed_perplexity_native routed_perplexity_smollm2",
            "{}x / {}x as fast",
            digits=1,
        ),
        Line("full depth", GENERATE, both("decode_full_depth"), "{} / {} of its speed"),
        Line("asked at both exits, nobody leaves", GENERATE, both("decode_never_exits"), bar="0.97"),
        Line("", "economize 0.3.2", both("decode_never_exits_over_economize"), digits=1),
        Line(
            "forced to leave after 20 layers, prompt too",
            CUT,
            both("decode_forced_two_thirds_prompt_too"),
            bar="0.95",
        ),
        Line("the same, prompt at full depth", "the same", both("decode_forced_two_thirds"), bar="0.95"),
        Line(
            "forced to leave after 10 layers, prompt too",
            CUT,
            both("decode_forced_one_third_prompt_too"),
            bar="0.85",
        ),
        Line("the same, prompt at full depth", "the same", both("decode_forced_one_third"), bar="0.85"),
        Line(
            "forced to leave after 20 layers",
            "economize 0.3.2",
            both("decode_forced_two_thirds_over_economize"),
            digits=1,
        ),
        Line(
            "forced to leave after 10 layers",
            "economize 0.3.2",
            both("decode_forced_one_third_over_economize"),
            digits=1,
        ),
        Line(
            "self-speculation, once it has switched itself off",
            "plain decoding",
            both("decode_speculation"),
            bar="0.97",
        ),
        Line(
            "the same with its trial of drafting, one text",
            "plain decoding",
            "decode_speculation_trial",
            "{}",
        ),
        Line(
            "",
            "Transformers' `assistant_early_exit`",
            "decode_speculation_over_assistant_early_exit",
            "{}x as fast",
            digits=1,
        ),
        Line(
            "jointly trained model at 1 % more perplexity (below)",
            "its own full depth",
            "quality_speed_at_1_percent_joint",
            "{}x",
            "1.2x",
        ),
    ),
    "pipeline": (
        Line("token statistics, 70k words x 64", PRODUCT, "statistics_over_product_words", "{}x", "2.0x", 1),
        Line("", "full logits and the textbook formulas", "statistics_speedup_words", "{}x as fast", "4x", 1),
        Line("token statistics, 1k x 128", PRODUCT, "statistics_over_product_default", "{}x", "2.0x", 1),
        Line(
            "",
            "full logits and the textbook formulas, which fit the cache here",
            "statistics_speedup_default",
            "{}x as fast",
            "4x",
            1,
        ),
        Line(
            "their memory, 4x the tokens / 4x the vocabulary",
            "the smaller one",
            "statistics_memory_4x_tokens statistics_memory_4x_vocabulary",
            "{}x / {}x",
            "1.25x",
        ),
        Line(
            "the same, 1 M tokens x 70k words, results included",
            "",
            "statistics_memory_full",
            "{} MiB",
            "3072 MiB",
            0,
        ),
        Line(
            "`collect`, default model / SmolLM2",
            "forward pass with the last exit's logits, nothing kept",
            "collect_over_forward collect_smollm2_over_forward",
            "{} / {} of its speed",
            "0.85",
        ),
        Line(
            "",
            "the same with every exit's logits, which `collect` needs",
            "collect_over_forward_all_exits collect_smollm2_over_forward_all_exits",
        ),
        Line(
            "",
            "Transformers with `output_hidden_states=True`, the same written, SmolLM2",
            "collect_smollm2_over_hidden_states_loop",
            "{}x as fast",
            digits=1,
        ),
        Line("its memory, 1 M tokens", "100k tokens", "collect_memory_10x_tokens", "{}x", "1.25x", 1),
        Line(
            "exit classifiers from the cache",
            "running the model again in every epoch",
            "exit_training_from_cache",
            "{}x as fast",
            "50x",
            0,
        ),
        Line(
            "an exit classifier on 65k x 64 states, to convergence",
            "",
            "exit_fit_to_convergence",
            "{} s",
            "10 s",
            1,
        ),
        Line("1,000 thresholds on 1 M tokens, three exits", "", "threshold_sweep", "{} s", "2 s"),
        Line("", "one threshold after the other", "threshold_sweep_speed", "{}x as fast", digits=0),
        Line(
            "the procedure of the report exit-labels, end to end (32k words, 2+2 layers, 10 classifier "
            "epochs)",
            "full logits, model run again for every classifier epoch",
            "blockwise_end_to_end",
            "{}x as fast",
            "8x",
            1,
        ),
        Line(
            "its classifiers and evaluation alone",
            "the same",
            "blockwise_exits_and_evaluation",
            "{}x",
            digits=1,
        ),
        Line(
            "its pretraining and selection of hard tokens alone",
            "the same",
            "blockwise_pretraining",
            "{}x",
            digits=1,
        ),
        Line(
            "the whole pipeline on SmolLM2, as above", "", "smollm2_pipeline", "{} minutes", "30 minutes", 1
        ),
        Line(
            "its memory / joint training of all its weights",
            "",
            "smollm2_memory smollm2_joint_memory",
            "{} / {} GB",
            "3 GB",
            1,
        ),
        Line(
            "a new threshold", "`check`, `evaluate`, `report`, `track`", "threshold_rerun", "{} s", "20 s", 0
        ),
        Line(
            "studies: arms in two processes of one thread, five seeds as one batch",
            "arm after arm, seed after seed, two threads",
            "ensemble_processes",
            "{}x as fast",
            "1x",
            1,
        ),
        Line(
            "five seeds of 1 / 4 layers as one batch, one thread",
            "one after the other",
            "ensemble_1_layer ensemble_4_layers",
            "{}x / {}x as fast",
            digits=1,
        ),
        Line(
            "context recurrence, one token a step, width 768 (all / first)",
            "time of its bare products, the tokens' own at once",
            "context_step_over_products_published_all context_step_over_products_published_first",
            "{}x / {}x",
            "1.25x",
        ),
        Line(
            "the same, width 48, where a step is a few calls of torch and little else",
            "the same",
            "context_step_over_products_study_all",
            "{}x",
            digits=1,
        ),
        Line(
            "parallel context cache, width 48, written to disk",
            "the recurrence over one document",
            "context_parallel_cache",
            "{}x as fast",
            "10x",
            0,
        ),
        Line(
            "its memory, 4x the tokens, 800k",
            "the smaller one",
            "context_cache_memory_4x_tokens",
            "{}x",
            "1.25x",
        ),
    ),
}


def table(name: str, records: Mapping[str, Benchmark]) -> str:
    """A table of docs/benchmarks.md as Markdown; what could not be measured (``Skipped``) has no line.

    KeyError for a name that TABLES does not have.
    """
    lines = [line for line in TABLES[name] if records.keys() >= set(line.names.split())]
    head = ("| what | held against | measured | bar |", "|---|---|---|---|")
    return "\n".join([*head, *(line.render(records) for line in lines)])
