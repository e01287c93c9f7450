"""The recommender against every history scored by hand, from raw ids to raw ids."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from csrec_dist import models
from csrec_dist.data.dataset import SEQUENCES, Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import write_record
from csrec_dist.recommend import Recommender, recommend
from csrec_dist.runs.run import Run
from tests.helpers.ranked_lists import ranked, raw_ids, sequences
from tests.helpers.run_folders import make_run, without_checksums

Lists = dict[Any, list[tuple[str, float]]]


@pytest.fixture(scope="module", params=["sasrec", "bert4rec"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has no item bias, and one whose model has; neither is evaluated, their metrics are made up."""
    folder = tmp_path_factory.mktemp("recommender")
    run = make_run(folder, model={"name": request.param, "width": 8, "inner_width": 8})
    (run / "evaluate.done.json").unlink()
    return run


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.from_pretrained(run)


def lists_of(frame: pd.DataFrame) -> Lists:
    assert list(frame.columns) == ["user", "item", "score", "rank"]
    for _, group in frame.groupby("user"):
        assert group["rank"].tolist() == list(range(1, len(group) + 1))
    return {user: list(zip(g["item"], g["score"], strict=True)) for user, g in frame.groupby("user", sort=False)}


def assert_equal(found: Lists, wanted: Lists) -> None:
    assert list(found) == list(wanted)
    for user, pairs in found.items():
        assert [item for item, _ in pairs] == [item for item, _ in wanted[user]]
        assert [score for _, score in pairs] == pytest.approx([score for _, score in wanted[user]], abs=1e-5)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_users_get_the_best_items_after_all_they_ever_had(
    run: Path, recommender: Recommender, exclude_seen: bool
) -> None:
    histories = sequences(run)
    users = list(histories)[5:0:-2]
    found = lists_of(recommender.recommend(users=users, top_n=4, exclude_seen=exclude_seen))
    assert_equal(found, {user: ranked(run, histories[user], exclude_seen)[:4] for user in users})


def test_all_users_by_default_as_the_command_writes_them(run: Path, recommender: Recommender, tmp_path: Path) -> None:
    written = pl.read_parquet(recommend(run, 3, tmp_path / "lists.parquet", exclude_seen=True))
    rows = written.explode("items", "scores", empty_as_null=False).rename({"items": "item", "scores": "score"})
    found = pl.from_pandas(recommender.recommend(top_n=3, exclude_seen=True)).drop("rank")
    assert found.rows() == rows.rows()  # to the bit


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_histories_of_anybody_by_place_or_name(run: Path, recommender: Recommender, batch_size: int) -> None:
    items = raw_ids(run, "item")
    numbers = [[3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 1], [5, 5]]
    raw = [[items[number] for number in history] for history in numbers]
    wanted = [ranked(run, history, True)[:3] for history in numbers]
    options: Any = {"top_n": 3, "exclude_seen": True, "batch_size": batch_size}
    assert_equal(lists_of(recommender.recommend(histories=raw, **options)), dict(enumerate(wanted)))
    named = dict(zip(["short", "long", "twice"], raw, strict=True))
    assert_equal(lists_of(recommender.recommend(histories=named, **options)), dict(zip(named, wanted, strict=True)))
    arrays = [np.array(history) for history in raw]
    assert_equal(lists_of(recommender.recommend(histories=arrays, **options)), dict(enumerate(wanted)))


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("top_n", [2, 9])
def test_only_some_items_may_be_recommended(
    run: Path, recommender: Recommender, exclude_seen: bool, top_n: int
) -> None:
    items = raw_ids(run, "item")
    allowed = [items[number] for number in (9, 2, 4, 7, 2)]
    histories = {"a": [4, 1], "b": [7, 2, 9, 4], "c": [1]}
    raw = {user: [items[number] for number in history] for user, history in histories.items()}
    found = recommender.recommend(histories=raw, top_n=top_n, exclude_seen=exclude_seen, items=allowed)
    wanted = {
        user: [pair for pair in ranked(run, history, exclude_seen) if pair[0] in allowed][:top_n]
        for user, history in histories.items()
    }
    assert_equal(lists_of(found), {user: pairs for user, pairs in wanted.items() if pairs})


