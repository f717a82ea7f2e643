"""Judging: metrics, backtests, statistics, figures and the report."""
