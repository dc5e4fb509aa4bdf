"""`offramp generate`: the text that decoding makes, coloured by exit, and figures of what was run."""

from __future__ import annotations

import io
import os
import re
from functools import partial

import pytest
from rich.console import Console

from offramp.app.cli import main
from offramp.app.project import open_project
from offramp.report.console import compare, stream
from offramp.routing.generate import Sampling, Step, decode, generate, speculate
from offramp.routing.policies import FixedExit
from offramp.routing.speculation import Speculation
from tests.fixtures.small_project import make_project

PROMPT = "Fellow citizens of the Senate"
KEY = "prompt  exit  0  1 \n"


@pytest.fixture(scope="module")
def folder(addresses, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    make_project(root, addresses)
    return root


@pytest.fixture
def project(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return open_project()


def said(project, steps):
    (row,) = generate(steps, 1)
    return project.decode(project.encode(PROMPT)[-1], row.tokens)


def run(capsys, *options):
    """What is printed after the prompt."""
    assert main(["generate", "--prompt", PROMPT, "--tokens", "12", *options]) == 0
    before, prompt, after = capsys.readouterr().out.partition(PROMPT)
    assert prompt and before in ("", KEY)
    return after


def test_it_prints_what_decoding_makes(project, capsys):
    model, prompt = project.model, [project.encode(PROMPT)]
    shared = {"stop": {project.end_id}, "route_prompt": False}
    assert run(capsys, "--full").rstrip("\n") == said(project, decode(model, prompt, 12, **shared)).rstrip(
        "\n"
    )
    for arguments, threshold in ((["0.3"], 0.3), (["0.9"], 0.9)):
        expected = said(project, decode(model, prompt, 12, project.policy(threshold), **shared))
        assert run(capsys, "--threshold", *arguments).rstrip("\n") == expected.rstrip("\n")
    for exit in (["0"], []):
        assert run(capsys, "--speculate", *exit).rstrip("\n") == run(capsys, "--full").rstrip("\n")


def test_more_thresholds_than_exits_are_refused(project, capsys):
    assert main(["generate", "--prompt", PROMPT, "--threshold", "0.3", "0.4"]) == 2
    assert "has 2 values; give one for each of the 1 exits" in capsys.readouterr().err


def test_every_token_has_the_colour_of_its_exit(project):
    tokens, out = project.encode("of the Union"), io.StringIO()
    steps = (Step([0], [token], [number % 2]) for number, token in enumerate(tokens))
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False)
    stream(console, PROMPT, steps, partial(project.decode, project.encode(PROMPT)[-1]), 1, True)
    shown = out.getvalue().split("\n", 1)[1]  # the first line is the key
    prompt, shown = re.fullmatch(r"\x1b\[1m(.*?)\x1b\[0m(.*)", shown, re.DOTALL).groups()
    green = re.findall("\x1b\\[32m(.*?)\x1b\\[0m", shown)
    texts = [project.decode(project.encode(PROMPT)[-1], [token]) for token in tokens]
    assert prompt == PROMPT
    assert green == texts[::2] and re.sub("\x1b.*?m", "", shown).rstrip("\n") == "".join(texts)


def cells(table, column):
    return list(table.columns[column].cells)


def test_layers_per_token_are_those_that_ran(project):
    model, prompt = project.model, [project.encode(PROMPT)]
    full = lambda work: decode(model, prompt, 12, work=work)  # noqa: E731
    forced = lambda work: decode(model, prompt, 12, FixedExit(0), route_prompt=True, work=work)  # noqa: E731
    table = compare(model, len(prompt[0]), forced, full)
    early, plain = map(float, cells(table, 3))  # the ratio is theirs
    assert float(table.caption.split("x")[0]) == pytest.approx(early / plain, rel=0.02)
    assert cells(table, 1) == ["12", "12"] and cells(table, 2) == ["1.0 of 3", "3.0 of 3"]


def test_drafts_that_were_wrong_are_layers_run(project):
    model, prompt, works = project.model, [project.encode(PROMPT)], []

    def drafted(work):
        works.append(work)
        speculation = Speculation(0, 4, confidence=0.0)
        speculation.TRIAL = 10**9  # it goes on whether it pays or not
        yield from speculate(model, prompt, 12, speculation, work=work)

    table = compare(
        model, len(prompt[0]), drafted, lambda work: decode(model, prompt, 12, work=work), rounds=1
    )
    layers = float(cells(table, 2)[0].split()[0])
    assert (
        layers == pytest.approx(sum(works[-1].layer_tokens) / (len(prompt[0]) + 11), abs=0.05) and layers > 3
    )


def test_options_of_sampling_and_of_the_prompt_are_those_of_decoding(project, capsys):
    model, prompt = project.model, [project.encode(PROMPT)]
    policy, shared = project.policy(0.3), {"stop": {project.end_id}}
    sampled = decode(model, prompt, 12, policy, sampling=Sampling(0.7, 0.8, 5), **shared)
    assert run(capsys, "--threshold", "0.3", "--temperature", "0.7", "--top-p", "0.8", "--seed", "5").strip(
        "\n"
    ) == said(project, sampled).strip("\n")
    routed = decode(model, prompt, 12, policy, route_prompt=True, **shared)
    assert run(capsys, "--threshold", "0.3", "--route-prompt").strip("\n") == said(project, routed).strip(
        "\n"
    )
    for spelling in ("--colour", "--color"):
        assert main(["generate", "--prompt", PROMPT, "--tokens", "2", spelling]) == 0
        assert capsys.readouterr().out.startswith(KEY + PROMPT)


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--top-p", "0.5"], "--top-p has no effect: without --temperature"),
        (["--seed", "0"], "--seed has no effect: without --temperature"),
        (["--full", "--threshold", "0.5"], "--threshold has no effect: --full"),
        (["--full", "--route-prompt"], "--route-prompt has no effect: --full"),
        (["--speculate", "0", "--full"], "--full has no effect: --speculate"),
        (["--draft", "3"], "--draft has no effect: without --speculate"),
        (["--speculate", "0", "--temperature", "1"], "--temperature has no effect: --speculate"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(project, capsys, options, reason):
    assert main(["generate", "--prompt", PROMPT, *options]) == 2
    assert reason in capsys.readouterr().err


def test_figures_follow_the_text_on_request(project, capsys):
    for options in (["--threshold", "0.3"], ["--full"]):
        assert "the speed of full depth by the clock" in run(capsys, *options, "--stats").replace("\n", " ")
    out = run(capsys, "--speculate", "0", "--stats")
    assert re.search(r"[\d.]+x the speed of full depth by the clock", out.replace("\n", " "))
    assert re.search(
        r"\d+ of \d+ drafted tokens were right; drafting (paid and stayed on|did not pay and was given up)"
        "|nothing was drafted: no guess was likely enough",
        out,
    )


def test_a_prompt_in_another_encoding_is_refused(project, capsys):
    """Bytes of a command line that are not UTF-8 reach a program as lone surrogates."""
    assert main(["generate", "--prompt", os.fsdecode(b"caf\xe9")]) == 2
    assert r"the prompt is not valid UTF-8 text: '\udce9' is no character" in capsys.readouterr().err


def test_it_is_said_what_cannot_be_done(project, capsys):
    for options, message in (
        (["--tokens", "64"], "do not fit the model's window of 32"),
        (["--temperature", "0"], "temperature = 0.0"),
        (["--speculate", "1"], "exit 1 is not one of 0 to 0"),
        (["--threshold", "1.5"], "threshold = 1.5"),
    ):
        assert main(["generate", "--prompt", PROMPT, *options]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.out == ""


def test_where_nothing_was_drafted_it_says_so(project, capsys):
    assert main(["generate", "--prompt", PROMPT, "--tokens", "1", "--speculate", "0", "--stats"]) == 0
    out = capsys.readouterr().out
    assert "nothing was drafted: too few tokens" in out and "drafted tokens were right" not in out


def test_control_characters_never_reach_the_terminal(project):
    """Text that was learnt from the log of a terminal could move its cursor, or rename its window."""
    tokens, out = project.encode("a\x1b]0;title\x07\x00b\r\x7f\u202ec"), io.StringIO()
    console = Console(file=out, highlight=False, width=80)
    steps = (Step([0], [token], [0]) for token in tokens)
    stream(console, "d\x1b", steps, partial(project.decode, project.encode("d")[0]), 1, False)
    assert out.getvalue() == "d␛a␛]0;title␇␀b␍␡[U+202E]c\n"
