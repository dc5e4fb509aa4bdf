"""Commands that run a model or write one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from offramp.app.commands.options import project_folder, refuse_idle
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.routing.executor import Work
    from offramp.routing.generate import Speculation, Step

BEST = "best"
"""The exit of ``generate --speculate`` without a number: the one that turns out to be."""


def generate(options: argparse.Namespace) -> int:
    """Continue a prompt with the routed model, as params.yaml says who may leave."""
    from rich.console import Console

    from offramp.app.project import open_project
    from offramp.report.console import compare, stream
    from offramp.routing.generate import Sampling, decode, speculate
    from offramp.routing.speculation import Speculation

    _check_generate(options)
    project = open_project(project_folder())
    model, prompts, stop = project.model, [project.encode_prompt(options.prompt)], project.stop_ids
    limits = {
        name: value for name, value in (("top_p", options.top_p), ("seed", options.seed)) if value is not None
    }
    sampling = Sampling(options.temperature, **limits) if options.temperature is not None else None

    def full(work: Work | None = None) -> Iterator[Step]:
        return decode(model, prompts, options.tokens, sampling=sampling, stop=stop, work=work)

    drafting: list[Speculation] = []

    def drafted(work: Work | None = None) -> Iterator[Step]:
        length = {} if options.draft is None else {"length": options.draft}
        # each run finds out anew whether drafts pay
        drafting.append(Speculation(None if options.speculate == BEST else options.speculate, **length))
        return speculate(model, prompts, options.tokens, drafting[-1], stop=stop, work=work)

    early: Callable[..., Iterator[Step]]
    if options.speculate is not None:
        early = drafted
    elif options.full:
        early = full
    else:
        policy = project.policy(_threshold(options))

        def routed(work: Work | None = None) -> Iterator[Step]:
            return decode(
                model,
                prompts,
                options.tokens,
                policy,
                kv=project.params.routing.kv,
                sampling=sampling,
                stop=stop,
                route_prompt=options.route_prompt,
                work=work,
            )

        early = routed

    console = Console(highlight=False)
    last = model.config.num_blocks - 1

    def decoded(tokens: list[int]) -> str:
        return project.decode(prompts[0][-1], tokens)

    stream(console, options.prompt, early(), decoded, last, options.colour)
    if options.stats:
        console.print(compare(model, len(prompts[0]), early, full))
        if drafting:
            console.print(_drafts(drafting[0]))
    return 0


def _drafts(drafting: Speculation) -> str:
    """What became of drafted tokens."""
    if not drafting.drafted:
        if any(of_exit.cycle_seconds for of_exit in drafting.by_exit.values()):
            return "nothing was drafted: no guess was likely enough"
        return "nothing was drafted: too few tokens were made, and the first ones come from full depth"
    kept = "paid and stayed on" if drafting.pays else "did not pay and was given up"
    return f"{drafting.accepted} of {drafting.drafted} drafted tokens were right; drafting {kept}"


def _threshold(options: argparse.Namespace) -> float | list[float] | None:
    """Another threshold than the parameters', where one was given: a number, or one per exit."""
    given = options.threshold
    return given[0] if given and len(given) == 1 else given


def _check_generate(options: argparse.Namespace) -> None:
    """UserError for options of generate that have no effect beside the others."""
    greedy = ("temperature", "top_p", "seed", "threshold", "route_prompt", "full")
    refuse_idle(
        options, options.speculate is not None, greedy, "--speculate makes the greedy tokens of full depth"
    )
    refuse_idle(options, options.full, ("threshold", "route_prompt"), "--full lets nobody leave")
    refuse_idle(
        options, options.temperature is None, ("top_p", "seed"), "without --temperature nothing is drawn"
    )
    refuse_idle(options, options.speculate is None, ("draft",), "without --speculate nothing is drafted")


def lm_eval(options: argparse.Namespace) -> int:
    """Run lm_eval's own command on the project's routed model."""
    try:
        from offramp.app.harness import evaluate
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(
            "lm_eval is not installed; run `pip install 'offramp[eval]'`, "
            "in a checkout `pip install -c constraints.txt -e '.[eval]'`"
        ) from None
    evaluate(options.arguments)
    return 0


def convert(options: argparse.Namespace) -> int:
    """Turn a GGUF file into a checkpoint folder and print its path; UserError where that cannot be done."""
    from offramp.models.convert import convert_gguf

    convert_gguf(options.gguf, options.out)
    print(options.out)
    return 0
