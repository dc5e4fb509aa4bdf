"""The report folder: index.html, complete in itself, and its figures as files.

``build_report(root, settings)`` reads metrics/, data/tokenizer.json and routed/, and replaces report/ in one
rename. The same inputs give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.artifacts.files import written_whole
from offramp.corpus.tokenizer import open_tokenizer
from offramp.report import answer, suitability
from offramp.report.figures import LEAD, Figure, draw_figures
from offramp.report.findings import COLUMNS, result_table, sentences, standing
from offramp.report.html import inline, page_of
from offramp.report.inputs import Measurements, read_measurements
from offramp.report.settings import cautions, flatten
from offramp.report.text import Passage, passages, visible
from offramp.report.theme import exit_name, palette
from offramp.report.words import nats, percent, perplexity, signed, whole
from offramp.results.routing import Allowance, Origin
from offramp.results.shape import by_exit
from offramp.results.shortfalls import shortfalls

TEMPLATE = Path(__file__).with_name("template.html")


def build_report(root: Path, settings: dict[str, Any]) -> Path:
    """Write ``root``/report and return the path of its index.html.

    ``settings`` are parameters by dotted name or by section, as ``Declared.to_json`` gives them. The page
    lists them all and needs those of corpus, tokenizer, model, exits, report, pretrain.method and threshold.
    Raises UserError if a metrics file is missing or of another run; report/ then stays as it was.
    """
    settings = flatten(settings)
    limit = settings["report.text_tokens"]
    measured = read_measurements(root, limit)
    figures = draw_figures(measured, settings["exits.confidence"])
    meta = measured.data.meta
    texts = passages(measured.tokens, open_tokenizer(measured.data), meta["kind"], meta["end_id"], limit)
    page = _render(measured, settings, figures, texts)

    with written_whole(root / "report") as partial:
        (partial / "figures").mkdir(parents=True)
        for figure in figures:
            (partial / "figures" / f"{figure.name}.svg").write_text(figure.svg, encoding="utf-8")
        (partial / "index.html").write_text(page, encoding="utf-8")
    return root / "report/index.html"


def _render(
    measured: Measurements, settings: dict[str, Any], figures: list[Figure], texts: list[Passage]
) -> str:
    from markupsafe import Markup

    colours, routing = palette(measured.exits), measured.routing
    drawn = [(figure, Markup(inline(figure, colours))) for figure in figures]
    confidence = settings["exits.confidence"]
    shown = [token.exit for passage in texts for token in passage.tokens]
    exits = [
        {
            "name": exit_name(index, measured.exits),
            "overall": percent(share),
            "here": percent(shown.count(index) / len(shown)) if shown else "",
        }
        for index, share in enumerate(by_exit(routing.exit_fraction))
    ]
    return page_of(
        TEMPLATE,
        exits,
        colours,
        verdict=answer.verdict(measured),
        warnings=[shortfall.sentence for shortfall in shortfalls(routing)],
        worth_it=answer.worth_it(measured.suitability.advice, routing, measured.pretraining.parameters),
        key_figures=answer.key_figures(measured),
        allowances=[_allowance(row) for row in answer.allowances(measured, "ppl", confidence)],
        allowance_note=_allowance_note(measured, settings),
        lead=[pair for pair in drawn if pair[0].name in LEAD],
        which_signal=answer.which_signal(measured),
        next_commands=answer.next_commands(measured, confidence),
        standing=standing(routing),
        token_sets=answer.token_sets(measured),
        two_savings=answer.two_savings(measured),
        perplexity=perplexity,
        facts=_origin(measured.timing.origin) | _facts(measured, settings),
        columns=list(COLUMNS),
        groups=result_table(measured),
        sentences=sentences(measured),
        cautions=cautions(settings),
        suitability=suitability.section(measured.suitability),
        figures=[pair for pair in drawn if pair[0].name not in LEAD],
        passages=texts,
        shown=len(shown),
        machine=measured.timing.machine,
        pairs=measured.timing.pairs,
        digests=routing.inputs | {"routed": measured.routed.digest},
        settings={name: visible(_setting(value)) for name, value in settings.items()},
    )


def _allowance(row: Allowance) -> dict[str, str]:
    """A row of the table of allowances, by its columns."""
    if row.flop_saving <= 0:
        nothing = dict.fromkeys(("threshold", "leave", "test"), "\N{EN DASH}")
        return {"allow": f"+{whole(row.allowed)}", **nothing, "flops": "nothing: asking costs more"}
    return {
        "allow": f"+{whole(row.allowed)}",
        "threshold": f"{row.threshold:.3f}",
        "leave": percent(row.shallow_ratio),
        "flops": percent(row.flop_saving),
        "test": signed(row.test_ppl_increase),
    }


def _allowance_note(measured: Measurements, settings: dict[str, Any]) -> str:
    """What the table of allowances stands on."""
    routing, confidence = measured.routing, settings["exits.confidence"]
    tokens = {row.tokens for row in answer.allowances(measured, "ppl", confidence)}
    note = (
        f"For {confidence}, one threshold for all exits, chosen on "
        f"{max(tokens, default=0):,} held-out calibration tokens. The last column is what it then does to "
        "perplexity on the test split, which had no part in choosing. Both are looked up in cached losses, "
        "nothing is executed: what tokens that leave do to others "
        f"({nats(routing.propagation_nll)} nats per token in this run) and the padding of batches are not in "
        "it. Counted like this, this run saves "
        f"{percent(routing.token_flop_saving)} of the FLOPs; executed, {percent(routing.flop_saving)}."
    )
    if settings.get("routing.first_exit") or settings.get("routing.decay") is not None:
        note += " routing.first_exit and routing.decay of this run are not in it either."
    return note


def _origin(origin: Origin) -> dict[str, str]:
    """When and at which state of the code this was measured, and where it is logged."""
    commit = "none: no git, or no commit yet"
    if origin.commit:
        commit = origin.commit[:12] + (", with uncommitted changes" if origin.changed else "")
    return {
        "Measured": origin.date,
        "Commit": commit,
        "Experiment": origin.dvc_experiment or "none, by dvc repro",
        "MLflow": f"run {visible(origin.mlflow_run)} of experiment {visible(origin.mlflow_experiment)}; "
        "offramp ui opens it. A result that MLflow had already keeps its run",
    }


def _thresholds(measured: Measurements, given: Any) -> str:
    """The thresholds in force and the rule that found them."""
    routing = measured.routing
    if given == "price":
        worth = f"{routing.price:g} nats per full-depth pass"
        return (
            f"price: a token goes on while its predicted gain, rescaled on calibration text, is worth {worth}"
        )
    chosen = (f"{value:.3g} at exit {exit}" for exit, value in enumerate(by_exit(routing.threshold)))
    values = ", ".join(chosen) or "none, the only exit is full depth"
    if not isinstance(given, str):
        return values
    rule = given
    if routing.budget is not None:
        rule = f"budget of {percent(routing.budget)} of the full-depth FLOPs"
    if routing.quality:
        rule = f"quality: perplexity at most {100 * routing.quality.allowed:g}% above full depth"
    if routing.risk:
        sure = 1 - routing.risk.delta
        rule = f"risk: {routing.risk.measure} at most {routing.risk.tolerance:g} with probability {sure:g}"
    return f"{rule}: {values}"


def _facts(measured: Measurements, settings: dict[str, Any]) -> dict[str, str]:
    """What was run, in a line each."""
    corpus, routing, kind = measured.corpus, measured.routing, settings["tokenizer.kind"]
    source = settings["corpus.source"]
    names = {
        "hub": visible(settings["corpus.hub_name"] or ""),
        "files": visible(", ".join(settings["corpus.paths"])),
    }
    splits = (corpus.train, corpus.calibration, corpus.test)
    documents = " / ".join(f"{split.documents:,}" for split in splits)
    tokens = " / ".join(f"{split.tokens:,}" for split in splits)
    unknown = corpus.test.unknown_rate
    thresholds = _thresholds(measured, settings["threshold"])
    confidence = settings["exits.confidence"]
    learned = f", a classifier of {settings['exits.label']} on {_INPUTS[settings['exits.inputs']]}"
    if settings.get("exits.mode") == "joint":
        learned = ", a linear classifier trained together with the model"
    taken = ", ".join(
        f"{exit_name(exit, measured.exits)} {percent(share)}"
        for exit, share in enumerate(by_exit(routing.exit_fraction))
    )
    return {
        "Corpus": f"{visible(names.get(source, source))}: {documents} documents, {tokens} tokens "
        "(train / calibration / test)",
        "Tokens": f"{kind}, vocabulary {corpus.vocab_size:,}, windows of {corpus.window}"
        + (f", {percent(unknown)} unknown in test" if unknown else ""),
        "Model": f"{_model(settings)}, {measured.pretraining.parameters:,} parameters",
        "Training": f"{settings['pretrain.method']}, {measured.pretraining.tokens_seen:,} tokens seen",
        "Signal": confidence + (learned if confidence == "learned" else ""),
        "Threshold": thresholds,
        "Exits taken": taken,
    }


def _model(settings: dict[str, Any]) -> str:
    if settings["model.source"] == "hf":
        exits = ", ".join(map(str, settings["model.exits_after"]))
        return f"{settings['model.name_or_path']}, exits after layers {exits}"
    layers = settings["model.block_layers"]
    blocks = f"{len(layers)} block{'s' * (len(layers) > 1)} of {' + '.join(map(str, layers))} layers"
    return f"{blocks}, width {settings['model.width']}"


_INPUTS = {
    "state": "the hidden state",
    "statistics": "token statistics",
    "both": "hidden state and token statistics",
}


def _setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "[" + ", ".join(map(_setting, value)) + "]" if isinstance(value, list) else str(value)
