"""RecBole: one-hot training of a model, or of a student by the authors' form of the loss, teachers in the loop.

RecBole switches autograd's anomaly mode on for all sequential models; the setting `anomaly` says whether it stays on.
Every prefix is an example with a pass of its own.
"""

import csv
import logging
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import recbole
import torch
import torch.nn.functional as F
from driver import Measured, start
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

settings = start()
measured = Measured(settings)

MODELS = {
    "gru4rec": ("GRU4Rec", {"embedding_size": "width", "hidden_size": "hidden", "num_layers": "num_layers"}),
    "sasrec": ("SASRec", {"hidden_size": "width", "n_layers": "num_layers", "n_heads": "num_heads"}),
    "bert4rec": ("BERT4Rec", {"hidden_size": "width", "n_layers": "num_layers", "n_heads": "num_heads"}),
    "narm": ("NARM", {"embedding_size": "width", "hidden_size": "hidden", "n_layers": "num_layers"}),
    "nextitnet": ("NextItNet", {"embedding_size": "width", "kernel_size": "kernel", "block_num": "num_blocks"}),
    "srgnn": ("SRGNN", {"embedding_size": "width", "step": "num_steps"}),
}
"""RecBole's name of each model, and its keys by those here; what is not named alike follows in `keys`."""


def keys() -> dict[str, Any]:
    """RecBole's config of the model here."""
    model = settings["model"]
    found = {theirs: model[ours] for theirs, ours in MODELS[model["name"]][1].items()}
    dropout = model["dropout"]
    match model["name"]:
        case "gru4rec":
            found["dropout_prob"] = dropout
        case "narm":
            found["dropout_probs"] = [dropout, model["state_dropout"]]
        case "nextitnet":
            found |= {"dilations": list(model["dilations"]), "reg_weight": 0}
        case "sasrec" | "bert4rec":
            found |= {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout, "inner_size": model["inner_width"]}
    if model["name"] == "bert4rec":
        found["mask_ratio"] = model["mask_ratio"]
    return found | {
        "data_path": ".",
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "TIME_FIELD": "time",
        "load_col": {"inter": ["user", "item", "time"]},
        "MAX_ITEM_LIST_LENGTH": settings["window"] - 1,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,
        "metrics": ["Recall", "NDCG", "MRR"],
        "topk": [5, 10, 20],
        "valid_metric": "NDCG@10",
        "loss_type": "CE",
        "train_batch_size": settings["batch_examples"],
        "eval_batch_size": 4096,
        "learning_rate": settings["learning_rate"],
        "seed": settings["seed"],
        "epochs": settings["epochs"],
        "use_gpu": settings["device"] == "cuda",
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": "saved",
    }


def write_atomic_file() -> None:
    """RecBole's own format: a tab, and the type of each column in its name."""
    Path("log").mkdir(exist_ok=True)
    with open("windows.csv", newline="") as file, open("log/log.inter", "w") as out:
        out.write("user:token\titem:token\ttime:float\n")
        for row in csv.DictReader(file):
            out.write(f"{row['user']}\t{row['item']}\t{row['time']}\n")


def train(trainer: Any, data: tuple[Any, Any], name: str) -> None:
    """The epochs; of the student and of one-hot models, with their validation."""
    for epoch in range(settings["epochs"]):
        with measured.timed(name):
            trainer._train_epoch(data[0], epoch)
        if name == "epoch":
            with measured.timed("evaluation"):
                found = trainer.evaluate(data[1], load_best_model=False)
            measured.ndcg.append(found["ndcg@10"])


def states_and_table(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of a batch and the item table without padding's row."""
    table = model.item_embedding if hasattr(model, "item_embedding") else model.embedding
    items, lengths = batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN]
    match settings["model"]["name"]:
        case "nextitnet":
            states = model(items)
        case "bert4rec":  # as in its own scoring: the state of a mask after the items
            states = model.gather_indexes(model(model.reconstruct_test_data(items, lengths)), lengths - 1)
        case _:
            states = model(items, lengths)
    return states, table.weight[1 : model.n_items]


def distilled(student: Any, teachers: list[Any], temperature: float, beta: float) -> Any:
    """A loss for RecBole's loop: (1 − β) CE + β KL(p ‖ ½(q + one-hot)) of whole logits, the paper's Eq. 19 and 20.

    q is the softmax of the teachers' mean logits at T; the teachers read every batch again.
    """

    def calculate_loss(self: Any, batch: Any) -> torch.Tensor:
        states, table = states_and_table(self, batch)
        targets = batch[self.POS_ITEM_ID] - 1
        log_p = F.log_softmax(states @ table.T, 1)
        with torch.no_grad():
            factors = [states_and_table(teacher, batch) for teacher in teachers]
            logits = torch.stack([a @ b.T for a, b in factors]).mean(0)
            soft = F.softmax(logits / temperature, 1)
            soft = (soft + F.one_hot(targets, soft.shape[1])) / 2
        divergence = (log_p.exp() * (log_p - soft.log())).sum(1).mean()
        return (1 - beta) * F.nll_loss(log_p, targets) + beta * divergence

    return MethodType(calculate_loss, student)


logging.disable(logging.WARNING)
with measured.timed("preparing"):
    write_atomic_file()
    config = Config(MODELS[settings["model"]["name"]][0], "log", config_dict=keys())
    init_seed(config["seed"], False)
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
kind = get_model(config["model"])
torch.autograd.set_detect_anomaly(settings.get("anomaly", False))


def make(seed: int) -> tuple[Any, Any]:
    """A model with its own draws, and RecBole's trainer of it."""
    init_seed(seed, False)
    model = kind(config, train_data.dataset).to(config["device"])
    return model, get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


teachers = []
for number in range(settings.get("teachers", 0)):
    teacher, trainer = make(1000 + number)
    train(trainer, (train_data, valid_data), "teacher_epoch")
    teachers.append(teacher.eval().requires_grad_(False))
model, trainer = make(settings["seed"])
if teachers:
    model.calculate_loss = distilled(model, teachers, settings["temperature"], settings["beta"])
train(trainer, (train_data, valid_data), "epoch")
model.eval()
for _ in range(settings["epochs"]):
    with torch.no_grad(), measured.timed("encoding"):
        for batch in valid_data:
            states_and_table(model, batch[0].to(config["device"]))
shutil.rmtree("saved", ignore_errors=True)
measured.report(len(train_data.dataset), {"recbole": recbole.__version__, "torch": torch.__version__})
