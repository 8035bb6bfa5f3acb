"""One connection to a database."""

from ..masking import mask_uri
from .connection import IsolationLevel, PySQLXEngine, PySQLXEngineSync
from .rows import BaseRow
from .uri import DatabaseURI, Provider, parse_uri

__all__ = [
    "BaseRow",
    "DatabaseURI",
    "IsolationLevel",
    "Provider",
    "PySQLXEngine",
    "PySQLXEngineSync",
    "mask_uri",
    "parse_uri",
]
