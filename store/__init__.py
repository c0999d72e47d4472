"""Models on disk, in the folder layout of Ollama: names, manifests, blobs, Modelfiles, and making new models."""

from .blobs import DigestMismatch
from .create import CreateRequest
from .details import ShowInfo, TensorLine, show
from .digests import Digest, InvalidDigest
from .facts import Facts, chat_template, facts_of, human_count
from .library import Store
from .manifests import ModelNotFound
from .modelfile import Message, Modelfile, ModelfileError, UnexpectedEnd
from .models import Details, ModelConfig, StoredModel
from .names import InvalidFileName, InvalidName, ModelName
from .options import OPTIONS, Option, Options, check_options, parse_parameter, unknown_options
from .progress import Progress
from .sources import Gathered, digest_of, gather

__all__ = [
    "OPTIONS",
    "CreateRequest",
    "Details",
    "Digest",
    "DigestMismatch",
    "Facts",
    "Gathered",
    "InvalidDigest",
    "InvalidFileName",
    "InvalidName",
    "Message",
    "ModelConfig",
    "ModelName",
    "ModelNotFound",
    "Modelfile",
    "ModelfileError",
    "Option",
    "Options",
    "Progress",
    "ShowInfo",
    "Store",
    "StoredModel",
    "TensorLine",
    "UnexpectedEnd",
    "chat_template",
    "check_options",
    "digest_of",
    "facts_of",
    "gather",
    "human_count",
    "parse_parameter",
    "show",
    "unknown_options",
]
