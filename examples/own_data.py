"""Own data in Python: from a table to a trained student, its metrics, its report and its lists.

    python examples/own_data.py                                   # a shop's log, made up here; half a minute
    python examples/own_data.py sales.csv --user customer --item sku

The same steps, with what each of them shows, are in examples/own_data.ipynb.
"""

import argparse

import numpy as np
import pandas as pd

from csrec_dist import CSRec, Dataset


def made_up_sales(num_customers: int = 300, num_items: int = 120, seed: int = 0) -> pd.DataFrame:
    """A row for each purchase: what goes with the last one in 7 of 10 cases, else anything."""
    random = np.random.default_rng(seed)
    rows = []
    for customer in range(num_customers):
        sku = int(random.integers(num_items))
        for day in np.sort(random.choice(365, size=int(random.integers(8, 30)), replace=False)):
            rows.append((f"c{customer}", f"sku{sku}", pd.Timestamp("2026-01-01") + pd.Timedelta(days=int(day))))
            sku = (sku * 7 + 3) % num_items if random.random() < 0.7 else int(random.integers(num_items))
    return pd.DataFrame(rows, columns=["customer", "sku", "event_time"])


def main() -> None:
    """Prepare, fit, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", help="a file with a row for each interaction; a made-up one by default")
    parser.add_argument("--user", help="column of the user (guessed from the usual names)")
    parser.add_argument("--item", help="column of the item (guessed)")
    parser.add_argument("--name", default="shop", help="of the folders data/NAME and runs/NAME (shop)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (10)")
    options = parser.parse_args()
    if options.log:
        log, columns = options.log, {"user": options.user, "item": options.item}
    else:
        log, columns = made_up_sales(), {"user": "customer", "item": "sku"}
    data = Dataset.prepare(log, f"data/{options.name}", **columns, window=20, num_shards=8)
    run = CSRec(
        options.name,
        model={"name": "sasrec", "width": 32},
        method="model_level",
        baseline=True,
        teachers={"num": 2},
        training={"max_epochs": options.epochs, "batch_size": 32, "learning_rate": 0.005},
    )
    run.fit(data)
    for model in ("base", "student"):
        print(f"{model}: NDCG@10 {run.metrics['models'][model]['test']['ndcg@10']:.4f}")
    print("report:", run.report())
    recommender = run.recommender
    known = recommender.items.values[:2].to_pylist()
    print(recommender.recommend(histories={"a new visitor": known}, top_n=5, exclude_seen=True))
    print(recommender.similar_items(known[:1], top_n=3))


if __name__ == "__main__":
    main()
