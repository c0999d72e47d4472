"""A server whose runner is killed again and again, under load: does it stay up, and is every client told?

`python -m bench.kills --times 100` starts `puna serve`, keeps several clients streaming, and kills the model's process
with SIGKILL whenever somebody got a whole answer from it and others are in the middle of one. Everybody must get a
whole answer or an error in words, the next request must work, and no process may be left. Exits with 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

TINY = Path(__file__).parent.parent / "tests/fixtures/llama-bpe/gguf/model-f32.gguf"
SERVE = "from puna.cli import main; main()"
NOTICED_S = 0.2  # after a kill, until a request counts as one that came later
WHOLE, TOLD = "whole answers", "answers that ended with an error in words"


@dataclass
class Findings:
    """What happened to the clients and to the server."""

    outcomes: Counter[str] = field(default_factory=Counter)
    again_s: list[float] = field(default_factory=list)  # what the first request after each kill took
    wrong: list[str] = field(default_factory=list)
    answered: int = 0  # whole answers since the last kill
    streaming: int = 0  # answers in progress that have begun


@asynccontextmanager
async def served(model: Path) -> AsyncIterator[tuple[httpx2.AsyncClient, psutil.Process]]:
    """A client of a server of its own that has the model, and the server's process; it must end well."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PUNA_HOST": "127.0.0.1:0", "PUNA_MODELS": folder}
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, "serve", stdout=PIPE, stderr=DEVNULL, env=environment
        )
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+:\d+", (await server.stdout.readline()).decode())
            assert found is not None, "the server did not start"
            async with httpx2.AsyncClient(base_url=found[0], timeout=120, trust_env=False) as http:
                await create(http, model)
                yield http, psutil.Process(server.pid)
        finally:
            await stop(server)


async def create(http: httpx2.AsyncClient, model: Path) -> None:
    """Put the model into the server's store."""
    data = await asyncio.to_thread(model.read_bytes)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    (await http.post(f"/api/blobs/{digest}", content=data)).raise_for_status()
    body = {"model": "demo", "files": {model.name: digest}, "template": "{{ .Prompt }}", "stream": False}
    (await http.post("/api/create", json=body)).raise_for_status()


async def stop(server: Process) -> None:
    """End the server as its operator would."""
    if server.returncode is None:
        server.terminate()
    await server.wait()


async def stream(http: httpx2.AsyncClient, findings: Findings, dice: random.Random) -> None:
    """Ask for an answer of some length and note what came of it."""
    body = {"model": "demo", "prompt": "the cats", "options": {"num_predict": dice.randint(1, 300), "temperature": 2.0}}
    last: dict[str, object] = {}
    try:
        async with http.stream("POST", "/api/generate", json=body) as answer:
            findings.streaming += 1
            try:
                async for line in answer.aiter_lines():
                    last = json.loads(line)
            finally:
                findings.streaming -= 1
    except httpx2.HTTPError as error:
        findings.wrong.append(f"a client saw {error!r}")
        return
    if last.get("done"):
        findings.outcomes[WHOLE] += 1
        findings.answered += 1
    elif last.get("error"):
        findings.outcomes[TOLD] += 1
    else:
        findings.wrong.append(f"an answer broke off behind {last!r}")


async def keep_asking(http: httpx2.AsyncClient, findings: Findings, dice: random.Random) -> None:
    """Be a client that always wants an answer."""
    while True:
        await stream(http, findings, dice)


async def kill_once(http: httpx2.AsyncClient, server: psutil.Process, findings: Findings) -> int:
    """Kill the runner in the middle of its work, try the next request, and return who was killed."""
    while not (findings.answered and findings.streaming):  # noqa: ASYNC110 - a moment to hit, not one to wait for
        await asyncio.sleep(0.005)
    runners = server.children()
    if len(runners) != 1:
        findings.wrong.append(f"{len(runners)} runners of one model")
    findings.answered = 0
    runners[0].kill()
    await asyncio.sleep(NOTICED_S)
    begun = time.perf_counter()
    body = {"model": "demo", "prompt": "again", "stream": False, "options": {"num_predict": 1}}
    answer = await http.post("/api/generate", json=body)
    if answer.status_code != 200:
        findings.wrong.append(f"the next request got {answer.status_code}: {answer.text}")
    findings.again_s.append(time.perf_counter() - begun)
    return runners[0].pid


async def measure(model: Path, times: int, clients: int, seed: int) -> Findings:
    """Return what happens when the runner of model is killed so many times."""
    findings, dice, killed = Findings(), random.Random(seed), []
    async with served(model) as (http, server):
        tasks = [asyncio.create_task(keep_asking(http, findings, dice)) for _ in range(clients)]
        killed.append(await kill_once(http, server, findings))
        files, memory = server.num_fds(), server.memory_info().rss
        for count in range(2, times + 1):
            await asyncio.sleep(dice.uniform(0, 0.3))
            killed.append(await kill_once(http, server, findings))
            print(f"\r{count} kills", end="", file=sys.stderr, flush=True)
        left = [child.pid for child in server.children()]
        print(f"\nopen files of the server: {files} after the first kill, {server.num_fds()} after the last")
        print(f"memory of the server: {memory >> 20} MB and {server.memory_info().rss >> 20} MB")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if orphans := [pid for pid in killed + left if psutil.pid_exists(pid)]:
        findings.wrong.append(f"processes are left: {orphans}")
    return findings


def main() -> None:
    """Read the command line, do it, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY, help="a GGUF file; without it, a tiny one")
    parser.add_argument("--times", type=int, default=100, help="how often to kill (default 100)")
    parser.add_argument("--clients", type=int, default=8, help="clients that stream meanwhile (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and lengths (default 0)")
    given = parser.parse_args()
    findings = asyncio.run(measure(given.model, given.times, given.clients, given.seed))
    for outcome in (WHOLE, TOLD):
        print(f"{findings.outcomes[outcome]} {outcome}")
    waits = sorted(findings.again_s)
    print(f"the next request took {waits[len(waits) // 2]:.2f} s, at most {waits[-1]:.2f} s, its load included")
    print(f"{len(findings.wrong)} things went wrong", *findings.wrong[:20], sep="\n  ")
    sys.exit(bool(findings.wrong))


if __name__ == "__main__":
    main()
