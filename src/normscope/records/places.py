"""Where the files of a run lie: a folder of this machine, or a prefix in a bucket.

Both keep files by name, each whole or absent.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from normscope._errors import StoreError
from normscope.records import files


class Place(ABC):
    """Files by name, each whole or absent.

    Attributes:
        url: How messages name the place: the folder's path or the bucket's address.
        path: The same as a path, to which names can be joined.
    """

    url: str
    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files, sorted; none where there is no such place.

        Raises:
            StoreError: The place cannot be listed.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: It cannot be read.
        """

    def read_each(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the contents of several files, in their order."""
        yield from map(self.read, names)

    @abstractmethod
    def write(self, name: str, content: bytes, *, replace: bool = True) -> bool:
        """Make a file appear at once with its whole content.

        Args:
            name: Its name.
            content: All of it.
            replace: Whether an existing file is replaced; if not, the first of several writers wins.

        Returns:
            Whether this call's file is the one that lies there now.

        Raises:
            StoreError: The place cannot be written.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file; nothing happens where there is none.

        Raises:
            StoreError: It cannot be deleted.
        """

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Return whether there is such a file."""

    @abstractmethod
    def below(self, name: str) -> "Place":
        """Return the place of that name within this one."""

    @abstractmethod
    def places_with(self, name: str) -> "list[Place]":
        """Return the places right within this one that hold a file of a name, sorted."""

    @abstractmethod
    def prepare(self, option: str) -> None:
        """Make the place if need be, and see that it can be written.

        Args:
            option: How the user named it: ``--out``, for the message.

        Raises:
            StoreError: It cannot be made or written.
        """

    @abstractmethod
    def clean(self) -> None:
        """Remove what writers that died have left over."""

    def at(self, name: str) -> str:
        """Return how a message names a file of the place."""
        return f"{self.url.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return self.url


class Folder(Place):
    """A folder of this machine.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(path)

    def names(self) -> list[str]:
        """See `Place.names`."""
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror or error}") from None

    def read(self, name: str) -> bytes:
        """See `Place.read`."""
        path = self.path / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device might never end
                raise StoreError(f"cannot read {path}: it is no ordinary file")
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"cannot read {self.path / name}: {error.strerror or error}") from None

    def write(self, name: str, content: bytes, *, replace: bool = True) -> bool:
        """See `Place.write`."""
        return files.write_bytes(self.path / name, content, replace=replace)

    def delete(self, name: str) -> None:
        """See `Place.delete`."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot delete {self.path / name}: {error.strerror or error}") from None

    def holds(self, name: str) -> bool:
        """See `Place.holds`."""
        return (self.path / name).exists()

    def below(self, name: str) -> "Folder":
        """See `Place.below`."""
        return Folder(self.path / name)

    def places_with(self, name: str) -> list[Place]:
        """See `Place.places_with`."""
        return [Folder(self.path / each) for each in self.names() if (self.path / each / name).is_file()]

    def prepare(self, option: str) -> None:
        """See `Place.prepare`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"{self.path} is, or lies below, a file; give a folder for the run") from None
        except OSError as error:
            raise StoreError(f"cannot make {self.path}: {error.strerror}; choose another folder") from None
        if not os.access(self.path, os.W_OK):
            raise StoreError(f"{self.path} cannot be written; choose another {option}")

    def clean(self) -> None:
        """See `Place.clean`."""
        files.clean(self.path)
