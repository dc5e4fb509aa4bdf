"""Templates state no figure by themselves: what is refused, and what is let through."""

from __future__ import annotations

import pytest
from jinja2 import Environment

from docs.pages import TEMPLATES
from docs.prose import faults
from tests.conftest import REPOSITORY


def refused(source):
    return [(fault.text, fault.why) for fault in faults(source, Environment())]


FIGURES = [
    ("perplexity goes to 25.17 there", "a decimal"),
    ("cost -0.05 nats", "a decimal"),
    ("an interval [0.21, {{ json('a', 'b') }}]", "a decimal"),
    ("| random | 24.99 |", "a decimal"),
    ("**1.28x**", "a decimal"),
    ("above 10^8", "a power"),
    ("on 237,952 tokens", "a whole number from 100 on"),
    ("(1790 to today)", "a whole number from 100 on"),
    ("2 of 357 verdicts", "a whole number from 100 on"),
    ("saves 13 %", "a number with a unit"),
    ("saves 13% of it", "a number with a unit"),
    ("saves 13 per cent", "a number with a unit"),
    ("took 35 s there", "a number with a unit"),
    ("took 21 minutes", "a number with a unit"),
    ("in 2 hours", "a number with a unit"),
    ("takes 3 GB", "a number with a unit"),
    ("at 16 tokens/s", "a number with a unit"),
    ("15 nats worse", "a number with a unit"),
    ("is 2x as fast", "a number with a unit"),
    ("3 times the speed", "a number with a unit"),
    ("over 32k words", "a number with a unit"),
    ("it read 2 M tokens", "a number with a unit"),
    ("a perplexity of 22 at full depth", "a perplexity"),
    ("perplexities from 47 on", "a perplexity"),
    ("ten to fifteen minutes", "a figure in words"),
    ("recovers three times what it did", "a figure in words"),
    ("within half an hour", "a figure in words"),
    ("twice as fast", "a figure in words"),
    ("undervalued by a fifth", "a figure in words"),
    ("Two thirds of them", "a figure in words"),
    ("# About 5 % in a heading", "a number with a unit"),
]


@pytest.mark.parametrize(("text", "why"), FIGURES)
def test_a_figure_in_prose_is_refused(text, why):
    assert [reason for _, reason in refused(text)] == [why]


@pytest.mark.parametrize(
    "text",
    [
        "two exits, layer 20 of 30, 14 addresses",
        "SmolLM2-135M, GPT-2, WikiText-2, AVX-512, bf16, fp32, x86_64, SHA-256",
        "torch 2.13.0 on Python >= 3.11",
        "CALM (arXiv 2207.07061), Learn then Test (arXiv\n2110.01052)",
        "`threshold: 0.8` and ``a 24.99``, and `a span\nover 0.5 lines`",
        "text\n\n```\nmake repro  # 24.99 in 300 s\n```\n\ntext",
        "text\n\n    indented code 24.99\n\ntext",
        "<!-- 24.99 -->",
        "[a link](docs/page-2.5.md#at-300) and https://example.org/v0.5/300",
        "{{ json('metrics/routing.json', 'controls.random.ppl', '.2f') }} % of {{ param('a.b') }} s",
        "1. first\n2. second",
        "a mean over three random seeds; half of the tokens leave",
        "most of them, a third-party cache",
    ],
)
def test_what_is_no_figure_passes(text):
    assert refused(text) == []


def test_a_fence_that_is_closed_hides_nothing_behind_it():
    assert refused("```\n24.99\n```\nthen 25.17\n```\n26.94\n```\n") == [("25.17", "a decimal")]


def test_a_fault_names_its_line():
    source = "{# a\ncomment #}\n{{ json('a',\n 'b') }}\n\n`code\nmore` then 0.5"
    assert [fault.line for fault in faults(source, Environment())] == [7]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("{{ 3 }}", "a number in an expression"),
        ("{{ 24.99 | form('.2f') }}", "a number in an expression"),
        ("{{ json('a', 'b') * 1.2 }}", "a number in an expression"),
        ("{% set best = 0.84 %}", "a number in an expression"),
        ("{% for share in [0.1, 0.3] %}{% endfor %}", "a number in an expression"),
        ("{{ 'saves 13 %' }}", "a number with a unit"),
        ("{% set words = '24.99' %}", "a decimal"),
        ("{{ line('saves 13 %') }}", "a number with a unit"),
        ("{{ constant('24.99', ' ') }}", "a constant without a reason, its second argument"),
        ("{{ constant('24.99') }}", "a constant without a reason, its second argument"),
        ("{{ given(true, 'saves 13 %') }}", "a condition that looks nothing up"),
        ("{{ given(1 > 0, 'saves 13 %') }}", "a condition that looks nothing up"),
    ],
)
def test_expressions_smuggle_no_figure_in(expression, why):
    assert why in [reason for _, reason in refused(expression)]


@pytest.mark.parametrize(
    "expression",
    [
        "{{ row('a.csv', 'ppl', '.2f', signal='learned', fraction=0.5) }}",
        "{{ (1 - param('exits.risk.delta')) | form('.2f') }}",
        "{{ study('exit_signals', 'sotu', 'joint:label gain.attained.0.5', '.2f') }}",
        "{{ constant('95 %', 'the level of all intervals') }}",
        "{{ constant(0.7, why='a threshold in an example') }}",
        "{{ given(study('a', 'sotu', 'b').low > 0.8, 'more than four fifths') }}",
        "{% for model in ['joint', 'block-wise'] %}{{ model }}{% endfor %}",
    ],
)
def test_expressions_that_look_figures_up_pass(expression):
    assert refused(expression) == []


def test_the_templates_of_the_project_state_no_figure():
    templates = sorted((REPOSITORY / TEMPLATES).glob("*.j2"))
    assert len(templates) >= 3
    for template in templates:
        assert refused(template.read_text(encoding="utf-8")) == [], template
