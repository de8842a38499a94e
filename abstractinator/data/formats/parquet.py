"""Parquet files: a row group is a unit, and only the text column is read."""

from dataclasses import dataclass
from pathlib import Path

from abstractinator.data.formats.errors import damaged, require
from abstractinator.data.formats.source import Source
from abstractinator.data.formats.tables import check_text_column, text_values
from abstractinator.data.formats.units import DocumentUnit


@dataclass(frozen=True)
class ParquetUnit(DocumentUnit):
    """One row group of a parquet file."""

    name: str
    path: Path
    column: str
    row_group: int
    size: int
    count: int

    def read(self) -> list[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                return text_values(file.read_row_group(self.row_group, columns=[self.column]).column(0))
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.path, "parquet", error) from None


def parquet_units(name: str, source: Source, column: str) -> list[DocumentUnit]:
    """The row groups of a parquet file, from its metadata alone.

    Raises DataError for a file that is not readable parquet and for one without a text column of that name.
    """
    path = source.path
    pa, pq = require("pyarrow", f"{path}, a parquet file,"), require("pyarrow.parquet", f"{path}, a parquet file,")
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, "parquet", error) from None
    check_text_column(schema, column, path)
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    leaf = leaves.index(column)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [
        ParquetUnit(name, path, column, index, group.column(leaf).total_uncompressed_size, group.num_rows)
        for index, group in enumerate(groups)
    ]
