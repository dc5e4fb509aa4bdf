"""The whole pipeline through DVC and MLflow, as a user drives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from offramp.app.project import open_project
from offramp.errors import UserError
from tests.fixtures.pipeline_run import command, copy_repository, run_stages, stages_run
from tests.fixtures.reduce_params import reduce_params

pytestmark = pytest.mark.slow

ARTIFACTS = ("data", "models/lm", "states/calibration", "states/test", "models/exits", "routed")


def digests(folder):
    return {name: json.loads((folder / name / "manifest.json").read_text())["digest"] for name in ARTIFACTS}


def parent_runs(folder, project=None):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(project or folder.name)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags], [
        run for run in runs if "mlflow.parentRunId" in run.data.tags
    ]


def test_a_second_repro_changes_nothing(reduced_run):
    before, runs = digests(reduced_run), [len(part) for part in parent_runs(reduced_run)]
    output = command(reduced_run, "dvc", "repro").stdout
    assert stages_run(output) == ["check", "track"]  # the two that always look, and write nothing new
    assert digests(reduced_run) == before and [len(part) for part in parent_runs(reduced_run)] == runs
    assert command(reduced_run, "git", "status", "--porcelain").stdout == ""


def test_a_new_threshold_runs_only_what_depends_on_it_and_can_be_compared(reduced_run):
    before = digests(reduced_run)
    old = json.loads((reduced_run / "metrics/routing.json").read_text())
    output = command(reduced_run, "dvc", "exp", "run", "-S", "threshold=0.5").stdout
    try:
        assert stages_run(output) == ["check", "evaluate", "report", "track"]
        new = json.loads((reduced_run / "metrics/routing.json").read_text())
        assert new["threshold"] == {"exit_0": 0.5} and new["shallow_ratio"] > old["shallow_ratio"]
        assert {name for name in ARTIFACTS if digests(reduced_run)[name] != before[name]} == {"routed"}
        parents, children = parent_runs(reduced_run)
        assert len(parents) == 2
        assert [run.data.params["threshold"] for run in parents] == ["0.8", "0.5"]
        assert parents[1].data.metrics["ppl"] == pytest.approx(new["ppl"])
        stages = [run.data.tags["mlflow.runName"] for run in children]
        assert sum("pretrain" in name for name in stages) == 1, (
            "the cached training is linked, not logged again"
        )
        command(reduced_run, "git", "checkout", "--", ".")
        command(reduced_run, "dvc", "checkout")
        output = command(reduced_run, "dvc", "exp", "run", "-S", "threshold=0.5").stdout
        assert stages_run(output) == ["check", "track"], "what was tried before is taken from the cache"
        assert json.loads((reduced_run / "metrics/routing.json").read_text()) == new
    finally:
        command(reduced_run, "git", "checkout", "--", ".")
        command(reduced_run, "dvc", "checkout")


def test_routed_tokens_and_metrics_agree(reduced_run):
    """The headline numbers recomputed from the per-token artifact."""
    routing = json.loads((reduced_run / "metrics/routing.json").read_text())
    tokens = pd.read_parquet(reduced_run / "routed/tokens.parquet")
    states = pd.read_parquet(reduced_run / "states/test/tokens.parquet")
    assert len(tokens) == len(states) == routing["tokens"]
    import numpy as np

    assert np.exp(tokens["loss"].astype("float64").mean()) == pytest.approx(routing["ppl"], rel=1e-9)
    assert (tokens["argmax"] == tokens["target"]).mean() == pytest.approx(routing["accuracy"])
    assert (tokens["exit"] == 0).mean() == pytest.approx(routing["exit_fraction"]["exit_0"])
    left = tokens["exit"] == 0
    assert (tokens.loc[left, "confidence"] >= routing["threshold"]["exit_0"]).all()
    assert tokens.loc[~left, "confidence"].isna().all()
    np.testing.assert_allclose(tokens.loc[left, "loss"], states.loc[left, "loss_0"], atol=1e-4)


def test_splits_share_no_document_and_exits_are_made_from_calibration_states_alone(reduced_run):
    names = pd.read_parquet(reduced_run / "data/documents.parquet").groupby("split")["name"].agg(set)
    assert names["train"].isdisjoint(names["test"]) and names["calibration"].isdisjoint(names["test"])
    exits = json.loads((reduced_run / "models/exits/manifest.json").read_text())
    assert list(exits["inputs"]) == ["states/calibration"]


def test_the_same_seed_gives_the_same_bytes(reduced_run, tmp_path):
    """The stages run again, from text, in another folder.

    Every artifact has the same digest, every metric the same value.
    """
    again = copy_repository(tmp_path / "again")
    run_stages(again)
    assert digests(again) == digests(reduced_run)
    for file in [*(reduced_run / "metrics").rglob("*.*")]:
        other = again / file.relative_to(reduced_run)
        if file.name == "headline.json":
            ours, theirs = (json.loads(each.read_text()) | {"wall_saving": None} for each in (file, other))
            assert ours == theirs
        elif file.name not in ("timing.json", "suitability.json"):  # both have seconds in them
            assert other.read_bytes() == file.read_bytes(), file.name
    for name in ARTIFACTS:  # not only the digests: the bytes
        for file in (reduced_run / name).iterdir():
            assert (again / name / file.name).read_bytes() == file.read_bytes(), f"{name}/{file.name}"


def test_lineage_walks_from_the_number_to_text_parameters_and_commit(reduced_run):
    output = command(reduced_run, "offramp", "lineage", "metrics/routing.json").stdout
    for part in ("exits", "states", "lm", "data", "threshold", "sotu"):
        assert part in output
    assert command(reduced_run, "git", "rev-parse", "--short", "HEAD").stdout.strip() in output


def test_plots_can_be_shown(reduced_run, tmp_path):
    command(reduced_run, "dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "Learning curve of every block" in page and "learning_calibration_ppl.svg" in page


def test_classifiers_trained_jointly_are_used_and_three_exits_work(tmp_path):
    """The other ways through the pipeline.

    They are joint training with exit classifiers inside, three blocks, post-norm, characters.
    """
    folder = copy_repository(
        tmp_path / "joint",
        pretrain__method="joint",
        pretrain__head="shared",
        model__block_layers=[1, 1, 1],
        model__norm="post",
        pretrain__joint_classifier={"label": "loss", "weight": 1.0},
        exits__mode="joint",
        tokenizer__kind="char",
        threshold="auto",
        pretrain__steps=40,
        pretrain__blockwise__exited_state="input",
    )
    run_stages(folder)
    routing = json.loads((folder / "metrics/routing.json").read_text())
    assert len(routing["exit_fraction"]) == 3 and 0.3 < routing["exit_fraction"]["exit_0"] < 0.7


@pytest.mark.parametrize("rule", ["quality", "risk", "budget", "price"])
def test_thresholds_by_rule_are_found_on_held_out_text_and_reported(reduced_run, tmp_path, rule):
    folder = shutil.copytree(reduced_run, tmp_path / "copy")
    rules = {"routing__budget": 0.9, "exits__risk__tolerance": 0.3, "routing__quality": 3.0}
    reduce_params(folder / "params.yaml", threshold=rule, **rules)
    command(folder, "python", "-m", "pipeline.evaluate")
    routing = json.loads((folder / "metrics/routing.json").read_text())
    assert rule in routing
    if rule == "risk":
        command(folder, "python", "-m", "pipeline.report")
        page = (folder / "report/index.html").read_text()
        assert {"sequences", "passed", "test_risk", "test_interval", "kept"} <= set(routing["risk"])
        assert "Measured on the test split" in page
    if rule == "quality":
        command(folder, "python", "-m", "pipeline.report")
        check, said = routing["quality"], command(folder, "python", "-m", "pipeline.track").stdout
        assert check["allowed"] == 0.03 and check["test_rise"] == routing["ppl_increase"]
        assert check["verdict"].removeprefix("not ") in " ".join(said.split()) and "allowed +3.00%" in said
        assert "upper end of the interval had to be within" in (folder / "report/index.html").read_text()
        policy = open_project(folder).policy()
        assert policy.thresholds == list(routing["threshold"].values()), "found once, by evaluate"
        reduce_params(folder / "params.yaml", threshold=rule, **rules | {"routing__quality": 2.0})
        with pytest.raises(
            UserError, match=r"threshold quality: routing\.quality changed since .* evaluate`"
        ):
            open_project(folder).policy()
    if rule == "budget":
        assert routing["flop_saving"] >= 0.0 and routing["shallow_ratio"] > 0


def test_separation_and_low_rank_read_any_states_artifact(reduced_run):
    text = command(reduced_run, "offramp", "separation", "states/test", "--draws", "50").stdout
    assert "max_prob" in text and "saturation" in text
    assert "learned" in text and text.splitlines()[-1].startswith("Of all signals ")
    of_ranks = json.loads(
        command(reduced_run, "offramp", "low-rank", "--ranks", "1", "8", "--tokens", "500", "--json").stdout
    )
    assert {row["rank"] for row in of_ranks["ranks"]} == {1, 8}
    assert of_ranks["learned"]["tokens"] == 500
    done = command(reduced_run, "offramp", "separation", "states/test", "--exit", "7", check=False)
    assert done.returncode == 2 and "exits 0 to 1" in done.stdout


def test_commands_work_from_a_folder_of_the_project(reduced_run):
    within = reduced_run / "metrics/plots"
    for words, said in (
        (["params"], "params.yaml: ok"),
        (["generate", "--prompt", "My fellow citizens", "--tokens", "4"], "My fellow citizens"),
        (["separation", "--draws", "20"], "Of all signals "),
        (["low-rank", "--ranks", "1", "--tokens", "50"], "the learned signal"),
        (["lineage"], "with default parameters"),
        (["suitability", "--rounds", "2", "--tokens", "200"], "FLOPs"),
    ):
        assert said in command(within, "offramp", *words).stdout


def test_the_model_in_mlflow_runs_as_the_project_does(reduced_run, tmp_path, monkeypatch):
    import mlflow

    shutil.copy(reduced_run / "mlflow.db", tmp_path)  # registering writes into it
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    whole = parent_runs(tmp_path, reduced_run.name)[0][0]
    logged = mlflow.get_logged_model(whole.data.tags["offramp.model"])
    assert logged.source_run_id == whole.info.run_id and float(logged.tags["offramp.megabytes"]) > 0
    assert {metric.key: metric.value for metric in logged.metrics}["ppl"] == whole.data.metrics["ppl"]
    assert [output.model_id for output in whole.outputs.model_outputs] == [logged.model_id]
    files = [file.name for file in Path(logged.artifact_location.removeprefix("file://")).rglob("*")]
    assert "weights.safetensors" in files and not [name for name in files if name.endswith((".pkl", ".pt"))]
    mlflow.register_model(f"models:/{logged.model_id}", "tiny")
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    assert model.metadata.signature is not None
    prompt = "The state of the union"
    (continued,) = model.predict([prompt], params={"tokens": 12}).to_dict("records")
    said = command(reduced_run, "offramp", "generate", "--prompt", prompt, "--tokens", "12").stdout
    assert continued["text"].strip() in said.replace("\n", " ") and continued["tokens"] == 12
    text = "Gentlemen of the Senate and of the House of Representatives: " * 12
    scores = {
        full: model.predict([text], params={"task": "score", "full": full}).to_dict("records")[0]
        for full in (False, True)
    }
    early = json.loads((reduced_run / "metrics/routing.json").read_text())["shallow_ratio"]
    assert scores[True]["early"] == 0.0 and abs(scores[False]["early"] - early) < 0.5
    assert scores[True]["ppl"] > 1 and scores[True]["tokens"] == scores[False]["tokens"] > 64
    with pytest.raises(UserError, match="task = 'sing' is not known"):
        model.predict([text], params={"task": "sing"})
    folder = shutil.copytree(logged.artifact_location.removeprefix("file://"), tmp_path / "everybody_leaves")
    params = folder / "artifacts/project/params.yaml"
    params.write_text(params.read_text().replace("threshold: 0.8", "threshold: 0.0"))
    everybody = mlflow.pyfunc.load_model(str(folder))
    assert everybody.predict([text], params={"task": "score"}).to_dict("records")[0]["early"] == 1.0


def test_tracking_imports_no_torch(reduced_run):
    code = "import sys, pipeline.track; pipeline.track.main(); print('torch' in sys.modules)"
    assert command(reduced_run, "python", "-c", code).stdout.splitlines()[-1] == "False"
