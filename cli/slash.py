"""The commands of a conversation: lines that start with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from textwrap import indent

from ..core.errors import BadRequest
from .client import Refused
from .prompt import unquoted
from .session import Session
from .tables import card, columns, model_table

_HELP = {
    "": """Commands:
  /set            Change how this conversation works
  /show           Show what the model is made of
  /load MODEL     Go on with another model
  /save MODEL     Create a model from this conversation
  /clear          Forget the conversation so far
  /list           List the models in the store
  /bye            Leave
  /?, /help       Show this text
  /? set          Show what /set can change
  /? show         Show what /show can show
  /? shortcuts    Show the keys of the line editor

Start and end a message of several lines with \"\"\".
""",
    "set": """Settings:
  /set parameter NAME VALUE    Set a model parameter (stop takes several values)
  /set system TEXT             Set the system message
  /set history                 Keep a history of prompts
  /set nohistory               Keep no history of prompts
  /set wordwrap                Break lines between words
  /set nowordwrap              Let the terminal break lines
  /set format json             Make the model answer in JSON
  /set noformat                Let the model answer in any form
  /set verbose                 Show figures after each answer
  /set quiet                   Show no figures
  /set think [LEVEL]           Make the model think first
  /set nothink                 Make the model answer at once
""",
    "show": """Parts:
  /show info          Show the details of the model
  /show license       Show the license
  /show modelfile     Show the Modelfile
  /show parameters    Show the parameters of the model and of this conversation
  /show system        Show the system message
  /show template      Show the prompt template
""",
    "shortcuts": """Keys:
  Ctrl-A, Ctrl-E    Go to the start or the end of the line
  Alt-B, Alt-F      Go one word back or forward
  Ctrl-K, Ctrl-U    Delete to the end or the start of the line
  Ctrl-W            Delete the word before the cursor
  Ctrl-L            Clear the screen
  Ctrl-G            Write the message in an editor
  Ctrl-C            Clear the line, or stop an answer
  Ctrl-D            Leave
""",
}


class Leave(Exception):
    """The user wants to end the conversation."""


Handler = Callable[[Session, str], str]  # takes what follows the command's name and returns what to print


def run_command(session: Session, line: str) -> bool:
    """Carry out line if it is a command, and return whether it was one. Raises Leave for /bye."""
    command = next((name for name in _COMMANDS if line.startswith(name)), None)
    if command is None:
        return False
    if text := _COMMANDS[command](session, line.partition(" ")[2].strip()):
        print(text)
    return True


def _leave(session: Session, rest: str) -> str:
    raise Leave


def _help(session: Session, rest: str) -> str:
    return _HELP.get(rest.removeprefix("/"), _HELP[""])


def _list(session: Session, rest: str) -> str:
    return model_table(session.client.models(), datetime.now(UTC))


def _load(session: Session, rest: str) -> str:
    if not rest:
        return "Usage:\n  /load MODEL"
    print(f"Loading model '{rest}'")
    try:
        session.switch(rest)
    except Refused as refusal:
        return f"Couldn't load model: {refusal}"
    return ""


def _save(session: Session, rest: str) -> str:
    if not rest:
        return "Usage:\n  /save MODEL"
    try:
        session.save(rest)
    except Refused as refusal:
        return f"Couldn't save model: {refusal}"
    return f"Created new model '{rest}'"


def _clear(session: Session, rest: str) -> str:
    session.clear()
    return "Cleared session context"


# --- /set -----------------------------------------------------------------------------------------------------------


def _set(session: Session, rest: str) -> str:
    name, _, value = rest.partition(" ")
    if not name:
        return _HELP["set"]
    if name not in _SETTINGS:
        return f"Unknown command '/set {name}'. Type /? for help"
    return _SETTINGS[name](session, value.strip())


def _set_parameter(session: Session, rest: str) -> str:
    from ..store.options import parse_parameter  # imports numpy, which few conversations need

    name, *values = rest.split()
    if not values:
        return "Usage:\n  /set parameter NAME VALUE"
    try:
        session.options[name] = values if name == "stop" else parse_parameter(name, " ".join(values))
    except BadRequest as problem:
        return f'Couldn\'t set parameter: "{problem}"'
    return f"Set parameter '{name}' to '{', '.join(values)}'"


def _set_system(session: Session, rest: str) -> str:
    if not rest:
        return "Usage:\n  /set system TEXT"
    session.system = unquoted(rest)
    return "Set system message."


def _set_format(session: Session, rest: str) -> str:
    if rest != "json":
        return "Usage:\n  /set format json"
    session.format = "json"
    return "Set format to 'json' mode."


def _set_noformat(session: Session, rest: str) -> str:
    session.format = None
    return "Disabled format."


def _set_think(session: Session, rest: str) -> str:
    session.think = rest or True
    return f"Set 'think' mode to '{rest}'." if rest else "Set 'think' mode."


def _mode(name: str, field: str, value: bool) -> Handler:
    """Return the handler of a setting without a value: it sets a field of the session, or else of its style."""

    def apply(session: Session, rest: str) -> str:
        if hasattr(session, field):
            setattr(session, field, value)
        else:
            session.style = replace(session.style, **{field: value})
        return f"Set '{name}' mode."

    return apply


_SETTINGS: dict[str, Handler] = {
    "parameter": _set_parameter,
    "system": _set_system,
    "format": _set_format,
    "noformat": _set_noformat,
    "think": _set_think,
    "nothink": _mode("nothink", "think", False),
    "history": _mode("history", "remembers", True),
    "nohistory": _mode("nohistory", "remembers", False),
    "wordwrap": _mode("wordwrap", "word_wrap", True),
    "nowordwrap": _mode("nowordwrap", "word_wrap", False),
    "verbose": _mode("verbose", "verbose", True),
    "quiet": _mode("quiet", "verbose", False),
}


# --- /show ----------------------------------------------------------------------------------------------------------


def _show(session: Session, rest: str) -> str:
    if not rest:
        return _HELP["show"]
    if rest not in _PARTS:
        return f"Unknown command '/show {rest}'. Type /? for help"
    return _PARTS[rest](session)


def _parameters(session: Session) -> str:
    own = columns([(name, str(value)) for name, value in session.options.items()], indent=2)
    stored = indent(session.card.parameters, "  ")
    return f"Parameters of the model:\n{stored or '  none'}\n\nParameters of this conversation:\n{own or '  none'}"


_PARTS: dict[str, Callable[[Session], str]] = {
    "info": lambda session: card(session.card),
    "license": lambda session: session.card.license or "No license was specified for this model.",
    "modelfile": lambda session: session.card.modelfile,
    "parameters": _parameters,
    "system": lambda session: session.system or session.card.system or "No system message was specified.",
    "template": lambda session: session.card.template or "No prompt template was specified for this model.",
}

_COMMANDS: dict[str, Handler] = {
    "/set": _set,
    "/show": _show,
    "/load": _load,
    "/save": _save,
    "/clear": _clear,
    "/list": _list,
    "/help": _help,
    "/?": _help,
    "/bye": _leave,
    "/exit": _leave,
}
