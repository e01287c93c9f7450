"""How readers call the groups, lists and differences of metrics.json."""

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
