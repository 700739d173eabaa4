"""Finished pieces of a stage on disk: a run that is killed repeats at most what was under way.

Answers are appended to one file, each with a checksum, and told by the function and the piece that
they answer. A record that is damaged, or that was under way, ends what is read of the file.
"""

import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from simplicit.workers.packing import Held, Pack, fingerprint, pack, unpack

HEAD = struct.Struct("<QI")
"""Length of a record and its CRC-32."""

LEAST = 5e-3
"""Seconds of a piece that is worth a record, which takes a tenth of a millisecond."""

RATE = 5e7
"""Bytes of an answer, at most, for each second that it took: of four times as
many, writing Grams took half of their time on one machine."""

UNWRITTEN = 0.5
"""Seconds of work that may wait to be written together."""

MOST = 2**32
"""Bytes of a journal; what comes later is not kept."""


class Journal:
    """The finished pieces of a stage.

    Args:
        path: The file; it is removed by `remove`, when the stage as a whole is kept.
        problem: What tells this problem from others: a journal of another one is begun anew.

    Attributes:
        spent: Seconds that earlier attempts at the stage took.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self._calls, self._waiting, self._seconds = path, 0, [], 0.0
        self._index: dict[tuple[int, int], tuple[int, int]] = {}
        self.spent, self._begin = 0.0, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._read(problem)

    def call(self, function: Callable[[Any], Any]) -> "Call":
        """Begin a call of `run`; calls come in the same order in every attempt.

        Args:
            function: What it does with its pieces.

        Returns:
            Its part of the journal.
        """
        self._calls += 1
        return Call(self, self._calls, function)

    def answer(self, key: tuple[int, int]) -> tuple[str, Pack] | None:
        """Read an answer.

        Args:
            key: Numbers of the call and of the piece.

        Returns:
            What it answers, and the answer; None if it is not there.
        """
        if key not in self._index:
            return None
        place, length = self._index[key]
        self._file.seek(place)
        content = self._file.read(length)
        tensors = safetensors.torch.load(content)
        metadata = _metadata(content)
        parts = [Held.of(tensors[str(i)].numpy()) for i in range(len(tensors) - 1)]
        return metadata["asked"], Pack(bytes(tensors["answer"].numpy()), parts)

    def write(self, key: tuple[int, int], asked: str, answer: Pack, seconds: float) -> None:
        """Append an answer, when there is half a second of work to write.

        Args:
            key: Numbers of the call and of the piece.
            asked: What it answers.
            answer: The answer.
            seconds: That it took.
        """
        size = sum(len(part) for part in answer.parts)
        if size > RATE * seconds or self._end + size > MOST:
            return
        tensors = {str(i): part.bytes for i, part in enumerate(answer.parts)}
        tensors["answer"] = torch.frombuffer(bytearray(answer.pickled), dtype=torch.uint8)
        spent = self.spent + time.monotonic() - self._begin
        named = {"call": str(key[0]), "piece": str(key[1]), "asked": asked, "spent": str(spent)}
        # at once: whoever gets the answer may change it in place
        self._waiting.append(safetensors.torch.save(tensors, named))
        self._seconds += seconds
        if self._seconds >= UNWRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for content in self._waiting:
            self._append(content)
        self._waiting, self._seconds = [], 0.0
        self._file.flush()

    def close(self) -> None:
        """Write what waits, and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def remove(self) -> None:
        """Remove the file: the stage is kept as a whole."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, content: bytes) -> None:
        self._file.write(HEAD.pack(len(content), zlib.crc32(content)) + content)
        self._end += HEAD.size + len(content)

    # finds the records, and cuts the file after the last whole one
    def _read(self, problem: str) -> None:
        self._file.seek(0)
        end, first = 0, True
        while len(head := self._file.read(HEAD.size)) == HEAD.size:
            length, check = HEAD.unpack(head)
            place, content = self._file.tell(), self._file.read(length)
            if len(content) < length or zlib.crc32(content) != check:
                break
            if first and content != problem.encode():
                break
            if not first:
                named = _metadata(content)
                self._index[int(named["call"]), int(named["piece"])] = place, length
                self.spent = float(named["spent"])
            end, first = place + length, False
        self._file.truncate(end)
        self._end = end
        if first:
            self._append(problem.encode())


class Call:
    """One call of `run` in a journal."""

    def __init__(self, journal: Journal, number: int, function: Callable[[Any], Any]) -> None:
        self._journal, self._number, self._function = journal, number, function
        self._of: bytes | None = None

    def known(self, index: int, piece: Any) -> tuple[Any] | None:
        """Look for an answer of an earlier attempt.

        Args:
            index: Of the piece.
            piece: The piece.

        Returns:
            The answer, or None if there is none to this very piece.
        """
        found = self._journal.answer((self._number, index))
        if found is None or found[0] != self._asked(piece):
            return None
        return (unpack(found[1], careful=True),)

    def keep(self, index: int, piece: Any, answer: Any, seconds: float) -> None:
        """Keep an answer, if it is worth it.

        Args:
            index: Of the piece.
            piece: The piece.
            answer: Its answer.
            seconds: That it took.
        """
        if seconds >= LEAST:
            key = self._number, index
            self._journal.write(key, self._asked(piece), pack(answer), seconds)

    def _asked(self, piece: Any) -> str:
        if self._of is None:
            self._of = fingerprint(self._function)
        return (self._of + fingerprint(piece)).hex()


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
