"""Videos in OpenAI's API, by their frames, with real models: read by those that can, refused by name by the others."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from .reference import FIXTURES
from .serving import running_server, upload
from .toy_vision import png

pytestmark = pytest.mark.asyncio

QWEN, GEMMA = (sorted((FIXTURES / name / "hf").iterdir()) for name in ("qwen2.5-vl", "gemma3-vl"))
SIZE = {"width": 224, "height": 112}  # 8 x 4 rows, for an image and for each pair of frames
ROWS = 32
WITH_VIDEOS = """\
{%- for message in messages %}<|im_start|>{{ message['role'] + '\\n' }}
    {%- if message['content'] is string %}{{ message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>
            {%- elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>
            {%- else %}{{ part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}<|im_end|>{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}
"""


async def create(live, files: Iterable[Path]) -> None:
    digests = {path.name: await upload(live.store, path) for path in files}
    answer = await live.http.post("/api/create", json={"model": "demo", "files": digests, "stream": False})
    assert answer.json() == {"status": "success"}, answer.text


async def ask(live, *parts: dict):
    content = [{"type": "text", "text": "What happens in "}, *parts, {"type": "text", "text": "?"}]
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return await live.http.post("/v1/chat/completions", json=body)


async def read(live, *parts: dict) -> tuple[int, str]:
    """Return how long the prompt is, and the reply."""
    answer = await ask(live, *parts)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["usage"]["prompt_tokens"], body["choices"][0]["message"]["content"]


async def refusal(live, *parts: dict) -> str:
    answer = await ask(live, *parts)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def frame(seed: int, **size: int) -> str:
    return base64.b64encode(png(seed, **(SIZE | size))).decode()


def image(seed: int) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{frame(seed)}"}}


def video(*frames: str, **more: object) -> dict:
    return {"type": "video", "video": [f"data:image/png;base64,{text}" for text in frames]} | more


def video_url(*frames: str) -> dict:
    return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(frames)}}


@pytest.fixture(params=["images", "images and videos"])
def checkpoint(request, tmp_path) -> list[Path]:
    """The files of a model whose template knows images alone, or writes another marker for videos."""
    if request.param == "images":
        return QWEN
    config = next(file for file in QWEN if file.name == "tokenizer_config.json")
    changed = tmp_path / config.name
    changed.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": WITH_VIDEOS}))
    return [changed if file is config else file for file in QWEN]


async def test_pairs_of_frames_have_the_rows_of_an_image_each(tmp_path, checkpoint):
    async with running_server(tmp_path / "models") as live:
        await create(live, checkpoint)
        one, said = await read(live, image(1))
        assert await read(live, video(frame(1), frame(1))) == (one, said)
        assert await read(live, video(frame(1))) == (one, said)
        assert (await read(live, video(*map(frame, range(3)))))[0] == one + ROWS
        longer, _ = await read(live, video(*map(frame, range(4))))
        assert longer == one + ROWS
        both, _ = await read(live, image(1), video(*map(frame, range(4))))
        assert both == one + 2 * ROWS + 2  # and what stands around them


async def test_a_data_url_of_frames_is_the_same_video(tmp_path):
    async with running_server(tmp_path) as live:
        await create(live, QWEN)
        frames = [frame(seed) for seed in range(4)]
        listed = await read(live, video(*frames, fps=2))
        (resident,) = live.models.loaded()
        before = resident.runner.stats.images
        assert await read(live, video_url(*frames)) == listed
        after = resident.runner.stats.images
        assert (after.hits, after.prepared) == (before.hits + 1, before.prepared)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (video(frame(1), frame(2, height=56)), "frame 1 of a video is 224 x 56 pixels, expected 224 x 112"),
        (video(frame(1), base64.b64encode(b"no image").decode()), "an image is damaged, or in no format that is read"),
        (video(frame(1), fps=30), "videos are read at 2 frames a second"),
        (video_url(frame(1), frame(1)[:-3]), "illegal base64 data"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, "a video is read by its frames"),
    ],
    ids=["sizes", "no image", "rate", "base64", "file"],
)
async def test_what_is_no_video_is_refused_with_a_reason(tmp_path, part, said):
    async with running_server(tmp_path) as live:
        await create(live, QWEN)
        assert said in await refusal(live, part)


@pytest.mark.parametrize("part", [video(frame(1), frame(2)), video(frame(1)), video_url(frame(1), frame(2))])
async def test_a_model_of_images_refuses_videos_by_name(tmp_path, part):
    async with running_server(tmp_path) as live:
        await create(live, GEMMA)
        assert await refusal(live, part) == '"demo:latest" cannot read videos'
