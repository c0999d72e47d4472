"""The HTTP interfaces: Ollama's and OpenAI's."""

from .app import create_app
from .server import serve

__all__ = ["create_app", "serve"]
