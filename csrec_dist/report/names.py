"""How readers see metrics.json: names of groups and lists, and numbers."""

from collections.abc import Mapping
from typing import Any

from csrec_dist.report.document import NONE

GROUP_TITLES = {
    "popular_20%": "most popular 20% of the items",
    "rest_80%": "other 80%",
    "clean": "no",
    "leaked": "yes",
    "new": "no",
    "repeated": "yes",
}
SHORT = {
    "popular_20%": "popular\n20 %",
    "rest_80%": "other\n80 %",
    "clean": "not in\ntraining",
    "leaked": "leaked",
    "new": "new to\nthe user",
    "repeated": "repeated",
}
DECILE_TITLES = {"1": "1 (most popular items)", "10": "10 (least popular items)"}


def group_title(name: str, group: str, is_short: bool = False) -> str:
    """A group of a grouping; short, and perhaps in two lines, for a chart."""
    if is_short:
        return SHORT.get(group) or group.replace("at_least_", "rated\n≥ ").replace("below_", "rated\n< ")
    if name == "popularity_decile":
        return DECILE_TITLES.get(group, group)
    return GROUP_TITLES.get(group, group.replace("_", " "))


def list_title(metric: str) -> str:
    """Coverage@10, Gini index@10, Average popularity@10."""
    return metric.replace("_", " ").capitalize().replace("Gini", "Gini index")


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four decimals, or a dash if it is missing."""
    value = metrics.get(name)
    return NONE if value is None else f"{value:.4f}"


def number(value: Any) -> str:
    """A statistic: separated thousands, six significant digits, a dash for none."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