def test_what_is_unknown_is_counted_or_named(run: Path, recommender: Recommender) -> None:
    item = raw_ids(run, "item")[1]
    with pytest.warns(UserWarning, match="3 items of the histories are not in the dataset, and 1 histories without"):
        found = recommender.recommend(histories={"a": [item, "?", 17], "b": ["!"]}, top_n=1)
    assert found["user"].tolist() == ["a"]
    with pytest.warns(UserWarning, match="1 of the items that may be recommended are not in the dataset"):
        recommender.recommend(histories=[[item]], top_n=1, items=[item, "?"])
    with pytest.raises(UserError, match=r"no user 'c99', 7; it has \d+ users, such as 'u000'"):
        recommender.recommend(users=["u001", "c99", 7])
    with pytest.raises(UserError, match="There is nothing to recommend: 1 items of the histories"):
        recommender.recommend(histories=[["?"]])
    with pytest.raises(UserError, match=r"None of the items that may be recommended is in the dataset: '\?'"):
        recommender.recommend(histories=[[item]], items=["?"])
    with pytest.raises(UserError, match="History 1 has no item that the model knows"):
        recommender.encode([[item], ["?"]])


def test_unknown_items_and_skipped_histories_are_named(run: Path, recommender: Recommender) -> None:
    item = raw_ids(run, "item")[1]
    for histories, said in (
        (
            [["?"], [item]],
            r"1 items of the histories .*, and 1 histories .* unknown: '\?', known such as .*skipped: 0\.$",
        ),
        ([[], [item]], r"^1 histories without a known item were skipped; skipped: 0\.$"),
        ([[item, None, float("nan")]], r"^2 items of the histories .* unknown: None, nan, known such as"),
        ({"a": [item, *range(900, 905)]}, r"^5 items of the histories .* unknown: 900, 901, 902, …, known"),
    ):
        with pytest.warns(UserWarning, match=said):
            recommender.recommend(histories=histories, top_n=1)


def test_a_series_of_histories_is_by_its_index(run: Path, recommender: Recommender) -> None:
    items = raw_ids(run, "item")
    log = pd.DataFrame({"user": [205, 101, 101], "item": [items[3], items[1], items[2]]})
    series = log.groupby("user")["item"].agg(list)
    found = recommender.recommend(histories=series, top_n=2)
    assert found["user"].tolist() == [101, 101, 205, 205]
    pd.testing.assert_frame_equal(found, recommender.recommend(histories=series.to_dict(), top_n=2))
    for table in (log, pl.from_pandas(log)):
        with pytest.raises(UserError, match=r"not a table; of a log make them with log.groupby"):
            recommender.recommend(histories=table)  # type: ignore[arg-type]


def test_unknown_users_are_skipped_where_that_is_asked_for(run: Path, recommender: Recommender) -> None:
    asked: Any = {"users": ["u002", "c99", "u001"], "top_n": 2}
    with pytest.warns(UserWarning, match=r"^1 users are not in the dataset and were skipped: 'c99'\.$"):
        found = recommender.recommend(unknown_users="skip", **asked)
    assert found["user"].unique().tolist() == ["u002", "u001"]
    with pytest.raises(UserError, match="no user 'c99'"):
        recommender.recommend(unknown_users="error", **asked)
    with pytest.raises(UserError, match=r'unknown_users is "error" or "skip", not \'ignore\''):
        recommender.recommend(unknown_users="ignore", **asked)  # type: ignore[arg-type]
    assert recommender.dataset is not None
    users = recommender.dataset.users
    assert ("u001" in users, "c99" in users, len(users)) == (True, False, recommender.dataset.num_users)
    assert recommender.recommend(users=list(users), top_n=1)["user"].tolist() == list(users)


