"""The claims ledger and the findings on fabricated results: what they promise whatever the numbers are."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from offramp.errors import UserError
from studies.common.results import write_results
from studies.findings import findings
from studies.ledger.figures import CORPORA, number, terms
from studies.ledger.ledger import CLAIMS, COLUMNS, Claim, judge_claim, read_claims, write_ledger
from studies.ledger.verdict import VERDICTS

SEEDS = ("000", "001", "002", "003", "004")
ARMS = ("distill", "loss", "softmax", "correct")
PREDICTORS = ("linear", "mlp2", "mlp3", "wide")
SCORES = ("max_prob", "max_logit", "max_minus_mean", "margin")
RANKS = (1, 2, 5, 10, 20, 32, 64)


def spread(prefix: str, names: str) -> list[str]:
    return [f"{prefix}.{name}" for name in names.split()]


@cache
def contract() -> dict[str, tuple[list[str], list[str]]]:
    """Every key that a study leaves behind: (published, corrected)."""
    both = [
        "block0_val_ppl",
        "block0_heldout_ppl",
        "full_heldout_ppl",
        "exit_rate_drift.softmax",
        "ppl_ratio.loss_over_distill",
        "ppl_ratio.softmax_over_distill",
        "saving_gain.softmax_over_distill",
    ]
    for arm in ARMS:
        both += [
            f"{name}.{arm}"
            for name in (
                "final_ppl",
                "accuracy",
                "shallow_ratio",
                "layer_saving",
                "flop_saving",
                "threshold",
                "executed_layer_saving",
                "ratio.final_over_block0",
                "ratio.final_over_block0_same_set",
            )
        ]
        if arm != "softmax":
            both += [f"label_mean.{arm}", f"exit_loss_first.{arm}", f"exit_loss_last.{arm}"]
    block1, random = [f"block1_val_ppl.{arm}" for arm in ARMS], [f"random_ppl.{arm}" for arm in ARMS]
    loss = [
        *(f"loss_{name}" for name in ("mean", "std", "min", "max", "q25", "median", "q75")),
        "best_val_ppl",
        *(f"oracle_{name}" for name in ("easy", "hard", "gap", "d")),
        "gaussian_d",
        "dip_p",
        "bic_gain",
        "worse_than_uniform",
    ]
    loss += spread("seed_linear", "r gap oracle_share") + spread("correct_prob", "r gap oracle_share")
    for name in PREDICTORS:
        loss += spread(f"regress.{name}", "mse r r2 gap oracle_share") + spread(
            f"classify.{name}",
            "accuracy f1 easy hard gap easy_fraction oracle_share majority_accuracy majority_f1",
        )
    for threshold in ("0.01", "0.02", "0.05"):
        loss += spread(f"correct_prob.t{threshold}", "share easy hard")
    unseen = ["unseen_target_share", "unseen_target_share_above14"]
    confidence = ["subset.0.5.loss", "rest.0.5.loss"]
    for score in SCORES:
        confidence += [*spread(score, "r mean std gap easy hard oracle_share"), f"predict.{score}.r"]
    for threshold in ("0.3", "0.5", "0.6", "0.7", "0.8", "0.9"):
        confidence += spread(f"subset.{threshold}", f"n share {' '.join(SCORES)}")
    measures = (
        "coverage",
        "softmax_corr",
        "logit_corr",
        "logit_mse",
        "max_logit_corr",
        "max_minus_mean_corr",
        "margin_corr",
        "max_minus_mean_gap",
    )
    variants = ("", "centred.", "weighted.", "weighted_centred.")
    rank = [f"{variant}{name}.{k}" for variant in variants for name in measures for k in RANKS]
    rank += [f"flop_share.{k}" for k in RANKS]
    return {
        "exit_labels": (both + block1 + ["block0_drift"], both + random),
        "loss_prediction": (loss + unseen, loss),
        "inference_confidence": (confidence, confidence),
        "low_rank_readout": (rank, rank),
    } | of_claims()


@cache
def of_claims() -> dict[str, tuple[list[str], list[str]]]:
    """The keys that claims of seeds 000 to 002 name, by study; each study's own tests hold its results against them."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for one in read_claims():
        if one.seed in SEEDS[:3]:
            for place, key in enumerate((one.key, one.corrected_key)):
                for study, name in terms(key, one.study)[1]:
                    found.setdefault(study, ([], []))[place].append(name)
    return found


