"""A claim on a tile, and the attempts of machines at it, as the ledger holds them."""

import json
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Machines that could not render a tile."""

    #: time of the first of these attempts in Unix seconds; 0 if there was none
    since: float = 0.0
    #: machine -> the reason
    reasons: dict[str, str] = field(default_factory=dict)

    def with_reason(self, machine: str, reason: str) -> "Attempts":
        """These attempts and one more, of now."""
        return Attempts(since=self.since or time.time(), reasons={**self.reasons, machine: reason})

    def as_json(self) -> str:
        """The text that Redis holds."""
        return json.dumps({"since": self.since, "reasons": self.reasons})

    @classmethod
    def from_json(cls, text: bytes | str) -> "Attempts":
        """Read that text. Anything else, such as the count of an earlier version, is no attempt."""
        try:
            value = json.loads(text)
            return cls(since=float(value["since"]), reasons={str(k): str(v) for k, v in value["reasons"].items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim on a tile."""

    #: number of attempts that have begun and not ended, this one included
    starts: int
    attempts: Attempts = field(default_factory=Attempts)
