"""Top-n lists against every history scored by hand, from raw ids to raw ids."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from csrec_dist import models
from csrec_dist.errors import UserError
from csrec_dist.recommend import recommend
from tests.helpers.ranked_lists import ranked, raw_ids, sequences
from tests.helpers.ranks import run_ranks
from tests.helpers.run_folders import make_run

Lists = dict[str, tuple[list[str], list[float]]]


@pytest.fixture(scope="module", params=["leave_one_out", "temporal"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("recommend"), dataset={"split": request.param})


def read(path: Path) -> Lists:
    frame = pl.read_parquet(path)
    assert frame.columns == ["user", "items", "scores"]
    assert frame["user"].is_unique().all()
    return {user: (items, scores) for user, items, scores in frame.iter_rows()}


def assert_equal(found: Lists, wanted: dict[str, list[tuple[str, float]]]) -> None:
    assert found.keys() == wanted.keys()
    for user, (items, scores) in found.items():
        assert items == [item for item, _ in wanted[user]]
        assert scores == pytest.approx([score for _, score in wanted[user]], abs=1e-5)


@pytest.mark.parametrize(("exclude_seen", "batch_size"), [(False, 7), (True, 1000)])
def test_every_user_gets_the_best_items_after_all_that_the_user_ever_had(
    run: Path, tmp_path: Path, exclude_seen: bool, batch_size: int
) -> None:
    path = recommend(run, 4, tmp_path / "lists.parquet", exclude_seen=exclude_seen, batch_size=batch_size)
    wanted = {user: ranked(run, history, exclude_seen)[:4] for user, history in sequences(run).items()}
    assert_equal(read(path), wanted)


def test_the_fixture_has_users_whose_rows_do_not_hold_all_that_they_had(run: Path) -> None:
    """After a temporal split the latest items are in no row; after each split the latest row lacks the oldest."""
    latest: dict[str, list[int]] = {}
    for split in ("train", "valid", "test"):
        frame = pl.read_parquet(run / "dataset" / f"{split}-*.parquet").sort("row")
        latest |= {raw_ids(run, "user")[user]: items for user, items in frame.select("user", "items").iter_rows()}
    all_items = sequences(run)
    ends_early = [user for user, items in latest.items() if items != all_items[user][-len(items) :]]
    assert bool(ends_early) == ("split: temporal" in (run / "config.yaml").read_text())
    assert any(set(items) < set(all_items[user]) for user, items in latest.items())


def test_a_dataset_without_its_sequences_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "small"))
    (copy / "dataset" / "sequences.parquet").unlink()
    with pytest.raises(UserError, match=r"sequences.parquet is missing.*Prepare the dataset again"):
        recommend(copy, 3)


def test_lists_go_into_the_run_by_default_and_are_counted(run: Path) -> None:
    said: list[str] = []
    path = recommend(run, 2, say=said.append)
    assert path == run / "recommendations.parquet"
    assert said[0].startswith(f"wrote {len(read(path))} lists of 2 items")


def write_histories(path: Path, histories: dict) -> Path:
    path.write_text("".join(json.dumps({"user": user, "items": items}) + "\n\n" for user, items in histories.items()))
    return path


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_histories_of_a_file_are_scored_by_raw_id(run: Path, tmp_path: Path, batch_size: int) -> None:
    items = raw_ids(run, "item")
    numbers = {"short": [3], "long": [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 1], "näme": [5, 5]}
    raw = {user: [items[number] for number in history] for user, history in numbers.items()}
    raw["short"] += ["not an item", 17]
    raw["nobody"] = ["not an item"]
    said: list[str] = []
    path = recommend(
        run,
        3,
        tmp_path / "lists.parquet",
        write_histories(tmp_path / "histories.jsonl", raw),
        exclude_seen=True,
        batch_size=batch_size,
        say=said.append,
    )
    assert_equal(read(path), {user: ranked(run, history, True)[:3] for user, history in numbers.items()})
    assert "3 lists" in said[0]
    assert "3 items of" in said[0]
    assert "1 histories without a known item" in said[0]


def lists_on_ranks(rank: int, world_size: int, run: str, folder: str, histories: str) -> list[str]:
    """Lists of all users and of a file's histories, in batches of which the ranks have different numbers."""
    said: list[str] = []
    of_users, of_file = Path(folder) / "users.parquet", Path(folder) / "file.parquet"
    recommend(run, 3, of_users, batch_size=7, say=said.append)
    recommend(run, 3, of_file, Path(histories), exclude_seen=True, batch_size=2, say=said.append)
    return said


