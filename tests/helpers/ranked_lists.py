"""What a run's student recommends, by hand: every item scored with the raw ids of the log."""

from pathlib import Path

import polars as pl

from csrec_dist import models


def raw_ids(run: Path, name: str) -> dict[int, str]:
    frame = pl.read_parquet(run / "dataset" / f"{name}s.parquet")
    return dict(zip(frame[name], frame["raw"], strict=True))


def sequences(run: Path) -> dict[str, list[int]]:
    """Item numbers of all that each user ever had, oldest first, by the user's raw id, from the raw log."""
    numbers = {raw: number for number, raw in raw_ids(run, "item").items()}
    log = pl.read_csv(run.parents[1] / "log.csv").sort("user", "timestamp")
    log = log.filter(pl.col("user").is_in(list(raw_ids(run, "user").values())), pl.col("item").is_in(list(numbers)))
    found: dict[str, list[int]] = {}
    for user, item in log.select("user", "item").iter_rows():
        found.setdefault(user, []).append(numbers[item])
    return found


def ranked(run: Path, history: list[int], exclude_seen: bool) -> list[tuple[str, float]]:
    """All items with their scores, best first."""
    model = models.load(run / "student").eval()
    scores = model.score([history])[0, 1:].tolist()
    items = raw_ids(run, "item")
    seen = set(history) if exclude_seen else set()
    found = [(items[number], score) for number, score in enumerate(scores, 1) if number not in seen]
    return sorted(found, key=lambda pair: -pair[1])
