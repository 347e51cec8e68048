"""Cross-validation: what each image holds, k folds with even shares of every class, and their COCO files."""

from segkit.folds.assign import assign_folds, fold_table, one_by_one_folds, random_folds, unevenness
from segkit.folds.counts import ClassCounts, count_classes, count_labels
from segkit.folds.files import read_fold_source, write_fold_files

__all__ = [
    "ClassCounts",
    "assign_folds",
    "count_classes",
    "count_labels",
    "fold_table",
    "one_by_one_folds",
    "random_folds",
    "read_fold_source",
    "unevenness",
    "write_fold_files",
]
