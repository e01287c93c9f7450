"""Requests a second and latency of `csrec-dist serve`, asked by an HTTP client: `python benchmarks/serve.py RUN`.

The service is a process of its own, as the command starts it; the client is another one, with a kept connection for
each of its threads, so both share the machine's cores. Histories are those of the run's users, by the raw ids of the
log, and each request asks for the ten best items without what was seen. Some answers are compared with the model's own
lists. The limit is the model's work for the same histories in this process, without HTTP and JSON: encoding and ranking
as many histories at once as a request has. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

from csrec_dist import Recommender
from csrec_dist.environment import processor
from csrec_dist.recommend.ranked import rank

ROOT = Path(__file__).resolve().parents[1]
TOP_N = 10
NUM_USERS = 512


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a process that serves the run."""
    command = [sys.executable, "-u", "-m", "csrec_dist", "serve", str(run), "--port", "0", "--max-lists", "1024"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield next(word for word in line.split() if word.startswith("http")).rstrip(";")
        finally:
            process.terminate()


def bodies(histories: list[list[Any]], num_lists: int) -> list[dict[str, Any]]:
    """Requests of so many histories each."""
    starts = range(0, len(histories) - num_lists + 1, num_lists)
    return [
        {"histories": histories[start : start + num_lists], "top_n": TOP_N, "exclude_seen": True} for start in starts
    ]


def asked(address: str, requests: list[dict[str, Any]], num_clients: int, seconds: float) -> dict[str, float]:
    """What `num_clients` see who each send a request as soon as the one before is answered."""
    latencies: list[list[float]] = [[] for _ in range(num_clients)]
    begin = time.perf_counter() + 1
    end = begin + seconds

    def ask(number: int) -> None:
        with httpx2.Client(base_url=address, timeout=60) as client:
            for body in islice(cycle(requests), number, None):
                sent = time.perf_counter()
                if sent > end:
                    return
                client.post("/recommend", json=body).raise_for_status()
                if sent >= begin:  # the first second warms up
                    latencies[number].append(time.perf_counter() - sent)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = np.concatenate(latencies) * 1000
    p50, p99 = np.percentile(taken, [50, 99])
    return {
        "requests": len(taken),
        "requests_per_second": round(len(taken) / seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


def alone(recommender: Recommender, numbers: list[list[int]], num_lists: int, seconds: float) -> float:
    """Requests a second whose histories the model reads and ranks for in this process."""
    groups = [numbers[start : start + num_lists] for start in range(0, len(numbers) - num_lists + 1, num_lists)]
    begin = time.perf_counter()
    for done, group in enumerate(cycle(groups), 1):
        list(rank(recommender.model, list(enumerate(group)), TOP_N, exclude_seen=True))
        if (taken := time.perf_counter() - begin) > seconds:
            return round(done / taken, 1)
    raise AssertionError("there are requests")


def check(address: str, recommender: Recommender, histories: list[list[Any]]) -> None:
    """The service's lists are the model's."""
    (body,) = bodies(histories[:32], 32)
    lists = httpx2.post(f"{address}/recommend", json=body, timeout=60).json()["lists"]
    wanted = recommender.recommend(histories=histories[:32], top_n=TOP_N, exclude_seen=True)
    assert [item for each in lists for item in each["items"]] == wanted["item"].tolist()


def main() -> None:
    """Measure, print a line for each setting, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--seconds", type=float, default=10, help="of each setting (default 10)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once (default 1 4 16)")
    parser.add_argument("--lists", type=int, nargs="+", default=[1, 32], help="of a request (default 1 32)")
    options = parser.parse_args()
    recommender = Recommender.from_pretrained(options.run)
    assert recommender.dataset is not None, "a run has a dataset"
    users = np.unique(np.linspace(1, recommender.dataset.num_users, NUM_USERS).astype(np.int64))
    numbers = [items.tolist() for _, items in recommender.dataset.sequences(users)]
    histories = [recommender.items.of(items).to_pylist() for items in numbers]
    results = []
    for num_lists in options.lists:
        limit = alone(recommender, numbers, num_lists, options.seconds / 2)
        with served(options.run) as address:
            check(address, recommender, histories)
            for num_clients in options.clients:
                found = asked(address, bodies(histories, num_lists), num_clients, options.seconds)
                setting = {"lists": num_lists, "clients": num_clients}
                results.append({**setting, **found, "model_alone_per_second": limit})
                print(results[-1], flush=True)
    machine = f"{os.cpu_count()} CPUs, {processor()}, load {os.getloadavg()[0]:.1f}"
    about = {"benchmark": "serve", "date": str(date.today()), "machine": machine, "torch": torch.__version__}
    model = {"model": recommender.model.config.name, "items": recommender.model.num_items, "top_n": TOP_N}
    mean_length = round(float(np.mean([len(items) for items in numbers])), 1)
    print(json.dumps({**about, **model, "mean_items_of_a_history": mean_length, "results": results}))


if __name__ == "__main__":
    main()
