"""A .zip that nobody vouches for -> files in a folder of our own.

Members are written under numbers, never under their names, so that no name can lead outside; a name that tries is
refused all the same, because an honest archive holds none. Sizes are counted while they are written: what an archive
says of itself is not believed.
"""

from __future__ import annotations

import errno
import re
import stat
import zipfile
import zlib
from pathlib import Path

from qsm_edge.errors import InputRefused, ResourceError

MAX_MEMBERS, MAX_BYTES = 200_000, 16 << 30
#: DICOM shrinks to a third or so, an empty slice to a thousandth; a bomb goes further over its whole length.
MAX_RATIO, RATIO_COUNTS_FROM = 200, 64 << 20
_CHUNK = 1 << 20


def extract(archive: Path, folder: Path) -> list[tuple[Path, str]]:
    """Write the members of `archive` into `folder`; returns where each lies and what it is called in the archive.

    Raises
    ------
    InputRefused
        unsafe_archive (names that lead outside, links, encryption, bombs), truncated_file (no readable archive).
    ResourceError
        out_of_disk.
    """
    out: list[tuple[Path, str]] = []
    written, packed = 0, archive.stat().st_size
    try:
        with zipfile.ZipFile(archive) as source:
            members = source.infolist()
            if len(members) > MAX_MEMBERS:
                raise _unsafe("too many files", len(members), MAX_MEMBERS)
            for member in members:
                _check_name(member)
            for number, member in enumerate(m for m in members if not m.is_dir()):
                path = folder / f"{number:06d}"
                with source.open(member) as packed_file, path.open("wb") as plain:
                    while chunk := packed_file.read(_CHUNK):
                        written += len(chunk)
                        if written > MAX_BYTES or written > max(RATIO_COUNTS_FROM, MAX_RATIO * packed):
                            raise _unsafe("it expands beyond the limit", f"{packed} bytes packed", f"{MAX_RATIO} times")
                        plain.write(chunk)
                out.append((path, member.filename))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise InputRefused("truncated_file", "the archive cannot be read", got=type(error).__name__) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("out_of_disk", "the archive does not fit into the temporary folder") from None
        raise
    return out


def _check_name(member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/") or "\0" in name:
        raise _unsafe("a file in it would be written outside its folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _unsafe("it holds a symbolic link")
    if member.flag_bits & 1:
        raise _unsafe("it is encrypted")


def _unsafe(what: str, got: object = "", wanted: object = "") -> InputRefused:
    return InputRefused("unsafe_archive", f"the archive is refused: {what}", got=got, wanted=wanted)
