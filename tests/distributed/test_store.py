"""Of ranks that have the same to say the first says it, by the store that their launcher keeps."""

import pytest
import torch.distributed as dist

from csrec_dist.distributed import store as stores
from csrec_dist.distributed.store import is_first_to_say
from tests.helpers.ranks import free_port


def test_each_text_is_said_once_a_start() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "r"}
    environ = launcher | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert [is_first_to_say(text, environ) for text in ("one", "one", "two", "one")] == [True, False, True, False]
    assert is_first_to_say("one", environ | {"TORCHELASTIC_RESTART_COUNT": "1"}) is True
    assert is_first_to_say("three", launcher) is None, "a store of rank 0 ends with it"
    assert is_first_to_say("three", launcher | {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None
    assert is_first_to_say("three", {}) is None


def test_nobody_knows_when_the_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ANSWER_SECONDS", 0.1)
    gone = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    assert is_first_to_say("text", gone) is None
