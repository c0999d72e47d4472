"""Text in columns: left-aligned, four blanks between and after them, no rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from .replies import ListedModel, LoadedModel, ModelCard
from .words import ago_words, count_words, processor_words, size_words, until_words

_GAP = " " * 4
_ID_LENGTH = 12  # hex digits of a digest that are enough to tell models apart
_SHOWN_LINES = 2  # of a system text or licence
_SHOWN_ITEMS = 3  # of a long array


def columns(rows: Sequence[Sequence[str]], *, indent: int = 0) -> str:
    """Return rows as lines whose cells stand under each other; "" without rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("".join(cell.ljust(width) + _GAP for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def model_table(models: Sequence[ListedModel], now: datetime) -> str:
    """Return the table of `puna list`."""
    rows = [(m.name, m.digest[:_ID_LENGTH], size_words(m.size), ago_words(m.modified_at, now)) for m in models]
    return columns([("NAME", "ID", "SIZE", "MODIFIED"), *rows])


def loaded_table(models: Sequence[LoadedModel], now: datetime) -> str:
    """Return the table of `puna ps`."""
    rows = [
        (
            model.name,
            model.digest[:_ID_LENGTH],
            size_words(model.size),
            processor_words(model.size, model.size_vram),
            str(model.context_length),
            until_words(model.expires_at, now),
        )
        for model in models
    ]
    return columns([("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), *rows])


def card(model: ModelCard, *, verbose: bool = False) -> str:
    """Return the sections of `puna show`; verbose adds the file's metadata and tensors."""
    sections = [
        _section("Model", _facts(model.model_info, model)),
        _section("Projector", _facts(model.projector_info) if model.projector_info else []),
        _section("Draft", _facts(model.draft_info) if model.draft_info else []),
        _section("Capabilities", [[name] for name in model.capabilities]),
        _section("Parameters", [line.split(maxsplit=1) for line in model.parameters.splitlines() if line.strip()]),
    ]
    if verbose:
        sections += [
            _section("Metadata", [[key, _value(value)] for key, value in sorted(model.model_info.items())]),
            _section("Tensors", [[tensor.name, tensor.type, _value(tensor.shape)] for tensor in model.tensors or []]),
        ]
    sections += [_section("System", _first_lines(model.system)), _section("License", _first_lines(model.license))]
    return "\n".join(filter(None, sections))


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    return f"  {title}\n{columns(rows, indent=4)}" if rows else ""


def _facts(info: dict[str, Any], model: ModelCard | None = None) -> list[list[str]]:
    """Return the rows about a GGUF file's metadata that are there. model: adds what only the server knows."""
    architecture = str(info.get("general.architecture", model.details.family if model else ""))
    count = info.get("general.parameter_count")
    facts = {
        "architecture": architecture,
        "parameters": count_words(count) if isinstance(count, int) else model.details.parameter_size if model else "",
        "context length": info.get(f"{architecture}.context_length"),
        "embedding length": info.get(f"{architecture}.embedding_length")
        or info.get(f"{architecture}.vision.embedding_length"),
        "dimensions": info.get(f"{architecture}.vision.projection_dim"),
        "quantization": model.details.quantization_level if model else "",
    }
    return [[name, str(value)] for name, value in facts.items() if value]


def _first_lines(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] for line in lines[:_SHOWN_LINES]] + [["..."]] * (len(lines) > _SHOWN_LINES)


def _value(value: object) -> str:
    """Return a metadata value on one line: long arrays cut, an array that the server left out as "..."."""
    if value is None:
        return "..."
    if isinstance(value, list):
        more = f", ...+{len(value) - _SHOWN_ITEMS} more" if len(value) > _SHOWN_ITEMS + 1 else ""
        shown = value[:_SHOWN_ITEMS] if more else value
        return f"[{', '.join(map(str, shown))}{more}]"
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)
