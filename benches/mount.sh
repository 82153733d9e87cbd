#!/bin/sh
# Times `prepull mount` against the same store unpacked on ext4, in turn within each round, as root.
#
#   benches/mount.sh [--runs N] CORPUSDIR [WORKDIR]
#
#   CORPUSDIR   what benches/corpus.sh made: its image `large`
#   WORKDIR     default /var/tmp/prepull-bench: needs 6 GB
#   --runs N    rounds, default 5
#
#   PREPULL=target/release/prepull benches/mount.sh /var/tmp/corpus
#
# Both begin each round with nothing known of them: ext4 is mounted again, and so is prepull. The data of both are in the
# page cache of what they lie in, so no disk is measured. Best and median of the rounds, in Markdown.
set -eu
runs=5
original=$*
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=${2:?} && shift ;;
    -*) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) break ;;
    esac
    shift
done
test -n "${1:-}" || { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 2; }
# shellcheck disable=SC2086 # directories without spaces
test -n "${MOUNT_NAMESPACE:-}" || MOUNT_NAMESPACE=1 exec unshare --mount --propagation private sh "$0" $original
prepull=${PREPULL:?the program to be timed}
corpus=$1 work=${2:-/var/tmp/prepull-bench}
# Of a run that was killed.
rm -rf "$work/big"
mkdir -p "$work/ext4" "$work/fuse"
times=$(mktemp -d)
clean() {
    umount "$work/ext4" 2>/dev/null || true
    "$prepull" umount -q --lazy "$work/fuse" 2>/dev/null || true
    rm -rf "$times" "$work"
}
trap clean EXIT

# An image with one large file, beside the corpus's.
python3 - "$work/big" <<'PY'
import hashlib, io, json, os, sys, tarfile
root = sys.argv[1]
blobs = root + "/blobs/sha256"
os.makedirs(blobs)
def blob(data):
    name = hashlib.sha256(data).hexdigest()
    open(f"{blobs}/{name}", "wb").write(data)
    return {"digest": "sha256:" + name, "size": len(data)}
part = os.urandom(1 << 20)
path = root + "/layer"
with tarfile.open(path, "w") as tar:
    info = tarfile.TarInfo("big")
    info.size = 512 << 20
    tar.addfile(info, io.BytesIO(part * 512))
layer = open(path, "rb").read()
os.remove(path)
layer = dict(blob(layer), mediaType="application/vnd.oci.image.layer.v1.tar")
config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
config = dict(blob(json.dumps(config).encode()), mediaType="application/vnd.oci.image.config.v1+json")
kind = "application/vnd.oci.image.manifest.v1+json"
manifest = dict(blob(json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}).encode()), mediaType=kind)
json.dump({"schemaVersion": 2, "manifests": [manifest]}, open(root + "/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(root + "/oci-layout", "w"))
PY
images="oci:$corpus/large:docker.io/library/large:v1 oci:$work/big=localhost/big:v1"
platform=linux/amd64
truncate -s 4g "$work/img" && mkfs.ext4 -q "$work/img" && mount -o loop "$work/img" "$work/ext4"
# shellcheck disable=SC2086
"$prepull" make -q --platform $platform --cache-dir "$work/cache" --store additional --unpacker gnu --no-config --graphroot /var/lib/containers/storage --tar - $images |
    tar --xattrs --xattrs-include='*' -xf - -C "$work/ext4"
umount "$work/ext4"
store=$work/ext4/var/lib/containers/storage

timed() {
    what=$1
    shift
    start=$(date +%s%N)
    "$@" >/dev/null
    echo $((($(date +%s%N) - start) / 1000)) >>"$times/$what"
}
walk() { find "$1/overlay" -size +9999999k; }
small() { xargs -0 cat <"$times/list-$1"; }
measure() {
    timed "$1-walk1" walk "$2"
    timed "$1-walk2" walk "$2"
    timed "$1-big1" dd if="$(echo "$2"/overlay/*/diff/big)" bs=1M status=none
    timed "$1-big2" dd if="$(echo "$2"/overlay/*/diff/big)" bs=1M status=none
    test -s "$times/list-$1" || find "$2/overlay" -type f -size -64k -print0 >"$times/list-$1"
    timed "$1-small1" small "$1"
}
for _ in $(seq "$runs"); do
    cat "$work/img" "$work"/cache/*/* >/dev/null
    mount -o loop "$work/img" "$work/ext4"
    measure ext4 "$store"
    umount "$work/ext4"
    cat "$work/img" "$work"/cache/*/* >/dev/null
    # shellcheck disable=SC2086
    start_ls() { "$prepull" mount -q --platform $platform --cache-dir "$work/cache" "$work/fuse" $images && ls "$work/fuse/overlay"; }
    timed fuse-ls start_ls
    measure fuse "$work/fuse"
    "$prepull" umount -q "$work/fuse"
done
mount -o loop "$work/img" "$work/ext4"
entries=$(find "$store/overlay" | wc -l)
files=$(tr -cd '\0' <"$times/list-ext4" | wc -c)
pick() { sort -n "$times/$1" | sed -n "$2p"; }
row() {
    what=$1 amount=$2 unit=$3 scale=$4
    for which in 1 $(((runs + 1) / 2)); do
        echo "$(pick "ext4-$what" "$which") $(pick "fuse-$what" "$which")"
    done | awk -v what="$5" -v amount="$amount" -v unit="$unit" -v scale="$scale" '
        { ext4[NR] = amount / $1 * scale; fuse[NR] = amount / $2 * scale }
        END { printf "| %s | %.4g / %.4g %s | %.4g / %.4g %s | %.2f / %.2f |\n", what, ext4[1], ext4[2], unit, fuse[1], fuse[2], unit, fuse[1] / ext4[1], fuse[2] / ext4[2] }'
}
echo "| best / median of $runs | ext4 | mount | ratio |"
echo "| --- | --- | --- | --- |"
row walk1 "$entries" "k entries/s" 1000 "first walk ($entries entries)"
row walk2 "$entries" "k entries/s" 1000 "second walk"
row big1 512 "GB/s" 1048.576 "a file of 512 MiB, first"
row big2 512 "GB/s" 1048.576 "again"
row small1 "$files" "k files/s" 1000 "$files small files, first"
echo "| until the first \`ls\` | | $(pick fuse-ls 1 | awk '{ printf "%.2f", $1 / 1000000 }') / $(pick fuse-ls $(((runs + 1) / 2)) | awk '{ printf "%.2f s", $1 / 1000000 }') | |"
