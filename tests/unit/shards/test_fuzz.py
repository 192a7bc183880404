"""A corpus damaged at random reads right, or one error names the damaged file: never a wrong token or boundary."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import check_tokenizer, read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.verify import verify_corpus
from tests.corpora import write_corpus

Mutation = Callable[[np.random.Generator, bytes, bytes], bytes | None]
"""From a file's bytes and those of another file to the damaged bytes, or None: the file is gone."""

Documents = list[tuple[str, bytes, bytes, bytes]]
"""Name, tokens, sentence starts and word starts of every document of a corpus."""


def place(generator: np.random.Generator, content: bytes, length: int = 0) -> int:
    return int(generator.integers(0, max(1, len(content) - length + 1)))


def run_length(generator: np.random.Generator) -> int:
    """1 to some 1,000, small ones as often as large ones."""
    return int(2 ** generator.uniform(0, 10))


def flip_bit(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    at = place(generator, content, 1)
    return content[:at] + bytes([content[at] ^ (1 << int(generator.integers(8)))]) + content[at + 1 :]


def overwrite(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    length = run_length(generator)
    at = place(generator, content, length)
    return content[:at] + generator.bytes(length) + content[at + length :]


def clear(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    length = run_length(generator)
    at = place(generator, content, length)
    return content[:at] + bytes(length) + content[at + length :]


def digit(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """Another digit: what keeps a manifest valid JSON."""
    at = place(generator, content, 1)
    at = next((at for at in range(at, len(content)) if content[at : at + 1].isdigit()), at)
    return content[:at] + str(generator.integers(10)).encode() + content[at + 1 :]


def truncate(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    return content[: place(generator, content)]


def insert(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    at = place(generator, content)
    return content[:at] + generator.bytes(run_length(generator)) + content[at:]


def delete(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    length = run_length(generator)
    at = place(generator, content, length)
    return content[:at] + content[at + length :]


def swap_regions(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """Two regions of one size change places; often whole blocks of the tar format."""
    unit = int(generator.choice([1, 2, 4, 512]))
    length = min(len(content) // 2, unit * run_length(generator))
    one, two = sorted(place(generator, content, length) // unit * unit for _ in range(2))
    if two < one + length:
        return content
    middle = content[one + length : two]
    return content[:one] + content[two : two + length] + middle + content[one : one + length] + content[two + length :]


def graft(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """A region of another file in place of this file's."""
    length = run_length(generator)
    at = place(generator, content, length)
    return content[:at] + other[at : at + length] + content[at + len(other[at : at + length]) :]


def exchange(generator: np.random.Generator, content: bytes, other: bytes) -> bytes:
    return other


def remove(generator: np.random.Generator, content: bytes, other: bytes) -> None:
    return None


MUTATIONS: tuple[Mutation, ...] = (
    flip_bit,
    overwrite,
    clear,
    digit,
    truncate,
    insert,
    delete,
    swap_regions,
    graft,
    exchange,
    remove,
)


def read_corpus(directory: Path) -> Documents:
    """Everything that the engine can read of a corpus."""
    files = LocalFiles(directory)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    found: Documents = []
    for split, table in sorted(manifest.splits.items()):
        for number in range(len(table)):
            shard = Shard.open(files, split, number, manifest)
            names = shard.document_ids(range(shard.documents))
            lengths, first_sentence = shard.sentences()
            for document, name in enumerate(names):
                sentences = lengths[first_sentence[document] : first_sentence[document + 1]]
                words = shard.word_starts(int(shard.index.starts[document]), int(shard.lengths[document]))
                found.append((name, shard.read(document).tobytes(), sentences.tobytes(), words.tobytes()))
    return found


def tiny_files(directory: Path, lengths: list[int]) -> dict[str, bytes]:
    """A corpus of one shard with two blocks, and what is in its files."""
    write_corpus(directory, [lengths], validation=[], words=True, block_tokens=40)
    names = ("manifest.json", "tokenizer/tokenizer.json", "train/00000.idx", "train/00000.tar")
    return {name: (directory / name).read_bytes() for name in names}


class Fuzzer:
    """A tiny corpus, damaged one or two files at a time."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory / "corpus"
        self.generator = np.random.default_rng(seed)
        self.contents = tiny_files(self.directory, [9, 40, 5])
        # Of equal counts and sizes, so that the files of the other shard could pass for those of this one.
        other_shard = tiny_files(directory / "other", [40, 9, 5])
        self.others = [*self.contents.values(), other_shard["train/00000.idx"], other_shard["train/00000.tar"]]
        self.expected = read_corpus(self.directory)

    def damages(self, count: int) -> Iterator[tuple[str, set[str]]]:
        """Damage the corpus and mend it again, ``count`` times: what was done, and to which files."""
        for number in range(count):
            story, changed = f"damage {number}:", set()
            for _ in range(int(self.generator.integers(1, 3))):
                name = list(self.contents)[int(self.generator.integers(len(self.contents)))]
                other = int(self.generator.integers(len(self.others)))
                mutation = MUTATIONS[int(self.generator.integers(len(MUTATIONS)))]
                damaged = mutation(self.generator, self.contents[name], self.others[other])
                story += f" {mutation.__name__} {name} ({other});"
                changed.add(name)
                self.put(name, damaged)
            yield story, changed
            for name in changed:
                self.put(name, self.contents[name])

    def put(self, name: str, content: bytes | None) -> None:
        path = os.path.join(self.directory, name)
        if content is not None:
            with open(path, "wb", buffering=0) as file:
                file.write(content)
        elif os.path.exists(path):
            os.unlink(path)

    def read(self, story: str, changed: set[str]) -> bool:
        """Whether the corpus still reads; if so, everything is right, and if not, the error names a damaged file."""
        try:
            found = read_corpus(self.directory)
        except UserError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{story} {type(error).__name__}: {error}") from error
        else:
            assert found == self.expected, f"{story} was read, but wrong"
            return True
        assert any(name in message for name in changed), f"{story} the error names another file: {message}"
        return False


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: a hundred thousand damages are written and mended."""
    if os.access("/dev/shm", os.W_OK):
        with TemporaryDirectory(dir="/dev/shm") as in_memory:
            yield Path(in_memory)
    else:
        yield tmp_path


def count_readable(directory: Path, seed: int, num_damages: int) -> int:
    fuzzer = Fuzzer(directory, seed)
    return sum(fuzzer.read(*damage) for damage in fuzzer.damages(num_damages))


def test_damaged_corpora_read_right_or_say_so(directory: Path) -> None:
    readable = count_readable(directory, seed=0, num_damages=2_000)
    assert 20 < readable < 1_000  # provenance, the end marks, a region exchanged with an equal one


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_many_damaged_corpora_read_right_or_say_so(directory: Path) -> None:
    num_damages = int(os.environ.get("FUZZ_CORPORA", "30000"))
    readable = count_readable(directory, seed=1, num_damages=num_damages)
    assert 0.01 < readable / num_damages < 0.5


def test_verification_finds_all_that_reading_finds(directory: Path) -> None:
    fuzzer = Fuzzer(directory, seed=2)
    num_refused = 0
    for story, changed in fuzzer.damages(300):
        if fuzzer.read(story, changed):
            continue
        num_refused += 1
        with pytest.raises(UserError) as caught:
            verify_corpus(fuzzer.directory)
        assert any(name in str(caught.value) for name in changed), f"{story} {caught.value}"
    assert num_refused > 100


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.proof)])
def test_every_byte_of_a_shard_and_its_index_counts(directory: Path, every: int) -> None:
    """But for those of the end mark, which hold nothing."""
    fuzzer = Fuzzer(directory, seed=3)
    for name, num_unused in (("train/00000.idx", 0), ("train/00000.tar", 1024)):
        content = fuzzer.contents[name]
        for at in range(0, len(content), every):
            fuzzer.put(name, content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
            story = f"byte {at} of {len(content)} of {name}"
            assert fuzzer.read(story, {name}) == (at >= len(content) - num_unused), story
        fuzzer.put(name, content)
