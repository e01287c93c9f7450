"""RePlay: SASRec with its full softmax on streamed Parquet; a batch is windows, all of whose positions are trained."""

import logging
import warnings
from importlib.metadata import version
from typing import Any

import lightning
import pandas as pd
import torch
from driver import Measured, start
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

settings = start()
measured = Measured(settings)

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Clock(lightning.Callback):
    """Times the epochs and validations."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin."""
        measured.begin("epoch")

    def on_train_epoch_end(self, *_: Any) -> None:
        """End; validation comes before it, and its time is taken off below."""
        measured.end("epoch")

    def on_validation_start(self, *_: Any) -> None:
        """Begin."""
        measured.begin("evaluation")

    def on_validation_end(self, *_: Any) -> None:
        """End."""
        measured.end("evaluation")


lightning.seed_everything(settings["seed"], verbose=False)
sizes, length = settings["model"], settings["window"] - 1
with measured.timed("preparing"):
    windows = pd.read_csv("windows.csv").sort_values(["user", "time"])
    codes, items = pd.factorize(windows["item"])
    windows = windows.assign(item_id=codes).groupby("user")["item_id"].agg(list).reset_index()
    windows.assign(item_id=windows["item_id"].str[:-2]).to_parquet("train.parquet", index=False)
    of_validation = {"item_id": windows["item_id"].str[:-2], "ground_truth": windows["item_id"].str[-2:-1]}
    windows.assign(**of_validation).to_parquet("valid.parquet", index=False)
    source = [TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")]
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                FeatureType.CATEGORICAL,
                is_seq=True,
                cardinality=len(items),
                padding_value=len(items),
                embedding_dim=sizes["width"],
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=source,
            )
        ]
    )
    padded = {"shape": length, "padding": len(items)}
    data = ParquetModule(
        batch_size={"train": settings["batch_windows"], "validate": 256},
        metadata={
            "train": {"user": {}, "item_id": padded | {"shape": length + 1}},
            "validate": {"user": {}, "item_id": padded, "ground_truth": {"shape": 1, "padding": -1}},
        },
        transforms=make_default_sasrec_transforms(schema),
        train_path="train.parquet",
        validate_path="valid.parquet",
    )
    model = SasRec.from_params(
        schema,
        embedding_dim=sizes["width"],
        num_heads=sizes["num_heads"],
        num_blocks=sizes["num_layers"],
        max_sequence_length=length,
        dropout=sizes["dropout"],
        hidden_dim=sizes["inner_width"],
    )
metrics = ComputeMetricsCallback(metrics=["recall", "ndcg", "mrr"], ks=[5, 10, 20], verbose=False)
quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = lightning.Trainer(
    max_epochs=settings["epochs"],
    accelerator="gpu" if settings["device"] == "cuda" else "cpu",
    devices=1,
    callbacks=[metrics, Clock()],
    num_sanity_val_steps=0,
    **quiet,
)
optimizer = OptimizerFactory(learning_rate=settings["learning_rate"], betas=(0.9, 0.999))
trainer.fit(LightningModule(model, optimizer), data)
pairs = zip(measured.seconds["epoch"], measured.seconds["evaluation"], strict=True)
measured.seconds["epoch"] = [(a - c, b - d) for (a, b), (c, d) in pairs]
measured.ndcg = [values["ndcg@10"] for _, values in sorted(metrics.get_metrics().items())]
examples = int((windows["item_id"].str.len() - 3).sum())
measured.report(examples, {"replay-rec": version("replay-rec"), "torch": torch.__version__})
