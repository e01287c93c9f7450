"""A benchmark on two machines: each has its name and its rank in the result."""

import sys
from pathlib import Path

import pytest

from csrec_dist.bench.result import read_result
from tests.cluster.test_two_namespaces import outputs, start_nodes
from tests.helpers.bench_results import SMALL
from tests.helpers.machines import two_machines

pytestmark = [pytest.mark.cluster, pytest.mark.long]


def test_a_benchmark_on_two_machines(tmp_path: Path) -> None:
    with two_machines(tmp_path) as machines:
        command = ["bench", *SMALL, "--output", str(tmp_path / "two.json")]
        first, second = outputs(start_nodes(machines, tmp_path, command, PYTHON=sys.executable), tmp_path)
    result = read_result(tmp_path / "two.json")
    assert [(machine.name, machine.ranks) for machine in result.machines] == [("node0", [0]), ("node1", [1])]
    assert sum(result.stages["distill"].examples) == result.log.examples
    assert ("examples/s" in first, "examples/s" in second) == (True, False)
