"""Making hostile text harmless to look at, and numbers pleasant.

Escaping for a format is the format's own business; this is about characters that would act on
the display itself: control characters, bidirectional overrides, invisible ones, lone surrogates.
"""

from __future__ import annotations

import re
import unicodedata

_KEPT_FORMAT = {0x200C, 0x200D}
"""Joiners: scripts and emoji need them, and they only act on their neighbours."""


def _hidden() -> str:
    """A character class of all that has no glyph of its own; \\n and \\t are left to the caller."""
    found = []
    for code in [*range(0x3000), *range(0xFB00, 0x10000), *range(0xE0000, 0xE0100)]:
        kind = unicodedata.category(chr(code))
        if code not in (9, 10) and code not in _KEPT_FORMAT and kind in ("Cc", "Cf", "Zl", "Zp"):
            found.append(code)
    found += [0x115F, 0x1160, 0x3164, 0xFFA0]  # Hangul fillers: letters that draw nothing
    found += [*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)]
    return "[" + "".join(re.escape(chr(code)) for code in found) + "\ud800-\udfff]"


HIDDEN = re.compile(_hidden())


def visible(text: str) -> str:
    """`text` with a visible stand-in for every hidden character but newline and tab."""
    return HIDDEN.sub(lambda match: _stand_in(ord(match[0])), text)


def _stand_in(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def one_line(text: str) -> str:
    """`visible`, with newlines and tabs shown as arrows."""
    return visible(text).replace("\n", "↵").replace("\t", "⇥")


def clip(text: str, width: int) -> str:
    """At most `width` characters, an ellipsis in place of the rest."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def signed(value: float, minus: str = "-") -> str:
    """About three significant digits and always a sign: +1,234  +12.3  -0.0123  +1.2e-06."""
    size = abs(value)
    if size == 0 or size != size:
        return "0" if size == 0 else "nan"
    if 1e-3 <= size < 1e6:
        digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
        digits = digits if size >= 1 else 4 if size >= 0.1 else 5
        body = f"{size:,.{digits}f}"
    else:
        body = f"{size:.2e}"
    return ("+" if value > 0 else minus) + body


def percent(share: float) -> str:
    """A share in per cent with a sensible number of digits, never rounded up to 100."""
    value = 100 * share
    if value >= 99.95 and share < 1:
        return ">99.9%"
    return f"{value:.0f}%" if value >= 99.995 or value == 0 else f"{value:.3g}%"


def place(file: str, line: int) -> str:
    """`file:line`; of a long path the end, which tells most."""
    return f"{file if len(file) <= 48 else '…' + file[-47:]}:{line}"
