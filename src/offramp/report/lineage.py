"""A lineage as a tree to read."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.tree import Tree

from offramp.lineage.chain import FILE, Chain, Node
from offramp.params import default_values
from offramp.report.headline import console
from offramp.tracking.recorded import flatten
from offramp.tracking.store import text

VALUES_SHOWN = 12


def show(chain: Chain, everything: bool = False) -> None:
    """Print the chain, then what is around it, then whether it holds.

    Of parameters, those whose values are not Offramp's defaults; with ``everything`` all.
    """
    out = console()
    defaults = {} if everything else flatten(default_values())
    out.print(_tree(chain.target, set(), _top(chain.values), defaults))
    if not everything:
        out.print("[dim]Parameters with their default values are left out; --all shows them.[/]")
    if chain.corpus:
        about = {
            key: value for key, value in chain.corpus.params.items() if key.startswith("corpus.") and value
        }
        out.print(f"[bold]corpus[/] {chain.corpus.digest}" + (f" ({_pairs(about)})" if about else ""))
    if chain.text:
        first = dict(list(chain.text.items())[:VALUES_SHOWN])
        more = f", … {len(chain.text) - len(first)} more" if len(chain.text) > len(first) else ""
        out.print(f"[bold]text[/]   {_pairs(first)}{more}")
    for line in _commit_lines(chain.commit):
        out.print(line)
    for note in chain.notes:
        out.print(f"[yellow]note:[/] {escape(note)}")
    if chain.problems:
        out.print(f"[bold red]The chain is broken[/] in {len(chain.problems)} place(s):")
        for problem in chain.problems:
            out.print(f"  {escape(problem)}")
    else:
        out.print("[bold green]The chain holds:[/] every digest on the way was checked.")


def _tree(node: Node, shown: set[str], values: dict[str, Any], defaults: dict[str, Any]) -> Tree:
    title = f"[bold]{escape(node.name)}[/]"
    if node.kind != FILE:
        title += f" ({node.kind} [cyan]{(node.digest or '?')[:12]}[/])"
    if node.name in shown:
        return Tree(f"{title} [dim](above)[/]")
    shown.add(node.name)
    tree = Tree(f"{title} [dim]{'; '.join(node.verified)}[/]")
    for problem in node.problems:
        tree.add(f"[bold red]BROKEN[/] {escape(problem)}")
    if values:
        tree.add(_pairs(values))
    if node.stage:
        tree.add(f"made by stage [bold]{escape(node.stage)}[/]{_with(node.params, defaults)}")
    for run in node.runs:
        where = f" of experiment {run['experiment']}" if run["experiment"] else ""
        about = f"{run['name']}{where}, commit {run['commit'][:7] or 'unknown'}"
        tree.add(f"MLflow run {run['id']} ({escape(about)})")
    for note in node.notes:
        tree.add(f"[yellow]note:[/] {escape(note)}")
    for made_from in node.inputs:
        tree.children.append(_tree(made_from, shown, {}, defaults))
    return tree


def _with(params: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The parameters that are not among ``defaults``; of a run in MLflow, values are text."""
    differing = {
        key: value
        for key, value in params.items()
        if key not in defaults or text(value) != text(defaults[key])
    }
    if differing:
        return f" with {_pairs(differing)}"
    return " with default parameters" if params else ""


def _top(values: dict[str, float]) -> dict[str, str]:
    """The first numbers of a metrics file: those at its top level, if it has any there."""
    top = {key: value for key, value in values.items() if "/" not in key} or values
    return {key: f"{value:.5g}" for key, value in list(top.items())[:VALUES_SHOWN]}


def _pairs(values: dict[str, Any]) -> str:
    return escape(", ".join(f"{key} {text(value)}" for key, value in values.items()))


def _commit_lines(commit: dict[str, Any]) -> list[str]:
    lines = []
    if "recorded" in commit:
        recorded = commit["recorded"]
        lines.append(
            f"[bold]commit[/] {recorded['hash'][:12]} {recorded['date']} {escape(recorded['subject'])} (last "
            "to change dvc.lock)"
        )
    if "head" in commit:
        changed = commit["changed_files"]
        more = f", … {len(changed) - 5} more" if len(changed) > 5 else ""
        state = f"uncommitted changes: {', '.join(changed[:5])}{more}" if changed else "nothing uncommitted"
        lines.append(f"[bold]HEAD[/]   {commit['head']['hash'][:12]} {escape(state)}")
    return lines
