"""csrec_dist: one-hot training of a model, or teachers, labels and a student; a batch is windows."""

import shutil

import torch
from driver import Measured, start

from csrec_dist import CSRec, Dataset, __version__, models
from csrec_dist.data.batches import question, to_batch
from csrec_dist.evaluation import evaluate
from csrec_dist.files import read_json
from csrec_dist.memory import set_allocator
from csrec_dist.training.meter import Meter
from csrec_dist.training.trainer import Trainer

set_allocator()  # as the command line does, which changes the whole process
settings = start()
measured = Measured(settings)

shutil.rmtree("data", ignore_errors=True)
shutil.rmtree("run", ignore_errors=True)
with measured.timed("preparing"):
    columns = {"user": "user", "item": "item", "timestamp": "time"}
    sizes = {"window": settings["window"], "min_interactions": 1, "num_shards": 1}
    data = Dataset.prepare("windows.csv", "data", **columns, **sizes)
training = {
    "batch_size": settings["batch_windows"],
    "learning_rate": settings["learning_rate"],
    "warmup_steps": 0,
    "max_epochs": settings["epochs"],
    "patience": settings["epochs"],
}
method, teachers = "base", None
if settings.get("teachers"):
    method, teachers = "model_level", {"num": settings["teachers"]}
    training |= {"temperature": settings["temperature"], "beta": settings["beta"]}
training |= settings.get("training", {})
run = CSRec("run", settings["model"], method, output=".", training=training, teachers=teachers, seed=settings["seed"])
train_epoch = Trainer.train_epoch


def timed_epoch(trainer: Trainer) -> Meter:
    """An epoch's steps, timed."""
    with measured.timed("epoch" if trainer.stage == "distill" else "teacher_epoch"):
        return train_epoch(trainer)


Trainer.train_epoch = timed_epoch  # type: ignore[method-assign]
run.fit(data)
measured.ndcg = [epoch["valid"]["ndcg@10"] for epoch in read_json(run.folder / "student/metrics.json")["epochs"]]
if teachers:
    usage = read_json(run.folder / "label.done.json")["usage"]
    measured.seconds["labelling"] = [(each["seconds"], each["cpu_seconds"]) for each in usage]
device = torch.device(settings["device"])
model = models.load(run.folder / "student").to(device).eval()
for _ in range(settings["epochs"]):
    with measured.timed("evaluation"):
        batches = (to_batch(row).to(device) for row in data.stream("valid", batch_size=256))
        evaluate(model, batches, top_n=[5, 10, 20], exclude_seen=False, reduce=lambda sums: sums)
    with torch.no_grad(), measured.timed("encoding"):
        for row in data.stream("valid", batch_size=256):
            model.encode_last(question(to_batch(row).to(device)).histories)
versions = {"csrec_dist": __version__, "torch": torch.__version__}
measured.report(data.splits["train"].num_examples, versions)
