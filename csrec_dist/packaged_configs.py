"""The configs that come with the package: where they are, what each is for, and copies of them to start from.

They are written once, in `configs/` beside the package in a checkout; a wheel has them inside the package. There
are experiments (configs of runs), studies, spaces of settings to search, and files for accelerate's launcher and
DeepSpeed.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from csrec_dist.errors import UserError, did_you_mean
from csrec_dist.files import atomic_path, read_text

PACKAGE = Path(__file__).resolve().parent
KINDS = {
    "experiments": "csrec-dist run --config {file}",
    "studies": "csrec-dist study {file}",
    "spaces": "csrec-dist tune --config demo.yaml --space {file}",
    "accelerate": "accelerate launch --config_file {file} -m csrec_dist run --config demo.yaml",
    "deepspeed": "csrec-dist run --config demo.yaml --set distributed.engine=deepspeed "
    "--set distributed.deepspeed={file}",
}
"""The folders of configs, and the command that takes a file of each."""


@dataclass(frozen=True)
class PackagedConfig:
    """A config that comes with the package; `kind` is one of KINDS."""

    kind: str
    path: Path

    @property
    def name(self) -> str:
        """The file's name without its ending: what the config is asked for by."""
        return self.path.stem

    @property
    def about(self) -> str:
        """The first sentence of the comment that opens the file; empty for JSON, which has none."""
        lines = read_text(self.path, "The config").splitlines()
        comment = takewhile(lambda line: line.startswith("# ") and not line.startswith("#  "), lines)
        return " ".join(line.removeprefix("# ") for line in comment).partition(". ")[0].rstrip(".")

    @property
    def files(self) -> list[Path]:
        """The file, and those that it names: a study's base config, and the study whose runs it uses."""
        if self.kind != "studies":
            return [self.path]
        from csrec_dist.config import read_yaml

        raw = read_yaml(self.path)
        others = [self.path.parent / raw["config"]] if "config" in raw else []
        if "part_of" in raw:
            others += PackagedConfig(self.kind, self.path.with_name(f"{raw['part_of']}.yaml")).files
        return [self.path, *others]


def configs_folder() -> Path:
    """The folder of the configs: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def packaged_configs() -> Iterator[PackagedConfig]:
    """All configs, by kind and name."""
    for kind in KINDS:
        for path in sorted((configs_folder() / kind).glob("*.*")):
            yield PackagedConfig(kind, path)


def is_packaged(name: str) -> bool:
    """Whether a config has this name, and nothing in the working folder: what is there is meant."""
    return not Path(name).exists() and any(config.name == name for config in packaged_configs())


def find_config(name: str) -> PackagedConfig:
    """The config of a name; UserError that says the nearest one when there is none."""
    configs = {config.name: config for config in packaged_configs()}
    if name not in configs:
        raise UserError(
            f"No config named {name!r} comes with csrec_dist{did_you_mean(name, configs)}; "
            "`csrec-dist init --list` lists them."
        )
    return configs[name]


def copy_config(name: str, folder: Path) -> list[Path]:
    """Copy a config, with the files that it names, into a folder; the paths of the copies, its own first.

    Raises:
        UserError: no config has this name, or the folder has another file in its place, which stays as it is.
    """
    config = find_config(name)
    copies = {source: folder / source.relative_to(config.path.parent) for source in config.files}
    for source, copy in copies.items():
        if copy.exists() and (not copy.is_file() or copy.read_bytes() != source.read_bytes()):
            raise UserError(f"{copy} is already there, with other content; move it away.")
    for source, copy in copies.items():
        with atomic_path(copy) as temporary:
            shutil.copyfile(source, temporary)
    return list(copies.values())
