"""Images in requests of each API, against a live server whose runner is scripted."""

from __future__ import annotations

import base64
import json
from contextlib import asynccontextmanager

import pytest

from puna.core.scheduler.messages import Media

from .serving import ROW, ScriptedRunner, make_model, running_server

pytestmark = pytest.mark.asyncio

TEMPLATE = "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}[assistant]"
EYES = frozenset({"image", "video"})


def b64(data: str) -> str:
    return base64.b64encode(data.encode()).decode()


def url(data: str, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64(data)}"


def told(*content: object) -> dict:
    """A message of OpenAI's: texts, and images by the bytes of their files."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def picture(data: str, **more: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url(data), **more}}


class Server:
    """A server with a model that sees, and what it was asked."""

    def __init__(self, live, runner: ScriptedRunner) -> None:
        self.live, self.runner = live, runner

    async def post(self, path: str, **body):
        return await self.live.http.post(path, content=json.dumps({"model": "demo", "stream": False} | body))

    async def prompt(self, path: str, **body) -> str:
        answer = await self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return self.runner.shown

    async def refusal(self, path: str, **body) -> str:
        answer = await self.post(path, **body)
        assert answer.status_code == 400, answer.text
        assert not self.runner.seen
        error = answer.json()["error"]
        return error if isinstance(error, str) else error["message"]

    async def chat(self, text: str, *images: str, **body) -> str:
        return await self.prompt("/api/chat", messages=[{"role": "user", "content": text, "images": images}], **body)


@asynccontextmanager
async def seeing(root, runner: ScriptedRunner | None = None, **fields):
    runner = runner or ScriptedRunner(media=EYES)
    async with running_server(root, runner) as live:
        await make_model(live.store, "demo", sees=True, **({"template": TEMPLATE} | fields))
        yield Server(live, runner)


# Ollama


async def test_images_of_a_message_stand_before_its_text(tmp_path):
    async with seeing(tmp_path) as server:
        assert await server.chat("What?", b64("A"), b64("BB")) == "[user]\n(A)\n\n(BB)\nWhat?[assistant]"
        [first, second] = server.runner.seen[-1].media
        assert (first.media, second.media) == (Media([b"A"]), Media([b"BB"]))
        assert (first.at, second.at) == ([(8, 1)], [(13, 2)])


async def test_images_stand_where_the_text_says(tmp_path):
    async with seeing(tmp_path) as server:
        assert (
            await server.chat("this [img] or [img]?", b64("A"), b64("B")) == "[user]this \n(A)\n or \n(B)\n?[assistant]"
        )


async def test_places_that_somebody_typed_are_text(tmp_path):
    async with seeing(tmp_path) as server:
        assert await server.chat("[img-0] [img-7] \ue0000\ue000", b64("A")) == (
            "[user]\n(A)\n[img-0] [img-7] \ue0000\ue000[assistant]"
        )
        assert await server.chat("[img-0] [img]") == "[user][img-0] [img][assistant]"


@pytest.mark.parametrize(
    "text",
    [
        b64("image A"),
        url("image A"),
        url("image A", "image/x-odd"),
        f"data:;base64,{b64('image A')}",
        f"DATA:image/png;charset=x;BASE64,{b64('image A')}",
        b64("image A")[:5] + "\r\n" + b64("image A")[5:] + "\n",
    ],
)
async def test_images_may_be_data_urls_and_hold_line_breaks(tmp_path, text):
    async with seeing(tmp_path) as server:
        assert await server.chat("", text) == "[user]\n(image A)\n[assistant]"


async def test_images_of_earlier_messages_stay_with_them(tmp_path):
    async with seeing(tmp_path) as server:
        talk = [
            {"role": "user", "content": "one", "images": [b64("A")]},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "two", "images": [b64("B")]},
        ]
        expected = "[user]\n(A)\none[assistant]ok[user]\n(B)\ntwo[assistant]"
        assert await server.prompt("/api/chat", messages=talk) == expected


async def test_a_conversation_that_is_too_long_loses_images_with_their_messages(tmp_path):
    async with seeing(tmp_path) as server:
        talk = [{"role": "user", "content": "old", "images": [b64("A" * 60)]}, {"role": "assistant", "content": "ok"},
                {"role": "user", "content": "new", "images": [b64("B" * 30)]}]  # fmt: skip
        short = await server.prompt("/api/chat", messages=talk, options={"num_ctx": 90})
        assert short == f"[assistant]ok[user]\n({'B' * 30})\nnew[assistant]"
        assert len(server.runner.seen[-1].media) == 1
        assert f"({'A' * 60})" in await server.prompt("/api/chat", messages=talk, options={"num_ctx": 150})


async def test_an_image_is_looked_at_once_however_often_a_prompt_is_composed(tmp_path):
    async with seeing(tmp_path) as server:
        talk = [{"role": "user", "content": f"turn {n}", "images": [b64(f"image {n}")]} for n in range(9)]
        talk = [turn for turn in talk for turn in (turn, {"role": "assistant", "content": "ok"})][:-1]
        await server.prompt("/api/chat", messages=talk, options={"num_ctx": 100})
        assert sorted(media.frames[0] for media in server.runner.looked) == [b"image %d" % n for n in range(9)]


async def test_a_completion_has_images_too(tmp_path):
    async with seeing(tmp_path) as server:
        assert (
            await server.prompt("/api/generate", prompt="What?", images=[b64("A")]) == "[user]\n(A)\nWhat?[assistant]"
        )
        assert await server.prompt("/api/generate", prompt="", images=[b64("A")]) == "[user]\n(A)\n[assistant]"


async def test_an_empty_list_of_images_asks_for_nothing(tmp_path):
    async with seeing(tmp_path) as server:
        answer = (await server.post("/api/generate", prompt="", images=[])).json()
        assert answer["done_reason"] == "load"


async def test_a_raw_prompt_says_where_its_images_are(tmp_path):
    async with seeing(tmp_path) as server:
        images = [b64("A"), b64("B")]
        shown = await server.prompt("/api/generate", raw=True, prompt="x[img-1]y[img-0][img-1]", images=images)
        assert shown == "x\n(B)\ny\n(A)\n\n(B)\n"
        assert await server.prompt("/api/generate", raw=True, prompt="[img-0]") == "[img-0]"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("x[img-0]", "a raw prompt says where its images are: there is no [img-1] in this one"),
        ("[img-0][img-1][img-7]", "invalid image index: 7"),
    ],
)
async def test_a_raw_prompt_whose_images_do_not_fit_is_refused(tmp_path, prompt, said):
    async with seeing(tmp_path) as server:
        assert await server.refusal("/api/generate", raw=True, prompt=prompt, images=[b64("A"), b64("B")]) == said


async def test_images_cannot_be_filled_in_between_texts(tmp_path):
    async with seeing(tmp_path, template="{{ .Prompt }}<{{ .Suffix }}>") as server:
        body = {"prompt": "a", "suffix": "b", "images": [b64("A")]}
        assert "without images" in await server.refusal("/api/generate", **body)


async def test_a_context_holds_texts_alone(tmp_path):
    async with seeing(tmp_path) as server:
        answer = (await server.post("/api/generate", prompt="What?", images=[b64("A")])).json()
        assert "".join(map(chr, answer["context"])) == "[user]What?[assistant]Hello there."
        shown = await server.prompt("/api/generate", prompt="And?", images=[b64("B")], context=answer["context"])
        assert shown == "[user]What?[assistant]Hello there.[user]\n(B)\nAnd?[assistant]"


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_render_only_counts_images(tmp_path, path):
    async with seeing(tmp_path) as server:
        asked = {"prompt": "a [img] b", "images": [b64("A"), b64("B")]}
        body = asked if path.endswith("generate") else {
            "messages": [{"role": "user", "content": asked["prompt"], "images": asked["images"]}]
        }  # fmt: skip
        answer = (await server.post(path, _debug_render_only=True, **body)).json()
        assert answer["_debug_info"] == {"rendered_template": "[user][img-0]a [img-1] b[assistant]", "image_count": 2}
        assert not server.runner.seen


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("aGk", "illegal base64 data at input byte 0"),
        ("aGkhaGk", "illegal base64 data at input byte 4"),
        ("aG*h", "illegal base64 data at input byte 2"),
        ("aGk=x", "illegal base64 data at input byte 4"),
        ("aGkh_-==", "illegal base64 data at input byte 4"),
        ("https://example.org/a.png", "illegal base64 data at input byte 5"),
        ("data:text/plain;base64,aGk=", "illegal base64 data at input byte 4"),
        ("./cat.png", "illegal base64 data at input byte 0"),
        ("äöü=", "illegal base64 data at input byte 0"),
        (b64("broken"), "an image is damaged: it cannot be decoded"),
    ],
)
async def test_an_image_that_is_none_is_refused(tmp_path, image, said):
    async with seeing(tmp_path) as server:
        messages = [{"role": "user", "content": "x", "images": [image]}]
        assert await server.refusal("/api/chat", messages=messages, truncate=False) == said
        assert await server.refusal("/api/generate", prompt="x", images=[image], truncate=False) == said


async def test_more_images_than_a_request_may_have_are_refused(tmp_path):
    async with seeing(tmp_path) as server:
        body = {"prompt": "x", "images": [b64("A")] * 257}
        assert await server.refusal("/api/generate", **body) == "a request has more than 256 images"


# OpenAI


async def test_parts_of_a_message_keep_their_order(tmp_path):
    async with seeing(tmp_path) as server:
        message = told("Look at this: ", picture("A"), "and", picture("B"), "or", "not")
        shown = await server.prompt("/v1/chat/completions", messages=[message])
        assert shown == "[user]Look at this: \n(A)\nand\n(B)\nor\n\nnot[assistant]"


@pytest.mark.parametrize(
    "image",
    [
        {"url": url("A")}, url("A"), {"url": url("A"), "detail": "auto"}, {"url": url("A"), "detail": "low"},
        {"url": url("A"), "detail": "high"}, {"url": url("A"), "detail": None}, {"url": f"data:;base64,{b64('A')}"},
    ],
)  # fmt: skip
async def test_an_image_url_is_a_text_or_an_object(tmp_path, image):
    async with seeing(tmp_path) as server:
        message = told({"type": "image_url", "image_url": image}, "what?")
        assert await server.prompt("/v1/chat/completions", messages=[message]) == "[user]\n(A)\nwhat?[assistant]"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": url("A"), "detail": "fine"}}, "detail must be auto, low or high"),
        ({"type": "image_url", "image_url": b64("A")}, "invalid image input"),
        ({"type": "image_url", "image_url": "data:text/plain;base64,aGk="}, "invalid image input"),
        ({"type": "image_url", "image_url": "data:image/png,aGk="}, "invalid image input"),
        ({"type": "image_url", "image_url": "data:image/png;base64,a"}, "illegal base64 data at input byte 0"),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, "invalid image input"),
        ({"type": "image_url", "image_url": "http://127.0.0.1/a.png"}, "this server fetches no images"),
        ({"type": "image_url", "image_url": {"url": "HTTPS://example.org/a.png"}}, "this server fetches no images"),
        ({"type": "image_url"}, "invalid message format"),
        ({"type": "image_url", "image_url": {"url": 3}}, "invalid message format"),
        ({"type": "video", "video": []}, "invalid message format"),
        ({"type": "video", "video": [3]}, "invalid message format"),
        ({"type": "video", "video": ["x"]}, "invalid image input"),
        ({"type": "video_url", "video_url": {"url": url("A")}}, "a video is read by its frames"),
        ({"type": "video_url", "video_url": {"url": url("A", "video/mp4")}}, "a video is read by its frames"),
        ({"type": "video_url", "video_url": "https://example.org/a.mp4"}, "a video is read by its frames"),
        ({"type": "video_url", "video_url": url("A", "video/jpeg") + ",?"}, "illegal base64 data at input byte 0"),
        ({"type": "video_url", "video_url": [url("A")]}, "invalid message format"),
        ({"type": "video", "video": [url("A")], "fps": 1}, "videos are read at 2 frames a second"),
        ({"type": "input_audio", "input_audio": {}}, "message parts of type input_audio are not supported"),
    ],
)
async def test_a_part_that_is_no_image_is_refused(tmp_path, part, said):
    async with seeing(tmp_path) as server:
        assert said in await server.refusal("/v1/chat/completions", messages=[told("x", part)])


async def test_a_video_is_a_list_of_frames(tmp_path):
    async with seeing(tmp_path) as server:
        video = {"type": "video", "video": [url("A"), url("BB"), url("C")]}
        await server.prompt("/v1/chat/completions", messages=[told("What ", video, "happens?")])
        assert server.runner.prompt.replace(ROW, "#") == "[user]What \n(#|##|#)\nhappens?[assistant]"
        [placed] = server.runner.seen[-1].media
        assert placed.media == Media([b"A", b"BB", b"C"], video=True)
        assert placed.at == [(13, 1), (15, 2), (18, 1)]


@pytest.mark.parametrize("rate", [{}, {"fps": 2}, {"fps": 2.0}])
async def test_a_video_is_also_a_data_url_of_frames(tmp_path, rate):
    async with seeing(tmp_path) as server:
        frames = ",".join(map(b64, ["A", "BB", "C"]))
        video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}} | rate
        await server.prompt("/v1/chat/completions", messages=[told("What ", video, "happens?")])
        assert server.runner.prompt.replace(ROW, "#") == "[user]What \n(#|##|#)\nhappens?[assistant]"
        assert server.runner.seen[-1].media[0].media == Media([b"A", b"BB", b"C"], video=True)


async def test_frames_count_as_images(tmp_path):
    async with seeing(tmp_path) as server:
        video = {"type": "video", "video": [url("A")] * 200}
        said = await server.refusal("/v1/chat/completions", messages=[told(video, *[picture("B")] * 57)])
        assert said == "a request has more than 256 images"
        video = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(["QQ=="] * 257)}}
        assert await server.refusal("/v1/chat/completions", messages=[told(video)]) == said


async def test_a_model_of_images_refuses_videos(tmp_path):
    async with seeing(tmp_path, ScriptedRunner(media=frozenset({"image"}))) as server:
        video = {"type": "video", "video": [url("A"), url("B")]}
        said = await server.refusal("/v1/chat/completions", messages=[told("What?", video)])
        assert said == '"demo:latest" cannot read videos'
        one = {"type": "video", "video": [url("A")]}
        assert await server.refusal("/v1/chat/completions", messages=[told(one)]) == said


# Models that cannot see


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["no image"]}]}),
        ("/api/generate", {"prompt": "x", "images": ["no image"]}),
        ("/api/generate", {"prompt": "x", "images": ["no image"], "raw": True}),
        ("/v1/chat/completions", {"messages": [told("x", picture("A"))]}),
        ("/v1/chat/completions", {"messages": [told({"type": "video", "video": [url("A")]})]}),
    ],
)
async def test_a_model_without_eyes_is_not_even_loaded_for_an_image(tmp_path, path, body):
    runner = ScriptedRunner(media=EYES)
    async with running_server(tmp_path, runner) as live:
        await make_model(live.store, "demo")
        assert await Server(live, runner).refusal(path, **body) == '"demo" cannot read images'
        assert live.models.loaded() == []


async def test_eyes_that_no_plugin_reads_do_not_see(tmp_path):
    async with seeing(tmp_path, ScriptedRunner()) as server:
        said = await server.refusal("/api/generate", prompt="x", images=[b64("A")])
        assert said == '"demo:latest" cannot read images'


async def test_the_capability_to_see_is_shown(tmp_path):
    async with running_server(tmp_path, ScriptedRunner()) as live:
        for name, sees in (("blind", False), ("seeing", True)):
            await make_model(live.store, name, sees=sees)
            card = (await live.http.post("/api/show", json={"model": name})).json()
            assert card["capabilities"] == ["completion", "vision"][: 1 + sees]
            assert ("projector_info" in card) is sees
