"""`stair serve`: search over HTTP. docs/serve.md describes it; `create_app` is the ASGI application."""

from stair.serve.app import create_app
from stair.serve.settings import Settings
from stair.serve.source import Folder, Served

__all__ = ["Folder", "Served", "Settings", "create_app"]