def test_ranks_share_out_the_histories_and_the_table_and_write_one_file(run: Path, tmp_path: Path) -> None:
    items = list(raw_ids(run, "item").values())
    raw = {f"u{k}": [*items[k : k + 1 + k % 4], "not an item"] for k in range(7)} | {"nobody": ["not an item"]}
    histories = write_histories(tmp_path / "histories.jsonl", raw)
    (tmp_path / "1").mkdir()
    expected = lists_on_ranks(0, 1, str(run), str(tmp_path / "1"), str(histories))
    for world_size in (2, 3):
        folder = tmp_path / str(world_size)
        (folder / ".users.parts").mkdir(parents=True)
        shutil.copy(tmp_path / "1/users.parquet", folder / ".users.parts/00003.parquet")  # of a launch that was killed
        said = run_ranks(lists_on_ranks, world_size, str(run), str(folder), str(histories))
        assert said == [expected, *[[]] * (world_size - 1)]
        assert sorted(path.name for path in folder.iterdir()) == ["file.parquet", "users.parquet"]
        for name in ("file", "users"):
            found, whole = (read(tmp_path / f"{size}/{name}.parquet") for size in (world_size, 1))
            assert list(found) == list(whole), "the order of one process"
            for user, (listed, scores) in whole.items():
                assert found[user][0] == listed
                assert found[user][1] == pytest.approx(scores, abs=1e-5)


def test_fewer_unseen_items_give_a_shorter_list(run: Path, tmp_path: Path) -> None:
    items = list(raw_ids(run, "item").values())
    histories = write_histories(tmp_path / "histories.jsonl", {1: items[:-2], 2: items, 3: items[:1]})
    found = read(recommend(run, 3, tmp_path / "lists.parquet", histories, exclude_seen=True))
    assert set(found[1][0]) == set(items[-2:])
    assert found[2] == ([], [])
    assert len(found[3][0]) == 3


@pytest.mark.parametrize(("users", "wanted"), [([7, 8], [7, 8]), ([7, "b"], ["7", "b"]), ([2**70], [str(2**70)])])
def test_user_ids_keep_their_type_where_they_have_one(run: Path, tmp_path: Path, users: list, wanted: list) -> None:
    item = raw_ids(run, "item")[1]
    histories = write_histories(tmp_path / "histories.jsonl", {})
    histories.write_text("\n".join(json.dumps({"user": user, "items": [item]}) for user in users))
    assert list(read(recommend(run, 1, tmp_path / "lists.parquet", histories))) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user": 1, "items": ["nothing"]}', "There is nothing to recommend: 1 items of .* are not in the dataset"),
        ("", "There is nothing to recommend: there is no history"),
        ('\n{"user": 1}', "line 2 is not a history"),
        ('{"user": true, "items": []}', "line 1 is not a history"),
        ('{"user": 1, "items": [1.5]}', "line 1 is not a history"),
        ('{"user": 1, "items": 3}', "line 1 is not a history"),
        ("[1, 2]", "line 1 is not a history"),
        ("user,items", "line 1 is not JSON"),
        ("\udcff", "line 1 is not JSON"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(run: Path, tmp_path: Path, text: str, message: str) -> None:
    histories = tmp_path / "histories.jsonl"
    histories.write_bytes(text.encode(errors="surrogateescape"))
    output = tmp_path / "lists.parquet"
    old = recommend(run, 1, output).read_bytes()
    with pytest.raises(UserError, match=message):
        recommend(run, 3, output, histories)
    assert output.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


def test_impossible_requests_are_refused(run: Path, tmp_path: Path) -> None:
    num_items = len(raw_ids(run, "item"))
    for n in (0, num_items + 1):
        with pytest.raises(UserError, match=f"ask for 1…{num_items}"):
            recommend(run, n, tmp_path / "lists.parquet")
    with pytest.raises(UserError, match="at least 1"):
        recommend(run, 3, tmp_path / "lists.parquet", batch_size=0)
    with pytest.raises(UserError, match="is not a file"):
        recommend(run, 3, tmp_path / "lists.parquet", tmp_path / "absent")
    with pytest.raises(UserError, match="is a folder"):
        recommend(run, 3, tmp_path, tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="special file"):
        recommend(run, 3, tmp_path / "pipe")
    (tmp_path / "pipe").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be a folder to write into: File exists"):
        recommend(run, 3, tmp_path / "file" / "lists.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("key", ["num_items", "max_length"])
def test_a_student_of_another_dataset_is_refused(run: Path, tmp_path: Path, key: str) -> None:
    """The largest that a history may be is in no weight of GRU4Rec: only the dataset tells that it was changed."""
    copy, sizes = Path(shutil.copytree(run, tmp_path / "small")), {"num_items": 12, "max_length": 7}
    sizes[key] = 1
    model = models.build(models.config_class("gru4rec").model_validate({"width": 8}), **sizes, seed=0)
    model.save_pretrained(copy / "student")
    with pytest.raises(
        UserError, match=rf"knows {sizes['num_items']} items and reads histories of {sizes['max_length']}"
    ):
        recommend(copy, 3)


def test_a_run_without_a_student_says_which_stage_is_missing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"Stage distill .* is not done yet"):
        recommend(tmp_path, 3)
