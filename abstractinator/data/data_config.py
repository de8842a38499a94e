"""What to train on, and how much of it to hold out."""

from dataclasses import dataclass
from typing import Any


class DataError(ValueError):
    """The data cannot be used as asked; the message says what to do about it."""


@dataclass(frozen=True)
class DataConfig:
    """The text of a run: local files (`path`), a hub data set (`dataset_name`), or, with neither, the
    embedded corpus, which needs no download.

    Raises ValueError when both are set or a number is out of its range.
    """

    # A local file, or a folder that is searched recursively: .parquet, .arrow, .jsonl/.json, .csv/.tsv,
    # .tar, text and source files, also compressed (.gz, .bz2, .xz, .zst), and what `save_to_disk` of
    # `datasets` writes. A folder whose data files or sub-folders are named train, validation, test (as the
    # hub names them) is split by these names, and its test files stay unread; any other is split by document.
    path: str | None = None

    # Suffixes of further files of a folder that are read, each as one document of bytes, e.g. [".mid"].
    suffixes: tuple[str, ...] = ()

    # Whether files of every other suffix are read so as well.
    any_file: bool = False

    # A data set of the Hugging Face hub, streamed, e.g. "HuggingFaceFW/fineweb-edu".
    dataset_name: str | None = None

    # The hub data set's configuration, e.g. "sample-10BT"; None for its default.
    dataset_config: str | None = None

    # The hub data set's split to train on.
    dataset_train_split: str = "train"

    # The hub data set's split to validate on; None holds out documents of the training split.
    dataset_validation_split: str | None = None

    # The column that holds the text, in tables, jsonl and hub data; each row is a document.
    text_column_name: str = "text"

    # A tokenizer.json of byte-level byte pairs (library `tokenizers`), for kinds of model that take one: rows then
    # consist of its tokens, and checkpoints hold the file. None is bytes.
    tokenizer: str | None = None

    # The share of the documents that is held out where the data come without a validation split.
    # A document is held out when the hash of its text falls below this share, so its side depends on
    # nothing else, and exact duplicates are on the same side.
    validation_fraction: float = 0.02

    # The most bytes of held-out text that are used. Documents are taken whole as long as they fit; of
    # the first that does not fit, a prefix fills the rest, so one very long document is enough. The
    # documents that are not used are still kept out of the training.
    validation_bytes: int = 262_144

    # Hub data arrive in the order of their files (which are shuffled); documents are shuffled among
    # this many. Local documents are shuffled as a whole.
    shuffle_buffer: int = 1_024

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path is empty; name a file or folder ('.' is the current one), or set path=None for none")
        if self.tokenizer == "":
            raise ValueError("tokenizer is empty; name a tokenizer.json, or set tokenizer=None for bytes")
        if self.dataset_name == "":
            raise ValueError("dataset_name is empty; name a data set of the hub, or set dataset_name=None for none")
        if self.path is not None and self.dataset_name is not None:
            raise ValueError(
                f"path={self.path!r} and dataset_name={self.dataset_name!r} are both set; set one of "
                "them, or neither for the embedded corpus"
            )
        if bad := [suffix for suffix in self.suffixes if not suffix.startswith(".") or len(suffix) < 2]:
            raise ValueError(
                f"suffixes={list(self.suffixes)} must begin with a dot, such as '.mid'; {bad[0]!r} does not"
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f"validation_fraction={self.validation_fraction} must lie between 0 and 1")
        if self.validation_bytes < 1:
            raise ValueError(f"validation_bytes={self.validation_bytes} must be at least 1")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer={self.shuffle_buffer} must be at least 1")

    def choice_of_text(self) -> dict[str, Any]:
        """The settings that decide which text is trained on and which is held out, apart from where it lies."""
        names = ("text_column_name", "validation_fraction", "validation_bytes")
        return {f"data.{name}": getattr(self, name) for name in names}
