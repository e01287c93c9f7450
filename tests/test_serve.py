"""The service answers with the recommender's own lists, and says what is wrong with a request."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from csrec_dist import Recommender
from csrec_dist.errors import UserError
from csrec_dist.serve import Limits, build_app, serve
from tests.helpers.finished_runs import refused
from tests.helpers.run_folders import make_run

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Limits(body_bytes=2000, top_n=5, lists=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not evaluated: its metrics are made up."""
    run = make_run(tmp_path_factory.mktemp("serve"), method="base")
    (run / "evaluate.done.json").unlink()
    return run


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.from_pretrained(run)


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> Iterator[TestClient]:
    with TestClient(build_app(recommender, LIMITS)) as client:
        yield client


@pytest.fixture(scope="module")
def items(recommender: Recommender) -> list[str]:
    return recommender.items.values.to_pylist()


def asked(client: TestClient, **question: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def lists_of(recommender: Recommender, of: list[Any], **arguments: Any) -> list[dict[str, Any]]:
    """The recommender's lists of some, in the form of an answer."""
    frame = recommender.recommend(**arguments)
    rows = {user: frame[frame["user"] == user] for user in of}
    return [{"user": user, "items": rows[user]["item"].tolist(), "scores": rows[user]["score"].tolist()} for user in of]


@pytest.mark.parametrize("options", [{}, {"top_n": 2, "exclude_seen": True}])
def test_users_get_the_recommenders_lists_in_their_order(
    client: TestClient, recommender: Recommender, options: dict[str, Any]
) -> None:
    users = ["u007", "u001", "u003"]
    answer = asked(client, users=users, **options)
    wanted = lists_of(recommender, users, **{"users": users, "top_n": 5, **options})
    assert answer == {"lists": wanted, "unknown_items": 0}
    assert bool(answer["lists"][0]["items"]) == (not options), "this user has seen all items"
    assert [each["user"] for each in asked(client, users=["u001", "u001"])["lists"]] == ["u001", "u001"]


def test_histories_keep_their_places_and_unknown_items_are_counted(
    client: TestClient, recommender: Recommender, items: list[str]
) -> None:
    options = {"top_n": 3, "exclude_seen": True}
    answer = asked(client, histories=[[items[3], "?", items[0]], ["?"], [items[5], items[2]]], **options)
    known = {0: [items[3], items[0]], 2: [items[5], items[2]]}
    first, third = lists_of(recommender, [0, 2], histories=known, **options)
    assert answer == {"lists": [first, {"user": 1, "items": [], "scores": []}, third], "unknown_items": 2}


def test_only_some_items_may_be_chosen_from(client: TestClient, items: list[str]) -> None:
    answer = asked(client, histories=[[items[3], "?", "??"]], items=[items[8], items[1], "?"], top_n=5)
    assert sorted(answer["lists"][0]["items"]) == sorted([items[1], items[8]])
    assert answer["unknown_items"] == 2, "those of the history alone"


def test_nobody_gets_nothing(client: TestClient) -> None:
    for nobody in ({"users": []}, {"histories": []}):
        assert asked(client, **nobody) == {"lists": [], "unknown_items": 0}


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        ({"users": ["u001", "c99"]}, 400, "no user 'c99'"),
        ({"histories": [["a"]], "items": ["?"]}, 400, "None of the items to choose from"),
        ({"users": ["u001"], "histories": [["a"]]}, 422, "give either users or histories"),
        ({}, 422, "give either users or histories"),
        ({"users": ["u001"], "top_n": 6}, 422, "body.top_n: Input should be less than or equal to 5"),
        ({"users": ["u001"], "top_n": 0}, 422, "body.top_n: Input should be greater than or equal to 1"),
        ({"users": ["u001"], "top_n": True}, 422, "body.top_n: Input should be a valid integer"),
        ({"users": ["u001"], "top_n": "3"}, 422, "body.top_n: Input should be a valid integer"),
        ({"users": ["u001"], "exclude_seen": "no"}, 422, "body.exclude_seen: Input should be a valid boolean"),
        ({"users": ["a"] * 4}, 422, "body.users: List should have at most 3 items after validation, not 4."),
        ({"histories": [["a"]] * 4}, 422, "body.histories: List should have at most 3 items after validation, not 4."),
        ({"histories": [[1.5]]}, 422, "body.histories.0.0"),
        ({"histories": [[True]]}, 422, "body.histories.0.0"),
        ({"histories": [["a"]], "exclude": True}, 422, "body.exclude: Extra inputs are not permitted"),
        ({"histories": "a"}, 422, "body.histories"),
        ([1], 422, "body"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(client: TestClient, question: Any, status: int, said: str) -> None:
    answer = client.post("/recommend", json=question)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 1900, b'{"users": [' + b"9" * 1900 + b"]}"])
