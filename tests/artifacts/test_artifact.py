"""Artifacts are whole or absent, and nothing that was changed since they were written can be opened."""

import json
import os
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.artifacts.files import readable, write_json
from offramp.artifacts.manifest import MANIFEST, digest_of
from offramp.errors import UserError
from offramp.machine import versions
from offramp.machine.device import setup


def make(path, kind="lm", content=b"weights", params=None, inputs=None):
    with create_artifact(path, kind, params or {"seed": 0}, inputs or {}) as writer:
        (writer.path / "weights.bin").write_bytes(content)
        (writer.path / "deep").mkdir()
        (writer.path / "deep" / "config.json").write_text("{}")
        writer.meta["shape"] = [2, 3]
    return open_artifact(path, kind)


def test_what_was_written_is_what_is_read(tmp_path):
    data = make(tmp_path / "data", "data")
    lm = make(tmp_path / "lm", params={"seed": 7}, inputs={"data": data})
    assert (lm.kind, lm.params, lm.meta) == ("lm", {"seed": 7}, {"shape": [2, 3]})
    assert lm.inputs == {"data": data.digest}
    assert lm.file("weights.bin").read_bytes() == b"weights"
    assert open_artifact(lm.path, "lm", {"data": data}) == lm


def test_made_twice_it_has_the_same_bytes(tmp_path):
    one, two = make(tmp_path / "one" / "lm"), make(tmp_path / "two" / "lm")
    assert one.digest == two.digest
    for file in (MANIFEST, "weights.bin", "deep/config.json"):
        assert one.file(file).read_bytes() == two.file(file).read_bytes()


def test_the_digest_covers_files_parameters_inputs_and_kind(tmp_path):
    data, other = make(tmp_path / "data", "data"), make(tmp_path / "other", "data", b"text")
    digests = {
        make(tmp_path / "a").digest,
        make(tmp_path / "b", content=b"Weights").digest,
        make(tmp_path / "c", params={"seed": 1}).digest,
        make(tmp_path / "d", inputs={"data": data}).digest,
        make(tmp_path / "e", inputs={"data": other}).digest,
        make(tmp_path / "f", kind="exits").digest,
    }
    assert len(digests) == 6


def test_what_is_computed_names_libraries_instruction_set_and_device(tmp_path):
    setup("cpu", 2)
    made_with = make(tmp_path / "lm", "lm").made_with
    assert made_with["torch"] == torch.__version__  # with its local part, such as +cpu
    assert made_with["numpy"] == np.__version__ and made_with["transformers"] == version("transformers")
    assert made_with["cpu"].startswith(torch.backends.cpu.get_cpu_capability())
    assert made_with["device"] == "cpu"


def test_text_is_the_same_artifact_on_any_cpu_and_with_any_torch(tmp_path, monkeypatch):
    text, states = make(tmp_path / "data", "data"), make(tmp_path / "states", "states")
    assert text.made_with.keys() == {"numpy", "tokenizers", "transformers"}
    monkeypatch.setitem(versions._chosen, "device", "none")
    assert make(tmp_path / "data_elsewhere", "data").digest == text.digest
    assert make(tmp_path / "states_elsewhere", "states").digest != states.digest


def test_a_copy_elsewhere_is_the_same_artifact(tmp_path):
    lm = make(tmp_path / "lm")
    shutil.copytree(lm.path, tmp_path / "elsewhere" / "renamed")
    assert open_artifact(tmp_path / "elsewhere" / "renamed", "lm").digest == lm.digest


