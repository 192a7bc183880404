"""What cleaning does to a text: a pure function of the text."""

from __future__ import annotations

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028]")
# C0 and C1 controls but tab and newline, the byte order mark, interlinear marks and two noncharacters. Joiners and
# direction marks (ZWJ, ZWNJ, RLM) stay: Persian, Indic scripts and emoji are spelled with them.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb\ufffe\uffff]")
_SPACES = re.compile(r"[^\S\n]+")
_SPACES_AT_LINE_ENDS = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean_text(text: str) -> str:
    """Unicode NFC, no control characters, white space reduced.

    Every kind of line end becomes ``\\n`` (U+2029 an empty line), every other run of white space one space, none at the
    ends of lines; several empty lines become one, so paragraphs stay paragraphs. Applying it twice changes nothing.
    """
    text = _LINE_ENDS.sub("\n", text).replace("\u2029", "\n\n")
    text = _CONTROLS.sub("", text)
    # NFC after the controls are gone: one of them may stand between a letter and its accent.
    text = unicodedata.normalize("NFC", text)
    text = _SPACES_AT_LINE_ENDS.sub("\n", _SPACES.sub(" ", text))
    return _EMPTY_LINES.sub("\n\n", text).strip()
