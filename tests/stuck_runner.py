"""A process that never gets its model loaded."""

import socket
import sys
import threading

from puna.core.scheduler.inline import TextParts
from puna.core.scheduler.served import serve_runner


def wait_for_ever(source):
    print("stuck", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve_runner(socket.socket(fileno=int(sys.argv[1])), TextParts(wait_for_ever, wait_for_ever, wait_for_ever))
