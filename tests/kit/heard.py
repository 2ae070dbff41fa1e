"""Notes that a loss makes about its own calls and that stay when a replay is undone."""

from queue import SimpleQueue


class Heard:
    """A list to write to and to read once at the end.

    A plain list of a test would be put back after every replay, as all that a loss reaches. A queue may be emptied by
    another thread, so it is left alone, and so is the object that holds it.
    """

    def __init__(self):
        self._notes = SimpleQueue()

    def append(self, note):
        self._notes.put(note)

    def count(self):
        """Return how many notes there are."""
        return self._notes.qsize()

    def all(self):
        """Return the notes, and forget them."""
        return [self._notes.get() for _ in range(self._notes.qsize())]
