"""A gallery in a local folder: SQLite for entries and versions, and memory-mapped vectors."""
