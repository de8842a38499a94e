"""Folders: which files are read, which are a split, and what is refused."""

import errno
import os
import socket
from collections import Counter
from pathlib import Path

import datasets
import pytest

from abstractinator.data import DataConfig, DataError, open_corpus
from abstractinator.data.document_files import find_units
from abstractinator.data.split_names import files_by_split


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


def names_of(folder: Path, exclude: tuple[Path, ...] = ()) -> list[str]:
    found = find_units(str(folder), "text", exclude)
    assert found.validation is None
    return [unit.name for unit in found.train]


def splits_of(*names: str) -> dict[str, list[str]]:
    found = files_by_split([Path(name) for name in names])
    return {split: [path.as_posix() for path in paths] for split, paths in found.splits.items()}


@pytest.mark.parametrize(
    "names",
    [
        ("train/0.parquet", "validation/0.parquet", "test/0.parquet"),
        ("data/train/a/0.txt", "data/val/b/0.txt", "data/test/0.txt"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("wikitext-train.jsonl", "wikitext-dev.jsonl", "wikitext-test.jsonl"),
        ("c4-train.00000-of-01024.json.gz", "c4-validation.00003-of-00008.json.gz", "c4-test.1-of-2.json.gz"),
        ("train.txt", "val.txt", "test.txt"),
        ("Train2.txt", "Valid2.txt", "TEST.txt"),
        ("en/train-00000-of-00002.parquet", "en/validation-0.parquet", "en/test-0.parquet"),
        ("train/0.txt", "validation.jsonl", "test.jsonl"),
        ("train.csv", "dev.tsv", "test.tar"),
    ],
)
def test_usual_layouts_are_splits(names: tuple[str, str, str]) -> None:
    assert splits_of(*names) == {
        split: [name] for split, name in zip(("train", "validation", "test"), names, strict=True)
    }


@pytest.mark.parametrize(
    "names",
    [
        ("training-notes.txt", "contest.txt", "latest.txt"),
        ("how-to-train-a-dog.txt", "my-test.txt"),
        ("src/train/loop.py", "src/test/loop.py"),
        ("train.py", "test_it.py"),
        ("a.txt", "ptb.test.txt"),
    ],
)
def test_other_names_are_none(names: tuple[str, ...]) -> None:
    assert splits_of(*names) == {}


def test_the_test_split_of_folders_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{i}.txt" for split in ("train", "validation", "test") for i in range(3)))
    corpus = open_corpus(DataConfig(path=str(tmp_path)))
    assert sorted(corpus.train_documents(0, 0)) == [b"text of train/%d.txt" % i for i in range(3)]
    assert sorted(corpus.validation_documents()) == [b"text of validation/%d.txt" % i for i in range(3)]


def test_what_looks_like_a_split_and_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.txt", "b.txt", "ptb.test.txt")
    assert names_of(tmp_path) == ["a.txt", "b.txt", "ptb.test.txt"]
    assert "read like all others, though their names are a split's" in caplog.text
    assert "1, such as ptb.test.txt" in caplog.text


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    texts = [f"saved {i}" for i in range(50)]
    saved = datasets.Dataset.from_dict({"text": texts, "label": list(range(50))})
    saved.save_to_disk(str(tmp_path / "one"), num_shards=3)
    corpus = open_corpus(DataConfig(path=str(tmp_path / "one"), validation_bytes=10**9))
    found = [*corpus.train_documents(0, 0), *corpus.validation_documents()]
    assert Counter(found) == Counter(text.encode() for text in texts)
    several = {"train": saved, "validation": saved.select([3]), "test": saved.select([4])}
    datasets.DatasetDict(several).save_to_disk(str(tmp_path / "dict"))
    corpus = open_corpus(DataConfig(path=str(tmp_path / "dict")))
    assert Counter(corpus.train_documents(0, 0)) == Counter(text.encode() for text in texts)
    assert corpus.validation_documents() == [b"saved 3"]
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00003\.arrow"):
        open_corpus(DataConfig(path=str(tmp_path / "one")))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", "a.txt", "sub/b.txt")
    write(tmp_path / "more", "c.txt")
    (folder / "more").symlink_to("../more")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "again").symlink_to("../more")
    (folder / "link.txt").symlink_to("../more/c.txt")
    assert names_of(folder) == ["a.txt", "again/c.txt", "link.txt", "sub/b.txt"]


@pytest.mark.parametrize("target", ["nowhere.txt", "link.txt"])
def test_a_link_to_nothing_is_refused(target: str, tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "link.txt").symlink_to(target)
    with pytest.raises(DataError, match=r"link\.txt"):
        names_of(tmp_path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt", "sub/b.txt")
    listdir = os.listdir

    def refusing(folder: str | Path) -> list[str]:
        if Path(folder).name == "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refusing)  # as the tests may run as root, whom nothing is refused
    with pytest.raises(DataError, match=r"sub: cannot be read \(Permission denied\)"):
        names_of(tmp_path)


def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe.txt", tmp_path / "socket", Path("/dev/zero"), tmp_path):
            with pytest.raises(DataError, match="is a pipe, a socket or a device"):
                open_corpus(DataConfig(path=str(path)))


def test_own_outputs_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path, "a.txt", "mlruns/p/samples.txt", "checkpoints/summary.json", "elsewhere/summary.json", "run/sub/b.txt"
    )
    (tmp_path / "elsewhere" / "checkpoint_step8.pt").write_bytes(b"")
    assert names_of(tmp_path, exclude=(tmp_path / "checkpoints",)) == ["a.txt", "run/sub/b.txt"]
    assert "outputs of trainings are passed over: 2, such as elsewhere, mlruns" in caplog.text
    with pytest.raises(DataError, match="where this run writes"):
        names_of(tmp_path, exclude=(tmp_path,))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nouser-of-that-name/x", "no such home folder"),
        ("x" * 5_000, "cannot be read"),
        ("nowhere\0", "does not exist"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_corpus(DataConfig(path=path))


@pytest.mark.parametrize("settings", [{"path": ""}, {"dataset_name": ""}, {"suffixes": ("mid",)}])
def test_settings_that_say_nothing(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DataConfig(**settings)
