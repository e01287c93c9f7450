"""A Dockerfile carried out without an engine: files copied and RUN lines run, in folders that stand for images."""

import fnmatch
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile and their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, " ".join(rest.split())


def is_sent(path: Path, ignore: Path) -> bool:
    """Whether a path of the checkout gets to the engine, by .dockerignore: the last pattern that matches decides."""
    sent = True
    for pattern in ignore.read_text(encoding="utf-8").split():
        allows, name = pattern.startswith("!"), pattern.removeprefix("!").removeprefix("**/")
        parents = [path, *path.parents]
        if any(fnmatch.fnmatch(str(each), name) or fnmatch.fnmatch(each.name, name) for each in parents if each.name):
            sent = allows
    return sent


class Images:
    """The stages of a Dockerfile as folders below `folder`; `environ` has the variables of every RUN line."""

    def __init__(self, checkout: Path, folder: Path, environ: Mapping[str, str]) -> None:
        self._checkout, self._folder, self._environ = checkout, folder, dict(environ)
        self._stage, self._working = folder, folder
        self.entry = ""

    def build(self, dockerfile: Path) -> None:
        """Carry out all instructions; CalledProcessError where a RUN line fails."""
        for name, rest in instructions(dockerfile):
            match name:
                case "FROM":
                    self._begin(rest)
                case "WORKDIR":
                    self._working = self._of_image(rest)
                    self._working.mkdir(parents=True, exist_ok=True)
                case "ARG" | "ENV" if "=" in rest:
                    key, _, value = rest.partition("=")
                    self._environ[key] = value.strip('"')
                case "COPY":
                    self._copy(rest.split())
                case "RUN":
                    self.run(rest)
                case "ENTRYPOINT":
                    self.entry = rest.strip('[]"')

    def run(self, line: str) -> str:
        """What a line of shell prints, in the working folder of the last stage."""
        places = re.sub(r"(?<=[ (])/(?=\w)", f"{self._stage}/", line)
        command = ["bash", "-euc", places]
        done = subprocess.run(
            command, cwd=self._working, env=self._environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _begin(self, rest: str) -> None:
        """A new stage, in a folder of its own."""
        self._stage = self._folder / (rest.split(" AS ")[1] if " AS " in rest else "last")
        self._stage.mkdir()
        self._working = self._stage

    def _of_image(self, path: str) -> Path:
        return self._stage / path.lstrip("/") if path.startswith("/") else self._working / path

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        origin = self._checkout
        if sources[0].startswith("--from="):
            origin = self._folder / sources.pop(0).removeprefix("--from=")
        for source in sources:
            path = origin / source.lstrip("/")
            if origin == self._checkout:
                assert is_sent(Path(source), self._checkout / ".dockerignore"), f"{source} does not get to the engine"
            place = self._of_image(target)
            if path.is_dir():
                shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, place)
