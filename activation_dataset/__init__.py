"""Writing, reading and verification of per-layer activation datasets on disk.

The package needs only numpy and google-crc32c. docs/reference/format.md describes the files.
"""

from activation_dataset.damage import DatasetError
from activation_dataset.metadata import Metadata
from activation_dataset.reading.reader import ActivationDataset, ActivationRecord, LayerRecords
from activation_dataset.statistics import LayerStatistics
from activation_dataset.tfrecord import CorruptRecordError

__all__ = [
    "ActivationDataset",
    "ActivationRecord",
    "CorruptRecordError",
    "DatasetError",
    "LayerRecords",
    "LayerStatistics",
    "Metadata",
]
