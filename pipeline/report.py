"""Stage report: results and routed tokens -> metrics/headline.json, report/index.html, report/figures."""

from __future__ import annotations

from pathlib import Path

from offramp.artifacts.artifact import open_artifact
from offramp.params import Declared
from offramp.report.page import build_report
from offramp.report.settings import cautions, flatten
from offramp.results.headline import Headline
from offramp.results.routing import Routing, Timing
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    # The page names the parameters that made the artifacts, as recorded in them, not params.yaml.
    made = {"data": "data", "models/lm": "lm", "models/exits": "exits", "routed": "routed"}
    settings = params.to_json()
    for path, kind in made.items():
        settings |= open_artifact(root / path, kind, verify=False).params
    Headline.of(Routing.read(root), Timing.read(root)).write(root)
    print(f"report: {build_report(root, settings)}")
    for caution in cautions(flatten(settings)):
        print(f"caution: {caution}")


main = stage("report", run)

if __name__ == "__main__":
    main()
