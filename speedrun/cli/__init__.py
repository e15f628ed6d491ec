"""The command line: words into calls, errors into exit codes. Nothing imports it."""