def test_an_exception_leaves_what_was_there(tmp_path):
    old = make(tmp_path / "lm")
    with pytest.raises(ZeroDivisionError), create_artifact(tmp_path / "lm", "lm", {}, {}) as writer:
        (writer.path / "weights.bin").write_bytes(b"half of the new")
        raise ZeroDivisionError
    assert open_artifact(tmp_path / "lm", "lm") == old
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_an_exception_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ZeroDivisionError), create_artifact(tmp_path / "lm", "lm", {}, {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_new_one_replaces_the_old_one_whole(tmp_path):
    make(tmp_path / "lm")
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as writer:
        (writer.path / "other.bin").write_bytes(b"new")
    assert sorted(path.name for path in (tmp_path / "lm").iterdir()) == [MANIFEST, "other.bin"]


def test_leftovers_of_a_killed_process_do_not_get_in(tmp_path):
    (tmp_path / ".lm.partial").mkdir()
    (tmp_path / ".lm.partial" / "stale.bin").write_bytes(b"stale")
    assert not make(tmp_path / "lm").has("stale.bin")


def refused(path, *words, kind="lm", **options):
    with pytest.raises(UserError) as error:
        open_artifact(path, kind, **options)
    for word in (*words, "dvc repro"):
        assert word in str(error.value)


def test_no_manifest(tmp_path):
    refused(tmp_path / "lm", "manifest.json is missing")
    make(tmp_path / "lm").file(MANIFEST).unlink()
    refused(tmp_path / "lm", "manifest.json is missing", "not a complete artifact")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_unreadable_manifest(tmp_path, content):
    make(tmp_path / "lm").file(MANIFEST).write_bytes(content)
    refused(tmp_path / "lm", "manifest.json is corrupt")


def test_another_kind(tmp_path):
    make(tmp_path / "lm")
    refused(tmp_path / "lm", "kind 'lm'", "expected kind 'states'", kind="states")


@pytest.mark.parametrize("change", [{"schema": 1}, {"schema": 3}])
def test_another_schema(tmp_path, change):
    manifest = make(tmp_path / "lm").file(MANIFEST)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    refused(tmp_path / "lm", f"schema {change['schema']}", "schema 2")


@pytest.mark.parametrize(
    "change", [{"params": {"seed": 1}}, {"inputs": {"data": "0"}}, {"made_with": {}}, {"digest": "0"}]
)
def test_an_edited_manifest(tmp_path, change):
    manifest = make(tmp_path / "lm").file(MANIFEST)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    refused(tmp_path / "lm", "was edited")


def edited(path, **changes):
    """Change a manifest; None takes a key away. Its digest is made to fit."""
    values = json.loads((path / MANIFEST).read_text())
    values = {name: value for name, value in (values | changes).items() if value is not None}
    values.pop("digest")
    (path / MANIFEST).write_text(json.dumps(values | {"digest": digest_of(values)}))


@pytest.mark.parametrize("key", ["meta", "files", "inputs", "params", "made_with"])
def test_a_manifest_without_a_key_or_with_another_type(tmp_path, key):
    make(tmp_path / "lm")
    edited(tmp_path / "lm", **{key: [1]})
    refused(tmp_path / "lm", "manifest.json is corrupt", key, "valid dictionary")
    edited(tmp_path / "lm", **{key: None})
    refused(tmp_path / "lm", "manifest.json is corrupt", key, "Field required")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../elsewhere": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": -1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": 1, "sha256": "0"}}},
        {"more": 1},
        {"meta": {"parameters": "many"}},
    ],
)
def test_a_manifest_of_another_shape(tmp_path, change):
    make(tmp_path / "lm")
    edited(tmp_path / "lm", **change)
    refused(tmp_path / "lm", "manifest.json is corrupt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "no mapping"),
        ('{"meta":' * 100_000 + "1" + "}" * 100_000, "JSON"),
        ('{"meta":' * 40 + "1" + "}" * 40, "nested deeper"),
        ('{"meta": NaN}', "JSON"),
        ('{"schema": ' + "9" * 5000 + "}", "JSON"),
    ],
    ids=["list", "deep", "nested", "nan", "digits"],
)
def test_a_manifest_that_is_something_else(tmp_path, content, words):
    make(tmp_path / "lm").file(MANIFEST).write_text(content)
    refused(tmp_path / "lm", "manifest.json is corrupt", words)