def test_items_that_may_not_be_recommended_are_in_no_list(run: Path, recommender: Recommender) -> None:
    items = raw_ids(run, "item")
    history, excluded = [4, 1], [items[2], items[7], "?"]
    raw = [[items[number] for number in history]]
    wanted = [pair for pair in ranked(run, history, False) if pair[0] not in excluded]
    assert_equal(lists_of(recommender.recommend(histories=raw, top_n=5, exclude_items=excluded)), {0: wanted[:5]})
    both = recommender.recommend(histories=raw, top_n=5, items=[items[2], items[3]], exclude_items=excluded)
    assert both["item"].tolist() == [items[3]]
    with pytest.raises(UserError, match="exclude_items leaves no item"):
        recommender.recommend(histories=raw, items=[items[2]], exclude_items=excluded)


def test_the_device_can_be_chosen(run: Path) -> None:
    assert Recommender.from_pretrained(run, device="meta").model.item_table.weight.device.type == "meta"


def test_what_was_meant_otherwise_is_refused(run: Path, recommender: Recommender) -> None:
    item = raw_ids(run, "item")[1]
    for arguments, message in (
        ({"users": "u001"}, "Users must be a list of ids, not 'u001'"),
        ({"histories": [item, item]}, "Histories, at 0, must be a list of ids"),
        ({"histories": item}, "Histories must be a list of ids"),
        ({"users": ["u001"], "histories": [[item]]}, "either users or histories"),
        ({"histories": [[item]], "top_n": 0}, "ask for 1…"),
        ({"histories": [[item]], "top_n": 2.5}, "is a whole number of 1…"),
        ({"histories": [[item]], "top_n": "3"}, "is a whole number of 1…"),
        ({"histories": [[item]], "top_n": True}, "is a whole number of 1…"),
        ({"histories": [[item]], "exclude_seen": "no"}, "exclude_seen is True or False, not 'no'"),
        ({"histories": [[item]], "batch_size": 0}, "at least 1"),
        ({"histories": [[item]], "batch_size": 1.5}, "whole number of at least 1, not 1.5"),
    ):
        with pytest.raises(UserError, match=message):
            recommender.recommend(**arguments)


def test_nobody_gives_no_rows(recommender: Recommender) -> None:
    for nobody in ({"users": []}, {"histories": []}, {"histories": {}}):
        assert recommender.recommend(**nobody).shape == (0, 4)


def test_similar_items_are_those_of_the_largest_cosine(run: Path, recommender: Recommender) -> None:
    items = raw_ids(run, "item")
    vectors = models.load(run / "student").item_table.weight.detach().double()
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    found = recommender.similar_items([items[4], items[2]], top_n=3)
    assert list(found.columns) == ["item", "similar_item", "score", "rank"]
    for number, rows in zip((4, 2), (found.iloc[:3], found.iloc[3:]), strict=True):
        order = [each for each in cosines[number - 1].argsort(descending=True).tolist() if each != number - 1][:3]
        assert rows["item"].tolist() == [items[number]] * 3
        assert rows["similar_item"].tolist() == [items[each + 1] for each in order]
        assert rows["score"].tolist() == pytest.approx(cosines[number - 1, order].tolist(), abs=1e-6)
        assert rows["rank"].tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=rf"top_n is a whole number of 1…{len(items) - 1}"):
        recommender.similar_items([items[1]], top_n=len(items))


def test_states_times_item_vectors_are_the_scores(run: Path, recommender: Recommender) -> None:
    items = raw_ids(run, "item")
    numbers = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3, 4, 5]]
    table = recommender.model.item_table
    with pytest.warns(UserWarning, match="1 items of the histories"):
        states = recommender.encode(
            [[items[n] for n in history] + ["?"][: len(history) == 1] for history in numbers], 2
        )
    assert states.dtype == np.float32
    assert isinstance(states, np.ndarray)
    scores = torch.from_numpy(states) @ table.weight.detach().T + (0 if table.bias is None else table.bias.detach())
    assert torch.allclose(scores, models.load(run / "student").score(numbers)[:, 1:], atol=1e-5)
    assert recommender.encode([]).shape == (0, 8)
    with pytest.raises(UserError, match="batch size is a whole number of at least 1, not -1"):
        recommender.encode([], batch_size=-1)


