"""Check data sets: class counts, findings, duplicates, tables and pictures."""

from segkit.checks.check import CheckedSet, check_sets
from segkit.checks.duplicates import find_duplicates
from segkit.checks.measure import Measures, measure
from segkit.checks.pictures import save_pictures
from segkit.checks.tables import class_table, describe_set, finding_lines, write_tables

__all__ = [
    "CheckedSet",
    "Measures",
    "check_sets",
    "class_table",
    "describe_set",
    "find_duplicates",
    "finding_lines",
    "measure",
    "save_pictures",
    "write_tables",
]
