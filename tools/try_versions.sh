#!/usr/bin/env bash
# Runs the tests against newer packages than constraints.txt pins, each in an environment of its own, and prints a Markdown table: what
# docs/install.md shows.
#
#   tools/try_versions.sh                                   the rows below
#   tools/try_versions.sh 'torch==2.14.1' 'gymnasium mujoco dm-control' ...     rows of your own: packages of one environment
#   TESTS='tests/nn tests/planning' tools/try_versions.sh   other tests than the default suite
#
# A row starts from the tested set, then installs its packages over it whatever the bounds in pyproject.toml say: that is the question. A
# name alone is its newest release. PYTHON picks the interpreter; BASE=.venv copies an environment that is there, in place of making one,
# which takes most of the time. All is in a temporary folder (TMPDIR, 2 to 6 GB for the tested set and as much for a row's own packages),
# which is deleted; WORK=FOLDER takes its place and keeps the tested set for the next time. Logs: $LOGS.
set -uo pipefail

rows=("torch" "gymnasium" "mujoco dm-control" "numpy" "torch gymnasium mujoco dm-control numpy")
[ $# -gt 0 ] && rows=("$@")
root=$(cd "$(dirname "$0")/.." && pwd)
tests=${TESTS:-tests}
base=${WORK:-$(mktemp -d)}
logs=${LOGS:-$base/logs}
mkdir -p "$base" "$logs"
trap 'rm -rf "$base/clone"; [ -n "${WORK:-}" ] || rm -rf "$base/tested"; rmdir "$logs" "$base" 2>/dev/null; true' EXIT
unset PYTHONPATH VIRTUAL_ENV

# A copy of what a clone has, with the Makefile's own environment in it, or with the files of $BASE. The environment is made once, in the
# place where every row has its own, since scripts in it know their place; rows get hard links to its files, which pip replaces and never
# writes to. An installed checkout is found at its old place first, hence PYTHONPATH.
clone() {
    rm -rf "$base/clone"
    if [ ! -d "$base/tested" ]; then
        mkdir "$base/clone" && cd "$root" || return 1
        { git ls-files --cached --others --exclude-standard 2>/dev/null || find . -type f; } |
            while read -r file; do [ ! -e "$file" ] || echo "$file"; done | tar c -T - | tar x -C "$base/clone"
        cd "$base/clone" || return 1
        if [ -n "${BASE:-}" ]; then cp -a "$BASE" .venv; else make PYTHON="${PYTHON:-python3}" setup; fi && mv "$base/clone" "$base/tested" || return 1
    fi
    cp -al "$base/tested" "$base/clone" && cd "$base/clone" && export PYTHONPATH="$base/clone"
}

# Installs the row's packages. What was there goes first: mujoco 4 is two packages, and pip would remove the old one's files after it has
# written theirs to the same places.
replace() { # packages
    .venv/bin/python -m pip uninstall -q -y "${@%%[=<>~!]*}"
    .venv/bin/python -m pip install -q --upgrade "$@"
}

# What the row's packages became; a name alone was resolved by pip.
versions() { # packages
    "$base/clone/.venv/bin/python" - "$@" <<'EOF'
import re
import sys
from importlib.metadata import version

print(", ".join(f"{name} {version(name)}" for name in (re.split("[=<>~!]", word)[0] for word in sys.argv[1:])))
EOF
}

echo "| packages | tests | result |"
echo "|---|---|---|"
failed=0
for row in "${rows[@]}"; do
    read -ra packages <<<"$row"
    log=$logs/$(echo "$row" | tr -c 'A-Za-z0-9.\n' _).log
    result= named=$row
    if ! clone >"$log" 2>&1; then
        result="the environment can't be made"
    elif ! replace "${packages[@]}" >>"$log" 2>&1; then
        result="installation failed"
    else
        named=$(versions "${packages[@]}")
        # Their own file: lines of pip's begin with ERROR too. setup.cfg asks for -q already; twice, it leaves out the last line.
        # shellcheck disable=SC2086
        .venv/bin/python -m pytest -n "${JOBS:-2}" -m 'not slow' $tests >"$log.tests" 2>&1
        result=$(tail -n 1 "$log.tests" | sed 's/=//g; s/^ *//; s/ in [0-9].*//')
        if grep -q "^FAILED\|^ERROR" "$log.tests"; then
            result="$result: $(grep '^FAILED\|^ERROR' "$log.tests" | sed 's/^[A-Z]*:* //; s/ - .*//' | sort -u | head -n 5 | paste -sd' ')"
        fi
    fi
    case $result in *failed* | *error* | *"can't"*) failed=1 ;; esac
    echo "| $named | ${tests} | $result |"
    cd "$root" && rm -rf "$base/clone"
done
exit $failed
