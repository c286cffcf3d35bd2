import hashlib
import io
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.downloads import (
    DOWNLOADS,
    Download,
    DownloadError,
    check_members,
    fetch,
    fetch_download,
)

FILES = {"tiny/u.data": "1\t2\t3\t4\n" * 1_000, "tiny/README": "a tiny data set"}


def _zip(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, text in files.items():
            zipped.writestr(name, text)
    return buffer.getvalue()


class FileServer:
    """Serves one file on 127.0.0.1, in parts if asked to; remembers how many bytes it sent."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sends_at_most = len(content)
        self.knows_ranges = True
        self.sent: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._httpd = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._httpd.server_port}/tiny.zip"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        start = 0
        if self.knows_ranges and (asked := handler.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            end = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.sends_at_most])
        self.sent.append(min(len(body), self.sends_at_most))

    def close(self) -> None:
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer(_zip(FILES))
    yield server
    server.close()


def _download(server: FileServer) -> Download:
    return Download("tiny", server.url, hashlib.sha256(server.content).hexdigest())


def _fetch(download: Download, cache_dir: Path) -> Path:
    return fetch_download(download, cache_dir, Console(file=io.StringIO()))


def test_a_download_is_checked_unpacked_and_leaves_nothing_else(
    server: FileServer, tmp_path: Path
) -> None:
    folder = _fetch(_download(server), tmp_path / "cache")

    assert (folder / "u.data").read_text() == FILES["tiny/u.data"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


def test_what_is_in_the_cache_is_not_downloaded_again(server: FileServer, tmp_path: Path) -> None:
    folder = _fetch(_download(server), tmp_path)

    assert _fetch(_download(server), tmp_path) == folder
    assert len(server.sent) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: FileServer, tmp_path: Path
) -> None:
    server.sends_at_most = 5_000
    with pytest.raises(DownloadError, match="cannot download"):
        _fetch(_download(server), tmp_path)
    assert not (tmp_path / "tiny").exists()

    server.sends_at_most = len(server.content)
    assert (_fetch(_download(server), tmp_path) / "README").is_file()
    assert server.sent == [5_000, len(server.content) - 5_000]


def test_a_server_without_ranges_is_asked_for_the_whole_file(
    server: FileServer, tmp_path: Path
) -> None:
    server.knows_ranges = False
    (tmp_path / "tiny.zip.part").write_bytes(server.content[:5_000])

    assert (_fetch(_download(server), tmp_path) / "README").is_file()
    assert server.sent == [len(server.content)]


def test_a_download_that_was_complete_is_only_checked(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip.part").write_bytes(server.content)

    assert (_fetch(_download(server), tmp_path) / "README").is_file()
    assert server.sent == []


def test_another_checksum_is_refused_and_what_came_is_deleted(
    server: FileServer, tmp_path: Path
) -> None:
    wrong = Download("tiny", server.url, "0" * 64)

    with pytest.raises(DownloadError, match=r"has SHA-256 \w{64}, expected 0{64}"):
        _fetch(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_error_says_to_give_a_folder(
    server: FileServer, tmp_path: Path
) -> None:
    server.close()

    with pytest.raises(DownloadError, match="give its folder instead of 'tiny'"):
        _fetch(_download(server), tmp_path)


def test_a_page_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    server = FileServer(b"")
    try:
        with pytest.raises(DownloadError):
            _fetch(_download(server), tmp_path)
    finally:
        server.close()


@pytest.mark.parametrize("name", ["../evil", "/evil", "tiny/../../evil", "C:\\evil", "..\\evil"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    server = FileServer(_zip({**FILES, name: "evil"}))
    try:
        with pytest.raises(DownloadError, match=f"refused member '{re.escape(repr(name)[1:-1])}'"):
            _fetch(_download(server), tmp_path / "cache")
    finally:
        server.close()
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "cache" / "tiny").exists()


def test_a_link_in_an_archive_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        link = zipfile.ZipInfo("tiny/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")

        with pytest.raises(DownloadError, match="refused member 'tiny/link'"):
            check_members(zipped)


def test_an_archive_that_would_fill_the_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.downloads.MAX_UNPACKED_BYTES", 1_000)
    with (
        zipfile.ZipFile(io.BytesIO(_zip(FILES))) as zipped,
        pytest.raises(DownloadError, match="unpacks to 8015 bytes, at most 1000"),
    ):
        check_members(zipped)


def test_a_file_larger_than_any_data_set_is_cut_off(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.downloads.MAX_ARCHIVE_BYTES", 100)

    with pytest.raises(DownloadError, match="larger than 100 bytes"):
        _fetch(_download(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="there are ml-100k, ml-1m, ml-latest-small"):
        fetch("ml-1k", tmp_path)


def test_every_download_is_encrypted_and_has_a_checksum() -> None:
    for name, download in DOWNLOADS.items():
        assert name == download.name
        assert download.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{64}", download.sha256)
