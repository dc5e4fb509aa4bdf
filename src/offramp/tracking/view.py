"""How the runs of a project look in MLflow's UI when they are opened by the address that Offramp prints.

MLflow keeps shared views as tags of an experiment, ``mlflow.sharedViewState.<sha256>``, and takes one up
where the address names it. The state has the UI's own names: they mean what MLflow 3.17 does with them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from offramp.tracking.address import without_user
from offramp.vocabulary import SIGNALS

PARAMS = ("threshold", "pretrain.method")
METRICS = ("ppl", "ppl_increase", "shallow_ratio", "flop_saving", "wall_saving", "attained")
LAST = ("metrics.`agreement`", "params.`exits.confidence`")
"""Columns of the table, in their order."""
NAME_WIDTH, PARAM_WIDTHS, WIDTH = 144, (62, 55), 74
"""Pixels of the run's name, of the first parameters and of another column: three digits of a number.

All but ``LAST`` are seen in a window of 1440, of which the navigation and MLflow's assistant leave 745.
"""
ALWAYS = {"runDateAndNestInfo": 40, "duration": 80}
"""Columns that MLflow's table cannot leave out, with pixels: status and time of creation, which stays left
of all that are moved, and how long a run took."""
SECTION = "headline"


def _metric(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}


def _chart(uuid: str, kind: str, title: str, **more: Any) -> dict[str, Any]:
    common = {"metricSectionId": SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"uuid": uuid, "type": kind, "displayName": title, **common, **more}


def _line(uuid: str, title: str, keys: list[str]) -> dict[str, Any]:
    axes = {
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
    return _chart(uuid, "LINE", title, metricKey=keys[0], selectedMetricKeys=keys, **axes)


NAME = "attributes.`Run Name`"
CHOSEN = [*(f"params.`{name}`" for name in PARAMS), *(f"metrics.`{name}`" for name in METRICS), *LAST]
VIEW = {
    "selectedColumns": CHOSEN,
    # MLflow sorts columns by the alphabet, unless a view says otherwise
    "columnOrder": [NAME, *CHOSEN, *ALWAYS],
    "columnWidths": {
        NAME: NAME_WIDTH,
        **dict.fromkeys(CHOSEN, WIDTH),
        **dict(zip(CHOSEN, PARAM_WIDTHS)),
        **ALWAYS,
    },
    "compareRunCharts": [
        _chart(
            "ppl-by-saving",
            "SCATTER",
            "Perplexity by share of FLOPs saved",
            xaxis=_metric("flop_saving"),
            yaxis=_metric("ppl"),
        ),
        _chart(
            "rise-by-time",
            "SCATTER",
            "Rise in perplexity by share of time saved",
            xaxis=_metric("wall_saving"),
            yaxis=_metric("ppl_increase"),
        ),
        _line(
            "signals",
            "Perplexity by percent of tokens leaving, every signal",
            [f"curve/ppl/{name}" for name in (*SIGNALS, "random", "divergence_oracle")],
        ),
    ],
    "compareRunSections": [
        {
            "uuid": SECTION,
            "name": "Headline",
            "display": True,
            "isReordered": True,
            "deleted": False,
            "isGenerated": False,
        }
    ],
    "isAccordionReordered": True,  # else sections are sorted by the alphabet
    "runsHiddenMode": "SHOW_ALL",
}
STATE = json.dumps(VIEW, sort_keys=True)
KEY = hashlib.sha256(STATE.encode()).hexdigest()
TAG = f"mlflow.sharedViewState.{KEY}"
LOCAL = "http://127.0.0.1:5000"


def page(experiment_id: str, shared: bool = True, charts: bool = False) -> str:
    """The part of an address that shows an experiment's runs; ``shared``: in the view of this module.

    ``charts`` for its charts, else its table.
    """
    view = f"&viewStateShareKey={KEY}" if shared else ""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}{mode}"


def report_page(experiment_id: str, run_id: str) -> str:
    """The part of an address that shows a run's report."""
    place = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/report/index.html"
    return f"{place}?workflowType=machine_learning"


def address(server: str, page: str) -> str:
    """A page on a server, without the user and password that lead to it."""
    return f"{without_user(server).rstrip('/')}/{page}"
