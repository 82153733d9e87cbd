#!/bin/sh
# Times `prepull make` against today's way, `skopeo copy` to containers-storage and `tar` of the store, and against the
# floor (benches/floor.rs), all in turn within each round, so that a machine that gets slower slows all of them.
#
#   benches/compare.sh [OPTIONS] CORPUSDIR [WORKDIR]      as root: skopeo cannot write a root's store otherwise
#
#   CORPUSDIR        what benches/corpus.sh made
#   WORKDIR          where everything is written, default /dev/shm/prepull-bench; what is in it is hidden for the time
#   --runs N         rounds, default 3
#   --fs tmpfs       a new tmpfs on WORKDIR for each corpus (default)
#   --fs ext4        a new ext4 with a journal for each corpus, in the file WORKDIR.img
#   --fs none        WORKDIR as it is (store, run, tmp, cache, host and out.* in it are deleted)
#   --only NAMES     of medium,large,large-zstd,large-archive,k8s
#   --raw FILE       also write each single measurement to FILE (tab-separated)
#
#   PREPULL=target/release/prepull FLOOR=target/release/examples/floor benches/compare.sh /var/tmp/corpus
#
# Where PREPULL is unset, or FLOOR not there, those rows are left out. Figures are those of the kernel for the command
# and the children that it waited for; "peak" is the largest single process. Markdown on stdout, progress on stderr.
set -eu

die() {
    echo "compare.sh: $*" >&2
    exit 1
}

say() {
    echo "compare.sh: $*" >&2
}

usage() {
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit "$1"
}

here=$(cd "$(dirname "$0")" && pwd)
runs=3 fs=tmpfs only=medium,large,large-zstd,large-archive,k8s raw=
original=$*
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=${2:?} && shift ;;
    --fs) fs=${2:?} && shift ;;
    --only) only=${2:?} && shift ;;
    --raw) raw=${2:?} && shift ;;
    -h | --help) usage 0 ;;
    -*) usage 2 >&2 ;;
    *) break ;;
    esac
    shift
done
case $# in 1 | 2) ;; *) usage 2 >&2 ;; esac
case $fs in tmpfs | ext4 | none) ;; *) die "--fs $fs: tmpfs, ext4 or none" ;; esac
case $runs in '' | *[!0-9]* | 0) die "--runs $runs: not a number of rounds" ;; esac

# Mounts (ours, and what skopeo leaves on its store) end with a namespace of our own.
if [ -z "${COMPARE_NAMESPACE:-}" ]; then
    [ "$(id -u)" = 0 ] || die "must be root: skopeo needs it to write the store, and the work directory is mounted"
    missing=
    for tool in skopeo tar python3 unshare mount; do
        command -v "$tool" >/dev/null || missing="$missing $tool"
    done
    [ -x /usr/bin/time ] || missing="$missing time"
    [ "$fs" != ext4 ] || command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
    [ -z "$missing" ] || die "missing:$missing (apt-get install skopeo tar python3 util-linux mount time e2fsprogs)"
    # shellcheck disable=SC2086 # options and directories without spaces, as corpus.sh demands
    COMPARE_NAMESPACE=1 exec unshare --mount --propagation private sh "$here/$(basename "$0")" $original
fi

corpus=$(cd "$1" && pwd)
work=${2:-/dev/shm/prepull-bench}
case $corpus$work in *[:,\ ]*) die "no colon, comma or space in the directories, please" ;; esac
made=
[ -d "$work" ] || made=yes
mkdir -p "$work"
work=$(cd "$work" && pwd)
[ -z "$raw" ] || : >"$raw"

prepull=${PREPULL:-}
floor=${FLOOR:-target/release/examples/floor}
if [ -z "$prepull" ]; then
    say "PREPULL is not set: its rows are left out"
else
    prepull=$(command -v "$prepull") || die "$PREPULL: no such program"
    prepull=$(readlink -f "$prepull")
fi
if [ -x "$floor" ]; then
    floor=$(readlink -f "$floor")
else
    say "$floor is not there (cargo build --release --example floor): its rows are left out"
    floor=
fi

