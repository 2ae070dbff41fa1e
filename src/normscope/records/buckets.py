"""A prefix in a bucket as the place of a run, by obstore: S3, Google Cloud Storage, Azure."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from normscope._errors import StoreError, UsageError
from normscope.records.places import Place

T = TypeVar("T")

_AT_ONCE = 16  # files that are read at once: a bucket takes its time for each, whatever its size
#: A bucket that does not answer is given up after some ten seconds, not after obstore's three minutes.
_CLIENT = {"connect_timeout": "5s", "timeout": "60s"}
_RETRY = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and AWS_ENDPOINT_URL for a server of your own",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class Bucket(Place):
    """A prefix in a bucket. A put is whole or absent, and a conditional put lets the first of several writers win.

    Credentials are those of the environment, as for the tools of the bucket's vendor.

    Args:
        scheme: ``"s3"``, ``"gs"`` or ``"az"``.
        rest: Bucket and prefix.

    Raises:
        UsageError: The address names no bucket, or obstore is not installed.
    """

    def __init__(self, scheme: str, rest: str) -> None:
        self._scheme, self._rest = scheme, rest.strip("/")
        self.url = f"{scheme}://{self._rest}"
        self.path = Path(f"{scheme}:/{self._rest}")
        if not self._rest:
            raise UsageError(f"{self.url} names no bucket: write {scheme}://BUCKET/FOLDER")
        try:
            from obstore.store import from_url
        except ImportError:
            raise UsageError(
                f"{self.url} is in a bucket, and the package for buckets is missing: pip install 'normscope[buckets]'"
            ) from None
        self._store = self._ask(lambda: from_url(self.url, client_options=self._client(), retry_config=_RETRY))

    def _client(self) -> dict[str, Any]:
        """Return the options of the connection: plain http is for a server of the user's own, whose address says so."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return _CLIENT | ({"allow_http": True} if self._scheme == "s3" and endpoint.startswith("http://") else {})

    def names(self) -> list[str]:
        """See `Place.names`."""
        import obstore

        found = self._ask(lambda: obstore.list_with_delimiter(self._store))
        return sorted(str(entry["path"]) for entry in found["objects"])

    def read(self, name: str) -> bytes:
        """See `Place.read`."""
        import obstore

        return self._ask(lambda: bytes(obstore.get(self._store, name).bytes()))

    def read_each(self, names: Sequence[str]) -> Iterator[bytes]:
        """See `Place.read_each`."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for first in range(0, len(names), _AT_ONCE):  # no more in memory than are asked for at once
                yield from pool.map(self.read, names[first : first + _AT_ONCE])

    def write(self, name: str, content: bytes, *, replace: bool = True) -> bool:
        """See `Place.write`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def put() -> bool:
            try:
                obstore.put(self._store, name, content, mode="overwrite" if replace else "create")
            except AlreadyExistsError:
                return False
            return True

        return self._ask(put)

    def delete(self, name: str) -> None:
        """See `Place.delete`."""
        import obstore

        try:
            self._ask(lambda: obstore.delete(self._store, name))
        except FileNotFoundError:
            return

    def holds(self, name: str) -> bool:
        """See `Place.holds`."""
        import obstore

        try:
            self._ask(lambda: obstore.head(self._store, name))
        except FileNotFoundError:
            return False
        return True

    def below(self, name: str) -> "Bucket":
        """See `Place.below`."""
        return Bucket(self._scheme, f"{self._rest}/{name}")

    def places_with(self, name: str) -> list[Place]:
        """See `Place.places_with`."""
        import obstore

        found = self._ask(lambda: obstore.list_with_delimiter(self._store))
        places = [self.below(str(prefix).rstrip("/")) for prefix in sorted(found["common_prefixes"])]
        return [place for place in places if place.holds(name)]

    def prepare(self, option: str) -> None:
        """See `Place.prepare`. What may not be listed cannot be resumed: it is refused before anything runs."""
        self.names()

    def clean(self) -> None:
        """See `Place.clean`: a put that was broken off leaves nothing."""

    def _ask(self, ask: Callable[[], T]) -> T:
        """Ask the bucket, and say in one line what is wrong.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: Anything else.
        """
        from obstore.exceptions import BaseError

        try:
            return ask()
        except (BaseError, OSError, ValueError) as error:  # a file that is not there is an OSError
            text = str(error)
            if "NoSuchBucket" in text:
                raise StoreError(f"{self.url}: there is no such bucket; make it first") from None
            if isinstance(error, FileNotFoundError):
                raise
            if re.search(r"status code: 40[13]|Unauthenticated|PermissionDenied", text):
                raise StoreError(
                    f"{self.url} refuses: its credentials must allow to list, read, write and delete: set "
                    f"{_CREDENTIALS[self._scheme]}"
                ) from None
            raise StoreError(f"{self.url} cannot be reached: {_reason(text)}") from None


def _reason(text: str) -> str:
    """Return in a few words why a bucket was not reached, out of an error that repeats the request."""
    if status := re.search(r"status code: (\d+ [A-Za-z ]+)", text):
        return f"its server answers {status[1].strip()}"
    if server := re.search(r"https?://[^/\s]+", text):
        return f"no answer from {server[0]}"
    return text.partition("\n")[0][:200]
