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

# static_target [x86-64|arm64]: the Rust target of the static relay, of this machine's processor unless one is named.
static_target() {
    case ${1:-$(uname -m)} in
        x86-64 | x86_64 | amd64) echo x86_64-unknown-linux-musl ;;
        arm64 | aarch64) echo aarch64-unknown-linux-musl ;;
        *) die "\"$1\" is not an architecture of the image" "use x86-64 or arm64" ;;
    esac
}

# build_static TARGET: the relay as a static program; the same bytes from the same commit wherever it is built. The list
# of its crates is inside (cargo auditable), so that scanners of images know what is in it.
build_static() {
    local target=$1 variable=${1//-/_} processor=${1%%-*} cargo_home=${CARGO_HOME:-$HOME/.cargo} index
    # Panics and the errors of the cryptography name source files, which must not say where this machine has them.
    local rust="--remap-path-prefix=$root=/bastion" c="-ffile-prefix-map=$root=/bastion" compiler=musl-gcc
    cargo fetch --locked --target "$target" || return 1
    for index in "$cargo_home"/registry/src/*/; do
        rust+=" --remap-path-prefix=${index%/}=/crates"
        c+=" -ffile-prefix-map=${index%/}=/crates"
    done
    if [ "$processor" != "$(uname -m)" ]; then
        # The compiler for another processor comes with glibc: it gets musl's headers, and Rust's own linker and libc.
        compiler=$processor-linux-gnu-gcc
        local headers=$root/.tools/musl-$processor/usr/include/$processor-linux-musl
        c+=" -nostdinc -isystem $headers -isystem $("$compiler" -print-file-name=include)"
        export "CARGO_TARGET_$(tr '[:lower:]' '[:upper:]' <<<"$variable")_LINKER=rust-lld"
    fi
    env "CC_$variable=$compiler" "CFLAGS_$variable=$c" RUSTFLAGS="${RUSTFLAGS:-} $rust" \
        cargo auditable build --locked --release --target "$target" --bin bastion --no-default-features --features relay
}

# static_binary TARGET: where build_static has put it.
static_binary() {
    printf '%s\n' "$(target_dir)/$1/release/bastion"
}

# container_engine: podman, or a docker whose daemon answers; nothing if there is neither.
container_engine() {
    if command -v podman >/dev/null; then
        echo podman
    elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then
        echo docker
    fi
}

# namespace_trouble: why nobody can make network namespaces here and join them, which tests/it/network.rs does; nothing if
# it can be done.
namespace_trouble() {
    local said user=()
    [ "$(id -u)" = 0 ] || user=(--user --map-root-user)
    said=$(unshare "${user[@]}" --net sh -ec '
        ip link set lo up
        echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
        ip link add lan0 type veth peer name wan0' 2>&1) || printf 'network namespaces do not work: %s\n' "${said##*$'\n'}"
}

# container_trouble: why the tests of the image cannot start a container here; nothing if they can. An image without any
# program tells: that its command is missing (127) is found out inside the container.
container_trouble() {
    local context said status=0
    [ "$(id -u)" = 0 ] || { echo "they need root"; return; }
    context=$(mktemp -d)
    echo "FROM scratch" >"$context/Dockerfile"
    said=$(
        export CONTAINERS_CONF=$root/tests/containers.conf
        podman build --quiet --tag localhost/bastion-probe "$context" 2>&1 || exit 125
        podman run --rm --pull=never --network=host --read-only --memory=128m localhost/bastion-probe /none 2>&1 || status=$?
        podman rmi --force localhost/bastion-probe >/dev/null 2>&1 || true
        exit "$status"
    ) || status=$?
    rm -rf "$context"
    [ "$status" = 127 ] || printf 'podman cannot start a container: %s\n' "${said##*$'\n'}"
}