root=$work/store/var/lib/containers/storage
image=$work.img # the file system's, with --fs ext4
results=$(mktemp)
figures=$(mktemp)
# A file made for a loop device, and a directory made for a mount, are gone only after the mount.
end() {
    cd /
    umount /var/lib/containers 2>/dev/null || :
    umount "$root/overlay" 2>/dev/null || :
    [ "$fs" = none ] || umount "$work" 2>/dev/null || :
    rm -f "$results" "$figures" "$image"
    [ -z "$made" ] || rmdir "$work" 2>/dev/null || :
}
trap end EXIT
trap 'exit 130' INT TERM

# -------------------------------------------------------------------------------------------------------- a work area

# A new file system, and in it all that skopeo would else write elsewhere: blobs that it spools (TMPDIR) and its blob-info
# cache, so that both sides write to the same place and each run starts from nothing.
fresh() {
    cd /
    umount /var/lib/containers 2>/dev/null || :
    case $fs in
    tmpfs)
        umount "$work" 2>/dev/null || :
        mount -t tmpfs -o mode=700 tmpfs "$work"
        # Memory that nobody used yet costs more than the first run should pay for.
        head -c 4G /dev/zero >"$work/touch" 2>/dev/null || die "$work: 4 GB do not fit"
        ;;
    ext4)
        umount "$work" 2>/dev/null || :
        rm -f "$image"
        truncate -s 12G "$image"
        # Without a journal ext4 keeps away from inodes just deleted and crawls; tables made later would disturb.
        mkfs.ext4 -q -O has_journal -E lazy_itable_init=0,lazy_journal_init=0 "$image"
        mount -o loop "$image" "$work"
        ;;
    none) rm -rf "$work/store" "$work/run" "$work/tmp" "$work/cache" "$work/host" ;;
    esac
    rm -f "$work/touch"
    mkdir -p "$work/host" /var/lib/containers
    mount --bind "$work/host" /var/lib/containers
    cd "$work"
    {
        echo '[storage]'
        echo 'driver = "overlay"'
    } >storage.conf
}

export CONTAINERS_STORAGE_CONF="$work/storage.conf" TMPDIR="$work/tmp"

# Everything a run wrote, outside its time; what is still to be written back too.
clean() {
    umount "$root/overlay" 2>/dev/null || :
    rm -rf "$work/store" "$work/run" "$work/tmp" "$work/host/"* "$work"/out.*
    mkdir -p "$work/tmp"
    sync -f "$work"
}

measure() { # CORPUS STEP COMMAND...
    case_=$1 step=$2
    shift 2
    rm -rf "$work/tmp"
    mkdir -p "$work/tmp"
    if ! /usr/bin/time -q -f '%e %U %S %M' -o "$figures" "$@" >"$work/tmp/log" 2>&1; then
        tail -n 5 "$work/tmp/log" >&2
        die "$case_: $step failed: $*"
    fi
    [ -s out.tar ] || [ -s out.tar.0 ] || die "$case_: $step wrote nothing"
    # shellcheck disable=SC2046 # four figures, four words
    set -- $(cat "$figures")
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$case_" "$step" "$round" "$1" "$2" "$3" "$4" >>"$results"
    say "round $round, $case_, $step: $1 s, CPU $2 + $3 s, peak $(($4 / 1024)) MiB"
}

# The store as root keeps it, and the tar of it.
cat_skopeo() {
    cat <<'END'
set -eu
root=$1 run=$2 top=$3 out=$4
shift 4
for item; do
    case $item in
    oci:*) name=${item#oci:} ;;
    docker-archive:*) name=${item#docker-archive:} ;;
    esac
    skopeo --insecure-policy copy --quiet "$item" "containers-storage:[overlay@$root+$run]${name#*:}"
done
exec tar -C "$top" -cf "$out" var
END
}

compare() { # CORPUS "ITEMS" "BLOBS"
    name=$1 items=$2 blobs=$3
    say "$name"
    fresh
    # Into the page cache.
    for file in $blobs; do
        cat "${file%%@*}"
    done >/dev/null
    round=0
    while [ $((round += 1)) -le "$runs" ]; do
        # shellcheck disable=SC2086 # lists of words
        {
            if [ -n "$prepull" ]; then
                clean
                rm -rf cache
                mkdir cache
                measure "$name" cold "$prepull" make --quiet --tar out.tar --cache-dir cache $items
                clean
                measure "$name" warm "$prepull" make --quiet --tar out.tar --cache-dir cache $items
                rm -rf cache
            fi
            clean
            mkdir -p "$root" "$work/run"
            measure "$name" skopeo sh -c "$(cat_skopeo)" sh "$root" "$work/run" "$work/store" out.tar $items
            if [ -n "$floor" ]; then
                clean
                measure "$name" p2 "$floor" p2 out.tar $blobs
                clean
                measure "$name" l2 "$floor" l2 out.tar $blobs
            fi
            clean
        }
    done
}

