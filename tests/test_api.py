"""The Python API: what the command line does, to the bit; raw ids in and out; runs that go on; several ranks."""

import inspect
import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import csrec_dist
from csrec_dist import CSRec, Dataset, Recommender, load_labels, soft_label_loss
from csrec_dist.cli import main
from csrec_dist.config import Config, parse_config, read_yaml
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.losses import distillation
from csrec_dist.runs.run import Run
from tests.helpers.ranks import run_ranks
from tests.helpers.shop import DATASET, MODEL, TRAINING, fit_shop, shop_log
from tests.helpers.training_streams import at_each_batch


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, CSRec, Path]:
    """The shop's dataset, its fitted run, and the folder of both; no test changes them."""
    folder = tmp_path_factory.mktemp("shop")
    fit_shop(folder)
    return Dataset(folder / "data/shop"), CSRec.load(folder / "runs/shop"), folder


def weights_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors that a run left, by file: of its models and of its labels."""
    return {str(path.relative_to(run)): load_file(path) for path in sorted(run.rglob("*.safetensors"))}


def assert_same_bits(one: Path, other: Path) -> None:
    """Two runs have the same weights, labels, ranks and metrics."""
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        assert all(torch.equal(tensor, second[file][name]) for name, tensor in tensors.items()), file
    assert read_json(one / "metrics.json") == read_json(other / "metrics.json")
    for path in (one / "ranks").iterdir():
        assert path.read_bytes() == (other / "ranks" / path.name).read_bytes()


def test_a_run_in_python_is_the_run_of_the_command_line(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    config, folder = finished_run
    run = CSRec.from_config(read_yaml(config) | {"output": str(tmp_path)}).fit()
    assert run.folder == tmp_path / "r"
    assert_same_bits(run.folder, folder)
    for path in (folder / "dataset").iterdir():
        assert path.read_bytes() == (run.folder / "dataset" / path.name).read_bytes()
    for name in ("teach", "label", "distill", "evaluate"):
        first, second = (read_json(each / f"{name}.done.json") for each in (folder, run.folder))
        assert first["fingerprint"] == second["fingerprint"]
    by_keys = CSRec(**(read_yaml(config) | {"output": str(tmp_path)}))
    assert by_keys.config == run.config
    assert CSRec.from_config(run.folder / "config.yaml").config.dump() == Run.of(run.config).resolved.dump()


def test_a_run_on_a_table_is_the_run_on_its_file(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    config, folder = finished_run
    keys = read_yaml(config)
    log = pd.read_csv(keys["dataset"].pop("source"))
    data = Dataset.prepare(log, tmp_path / "data", **keys.pop("dataset"))
    run = CSRec.from_config(keys | {"output": str(tmp_path)}).fit(data)
    assert_same_bits(run.folder, folder)


def test_each_goes_on_with_what_the_other_did(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = run_copy
    assert "done already" in (CSRec.load(folder).fit(), capsys.readouterr().out)[1]
    CSRec.load(folder).fit(restart="distill")
    assert "distill epoch 1/1" in capsys.readouterr().out
    assert main(["run", *options]) == 0
    assert "epoch" not in capsys.readouterr().out


def test_an_evaluation_with_other_keys_is_that_of_the_command(
    run_copy: tuple[list[str], Path], finished_run: tuple[Path, Path]
) -> None:
    options, folder = run_copy
    run = CSRec.load(folder)
    before = run.metrics
    metrics = run.evaluate(top_n=[3], calibration=False)
    assert metrics == run.metrics == CSRec.load(folder).metrics
    assert {"recall@3", "recall@10"} <= metrics["test"].keys()
    assert metrics["test"]["ndcg@10"] == before["test"]["ndcg@10"]
    assert main(["evaluate", *options, "--set", "evaluation.top_n=[3]", "--set", "evaluation.calibration=false"]) == 0
    assert CSRec.load(folder).metrics == metrics
    with pytest.raises(UserError, match=r"top_m: unknown key; did you mean top_n"):
        run.evaluate(top_m=[3])
    with pytest.raises(UserError, match=r"evaluation.exclude_seen was False, is True"):
        run.evaluate(exclude_seen=True)
    assert run.evaluate(top_n=[3], calibration=False) == metrics, "what was refused is forgotten"


def test_what_fit_refuses_is_forgotten(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, _, _ = shop
    run = CSRec("shop", MODEL, method="base", training=TRAINING | {"max_epochs": 1}, output=tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        run.fit(data, resume_from=tmp_path / "nowhere")
    with pytest.raises(UserError, match="give fit a Dataset"):
        run.fit()
    run.fit(data)
    again = CSRec("shop", MODEL, method="base", training=TRAINING | {"max_epochs": 1}, output=tmp_path)
    assert "recall@3" in again.evaluate(top_n=[3])["test"], "the dataset is that of the folder"


def test_results_of_other_settings_are_not_shown_as_this_ones(
    shop: tuple[Dataset, CSRec, Path], tmp_path: Path
) -> None:
    _, fitted, _ = shop
    at = {"training": TRAINING, "output": fitted.folder.parent}
    same = CSRec("shop", MODEL, **at)
    assert same.metrics == fitted.metrics
    assert CSRec("shop", MODEL, training=TRAINING | {"max_epochs": 9}, output=at["output"]).metrics == fitted.metrics
    for changes, said in (
        ({"model": MODEL | {"width": 4}}, "model.width was 8, is 4"),
        ({"method": "base"}, "method was 'model_level', is 'base'"),
        ({"teachers": {"num": 3}}, "teachers.num was 2, is 3"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"training": TRAINING | {"learning_rate": 0.5}}, "training.learning_rate was 0.01, is 0.5"),
    ):
        other = CSRec("shop", **{"model": MODEL, **at, **changes})
        for name in ("metrics", "teachers", "labels", "recommender"):
            with pytest.raises(UserError, match=rf"has a run of other settings: {said}.* another name.*CSRec.load"):
                getattr(other, name)
        with pytest.raises(UserError, match="other settings"):
            other.report()
        assert "not fitted, and its folder has a run of other settings" in repr(other)
        assert f"{fitted.metrics['test']['ndcg@10']:.4f}" not in other._repr_html_()
    damaged = CSRec.load(shutil.copytree(fitted.folder, tmp_path / "damaged"))
    (damaged.folder / "config.yaml").write_text((damaged.folder / "config.yaml").read_text() + "seed: 9\n")
    assert "its folder is damaged" in repr(damaged)
    assert "its folder is damaged" in damaged._repr_html_()
    copied = shutil.copytree(fitted.folder, tmp_path / "shop")
    run, evaluated = (CSRec("shop", MODEL, training=TRAINING, output=copied.parent) for _ in range(2))
    assert "recall@1" in evaluated.evaluate(top_n=[1])["test"]
    assert run.metrics == evaluated.metrics, "what is evaluated makes no other run"


def test_an_evaluation_leaves_the_rest_of_the_config_as_the_folder_has_it(
    shop: tuple[Dataset, CSRec, Path], tmp_path: Path
) -> None:
    data, _, _ = shop
    first = CSRec("shop", MODEL, method="base", training=TRAINING | {"max_epochs": 1}, output=tmp_path).fit(data)
    CSRec("shop", MODEL, method="base", training=TRAINING, output=tmp_path).fit(data)
    first.evaluate(top_n=[2])
    assert CSRec.load(first.folder).config.training.max_epochs == TRAINING["max_epochs"]
    CSRec.load(first.folder).fit()


def test_fit_takes_one_dataset(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, _, _ = shop
    small = Dataset.prepare(shop_log(num_customers=9), tmp_path / "small", **DATASET)
    for own in ({"source": "november.csv"}, {"path": str(data.folder)}):
        run = CSRec("own", MODEL, method="base", training=TRAINING, output=tmp_path, dataset=own)
        with pytest.raises(UserError, match=r"names a dataset of its own \(.*\), and fit was given .*small"):
            run.fit(small)
    with pytest.raises(UserError, match="fit takes a Dataset, not a DataFrame"):
        CSRec("own", output=tmp_path).fit(shop_log())  # type: ignore[arg-type]
    for dataset in (data, str(data.folder), data.folder):
        with pytest.raises(UserError, match="A prepared Dataset is given to fit"):
            CSRec("own", dataset=dataset)  # type: ignore[arg-type]


def test_errors_of_a_run_name_the_calls_that_mend_them(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, fitted, _ = shop
    fresh = CSRec("fresh", MODEL, training=TRAINING, output=tmp_path)
    for name in ("recommender", "teachers"):
        with pytest.raises(UserError, match="is not done yet; call fit first"):
            getattr(fresh, name)
    with pytest.raises(UserError, match="is not done yet; call fit first"):
        fresh.evaluate(top_n=[3])
    changed = CSRec("shop", MODEL, training=TRAINING | {"beta": 0.9}, output=fitted.folder.parent)
    with pytest.raises(UserError, match=r'with fit\(restart="distill"\), or give the run another name'):
        changed.fit(data)
    for wrong in ("distil", True):
        with pytest.raises(UserError, match=r"restart takes the name of a stage .*, not"):
            changed.fit(data, restart=wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """A window that is a quantile of the log, and seeds of an array."""
    longest = shop_log().groupby("customer").size().max()
    data = Dataset.prepare(shop_log(), tmp_path / "data", **DATASET | {"window": longest, "num_shards": np.int64(4)})
    assert data.window == longest
    run = CSRec("shop", seed=np.int64(3), training={"learning_rate": np.float32(0.5), "max_epochs": np.uint8(3)})
    assert (run.config.seed, run.config.training.learning_rate, run.config.training.max_epochs) == (3, 0.5, 3)
    assert CSRec("shop", evaluation={"top_n": 10}).config.evaluation.top_n == [10]
    assert CSRec.from_config(run.config).config == run.config


def test_what_is_no_log_or_folder_is_named(tmp_path: Path) -> None:
    indexed = shop_log().set_index("customer").rename_axis("user_id")
    with pytest.raises(UserError, match=r"the table's index has user_id, which log\.reset_index\(\) makes columns"):
        Dataset.prepare(indexed, tmp_path / "data")
    with pytest.raises(UserError, match="The log is None"):
        Dataset.prepare(None, tmp_path / "data")
    with pytest.raises(UserError, match="source: this is for files"):
        Dataset.prepare(shop_log(), tmp_path / "data", source="x", **DATASET)
    with pytest.raises(UserError, match=r"not a DataFrame; Dataset\.prepare makes one"):
        Dataset(shop_log())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="name: takes letters, digits"):
        CSRec("a/b")


def test_streams_refuse_sizes_that_are_none(shop: tuple[Dataset, CSRec, Path]) -> None:
    data, run, _ = shop
    for arguments in ({"batch_size": 0}, {"batch_size": 1.5}, {"batch_size": 2, "epoch": -1}):
        with pytest.raises(UserError, match="is a whole number of at least"):
            data.stream("train", **arguments)  # type: ignore[arg-type]
    assert run.student.num_items == len(data.items)
    assert "sku1" in data.items


def test_a_dataset_that_was_moved_is_given_to_the_run_again(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    Dataset.prepare(shop_log(), tmp_path / "data", **DATASET)
    run = CSRec("shop", MODEL, method="base", training=TRAINING, output=tmp_path).fit(Dataset(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"was in .*data, where there is none now. If it was moved, give .*fit\(Dataset"
    ):
        _ = run.recommender
    again = CSRec.load(run.folder).fit(Dataset(tmp_path / "moved"))
    assert again.recommender.recommend(users=["c1"], top_n=1).shape == (1, 4)
    assert again.metrics == run.metrics


def test_columns_of_what_is_appended_are_named_either_way(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, _, _ = shop
    frame = shop_log().assign(buyer="c1")
    named = data.append(frame, tmp_path / "named", user="buyer")
    given = data.append(frame, tmp_path / "given", columns={"user": "buyer"})
    plain = data.append(frame, tmp_path / "plain")
    none = data.append(frame, tmp_path / "none", columns=None)
    assert given.fingerprint == named.fingerprint != plain.fingerprint == none.fingerprint


def log_of_text_files(folder: Path, frame: pd.DataFrame) -> Any:
    """Leading zeros, and a time whose name is not the usual one."""
    frame = frame.rename(columns={"customer": "customer_id", "sku": "article_id", "event_time": "t_dat"})
    frame.to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def log_of_json_lines(folder: Path, frame: pd.DataFrame) -> Any:
    lines = frame.rename(columns={"customer": "user_id", "sku": "parent_asin", "event_time": "timestamp"})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines.to_dict("records")))
    return folder / "log.jsonl"


LOGS: dict[str, tuple[Callable[[Path, pd.DataFrame], Any], Callable[[str], Any]]] = {
    "csv": (log_of_text_files, lambda sku: sku.replace("sku", "000")),
    "json lines": (log_of_json_lines, lambda sku: sku.replace("sku", "B0«ü»,\"'")),
    "pandas, digits": (lambda folder, frame: frame, lambda sku: sku.removeprefix("sku")),
    "polars, integers": (lambda folder, frame: pl.from_pandas(frame), lambda sku: int(sku.removeprefix("sku")) - 3),
}


@pytest.mark.parametrize("kind", LOGS)
def test_raw_ids_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    """From the log to the recommendations, against the same run on other ids."""
    write, rename = LOGS[kind]
    frame = shop_log()
    renamed = frame.assign(sku=[rename(sku) for sku in frame["sku"]])
    columns = {"user": "customer", "item": "sku"} if write(tmp_path, renamed) is renamed or "polars" in kind else {}
    options = {name: value for name, value in DATASET.items() if name not in ("user", "item")}
    data = Dataset.prepare(write(tmp_path, renamed), tmp_path / "data", **columns, **options)
    keys: Any = {"method": "base", "output": str(tmp_path), "training": TRAINING | {"max_epochs": 1}}
    rec = CSRec("renamed", MODEL, **keys).fit(data).recommender
    plain = CSRec("plain", MODEL, **keys).fit(Dataset.prepare(frame, tmp_path / "plain_data", **DATASET)).recommender
    users = ["c7", "c0", "c19"]
    found, expected = (each.recommend(users=users, top_n=3) for each in (rec, plain))
    assert found["user"].tolist() == expected["user"].tolist()
    assert found["item"].tolist() == [rename(item) for item in expected["item"]]
    assert type(found["item"].tolist()[0]) is type(renamed["sku"].tolist()[0])
    history = frame[frame["customer"] == "c7"].sort_values("event_time")["sku"]
    again = rec.recommend(histories=[[rename(sku) for sku in history]], top_n=3)
    assert again["item"].tolist() == found.loc[found["user"] == "c7", "item"].tolist()


@pytest.mark.parametrize("stage", [0, 3, 6])
def test_a_fit_that_was_interrupted_goes_on_to_the_same_bits(
    stage: int, shop: tuple[Dataset, CSRec, Path], tmp_path: Path
) -> None:
    """Ctrl-C in a training, and the same line again; the run of another process is opened by its folder."""
    data, unbroken, _ = shop
    batches = count()

    def interrupt() -> None:
        if next(batches) == 2 * stage + 1:
            signal.raise_signal(signal.SIGINT)

    run = CSRec("shop", MODEL, training=TRAINING, output=tmp_path)
    with at_each_batch(interrupt), pytest.raises(KeyboardInterrupt):
        run.fit(data)
    with pytest.raises(UserError, match="has no metrics yet; call fit first"):
        _ = run.metrics
    with at_each_batch(lambda: None) as begun:
        (run if stage else CSRec.load(run.folder)).fit(data)
    assert begun[0] != (0, 0)
    assert_same_bits(run.folder, unbroken.folder)


def test_raised_limits_train_on(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, longer, _ = shop
    CSRec("shop", MODEL, training=TRAINING | {"max_epochs": 1}, output=tmp_path).fit(data)
    run = CSRec("shop", MODEL, training=TRAINING, output=tmp_path).fit(data)
    assert_same_bits(run.folder, longer.folder)
    with pytest.raises(UserError, match=r"learning_rate was 0\.01, is 0\.5"):
        CSRec("shop", MODEL, training=TRAINING | {"learning_rate": 0.5}, output=tmp_path).fit(data)


def fit_on_rank(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """The lines of a script that all ranks run; what each of them sees."""
    os.chdir(folder)
    data = Dataset.prepare(shop_log(), "data", **DATASET)
    run = CSRec("shop", MODEL, training=TRAINING).fit(data)
    first = run.metrics
    run.evaluate(top_n=[2])
    rec = run.recommender
    rec.save_pretrained("saved")
    lists = Recommender.from_pretrained("saved").recommend(histories=[["sku1", "sku2"]], top_n=3)
    report, total = run.report(), torch.ones(())
    torch.distributed.all_reduce(total)  # in the group that was there before
    return {"test": first["test"], "items": lists["item"].tolist(), "report": report.exists(), "ranks": total.item()}


def test_all_ranks_call_the_same_lines(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    found = run_ranks(fit_on_rank, 2, str(tmp_path))
    assert found[0] == found[1]
    assert found[0]["report"]
    assert found[0]["ranks"] == 2
    assert found[0]["test"] == pytest.approx(shop[1].metrics["test"], abs=1e-6)
    wanted = shop[1].recommender.recommend(histories=[["sku1", "sku2"]], top_n=3)
    assert found[0]["items"] == wanted["item"].tolist()


def fail_on_rank(rank: int, world_size: int, folder: str) -> str:
    with pytest.raises(UserError) as caught:
        Dataset.prepare(f"{folder}/none.csv", f"{folder}/data")
    return str(caught.value)


def test_all_ranks_meet_the_same_error(tmp_path: Path) -> None:
    first, second = run_ranks(fail_on_rank, 2, str(tmp_path))
    assert first == second
    assert "none.csv' does not exist" in first


def test_models_are_in_evaluation_mode(shop: tuple[Dataset, CSRec, Path]) -> None:
    run = shop[1]
    assert list(run.teachers) == ["teacher-0", "teacher-1"]
    for model in [*run.teachers.values(), run.recommender.model]:
        assert not any(module.training for module in model.modules())


def test_labels_are_the_mean_of_the_teachers_logits(shop: tuple[Dataset, CSRec, Path]) -> None:
    data, run, _ = shop
    row = next(iter(data.stream("train")))
    examples = [row["example_offset"] + place for place in range(len(row["items"]) - 1)]
    labels = run.labels.rows(examples[::-1])
    histories = [row["items"][: place + 1] for place in range(len(row["items"]) - 1)][::-1]
    logits = torch.stack([teacher.score(histories)[:, 1:] for teacher in run.teachers.values()]).mean(0)
    assert torch.allclose(labels.states @ labels.item_weight.T + (labels.item_bias or 0), logits, atol=1e-3)
    for folder in (run.folder, run.folder / "labels", str(run.folder)):
        assert torch.equal(load_labels(folder).rows(examples[::-1]).states, labels.states)


def test_the_loss_is_that_of_the_student() -> None:
    assert soft_label_loss is distillation


def test_a_run_without_labels_or_teachers_says_so(tmp_path: Path) -> None:
    run = CSRec("soft", method="softrec", output=tmp_path)
    assert run.teachers == {}
    with pytest.raises(UserError, match="method softrec stores no soft labels"):
        _ = run.labels
    with pytest.raises(UserError, match=r"Stage teach of .* is not done yet; call fit first"):
        _ = CSRec("not_begun", output=tmp_path).teachers
    with pytest.raises(UserError, match="not the folder of a run"):
        CSRec.load(tmp_path)


def test_a_run_that_was_moved_is_opened_where_it_is(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, run, _ = shop
    moved = CSRec("shop", MODEL, method="base", training=TRAINING, output=tmp_path / "runs").fit(data)
    (tmp_path / "runs/shop").rename(tmp_path / "kept")
    again = CSRec.load(tmp_path / "kept")
    assert again.folder == tmp_path / "kept"
    again.fit()
    assert again.evaluate(top_n=[2])["test"].keys() >= {"recall@2"}
    assert again.recommender.recommend(users=["c1"], top_n=1).shape == (1, 4)
    assert not moved.folder.exists()
    assert run.folder.exists()


def test_all_mistakes_are_named_before_anything_is_done(tmp_path: Path) -> None:
    frame = shop_log()
    for line, words in (
        (
            lambda: CSRec("x", "sasrek", training={"betta": 1}),
            ["2 mistakes", "did you mean sasrec", "did you mean beta"],
        ),
        (lambda: CSRec("x", output=tmp_path).fit(), ["give fit a Dataset"]),
        (lambda: CSRec("x", output=tmp_path).fit(frame), ["fit takes a Dataset", "Dataset.prepare"]),
        (lambda: CSRec.from_config(tmp_path / "none.yaml"), ["none.yaml does not exist"]),
        (
            lambda: prepared(tmp_path, frame, windw=3, seed=-1),
            ["2 mistakes", "windw: unknown key; did you mean window", "- seed: "],
        ),
        (lambda: prepared(tmp_path, frame, item="itm"), ["no column 'itm' (the argument item)"]),
        (lambda: prepared(tmp_path, frame[["customer", "sku"]]), ["or set timestamp='none' if each user"]),
        (lambda: prepared(tmp_path, frame, header=True), ["header: this is for files"]),
        (lambda: prepared(tmp_path, frame, window=50, min_interactions=100), ["lower the argument min_interactions"]),
        (lambda: prepared(tmp_path, [1]), ["not a list; pandas.DataFrame makes one"]),
    ):
        with pytest.raises(UserError) as caught:
            line()
        assert all(word in str(caught.value) for word in words), caught.value
    assert not list(tmp_path.iterdir())


def prepared(folder: Path, log: Any, **changes: Any) -> Dataset:
    columns = {"user": "customer", "item": "sku"}
    return Dataset.prepare(log, folder / "data", **columns | changes)


def test_what_is_printed_and_refused_names_the_arguments_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = shop_log()
    prepared(tmp_path, pd.concat([frame, frame.iloc[:3]]))
    assert "3 rows repeat" in (said := capsys.readouterr().out)
    assert "set duplicates='exact' to drop them" in said
    (tmp_path / "5.dataset.window").write_text("1,2,3\n")
    with pytest.raises(UserError) as caught:
        Dataset.prepare(tmp_path / "5.dataset.window", tmp_path / "other")
    assert "set header=False and give the columns by position, such as the argument columns: {user: 1" in str(
        caught.value
    )
    assert f"{tmp_path}/5.dataset.window: its first line" in str(caught.value)  # a path stays as it is


def test_a_dataset_is_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = shop_log()
    frame.to_csv(tmp_path / "log.csv", index=False)
    for log in (frame, tmp_path / "log.csv"):
        for folder in tmp_path.glob("data"):
            folder.rename(tmp_path / "before")
        data = prepared(tmp_path, log)
        times = {path: path.stat().st_mtime_ns for path in data.folder.iterdir()}
        capsys.readouterr()
        assert prepared(tmp_path, log).fingerprint == data.fingerprint
        assert "is prepared already" in capsys.readouterr().out
        assert times == {path: path.stat().st_mtime_ns for path in data.folder.iterdir()}
        with pytest.raises(UserError, match="window was 20, is 9"):
            prepared(tmp_path, log, window=9)
    frame.iloc[1:].to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(UserError, match="the log has other rows than that of"):
        prepared(tmp_path, tmp_path / "log.csv")


def test_a_dataset_of_a_file_is_that_of_the_command(tmp_path: Path) -> None:
    shop_log().to_csv(tmp_path / "log.csv", index=False)
    data = Dataset.prepare(tmp_path / "log.csv", tmp_path / "data", **DATASET)
    columns = {"user": DATASET["user"], "item": DATASET["item"]}
    options = {name: value for name, value in DATASET.items() if name not in columns}
    prepare(DatasetOptions(source=str(tmp_path / "log.csv"), columns=columns, **options), tmp_path / "same")
    for path in data.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()


def test_the_arguments_of_a_run_are_the_keys_of_its_config() -> None:
    assert set(inspect.signature(CSRec).parameters) == set(Config.model_fields)
    required = {name for name, each in inspect.signature(CSRec).parameters.items() if each.default is each.empty}
    assert required == {"name"}
    parsed = CSRec("x").config.dump()
    defaults = parse_config({"name": "x", "dataset": {"path": "x"}, "model": {"name": "sasrec"}}).dump()
    assert parsed | {"dataset": None} == defaults | {"dataset": None}


def test_results_are_shown_as_tables(shop: tuple[Dataset, CSRec, Path], tmp_path: Path) -> None:
    data, run, _ = shop
    page = run._repr_html_()
    assert [f"<td>{title}</td>" in page for title in ("CSRec-M student", "teacher-1", "teacher ensemble")] == [True] * 3
    assert f"<td>{run.metrics['test']['ndcg@10']:.4f}</td>" in page
    assert f"<td>{data.splits['train'].num_examples:,}</td>" in data._repr_html_()
    escaped = CSRec("x", output=tmp_path / "<b>")
    assert "<b>" not in escaped._repr_html_()
    assert repr(escaped).endswith("sasrec, model_level; not fitted)")


def test_the_public_names_are_those_that_are_promised() -> None:
    names = {"CSRec", "Dataset", "Recommender", "load_labels", "soft_label_loss", "__version__"}
    assert set(csrec_dist.__all__) == names == set(dir(csrec_dist))
    with pytest.raises(AttributeError, match="no attribute 'Datset'"):
        _ = csrec_dist.Datset  # type: ignore[attr-defined]
