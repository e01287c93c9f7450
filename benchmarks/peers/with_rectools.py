"""RecTools: SASRec with its full softmax; a batch is windows, all of whose positions are trained.

Its catalog is what occurs in training. Its feed-forward layers are as wide as the model, and have no setting for that.
"""

import logging
import warnings
from typing import Any

import pandas as pd
import rectools
import torch
from driver import Measured, start
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, Recall, calc_metrics
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

settings = start()
measured = Measured(settings)

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
CUT_OFFS = (5, 10, 20)
METRICS = {f"{kind.__name__}@{k}": kind(k) for k in CUT_OFFS for kind in (Recall, MRR)}
METRICS |= {f"NDCG@{k}": NDCG(k, divide_by_achievable=True) for k in CUT_OFFS}


class Clock(Callback):
    """Times the epochs."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin."""
        measured.begin("epoch")

    def on_train_epoch_end(self, *_: Any) -> None:
        """End."""
        measured.end("epoch")


def trainer() -> Trainer:
    """A plain trainer: no log, no checkpoints, no bar."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    accelerator = "gpu" if settings["device"] == "cuda" else "cpu"
    return Trainer(max_epochs=1, accelerator=accelerator, devices=1, callbacks=[Clock()], **quiet)


seed_everything(settings["seed"], verbose=False)
sizes = settings["model"]
with measured.timed("preparing"):
    table = pd.read_csv("windows.csv").rename(
        columns={"user": Columns.User, "item": Columns.Item, "time": Columns.Datetime}
    )
    table[Columns.Datetime] = pd.to_datetime(table[Columns.Datetime], unit="s")
    table[Columns.Weight] = 1
    backward = table.groupby(Columns.User).cumcount(ascending=False)
    training, targets = table[backward >= 2], table[backward == 1]
    dataset = Dataset.construct(training)
    model = SASRecModel(
        n_blocks=sizes["num_layers"],
        n_heads=sizes["num_heads"],
        n_factors=sizes["width"],
        dropout_rate=sizes["dropout"],
        session_max_len=settings["window"] - 1,
        loss="softmax",
        lr=settings["learning_rate"],
        batch_size=settings["batch_windows"],
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
        recommend_torch_device=settings["device"],
    )
for _ in range(settings["epochs"]):
    model.fit_partial(dataset, min_epochs=1, max_epochs=1)
    with measured.timed("evaluation"):
        lists = model.recommend(targets[Columns.User].unique(), dataset, k=max(CUT_OFFS), filter_viewed=False)
        measured.ndcg.append(float(calc_metrics(METRICS, lists, targets, training)["NDCG@10"]))
examples = len(training) - training[Columns.User].nunique()
measured.report(examples, {"rectools": rectools.__version__, "torch": torch.__version__})
