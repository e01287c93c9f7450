"""Fixtures of the tests of clusters."""

from pathlib import Path

import pytest

from tests.helpers.cluster_runs import run_alone, write_config
from tests.helpers.machines import two_machines


@pytest.fixture(scope="session")
def config(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the run."""
    return write_config(tmp_path_factory.mktemp("cluster"), small_log)


@pytest.fixture(scope="session")
def may_make_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where machines cannot be made, before any longer work."""
    with two_machines(tmp_path_factory.mktemp("machines")):
        pass


@pytest.fixture(scope="session")
def one_process(may_make_machines: None, config: Path) -> Path:
    """The folder of the run on one process."""
    return run_alone(config, config.parent / "one")
