"""Paths that a command line may be given by mistake, or out of malice. Each is made in the command's own folder."""

import os
import socket

#: Names that shells, patterns and terminals read in a way of their own.
NAMES = [
    "lr=[1]",
    "a*b",
    "~",
    "~no-such-user",
    "$HOME",
    "{a,b}",
    "%s%n",
    " ",
    "-",
    "--help",
    "a b",
    "日本語🦆",
    "e\u0301",
    "a\nb",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "cr\rover",
    "\udcff\udc80",
    "nul\0nul",
    "x" * 300,
    "a/" * 2500 + "a",
    "#?&",
    "con",
    "..",
    "../..",
    ".",
    "",
    "/",
    "./.",
    "file:///etc/passwd",
    "s3://bucket/key",
    "http://[::1",
    "nan",
    "0",
]

#: Those that lead out of the folder, where nothing may be written.
OUTSIDE = {"..", "../..", "/"}


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _unreadable(path):
    path.write_text("x = 1\n", encoding="utf-8")
    path.chmod(0)


def _closed_folder(path):
    path.mkdir()
    (path / "run.json").write_text("{}", encoding="utf-8")
    path.chmod(0)


def _read_only_folder(path):
    path.mkdir()
    path.chmod(0o555)


def _loop(path):
    path.symlink_to(path.name)


def _binary(path):
    path.write_bytes(bytes(range(256)) * 40)


def make_sparse(path):
    """Make a file of a terabyte that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


#: What may lie at a path, by its name.
THINGS = {
    "fifo": _fifo,
    "socket": _socket,
    "unreadable": _unreadable,
    "closed": _closed_folder,
    "readonly": _read_only_folder,
    "loop": _loop,
    "dangling": lambda path: path.symlink_to("nowhere/at/all"),
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "binary": _binary,
    "sparse": make_sparse,
    "text": lambda path: path.write_text("no run\n", encoding="utf-8"),
    "utf16": lambda path: path.write_text("x = 1\n", encoding="utf-16"),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "process": lambda path: path.symlink_to("/proc/self"),
}
