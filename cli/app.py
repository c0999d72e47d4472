"""The command line: what there is to call, with which options. Each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from .. import __version__
from ..core.errors import Failure
from ..core.settings import describe_settings, load_settings

if TYPE_CHECKING:
    from .client import Client

_INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended
_PIPE_CLOSED = 141  # and for one whose reader went away
_HELP_COLUMNS = 80

ThinkLevel = Literal["low", "medium", "high", "max"]


def run_command(arguments: list[str] | None = None) -> None:
    """Run the command that arguments (None: the process's own) ask for; exits with a status if it fails."""
    try:
        app(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        sys.exit(_PIPE_CLOSED)
    except (Failure, OSError) as failure:
        print(f"Error: {failure}", file=sys.stderr)
        sys.exit(1)


def _version() -> str:
    """Return the text of `--version`; the server's version counts, ours is mentioned where it differs."""
    from .client import Client, NotRunning

    try:
        with Client(load_settings().host.url) as client:
            served = client.version()
    except NotRunning:
        return f"Warning: could not connect to a running Puna server\nWarning: client version is {__version__}"
    warning = "" if served == __version__ else f"\nWarning: client version is {__version__}"
    return f"puna version is {served}{warning}"


def _variables(*names: str) -> str:
    """Return the part of a command's help that lists the environment variables it reads."""
    rows = [(name, f"{meaning} (default {default})" if default else meaning) for name, default, meaning in _settings]
    shown = [row for row in rows if not names or row[0] in names]
    width = max(len(name) for name, _ in shown)
    lines = (_indented(f"  {name:<{width}}  ", meaning) for name, meaning in shown)
    return "Environment variables:\n\n" + "\n".join(lines)


def _indented(label: str, text: str) -> str:
    return textwrap.fill(text, _HELP_COLUMNS, initial_indent=label, subsequent_indent=" " * len(label))


_settings = describe_settings()
_CLIENT_VARIABLES = _variables("PUNA_HOST")

app = App(
    name="puna",
    help="A local server for multimodal language models, and its command line.",
    version=_version,
    version_flags=["--version", "-v"],
    error_formatter=lambda error: f"Error: {error}",
    default_parameter=Parameter(negative=(), show_default=False),
    result_action="return_none",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def _connect() -> Client:
    """Return a client of the running server. Raises NotRunning if there is none."""
    from .client import Client

    client = Client(load_settings().host.url)
    client.check()
    return client


@app.command(alias="start", help_epilogue=_variables())
def serve() -> None:
    """Run the server, until Ctrl-C or a termination signal ends it."""
    from .serve import run_server

    run_server(load_settings())


@app.command(help_epilogue=_variables("PUNA_KERNEL_CACHE"))
def warmup(*, all: bool = False) -> None:
    """Compile the kernels for this processor, so that no server and no model has to wait for it.

    Args:
        all: for every block format, also the rare ones
    """
    from ..core.tensor.warmup import every_job, jobs
    from .warmup import compile_kernels

    compile_kernels(every_job() if all else jobs())


@app.command(help_epilogue=_CLIENT_VARIABLES)
def create(
    model: str,
    /,
    *,
    file: Annotated[Path | None, Parameter(name=["--file", "-f"])] = None,
    quantize: Annotated[str | None, Parameter(name=["--quantize", "-q"])] = None,
) -> None:
    """Create a model from a Modelfile.

    Args:
        model: the name of the new model
        file: the Modelfile; without it, ./Modelfile, or else the model files of this folder
        quantize: convert the model to a single GGUF file of f16, bf16 or f32
    """
    from .create import create_model

    with _connect() as client:
        create_model(client, model, file, quantize)


@app.command(help_epilogue=_variables("PUNA_HOST", "PUNA_NOHISTORY"))
def run(
    model: str,
    /,
    *prompt: str,
    keepalive: str | None = None,
    verbose: bool = False,
    nowordwrap: bool = False,
    format: str | None = None,
    think: Annotated[bool | ThinkLevel | None, Parameter(requires_equals=True)] = None,
    hidethinking: bool = False,
) -> None:
    """Ask a model, or talk with it if there is no prompt.

    Args:
        model: the model to run
        prompt: the prompt; text that is piped in is put in front
        keepalive: how long the model stays loaded afterwards, for example 5m
        verbose: show how long each answer took
        nowordwrap: let the terminal break lines, inside words too
        format: json, or a JSON Schema that the answer must follow
        think: make the model think first, or with =false not
        hidethinking: do not show what the model thinks
    """
    from .answer import Style
    from .run import find_model, read_format, run_model
    from .session import Session

    with _connect() as client:
        session = Session(
            client,
            model,
            find_model(client, model),
            format=read_format(format),
            think=think,
            keep_alive=keepalive,
            style=Style(word_wrap=not nowordwrap, hide_thinking=hidethinking, verbose=verbose),
            remembers=not load_settings().nohistory,
        )
        run_model(session, prompt)


@app.command(alias="ls", name="list", help_epilogue=_CLIENT_VARIABLES)
def list_models(prefix: str = "", /) -> None:
    """List the models in the store.

    Args:
        prefix: only those whose names begin so
    """
    from .commands import list_models

    with _connect() as client:
        list_models(client, prefix)


@app.command(help_epilogue=_CLIENT_VARIABLES)
def ps(prefix: str = "", /) -> None:
    """List the models in memory.

    Args:
        prefix: only those whose names begin so
    """
    from .commands import list_loaded

    with _connect() as client:
        list_loaded(client, prefix)


@app.command(help_epilogue=_CLIENT_VARIABLES)
def show(
    model: str,
    /,
    *,
    license: bool = False,
    modelfile: bool = False,
    parameters: bool = False,
    template: bool = False,
    system: bool = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> None:
    """Show what a model is made of.

    Args:
        model: the model to show
        license: show its license
        modelfile: show its Modelfile
        parameters: show its parameters
        template: show its prompt template
        system: show its system message
        verbose: show the metadata and the tensors of its file too
    """
    from .commands import show_model

    flags = {
        "license": license,
        "modelfile": modelfile,
        "parameters": parameters,
        "template": template,
        "system": system,
    }
    with _connect() as client:
        show_model(client, model, [name for name, given in flags.items() if given], verbose=verbose)


@app.command(help_epilogue=_CLIENT_VARIABLES)
def stop(model: str, /) -> None:
    """Take a model out of memory.

    Args:
        model: the model to unload
    """
    from .commands import stop_model

    with _connect() as client:
        stop_model(client, model)


@app.command(help_epilogue=_CLIENT_VARIABLES)
def cp(source: str, destination: str, /) -> None:
    """Give a model a second name.

    Args:
        source: the model
        destination: its second name
    """
    with _connect() as client:
        client.copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


@app.command(help_epilogue=_CLIENT_VARIABLES)
def rm(model: str, /, *more: str) -> None:
    """Remove models from the store.

    Args:
        model: a model to remove
        more: further models
    """
    from .commands import remove_models

    with _connect() as client:
        remove_models(client, (model, *more))


@app.command(help_epilogue=_variables("PUNA_PLUGINS"))
def plugins() -> None:
    """List the installed plugins, their architectures, and why one failed to load."""
    from .plugins import list_plugins

    list_plugins(load_settings())
