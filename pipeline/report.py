"""report: metrics, plot tables and routed tokens -> report/index.html and report/figures/*.svg."""

from __future__ import annotations

from pathlib import Path

from offramp.params import Declared
from offramp.report.page import build_report
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    page = build_report(root, params.to_json())
    print(f"report: {page}")


main = stage("report", run)

if __name__ == "__main__":
    main()
