"""One connection to a database."""
