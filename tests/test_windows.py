"""What layers with windows and chunks hold of a long text: as much as they see, not as much as there is."""

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
