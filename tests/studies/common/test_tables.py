"""Tables over random seeds are means of their last column."""

from __future__ import annotations

from studies.common.tables import mean_tables, of_protocol


def table(*losses: float) -> dict[str, list[dict]]:
    return {"curve": [{"score": name, "loss": loss} for name, loss in zip("ab", losses)]}


def test_the_last_column_is_averaged_and_the_others_stay():
    assert mean_tables([table(1.0, 2.0), table(3.0, 5.0)]) == table(2.0, 3.5)


def test_a_row_that_one_random_seed_has_not_is_left_out():
    assert mean_tables([table(1.0, 2.0), table(3.0)]) == table(2.0)
    assert mean_tables([table(), table(3.0)]) == table()


def test_tables_are_named_by_their_protocol():
    assert of_protocol(table(1.0), "published") == {"curve.published": table(1.0)["curve"]}
