"""New data without starting over: teachers of fewer items, their labels, trainings that start from a finished run."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from csrec_dist import CSRec, Dataset, Recommender, load_labels, models, soft_label_loss
from csrec_dist.config import parse_config
from csrec_dist.data.batches import to_batch
from csrec_dist.distributed import Runtime
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.files import read_json
from csrec_dist.runs.origin import Origin
from csrec_dist.runs.pipeline import execute
from tests.helpers.finished_runs import content
from tests.helpers.ranks import run_ranks

MODEL = {"name": "bert4rec", "width": 8, "num_layers": 1, "dropout": 0.0}  # it has a bias for each item
TRAINING = {"max_epochs": 2, "batch_size": 16, "learning_rate": 0.01, "temperature": 2.0, "beta": 0.4}
KEYS: dict[str, Any] = {"model": MODEL, "training": TRAINING, "labels": {"dtype": "float32"}, "baseline": True}
BASE = KEYS | {"method": "base", "baseline": False}


class Shop(NamedTuple):
    """An old dataset with a finished run, a dataset that extends it, and teachers of the old one in their folders."""

    old: Dataset
    run: CSRec
    new: Dataset
    teachers: list[Path]


def log(first_time: int, num_users: int, num_items: int) -> pl.DataFrame:
    random = np.random.default_rng(first_time)
    rows = []
    for user in range(num_users):
        item = int(random.integers(num_items))
        for time in range(9):
            rows.append((f"u{user}", f"i{item}", first_time + time))
            item = (item + 1) % num_items if random.random() < 0.8 else int(random.integers(num_items))
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    old = Dataset.prepare(log(0, 30, 20), folder / "old", window=7, min_interactions=3, num_shards=3)
    run = CSRec("old", **KEYS, output=folder / "runs").fit(old)
    new = old.append(log(100, 34, 24), folder / "new")
    assert (old.num_items, new.num_items) == (20, 24)
    return Shop(old, run, new, [spread(run.folder / "teachers" / name, folder) for name in run.config.member_names])


def spread(teacher: Path, folder: Path) -> Path:
    """A copy of a teacher whose logits are far from each other and from zero, as those of longer trainings are."""
    model, generator = models.load(teacher), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in (model.item_table.weight, model.item_table.bias):
            parameter.add_(0.5 + torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / teacher.name)
    (folder / teacher.name / "metrics.json").write_text((teacher / "metrics.json").read_text())
    return folder / teacher.name


def taught(shop: Shop) -> dict[str, Any]:
    return {"pretrained": [str(folder) for folder in shop.teachers]}


def weights(run: CSRec, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(run.folder / name / "model.safetensors")


@pytest.fixture(scope="module")
def next_run(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> CSRec:
    """A run on the new dataset with the old run's teachers, which starts from its student."""
    run = CSRec("next", **KEYS, teachers=taught(shop), output=tmp_path_factory.mktemp("next"))
    return run.fit(shop.new, resume_from=shop.run)


def oracle(shop: Shop, batch: Any, states: torch.Tensor, table: torch.Tensor, kl: str) -> tuple[list[int], float]:
    """Examples whose histories old teachers can read, and the sum of their loss (Eq. 19 and 20) in float64.

    The labels of an item that a teacher does not know have the mean of the logits of those that it knows.
    """
    members = [models.load(folder) for folder in shop.teachers]
    chosen, total = [], 0.0
    for row, items in enumerate(batch.histories.tolist()):
        for place, target in enumerate(batch.targets[row].tolist()):
            history = items[: place + 1]
            if target == 0 or max(history) > shop.old.num_items:
                continue
            example = int(batch.example_offsets[row]) + place
            logits = torch.zeros(shop.new.num_items, dtype=torch.float64)
            for member in members:
                state = member.encode_last(torch.tensor([history]))[0].double()
                known = member.item_table.weight.double() @ state + member.item_table.bias.double()
                logits += torch.cat([known, known.mean().expand(len(logits) - len(known))]) / len(members)
            onehot = torch.zeros_like(logits)
            onehot[target - 1] = 1
            r = (torch.softmax(logits / 2.0, 0) + onehot) / 2
            student = torch.log_softmax(table.double() @ states[len(chosen)].double(), 0)
            p = student.exp()
            divergence = (p * (student - r.log())).sum() if kl == "reverse" else (r * (r.log() - student)).sum()
            total += float(0.6 * -student[target - 1] + 0.4 * divergence)
            chosen.append(example)
    return chosen, total


