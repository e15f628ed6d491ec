"""Runs and records: tables, statistics, and what a new record must show."""
