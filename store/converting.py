"""Converting a model's weights, whatever files they are in, to one GGUF file."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import msgspec

from ..core.converting import Conversion, Converter
from ..core.errors import BadModel, BadRequest, Unsupported
from ..core.tensor.blocks import BlockFormat
from ..core.tensor.floats import FLOATS
from ..core.tensor.source import WeightSource
from ..core.tensor.weights import open_weights
from .blobs import Blobs, NewBlob
from .facts import chat_template, facts_of
from .importing import config_of
from .manifests import CHECKPOINT, MODEL, PROJECTOR, Layer
from .models import ModelConfig
from .progress import Progress

WEIGHTS = (MODEL, PROJECTOR, CHECKPOINT)  # the layers that a converted one takes the place of
LATER = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")  # and mixtures of those
REPORT_BYTES = 64 << 20  # between two lines of progress
NO_DIGEST = "0" * 19  # of a blob that has none yet, as Ollama's clients know it


def float_format(name: str) -> BlockFormat:
    """Return the format that a request to convert names, in any letter case.

    Raises Unsupported for quantised ones, BadRequest for anything else.
    """
    found = name.upper()
    for form in FLOATS:
        if form.name == found:
            return form
    if found.startswith(LATER):
        raise Unsupported(
            f"quantizing to {name} is not supported yet: ask for f16, bf16 or f32, or quantize the model before"
        )
    raise BadRequest(f"unsupported quantization type {name} - supported types are F32, F16, BF16")


def convert(
    layers: Sequence[Layer], config: ModelConfig, form: BlockFormat, blobs: Blobs, converter: Converter | None
) -> Generator[Progress, None, tuple[Layer, ModelConfig]]:
    """Write the weights in layers as one GGUF file. Return its layer, and the config with what it says.

    The file gets its name once it was read again. Raises BadRequest for weights that cannot be converted.
    """
    if converter is None:
        raise Unsupported("models cannot be converted here: no plugins are at hand")
    parts = [layer for layer in layers if layer.media_type in WEIGHTS]
    files = {layer.name or f"{number}.gguf": blobs.path(layer.digest) for number, layer in enumerate(parts)}
    try:
        with closing(open_weights(files)) as source, blobs.making() as blob:
            conversion = converter.open(source, form, _template(source))
            yield from _write(conversion, blob)
            yield Progress(status="verifying conversion")
            found = _verified(conversion, blob)
            return Layer(media_type=MODEL, digest=blob.commit(), size=blob.size), _merged(config, found)
    except BadModel as error:
        raise BadRequest(f"the model cannot be converted: {error}") from None


def _template(source: WeightSource) -> dict[str, str]:
    text = chat_template(source)
    return {} if text is None else {"tokenizer.chat_template": text}


def _write(conversion: Conversion, blob: NewBlob) -> Generator[Progress, None, None]:
    progress = Progress(status="converting model", digest=NO_DIGEST, total=conversion.nbytes)
    yield progress
    for piece in conversion.pieces():
        blob.write(piece)
        if blob.size - progress.completed >= REPORT_BYTES:
            progress = msgspec.structs.replace(progress, completed=min(blob.size, progress.total))
            yield progress


def _verified(conversion: Conversion, blob: NewBlob) -> ModelConfig:
    """Return what the file that was written says. Raises BadModel if that is not what was to be written."""
    with closing(open_weights(blob.path())) as written:
        conversion.check(written)
        about = facts_of(written)
    return config_of(about, [about.family])


def _merged(config: ModelConfig, found: ModelConfig) -> ModelConfig:
    """Return config with all that found says."""
    said = {name: value for name, value in msgspec.structs.asdict(found).items() if value}
    return msgspec.structs.replace(config, **said)
