"""From the settings to the corpus that they name."""

from collections.abc import Sequence
from pathlib import Path

from abstractinator.data.corpus import Corpus
from abstractinator.data.data_config import DataConfig


def open_corpus(config: DataConfig, exclude: Sequence[Path] = ()) -> Corpus:
    """The corpus that `config` names, ready to read. exclude: folders inside data.path that are not read, such as those
    to which a training writes.

    Raises DataError, which says what to do, where the data are missing, empty, unreadable or out of reach.
    """
    if config.dataset_name is not None:
        from abstractinator.data.hub_corpus import HubCorpus

        return HubCorpus(config)
    from abstractinator.data.local_corpus import LocalCorpus

    if config.path is not None:
        from abstractinator.data.document_files import find_units

        units = find_units(config.path, config.text_column_name, exclude, config.suffixes, config.any_file)
        return LocalCorpus(config.path, units.train, units.validation, config)
    from abstractinator.data.embedded_corpus import embedded_units

    return LocalCorpus("the embedded corpus", embedded_units(), None, config)
