# Shared by the scripts in this folder: sourced, not run.
# shellcheck shell=bash

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# Tools that scripts/setup installs for this repository alone.
export PATH="$root/.tools/bin:$root/.tools/python/bin:$PATH"

# step TITLE COMMAND…: runs the command under a title and tells how long it took.
step() {
    local title=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$title" >&2
    if ! "$@"; then
        printf '\n== %s: FAILED after %d s\n   command: %s\n' "$title" $((SECONDS - started)) "$*" >&2
        return 1
    fi
    printf '== %s: ok, %d s\n' "$title" $((SECONDS - started)) >&2
}

die() {
    printf 'Error: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf 'Hint: %s\n' "$hint" >&2; done
    exit 1
}

# Where cargo puts what it builds.
target_dir() {
    local dir=${CARGO_TARGET_DIR:-target}
    case $dir in
        /*) printf '%s\n' "$dir" ;;
        *) printf '%s\n' "$root/$dir" ;;
    esac
}

# The Rust target of the static relay: musl where its standard library can be had, otherwise glibc linked statically.
static_target() {
    local sysroot
    sysroot=$(rustc --print sysroot)
    if [ -d "$sysroot/lib/rustlib/x86_64-unknown-linux-musl/lib" ]; then
        echo x86_64-unknown-linux-musl
    else
        echo x86_64-unknown-linux-gnu
    fi
}
