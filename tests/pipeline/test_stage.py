"""What a stage says when it begins."""

from pathlib import Path

from offramp.params import read_stages
from pipeline._stage import place

ROOT = Path(__file__).resolve().parents[2]


def test_a_stage_says_what_it_does_and_which_comes_next():
    stages = read_stages(ROOT)
    assert place("pretrain", stages) == "stage 3 of 10: Train the block-wise language model (then collect)"
    assert place(list(stages)[-1], stages).endswith("(the last)")


def test_stages_stand_in_dvc_yaml_in_the_order_in_which_they_can_run():
    """A stage reads what those before it write, so that "then" is true."""
    written: set[str] = set()
    for name, stage in read_stages(ROOT).items():
        reads = {path for path in stage.get("deps", []) if not path.startswith("src")}
        later = {
            str(next(iter(out)) if isinstance(out, dict) else out)
            for other, rest in read_stages(ROOT).items()
            if other not in written and other != name
            for kind in ("outs", "plots", "metrics")
            for out in rest.get(kind, [])
        }
        assert not reads & later, name
        written.add(name)
