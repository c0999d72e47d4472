"""Compiles the grammar on its standard input and says nothing: a process to try hostile schemas in, run by `compiler`.

A few hundred bytes can make the library compute for days, take all memory, or overflow its stack. Here that ends this
process and no other. It imports nothing of Puna, so that it starts in a tenth of a second.
"""

import resource
import sys

import llguidance

CPU_S = 2  # the largest schemas that are taken need half a second
MEMORY_BYTES = 2**30


def main() -> None:
    """Compile, within limits on this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))  # SIGXCPU ends it; SIGKILL then tells of others' doing
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammar = llguidance.LLMatcher.grammar_from_lark(sys.stdin.buffer.read().decode())
    llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0).compute_bitmask()


if __name__ == "__main__":
    main()
