"""What all sections of a configuration have in common."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A section of the configuration: frozen, and without unknown keys. Classes of options import no torch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
