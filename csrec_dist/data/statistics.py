"""Statistics of a prepared dataset, and how much its windows leak."""

from typing import Any

import numpy as np

from csrec_dist.data.shards import Flat, covered, indices
from csrec_dist.data.windows import Spans


def describe(
    flat: Flat, splits: dict[str, Spans], windows: Spans, leaked: np.ndarray, num_items: int
) -> dict[str, Any]:
    """Statistics of the kept interactions, of the windows and of the splits; `leaked` says which test rows leak."""
    lengths = np.bincount(flat.users)[1:]
    num_users, num_interactions = len(lengths), len(flat.items)
    in_windows = covered(windows, num_interactions)
    keys = np.sort(_user_item_keys(flat.users, flat.items, num_items))
    return {
        "users": num_users,
        "items": num_items,
        "interactions": num_interactions,
        "density": num_interactions / (num_users * num_items),
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "repeats": int((keys[1:] == keys[:-1]).sum()),
        "neighbours_at_equal_time": _share_of_equal_times(flat),
        "windows": len(windows),
        "interactions_in_windows": int(windows.lengths.sum()),
        "items_in_windows": int(np.count_nonzero(np.bincount(flat.items[in_windows]))),
        **_evaluation(flat, splits, int(leaked.sum()), num_items),
        **_noise(flat, splits),
    }


def training_counts(numbers: np.ndarray, train: Spans, num: int) -> np.ndarray:
    """How many training interactions each of the users or items 1…num has, each interaction once: [num]."""
    return np.bincount(numbers[covered(train, len(numbers))], minlength=num + 1)[1:]


def target_counts(flat: Flat, train: Spans, num_items: int) -> np.ndarray:
    """How many training examples have each item as their target [num_items]; the first item of a row has none."""
    targets = indices(train.starts + 1, train.stops)
    return np.bincount(flat.training_items[targets], minlength=num_items + 1)[1:]


def leaked_rows(flat: Flat, train: Spans, rows: Spans, num_items: int) -> np.ndarray:
    """Whether each row's last item is also a training target of the same user, in any window, noise included."""
    targets = indices(train.starts + 1, train.stops)
    trained = np.sort(_user_item_keys(flat.users[targets], flat.training_items[targets], num_items))
    last = _user_item_keys(flat.users[rows.stops - 1], flat.items[rows.stops - 1], num_items)
    nearest = np.minimum(np.searchsorted(trained, last), len(trained) - 1)
    return trained[nearest] == last


def _evaluation(flat: Flat, splits: dict[str, Spans], leaked: int, num_items: int) -> dict[str, Any]:
    train, test = splits["train"], splits["test"]
    trained = training_counts(flat.training_items, train, num_items)
    unseen = {
        f"{name}_targets_never_in_training": int((trained[flat.items[splits[name].stops - 1] - 1] == 0).sum())
        for name in ("valid", "test")
    }
    return {
        "leaked_test_targets": leaked,
        "leaked_test_targets_share": leaked / len(test),
        **unseen,
        "items_in_training": int((trained > 0).sum()),
    }


def _noise(flat: Flat, splits: dict[str, Spans]) -> dict[str, Any]:
    """Counts of noise, added by `dataset.noise` or known from the log's true items; empty if neither applies."""
    counts: dict[str, Any] = {}
    if flat.num_replaced is not None:
        counts["training_interactions"] = int(covered(splits["train"], len(flat.items)).sum())
        counts["replaced_training_interactions"] = flat.num_replaced
    if flat.true_items is not None:
        for name in ("valid", "test"):
            last = splits[name].stops - 1
            known = flat.true_items[last] > 0
            counts[f"{name}_true_targets_unknown"] = int((~known).sum())
            counts[f"{name}_targets_not_true"] = int((flat.true_items[last] != flat.items[last])[known].sum())
    return counts


def _user_item_keys(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    return users.astype(np.int64) * (num_items + 1) + items


def _share_of_equal_times(flat: Flat) -> float | None:
    """Share of neighbouring interactions of a user with equal timestamps; None without timestamps."""
    same_user = flat.users[1:] == flat.users[:-1]
    if flat.times is None or not same_user.any():
        return None
    return float((flat.times[1:] == flat.times[:-1])[same_user].mean())
