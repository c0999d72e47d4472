"""Mixtures of experts: tokens are sorted by the expert they ask, and each expert is multiplied with its own.

All of it is one kernel, from the choice of experts to the sum of their answers: a step that goes to other experts than
the step before makes the same call. Weights of experts that nobody asks are not read. Work is dealt out by what it
costs: an expert that many tokens ask is cut into more pieces than one that few ask, so that no thread waits long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import BadModel
from .activations import LITTLE, SHARE
from .jit import kernel
from .layouts import SUB
from .operands import WIDTH, fill_rows, padded_count, room_for, width_of
from .pointwise import share_activations
from .product import OUTPUTS, PAIRED, PLAIN, ROOM, STEPS, UNIT, multiply_pairs, room_to_multiply, see
from .team import TEAM, shared, threads_of

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

PIECES = 8  # of each thread's work
UNPACKING = 6  # tokens whose products take as long as reading weights and unpacking them

# What is known of a group, the tokens that ask one expert: which expert, where the group begins among all tokens sorted
# by expert, how many there are, and for how many there is room before them in the order that products read.
EXPERT, FIRST, ASKING, BEFORE = range(4)


def mix(
    x: Floats,
    chosen: npt.NDArray[np.int32],
    share: Floats,
    jobs: tuple[Integers, Integers, Integers],
    form: int,
    of_inputs: bool,
    out: Floats,
) -> None:
    """out[t] = Σ_j share[t, j] · down(activation(gate(x[t])) · up(x[t])) of expert chosen[t, j].

    x, out: [T, D] float32; chosen, share: [T, k]; jobs: of gates, ups and downs, a row for each expert; of ups none
    if the gates' rows name both. of_inputs: x[t] is multiplied with the share, and not the answer. Raises BadModel if
    an expert is chosen that there is not.
    """
    if not run_mixture(TEAM.ready(), x, chosen, share, *jobs, form, of_inputs, out):
        raise BadModel(f"moe: chosen {chosen.min()} to {chosen.max()}, there are {len(jobs[0])} experts")


# --- who asks whom ----------------------------------------------------------------------------------------------------


@kernel
def find_largest(x, places, values):
    """For each row of x find where its largest numbers are, and they themselves: as many as places, [T, k], holds.

    The largest comes first; of equal ones, the first; what is not a number comes last.
    """
    k = places.shape[1]
    for t in range(len(x)):
        found = 0
        for i in range(x.shape[1]):
            value, at = x[t, i], found
            while at > 0 and (value > values[t, at - 1] or (np.isnan(values[t, at - 1]) and not np.isnan(value))):
                at -= 1
            for later in range(min(found, k - 1), at, -1):
                places[t, later], values[t, later] = places[t, later - 1], values[t, later - 1]
            if at < k:
                places[t, at], values[t, at] = i, value
                found = min(found + 1, k)


@kernel
def sorted_by_expert(chosen, experts):
    """Return the groups, [groups, 4], and which of chosen, flat, comes first, second, ... if it is sorted by expert.

    Nothing comes if chosen names an expert that there is not.
    """
    ends = np.zeros(experts + 1, np.int64)
    for expert in chosen:
        if not 0 <= expert < experts:
            return np.empty((0, 4), np.int64), np.empty(0, np.int64)
        ends[expert + 1] += 1
    groups, used, before = np.empty((min(experts, len(chosen)), 4), np.int64), 0, 0
    for expert in range(experts):
        asking = ends[expert + 1]
        ends[expert + 1] += ends[expert]  # where the next one begins
        if asking > 0:
            groups[used] = expert, ends[expert], asking, before
            before += padded_count(asking)
            used += 1
    order = np.empty(len(chosen), np.int64)
    for i in range(len(chosen)):
        order[ends[chosen[i]]] = i
        ends[chosen[i]] += 1
    return groups[:used], order


@kernel
def tiles_of(groups):
    """Return the tiles of all groups, [tiles, 2]: the group, and the first of its tokens."""
    count = 0
    for group in groups:
        count += (group[ASKING] + WIDTH - 1) // WIDTH
    tiles, at = np.empty((count, 2), np.int64), 0
    for index in range(len(groups)):
        for first in range(0, groups[index, ASKING], WIDTH):
            tiles[at, 0], tiles[at, 1] = index, first
            at += 1
    return tiles


@kernel
def pieces_of(groups, paired, wanted):
    """Return at least `wanted` pieces of work that take about as long, [pieces, 3], if there is as much to do.

    Each is the group, the first of its expert's `paired` pairs of rows, and the one behind its last.
    """
    work = 0
    for group in groups:
        work += paired * (group[ASKING] + UNPACKING)
    some, count = np.empty(len(groups), np.int64), 0  # pairs of each group's pieces
    for index in range(len(groups)):
        some[index] = max(1, work // (wanted * (groups[index, ASKING] + UNPACKING)))
        count += (paired + some[index] - 1) // some[index]
    pieces, at = np.empty((count, 3), np.int64), 0
    for index in range(len(groups)):
        for first in range(0, paired, some[index]):
            pieces[at] = index, first, min(paired, first + some[index])
            at += 1
    return pieces


# --- products ---------------------------------------------------------------------------------------------------------


@kernel
def parts_of(group, padded, codes, starts, pairs, steps):
    """Return what lies from a group's tokens on, of arrays that have room for `padded`."""
    at = group[BEFORE]
    return (
        codes[at * (codes.size // padded) :],
        starts[at * (starts.size // padded) :],
        pairs[at * (pairs.size // padded) :],
        steps[at * (steps.size // padded) :],
    )


@kernel
def put_in_order(x, asking, parts, groups, tiles, unit, padded, codes, starts, pairs, steps, item):
    """Fill one tile: of rows asking[i] of x, times parts[i]. It is put where products look for it."""
    group, first = groups[tiles[item, 0]], tiles[item, 1]
    count = group[ASKING]
    rows = np.zeros((width_of(count - first), x.shape[1]), np.float32)
    for j in range(min(len(rows), count - first)):
        at = group[FIRST] + first + j
        row, part = x[asking[at]], parts[at]
        for i in range(row.size):
            rows[j, i] = row[i] * part
    own = parts_of(group, padded, codes, starts, pairs, steps)
    fill_rows(rows, count, first, unit, own[0], own[1], own[2], own[3])


share_ordering = shared(put_in_order)


@kernel
def multiply_piece(jobs, groups, pieces, inputs, D, form, out, item):
    """Do one piece of work."""
    index = pieces[item, 0]
    job = jobs[groups[index, EXPERT]]
    unpacked, packed, totals = room_to_multiply(groups[index, ASKING], job[ROOM])
    multiply_pairs(job, inputs[index], pieces[item, 1], pieces[item, 2], D, form, unpacked, packed, totals, out)


share_pieces = shared(multiply_piece)


@kernel
def multiply_groups(table, x, asking, parts, groups, jobs, form, out):
    """out[i] = the product of row asking[i] of x, times parts[i], with the weights of the expert it asks.

    All are sorted by expert. jobs: a row for each expert, of one format and one shape.
    """
    D, unit = x.shape[1], jobs[0, UNIT]
    padded = groups[-1, BEFORE] + padded_count(groups[-1, ASKING])
    codes, starts, pairs, steps = room_for(padded, D, unit, D % SUB != 0)
    tiles = tiles_of(groups)
    if len(asking) * D < LITTLE:
        for tile in range(len(tiles)):
            put_in_order(x, asking, parts, groups, tiles, unit, padded, codes, starts, pairs, steps, tile)
    else:
        work = x, asking, parts, groups, tiles, unit, padded, codes, starts, pairs, steps
        share_ordering(table, len(tiles), work)
    inputs = np.zeros((len(groups), STEPS + 1), np.int64)
    for index in range(len(groups)):
        own = parts_of(groups[index], padded, codes, starts, pairs, steps)
        see(inputs, index, groups[index, ASKING], groups[index, FIRST] * jobs[0, OUTPUTS], own)
    pieces = pieces_of(groups, jobs[0, PAIRED], PIECES * threads_of(table))
    share_pieces(table, len(pieces), (jobs, groups, pieces, inputs, D, form, out))
    return len(codes) + len(starts) + len(pairs) + len(steps)  # what is still in use has not been freed


# --- all of it --------------------------------------------------------------------------------------------------------


@kernel
def add_answers(answers, places, share, of_inputs, out, each, item):
    """out[t] = Σ_j share[t, j] · answers[places[t · k + j]], in this order, for `each` tokens."""
    k = share.shape[1]
    for t in range(item * each, min(len(out), item * each + each)):
        out[t] = 0
        for j in range(k):
            part = np.float32(1) if of_inputs else share[t, j]
            row = answers[places[t * k + j]]
            for i in range(row.size):
                out[t, i] += part * row[i]


share_adding = shared(add_answers)


@kernel
def run_mixture(table, x, chosen, share, gates, ups, downs, form, of_inputs, out):
    """Do what `mix` does; return whether there are such experts. table: of the team."""
    groups, order = sorted_by_expert(chosen.reshape(-1), len(gates))
    if len(order) < chosen.size:
        return False
    asking, ones = order // chosen.shape[1], np.ones(len(order), np.float32)
    parts = share.reshape(-1)[order] if of_inputs else ones
    inner = np.empty((len(order), gates[0, OUTPUTS]), np.float32)
    answers = np.empty((len(order), out.shape[1]), np.float32)
    flat, places = inner.reshape(-1), np.empty(len(order), np.int64)
    multiply_groups(table, x, asking, parts, groups, gates, form if len(ups) == 0 else PLAIN, flat)
    if len(ups) > 0:
        wide = np.empty(inner.size, np.float32)
        multiply_groups(table, x, asking, parts, groups, ups, PLAIN, wide)
        share_activations(table, (inner.size + SHARE - 1) // SHARE, (form, flat, wide, SHARE))
    for i in range(len(order)):
        asking[i], places[order[i]] = i, i
    multiply_groups(table, inner, asking, ones, groups, downs, PLAIN, answers.reshape(-1))
    each = max(1, SHARE // out.shape[1])
    share_adding(table, (len(out) + each - 1) // each, (answers, places, share, of_inputs, out, each))
    return True