def test_a_body_that_is_no_question_is_the_clients_mistake(client: TestClient, body: bytes) -> None:
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert isinstance(answer.json()["detail"], str)


def test_a_body_has_a_largest_size_whether_it_is_declared_or_not(client: TestClient) -> None:
    filler = b" " * (LIMITS.body_bytes - len(b'{"users": ["u001"]}'))
    fits, large = b'{"users": ["u001"]}' + filler, b'{"users": ["u001"]}' + filler + b" "
    head = {"content-type": "application/json"}
    for content, status in ((fits, 200), (large, 413), (iter([fits]), 200), (iter([fits, b" "]), 413)):
        answer = client.post("/recommend", content=content, headers=head)
        assert answer.status_code == status
    assert "more than 2,000 bytes" in answer.json()["detail"]


def test_other_addresses_and_methods_are_refused(client: TestClient) -> None:
    assert client.get("/recommend").status_code == 405
    assert client.post("/none").status_code == 404


def test_health_and_the_openapi_page(client: TestClient, recommender: Recommender) -> None:
    health = client.get("/health").json()
    assert (health["status"], health["model"], health["num_users"]) == ("ok", "sasrec", recommender.dataset.num_users)  # type: ignore[union-attr]
    assert (health["num_items"], health["max_length"]) == (recommender.model.num_items, recommender.model.max_length)
    assert "swagger" in client.get("/docs").text.lower()
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/recommend"}
    assert set(described["paths"]["/recommend"]["post"]["responses"]) == {"200", "400", "413", "422"}
    assert described["components"]["schemas"]["Question"]["properties"]["top_n"]["maximum"] == LIMITS.top_n


def test_a_model_without_its_dataset_serves_histories(
    recommender: Recommender, items: list[str], tmp_path: Path
) -> None:
    recommender.save_pretrained(tmp_path)
    with TestClient(build_app(Recommender.from_pretrained(tmp_path))) as client:
        assert client.get("/health").json()["num_users"] is None
        assert len(asked(client, histories=[items[:2]])["lists"][0]["items"]) == 10
        answer = client.post("/recommend", json={"users": ["u001"]})
        assert answer.status_code == 400
        assert "Give histories" in answer.json()["detail"]


@contextmanager
def served(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves a run, and its address."""
    command = [sys.executable, "-u", "-m", "csrec_dist", "serve", str(run), "--port", "0", "--max-lists", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    # A shell starts what is to run in the background with SIGINT ignored, which children inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "serving Recommender(sasrec" in line
            yield process, next(word for word in line.split() if word.startswith("http")).rstrip(";")
        finally:
            process.kill()


def test_the_command_serves_this_machine_alone_until_it_is_stopped(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(run) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert httpx2.get(f"{address}/health").json()["status"] == "ok"
        large = httpx2.post(
            f"{address}/recommend", content=b" " * (1 << 22), headers={"content-type": "application/json"}
        )
        assert large.status_code == 413
        assert httpx2.post(f"{address}/recommend", json={"users": ["u001"] * 3}).status_code == 422
        lists = httpx2.post(f"{address}/recommend", json={"users": ["u001"]}).json()["lists"]
        assert len(lists[0]["items"]) == 10
        assert "cannot be served" in refused(capsys, "serve", str(run), "--port", address.rpartition(":")[2])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_mistakes_of_the_command(run: Path, recommender: Recommender, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither the folder of a run" in refused(capsys, "serve", str(run / "dataset"))
    assert "must be at least 1, not 1048576, 0, 256" in refused(capsys, "serve", str(run), "--max-top-n", "0")
    for host, port in (("127.0.0.1", 70000), ("no.such.host.invalid", 0), ("ä..b", 0), ("a\0b", 0), ("a" * 300, 0)):
        with pytest.raises(UserError, match=rf"{host[:50]}.*:{port} cannot be served"):
            serve(recommender, host, port)
