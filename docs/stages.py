"""The map of the stages, read from dvc.yaml: which stage reads what another wrote."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

DIGESTS = "build/"
"""What `check` writes there says when a stage runs again; it is no step of the data."""


def stage_edges(root: Path) -> list[tuple[str, str]]:
    """Pairs of stages, the later one reading what the earlier wrote; those that others imply are left out.

    ``check`` goes ahead of the first stage and ``track`` follows the last, as in every run.
    """
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    writer = {path: name for name, stage in stages.items() for path in _outs(stage)}
    reads = {
        name: {writer[path] for path in stage.get("deps", []) if path in writer and path[:6] != DIGESTS}
        for name, stage in stages.items()
    }
    names = list(stages)
    first = next(name for name in names if name != "check" and not reads[name])
    reads[first].add("check")
    behind: dict[str, set[str]] = {}

    def all_behind(name: str) -> set[str]:
        if name not in behind:
            behind[name] = reads[name] | set().union(*(all_behind(other) for other in reads[name]))
        return behind[name]

    return [
        (earlier, name)
        for name in names
        for earlier in sorted(reads[name], key=names.index)
        if not any(earlier in all_behind(other) for other in reads[name])
    ]


def stage_columns(root: Path) -> list[list[str]]:
    """Stages from first to last in columns: each stands right before the first that needs it."""
    edges = stage_edges(root)
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    to_end = dict.fromkeys(names, 0)
    for _ in names:
        for earlier, later in edges:
            to_end[earlier] = max(to_end[earlier], to_end[later] + 1)
    return [[name for name in names if to_end[name] == left] for left in range(max(to_end.values()), -1, -1)]


def mermaid(root: Path) -> str:
    """The map as GitHub draws it."""
    return "\n".join(["flowchart LR", *(f"    {one} --> {other}" for one, other in stage_edges(root))])


def _outs(stage: dict) -> list[str]:
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]
