"""Walking back from a number to text, parameters and commit, and checking every link on the way.

A link is a hash that two sides agree on: dvc.lock records the MD5 of what a stage read and wrote, a manifest
the digest of its files and of the artifacts it was made from, an MLflow run the digests of its inputs and
outputs. Whatever disagrees, or cannot be found, breaks the chain and is said; what is only absent around it
(no commit yet, no MLflow run, code edited since) is a note.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from offramp.artifacts.artifact import open_artifact
from offramp.artifacts.manifest import MANIFEST
from offramp.errors import UserError
from offramp.params import read_params
from offramp.results.routing import Routing
from offramp.tracking.git import changed_files, last_commit
from offramp.tracking.reading import Runs, read_runs
from offramp.tracking.recorded import (
    RESULTLESS,
    Stage,
    code_file,
    dvc_md5,
    find_root,
    flatten,
    read_manifest,
    read_stages,
)
from offramp.tracking.series import numbers
from offramp.tracking.store import ROLE, STAGE, StoreError

FILE = "file"
FINGERPRINT = "build/corpus.json"
"""What stage check wrote of the text: versions and digests."""


@dataclass
class Node:
    """A metrics file or an artifact, how it was made, and what is wrong with it."""

    name: str
    kind: str
    """The artifact's kind, or ``file``."""
    digest: str | None = None
    """The artifact's digest; of a file, its MD5. None if it is not on disk."""
    path: str | None = None
    stage: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    """Versions of libraries, instruction set and device that computed it, if it is an artifact."""
    runs: list[dict[str, str]] = field(default_factory=list)
    """MLflow runs that made it: id, name, experiment (DVC's name, or ""), commit."""
    inputs: list[Node] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """The lineage of ``target``: all of its nodes in the order they were reached, and what is around them."""

    target: Node
    values: dict[str, float]
    """The numbers in the target, if it is a metrics file."""
    nodes: list[Node]
    corpus: Node | None
    text: dict[str, Any]
    """The fingerprint of the text that the corpus was made from, if it was reached: versions and digests."""
    commit: dict[str, Any]
    notes: list[str]

    @property
    def problems(self) -> list[str]:
        return [problem for node in self.nodes for problem in node.problems]

    def to_json(self) -> dict[str, Any]:
        """Plain values; every node once, its inputs by their names."""
        nodes = {
            node.name: vars(node) | {"inputs": [made_from.name for made_from in node.inputs]}
            for node in self.nodes
        }
        return {
            "target": self.target.name,
            "values": self.values,
            "whole": not self.problems,
            "nodes": nodes,
            "corpus": self.corpus.digest if self.corpus else None,
            "text": self.text,
            "commit": self.commit,
            "problems": self.problems,
            "notes": self.notes,
        }


