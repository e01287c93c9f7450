"""`init`: its config prepares to what it said, every line of it can be switched on, and nothing is overwritten."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from csrec_dist.cli import main
from csrec_dist.config import load_config, parse_config
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import UserError
from csrec_dist.init.asking import Decisions
from csrec_dist.init.command import init_from_log

USERS, ITEMS = 30, 8


def rows(step: int = 3_600, first: int = 1_700_000_000) -> list[tuple[str, str, int, int]]:
    """User, item, rating and time; a fifth of the items are repeats, users have 6 to 13 interactions."""
    return [
        (f"u{user}", f"i{(user + place) % ITEMS}", 1 + (user + place) % 5, first + step * (20 * user + place))
        for user in range(USERS)
        for place in range(6 + user % 8)
    ]


def write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> Path:
    path.write_text("\n".join(",".join(map(str, line)) for line in (header, *lines)) + "\n")
    return path


def init(
    log: Path, output: Path, *overrides: str, answers: Sequence[str] | None = None, overwrite: bool = False
) -> tuple[dict[str, Any], list[str], list[str]]:
    """`dataset` of the config that is written, what was said, and the questions; nobody answers without answers."""
    said: list[str] = []
    questions: list[str] = []
    given = iter(answers or ())

    def ask(question: str) -> str:
        questions.append(question)
        return next(given)

    decisions = Decisions(said.append, None if answers is None else ask)
    init_from_log(str(log), output, overrides, decisions, said.append, overwrite)
    assert next(given, None) is None, "every answer was asked for"
    return yaml.safe_load(output.read_text())["dataset"], said, questions


HEADER = ("user", "item", "rating", "timestamp")
FORMS = {
    "comma": ("log.csv", lambda: [",".join(HEADER), *(",".join(map(str, row)) for row in rows())]),
    "strange": ("log.csv", lambda: ["user_id;movie: #1;when", *(f"{u};{i};{t}" for u, i, _, t in rows())]),
    "inter": (
        "log.inter",
        lambda: ["user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, _, t in rows())],
    ),
    "json": ("log.jsonl", lambda: [f'{{"uid": "{u}", "asin": "{i}", "ts": {t}}}' for u, i, _, t in rows()]),
    "movielens": ("u.data", lambda: [f"{u[1:]}\t{i[1:]}\t{r}\t{t}" for u, i, r, t in rows()]),
    "sasrec": ("pairs.txt", lambda: [f"{u[1:]} {i[1:]}" for u, i, _, _ in rows()]),
}
GIVEN = {"strange": ["dataset.columns.item=movie: #1", "dataset.columns.timestamp=when"]}


def quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}={value!r}"


@pytest.mark.parametrize("form", FORMS)
def test_a_config_prepares_to_what_init_said_of_the_log(form: str, tmp_path: Path) -> None:
    name, lines = FORMS[form]
    (tmp_path / name).write_text("\n".join(lines()) + "\n")
    written, said, _ = init(tmp_path / name, tmp_path / "shop.yaml", *map(quoted, GIVEN.get(form, [])))
    config = load_config(tmp_path / "shop.yaml")
    info = prepare(config.dataset, tmp_path / "dataset")
    train, counts = info["splits"]["train"], info["statistics"]
    assert said[0].startswith(f"read {tmp_path / name} as ")
    assert any(
        f"{counts['interactions']:,} interactions of {counts['users']:,} users and {counts['items']:,} items" in line
        for line in said
    )
    assert any(f"{train['num_rows']:,} to train on, with {train['num_examples']:,} examples" in line for line in said)
    assert any(line.startswith(f"{counts['repeats']:,} interactions are with an item") for line in said)
    named = written.get("columns", {})
    assert {role: info["reading"]["columns"][role] for role in named} == named
    are_of_the_form = form in ("movielens", "sasrec")
    assert named == {} if are_of_the_form else set(named) >= {"user", "item", "timestamp"}


@pytest.mark.parametrize("form", ["comma", "movielens"])
def test_every_line_that_is_commented_out_is_a_key_with_a_value_that_fits(form: str, tmp_path: Path) -> None:
    name, lines = FORMS[form]
    (tmp_path / name).write_text("\n".join(lines()) + "\n")
    init(tmp_path / name, tmp_path / "shop.yaml")
    text = (tmp_path / "shop.yaml").read_text()
    switched_on = re.sub(r"^(  +)# (\w+: +\S)", r"\1\2", text, flags=re.MULTILINE)
    active, all_keys = yaml.safe_load(text), yaml.safe_load(switched_on)
    config = parse_config(all_keys)
    assert {"windows", "split"} <= all_keys["dataset"].keys() - active["dataset"].keys()
    assert config.training.is_resolved


def test_the_values_by_size_are_those_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_csv(tmp_path / "log.csv", HEADER, rows())
    init(log, tmp_path / "shop.yaml")
    names = "batch_size|learning_rate|warmup_steps|max_epochs|patience"
    text = (tmp_path / "shop.yaml").read_text()
    shown = dict(re.findall(rf"^  # ({names}): ([\d.]+)", text, re.MULTILINE))
    assert main(["prepare", "--config", str(tmp_path / "shop.yaml"), "--set", f"output={tmp_path}"]) == 0
    training = yaml.safe_load((tmp_path / "shop/config.yaml").read_text())["training"]
    assert {key: float(value) for key, value in shown.items()} == {key: training[key] for key in shown}
    assert len(shown) == 5


def test_a_file_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", HEADER, rows())
    output = tmp_path / "shop.yaml"
    output.write_text("name: mine\n")
    with pytest.raises(UserError, match="--overwrite"):
        init(log, output)
    assert output.read_text() == "name: mine\n"
    assert init(log, output, overwrite=True)[0]["source"] == str(log)


def test_the_log_itself_is_never_replaced(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", HEADER, rows())
    before = log.read_bytes()
    with pytest.raises(UserError, match="the log itself"):
        init(log, log, overwrite=True)
    assert log.read_bytes() == before


def test_by_default_the_file_is_named_after_the_log_and_the_next_command_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "my clicks.csv", HEADER, rows())
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my clicks.csv", "--set", "dataset.num_shards=3"]) == 0
    *_, next_command = capsys.readouterr().out.splitlines()
    assert next_command == "next: csrec-dist run --config 'my clicks.yaml'"
    written = yaml.safe_load((tmp_path / "my clicks.yaml").read_text())
    assert (written["name"], written["dataset"]["num_shards"]) == ("my_clicks", 3)
    assert main(["init", "my clicks.csv"]) == 2
    assert "my clicks.yaml is there already" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["training.beta=0.5", "model=gru4rec"])
def test_keys_that_say_nothing_of_the_log_are_refused(key: str, tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", HEADER, rows())
    with pytest.raises(UserError, match=key.partition("=")[0]):
        init(log, tmp_path / "shop.yaml", key)


SESSIONS = ("sessionId", "userId", "itemId", "time")
BOTH = [(f"s{user}", user, item, time) for user, item, _, time in rows()]


def test_users_or_sessions_are_asked_for_or_users_are_taken_and_it_is_said(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", SESSIONS, BOTH)
    written, said, _ = init(log, tmp_path / "a.yaml")
    assert written["columns"]["user"] == "userId"
    assert any(line.startswith("decided: ") and "userId" in line and "sessionId" in line for line in said)
    written, said, questions = init(log, tmp_path / "b.yaml", answers=["sessionid", "sessionId"])
    assert written["columns"]["user"] == "sessionId"
    assert any("did you mean 'sessionId'?" in line for line in said), "an answer that is none is asked for again"
    assert len(questions) == 2
    assert not any(line.startswith("decided: ") for line in said)


def test_without_a_time_the_rows_count_as_in_order_or_a_column_is_named(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", ("user", "item", "moment"), [(u, i, t) for u, i, _, t in rows()])
    written, said, _ = init(log, tmp_path / "a.yaml")
    assert written["columns"]["timestamp"] == "none"
    assert any(line.startswith("decided: no column is named like a time") for line in said)
    assert "no timestamps: the order of the rows counts as the order in time" in said
    assert init(log, tmp_path / "b.yaml", answers=["moment"])[0]["columns"]["timestamp"] == "moment"
    assert init(log, tmp_path / "c.yaml", answers=[""])[0]["columns"]["timestamp"] == "none", "the default"


def test_a_mistake_that_no_minimum_mends_is_said(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", ("user", "item", "moment"), [(u, i, t) for u, i, _, t in rows()])
    with pytest.raises(UserError, match="exact"):
        init(log, tmp_path / "a.yaml", "dataset.duplicates=exact")


def test_an_item_that_no_name_tells_is_asked_for_and_never_decided(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", ("user", "thing", "time"), [(u, i, t) for u, i, _, t in rows()])
    with pytest.raises(UserError, match=r"Give init --set dataset\.columns\.item=NAME"):
        init(log, tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()
    assert init(log, tmp_path / "a.yaml", answers=["", "thing"])[0]["columns"]["item"] == "thing"
    assert init(log, tmp_path / "b.yaml", "dataset.columns.item=thing")[0]["columns"]["item"] == "thing"


@pytest.mark.parametrize(("step", "default"), [(3_600, "exact"), (86_400, "keep")])
def test_rows_written_twice_are_dropped_unless_times_are_days(step: int, default: str, tmp_path: Path) -> None:
    twice = [*rows(step, 1_699_920_000), *rows(step, 1_699_920_000)[:25]]  # begins at midnight
    log = write_csv(tmp_path / "log.csv", HEADER, twice)
    written, said, _ = init(log, tmp_path / "a.yaml")
    assert written["duplicates"] == default
    assert any(line.startswith("decided: 25 rows repeat another one") for line in said)
    for answer, expected in (("yes", "exact"), ("no", "keep"), ("", default)):
        assert init(log, tmp_path / f"{expected}-{answer}.yaml", answers=[answer])[0]["duplicates"] == expected


def test_a_log_of_short_sequences_keeps_most_of_its_interactions(tmp_path: Path) -> None:
    short = [(u, i, r, t) for u, i, r, t in rows() if (t - 1_700_000_000) // 3_600 % 20 < 4]
    written, said, _ = init(write_csv(tmp_path / "log.csv", HEADER, short), tmp_path / "a.yaml")
    assert written["min_interactions"] == 3, "all users have four, so that a minimum of five leaves nothing"
    assert any(line.startswith("with min_interactions 3: 120 interactions of 30 users") for line in said)
    assert init(tmp_path / "log.csv", tmp_path / "b.yaml", "dataset.min_interactions=2")[0]["min_interactions"] == 2
    guests = [(f"guest{number}", "i0", 5, 1_700_000_000) for number in range(100)]
    mixed = write_csv(tmp_path / "mixed.csv", HEADER, [*rows(), *guests])
    assert init(mixed, tmp_path / "c.yaml")[0]["min_interactions"] == 5, "most interactions are of others than guests"


@pytest.mark.parametrize(
    ("lengths", "window"), [([9] * 3 + [900], 10), ([9] * 2 + [11] * 2, 20), ([40, 60, 90, 90], 100), ([500] * 4, 200)]
)
def test_the_window_holds_three_quarters_of_the_sequences(lengths: list[int], window: int, tmp_path: Path) -> None:
    lines = [(user, place % 5, place) for user, length in enumerate(lengths) for place in range(length)]
    log = write_csv(tmp_path / "log.csv", ("user", "item", "time"), lines)
    written, _, _ = init(log, tmp_path / "a.yaml")
    assert written["window"] == window
    assert sum(length <= window for length in lengths) >= 3 or window == 200


def test_what_it_saw_of_ratings_and_lengths(tmp_path: Path) -> None:
    _, said, _ = init(write_csv(tmp_path / "log.csv", HEADER, rows()), tmp_path / "a.yaml")
    values = [row[2] for row in rows()]
    assert f"ratings: 1 to 5, {sum(values) / len(values):.2f} on average, 5 different ones" in said
    assert any(line.endswith("three quarters up to 11, the longest 13") for line in said)
    no_ratings = write_csv(tmp_path / "plain.csv", ("user", "item", "time"), [(u, i, t) for u, i, _, t in rows()])
    assert "ratings: none" in init(no_ratings, tmp_path / "b.yaml")[1]


def test_a_first_line_that_may_be_data_is_asked_for(tmp_path: Path) -> None:
    lines = [(u[1:], t, i[1:], r) for u, i, r, t in rows()]
    log = write_csv(tmp_path / "log.csv", lines[0], lines[1:])
    with pytest.raises(UserError, match=r"Give init the same, such as --set dataset\.header=false"):
        init(log, tmp_path / "a.yaml")
    written, said, questions = init(log, tmp_path / "a.yaml", answers=["yes", "1", "3", "2", "4"])
    assert written["header"] is False
    assert written["columns"] == {"user": 1, "item": 3, "timestamp": 2, "rating": 4}
    assert "(1, 2, 3, 4)" in questions[1]
    assert "(none, 4)" in questions[-1], "what is taken is not offered again"
    assert f"read {len(lines):,} interactions of {USERS} users and {ITEMS} items" in said
    info = prepare(load_config(tmp_path / "a.yaml").dataset, tmp_path / "dataset")
    assert info["statistics"]["raw_interactions"] == len(lines)
    plain = init(log, tmp_path / "b.yaml", answers=["yes", "1", "3", "none", "none"])[0]
    assert plain["columns"] == {"user": 1, "item": 3, "timestamp": "none", "rating": "none"}


def test_a_closed_input_takes_defaults_and_never_an_item(tmp_path: Path) -> None:
    def closed(question: str) -> str:
        raise EOFError

    decisions = Decisions(lambda line: None, closed)
    assert decisions.choose("Which?", ["a", "b"], "b", "") == "b"
    log = write_csv(tmp_path / "log.csv", ("user", "thing", "time"), [(u, i, t) for u, i, _, t in rows()])
    with pytest.raises(UserError, match="has no column that looks like the item"):
        init_from_log(str(log), tmp_path / "a.yaml", [], decisions, lambda line: None)


@pytest.mark.parametrize(("is_terminal", "is_silent"), [(True, False), (True, True), (False, False)])
def test_questions_need_a_terminal(is_terminal: bool, is_silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(is_terminal))
    monkeypatch.setattr("sys.stdout", Terminal(True))
    assert Decisions.of_terminal(print, is_silent).is_asking == (is_terminal and not is_silent)


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]
