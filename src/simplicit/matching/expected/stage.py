"""A stage of a matching: pieces that are worked on side by side, and what the caller does alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pieces:
    """Pieces that are alike.

    Attributes:
        count: How many.
        size: Rows or samples of each; of levels and problems, 1.
        seconds: Of each, on one worker.
        sent: Bytes that only this piece has, of each.
        returned: Bytes of the answer of each.
        layer: Whose rows, where a stage has pieces of several layers.
        products: Multiply-adds of each.
    """

    count: int
    size: int
    seconds: float
    sent: float
    returned: float
    layer: str = ""
    products: float = 0.0

    @property
    def moved(self) -> float:
        """Bytes there and back of each."""
        return self.sent + self.returned


@dataclass(frozen=True)
class Stage:
    """Pieces that may be worked on side by side, and what the caller does before the next ones.

    Attributes:
        phase: Description of its task.
        layer: Name of its layer; empty where it is of the whole network.
        step: What is done.
        pieces: What is handed out.
        times: How often, each time after the other.
        alone: Seconds of the caller alone, each time.
        once: Seconds that every worker spends before its first piece, each time.
        shared: Bytes that every worker gets with its first piece, each time.
        held: Bytes that a worker needs for a piece, beside these and its own.
        here: Whether threads of the caller take the pieces, whoever takes others.
        products: Multiply-adds, all times.
    """

    phase: str
    layer: str
    step: str
    pieces: tuple[Pieces, ...] = ()
    times: float = 1.0
    alone: float = 0.0
    once: float = 0.0
    shared: float = 0.0
    held: float = 0.0
    here: bool = False
    products: float = 0.0

    @property
    def count(self) -> int:
        """Pieces of one time."""
        return sum(own.count for own in self.pieces)

    @property
    def divided(self) -> float:
        """Seconds of all pieces of one time."""
        return sum(own.count * own.seconds for own in self.pieces)

    @property
    def longest(self) -> Pieces | None:
        """The piece that takes longest."""
        return max(self.pieces, key=lambda own: own.seconds, default=None)

    @property
    def seconds(self) -> float:
        """Seconds on one worker, all times."""
        return self.times * (self.alone + self.once + self.divided)

    @property
    def worker(self) -> float:
        """Bytes that a worker needs."""
        return self.shared + self.held + max((own.moved for own in self.pieces), default=0.0)
