"""The conversation: the line editor through a pipe, the commands, and the whole at a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from puna.cli.client import Client
from puna.cli.prompt import PromptHistory, PromptReader, is_open, unquoted
from puna.cli.session import Session
from puna.cli.slash import Leave, run_command

from .cli_fake import Fake, fake_server

CTRL_A, CTRL_C, CTRL_D, CTRL_K, CTRL_W, ENTER, TAB, UP = "\x01", "\x03", "\x04", "\x0b", "\x17", "\r", "\t", "\x1b[A"

PROMPT = "Send a message"
CURSOR_QUESTION = "\x1b[6n"  # "where is the cursor?", asked by the line editor


# --- the line editor ------------------------------------------------------------------------------------------------


@pytest.fixture
def typed() -> Callable[[str], str]:
    """Type keys into an editor that remembers "before" and return the message that comes out."""

    def read(keys: str) -> str:
        with create_pipe_input() as pipe:
            pipe.send_text(keys)
            return PromptReader(InMemoryHistory(["before"]), input=pipe, output=DummyOutput()).read()

    return read


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello" + ENTER, "hello"),
        ('"""one' + ENTER + "two" + ENTER + 'three"""' + ENTER, '"""one\ntwo\nthree"""'),
        ('"""one"""' + ENTER, '"""one"""'),
        ('/set system """be' + ENTER + 'kind"""' + ENTER, '/set system """be\nkind"""'),
        ('say """ now' + ENTER, 'say """ now'),
        ("\x1b[200~pasted\nlines\x1b[201~" + ENTER, "pasted\nlines"),
        (UP + ENTER, "before"),
        ("wrong" + CTRL_C + "right" + ENTER, "right"),
        ("one two" + CTRL_W + "three" + ENTER, "one three"),
        ("world" + CTRL_A + "hello " + ENTER, "hello world"),
        ("gone" + CTRL_A + CTRL_K + "here" + ENTER, "here"),
        ("a" + TAB + "b" + ENTER, "a        b"),
    ],
)
def test_the_line_editor_returns_what_was_typed(typed: Callable[[str], str], keys: str, message: str):
    assert typed(keys) == message


def test_ctrl_c_on_an_empty_line_interrupts(typed: Callable[[str], str]):
    with pytest.raises(KeyboardInterrupt):
        typed(CTRL_C)


def test_ctrl_d_on_an_empty_line_leaves(typed: Callable[[str], str]):
    with pytest.raises(EOFError):
        typed(CTRL_D)


def test_three_quotes_are_open_until_a_line_ends_in_them():
    assert is_open('"""')
    assert is_open('"""a """ b')
    assert not is_open('""""""')
    assert not is_open('"""a\nb"""  ')
    assert not is_open("plain")


def test_quotes_around_a_message_are_no_part_of_it():
    assert unquoted('"""one\n"two" """') == 'one\n"two" '
    assert unquoted('a """quote"""') == 'a """quote"""'


def test_history_keeps_the_last_hundred_messages_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "state" / "history"
    history = PromptHistory(path, lambda: True)
    for number in range(103):
        history.store_string(f"message {number}\nline two")
    loaded = list(PromptHistory(path, lambda: True).load_history_strings())
    assert loaded[0] == "message 102\nline two"
    assert len(loaded) == 100
    assert path.stat().st_mode & 0o777 == 0o600


def test_history_that_is_switched_off_writes_nothing(tmp_path: Path):
    PromptHistory(tmp_path / "history", lambda: False).store_string("secret")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_history_is_passed_over(tmp_path: Path):
    path = tmp_path / "history"
    path.write_bytes(b'"good"\n\xff{broken\n42\n')
    assert list(PromptHistory(path, lambda: True).load_history_strings()) == ["good"]


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def session(fake: Fake) -> Iterator[Session]:
    with Client(fake.url) as client:
        yield Session(client, "tiny", client.show("tiny"))


Say = Callable[[str], str]


@pytest.fixture
def say(session: Session, capsys: pytest.CaptureFixture[str]) -> Say:
    """Give a command and return what it printed."""

    def run(line: str) -> str:
        assert run_command(session, line)
        return capsys.readouterr().out.strip()

    return run


def test_a_message_goes_out_with_the_whole_conversation(session: Session, fake: Fake):
    session.say("one")
    session.say("two")
    assert [message["content"] for message in fake.bodies("/api/chat")[1]["messages"]] == ["one", "Hello there.", "two"]


def test_what_is_set_goes_out_with_the_next_message(session: Session, say: Say, fake: Fake):
    say('/set system """You are\nkind."""')
    say("/set parameter temperature 0.5")
    say("/set parameter stop A B")
    say("/set format json")
    say("/set think high")
    session.say("hi")
    assert fake.bodies("/api/chat") == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "You are\nkind."}, {"role": "user", "content": "hi"}],
            "options": {"temperature": 0.5, "stop": ["A", "B"]},
            "format": "json",
            "think": "high",
        }
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/set parameter top_k 5", "Set parameter 'top_k' to '5'"),
        ("/set parameter top_k five", 'Couldn\'t set parameter: "invalid int value [five]"'),
        ("/set parameter colour red", "Couldn't set parameter: \"unknown parameter 'colour'\""),
        ("/set system Be kind.", "Set system message."),
        ("/set verbose", "Set 'verbose' mode."),
        ("/set quiet", "Set 'quiet' mode."),
        ("/set nowordwrap", "Set 'nowordwrap' mode."),
        ("/set nohistory", "Set 'nohistory' mode."),
        ("/set format json", "Set format to 'json' mode."),
        ("/set noformat", "Disabled format."),
        ("/set nothink", "Set 'nothink' mode."),
        ("/set colour", "Unknown command '/set colour'. Type /? for help"),
        ("/show system", "Be brief."),
        ("/show license", "No license was specified for this model."),
        ("/show colour", "Unknown command '/show colour'. Type /? for help"),
        ("/clear", "Cleared session context"),
        ("/save copy", "Created new model 'copy'"),
    ],
)
def test_each_command_says_what_it_did(say: Say, line: str, text: str):
    assert say(line) == text


