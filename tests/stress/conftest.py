"""The short runs go to both databases."""

from databases import postgresql_server, store_location

__all__ = ["postgresql_server", "store_location"]
