"""A corpus streamed from the Hugging Face hub: nothing is stored, positions are exact.

`datasets` keeps the place in its files but not the content of its shuffle buffer, so a resumed run would
lose documents. Here `datasets` shuffles the files, the stream is read in chunks of `shuffle_buffer`
documents, and each chunk is shuffled; a position is the place before the chunk and the place inside it.
Every process of a distributed run reads the whole stream.
"""

import contextlib
import json
import weakref
from collections.abc import Generator, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from abstractinator.data.corpus import Corpus, DocumentStream
from abstractinator.data.data_config import DataConfig, DataError
from abstractinator.data.document_split import Document, decide_split, given_split
from abstractinator.data.document_units import record_text

_SCAN_CHUNK = 256  # documents between two looks whether there is enough to validate on
_NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp"}


def open_split(config: DataConfig, split: str) -> Any:
    """The `datasets.IterableDataset` of one split. DataError when it is not there or out of reach."""
    import datasets

    datasets.disable_progress_bars()
    # It would warn at each resumption that its shuffle buffer is refilled; ours is empty by then.
    datasets.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(config.dataset_name, config.dataset_config, split=split, streaming=True)
    except Exception as error:
        raise _explained(error, config) from None


def _explained(error: Exception, config: DataConfig) -> Exception:
    """What to tell the user about an error of `datasets`; the error itself where it is none of theirs."""
    from datasets.exceptions import DatasetNotFoundError

    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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
    """One epoch of a HubCorpus. A position is [place of datasets before the chunk, chunk, place inside it].

    Held-out documents are empty inside a chunk, so an empty chunk means the end of the stream.
    """

    def __init__(self, corpus: HubCorpus, epoch: int, seed: int, position: Any) -> None:
        self._corpus, self._seeds = corpus, [seed, epoch]
        files_seed = int(np.random.SeedSequence(self._seeds).generate_state(1)[0])
        stream = open_split(corpus.config, corpus.config.dataset_train_split)
        # A buffer of one document shuffles the files alone: nothing is in the buffer when we stop.
        self._stream = stream.shuffle(seed=files_seed, buffer_size=1, max_buffer_input_shards=1)
        self._before, self._chunk, self._next = position or [None, 0, 0]
        if self._before is not None:
            self._stream.load_state_dict(self._before)
        self._arrivals = corpus.documents(self._stream)
        # The readers of datasets print tracebacks when Python ends and finds them open.
        weakref.finalize(self, _close, self._arrivals)
        self._documents = self._read_chunk()

    def position(self) -> list[Any]:
        return [self._before, self._chunk, self._next]

    def __next__(self) -> bytes:
        while self._documents:
            if self._next == len(self._documents):
                self._before, self._chunk, self._next = self._stream.state_dict(), self._chunk + 1, 0
                self._documents = self._read_chunk()
                continue
            document = self._documents[self._next]
            self._next += 1
            if document:
                return document
        raise StopIteration

    def _read_chunk(self) -> list[bytes]:
        """The chunk that begins where the stream stands, shuffled."""
        arrived = list(islice(self._arrivals, self._corpus.config.shuffle_buffer))
        texts = [self._corpus.split.training_part(document) for document in arrived]
        order = np.random.default_rng([*self._seeds, self._chunk]).permutation(len(texts))
        return [texts[place] for place in order.tolist()]


def _close(arrivals: Generator[Document]) -> None:
    """Ends a stream; one that a thread still waits in ends with the thread."""
    with contextlib.suppress(ValueError):
        arrivals.close()
