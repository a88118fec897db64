"""What a page carries inside it: data as compact JSON that cannot leave its element, long texts cut, scripts by digest.

Knows no run. Nothing that a model wrote is ever part of the page's markup; the scripts show it as text.
"""

import base64
import hashlib
import json
import math
import re
from typing import Any

from markupsafe import Markup

LONGEST = 2000  # characters of a text that a page holds
# Could end the element (< > &), or are invisible or reorder the source that a reader looks at.
_RISKY = re.compile("[<>&\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def as_json(data: Any) -> str:
    """Compact JSON without the characters that HTML or a reader of the source could misunderstand; NaN is an error.

    >>> as_json({"answer": "</script>"})
    '{"answer":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _RISKY.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def data_element(data: Any) -> Markup:
    """The element in which the scripts of a page find its data."""
    return Markup(f'<script type="application/json" id="data">{as_json(data)}</script>')


def script_element(source: str) -> Markup:
    """The one script of a page."""
    return Markup(f"<script>{source}</script>")


def content_policy(source: str) -> str:
    """Content-Security-Policy of a page: this script alone runs, and nothing is fetched from anywhere."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def cut(text: str, longest: int = LONGEST) -> Any:
    """A text as a page holds it: whole, or its beginning with the length of the whole, in characters.

    >>> cut("abc"), cut("abcd", 3)
    ('abc', {'cut': 'abc', 'length': 4})
    """
    return text if len(text) <= longest else {"cut": text[:longest], "length": len(text)}


def digits(value: Any, significant: int = 3) -> float | None:
    """A number with few digits; None for a missing one."""
    if value is None or value != value or math.isinf(value):
        return None
    short = float(f"{value:.{significant}g}")
    return int(short) if short.is_integer() else short
