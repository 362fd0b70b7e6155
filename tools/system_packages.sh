#!/bin/sh
# Installs the Debian packages named as arguments that are missing, where that is possible; says how otherwise.
command -v dpkg-query >/dev/null || exit 0
missing=
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
    echo "installing$missing"
    apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null; }
else
    echo "missing system packages; if the next steps fail, or pixels and videos do: sudo apt-get install -y$missing"
fi
