"""The tables of docs/benchmarks.md, of the records in metrics/benchmarks.json: nobody copies a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from offramp.results.benchmarks import Benchmark
from offramp.results.growth import Growth


class Shown:
    """A record's value and its interval, as a place in a line's text asks for them."""

    def __init__(self, record: Benchmark, digits: int):
        self.record, self.digits = record, digits

    def __format__(self, form: str) -> str:
        """``form`` is that of both; empty for the line's digits."""
        form = form or f".{self.digits}f"
        value, interval = format(self.record.value, form), self.record.interval
        if interval is None:
            return value
        return "{} [{}, {}]".format(value, *(format(bound, form.lstrip("+")) for bound in interval))


@dataclass(frozen=True)
class Line:
    """A line of a table: what was measured against what, of one or several records."""

    what: str
    against: str
    names: str
    """Records, apart by blanks."""
    text: str = "{} / {}"
    """With a place for each of their values, and of its interval behind it."""
    digits: int = 2

    def render(self, records: Mapping[str, Benchmark]) -> str:
        used = [records[name] for name in self.names.split()]
        measured = self.text.format(*(Shown(record, self.digits) for record in used))
        cells = (
            self.what,
            self.against,
            measured,
            _once(str(record.n) for record in used),
            _once(record.bar or "" for record in used),
            _once(VERDICTS[record.verdict] for record in used),
        )
        return f"| {' | '.join(cells)} |"


VERDICTS = {None: "", "met": "met", "missed": "**missed**", "not established": "not established"}


