"""The image cache: found by contents, kept within a limit, pinned while in use."""

import threading

import numpy as np
import pytest

from puna.core.memory.images import ImageCache, key_of
from puna.core.plugin import Prepared, Rows


def prepared(numbers=100):
    return Prepared(np.zeros(numbers, np.float32), ("a", Rows(2)))


def cache(limit=1000, resident=()):
    return ImageCache(limit, set(resident).__contains__)


def keep(images, key, numbers=100):
    return images.add(key, prepared(numbers))


def known(images, *keys):
    return [key for key in keys if images.find(key) is not None]


def test_the_one_used_longest_ago_goes_first():
    images = cache()
    for key in (b"a", b"b"):
        keep(images, key)
    images.find(b"a")
    keep(images, b"c")
    assert known(images, b"a", b"b", b"c") == [b"a", b"c"]
    assert (images.stats.evicted, images.stats.nbytes) == (1, 800)


def test_what_is_held_stays_and_what_has_no_room_beside_it_is_not_kept():
    images = cache()
    first, second = keep(images, b"a"), keep(images, b"b")
    images.hold(first), images.hold(second)
    keep(images, b"c")
    assert known(images, b"a", b"b", b"c") == [b"a", b"b"]
    third = keep(images, b"c")
    images.release(first)
    del first
    images.hold(third)
    assert known(images, b"a", b"b", b"c") == [b"b", b"c"]
    assert images.stats.pinned == 2


def test_what_the_key_value_cache_has_rows_of_stays():
    resident = {b"block"}
    images = ImageCache(1000, resident.__contains__)
    images.note(keep(images, b"a"), b"block")
    for key in (b"b", b"c", b"d"):
        keep(images, key)
    assert known(images, b"a") == [b"a"]
    resident.clear()
    keep(images, b"e"), keep(images, b"f")
    assert known(images, b"a") == []


def test_rows_take_the_place_of_pixels():
    images = cache()
    image = keep(images, b"a", 200)
    images.fill(image, np.ones((2, 10), np.float32))
    assert images.stats.nbytes == 80
    assert (images.stats.encoded, images.stats.prepared) == (1, 1)
    assert image.prepared.parts == prepared().parts


def test_an_image_larger_than_the_limit_serves_those_who_hold_it():
    images = cache()
    image = keep(images, b"a", 5000)
    images.hold(image)
    assert images.stats.entries == 0
    images.fill(image, np.ones((2, 10), np.float32))  # what it became is small enough
    assert images.stats.entries == 1


def test_an_image_without_room_is_found_while_somebody_has_it():
    images = cache(limit=0)
    image = keep(images, b"a")
    assert images.find(b"a") is keep(images, b"a") is image
    assert (images.stats.entries, images.stats.nbytes) == (0, 0)
    del image
    assert known(images, b"a") == []


def test_the_limit_holds_whatever_is_done():
    rng, images, held = np.random.default_rng(0), cache(5000), []
    for step in range(2000):
        key = bytes([rng.integers(30)])
        image = images.find(key) or keep(images, key, int(rng.integers(1, 600)))
        if rng.random() < 0.5:
            images.hold(image)
            held.append(image)
        if held and rng.random() < 0.5:
            images.release(held.pop(rng.integers(len(held))))
        if rng.random() < 0.2 and image.rows is None:
            images.fill(image, np.ones((int(rng.integers(1, 600)), 1), np.float32))
        assert images.stats.nbytes <= 5000, step


@pytest.mark.parametrize(
    "other", [([b"a", b"b"], b"p"), ([b"ab"], b"p"), ([b"b", b"a"], b"p"), ([b"a"], b"q"), ([b"a"], b"")]
)
def test_keys_tell_files_frames_and_processors_apart(other):
    assert key_of([b"a"], b"p") == key_of([b"a"], b"p")
    assert key_of(*other) != key_of([b"a"], b"p")
    assert len(key_of(*other)) == 32


def test_threads_may_use_it_together():
    images, errors = cache(3000), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(500):
                key = bytes([rng.integers(12)])
                image = images.find(key) or keep(images, key)
                images.hold(image)
                images.note(image, b"gone")
                images.release(image)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert images.stats.pinned == 0
    assert images.stats.nbytes <= 3000
