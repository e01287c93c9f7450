"""How the code is cut into files and functions: `python benchmarks/structure.py BASE [HEAD]`.

Counts the package of two commits, or of a commit and the working tree, and prints them side by side. Only the source is
read (ast); nothing is imported.
"""

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "csrec_dist"
SHORT_FILE, LONG_FILE, LONG_FUNCTION, MANY_PARAMETERS = 40, 400, 40, 9

Sources = dict[str, str]
"""The text of each file by its path below the package's parent folder."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources_of(commit: str | None) -> Sources:
    """The package's files in a commit, or in the working tree."""
    if commit is None:
        return {
            str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(ROOT.glob(f"{PACKAGE}/**/*.py"))
        }
    command = ["git", "-C", str(ROOT), "archive", commit, PACKAGE]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        members = [member for member in files if member.name.endswith(".py")]
        return {member.name: files.extractfile(member).read().decode() for member in members}  # type: ignore[union-attr]


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the last statement, the docstring among them."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def num_parameters(function: Function) -> int:
    """Those that a caller gives: not `self` or `cls`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def num_comment_lines(text: str) -> int:
    """Lines that hold a comment, alone or behind code; docstrings are none."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def module_name(path: str) -> str:
    """The dotted name of a file's module."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, wherever the statement stands."""
    names = {
        f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names & modules


def num_floors(graph: dict[str, set[str]]) -> int:
    """The length of the longest chain of imports between the parts right below the package.

    Raises graphlib.CycleError where parts import each other.
    """
    parts = {module: [*module.split("."), "__init__"][1] for module in graph}
    below: dict[str, set[str]] = {part: set() for part in parts.values()}
    for module, names in graph.items():
        below[parts[module]] |= {parts[name] for name in names} - {parts[module], "__init__"}
    below.pop("__init__", None)
    floors: dict[str, int] = {}
    for part in TopologicalSorter(below).static_order():
        floors[part] = 1 + max((floors[other] for other in below[part]), default=0)
    return max(floors.values())


def measure(sources: Sources) -> dict[str, float]:
    """The figures of a package, by what they are."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    lines = [text.count("\n") for text in sources.values()]
    every = [function for tree in trees.values() for function in functions(tree)]
    lengths, parameters = [length(each) for each in every], [num_parameters(each) for each in every]
    modules = {module_name(path) for path in sources}
    graph = {module_name(path): imported(tree, modules) for path, tree in trees.items()}
    return {
        "files": len(sources),
        f"files under {SHORT_FILE} lines": sum(each < SHORT_FILE for each in lines),
        f"files over {LONG_FILE} lines": sum(each > LONG_FILE for each in lines),
        "median lines of a file": median(lines),
        "lines": sum(lines),
        "functions": len(every),
        "median lines of a function": median(lengths),
        f"functions over {LONG_FUNCTION} lines": sum(each > LONG_FUNCTION for each in lengths),
        f"functions with over {MANY_PARAMETERS} parameters": sum(each > MANY_PARAMETERS for each in parameters),
        "most parameters": max(parameters),
        "comment lines, %": round(100 * sum(map(num_comment_lines, sources.values())) / sum(lines), 1),
        "floors of imports": num_floors(graph),
    }


def main() -> None:
    """Print the figures of two versions as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a commit")
    parser.add_argument("head", nargs="?", help="another commit (default: the working tree)")
    args = parser.parse_args()
    base, head = measure(sources_of(args.base)), measure(sources_of(args.head))
    print(f"| | {args.base} | {args.head or 'working tree'} |\n|---|---:|---:|")
    for name in base:
        print(f"| {name} | {base[name]:g} | {head[name]:g} |")


if __name__ == "__main__":
    main()
