"""What is in a data set, and what is wrong with it: counts, findings, duplicates, tables and pictures."""

from segkit.checks.check import SetReport, check
from segkit.checks.duplicates import find_duplicates
from segkit.checks.measure import measure
from segkit.checks.pictures import save_pictures
from segkit.checks.tables import write_tables

__all__ = ["SetReport", "check", "find_duplicates", "measure", "save_pictures", "write_tables"]
