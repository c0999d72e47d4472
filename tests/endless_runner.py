"""The process of a model whose replies only end when they are told to."""

import socket
import sys

from puna.core.scheduler.inline import TextParts
from puna.core.scheduler.served import serve_runner
from puna.text.grammars import Grammars
from puna.text.stops import StopStrings
from puna.text.tokenizers import open_tokenizer


class WithoutEnd:
    """A tokenizer none of whose tokens ends a reply."""

    stop_ids = frozenset()

    def __init__(self, source):
        self._tokenizer = open_tokenizer(source)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


if __name__ == "__main__":
    serve_runner(socket.socket(fileno=int(sys.argv[1])), TextParts(WithoutEnd, StopStrings, Grammars))
