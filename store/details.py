"""Everything /api/show tells about a model, but for the capabilities, which depend on templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from ..core.tensor.source import WeightSource
from .facts import information, parameter_count
from .modelfile import Message, parameter_lines, render
from .models import Details, StoredModel

PARAMETER_COLUMNS = 30
_SAID_ELSEWHERE = ("general.name", "tokenizer.chat_template")
_LONG = {"tokenizer.huggingface.json"}  # megabytes of text, which is left out as arrays are


class TensorLine(msgspec.Struct, frozen=True):
    """A tensor as listed. shape: slowest dimension first."""

    name: str
    type: str
    shape: tuple[int, ...]


class ShowInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; texts that the model does not have are empty."""

    license: str
    modelfile: str
    parameters: str
    template: str
    system: str
    messages: list[Message]
    details: Details
    model_info: dict[str, Any]
    projector_info: dict[str, Any] | None
    draft_info: dict[str, Any] | None
    tensors: list[TensorLine]
    modified_at: datetime
    requires: str


def show(
    model: StoredModel,
    *,
    verbose: bool = False,
    system: str | None = None,
    template: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ShowInfo:
    """Return what there is to say about model. Raises BadModel.

    verbose: include arrays (vocabularies, for one) instead of null. system, template, options: what the Modelfile shall
    say in place of, and options in addition to, what the model does.
    """
    model_info, tensors = _of_weights(model, verbose)
    return ShowInfo(
        license="\n".join(model.licenses),
        modelfile=_modelfile(model, system or model.system, template or model.template, options or {}),
        parameters="\n".join(parameter_lines(model.params, width=PARAMETER_COLUMNS, write=_double_quoted)),
        template=model.template or "",
        system=model.system or "",
        messages=list(model.messages),
        details=model.details,
        model_info=model_info,
        projector_info=_info_of_first(model.open_projectors(), verbose),
        draft_info=_info_of_first(model.open_drafts(), verbose),
        tensors=tensors,
        modified_at=model.modified_at,
        requires=model.config.requires,
    )


def _of_weights(model: StoredModel, verbose: bool) -> tuple[dict[str, Any], list[TensorLine]]:
    """Return settings and tensors; nothing for a model without weights, such as one that runs elsewhere."""
    if not model.weights:
        return {}, []
    with closing(model.open_weights()) as weights:
        return _model_info(weights, verbose), _tensor_lines(weights)


def _model_info(source: WeightSource, verbose: bool) -> dict[str, Any]:
    shown = {key: value for key, value in information(source).items() if key not in _SAID_ELSEWHERE}
    if not verbose:
        shown |= dict.fromkeys(_LONG & shown.keys())
    info = {_unicode(key): _plain(value, verbose) for key, value in shown.items()}
    return info | {"general.parameter_count": parameter_count(source.tensors.values())}


def _info_of_first(sources: list[WeightSource], verbose: bool) -> dict[str, Any] | None:
    try:
        return _model_info(sources[0], verbose) if sources else None
    finally:
        for source in sources:
            source.close()


def _tensor_lines(source: WeightSource) -> list[TensorLine]:
    return [TensorLine(_unicode(info.name), info.format.name, info.shape) for info in source.tensors.values()]


def _modelfile(model: StoredModel, system: str | None, template: str | None, options: Mapping[str, Any]) -> str:
    drafts = [str(path) for path in model.drafts.values()]
    # No path here means all files of a checkpoint, or all of a draft's, but the name of the model does.
    named = model.config.model_format == "safetensors" or len(drafts) > 1 or not model.weights
    weights = [model.name.short] if named else [str(path) for path in model.weights.values()]
    return render(
        model.name.short,
        [*weights, *map(str, model.projectors.values())],
        adapters=[str(path) for path in model.adapters.values()],
        draft=drafts[0] if len(drafts) == 1 else None,
        template=template,
        system=system,
        renderer=model.config.renderer,
        parser=model.config.parser,
        parameters=dict(model.params) | dict(options),
        licenses=model.licenses,
        messages=model.messages,
    )


def _plain(value: Any, verbose: bool) -> Any:
    """Return numpy's scalars as Python's; arrays as lists if verbose, else as None."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return _unicode(value)
    if not isinstance(value, Sequence | np.ndarray):
        return value
    if not verbose:
        return None
    return [_plain(item, verbose) for item in value]


def _unicode(text: str) -> str:
    """Return text without the bytes that are no UTF-8, which a GGUF file may have anywhere and JSON cannot hold."""
    return text.encode(errors="replace").decode()


def _double_quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
