# Sourced by the other scripts: environments under .venv, made once and reused.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Print the commands of all supported interpreters found, lowest version first.
find_pythons() {
    local version candidate found
    for version in 3.11 3.12 3.13; do
        found=""
        for candidate in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python3 \
            /usr/local/bin/"python$version" /usr/bin/"python$version" python3; do
            if "$candidate" -c "import sys, venv, ensurepip, ctypes
sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1; then
                found=$candidate
                break
            fi
        done
        [ -z "$found" ] || printf '%s\n' "$found"
    done
}

# environment PYTHON NAME GROUP...: make .venv/NAME with the package (editable) and dependency
# groups, unless that has been done for this very pyproject.toml.
environment() {
    local python=$1 venv=.venv/$2
    shift 2
    local stamp
    stamp=$("$python" -c "import hashlib, sys
print(sys.version, *sys.argv[1:], hashlib.sha256(open('pyproject.toml', 'rb').read()).hexdigest())" "$@")
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "setting up $venv ..." >&2
        rm -rf "$venv"
        "$python" -m venv "$venv"
        # dependency groups need a pip from 2025
        "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --upgrade "pip>=25.1"
        local groups=()
        for group in "$@"; do groups+=(--group "$group"); done
        "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --editable . "${groups[@]}"
        printf '%s' "$stamp" >"$venv/stamp"
    fi
}