layout() {
    python3 "$here/oci-layout.py" "$@"
}

for one in $(echo "$only" | tr , ' '); do
    case $one in
    medium | large | large-zstd)
        [ -d "$corpus/$one" ] || die "$corpus/$one is not there: benches/corpus.sh $corpus"
        compare "$one" "$(layout item "$corpus/$one")" "$(layout blobs "$corpus/$one")"
        ;;
    large-archive)
        archive=$corpus/large.docker-archive.tar
        [ -f "$archive" ] || die "$archive is not there: benches/corpus.sh $corpus"
        compare "$one" "docker-archive:$archive:docker.io/library/large:v1" "$(layout archive-layers "$archive")"
        ;;
    k8s)
        [ -d "$corpus/k8s" ] || die "$corpus/k8s is not there: benches/corpus.sh $corpus"
        compare "$one" "$(layout item "$corpus"/k8s/*)" "$(layout blobs "$corpus"/k8s/*)"
        ;;
    *) die "--only $one: no such corpus" ;;
    esac
done
cd /
[ -z "$raw" ] || cp "$results" "$raw"

# ---------------------------------------------------------------------------------------------------------- the tables

case $fs in
tmpfs) place="a tmpfs" ;;
ext4) place="a fresh ext4 with a journal" ;;
none) place="$(stat -f -c %T "$work")" ;;
esac
echo "$(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)," \
    "$(skopeo --version), ${prepull:+$("$prepull" --version), }both on $place, input in the page cache," \
    "medians of $runs rounds."
python3 - "$results" <<'END'
import statistics
import sys

rows = {}
for line in open(sys.argv[1], encoding="utf-8"):
    corpus, step, number, wall, user, system, peak = line.split("\t")
    figures = (float(wall), float(user) + float(system), int(peak) / 1024)
    rows.setdefault(corpus, {}).setdefault(step, {})[number] = figures

NAMES = {
    "skopeo": "skopeo copy + tar",
    "cold": "prepull make, empty cache",
    "warm": "prepull make, warm cache",
    "p2": "floor, one output (p2)",
    "l2": "floor, two outputs (l2)",
}
print("\n| corpus | step | wall s (min - max) | CPU s | peak MiB |\n|---|---|---|---|---|")
for corpus, steps in rows.items():
    for step in NAMES:
        if step not in steps:
            continue
        wall, cpu, peak = zip(*steps[step].values())
        print(
            f"| {corpus} | {NAMES[step]} | {statistics.median(wall):.2f} ({min(wall):.2f} - {max(wall):.2f}) "
            f"| {statistics.median(cpu):.2f} | {max(peak):.0f} |"
        )


def ratio(steps, over, under, figure):
    """The median of the ratios within each round, "-" when one of the two was not run."""
    if over not in steps or under not in steps:
        return "-"
    pairs = [(steps[over][number][figure], steps[under][number][figure]) for number in steps[over]]
    return f"{statistics.median(a / max(b, 0.005) for a, b in pairs):.2f}"


if not any("cold" in steps for steps in rows.values()):
    sys.exit()
print(
    "\n| corpus | cold, times faster | warm, times faster | CPU, times less | warm CPU, times less "
    "| cold / floor p2 | cold / floor l2 | peak MiB |\n|---|---|---|---|---|---|---|---|"
)
for corpus, steps in rows.items():
    peaks = [figures[2] for step in ("cold", "warm") for figures in steps.get(step, {}).values()]
    cells = [
        ratio(steps, "skopeo", "cold", 0),
        ratio(steps, "skopeo", "warm", 0),
        ratio(steps, "skopeo", "cold", 1),
        ratio(steps, "skopeo", "warm", 1),
        ratio(steps, "cold", "p2", 0),
        ratio(steps, "cold", "l2", 0),
        f"{max(peaks):.0f}" if peaks else "-",
    ]
    print("| " + " | ".join([corpus, *cells]) + " |")
END
