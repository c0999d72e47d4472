"""Stop strings: where a reply ends, and what must be held back until that is certain."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import BadRequest

MAX_CHARACTERS = 4096  # of all stop strings: every token is compared with each, while all other replies wait


class StopStrings:
    """Implements `core.protocols.StopRule` for one reply.

    The stop string that is complete first counts; of several that end with the same character, the longest. So the
    outcome does not depend on how the text was cut into pieces, and a reply ends at once. After a match nothing more
    comes out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises BadRequest for an empty stop string, which would end every reply at once, and for very many."""
        if not all(stops):
            raise BadRequest("a stop string is empty, expected at least one character")
        if (total := sum(map(len, stops))) > MAX_CHARACTERS:
            raise BadRequest(f"the stop strings have {total} characters in all; at most {MAX_CHARACTERS} are allowed")
        self._stops = tuple(stops)
        self._held = ""
        self._met = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be sent now and whether a stop string was met (it is never sent)."""
        if self._met:
            return "", True
        text = self._held + text
        start = self._match(text)
        if start is not None:
            self._held, self._met = "", True
            return text[:start], True
        sure = len(text) - self._unfinished(text)
        self._held = text[sure:]
        return text[:sure], False

    def flush(self) -> str:
        """Return the text that was held back, at the end of a reply that met no stop string."""
        held, self._held = self._held, ""
        return held

    def _match(self, text: str) -> int | None:
        """Return where the stop string that is complete first begins; None if there is none in text."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _unfinished(self, text: str) -> int:
        """Return the length of the longest end of text that begins a stop string."""
        return max(
            (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
