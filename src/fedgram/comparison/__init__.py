"""Answers over finished runs: tables, pictures, a report, and the paper's numbers beside ours."""

from fedgram.comparison.runs import Group, Run, check_comparable, find_difference, group_runs, read_runs, slices

__all__ = ["Group", "Run", "check_comparable", "find_difference", "group_runs", "read_runs", "slices"]
