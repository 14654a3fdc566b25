"""Keys: equal inputs give equal names, on every machine."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Any


def digest_of(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON, of sorted keys, no spaces and no NaN: equal values, equal text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def safe_name(name: str) -> str:
    """A name fit for a file name on every system: letters, digits, dot, underscore, hyphen.

    Letters are those of English, as the names of earlier versions have it; of any script where it has no other.
    """
    english = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return english or re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-.") or "unnamed"
