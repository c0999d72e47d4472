"""Prompts with images, as runners take them: the references' token ids, whatever stands around an image."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from puna.api.composing import Composer, shown
from puna.api.prompts import Conversation
from puna.core.errors import Unsupported
from puna.core.scheduler.messages import Generate, Media, Sight
from puna.core.scheduler.runner import RunnerFacts
from puna.text.conversation import Message, PromptTemplate
from puna.text.tokenizers import TextTokenizer, open_tokenizer, read_bos_eos

from .test_media import opened as seeing_runner
from .toy_vision import png

FIXTURES = Path(__file__).parent / "fixtures"
MARKERS = {"gemma3-vl": "<start_of_image>", "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>"}
AROUND = {
    "gemma3-vl": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
    "qwen2.5-vl": ("<|vision_start|>", "<|vision_end|>"),
}


@dataclass
class Side:
    """What a checkpoint's folder holds besides its weights (`puna.core.tensor.source.WeightSource`)."""

    folder: Path
    kind: str = "safetensors"
    tensors: dict = field(default_factory=dict)

    @property
    def metadata(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    def side_file(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None


@dataclass
class Reading:
    """A runner as far as prompts go: a real tokenizer, and images that say in their file how many rows they have."""

    name: str
    placeholder: int
    tokenizer: TextTokenizer
    looked: int = 0
    tokenized: list[str] = field(default_factory=list)

    @property
    def facts(self) -> RunnerFacts:
        return RunnerFacts("fake", 4096, self.tokenizer.size, 1, frozenset({"image"}), MARKERS[self.name])

    async def tokenize(self, text: str, *, special: bool = True, start: bool = True) -> list[int]:
        self.tokenized.append(text)
        return self.tokenizer.encode(text, special=special, start=start)

    async def look(self, media: Media) -> Sight:
        self.looked += 1
        before, behind = AROUND[self.name]
        return Sight([before, int(media.frames[0]), behind], self.placeholder)


def opened(name: str) -> tuple[Reading, PromptTemplate, list[dict]]:
    source = Side(FIXTURES / name / "hf")
    cases = json.loads((FIXTURES / name / "cases.json").read_text())
    template = json.loads(source.side_file("tokenizer_config.json"))["chat_template"]
    bos, eos = read_bos_eos(source)
    placeholder = cases["multimodal"][0]["image_token_id"]
    return (
        Reading(name, placeholder, open_tokenizer(source)),
        PromptTemplate.open(jinja=template, bos=bos, eos=eos),
        cases["multimodal"],
    )


def told(case: dict, counts: list[int]) -> list[Message]:
    rows = iter(counts)
    return [
        Message(
            role=message["role"],
            content=tuple(
                Media([str(next(rows)).encode()]) if part["type"] == "image" else part["text"]
                for part in message["content"]
            ),
        )
        for message in case["messages"]
    ]


def stretches(ids: list[int], placeholder: int) -> list[tuple[int, int]]:
    """Where runs of the placeholder begin, and how long they are."""
    found = []
    for at, token in enumerate(ids):
        if token == placeholder and (at == 0 or ids[at - 1] != placeholder):
            found.append([at, 0])
        if token == placeholder:
            found[-1][1] += 1
    return [(start, count) for start, count in found]


@pytest.mark.parametrize("name", MARKERS)
@pytest.mark.parametrize("number", range(3))
def test_prompts_with_images_have_the_references_ids(name, number):
    runner, template, cases = opened(name)
    case = cases[number]
    places = stretches(case["ids"], runner.placeholder)
    messages = told(case, [count for _, count in places])
    composer = Composer(runner, "demo")

    async def compose():
        return await composer.compose(await Conversation(template, messages).parts(composer, 4096))

    composed = asyncio.run(compose())
    assert composed.tokens == case["ids"]
    assert [placed.at for placed in composed.media] == [[place] for place in places]
    assert [placed.media for placed in composed.media] == [image for message in messages for image in message.media]
    assert runner.looked == len(places)


@pytest.mark.parametrize("name", MARKERS)
def test_a_placeholder_that_somebody_typed_has_no_rows(name):
    runner, template, _ = opened(name)
    pad = {"gemma3-vl": "<image_soft_token>", "qwen2.5-vl": "<|image_pad|>"}[name]
    talk = [Message(role="user", content=(f"{pad}{MARKERS[name]} and ", Media([b"5"]), f" {pad}"))]

    async def compose():
        composer = Composer(runner, "demo")
        return await composer.compose(await Conversation(template, talk).parts(composer, 4096))

    composed = asyncio.run(compose())
    [placed] = composed.media
    [(start, count)] = placed.at
    assert count == 5 and composed.tokens[start : start + count] == [runner.placeholder] * 5
    assert composed.tokens.count(runner.placeholder) > 5


def test_the_start_token_comes_once_and_first():
    runner, _, _ = opened("gemma3-vl")
    composer, image = Composer(runner, "demo"), Media([b"2"])

    def tokens(*parts):
        return asyncio.run(composer.compose(parts)).tokens

    bos = runner.tokenizer.encode("", special=True, start=True)
    assert len(bos) == 1
    for parts in ([image], [image, image], ["a", image, "b"], ["<bos>a", image], [image, "<end_of_turn>"], [""], []):
        found = tokens(*parts)
        assert found[:1] == bos
        assert found.count(bos[0]) == 1


def test_a_newline_before_an_image_is_one_token_with_those_that_the_image_brings():
    runner, _, _ = opened("gemma3-vl")
    composer = Composer(runner, "demo")
    found = asyncio.run(composer.compose(["user\n", Media([b"3"]), "\nWhat"])).tokens
    text = runner.tokenizer.encode("user\n\n\n<start_of_image>", special=True, start=True)
    rest = runner.tokenizer.encode("<end_of_image>\n\n\nWhat", special=True, start=False)
    assert found == [*text, *[runner.placeholder] * 3, *rest]


def test_an_image_may_have_several_stretches_of_rows():
    class Tiled(Reading):
        async def look(self, media: Media) -> Sight:
            return Sight(["<start_of_image>", 2, 3, "\n", 4], self.placeholder)

    runner, _, _ = opened("gemma3-vl")
    tiled = Tiled(runner.name, runner.placeholder, runner.tokenizer)
    composed = asyncio.run(Composer(tiled, "demo").compose(["a", Media([b"0"]), "b"]))
    [placed] = composed.media
    (first, _), (second, _), (third, _) = placed.at
    assert [count for _, count in placed.at] == [2, 3, 4]
    assert (second, third) == (first + 2, second + 4)


def test_what_stands_between_the_rows_of_images_is_tokenized_once():
    class Lined(Reading):
        async def look(self, media: Media) -> Sight:
            return Sight([2, "<end_of_turn>", 2, "<end_of_turn>", 2, "<end_of_turn>", 2], self.placeholder)

    runner, _, _ = opened("gemma3-vl")
    lined = Lined(runner.name, runner.placeholder, runner.tokenizer)
    composer, parts = Composer(lined, "demo"), ["a", Media([b"0"]), "<end_of_turn>", Media([b"1"])]
    first = asyncio.run(composer.compose(parts))
    assert lined.tokenized == ["a", "<end_of_turn>"]
    start, (end,) = (runner.tokenizer.encode(text, special=True, start=text == "a") for text in ("a", "<end_of_turn>"))
    rows = [runner.placeholder] * 2
    assert first.tokens == [*start, *([*rows, end] * 7 + rows)]
    assert asyncio.run(composer.compose(parts)).tokens == first.tokens
    assert lined.tokenized == ["a", "<end_of_turn>"]


def test_a_text_that_begins_the_prompt_is_not_the_same_behind_something():
    runner, _, _ = opened("gemma3-vl")
    image = Media([b"2"])
    composer = Composer(runner, "demo")
    behind = asyncio.run(composer.compose(["a", image, "a"])).tokens
    assert asyncio.run(composer.compose(["a"])).tokens == behind[:2]
    bos = runner.tokenizer.encode("", special=True, start=True)
    assert behind.count(bos[0]) == 1


def test_media_of_a_kind_that_a_model_does_not_read_name_the_model():
    runner, _, _ = opened("gemma3-vl")
    with pytest.raises(Unsupported, match='"demo" cannot read videos'):
        asyncio.run(Composer(runner, "demo").compose([Media([b"1"], video=True)]))
    assert runner.looked == 0


def test_what_is_composed_can_be_generated_from():
    image = Media([png(1, width=160)])
    with seeing_runner() as runner:

        async def reply(*parts):
            composed = await Composer(runner, "demo").compose(parts)
            request = Generate(prompt=composed.tokens, media=composed.media, num_ctx=512, max_tokens=3)
            *_, finished = [event async for event in runner.generate(request)]
            return composed, finished

        composed, finished = asyncio.run(reply("The cat ", image, " and ", image))
    assert [count for placed in composed.media for _, count in placed.at] == [20, 20]
    assert finished.prompt_tokens == len(composed.tokens)


def test_people_see_images_as_numbers():
    assert shown(["a", Media([b"1"]), Media([b"2"]), "b"]) == ("a[img-0][img-1]b", 2)
    assert shown(["a"]) == ("a", 0)
