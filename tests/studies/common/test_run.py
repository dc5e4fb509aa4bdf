"""The command line that all studies share."""

from __future__ import annotations

import pytest

from offramp.errors import UserError
from studies.__main__ import main
from studies.common.study import chosen_arms
from tests.fixtures.character_texts import few_words
from tests.fixtures.study_results import home_of_studies


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--train", "a"], "give --corpus, or --train, --calibration and --test together"),
        ([], "give --corpus, or --train"),
        (["--corpus", "sotu", "--train", "a"], "give --corpus, or --train"),
        (
            ["--corpus", "pangram", "--tiny", "--arm", "lpt"],
            "'lpt' is not an arm of adding_a_layer; choose from",
        ),
        (
            ["--corpus", "sotu", "--protocol", "published"],
            "has nothing to run on the text sotu under protocol published; leave out --protocol",
        ),
        (
            ["--corpus", "pangram", "--tiny", "--protocol", "corrected", "--arm", "full append, rates"],
            "nothing to run on the text pangram under protocol corrected, arms 'full append, rates'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_can(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["adding_a_layer", *given], home_of_studies(tmp_path))


def test_arms_are_in_the_order_of_the_study_and_all_of_them_where_none_is_named():
    assert chosen_arms("x", ["b", "a"], ["a", "b"]) == chosen_arms("x", [], ["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="'lpt' is not an arm of x; choose from 'a', 'b'"):
        chosen_arms("x", ["lpt"], ["a", "b"])


@pytest.mark.slow
def test_one_arm_of_one_random_seed_on_text_of_ones_own_is_printed(tmp_path, capsys):
    home, options = home_of_studies(tmp_path), []
    for place, (split, count) in enumerate({"train": 1_025, "calibration": 192, "test": 192}.items()):
        (tmp_path / split).write_text(few_words(count, place))
        options += [f"--{split}", str(tmp_path / split)]
    main(["adding_a_layer", *options, "--tiny", "--arm", "scratch", "--seed", "3"], home)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert {line[1] for line in lines} >= {"own.ppl.scratch", "own.parameters.scratch"}
    assert {line[0] for line in lines} == {"corrected"} and not any("[" in line[2] for line in lines)
    assert not (home / "metrics").exists()
