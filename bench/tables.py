"""Tables of a documentation page that a program writes: each between <!-- NAME --> and <!-- end of NAME -->."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from stair.files import replacing


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Raises ValueError, and writes nothing, when a table's marks are not there once."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        whole = f"{begin}{table}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, whole=whole: whole, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page.name}: expected once {begin.strip()} to {end}, found {count} times")
    with replacing(page) as stream:
        stream.write(text)
