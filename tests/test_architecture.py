"""The rules of the architecture: imports run one way, and only distributed/ knows the engines."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "csrec_dist"
FLOORS = [
    {"errors", "threads", "options", "lazy", "environment", "terminal"},
    {"storage", "writers", "processes"},
    {"files", "memory", "process_state", "hub", "kernels"},
    {"lock"},
    {"tensor_files", "data", "distributed"},
    {"models", "losses", "doctor"},
    {"teachers", "evaluation", "labels", "training"},
    {"config", "export"},
    {"runs", "packaged_configs"},
    {"report", "recommend", "plan", "init"},
    {"api", "bench", "serve", "experiments"},
    {"cli"},
    {"__main__"},
]
"""What may import what: a part imports only parts of lower floors. Imports inside functions count too."""


@cache
def package_files() -> list[Path]:
    """All modules of the package."""
    return sorted(PACKAGE.rglob("*.py"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = ["csrec_dist", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(name: str) -> str:
    """The folder or file right below the package that a module belongs to."""
    return [*name.split("."), "__init__"][1]


def test_every_part_has_its_floor() -> None:
    parts = {part(module_name(path)) for path in package_files()} - {"__init__"}
    assert parts == set().union(*FLOORS)
    assert sum(len(floor) for floor in FLOORS) == len(parts), "a part stands on two floors"


def test_parts_import_lower_floors_only() -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in package_files()
        for name in imports(path)
        if (importer := part(module_name(path))) in floor_of
        and (other := part(name)) in floor_of
        and name.startswith("csrec_dist.")
        and other != importer
        and floor_of[other] >= floor_of[importer]
    ]
    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_name(path) for path in package_files()}
    graph = {}
    for path in package_files():
        name = module_name(path)
        ancestors = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        graph[name] = (imports(path) & modules) - {name} - ancestors
    packages = {module_name(path) for path in package_files() if path.name == "__init__.py"}
    for package in packages:  # what imports a package may mean any of its modules, which it lists itself
        graph[package] = {name for name in graph[package] if not name.startswith(f"{package}.")}
    TopologicalSorter(graph).prepare()


def test_only_distributed_knows_the_engines() -> None:
    knowing = {
        (module_name(path), name)
        for path in package_files()
        if part(module_name(path)) != "distributed"
        for name in imports(path)
        if name.startswith(("accelerate", "deepspeed", "torch.distributed"))
    }
    assert not knowing


def test_no_import_is_hidden_from_these_rules() -> None:
    """What is imported for annotations alone is imported too: only packages that load their modules late do that."""
    hidden = [
        (path, node)
        for path in package_files()
        if path.name != "__init__.py"
        for block in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("csrec_dist")
    ]
    assert not hidden


@pytest.mark.parametrize("name", ["bench", "experiments"])
def test_only_the_command_line_imports_experiments_and_benchmarks(name: str) -> None:
    importers = {
        part(module_name(path))
        for path in package_files()
        if any(each.startswith(f"csrec_dist.{name}") for each in imports(path))
    }
    assert importers == {"cli", name}


def test_only_the_command_line_changes_what_cannot_be_changed_back() -> None:
    lasting = {"memory.set_allocator", "processes.end_with_parent", "threads.choose"}
    importers = {
        module_name(path)
        for path in package_files()
        for name in imports(path)
        if name.removeprefix("csrec_dist.") in lasting
    }
    assert {part(name) for name in importers} == {"cli"}


def test_every_file_opens_with_one_line_that_says_what_it_is() -> None:
    for path in package_files():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, path
        assert text.splitlines()[0].endswith((".", ":")), path


def test_nothing_is_unpickled_and_yaml_is_loaded_safely() -> None:
    """Calls, not words: `pickle`, `torch.load`, and YAML loaders but the safe ones."""
    for path in package_files():
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("yaml", "unsafe_load")}, path
