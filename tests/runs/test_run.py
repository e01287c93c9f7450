"""A run's folder as its readers see it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers.run_folders import make_run

READ = """
import json, sys
from csrec_dist.runs.run import Run
run = Run.open(sys.argv[1])
read = [run.config.name, run.require("distill").usage, run.missing, [row.test for row in run.results], run.metrics]
read += [list(run.trainings), run.dataset.num_items]
heavy = [name for name in ("torch", "accelerate", "datasets", "scipy", "deepspeed") if name in sys.modules]
print(json.dumps({"heavy": heavy, "tests": len(read[3]), "models": read[5]}))
"""


def test_reading_a_run_imports_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    done = subprocess.run([sys.executable, "-c", READ, str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["heavy"] == []
    assert read["models"] == ["base", "student", "teacher-0", "teacher-1"]
    assert read["tests"] == 4
