#!/usr/bin/env bash
# Names of the submissions that the merge commit at REPOSITORY adds or changes, one a line.
# Usage: changed-submissions.sh REPOSITORY
set -euo pipefail
cd "$1"

# Names go into commands later on: others than plain ones are not judged, and said.
git diff -z --name-only --no-renames --diff-filter=d HEAD^1 HEAD -- submissions |
    while IFS= read -r -d '' path; do
        name=${path#submissions/}
        if [ "${name%%/*}" = "$name" ]; then continue; fi # a file beside the submissions
        name=${name%%/*}
        if [ "$name" = template ]; then continue; fi
        if [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*$ ]]; then
            echo "$name"
        else
            echo "not judged: a submission's name has letters, digits and . _ + - only" >&2
        fi
    done | sort -u
