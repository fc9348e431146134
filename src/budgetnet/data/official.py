"""Published data files, which are downloaded if they are missing and read only if their checksums are right."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from budgetnet.errors import UsageError
from budgetnet.runs.locking import exclusive


@dataclass(frozen=True)
class OfficialFiles:
    """The files of a published dataset.

    folder: their folder below the data root.
    md5: the checksum of each file by name.
    url: the address of the archive or, if archive_md5 is None, the prefix of the addresses of single files.
    archive_md5: the checksum of the archive.
    unpacked_md5: the checksums of unpacked `.gz` files, which may be present instead.
    """

    folder: str
    md5: Mapping[str, str]
    url: str
    archive_md5: str | None = None
    unpacked_md5: Mapping[str, str] = field(default_factory=dict)

    def locate(self, root: Path, download: bool) -> None:
        """Download files that are missing below `root`.

        Raises UsageError, naming the files and the folder to put them into, if they are missing and `download` is False
        or fails.
        """
        missing = self.missing(root)
        if not missing:
            return
        if download:
            try:
                root.mkdir(parents=True, exist_ok=True)
                with exclusive(root / ".download.lock", remove=True):  # all processes of a run call at the same time
                    if missing := self.missing(root):
                        self._download(root, missing)
                return
            except (OSError, ValueError, tarfile.TarError) as error:
                tried = f"{self.url} could not be downloaded ({_short(error)})"
        elif root.is_dir():
            tried = "dataset.download=false"
        else:
            tried = f"dataset.root={root} is not a directory"
        raise UsageError(
            f"{tried}: put {', '.join(missing)} into {root / self.folder}, or point dataset.root at the data"
        )

    def missing(self, root: Path) -> list[str]:
        """The names of the files that are missing below `root`, both packed and unpacked."""
        folder = root / self.folder
        return [name for name in self.md5 if not any((folder / n).is_file() for n in (name, name.removesuffix(".gz")))]

    def read(self, root: Path, name: str) -> bytes:
        """The unpacked contents of a file. Raises UsageError if it cannot be read or has another checksum."""
        path, expected = root / self.folder / name, self.md5[name]
        if not path.is_file() and name in self.unpacked_md5:
            path, expected = path.with_suffix(""), self.unpacked_md5[name]
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({_short(error)})") from error
        found = hashlib.md5(contents, usedforsecurity=False).hexdigest()
        if found != expected:
            raise UsageError(
                f"{path}: md5 {found}, expected {expected}; the file was left as it is, and is not the official one: "
                "move it away to have it downloaded again"
            )
        return gzip.decompress(contents) if path.suffix == ".gz" else contents

    def _download(self, root: Path, missing: list[str]) -> None:
        """Download into a temporary folder, and then move each missing file to its place atomically."""
        import pooch

        folder = root / self.folder
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            fetched = Path(scratch)
            connect = pooch.HTTPDownloader(timeout=(5, 30))  # seconds to connect, and between two packets

            def fetch(url: str, md5: str) -> str:
                return str(pooch.retrieve(url, f"md5:{md5}", url.rsplit("/", 1)[-1], scratch, downloader=connect))

            if self.archive_md5 is None:
                for name in missing:
                    fetch(self.url + name, self.md5[name])
            else:
                with tarfile.open(fetch(self.url, self.archive_md5)) as archive:
                    archive.extractall(scratch, filter="data")
                fetched /= self.folder
            folder.mkdir(parents=True, exist_ok=True)
            for name in missing:
                os.replace(fetched / name, folder / name)


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error), 100) or type(error).__name__
