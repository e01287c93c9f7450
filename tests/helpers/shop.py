"""A small shop's log with text ids, and a run on it, as the examples of the documentation have them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from csrec_dist import CSRec, Dataset

DATASET: dict[str, Any] = {"user": "customer", "item": "sku", "window": 6, "min_interactions": 2, "num_shards": 4}
MODEL = {"name": "gru4rec", "width": 8, "hidden": 8, "dropout": 0}
TRAINING = {"max_epochs": 2, "batch_size": 8, "learning_rate": 0.01}


def shop_log(num_customers: int = 20, num_items: int = 7) -> pd.DataFrame:
    """Customers who mostly take the next sku, in a shuffled order of rows."""
    random = np.random.default_rng(3)
    rows = []
    for customer in range(num_customers):
        sku = int(random.integers(num_items))
        for day in range(9):
            rows.append((f"c{customer}", f"sku{sku}", f"2026-03-{day + 1:02d} 10:00"))
            sku = (sku + 1) % num_items if random.random() < 0.8 else int(random.integers(num_items))
    frame = pd.DataFrame(rows, columns=["customer", "sku", "event_time"])
    return frame.sample(frac=1, random_state=1, ignore_index=True)


def fit_shop(folder: Path, **changes: Any) -> tuple[Dataset, CSRec]:
    """The shop's dataset in `folder`/data/shop, and a fitted run in `folder`/runs/shop; their paths are relative."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        data = Dataset.prepare(shop_log(), "data/shop", **DATASET)
        run = CSRec("shop", MODEL, training=TRAINING, **changes).fit(data)
    finally:
        os.chdir(before)
    return data, run
