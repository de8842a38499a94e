"""Archives of tar, WebDataset's shards among them: each member of text is a document, each record of .json one too."""

import logging
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from abstractinator.data.data_config import DataError
from abstractinator.data.formats import suffixes
from abstractinator.data.formats.errors import damaged
from abstractinator.data.formats.records import line_text, parse_json, record_text
from abstractinator.data.formats.source import Source
from abstractinator.data.formats.units import DocumentUnit

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A member's bytes in the archive. suffix: ".json", ".jsonl", or another for a document of text."""

    name: str
    suffix: str
    offset: int
    size: int
    count: int  # documents


@dataclass(frozen=True)
class ArchiveUnit(DocumentUnit):
    """Some members of an archive that follow each other."""

    name: str
    source: Source
    column: str
    members: tuple[Member, ...]

    @property
    def count(self) -> int:  # type: ignore[override]
        return sum(member.count for member in self.members)

    @property
    def size(self) -> int:  # type: ignore[override]
        return sum(member.size for member in self.members)

    def read(self) -> list[bytes]:
        texts, position = [], self.members[0].offset
        with self.source.open(position) as file:
            for member in self.members:
                file.read(member.offset - position)  # the headers between them
                position = member.offset + member.size
                texts += _texts(member, file.read(member.size), self)
        return texts


def archive_units(name: str, source: Source, column: str) -> list[DocumentUnit]:
    """The units of an archive; it is read once. Raises DataError where it cannot be read or holds no text."""
    found: list[Member] = []
    others: list[str] = []
    end = 0
    with source.open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for info in archive:
                    end = info.offset_data + info.size
                    if info.isfile() and not _is_hidden(info.name):
                        member = _member(archive, info, source)
                        found.append(member) if member else others.append(info.name)
        except tarfile.TarError as error:
            raise damaged(source.path, "tar", error) from None
    if source.is_plain and _is_cut_short(source, end):
        raise damaged(source.path, "tar", EOFError("it is cut short"))
    if not found:
        raise DataError(f"{source.path} holds no text: none of its {len(others)} files is .txt, .json or another text")
    if others:
        _log.warning("%s: files that are not read: %d, such as %s", source.path, len(others), ", ".join(others[:3]))
    return _grouped(name, source, column, _without_metadata(found))


def _is_cut_short(source: Source, end: int) -> bool:
    """Whether an archive ends inside its last member, which should end at `end`, or inside the next one's header.
    tarfile takes both for the archive's end."""
    header = source.read(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
    return source.path.stat().st_size < end or bool(header.strip(b"\0"))


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, source: Source) -> Member | None:
    """What is read of a member; None where it is not text."""
    suffix = PurePosixPath(info.name).suffix.lower()
    if suffix not in suffixes.TEXT | suffixes.LINES | suffixes.DELIMITED | {".json"}:
        return None
    count = 1
    if suffix in suffixes.LINES:
        data = _contents(archive, info).read()
        count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    elif suffix == ".json":
        content = parse_json(_contents(archive, info).read(), _place(source, info.name))
        count = len(content) if isinstance(content, list) else 1
    return Member(info.name, suffix, info.offset_data, info.size, count)


def _place(source: Source, name: str) -> str:
    """A member's place in the words of an error."""
    return f"{source.path}, {name}"


def _contents(archive: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(info)
    assert file is not None  # it is a regular file
    return file  # type: ignore[return-value]


def _without_metadata(members: list[Member]) -> list[Member]:
    """The members without the .json beside a text of the same sample: `0001.txt` and `0001.json`."""
    samples = {_sample(member) for member in members if member.suffix != ".json"}
    return [member for member in members if member.suffix != ".json" or _sample(member) not in samples]


def _sample(member: Member) -> str:
    return member.name[: len(member.name) - len(member.suffix)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts if part != ".")


def _grouped(name: str, source: Source, column: str, members: list[Member]) -> list[DocumentUnit]:
    units: list[DocumentUnit] = []
    group: list[Member] = []
    size = 0
    for member in members:
        group.append(member)
        size += member.size
        if size >= source.unit_bytes:
            units.append(ArchiveUnit(name, source, column, tuple(group)))
            group, size = [], 0
    if group:
        units.append(ArchiveUnit(name, source, column, tuple(group)))
    return units


def _texts(member: Member, data: bytes, unit: ArchiveUnit) -> list[bytes]:
    where = _place(unit.source, member.name)
    if member.suffix == ".json":
        content = parse_json(data, where)
        records = content if isinstance(content, list) else [content]
        return [record_text(record, unit.column, where) for record in records]
    if member.suffix in suffixes.LINES:
        lines = enumerate(data.split(b"\n")[: member.count], 1)
        return [line_text(line, unit.column, f"{where}, line {number}") for number, line in lines]
    return [data]
