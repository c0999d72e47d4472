"""A process that says it has loaded its model and then sends what is no message."""

import socket
import sys

from puna.core.scheduler.messages import VERSION
from puna.core.scheduler.runner import RunnerFacts
from puna.core.scheduler.wire import Hello, Ready, pack

if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        end.sendall(pack(Hello(VERSION)) + pack(Ready(RunnerFacts("llama", 8, 8, 8))) + b"\0\0\0\1\xc1")
        while end.recv(1000):
            pass