def test_modes_change_the_session(session: Session, say: Say):
    for line in ("/set verbose", "/set nowordwrap", "/set nohistory", "/set nothink"):
        say(line)
    assert (session.style.verbose, session.style.word_wrap, session.remembers, session.think) == (
        True,
        False,
        False,
        False,
    )


@pytest.mark.parametrize("topic", ["", " set", " show", " shortcuts"])
def test_each_help_text_is_a_different_one(say: Say, topic: str):
    assert say(f"/?{topic}").startswith(
        {"": "Commands", " set": "Settings", " show": "Parts", " shortcuts": "Keys"}[topic]
    )


def test_clear_forgets_the_conversation_but_not_the_system_text(session: Session, say: Say):
    say("/set system Be kind.")
    session.say("hi")
    say("/clear")
    assert (session.messages, session.system) == ([], "Be kind.")


def test_load_switches_the_model_and_starts_anew(session: Session, say: Say, fake: Fake):
    fake.models["other:latest"] = {"system": "I am other."}
    session.say("hi")
    assert say("/load other").endswith("Loading model 'other'")
    assert (session.model, session.messages, session.card.system) == ("other", [], "I am other.")


def test_a_model_that_is_not_there_leaves_the_conversation_as_it_was(session: Session, say: Say):
    session.say("hi")
    assert say("/load gone").splitlines()[-1] == "Couldn't load model: model 'gone' not found"
    assert session.model == "tiny"
    assert len(session.messages) == 2


def test_save_creates_a_model_from_all_that_was_set_and_said(session: Session, say: Say, fake: Fake):
    say("/set system Be kind.")
    say("/set parameter seed 7")
    session.say("hi")
    say("/save kind")
    assert fake.bodies("/api/create") == [
        {
            "model": "kind",
            "from": "tiny",
            "system": "Be kind.",
            "parameters": {"seed": 7},
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello there."}],
        }
    ]


def test_bye_leaves(session: Session):
    with pytest.raises(Leave):
        run_command(session, "/bye")


def test_a_failed_message_can_be_sent_again(session: Session, fake: Fake, monkeypatch: pytest.MonkeyPatch):
    fake.failure = "the runner died"
    with pytest.raises(Exception, match="the runner died"):
        session.say("hi")
    assert session.messages == []


# --- at a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """`puna run tiny` at a pseudo-terminal."""

    def __init__(self, fake: Fake, home: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"PUNA_HOST": fake.url, "HOME": str(home), "TERM": "xterm", "COLUMNS": "80"}
        command = [sys.executable, "-c", "from puna.cli import main; main()", "run", "tiny", *arguments]
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, close_fds=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self._unseen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, text: str, timeout_s: float = 20) -> str:
        """Wait until text appears after what was seen before, and return all that came in between."""
        deadline = time.monotonic() + timeout_s
        while text not in self._unseen:
            assert time.monotonic() < deadline, f"{text!r} did not appear; this did: {self._unseen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._unseen += os.read(self._master, 65536).decode(errors="replace")
            if CURSOR_QUESTION in self._unseen:
                self._unseen = self._unseen.replace(CURSOR_QUESTION, "")
                self.type("\x1b[1;1R")
        before, _, self._unseen = self._unseen.partition(text)
        return before

    def end(self) -> int:
        return self._process.wait(20)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C becomes a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(fake: Fake, tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    """Start `puna run tiny` at a terminal of its own."""
    with ExitStack() as stack:

        def start() -> Terminal:
            started = Terminal(fake, tmp_path)
            stack.callback(started.close)
            return started

        yield start


def test_a_conversation_at_a_terminal(fake: Fake, tmp_path: Path, terminal: Callable[[], Terminal]):
    stored = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Yo."}]
    fake.models["tiny:latest"]["messages"] = stored
    fake.words = ["word " * 30, "end."]
    chat = terminal()
    chat.see(">>> Hi!\r\nYo.\r\n")
    chat.see(PROMPT)
    chat.type("good day\r")
    assert chat.see("end.").endswith("word " * 15 + "\r\n" + "word " * 15 + "\r\n")
    chat.see(PROMPT)
    chat.type("/nonsense\r")
    chat.see("Unknown command '/nonsense'. Type /? for help")
    chat.see(PROMPT)
    chat.type("\x03")
    chat.see("Use Ctrl-D or /bye to leave.")
    chat.see(PROMPT)
    chat.type("/bye\r")
    assert chat.end() == 0
    assert fake.bodies("/api/chat")[0]["messages"] == [{"role": "user", "content": "good day"}]
    assert "good day" in (tmp_path / ".local/state/puna/history").read_text()


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(fake: Fake, terminal: Callable[[], Terminal]):
    fake.endless = True
    chat = terminal()
    chat.see(PROMPT)
    chat.type("talk\r")
    chat.see("Hello there.Hello")
    chat.type("\x03")
    assert fake.left.wait(20)  # the server saw its client leave
    fake.endless = False
    chat.see(PROMPT)
    chat.type("go on\r")
    chat.see("Hello there.")
    chat.see(PROMPT)
    chat.type("\x04")
    assert chat.end() == 0
    roles = [message["role"] for message in fake.bodies("/api/chat")[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