def _once(words: Iterable[str]) -> str:
    """What all records share, or one after the other, a dash where one has none."""
    told = list(words)
    return told[0] if len(set(told)) == 1 else " / ".join(word or "-" for word in told)


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
        ),
        Line("30 % leave", "`flop_saving`", "routed_30_exit", "{} of it in seconds"),
        Line(
            "50 / 70 / 90 % leave",
            "`flop_saving`",
            "routed_50_exit routed_70_exit routed_90_exit",
            "{} / {} / {}",
        ),
        Line(
            "the same, 16 windows",
            "the same",
            "routed_50_exit_16_windows routed_70_exit_16_windows routed_90_exit_16_windows",
            "{} / {} / {}",
        ),
        Line(
            "the default run's model at its threshold, all test text: seconds saved, FLOPs saved, the one "
            "over the other",
            "its own full depth",
            "default_run_wall_saving default_run_flop_saving default_run_wall_over_flop_saving",
            "{:.1f} %, {:.1f} %, {}",
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
        Line("asked at both exits, nobody leaves", GENERATE, both("decode_never_exits")),
        Line("", "economize 0.3.2", both("decode_never_exits_over_economize")),
        Line("forced to leave after 20 layers, prompt too", CUT, both("decode_forced_two_thirds_prompt_too")),
        Line("the same, prompt at full depth", "the same", both("decode_forced_two_thirds")),
        Line("forced to leave after 10 layers, prompt too", CUT, both("decode_forced_one_third_prompt_too")),
        Line("the same, prompt at full depth", "the same", both("decode_forced_one_third")),
        Line(
            "forced to leave after 20 layers",
            "economize 0.3.2",
            both("decode_forced_two_thirds_over_economize"),
        ),
        Line(
            "forced to leave after 10 layers",
            "economize 0.3.2",
            both("decode_forced_one_third_over_economize"),
        ),
        Line(
            "self-speculation, once it has switched itself off", "plain decoding", both("decode_speculation")
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
            "jointly trained model at 1 % more perplexity (below): speed, perplexity, FLOPs and seconds "
            "saved; then everybody leaving at the one exit that keeps it by the bound, or full depth (n = 0) "
            "where none does: speed, perplexity",
            "its own full depth",
            " ".join(
                [
                    *("quality_speed_at_1_percent_joint", "quality_ppl_increase_joint"),
                    *("quality_flop_saving_joint", "quality_wall_saving_joint"),
                    *("static_speed_at_1_percent_joint", "static_ppl_increase_joint"),
                ]
            ),
            "{}x, {:+.2f} %, {:.1f} %, {:.1f} %; {}x, {:+.2f} %",
        ),
    ),
    "pipeline": (
        Line("token statistics, 70k words x 64", PRODUCT, "statistics_over_product_words", "{}x"),
        Line(
            "", "full logits and the textbook formulas", "statistics_speedup_words", "{}x as fast", digits=1
        ),
        Line("token statistics, 1k x 128", PRODUCT, "statistics_over_product_default", "{}x"),
        Line(
            "",
            "full logits and the textbook formulas, which fit the cache here",
            "statistics_speedup_default",
            "{}x as fast",
        ),
        Line(
            "their memory, 4x the tokens / 4x the vocabulary",
            "the smaller one",
            "statistics_memory_4x_tokens statistics_memory_4x_vocabulary",
            "{}x / {}x",
        ),
        Line("the same, 70k words, results included", "", "statistics_memory_full", "{} MiB", digits=0),
        Line(
            "`collect`, default model / SmolLM2",
            "forward pass with every exit's logits, which `collect` needs, nothing kept",
            "collect_over_forward_all_exits collect_smollm2_over_forward_all_exits",
            "{} / {} of its speed",
        ),
        Line(
            "",
            "the same with the last exit's logits alone",
            "collect_over_forward collect_smollm2_over_forward",
        ),
        Line(
            "",
            "Transformers with `output_hidden_states=True`, the same written, SmolLM2",
            "collect_smollm2_over_hidden_states_loop",
            "{}x as fast",
        ),
        Line("its memory, 1 M tokens", "100k tokens", "collect_memory_10x_tokens", "{}x"),
        Line(
            "exit classifiers from the cache",
            "running the model again in every epoch",
            "exit_training_from_cache",
            "{}x as fast",
            0,
        ),
        Line(
            "an exit classifier on 65k x 64 states, to convergence",
            "",
            "exit_fit_to_convergence",
            "{} s",
            1,
        ),
        Line("1,000 thresholds on 1 M tokens, three exits", "", "threshold_sweep", "{} s"),
        Line("", "one threshold after the other", "threshold_sweep_speed", "{}x as fast", 0),
        Line(
            "all ranks of a low-rank readout in one sweep",
            "a pass for every rank / full logits and the textbook formulas",
            "low_rank_sweep_over_per_rank low_rank_sweep_over_textbook",
            "{}x / {}x as fast",
        ),
        Line("its memory, many tokens and many words", "", "low_rank_sweep_memory", "{} MiB", 0),
        Line(
            "the procedure of the report exit-labels, end to end (32k words, 2+2 layers, 10 classifier "
            "epochs)",
            "full logits, model run again for every classifier epoch",
            "blockwise_end_to_end",
            "{}x as fast",
            1,
        ),
        Line("its classifiers and evaluation alone", "the same", "blockwise_exits_and_evaluation", "{}x", 1),
        Line(
            "its pretraining and selection of hard tokens alone",
            "the same",
            "blockwise_pretraining",
            "{}x",
            1,
        ),
        Line(
            "the [documented run](checkpoints.md#run-the-pipeline-on-a-checkpoint) on SmolLM2",
            "",
            "smollm2_pipeline",
            "{} minutes",
            1,
        ),
        Line(
            "its memory / joint training of all its weights",
            "",
            "smollm2_memory smollm2_joint_memory",
            "{} / {} GB",
        ),
        Line(
            "its exits, test perplexity after 10 / 20 of 30 layers",
            "",
            "smollm2_exit_10_ppl smollm2_exit_20_ppl",
            "{} / {}",
            1,
        ),
        Line(
            "translators of SmolLM2's exits from cached states",
            "running the checkpoint in every step, to the same divergence",
            "translators_from_cache",
            "{}x as fast",
            1,
        ),
        Line(
            "",
            "the exact divergence in as many steps",
            "translators_sampled_vocabulary",
            "{:+.4f} nats",
        ),
        Line("`offramp suitability` on SmolLM2", "", "suitability_smollm2", "{} s", 0),
        Line("a new threshold", "`check`, `evaluate`, `report`, `track`", "threshold_rerun", "{} s", 1),
        Line(
            "its timeline: DVC itself / `check` / `evaluate` / `report` / `track`",
            "",
            "threshold_rerun_dvc threshold_rerun_check threshold_rerun_evaluate threshold_rerun_report "
            "threshold_rerun_track",
            "{} / {} / {} / {} / {} s",
            1,
        ),
        Line(
            "start-up: `offramp --help` / the slowest command's `--help` / `params` / `lineage`",
            "",
            "start_help start_help_of_commands start_params start_lineage",
            "{} / {} / {} / {} s",
        ),
        Line("imports of stages `check` / `report`", "", "start_check start_report", "{} / {} s"),
        Line(
            "a training that MLflow is told of, server up / down",
            "the same with nobody told",
            "live_tracking_server_up live_tracking_server_down",
            "{}x / {}x the time",
            3,
        ),
        Line(
            "",
            "the share of its time that it spends on telling",
            "live_tracking_inside_server_up live_tracking_inside_server_down",
            "{} / {}",
            4,
        ),
        Line(
            "studies: arms in two processes of one thread, five seeds as one batch",
            "arm after arm, seed after seed, two threads",
            "ensemble_processes",
            "{}x as fast",
        ),
        Line(
            "five seeds of 1 / 4 layers as one batch, one thread",
            "one after the other",
            "ensemble_1_layer ensemble_4_layers",
            "{}x / {}x as fast",
        ),
        Line(
            "context recurrence, one token a step, width 768 (all / first)",
            "time of its bare products, the tokens' own at once",
            "context_step_over_products_published_all context_step_over_products_published_first",
            "{}x / {}x",
        ),
        Line(
            "the same, width 48, where a step is a few calls of torch and little else",
            "the same",
            "context_step_over_products_study_all",
            "{}x",
            1,
        ),
        Line(
            "parallel context cache, width 48, written to disk",
            "the recurrence over one document",
            "context_parallel_cache",
            "{}x as fast",
            0,
        ),
        Line("its memory, 4x the tokens, 800k", "the smaller one", "context_cache_memory_4x_tokens", "{}x"),
    ),
}


def table(name: str, records: Mapping[str, Benchmark]) -> str:
    """A table of docs/benchmarks.md as Markdown; what could not be measured (``Skipped``) has no line.

    KeyError for a name that TABLES does not have.
    """
    lines = [line for line in TABLES[name] if records.keys() >= set(line.names.split())]
    head = ("| what | held against | measured | n | bar | verdict |", "|---|---|---|---|---|---|")
    return "\n".join([*head, *(line.render(records) for line in lines)])


def growth_table(growth: Growth) -> str:
    """A line per stage and size: microseconds of processor time and of the clock per token, and memory."""
    lines = ["| stage | tokens of the corpus | its tokens | CPU, us a token | clock, us a token | memory |"]
    lines.append("|---|---|---|---|---|---|")
    for cost in growth.costs:
        processor, clock = (1e6 * each / cost.tokens for each in (cost.cpu_seconds, cost.seconds))
        lines.append(
            f"| `{cost.stage}` | {cost.corpus_tokens:,} | {cost.tokens:,} | {processor:.1f} | {clock:.1f} "
            f"| {cost.memory_gb:.2f} GB |"
        )
    return "\n".join(lines)