def test_what_stands_in_a_manifests_place(tmp_path):
    """A pipe, which would be waited for for ever, a folder, a device, a loop of links, and far too much."""
    manifest = make(tmp_path / "lm").file(MANIFEST)
    os.truncate(manifest, 2**30)
    refused(tmp_path / "lm", "manifest.json is corrupt", "bytes")
    manifest.unlink()
    os.mkfifo(manifest)
    refused(tmp_path / "lm", "manifest.json is no regular file")
    manifest.unlink()
    manifest.mkdir()
    refused(tmp_path / "lm", "manifest.json is a folder")
    for target, words in (("/dev/zero", "no regular file"), (manifest.name, "cannot be read")):
        shutil.rmtree(manifest, ignore_errors=True)
        manifest.unlink(missing_ok=True)
        manifest.symlink_to(target)
        refused(tmp_path / "lm", words)
    shutil.rmtree(tmp_path / "lm")
    (tmp_path / "lm").write_text("a file in a folder's place")
    refused(tmp_path / "lm", "manifest.json is missing")


def test_links_are_what_they_link_to_and_other_files_are_refused(tmp_path):
    """DVC can link outputs to its cache; what a manifest does not name was never written by us."""
    lm = make(tmp_path / "lm")
    shutil.move(lm.file("weights.bin"), tmp_path / "cached")
    lm.file("weights.bin").symlink_to(tmp_path / "cached")
    assert open_artifact(tmp_path / "lm", "lm") == lm
    shutil.move(tmp_path / "lm", tmp_path / "elsewhere")
    (tmp_path / "lm").symlink_to(tmp_path / "elsewhere")
    assert open_artifact(tmp_path / "lm", "lm") == lm
    (tmp_path / "lm/deep/more.bin").write_bytes(b"")
    refused(tmp_path / "lm", "deep/more.bin", "was made without it", "move it elsewhere")
    make(tmp_path / "lm")  # takes the link's place
    assert not (tmp_path / "lm").is_symlink() and (tmp_path / "elsewhere/deep/more.bin").exists()
    lm.file("weights.bin").unlink()
    os.mkfifo(lm.file("weights.bin"))
    refused(tmp_path / "lm", "weights.bin is no regular file")


def test_what_an_artifact_does_not_say_or_have_is_named(tmp_path):
    lm = make(tmp_path / "lm")
    with pytest.raises(UserError, match=r"manifest\.json does not say meta\.window; .*dvc repro"):
        lm.meta["window"]
    with pytest.raises(UserError, match=r"lm/config\.json is missing: .*dvc repro"):
        lm.file("config.json")
    message = r"weights\.bin does not hold what it should \(ValueError: no number"
    with pytest.raises(UserError, match=message), readable(lm.file("weights.bin")):
        raise ValueError("no number")


def test_a_missing_file(tmp_path):
    make(tmp_path / "lm").file("deep/config.json").unlink()
    refused(tmp_path / "lm", "config.json is missing")


def test_a_truncated_file_is_refused_even_unverified(tmp_path):
    make(tmp_path / "lm").file("weights.bin").write_bytes(b"weig")
    refused(tmp_path / "lm", "weights.bin has 4 bytes", "says 7", verify=False)


@settings(max_examples=50, deadline=None)  # disks are slow when they are busy
@given(where=st.integers(0, 63), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(tmp_path_factory, where, flip):
    content = bytearray(range(64))
    path = tmp_path_factory.mktemp("changed") / "lm"
    artifact = make(path, content=bytes(content))
    content[where] ^= flip
    artifact.file("weights.bin").write_bytes(content)
    refused(path, "weights.bin was changed")
    assert open_artifact(path, "lm", verify=False).digest == artifact.digest  # same size: only hashing tells


def test_made_from_something_else(tmp_path):
    data, other = make(tmp_path / "data", "data"), make(tmp_path / "other", "data", b"text")
    make(tmp_path / "lm", inputs={"data": data})
    refused(tmp_path / "lm", "another data", data.digest[:12], other.digest[:12], inputs={"data": other})
    refused(tmp_path / "lm", "another tokens", inputs={"tokens": data})


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "m.json", {"b": 1, "a": 2})
    written = (tmp_path / "m.json").read_text()
    assert json.loads(written) == {"a": 2, "b": 1}
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "m.json", {"a": value})
    assert (tmp_path / "m.json").read_text() == written
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
