"""Forensics: what published logs and claims say about a record, without running anything."""
