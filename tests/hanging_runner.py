"""A process whose engine hangs in the middle of a reply: free lets its other threads go on, held lets none."""

import ctypes
import socket
import sys
import threading

from puna.core.scheduler.inline import TextParts
from puna.core.scheduler.served import serve_runner
from puna.text.grammars import Grammars
from puna.text.tokenizers import open_tokenizer


class Hanging:
    """A rule that never says whether a text goes on (`StopRule`)."""

    def __init__(self, stops):
        (self._how,) = stops

    def push(self, text):
        if self._how == "held":
            ctypes.PyDLL(None).sleep(3600)  # a call that keeps Python's lock
        threading.Event().wait()


if __name__ == "__main__":
    serve_runner(socket.socket(fileno=int(sys.argv[1])), TextParts(open_tokenizer, Hanging, Grammars))
