"""Fetches public data sets by name: checked, resumable, and never half there."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

MAX_ARCHIVE_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
_TIMEOUT_S = 30.0


class DownloadError(Exception):
    """A data set could not be fetched. The message says what to do instead."""


@dataclass(frozen=True)
class Download:
    """A zip file on the web whose one top folder is called `name`."""

    name: str
    url: str
    sha256: str


DOWNLOADS: Mapping[str, Download] = {
    download.name: download
    for download in (
        Download(
            "ml-100k",
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
        Download(
            "ml-1m",
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
        # GroupLens may replace this file; it has been the release of September 2018 since then.
        Download(
            "ml-latest-small",
            "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
            "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        ),
    )
}


def fetch(name: str, cache_dir: Path, console: Console | None = None) -> Path:
    """The folder of a data set of `DOWNLOADS`, downloaded unless it is in the cache.

    Raises:
        DownloadError: If the name is unknown, there is no network, or what came is not the data.
    """
    if name not in DOWNLOADS:
        raise DownloadError(f"no download {name!r}; there are {', '.join(DOWNLOADS)}")
    return fetch_download(DOWNLOADS[name], cache_dir, console)


def fetch_download(download: Download, cache_dir: Path, console: Console | None = None) -> Path:
    """Like `fetch`. An interrupted download is resumed by the next call."""
    folder = cache_dir / download.name
    if folder.is_dir():
        return folder
    part = cache_dir / f"{download.name}.zip.part"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _download(download, part, console or Console(stderr=True))
        _check_sha256(download, part)
        _unpack(download, part, folder)
        part.unlink()
    except httpx.HTTPError as error:
        raise DownloadError(
            f"cannot download {download.url}: {error or type(error).__name__}. Without network, "
            f"fetch and unzip it elsewhere and give its folder instead of {download.name!r}"
        ) from error
    except OSError as error:
        raise DownloadError(f"cannot write to {cache_dir}: {error}") from error
    return folder


def _download(download: Download, part: Path, console: Console) -> None:
    have_bytes = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have_bytes:
        headers["Range"] = f"bytes={have_bytes}-"
    with httpx.stream(
        "GET", download.url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    ) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # everything is there already; the checksum says whether it is right
        response.raise_for_status()
        is_rest = response.headers.get("Content-Range", "").startswith(f"bytes {have_bytes}-")
        if response.status_code != httpx.codes.PARTIAL_CONTENT or not is_rest:
            have_bytes = 0
        _save(download, response, part, have_bytes, console)


def _save(
    download: Download, response: httpx.Response, part: Path, have_bytes: int, console: Console
) -> None:
    """Append the body behind the first `have_bytes` of the file; 0 starts it afresh."""
    length = response.headers.get("Content-Length")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with (
        part.open("ab" if have_bytes else "wb") as file,
        Progress(*columns, console=console) as bar,
    ):
        total = have_bytes + int(length) if length else None
        task = bar.add_task(f"downloading {download.name}", total=total, completed=have_bytes)
        for chunk in response.iter_raw():
            have_bytes += len(chunk)
            if have_bytes > MAX_ARCHIVE_BYTES:
                part.unlink()
                raise DownloadError(
                    f"{download.url} is larger than {MAX_ARCHIVE_BYTES} bytes: not what was asked"
                )
            file.write(chunk)
            bar.update(task, completed=have_bytes)


def _check_sha256(download: Download, part: Path) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != download.sha256:
        part.unlink()
        raise DownloadError(
            f"{download.url} has SHA-256 {found}, expected {download.sha256}; what came was "
            "deleted. Try again; if it stays so, the file was replaced by its publisher"
        )


def _unpack(download: Download, archive: Path, folder: Path) -> None:
    """Unpack beside the folder, then rename: the folder is whole or not there."""
    unpacked = Path(tempfile.mkdtemp(prefix=f".{download.name}-", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as zipped:
            check_members(zipped)
            zipped.extractall(unpacked)
        top = unpacked / download.name
        if not top.is_dir():
            raise DownloadError(f"{download.url} holds no folder {download.name}")
        top.rename(folder)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{download.url} is no zip file: {error}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def check_members(zipped: zipfile.ZipFile) -> None:
    """Refuse an archive that would write outside its folder, link anywhere or fill the disk."""
    for member in zipped.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in member.filename or is_link:
            raise DownloadError(f"{zipped.filename}: refused member {member.filename!r}")
    unpacked_bytes = sum(member.file_size for member in zipped.infolist())
    if unpacked_bytes > MAX_UNPACKED_BYTES:
        raise DownloadError(
            f"{zipped.filename}: unpacks to {unpacked_bytes} bytes, at most {MAX_UNPACKED_BYTES}"
        )
