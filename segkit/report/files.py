"""Files of a report: somebody may look at any time, so each is there as a whole."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside `path` and then takes its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
