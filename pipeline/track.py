"""Stage `track`: log what the other stages left on disk to MLflow, and print the headline table.

It runs at the end of every `dvc repro` and `dvc exp run`, also when all other stages come from DVC's cache,
and never fails for want of a tracking store: the results are already on disk.
"""

from pathlib import Path

from offramp.params import Declared
from offramp.report.headline import headline_sentence, print_headline
from offramp.tracking.tracking import track
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    print_headline(root)
    track(root, headline_sentence(root), params.tracking.log_model)


main = stage("track", run)

if __name__ == "__main__":
    main()
