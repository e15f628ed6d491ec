#!/usr/bin/env bash
# The Python version that the first submission with one names; 3.11 if none does.
# Usage: python-of.sh REPOSITORY < NAMES
set -euo pipefail

while IFS= read -r name; do
    # Written by a stranger: only a version number is taken from it.
    version=$(sed -nE 's/^ *"python_version": "(3\.[0-9]{1,2}(\.[0-9]{1,2})?)",?$/\1/p' \
        "$1/submissions/$name/submission.json" 2>/dev/null | head -n 1 || true)
    if [ -n "$version" ]; then
        echo "$version"
        exit
    fi
done
echo 3.11