@pytest.mark.parametrize("kl", ["reverse", "forward"])
@torch.no_grad()
def test_the_loss_on_labels_of_old_teachers_is_exact(shop: Shop, next_run: CSRec, kl: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    batches = list(map(to_batch, shop.new.stream("train", batch_size=64)))
    states, table = torch.randn(900, 6, generator=generator), torch.randn(shop.new.num_items, 6, generator=generator)
    labels, num_checked, with_new_target = load_labels(next_run.folder), 0, 0
    for batch in batches:
        examples, expected = oracle(shop, batch, states, table, kl)
        by_id = dict(zip(batch.example_ids.tolist(), batch.targets[batch.targets > 0].tolist(), strict=True))
        targets = torch.tensor([by_id[example] for example in examples])
        soft, own = labels.rows(examples), states[: len(examples)]
        loss, count = soft_label_loss(own, table, targets, soft, temperature=2.0, beta=0.4, kl=kl)
        assert (int(count), float(loss)) == (len(examples), pytest.approx(expected, rel=1e-5))
        num_checked += len(examples)
        with_new_target += int((targets > shop.old.num_items).sum())
    assert num_checked > 150
    assert with_new_target > 5


def test_a_teacher_s_folder_says_what_it_knew(shop: Shop, next_run: CSRec) -> None:
    about = read_json(next_run.folder / "teachers/teacher-1/metrics.json")
    assert about["known_items"] == shop.old.num_items
    assert about["id_map"] == shop.new.id_map_fingerprint
    assert next_run.teachers["teacher-1"].num_items == shop.new.num_items
    assert next_run.metrics["models"]["teachers"]["test"]["ndcg@10"] > 0


def test_teachers_of_other_items_are_refused(shop: Shop, tmp_path: Path) -> None:
    other = Dataset.prepare(log(1, 30, 20), tmp_path / "other", window=7, min_interactions=3, num_shards=3)
    unrelated = other.append(log(100, 34, 24), tmp_path / "unrelated")
    run = CSRec("r", **KEYS, teachers=taught(shop), output=tmp_path)
    with pytest.raises(UserError, match=r"teacher-0 knows 20 items, but the dataset has 24"):
        run.fit(unrelated)
    trusting = CSRec("r", **KEYS, teachers=taught(shop) | {"trust_item_order": True}, output=tmp_path)
    with pytest.raises(UserError, match=r"teacher-0 knows 20 items, but the dataset has 24"):
        trusting.fit(unrelated)


@pytest.mark.parametrize("training", ["student", "base"])
def test_a_training_starts_from_the_finished_student(
    shop: Shop, training: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate that changes nothing, what is trained is what it starts from."""
    keys = KEYS | {"training": TRAINING | {"max_epochs": 1, "learning_rate": 1e-12}, "method": "softrec", "seed": 5}
    run = CSRec("r", **keys, output=tmp_path).fit(shop.new, resume_from=shop.run)
    old, new = weights(shop.run), weights(run, training)
    drawn = models.build(run.config.model, shop.new.num_items, shop.new.window - 1, 5).state_dict()
    num_old = shop.old.num_items
    for name, tensor in new.items():
        if name.startswith("item_table."):
            torch.testing.assert_close(tensor[:num_old], old[name], rtol=0, atol=1e-9)
            torch.testing.assert_close(tensor[num_old:], drawn[name][num_old:], rtol=0, atol=1e-9)
        else:
            torch.testing.assert_close(tensor, old[name], rtol=0, atol=1e-9)
    assert (
        f"starts from {shop.run.folder.resolve()}, which knows 20 of 24 items: valid ndcg@10" in capsys.readouterr().out
    )


def test_the_first_validation_is_the_finished_model_s(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CSRec("r", **BASE, output=tmp_path)
    run.fit(shop.old, resume_from=shop.run.folder)
    first = re.search(r"distill starts from .*: valid ndcg@10 (\d\.\d{4})", capsys.readouterr().out)
    assert first is not None
    assert float(first[1]) == pytest.approx(shop.run.metrics["valid"]["ndcg@10"], abs=6e-5)


def test_old_items_score_as_they_did(shop: Shop, tmp_path: Path) -> None:
    keys = KEYS | {
        "training": TRAINING | {"max_epochs": 1, "learning_rate": 1e-12},
        "method": "base",
        "baseline": False,
    }
    run = CSRec("r", **keys, output=tmp_path).fit(shop.new, resume_from=shop.run)
    histories = [[1, 2, 3], [20, 7]]
    before, now = (each.recommender.model.score(histories) for each in (shop.run, run))
    torch.testing.assert_close(now[:, :21], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["student", "saved", "moved", "no_ids"])
def test_what_a_training_starts_from_is_named_in_several_ways(shop: Shop, form: str, tmp_path: Path) -> None:
    folder = shop.run.folder / "student"
    if form == "saved":
        folder = tmp_path / "saved"
        shop.run.recommender.save_pretrained(folder)
    elif form == "moved":  # the raw ids are not at hand, but the dataset knows what it extends
        folder = tmp_path / "moved"
        models.load(shop.run.folder / "student").save_pretrained(folder)
        (folder / "metrics.json").write_text((shop.run.folder / "student/metrics.json").read_text())
    elif form == "no_ids":
        folder = tmp_path / "no_ids"
        models.load(shop.run.folder / "student").save_pretrained(folder)
        with pytest.raises(UserError, match=r"nothing says which item each row of .*no_ids is"):
            Origin.of(folder).rows_of(shop.new, 20)
        return
    named, of_run = Origin.of(folder), Origin.of(shop.run.folder)
    assert named.id_map == of_run.id_map == shop.old.id_map_fingerprint
    assert named.rows_of(shop.new, 20).tolist() == of_run.rows_of(shop.new, 20).tolist() == [*range(20), *[-1] * 4]


def test_damaged_weights_to_start_from_are_refused_on_all_ranks(shop: Shop, tmp_path: Path) -> None:
    shop.run.recommender.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(SharedUserError, match=r"model\.safetensors is damaged: its bytes do not have the checksum"):
        CSRec("r", **BASE, output=tmp_path).fit(shop.new, resume_from=tmp_path / "saved")


def test_items_are_matched_by_their_raw_ids(shop: Shop, tmp_path: Path) -> None:
    """Also in a dataset that extends nothing and has other numbers."""
    other = Dataset.prepare(log(100, 34, 24), tmp_path / "other", window=7, min_interactions=3, num_shards=3)
    rows = Origin.of(shop.run.folder).rows_of(other, 20)
    raw = [pl.read_parquet(data.folder / "items.parquet")["raw"].to_list() for data in (shop.old, other)]
    assert [raw[0][row] if row >= 0 else None for row in rows] == [item if item in raw[0] else None for item in raw[1]]
    foreign = Dataset.prepare(
        log(100, 34, 24).with_columns(item="x" + pl.col("item")), tmp_path / "foreign", window=7, num_shards=3
    )
    with pytest.raises(UserError, match=r"knows none of the items of .*foreign"):
        Origin.of(shop.run.folder).rows_of(foreign, 20)


def test_what_a_training_starts_from_decides_it(shop: Shop, next_run: CSRec, tmp_path: Path) -> None:
    inputs = read_json(next_run.folder / "distill.done.json")["inputs"]
    assert inputs["init_from.id_map"] == shop.old.id_map_fingerprint
    before = content(next_run.folder)
    saved = tmp_path / "saved"
    shop.run.recommender.save_pretrained(saved)
    keys = KEYS | {"teachers": taught(shop), "output": next_run.folder.parent}
    CSRec("next", **keys).fit(shop.new, resume_from=saved)  # the same weights under another name
    with pytest.raises(UserError, match=r"Stage distill .* was done with different inputs: init_from.id_map was"):
        CSRec("next", **keys).fit(shop.new)
    with pytest.raises(UserError, match=r"init_from.weights was '\w+', is '\w+'"):
        CSRec("next", **keys).fit(shop.new, resume_from=shop.run.folder / "base")
    after = content(next_run.folder)
    assert {name for name in before if before[name] != after[name]} <= {"config.yaml"}


def test_what_is_no_finished_model_is_refused(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = CSRec("r", **BASE, output=tmp_path)
    with pytest.raises(UserError, match=r"empty is neither the folder of a finished run nor that of a model"):
        run.fit(shop.new, resume_from=tmp_path / "empty")
    wide = CSRec("r", **BASE | {"model": MODEL | {"width": 16}}, output=tmp_path)
    with pytest.raises(UserError, match=r"model.width is 8 there, 16 here"):
        wide.fit(shop.new, resume_from=shop.run)
    assert not (tmp_path / "r" / "student").exists()


def run_on_ranks(rank: int, world_size: int, keys: dict[str, Any]) -> None:
    execute(parse_config(keys), Runtime.start())


@pytest.mark.parametrize(
    "layout", [{"catalog_parallel": 2}, pytest.param({"engine": "fsdp"}, marks=pytest.mark.long)], ids=str
)
def test_several_ranks_go_on_as_one_does(layout: dict[str, Any], shop: Shop, next_run: CSRec, tmp_path: Path) -> None:
    keys = next_run.config.dump() | {"output": str(tmp_path)}
    keys["distributed"] |= layout
    run_ranks(run_on_ranks, 2, keys)
    for folder in ("student", "base"):
        found, expected = (
            read_json(run / folder / "metrics.json")["epochs"] for run in (tmp_path / "next", next_run.folder)
        )
        assert [epoch["loss"] for epoch in found] == pytest.approx([epoch["loss"] for epoch in expected], abs=1e-4)
    metrics = [read_json(run / "metrics.json")["test"] for run in (tmp_path / "next", next_run.folder)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)


def test_a_training_goes_on_from_its_checkpoint(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More epochs are what one training of so many would have been: it does not start from the old weights again."""
    keys = BASE | {"output": tmp_path}
    one = CSRec("one", **keys | {"training": TRAINING | {"max_epochs": 1}}).fit(shop.new, resume_from=shop.run)
    assert "starts from" in capsys.readouterr().out
    one = CSRec("one", **keys).fit(shop.new, resume_from=shop.run)
    assert "starts from" not in capsys.readouterr().out
    two = CSRec("two", **keys).fit(shop.new, resume_from=shop.run)
    assert all(torch.equal(tensor, weights(two)[name]) for name, tensor in weights(one).items())


def append_on_ranks(rank: int, world_size: int, old: str, new: str) -> int:
    return Dataset(old).append(log(100, 34, 24), new).num_items


def test_ranks_append_together(shop: Shop, tmp_path: Path) -> None:
    assert run_ranks(append_on_ranks, 2, str(shop.old.folder), str(tmp_path / "new")) == [24, 24]
    for path in shop.new.folder.iterdir():
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()


def test_recommendations_have_old_and_new_raw_ids(shop: Shop, next_run: CSRec) -> None:
    recommender = Recommender.from_pretrained(next_run.folder)
    lists = recommender.recommend(users=["u0", "u33"], top_n=24)
    assert set(lists["item"]) == {f"i{item}" for item in range(24)}
