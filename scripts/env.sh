# Sourced by the other scripts: which Pythons there are, and environments under .venv, made once and reused.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Print the versions of Python that the project supports, lowest first.
supported() {
    sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9][0-9]*\)".*/\1/p' pyproject.toml
}

# Print "VERSION COMMAND" for each supported interpreter found, lowest version first.
find_pythons() {
    local version candidate found
    for version in $(supported); do
        for candidate in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python3 \
            "$HOME"/.local/share/uv/python/cpython-"$version".*/bin/python3 \
            /usr/local/bin/"python$version" /usr/bin/"python$version" python3; do
            # A shim that chooses among versions is resolved to what it has chosen.
            found=$("$candidate" -c "import sys, venv, ensurepip, ctypes
if '%d.%d' % sys.version_info[:2] == '$version': print(sys.executable)" 2>/dev/null) || continue
            if [ -n "$found" ]; then
                printf '%s %s\n' "$version" "$found"
                break
            fi
        done
    done
}

# Say on standard error that no interpreter was found, and what would do.
no_pythons() {
    echo "no Python $(supported | paste -s -d ' ' | sed 's/ / or /g') (with venv and ensurepip) found" >&2
}

# may_install COMMAND PACKAGE...: install packages of the system where that is nobody's loss, on a CI
# machine; say so where it can't be done. True if the command is there in the end.
may_install() {
    local command=$1
    shift
    if command -v "$command" >/dev/null; then return; fi
    if [ -z "${CI:-}" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 1; fi
    echo "installing $* ..." >&2
    mkdir -p .venv
    # One at a time: apt-get does not wait for another one's lists.
    { flock 8 && apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$@"; } \
        8>.venv/apt.lock >/dev/null 2>&1 || echo "$* could not be installed" >&2
    command -v "$command" >/dev/null
}

# environment PYTHON NAME VERSIONS GROUP...: make .venv/NAME with the package (editable) and dependency
# groups, unless that has been done for these very versions. VERSIONS is one of
#   locked   those of requirements/locked-3.x.txt, which are the tested ones
#   lowest   the lowest ones that pyproject.toml allows the package, the tools as locked
#   newest   today's
# Each step is tried for itself: where a caller looks at the status, `set -e` does not hold in here.
environment() {
    local python=$1 venv=.venv/$2 name=$2 versions=$3 lock limits stamp
    shift 3
    lock=requirements/locked-$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])").txt
    if [ ! -f "$lock" ] && [ "$versions" != newest ]; then
        echo "$lock is missing: no versions have been tested with that Python (./scripts/lock writes it)" >&2
        return 1
    fi
    mkdir -p .venv || return 1
    case $versions in
    locked) limits=$lock ;;
    lowest) limits=.venv/$name.txt && "$python" scripts/lowest.py "$lock" >"$limits" || return 1 ;;
    newest) limits="" ;;
    esac
    # Of the directory, too: an environment does not go with a tree that is moved.
    stamp=$("$python" -c "import hashlib, os, sys, time
files = b''.join(open(name, 'rb').read() for name in ['pyproject.toml', sys.argv[1]] if name)
day = sys.argv[1] or time.strftime('%F')
print(sys.version, os.getcwd(), *sys.argv[2:], day, hashlib.sha256(files).hexdigest())" "$limits" "$@") || return 1
    if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
    echo "setting up $venv ..." >&2
    rm -rf "$venv" && "$python" -m venv "$venv" || return 1
    if ! install "$venv" "$lock" "$limits" "$@"; then
        [ "$versions" = lowest ] || return 1
        echo "the locked tools do not go with the lowest versions: others are taken" >&2
        "$python" scripts/lowest.py >"$limits" && install "$venv" "$lock" "$limits" "$@" || return 1
    fi
    printf '%s' "$stamp" >"$venv/stamp"
}

# install VENV LOCK LIMITS GROUP...: fill a new environment, with the versions of the file LIMITS if
# there is one. What builds the package is as locked then, too.
install() {
    local venv=$1 lock=$2 limits=$3 group
    shift 3
    local pip=("$venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check install)
    local what=(--editable .) builders=()
    for group in "$@"; do what+=(--group "$group"); done
    if [ -n "$limits" ]; then
        pip+=(--constraint "$limits")
        builders=(--build-constraint "$lock")
    fi
    # The one that comes with Python may know neither groups nor constraints of what builds.
    "${pip[@]}" --upgrade "pip>=25.3" && "${pip[@]}" "${builders[@]}" "${what[@]}"
}
