#!/bin/sh
# Times `prepull install` into an empty directory against `skopeo copy` into an empty store, as root, all in turn within each
# round. What prepull has written is on the disk when it ends (syncfs); skopeo leaves that to the kernel.
#
#   benches/install.sh [--runs N] [--fs tmpfs|ext4] [--only NAMES] CORPUSDIR [WORKDIR]
#
#   CORPUSDIR        what benches/corpus.sh made
#   WORKDIR          default /dev/shm/prepull-bench; a new file system is mounted there for each command
#   --fs ext4        a new ext4 with a journal, in the file WORKDIR.img, instead of a tmpfs
#   --only NAMES     of medium,large, default both
#   --runs N         rounds, default 3
#
#   PREPULL=target/release/prepull benches/install.sh /var/tmp/corpus
#
# Medians, in Markdown.
set -eu
runs=3 fs=tmpfs only=medium,large
original=$*
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=${2:?} && shift ;;
    --fs) fs=${2:?} && shift ;;
    --only) only=${2:?} && shift ;;
    -*) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) break ;;
    esac
    shift
done
test -n "${1:-}" || { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 2; }
# shellcheck disable=SC2086 # directories without spaces
test -n "${INSTALL_NAMESPACE:-}" || INSTALL_NAMESPACE=1 exec unshare --mount --propagation private sh "$0" $original
prepull=${PREPULL:?the program to be timed}
corpus=$1 work=${2:-/dev/shm/prepull-bench}
mkdir -p "$work"
times=$(mktemp -d)
trap 'umount "$work" 2>/dev/null || true; rm -rf "$times" "$work.img"' EXIT

fresh() {
    umount "$work" 2>/dev/null || true
    if test "$fs" = tmpfs; then
        mount -t tmpfs -o size=12g tmpfs "$work"
    else
        rm -f "$work.img" && truncate -s 12g "$work.img" && mkfs.ext4 -q "$work.img" && mount -o loop "$work.img" "$work"
    fi
    mkdir "$work/root" "$work/tmp"
}
timed() {
    what=$1
    shift
    start=$(date +%s%N)
    env TMPDIR="$work/tmp" "$@" >"$times/said" 2>&1 || { cat "$times/said" >&2 && exit 1; }
    echo $((($(date +%s%N) - start) / 1000)) >>"$times/$what"
}
median() { sort -n "$times/$1" | sed -n "$(((runs + 1) / 2))p"; }
seconds() { awk "BEGIN { printf \"%.2f s\", $1 / 1000000 }"; }
ratio() { awk "BEGIN { printf \"%.1f\", $1 / $2 }"; }

echo "| images, $fs | skopeo copy | install, empty cache | install, warm cache | the same again | faster, empty / warm |"
echo "| --- | --- | --- | --- | --- | --- |"
for name in $(echo "$only" | tr , ' '); do
    image=docker.io/library/$name:v1
    rm -f "$times"/*
    for _ in $(seq "$runs"); do
        fresh
        timed skopeo skopeo --insecure-policy --tmpdir "$work/tmp" copy -q "oci:$corpus/$name:$image" \
            "containers-storage:[overlay@$work/root+$work/run]$image"
        umount "$work/root/overlay" 2>/dev/null || true
        fresh
        install() { timed "$1" "$prepull" install -q --cache-dir "$work/cache" --root "$work/root" "oci:$corpus/$name:$image"; }
        install cold
        install again
        rm -rf "$work/root" && mkdir "$work/root" && sync
        install warm
    done
    set -- "$(median skopeo)" "$(median cold)" "$(median warm)" "$(median again)"
    echo "| \`$name\` | $(seconds "$1") | $(seconds "$2") | $(seconds "$3") | $(awk "BEGIN { printf \"%.3f s\", $4 / 1000000 }") | $(ratio "$1" "$2") / $(ratio "$1" "$3") |"
done
