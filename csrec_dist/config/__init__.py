"""The configuration of a run: its schema, how it is read, and what is impossible in it."""

from csrec_dist.config.reading import (
    is_resolved,
    load_config,
    mistakes,
    parse_config,
    parse_overrides,
    parse_section,
    read_yaml,
    require_own_hash,
    schema_mistakes,
    set_key,
    with_launchers_file,
)
from csrec_dist.config.schema import Config

__all__ = [
    "Config",
    "is_resolved",
    "load_config",
    "mistakes",
    "parse_config",
    "parse_overrides",
    "parse_section",
    "read_yaml",
    "require_own_hash",
    "schema_mistakes",
    "set_key",
    "with_launchers_file",
]
