"""The fields of a JSON object, each of a type and in a range, or refused by file and name."""

from pathlib import Path
from typing import Any, NoReturn

from nanoserve.checkpoint import CheckpointError

# What the contract's int32 counts can say.
MOST = 2**31 - 1
# Numbers beyond these would leave the range of float32, in which they are used, or of the formulas they are put in.
_TINY, _HUGE = 1e-38, 1e38


class Fields:
    """The fields of one JSON object; CheckpointError, naming file and field, where one is missing or wrong."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Raises for one field."""
        raise CheckpointError(f"{self.path}: {self.prefix}{name}: {reason}")

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number from `minimum` to MOST; absent and null give the default, if there is one."""
        value = self.values.get(name)
        if value is None:
            if default is None:
                self.refuse(name, "is missing")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MOST:
            self.refuse(name, f"must be an integer from {minimum} to {MOST}, got {value!r}")
        return value

    def number(self, name: str, default: float, minimum: float = _TINY) -> float:
        """A real greater than `minimum`; absent, null and (as transformers reads them) 0 give the default."""
        value = self.values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (is_number and value == 0):
            return default
        if not is_number or not minimum < value < _HUGE:
            self.refuse(name, f"must be a number between {minimum:g} and {_HUGE:g}, got {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; absent and null give the default."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, f"must be true or false, got {value!r}")
        return value
