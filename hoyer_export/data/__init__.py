"""Data by name: name → batches of the training, validation and test images."""

from hoyer_export.data.load import load_data
from hoyer_export.data.options import ImageOptions
from hoyer_export.data.splits import DataSplits, Split

__all__ = ["DataSplits", "ImageOptions", "Split", "load_data"]
