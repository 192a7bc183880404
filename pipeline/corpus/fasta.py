"""FASTA: records of a header line (``>name description``) and lines of letters, as documents of bounded size.

Read as a stream of bytes, not of lines: a chromosome may stand on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NO_HEADER = "the first line of a FASTA file begins with `>`"
_FOREIGN = re.compile(rb"[^A-Za-z*.-]")
_WHITE = b" \t\r\x0b\x0c"
_LONGEST_HEADER_BYTES = 1 << 16


class FastaError(Exception):
    """The file is no FASTA; ``line`` counts from 1."""

    def __init__(self, line: int, detail: str) -> None:
        super().__init__(detail)
        self.line = line


@dataclass(frozen=True)
class Sequence:
    """A record, or a part of a long one."""

    name: str
    """First word of the header, with ``:BEGIN-END`` (letters from 1, both included) if the record was cut."""

    line: int
    """Where it begins, from 1."""

    letters: str
    """Its letters, empty if it has none or holds what no FASTA has."""

    reason: str = ""
    """Why it cannot be used: ``empty`` or ``unreadable``."""

    detail: str = ""
    """That, for people, with the line."""


def sequences(pieces: Iterable[bytes], max_letters: int, uppercase: bool) -> Iterator[Sequence]:
    """The records of a file, in order; longer ones are cut behind every ``max_letters`` letters.

    Letters are those of the IUPAC codes for nucleotides and amino acids, ``*`` (stop), ``-`` and ``.`` (gaps). White
    space within a sequence and lines that begin with ``;`` (comments) are left out. A part with another character
    comes as ``unreadable``, the other parts of its record as they are.

    Args:
        pieces: the file, cut anywhere.
        uppercase: make lower-case (soft-masked) letters upper case.

    Raises:
        FastaError: letters before the first header, or a header longer than 64 KiB.
    """
    record: _Record | None = None
    for number, begins, part in _parts(pieces):
        if begins and part[:1] == b">":
            if record is not None:
                yield from record.rest()
            words = part[1:].decode("utf-8", "replace").split(maxsplit=1)
            record = _Record(words[0] if words else f"line-{number}", number, max_letters, uppercase)
        elif begins and part[:1] == b";":
            continue
        elif letters := part.translate(None, _WHITE):
            if record is None:
                raise FastaError(number, NO_HEADER)
            yield from record.add(letters, number)
    if record is not None:
        yield from record.rest()


def _parts(pieces: Iterable[bytes]) -> Iterator[tuple[int, bool, bytes]]:
    """Line number, whether the part begins a line, and the part; headers and comments come whole."""
    number, begins, held = 1, True, b""
    for piece in pieces:
        *complete, tail = (held + piece).split(b"\n")
        held = b""
        for line in complete:
            yield number, begins, line
            number, begins = number + 1, True
        if begins and tail[:1] in (b">", b";"):
            held = tail
            if len(held) > _LONGEST_HEADER_BYTES:
                raise FastaError(number, f"the header is longer than {_LONGEST_HEADER_BYTES} bytes")
        elif tail:
            yield number, begins, tail
            begins = False
    if held:
        yield number, begins, held


class _Record:
    """Collects the letters of a record and gives them away in documents."""

    def __init__(self, name: str, line: int, max_letters: int, uppercase: bool) -> None:
        self.name = name
        self.line = line
        self.max_letters = max_letters
        self.uppercase = uppercase
        self.buffer = bytearray()
        self.problem = ""
        self.part_line = line
        self.num_given = 0

    def add(self, letters: bytes, line: int) -> Iterator[Sequence]:
        """Append letters of a line; what is full and not the end of the record comes out."""
        while letters:
            if len(self.buffer) == self.max_letters:
                yield self._part(is_cut=True)
                self.part_line = line
            room = self.max_letters - len(self.buffer)
            taken, letters = letters[:room], letters[room:]
            self.buffer += taken
            if not self.problem and (wrong := _FOREIGN.search(taken)):
                shown = wrong.group().decode("ascii", "backslashreplace")
                self.problem = f"line {line}: {shown!r} is no letter of a sequence"

    def rest(self) -> Iterator[Sequence]:
        """The end of the record, or word that it is empty."""
        if self.buffer:
            yield self._part(is_cut=self.num_given > 0)
        else:
            yield Sequence(self.name, self.line, "", "empty", f"record {self.name!r} has no letters")

    def _part(self, is_cut: bool) -> Sequence:
        begin, self.num_given = self.num_given + 1, self.num_given + len(self.buffer)
        name = f"{self.name}:{begin}-{self.num_given}" if is_cut else self.name
        problem, self.problem = self.problem, ""
        content = b"" if problem else bytes(self.buffer)
        self.buffer.clear()
        letters = (content.upper() if self.uppercase else content).decode("ascii")
        return Sequence(name, self.part_line, letters, "unreadable" if problem else "", problem)
