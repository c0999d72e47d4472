"""What layers with windows and chunks hold of a long text: as much as they see, not as much as there is."""

import subprocess
import sys

import pytest

from puna.core.memory.blocks import BLOCK, Blocks, Capacity, blocks_of
from puna.core.plugin import Causal, Chunk, Window

LONG, STEP = 32_768, 512


def most_held(kind, sequences=1):
    """The most blocks that the group ever holds while as many texts of LONG tokens are read in steps, and then grow."""
    blocks = Blocks([kind], Capacity(LONG * sequences, sequences, STEP))
    tables, (pool,) = [blocks.table() for _ in range(sequences)], blocks.pools
    texts = [[number] * LONG for number in range(sequences)]
    most, each = 0, STEP // sequences
    while (done := tables[0].length) < LONG:
        count = min(each, LONG - 100 - done) if done < LONG - 100 else 1
        for table in tables:
            assert table.reserve(done + count)
        most = max(most, pool.held)
        for table, text in zip(tables, texts, strict=True):
            table.advance(text, count)
    assert pool.count == blocks_of(kind, blocks.capacity)
    return most


@pytest.mark.parametrize("kind", [Window(512), Window(1000), Window(4096), Chunk(512), Chunk(8192)], ids=str)
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_group_holds_what_is_seen_and_a_step_more(kind, sequences):
    bound = sequences * (-(-kind.size // BLOCK) + 2) + STEP // BLOCK
    assert blocks_of(kind, Capacity(LONG * sequences, sequences, STEP)) == bound
    assert sequences * (kind.size // BLOCK) <= most_held(kind, sequences) <= bound


def test_layers_that_see_everything_hold_everything():
    assert blocks_of(Causal(), Capacity(LONG, 1, STEP)) == LONG // BLOCK


READ = """
import sys, numpy as np, psutil
from puna.core.memory.blocks import Capacity
from puna.core.memory.cache import Cache, Rows, StepView
from puna.core.plugin import CacheLayer, Causal, Window

element, length, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
layout = [CacheLayer(4, 256, 256, Window(1024))] * 5 + [CacheLayer(4, 256, 256, Causal())]
k, text = np.ones((step, 4, 256), np.float32), [1] * length

def read(length):
    cache = Cache(layout, element, Capacity(length, 1, step))
    table = cache.blocks.table()
    while table.length < length:
        assert table.reserve(table.length + step)
        for layer in StepView(cache, [Rows(table, 0, step)]).cache:
            layer.extend(k, k)
        table.advance(text, step)
    return cache

read(2 * step)  # loads the kernels
before = psutil.Process().memory_info().rss
cache = read(length)
print(psutil.Process().memory_info().rss - before, cache.resident_bytes)
"""


@pytest.mark.parametrize(("element", "per_number"), [("f16", 2), ("q8_0", 34 / 32)])
def test_memory_of_a_long_text_is_what_windows_and_element_types_say(element, per_number):
    command = [sys.executable, "-c", READ, element, str(LONG), str(STEP)]
    grown, told = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    windows = 5 * (1024 + 2 * BLOCK + STEP)  # positions; and the sixth layer's are all
    assert told == 2 * 4 * 256 * per_number * (LONG + windows)
    assert grown == pytest.approx(told, rel=0.03)