def draw(*names: object) -> float:
    """A number in (0, 1) that depends on the names only."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:6], "big") / 2**48


def fabricate(root: Path, corpora: tuple[str, ...] = tuple(CORPORA), seeds: int = 3) -> Path:
    """Result files of the studies of both seeds, and one of exit signals with a table, a plot and a sentence."""
    for corpus in corpora:
        text = {"sha256": hashlib.sha256(corpus.encode()).hexdigest(), "source": corpus}
        for study, (published, corrected) in contract().items():
            values = [
                {key: 0.4 + draw(corpus, key) + 0.01 * draw(seed, key) for key in corrected}
                for seed in range(seeds)
            ]
            write_results(
                study,
                corpus,
                text,
                ["I2 shared head", "I1 embedding never trained"],
                {key: 0.4 + draw(corpus, key) for key in published},
                values,
                plain_tables(study),
                root,
            )
        write_results(
            "exit_signals",
            corpus,
            text,
            [],
            None,
            None,
            {"headroom": HEADROOM},
            root,
            [f"Depth decides on {corpus}."],
        )
    return root


HEADROOM = {
    "title": "Headroom by signal",
    "note": "At half of the tokens.",
    "columns": ["signal", "share", "headroom"],
    "rows": [
        ["max_prob", 0.3, 0.12],
        ["max_prob", 0.5, 0.1],
        ["random", 0.3, 0.0],
        ["random", 0.5, [0.0, -0.01, 0.01]],
        ["a | b", 0.3, {"value": 0.5, "low": 0.4, "high": 0.6}],
        ["a | b", 0.5, None],
    ],
    "plot": {"x": "share", "y": "headroom", "group": "signal"},
}


def plain_tables(study: str) -> dict[str, list[dict]]:
    if study == "loss_prediction":
        return {
            f"loss_histogram.{name}": [{"loss": 0.5, "share": 0.4}, {"loss": 1.5, "share": 0.6}]
            for name in ("published", "corrected")
        }
    return {
        "risk_coverage.corrected": [
            {"score": name, "coverage": share, "loss": 1.0} for name in SCORES for share in (0.5, 1.0)
        ]
    }


def ledger(root: Path) -> list[dict[str, str]]:
    with write_ledger(root).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = fabricate(tmp_path_factory.mktemp("studies"))
    ledger(root)
    findings.write_findings(root)
    return root


def changed(project: Path, folder: Path, name: str, change) -> Path:
    """A copy of the results in which ``change(result)`` was applied to one file."""
    shutil.copytree(project / "metrics", folder / "metrics", dirs_exist_ok=True)
    path = folder / "metrics/studies" / f"{name}.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    return folder


# The ledger ---------------------------------------------------------------------------------------------------------


def test_every_claim_resolves_and_gets_a_row(project):
    rows = ledger(project)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) >= 90 and len({row["id"] for row in rows}) == len(rows)
    assert [row["id"] for row in rows] == [claim.id for claim in read_claims()]
    for row in rows:
        assert row["verdict"] in VERDICTS and row["seed"] in SEEDS and row["n"] == "3"
        assert all(row[name] for name in COLUMNS if name != "published") and row["reason"].endswith(".")
        assert float(row["ci_low"]) <= float(row["corrected"]) <= float(row["ci_high"])
    assert {row["seed"] for row in rows} == set(SEEDS)


def test_the_ledger_has_the_columns_of_its_readers_and_unix_lines(project):
    data = write_ledger(project).read_bytes()
    assert data.startswith(
        b"id,seed,section,statement,published,rerun,corrected,ci_low,ci_high,n,verdict,reason\n"
    )
    assert b"\r" not in data


def test_same_results_same_bytes(project):
    def made() -> dict[str, bytes]:
        paths = [project / "metrics/claims.csv", *(project / "docs").rglob("*.*")]
        return {str(path): path.read_bytes() for path in paths}

    before = made()
    write_ledger(project)
    findings.write_findings(project)
    assert made() == before and len(before) > 8


def claim(**values) -> Claim:
    from studies.ledger.verdict import Region

    given = {
        "id": "x",
        "seed": "003",
        "section": "1",
        "statement": "s",
        "study": "exit_labels",
        "key": "a",
        "corrected_key": "a",
        "corpora": ["sotu", "wikitext"],
        "region": Region(0.4, 0.6),
        "published": 0.5,
        "conclusion": True,
    } | values
    return Claim(**given)


def judged(tmp_path: Path, one: Claim, wikitext: tuple | None, sotu: tuple) -> dict:
    """The row of a claim on figures (published a, corrected a by seed) per corpus; b is a tenth of a."""
    from studies.ledger.figures import Results

    for corpus, found in (("wikitext", wikitext), ("sotu", sotu)):
        if found:
            published, corrected = found
            seeds = [{"a": value, "b": value / 10} for value in corrected]
            write_results(
                "exit_labels", corpus, {}, [], {"a": published, "b": published / 10}, seeds, {}, tmp_path
            )
    return judge_claim(one, Results(tmp_path, ["exit_labels"])).row()


NEAR, FAR = [0.49, 0.5, 0.51], [0.89, 0.9, 0.91]


def test_both_corpora_must_agree_and_the_published_text_is_shown(tmp_path):
    row = judged(tmp_path, claim(), (0.5, NEAR), (0.7, FAR))
    assert (row["verdict"], row["rerun"], row["corrected"]) == ("inconclusive", "0.5", "0.5")
    assert "WikiText-2: holds; State of the Union 0.9 [0.8752, 0.9248]: artefact" in row["reason"]


def test_one_rerun_decides_whether_the_figure_reproduces_on_both(tmp_path):
    row = judged(
        tmp_path, claim(reason={"artefact": "gives {rerun}, then {corrected}"}), (0.5, FAR), (0.1, FAR)
    )
    assert row["verdict"] == "artefact" and row["reason"].startswith("gives 0.5, then 0.9 (WikiText-2; State")


def test_without_results_of_the_published_text_the_other_corpus_decides_and_says_so(tmp_path):
    row = judged(tmp_path, claim(corpora=["wikitext"]), None, (0.5, NEAR))
    assert (
        row["verdict"] == "holds"
        and "State of the Union alone, no corrected results of WikiText-2" in row["reason"]
    )


def test_two_seeds_decide_nothing(tmp_path):
    assert judged(tmp_path, claim(), None, (0.5, NEAR[:2]))["verdict"] == "inconclusive"


def test_an_interval_of_a_difference_contains_the_paired_one(tmp_path):
    row = judged(tmp_path, claim(key="a - b", corrected_key="a - b"), None, (0.5, NEAR))
    paired = judged(tmp_path / "paired", claim(), None, (0.45, [0.9 * value for value in NEAR]))
    assert row["rerun"] == paired["rerun"] == "0.45" and float(row["corrected"]) == float(paired["corrected"])
    assert float(row["ci_low"]) <= float(paired["ci_low"]) and float(paired["ci_high"]) <= float(
        row["ci_high"]
    )


def test_a_ratio_serves_the_rerun_only(tmp_path):
    assert judged(tmp_path, claim(key="a / b"), None, (0.5, NEAR))["rerun"] == "10"
    with pytest.raises(UserError, match="corrected_key"):
        judged(tmp_path, claim(corrected_key="a / b"), None, (0.5, NEAR))


def test_every_reason_can_be_written():
    words = dict.fromkeys(("published", "rerun", "corrected", "low", "high", "control"), "1")
    for one in read_claims():
        for text in one.reason.values():
            text.format(**words)
            assert not text.endswith(".")


def test_missing_figures_and_files_are_named(project, tmp_path):
    def drop(result):
        del result["corrected"]["values"]["dip_p"]

    with pytest.raises(UserError, match=r"004-bimodal.*loss_prediction\.sotu\.json.*dip_p"):
        write_ledger(changed(project, tmp_path, "loss_prediction.sotu", drop))


def test_claims_of_a_study_that_has_not_been_run_say_so(project, tmp_path):
    root = shutil.copytree(project, tmp_path / "copy")
    for file in (root / "metrics/studies").glob("exit_labels.*"):
        file.unlink()
    rows = ledger(root)
    assert [row["id"] for row in rows] == [claim.id for claim in read_claims()]
    without = {claim.id for claim in read_claims() if "exit_labels" in claim.studies}
    assert {row["id"] for row in rows if "has not been run" in row["reason"]} == without
    assert all(
        (row["verdict"], row["corrected"]) == ("inconclusive", "") for row in rows if row["id"] in without
    )
    assert "`exit_labels`" in findings.write_findings(root).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"band": "wide"}, "band wide"),
        ({"region": [0, 1]}, "give a region"),
        ({"corpora": ["nowhere"]}, "nowhere"),
        ({"keyy": "a"}, "keyy"),
        ({"reason": {"true": "x"}}, "reason true"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(tmp_path, change, said):
    from ruamel.yaml import YAML

    groups = YAML(typ="safe").load((CLAIMS / "003_004.yaml").read_text())
    groups[0]["rows"][0] |= change
    with (tmp_path / "claims.yaml").open("w") as stream:
        YAML(typ="safe").dump(groups, stream)
    with pytest.raises(UserError, match=said):
        read_claims(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1095.46, "1095"),
        (0.048149, "0.04815"),
        (-0.0, "0"),
        (69830.4, "69830"),
        (1e-12, "1e-12"),
        (None, ""),
        (3, "3"),
        (-0.547, "-0.547"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


# The findings -------------------------------------------------------------------------------------------------------


def test_the_findings_name_every_claim_with_its_figures(project):
    page = (project / findings.PAGE).read_text(encoding="utf-8")
    for row in ledger(project):
        line = next(line for line in page.splitlines() if f"`{row['id']}`" in line)
        assert row["statement"] in line and row["reason"] in line and row["rerun"] in line
        assert f"{row['corrected']} [{row['ci_low']}, {row['ci_high']}]" in line
    verdicts = [row["verdict"] for row in ledger(project) if row["seed"] == "003"]
    assert f"Of {len(verdicts)} claims" in page and f"{verdicts.count('artefact') or 'none'} " in page


def test_tables_sentences_and_plots_of_a_study_are_shown(project):
    page = (project / findings.PAGE).read_text(encoding="utf-8")
    main = page[page.index("## Main finding") : page.index("## The open question")]
    assert "| signal | share | headroom |" in main and "Depth decides on wikitext." in main
    assert "| random | 0.5 | 0 [-0.01, 0.01] |" in main and "| a \\| b | 0.3 | 0.5 [0.4, 0.6] |" in main
    assert "No results of this study yet: `python -m studies.blockwise_gap.study`" in page
    for name in re.findall(r"\]\((figures/\S+)\)", page):
        assert (project / "docs" / name).read_text().count("<svg") == 1
    drawn = {path.name for path in (project / "docs/figures").iterdir()}
    figures_of_their_own = of_claims()  # of which nothing is fabricated here
    assert drawn == {
        f"{study}.{corpus}.svg"
        for study in ["exit_signals", *contract()]
        for corpus in CORPORA
        if study not in figures_of_their_own
    }


def test_no_number_is_typed_into_the_template():
    text = re.sub(
        r"{{.*?}}|{%.*?%}|{#.*?#}", "", findings.TEMPLATE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert not re.findall(r"[0-9]", text)
    assert not re.findall(
        r"\b(two|three|four|five|six|ten|half|twice) (seeds|runs|corpora|claims|percent)\b", text
    )


def test_markdown_tables_are_whole(project):
    """Every row of a table has as many cells as its header."""
    page = (project / findings.PAGE).read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1 and len(table.splitlines()) >= 2, table


def test_findings_refuse_a_ledger_of_other_claims(project, tmp_path):
    with pytest.raises(UserError, match=r"claims\.csv is missing"):
        findings.write_findings(tmp_path)
    shutil.copytree(project / "metrics", tmp_path / "metrics")
    lines = (tmp_path / "metrics/claims.csv").read_text().splitlines()
    (tmp_path / "metrics/claims.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=r"run python -m pipeline\.studies\.ledger"):
        findings.write_findings(tmp_path)


def test_state_of_the_union_alone_is_enough(tmp_path):
    fabricate(tmp_path, corpora=("pangram", "sotu"))
    assert len(ledger(tmp_path)) >= 90
    page = findings.write_findings(tmp_path).read_text(encoding="utf-8")
    assert "All results are on the State of the Union addresses." in page
