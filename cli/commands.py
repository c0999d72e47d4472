"""The short commands: each is a request or two and a line or a table on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ..core.errors import BadRequest, NotFound
from .client import Client, Refused
from .tables import card, loaded_table, model_table


def list_models(client: Client, prefix: str) -> None:
    """Print the models in the store whose names begin with prefix, in any letter case."""
    models = [model for model in client.models() if _begins(model.name, prefix)]
    print(model_table(models, datetime.now(UTC)), end="")


def list_loaded(client: Client, prefix: str) -> None:
    """Print the models in memory whose names begin with prefix, in any letter case."""
    models = [model for model in client.loaded() if _begins(model.name, prefix)]
    print(loaded_table(models, datetime.now(UTC)), end="")


def show_model(client: Client, model: str, parts: Sequence[str], *, verbose: bool) -> None:
    """Print a part of a model's description, or all of it in sections. Raises BadRequest for several parts."""
    if len(parts) > 1:
        raise BadRequest(f"only one of {', '.join(f'--{part}' for part in parts)} can be shown at a time")
    found = client.show(model, verbose=verbose)
    print(getattr(found, parts[0]) if parts else card(found, verbose=verbose))


def stop_model(client: Client, model: str) -> None:
    """Unload model. Raises NotFound if the store has none of that name."""
    try:
        client.unload(model)
    except Refused as refusal:
        if refusal.status == 404:
            raise NotFound(f'couldn\'t find model "{model}" to stop') from refusal
        raise


def remove_models(client: Client, models: Sequence[str]) -> None:
    """Unload and delete models, in order, up to the first that fails."""
    for model in models:
        _stop_quietly(client, model)
        client.delete(model)
        print(f"deleted '{model}'")


def _stop_quietly(client: Client, model: str) -> None:
    """Unload model; a model that is not there, or cannot be run at all, is no error."""
    try:
        client.unload(model)
    except Refused as refusal:
        if refusal.status not in (400, 404):
            raise


def _begins(name: str, prefix: str) -> bool:
    return name.lower().startswith(prefix.lower())
