"""The house's rules: imports run one way, and only distributed/ knows the engines."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "csrec_dist"
LAYERS = [
    {"environment", "errors", "files", "memory", "orphans", "runlock", "threads"},
    {"data", "models", "objectives", "distributed"},
    {"labels", "teachers", "evaluation", "config"},
    {"checkpoints", "restarts", "runthreads", "stagebook", "telemetry"},
    {"training"},
    {"stages"},
    {"pipeline", "runfolder", "starting"},
    {"report", "recommend", "plan", "doctor"},
    {"compare", "study"},
    {"cli", "__main__", "config_reference"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for name in imported(path):
        if name.startswith("csrec_dist."):
            other = name.split(".")[1]
            if other in LEVEL and other != part:
                assert LEVEL[other] <= LEVEL[part], f"{path.name} ({part}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_distributed_knows_the_engines(path: Path) -> None:
    if part_of(path) == "distributed":
        return
    for name in imported(path):
        assert not name.startswith(("accelerate", "deepspeed", "torch.distributed"))


def test_no_import_circle_within_a_layer() -> None:
    graph = {}
    for path in FILES:
        others = {name.split(".")[1] for name in imported(path) if name.startswith("csrec_dist.")}
        graph.setdefault(part_of(path), set()).update(others & LEVEL.keys())
    visiting: list[str] = []
    done: set[str] = set()

    def visit(part: str) -> None:
        assert part not in visiting, f"a circle: {' -> '.join([*visiting, part])}"
        if part in done:
            return
        visiting.append(part)
        for other in graph.get(part, set()) - {part}:
            visit(other)
        visiting.pop()
        done.add(part)

    for part in graph:
        visit(part)


def test_every_file_opens_with_what_it_is() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