def trace(path: Path | None = None) -> Chain:
    """The lineage of ``path``: a stage's output, or any artifact folder; the routing metrics unless given.

    Raises UserError if it is neither.
    """
    if path is None:
        path = find_root() / Routing.path
    root = _project_of(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; `dvc repro` makes the pipeline's outputs")
    path = path.resolve()
    notes: list[str] = []
    with ExitStack() as stack:
        store = None
        try:
            store = stack.enter_context(read_runs(root))
        except StoreError as error:
            notes.append(f"MLflow runs are not shown: {error}")
        walk = _Walk(root, store)
        try:
            target = walk.start(path)
        except StoreError as error:  # it failed on the way; the rest of the chain does not need it
            notes.append(f"MLflow runs are not shown: {error}")
            walk = _Walk(root, None)
            target = walk.start(path)
    notes += walk.notes
    nodes = list(walk.nodes.values())
    corpus = next((node for node in nodes if node.kind == "data"), None)
    if corpus is None:
        notes.append("no text corpus was reached")
    values = numbers(_read_json(path)) if path.suffix == ".json" else {}
    text = _read_json(root / FINGERPRINT) if root and FINGERPRINT in walk.nodes else {}
    return Chain(target, values, nodes, corpus, flatten(text), _commit(root, notes), notes)


class _Walk:
    """One walk through a project (or, without ``root``, from a lone artifact), meeting every node once."""

    def __init__(self, root: Path | None, store: Runs | None):
        self.project, self.store = root, store
        self.nodes: dict[str, Node] = {}
        stages = read_stages(root, as_locked=True) if root else []
        self.maker: dict[str, Stage] = {out: stage for stage in stages for out in stage.outs}
        manifests = {out: read_manifest(self.root / out) for out in self.maker}
        self.on_disk = {manifest["digest"]: out for out, manifest in manifests.items() if manifest}
        """Paths of artifacts by their digest."""
        self.params_now, self.notes = _params_now(root) if root else ({}, [])

    @property
    def root(self) -> Path:
        """The project's folder, for steps that only a walk through a project takes."""
        assert self.project is not None
        return self.project

    def start(self, path: Path) -> Node:
        out = self._out_holding(path)
        if out is not None:
            return self._output(out)
        for folder in (path, *path.parents):
            if (folder / MANIFEST).is_file():
                return self._artifact_elsewhere(folder)
        raise UserError(
            f"{path} is neither an output of a stage in dvc.yaml nor an artifact (a folder with {MANIFEST})"
        )

    def _out_holding(self, path: Path) -> str | None:
        """The stage output that is, or contains, ``path``."""
        if self.project is None:
            return None
        inside = [folder for folder in (path, *path.parents) if folder.is_relative_to(self.project)]
        names = (folder.relative_to(self.project).as_posix() for folder in inside)
        return next((name for name in names if name in self.maker), None)

    def _output(self, out: str) -> Node:
        """The node of a stage's output, in this project."""
        if out in self.nodes:
            return self.nodes[out]
        path, stage = self.root / out, self.maker[out]
        node = self.nodes[out] = Node(out, FILE, dvc_md5(path), out, stage.name, stage.params)
        self._check_output(node, stage, stage.outs[out])
        made_from = self._open(node, path)
        for dep, md5 in stage.deps.items():
            if dep != code_file(stage.name):
                self._follow_dependency(node, stage, dep, md5)
        self._compare_code(node, stage)
        self._follow_digests(node, made_from)
        self._compare_params(node, stage)
        node.runs = self._runs({f"dvc.stage.{stage.name}": stage.hash})
        if node.kind != FILE:
            node.runs += [run for run in self._runs({f"made.{node.digest}": None}) if run not in node.runs]
        return node

    def _check_output(self, node: Node, stage: Stage, recorded: str | None) -> None:
        """Compare an output on disk with the MD5 that was ``recorded`` when the stage wrote it."""
        if node.digest is None:
            node.problems.append(f"{node.path} is missing; `dvc repro` brings it back")
        elif not stage.locked:
            node.problems.append(
                f"{node.path}: dvc.lock has no record of stage {stage.name}, so nothing says what made it; "
                "run `dvc repro`"
            )
        elif node.digest != recorded:
            node.problems.append(
                f"{node.path} is not what stage {stage.name} wrote: MD5 {_short(node.digest)}, "
                f"dvc.lock records {_short(recorded)}; `dvc repro` brings it back"
            )
        else:
            node.verified.append("is what dvc.lock records")

    def _open(self, node: Node, path: Path) -> dict[str, str]:
        """Fill ``node`` from its manifest, verified, if it has one; the digests it says it was made from."""
        if path.suffix == ".json" and path.is_file():
            inputs = _read_json(path).get("inputs", {})
            return inputs if isinstance(inputs, dict) else {}
        if not (path / MANIFEST).is_file():
            return {}
        manifest = read_manifest(path) or {}
        node.kind, node.digest = str(manifest.get("kind")), manifest.get("digest")
        try:
            artifact = open_artifact(path, node.kind)
        except UserError as error:
            node.problems.append(str(error))
            return {}
        node.params, node.made_with = flatten(artifact.params), artifact.made_with
        node.verified.append("its files match its manifest")
        return artifact.inputs

    def _follow_dependency(self, node: Node, stage: Stage, dep: str, md5: str | None) -> None:
        """Follow a dependency to the stage that wrote it; compare what none wrote with what was read."""
        out = self._out_holding(self.root / dep)
        if out is None:
            if stage.name not in RESULTLESS and stage.locked and dvc_md5(self.root / dep) != md5:
                node.notes.append(f"{dep} changed since stage {stage.name} ran")
            return
        origin = self._output(out)
        if origin not in node.inputs:
            node.inputs.append(origin)
        written = self.maker[out].outs[out]
        if out == dep and None not in (md5, written) and md5 != written:
            node.problems.append(
                f"stage {stage.name} read another {dep} (MD5 {_short(md5)}) than stage "
                f"{self.maker[out].name} wrote last ({_short(written)}); `dvc repro` brings {node.name} up "
                "to date"
            )

    def _compare_code(self, node: Node, stage: Stage) -> None:
        """Note where a stage's code, as ``check`` saw it last, is not the code that ran."""
        file = code_file(stage.name)
        recorded, last_seen = stage.deps.get(file), dvc_md5(self.root / file)
        if recorded and last_seen and recorded != last_seen:
            node.notes.append(f"the code of stage {stage.name}, or a library, changed since it ran")

    def _follow_digests(self, node: Node, made_from: dict[str, str]) -> None:
        """Follow inputs by digest: on disk, or else in MLflow; check them against inputs already reached."""
        for name, digest in made_from.items():
            known = {reached.digest for reached in node.inputs}
            if digest in known:
                continue
            if digest in self.on_disk:
                node.inputs.append(self._output(self.on_disk[digest]))
                continue
            other = next(
                (reached for reached in self.nodes.values() if name in (reached.kind, reached.name)), None
            )
            if node.path in self.maker:
                there = f"; {other.path} is {_short(other.digest)} now" if other and other.path else ""
                node.problems.append(
                    f"{node.name} was made from {name} {_short(digest)}, which is not on disk{there}; "
                    "run `dvc repro`"
                )
            node.inputs.append(self._only_in_mlflow(name, digest))

    def _artifact_elsewhere(self, folder: Path) -> Node:
        """An artifact folder that is no output of this project: its manifest, then digests, tell the rest."""
        node = self.nodes[str(folder)] = Node(str(folder), FILE, path=str(folder))
        made_from = self._open(node, folder)
        node.runs = self._runs({f"made.{node.digest}": None})
        node.stage = node.runs[0]["name"] if node.runs else None
        self._follow_digests(node, made_from)
        return node

    def _only_in_mlflow(self, name: str, digest: str) -> Node:
        label = f"{name} {_short(digest)}"
        if label in self.nodes:
            return self.nodes[label]
        node = self.nodes[label] = Node(label, re.split("[./]", name)[0], digest)
        node.runs = self._runs({f"made.{digest}": None})
        if self.store is None or not node.runs:
            node.problems.append(
                f"{label} is not on disk and no known MLflow run made it: the chain ends here"
            )
            return node
        run = self.store.get(node.runs[0]["id"])
        node.kind = run.data.tags[f"made.{digest}"].split(".")[0]
        node.stage, node.params = node.runs[0]["name"], dict(run.data.params)
        node.notes.append("not on disk; known from its MLflow run")
        inputs = {
            key.removeprefix("input.").removesuffix(".digest"): value
            for key, value in run.data.tags.items()
            if key.startswith("input.")
        }
        self._follow_digests(node, inputs)
        return node

    def _compare_params(self, node: Node, stage: Stage) -> None:
        """Note where params.yaml has moved on; a manifest that disagrees with dvc.lock is a break."""
        for key, value in stage.params.items():
            if stage.locked and key in node.params and node.params[key] != value:
                node.problems.append(
                    f"{node.name}: its manifest says {key} = {node.params[key]!r}, dvc.lock {value!r}; "
                    "run `dvc repro`"
                )
            if key in self.params_now and self.params_now[key] != value and stage.name not in RESULTLESS:
                node.notes.append(
                    f"params.yaml now says {key} = {self.params_now[key]!r}; this was made with {value!r}"
                )

    def _runs(self, tags: dict[str, str | None]) -> list[dict[str, str]]:
        if self.store is None:
            return []
        return [
            {
                "id": run.info.run_id,
                "name": run.data.tags.get("mlflow.runName", ""),
                "experiment": run.data.tags.get("dvc.exp_name", ""),
                "commit": run.data.tags.get("mlflow.source.git.commit", ""),
            }
            for run in self.store.find({ROLE: STAGE, **tags}, limit=3)
        ]


def _project_of(path: Path) -> Path | None:
    """The project ``path`` is in, or else the one we are in, or none."""
    for start in (Path(os.path.realpath(path)).parent, None):  # which takes links in a circle as they are
        try:
            return find_root(start)
        except UserError:
            continue
    return None


def _params_now(root: Path) -> tuple[dict[str, Any], list[str]]:
    """params.yaml, flat; a file that is not valid now hinders no look at results made with an earlier one."""
    try:
        return flatten(read_params(root / "params.yaml").model_dump(mode="json")), []
    except UserError as error:
        return {}, [f"parameters are not compared with params.yaml, which is not valid now: {error}"]


def _commit(root: Path | None, notes: list[str]) -> dict[str, Any]:
    head = last_commit(root) if root else None
    if root is None or head is None:
        notes.append("no git commit: this is not a git repository with a commit")
        return {}
    changed = changed_files(root)
    commit: dict[str, Any] = {"head": asdict(head), "changed_files": changed}
    recorded = last_commit(root, "dvc.lock")
    if recorded is None or "dvc.lock" in changed_files(root, "dvc.lock"):
        notes.append(
            "no commit holds this dvc.lock yet; `git add dvc.lock params.yaml metrics && git commit` "
            "ties it to one"
        )
    else:
        commit["recorded"] = asdict(recorded)
    return commit


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or not JSON any more; its MD5 says so too
        return {}
    return values if isinstance(values, dict) else {}


def _short(digest: str | None) -> str:
    return (digest or "none")[:12]