def test_models_are_in_evaluation_mode(run: Path, recommender: Recommender) -> None:
    item = raw_ids(run, "item")[1]
    assert not any(module.training for module in recommender.model.modules())
    first, second = (recommender.encode([[item]]) for _ in range(2))
    assert (first == second).all()


def test_a_saved_recommender_is_the_same_without_users(run: Path, recommender: Recommender, tmp_path: Path) -> None:
    recommender.save_pretrained(tmp_path / "saved")
    again = Recommender.from_pretrained(str(tmp_path / "saved"))
    items = raw_ids(run, "item")
    histories = [[items[1], items[3]], [items[2]]]
    pd.testing.assert_frame_equal(again.recommend(histories=histories), recommender.recommend(histories=histories))
    with pytest.raises(UserError, match="not saved with the model"):
        again.recommend(users=["u001"])
    again.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_what_is_no_recommender_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither the folder of a run nor one"):
        Recommender.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no items\.parquet with the raw ids"):
        Recommender.from_pretrained(run / "student")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "other/items.parquet").write_text("")
    with pytest.raises(UserError, match="No model is saved over"):
        Recommender.from_pretrained(run).save_pretrained(tmp_path / "other")
    shutil.copytree(run / "student", tmp_path / "model")
    pl.read_parquet(run / "dataset/items.parquet").head(5).write_parquet(tmp_path / "model/items.parquet")
    with pytest.raises(UserError, match="has 5 raw ids"):
        Recommender.from_pretrained(tmp_path / "model")


def test_a_dataset_that_was_prepared_again_has_other_numbers(tmp_path: Path) -> None:
    """As many items in another order would give a student's lists the names of other items."""
    run = make_run(tmp_path)
    metrics = run / "student/metrics.json"
    known = json.loads(metrics.read_text())
    write_record(metrics, known | {"id_map": Run.open(run).dataset.id_map_fingerprint})
    Recommender.from_pretrained(run)
    write_record(metrics, known | {"id_map": "0" * 16})
    with pytest.raises(UserError, match="was trained on other items, or on these in another order"):
        Recommender.from_pretrained(run)


def test_ids_are_recognised_as_numbers_and_as_text(tmp_path: Path) -> None:
    """Raw ids that are integers, asked for as numpy's, as floats of a column with holes, and as text."""
    make_run(tmp_path)
    dataset = without_checksums(tmp_path / "runs/small/dataset")
    for kind in ("item", "user"):
        frame = pl.read_parquet(dataset / f"{kind}s.parquet")
        frame.with_columns(raw=100 + pl.col(kind).cast(pl.Int64)).write_parquet(dataset / f"{kind}s.parquet")
    recommender = Recommender.from_pretrained(tmp_path / "runs/small")
    frames = [recommender.recommend(users=[user]) for user in (101, np.int64(101), 101.0, np.float32(101), "101")]
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert frames[0]["user"].dtype == frames[0]["item"].dtype == np.int64


def test_users_are_found_in_any_row_group(run: Path, tmp_path: Path) -> None:
    dataset = Dataset(without_checksums(Path(shutil.copytree(run / "dataset", tmp_path / "dataset"))))
    every = dict(dataset.sequences())
    pl.read_parquet(dataset.folder / SEQUENCES).write_parquet(dataset.folder / SEQUENCES, row_group_size=4)
    for users in ([9, 1, 10, 9], [len(every)], list(every), []):
        found = dict(dataset.sequences(users))
        assert list(found) == sorted(set(users))
        assert all((found[user] == every[user]).all() for user in found)


def test_no_warning_where_all_is_known(recommender: Recommender) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommender.recommend(users=["u001"])
