"""The report folder: index.html, complete in itself, and its figures as files.

``build_report(root, settings)`` reads metrics/, data/tokenizer.json and routed/, and replaces report/ in one
rename. The same inputs give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.artifacts.files import written_whole
from offramp.corpus.tokenizer import open_tokenizer
from offramp.report import suitability
from offramp.report.figures import Figure, draw_figures
from offramp.report.findings import COLUMNS, headline, percent, result_table, sentences, standing
from offramp.report.html import inline, page_of
from offramp.report.inputs import Measurements, read_measurements
from offramp.report.settings import cautions, flatten
from offramp.report.text import Passage, passages, visible
from offramp.report.theme import exit_name, palette
from offramp.results.shape import by_exit

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

    colours = palette(measured.exits)
    shown = [token.exit for passage in texts for token in passage.tokens]
    exits = [
        {
            "name": exit_name(index, measured.exits),
            "overall": percent(share),
            "here": percent(shown.count(index) / len(shown)) if shown else "",
        }
        for index, share in enumerate(by_exit(measured.routing.exit_fraction))
    ]
    return page_of(
        TEMPLATE,
        exits,
        colours,
        headline=headline(measured),
        standing=standing(measured.routing),
        facts=_facts(measured, settings),
        columns=list(COLUMNS),
        groups=result_table(measured),
        sentences=sentences(measured),
        cautions=cautions(settings),
        suitability=suitability.section(measured.suitability),
        figures=[(figure, Markup(inline(figure, colours))) for figure in figures],
        passages=texts,
        shown=len(shown),
        machine=measured.timing.machine,
        pairs=measured.timing.pairs,
        digests=measured.routing.inputs | {"routed": measured.routed.digest},
        settings={name: visible(_setting(value)) for name, value in settings.items()},
    )


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
        "Confidence": confidence + (learned if confidence == "learned" else ""),
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
