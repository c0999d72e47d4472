"""The process of one loaded model: a server starts it, with the number of a connected socket as its only argument."""

from __future__ import annotations

import faulthandler
import logging
import socket
import sys

from ..core.scheduler.child import LOG_FORMAT
from ..core.scheduler.inline import TextParts
from ..core.scheduler.served import serve_runner
from ..text.grammars import Grammars
from ..text.stops import StopStrings
from ..text.tokenizers import open_tokenizer


def main() -> None:
    """Serve the model that the server names, until the server has enough of it or ends."""
    faulthandler.enable()  # a plugin that crashes says where
    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT)
    serve_runner(socket.socket(fileno=int(sys.argv[1])), TextParts(open_tokenizer, StopStrings, Grammars))


if __name__ == "__main__":
    main()
