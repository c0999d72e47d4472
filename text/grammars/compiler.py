"""From the text of a JSON Schema to the grammar of a reply."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ...core.errors import Busy
from ...core.protocols import Tokenizer
from .grammar import SchemaGrammar, problem
from .schema import UnsupportedSchema, parse_schema

if TYPE_CHECKING:  # the library is imported with the first schema: most models never see one
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIAL = Path(__file__).with_name("trial.py")

REMEMBERED = 32  # schemas of one model
STACK_BYTES = 128 * 2**20  # of address space; the compiler needs up to 14 KB for each schema within a schema

# These stand where a schema could set its own. Bounded white space, for a model that was never told to write JSON may
# write nothing else. Without \u escapes: the library does not see that one of them spells a name it excludes.
OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": '"\\bfnrt',
    "json_allow_general_unicode_escapes": False,
}

# Without "no_forcing" a text that must follow may be spelled in the tokenizer's own way only, which the library gets
# wrong for a tokenizer that puts a space before each text. Models may spell it as they like.
GRAMMAR = 'start: reply\n%llguidance {"no_forcing": true}\nreply: %json '


class Grammars:
    """Implements `core.protocols.Grammars` for one model. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._seen: OrderedDict[str, LLMatcher | str] = OrderedDict()  # schema -> the matcher, or why there is none
        self._seeing = threading.Lock()
        self._compiling = threading.Lock()  # one at a time, so that schemas cannot fill the machine's cores

    def open(self, schema: str) -> SchemaGrammar:
        """Return a new grammar for replies that follow schema, the text of a JSON Schema.

        Takes no time for a schema seen lately; for another a tenth of a second, three seconds for the most complex, and
        for the first one a second more with a large vocabulary.
        Raises BadRequest if it is no schema or too large, UnsupportedSchema if it could not be followed to the letter,
        Busy if the machine has no memory to find out.
        """
        while (grammar := self.recall(schema)) is None:
            with self._compiling:
                if not self._knows(schema):  # another thread may have compiled it meanwhile
                    self._remember(schema)
        return grammar

    def recall(self, schema: str) -> SchemaGrammar | None:
        """Return what `open` returns, or raise what it raises, for a schema seen lately; None for another."""
        with self._seeing:
            if schema not in self._seen:
                return None
            self._seen.move_to_end(schema)
            found = self._seen[schema]
        if isinstance(found, str):
            raise UnsupportedSchema(found)
        return SchemaGrammar(found.deep_copy(), self._library)

    def _knows(self, schema: str) -> bool:
        with self._seeing:
            return schema in self._seen

    def _remember(self, schema: str) -> None:
        """Compile schema, and remember what came of it.

        Raises BadRequest for what is no schema, which is told soon, and Busy, which says nothing about the schema.
        """
        found: LLMatcher | str
        try:
            found = self._compile(schema)
        except UnsupportedSchema as refusal:
            found = refusal.problem
        with self._seeing:
            self._seen[schema] = found
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    @cached_property
    def _library(self) -> LLTokenizer:
        from .library import library_tokenizer

        return library_tokenizer(self._tokenizer, self._stop_ids)

    def _compile(self, schema: str) -> LLMatcher:
        """Return a matcher at the beginning of a reply."""
        root = parse_schema(schema) | {"x-guidance": OPTIONS}
        grammar = GRAMMAR + msgspec.json.encode(root).decode()
        _try_out(grammar)
        matcher = _with_stack(lambda: self._matcher(grammar))
        matcher.compute_bitmask()  # which fails if no token can begin a reply
        if reason := problem(matcher):
            raise UnsupportedSchema(reason)
        return matcher

    def _matcher(self, grammar: str) -> LLMatcher:
        from .library import open_matcher

        return open_matcher(self._library, grammar)


def _try_out(grammar: str) -> None:
    """Compile grammar in another process first.

    Raises UnsupportedSchema if that took too much of anything, Busy if the system ended it, as it does when memory runs
    out: whose fault that is, is not known.
    """
    trial = subprocess.run([sys.executable, "-P", TRIAL], input=grammar.encode(), capture_output=True, check=False)  # noqa: S603
    if trial.returncode == 0:
        return
    log.warning("a schema failed its trial with status %d: %s", trial.returncode, trial.stderr.decode()[-200:])
    if trial.returncode == -signal.SIGKILL:
        raise Busy("the JSON schema could not be compiled, as the system is short of memory: please try again")
    raise UnsupportedSchema("it is too complex")


def _with_stack(function: Callable[[], T]) -> T:
    """Return what function returns, from a thread with room for deep recursion: an overflow would end the process."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    usual = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=work, name="puna-schema")
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    return result.result()
