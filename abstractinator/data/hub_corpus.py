"""A corpus streamed from the Hugging Face hub: nothing is stored, positions are exact.

`datasets` keeps the position in its files but not the content of its shuffle buffer, so a resumed run would lose
documents. Here `datasets` shuffles the files, the stream is read in chunks of `shuffle_buffer` documents, and each
chunk is shuffled; a position is that of `datasets` before the chunk and the offset in the chunk. Every process of a
distributed run reads the whole stream.
"""

import contextlib
import json
import logging
import weakref
from collections.abc import Generator, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from abstractinator.data.corpus import Corpus, DocumentStream
from abstractinator.data.data_config import DataConfig, DataError
from abstractinator.data.document import Document
from abstractinator.data.document_split import decide_split, given_split
from abstractinator.data.formats.errors import require
from abstractinator.data.formats.records import record_text
from abstractinator.messages import first_line

_SCAN_CHUNK = 256  # documents between two checks whether there is enough to validate on
_NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp"}


def open_split(config: DataConfig, split: str) -> Any:
    """The `datasets.IterableDataset` of one split. DataError where it does not exist or is out of reach."""
    datasets = require("datasets", f"the hub data set {config.dataset_name}")
    datasets.disable_progress_bars()
    # It would warn at each resumption that its shuffle buffer is refilled; ours is empty by then.
    datasets.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each attempt; the last is told below
    try:
        return datasets.load_dataset(config.dataset_name, config.dataset_config, split=split, streaming=True)
    except Exception as error:
        raise _explained(error, config) from None


def _explained(error: Exception, config: DataConfig) -> Exception:
    """What to tell the user about an error of `datasets`; the error itself where it is not about their input."""
    from datasets.exceptions import DatasetNotFoundError

    reason = first_line(error)
    if isinstance(error, DatasetNotFoundError):
        return DataError(f"the hub has no data set {config.dataset_name!r} that you may read ({reason})")
    if isinstance(error, ValueError):  # an unknown configuration or split; datasets lists those it has
        return DataError(f"{config.dataset_name}: {reason}; see data.dataset_config= and data.dataset_train_split=")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES:
        return DataError(
            f"the hub cannot be reached for the data set {config.dataset_name} ({reason}); check the "
            "network, or give local files with data.path=…"
        )
    return error


class HubCorpus(Corpus):
    """A hub data set. Without a validation split of its own, documents of the training split are held
    out by their hash: found at the start by reading until there are enough, passed over in training."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.name = f"the hub data set {config.dataset_name}"
        self.size_bytes = None
        if config.dataset_validation_split is None:
            self.split = decide_split(self._scan(config.dataset_train_split), config, self.name)
        else:
            self.split = given_split(self._scan(config.dataset_validation_split), config, self.name)
        self.settings = {**config.choice_of_text(), "data.shuffle_buffer": config.shuffle_buffer}
        described = [
            config.dataset_name,
            config.dataset_config,
            config.dataset_train_split,
            config.text_column_name,
            config.shuffle_buffer,
            self.split.threshold,
            self.split.head_bytes,
        ]
        self.fingerprint = blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()

    def validation_documents(self) -> list[bytes]:
        return list(self.split.validation)

    def train_documents(self, epoch: int, seed: int, position: Any = None) -> "_HubStream":
        return _HubStream(self, epoch, seed, position)

    def documents(self, stream: Any) -> Generator[Document, None, None]:
        """The documents of an IterableDataset as they come, empty ones included."""
        records = iter(stream)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:
                raise _explained(error, self.config) from None
            yield Document.of(record_text(record, self.config.text_column_name, self.name))

    def _scan(self, split: str) -> Iterator[list[Document]]:
        documents = self.documents(open_split(self.config, split))
        while batch := list(islice(documents, _SCAN_CHUNK)):
            yield batch
        documents.close()


class _HubStream(DocumentStream):
    """One epoch of a HubCorpus. A position is [position of datasets before the chunk, chunk, offset in it].

    Held-out documents are empty inside a chunk, so an empty chunk means the end of the stream.
    """

    def __init__(self, corpus: HubCorpus, epoch: int, seed: int, position: Any) -> None:
        self._corpus, self._seeds = corpus, [seed, epoch]
        self._before, self._chunk, self._offset = position or [None, 0, 0]
        files_seed = int(np.random.SeedSequence(self._seeds).generate_state(1)[0])
        stream = open_split(corpus.config, corpus.config.dataset_train_split)
        # A buffer of one document shuffles the files alone: it is empty whenever the stream stops.
        self._stream = stream.shuffle(seed=files_seed, buffer_size=1, max_buffer_input_shards=1)
        if self._before is not None:
            self._stream.load_state_dict(self._before)
        self._incoming = corpus.documents(self._stream)
        # The readers of datasets print tracebacks when Python ends and finds them open.
        weakref.finalize(self, _close, self._incoming)
        self._documents = self._read_chunk()

    def position(self) -> list[Any]:
        return [self._before, self._chunk, self._offset]

    def __next__(self) -> bytes:
        while self._documents:
            if self._offset == len(self._documents):
                self._before, self._chunk, self._offset = self._stream.state_dict(), self._chunk + 1, 0
                self._documents = self._read_chunk()
                continue
            document = self._documents[self._offset]
            self._offset += 1
            if document:
                return document
        raise StopIteration

    def _read_chunk(self) -> list[bytes]:
        """The next chunk of the stream, shuffled."""
        arrived = list(islice(self._incoming, self._corpus.config.shuffle_buffer))
        texts = [self._corpus.split.training_part(document) for document in arrived]
        order = np.random.default_rng([*self._seeds, self._chunk]).permutation(len(texts))
        return [texts[index] for index in order.tolist()]


def _close(documents: Generator[Document]) -> None:
    """Ends a stream; one that a thread still waits in ends with the thread."""
    with contextlib.suppress(ValueError):
        documents.close()
