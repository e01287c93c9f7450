"""The page of all keys of a configuration, docs/configuration.md: `python -m csrec_dist.config.page` prints it."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from csrec_dist.config.schema import Config
from csrec_dist.models.options import CONFIGS, ModelConfig

INTRODUCTION = """\
# Configuration

One YAML file configures a run (`csrec-dist init` writes one); `--set section.key=value` overrides a key and reads the
value as YAML. Unknown keys, wrong values and impossible combinations are all reported at once, before any work. `plan`
estimates what a configuration needs. `python -m csrec_dist.config.page` generates this page from the schema.
"""


def page() -> str:
    """The whole page."""
    tables = [table("Run and sections", Config, "")]
    tables += [table(f"`model.name: {name}`", options, "model.") for name, options in CONFIGS.items()]
    return "\n".join([INTRODUCTION, *tables])


def table(title: str, schema: type[BaseModel], prefix: str) -> str:
    """A table of the keys of one schema, nested sections included."""
    lines = [f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]
    for key, field in keys(schema, prefix):
        lines.append(f"| `{key}` | {default_of(field)} | {described(field)} |")
    return "\n".join([*lines, ""])


def keys(schema: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of all keys below a schema; a model's own keys have tables of their own."""
    for name, field in schema.model_fields.items():
        section: Any = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and name != "model":
            yield from keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def described(field: FieldInfo) -> str:
    """A key's description, and its values where they are few."""
    values = [f"`{value}`" for value in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    return " ".join(filter(None, [field.description or "", f"({', '.join(values)})" if len(values) > 1 else ""]))


def default_of(field: FieldInfo) -> str:
    """A key's default as YAML shows it."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "null"
    if isinstance(field.default, ModelConfig):
        return f"`{field.default.name}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    print(page(), end="")
