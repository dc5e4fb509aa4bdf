"""The table that every run ends with."""

from __future__ import annotations

import pytest

from offramp.report.headline import print_headline

pytestmark = pytest.mark.slow  # DVC makes the project


def test_the_table_shows_routing_beside_its_controls(project, capsys):
    print_headline(project)
    printed = capsys.readouterr().out
    for words in (
        "full depth",
        "all at exit 0",
        "random exits",
        "gain oracle",
        "20.75 [19.50, 22.50]",
        "12.0% [10%, 14%]",
    ):
        assert words in printed
    assert "30% of the tokens leave early: 15% fewer FLOPs than full depth for +3.8% perplexity" in printed


def test_nothing_is_printed_before_evaluate_has_run(tmp_path, capsys):
    print_headline(tmp_path)
    assert capsys.readouterr().out == ""
