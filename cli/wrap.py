"""Word wrap for text that arrives in pieces and is seen at once."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

_MARGIN = 5  # columns that stay free at the right
_MIN_COLUMNS = 10  # a narrower terminal wraps by itself
_ERASE = "\x1b[{}D\x1b[K"  # that many columns to the left, then clear to the end of the line


def printable(text: str) -> str:
    """Return text without the control characters that would steer the terminal; line feeds and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class WordWrap:
    """Breaks lines between words. What is returned goes to the terminal at once and in order.

    A word is written as it arrives; when it turns out not to fit it is wiped out and written again on the next line.
    columns: the terminal's width, of which the rightmost five stay free.
    """

    def __init__(self, columns: int) -> None:
        self._limit = columns - _MARGIN if columns >= _MIN_COLUMNS else None
        self._column = 0
        self._word = ""  # the unfinished word at the end of the line

    def push(self, text: str) -> str:
        """Return what to write for the next piece of text."""
        return text if self._limit is None else "".join(self._place(c, self._limit) for c in text)

    def _place(self, character: str, limit: int) -> str:
        if character == "\n":
            self._column, self._word = 0, ""
            return character
        width = cell_len(character) if character != "\t" else 8 - self._column % 8
        blank, joins = character in " \t", character not in " \t" and width < 2  # wide scripts break anywhere
        prefix = ""
        if self._column and self._column + width > limit:
            prefix = self._break(self._word if joins else "")
            if blank:
                return prefix  # the line feed stands for it
        self._column += width
        self._word = self._word + character if joins else ""
        return prefix + character

    def _break(self, word: str) -> str:
        """Start a line with word, which stands at the end of this one, unless it fills the whole of it."""
        width = cell_len(word)
        if not 0 < width < self._column:
            self._column, self._word = 0, ""
            return "\n"
        self._column = width
        return f"{_ERASE.format(width)}\n{word}"
