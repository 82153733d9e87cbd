#!/bin/sh
# Builds the images that the benchmark converts, as OCI layouts, from Debian packages. As root: it mounts overlays, and
# layers are what the kernel left in an upper directory. No container is started.
#
#   benches/corpus.sh DIR [medium] [large] [k8s]        default: all three
#
#   DIR/medium                     3 layers, about 300 MB: docker.io/library/medium:v1
#   DIR/large                      7 layers, more than 1 GB and 50,000 files, whiteouts, opaque directories: .../large:v1
#   DIR/large-zstd                 the same layers as zstd
#   DIR/large.docker-archive.tar   the same image as `docker save` writes it (needs skopeo)
#   DIR/k8s/NAME                   10 images that share bases, 18 different layers
#   DIR/SUMMARY.md                 what came out
#
# What is there is left alone. Package versions are those of the day, so compare figures of one corpus only.
# MIRROR=URL names another Debian mirror than debootstrap's own; http_proxy is honoured. KEEP_WORK=1 keeps DIR/.work.
set -eu

SUITE=bookworm
RECIPE=1 # raise it when the content changes: older corpora are built anew
# No entry is newer: two machines with the same packages make the same layers.
SOURCE_DATE_EPOCH=1735689600
export SOURCE_DATE_EPOCH LC_ALL=C
umask 022

die() {
    echo "corpus.sh: $*" >&2
    exit 1
}

say() {
    echo "corpus.sh: $*" >&2
}

usage() {
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    exit "$1"
}

case ${1:-} in
-h | --help) usage 0 ;;
'' | -*) usage 2 >&2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)

# All mounts live in a namespace of our own: however this ends, none stays behind.
if [ -z "${CORPUS_NAMESPACE:-}" ]; then
    [ "$(id -u)" = 0 ] || die "must be root: debootstrap and overlay mounts need it (the benchmark itself does too, for skopeo)"
    missing=
    for tool in debootstrap chroot mount unshare python3 pigz zstd skopeo; do
        command -v "$tool" >/dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] || die "missing:$missing (apt-get install debootstrap mount util-linux python3 pigz zstd skopeo)"
    CORPUS_NAMESPACE=1 exec unshare --mount --propagation private sh "$here/$(basename "$0")" "$@"
fi

mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
case $dir in *[:,\ ]*) die "$dir: a colon, comma or space in the name does not go with overlay options and oci: names" ;; esac
[ $# -gt 0 ] || set -- medium large k8s
for want; do
    case $want in medium | large | k8s) ;; *) die "no such corpus: $want (medium, large, k8s)" ;; esac
done

work=$dir/.work
log=$work/log
mkdir -p "$work" "$dir/.done"
cd "$work"

# ---------------------------------------------------------------------------------------------------------- layers

in_chroot() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
        SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH ${http_proxy:+http_proxy="$http_proxy"} chroot merged "$@" >>"$log" 2>&1 ||
        die "failed in the chroot: $*: $(tail -n 3 "$log")"
}

apt() {
    # No fsync per package: a crash here costs a rebuild, nothing more.
    in_chroot apt-get -y -qq -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io --no-install-recommends "$@"
}

# Package lists and downloads are mounted in, so that they are in no layer.
enter() { # LOWERDIRS UPPER
    mkdir -p merged overlay-work "$2" apt-lists apt-cache
    mount -t overlay -o "lowerdir=$1,upperdir=$2,workdir=overlay-work,redirect_dir=off,metacopy=off,index=off" overlay merged ||
        die "cannot mount an overlay below $dir: take a directory on a plain file system (ext4, xfs)"
    mount --bind apt-lists merged/var/lib/apt/lists
    mount --bind apt-cache merged/var/cache/apt
    mount --bind "$(readlink -f /etc/resolv.conf)" merged/etc/resolv.conf
    mount -t proc proc merged/proc
}

leave() {
    umount merged/proc merged/etc/resolv.conf merged/var/cache/apt merged/var/lib/apt/lists
    tidy merged
    umount merged
    rm -rf overlay-work
}

# What differs at each build, and what no image needs. In no layer is any of it, so this makes no whiteouts.
tidy() {
    find "$1/var/log" -type f -delete
    rm -rf "$1"/var/cache/ldconfig/aux-cache "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old "$1"/tmp/* "$1"/run/lock/* \
        "$1"/etc/passwd- "$1"/etc/group- "$1"/etc/shadow- "$1"/etc/gshadow- "$1"/etc/.pwd.lock "$1"/var/lib/dpkg/lock*
}

finish() { # NAME TREE [LOWER...]: tar it, compress it
    name=$1 tree=$2
    shift 2
    python3 "$here/oci-layout.py" layer "$tree" "$name.tar" "$@" >"$name.stat.part"
    # pigz, as most builders use a parallel gzip: independent blocks, one member.
    pigz -6 -n -p 2 -c "$name.tar" >"$name.tar.gz.part"
    mv "$name.tar.gz.part" "$name.tar.gz"
    mv "$name.stat.part" "$name.stat"
    say "layer $name: $(awk '{ printf "%.1f MB, %d entries, %d whiteouts, %d opaque directories", $1 / 1e6, $2, $3, $4 }' "$name.stat")"
}

# LAYER STACK: builds LAYER with the function of its name on top of STACK (colon-separated, top first).
layer() {
    if [ -e "$1.stat" ] && [ -d "up-$1" ]; then return 0; fi
    rm -rf "up-$1"
    enter "$2" "up-$1"
    "layer_$1"
    leave
    # shellcheck disable=SC2046 # one word per lower directory is meant
    finish "$1" "up-$1" $(echo "$2" | tr : ' ')
}

minbase() {
    if [ -e minbase.stat ] && [ -d base ]; then return 0; fi
    say "debootstrap $SUITE (log: $log)"
    rm -rf base
    # shellcheck disable=SC2086 # no mirror, no word
    debootstrap --variant=minbase "$SUITE" base ${MIRROR:-} >>"$log" 2>&1 || die "debootstrap failed: $(tail -n 3 "$log")"
    rm -rf base/dev base/var/cache/apt base/var/lib/apt/lists
    mkdir -p base/dev base/var/cache/apt/archives base/var/lib/apt/lists
    # Devices for the chroot: an overlay of its own gives them, images have none.
    : >base/etc/resolv.conf
    echo localhost >base/etc/hostname
    : >base/etc/machine-id
    tidy base
    finish minbase base
    mkdir -p devices/dev
    for node in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "devices/dev/${node%:*}" c 1 "${node#*:}" || die "cannot make device nodes below $dir"
    done
    enter devices:base up-scratch
    apt update
    leave
    rm -rf up-scratch
}

layer_python() {
    apt install python3 python3-pip python3-venv ca-certificates
}

layer_science() {
    apt install python3-numpy python3-lxml python3-cryptography
}

layer_gcc() {
    # iputils-ping has a file capability, git hard links, ca-certificates a name that is not ASCII.
    apt install gcc g++ make cmake git iputils-ping ca-certificates
}

layer_node() {
    apt install nodejs npm
}

layer_pip() {
    apt install python3-numpy python3-pandas python3-botocore python3-django
}

layer_headers() {
    apt install libboost1.81-dev
}

# Deleted: single files and whole directories of the layers below.
layer_prune() {
    in_chroot sh -euc '
        find / -xdev -name __pycache__ -prune -exec rm -rf {} +
        find /usr/share/nodejs -name "*.md" -delete
        find /usr/include/boost -name "*_fwd.hpp" -delete
        rm -rf /usr/share/man /usr/share/locale
        find /usr/share/doc -name changelog.Debian.gz -delete
        apt-get -y -qq purge make
    '
}

# Deleted and made anew: opaque directories, also nested ones, kinds that change, and files of ordinary users.
layer_app() {
    in_chroot sh -euc '
        rm -rf /usr/share/doc
        mkdir -p /usr/share/doc/bash /usr/share/doc/app
        echo "see the web site" | tee /usr/share/doc/bash/README >/usr/share/doc/app/README

        find /usr/share/nodejs -mindepth 1 -maxdepth 1 -type d -name "[a-f]*" | sort | head -n 60 | while read -r old; do
            rm -rf "$old"
            mkdir -p "$old/lib"
            echo "{}" >"$old/package.json"
            echo "module.exports = {}" >"$old/lib/index.js"
        done
        # Within a directory that stays: opaque below merged ones.
        contrib=/usr/lib/python3/dist-packages/django/contrib
        rm -rf $contrib/admin/locale $contrib/auth/locale
        mkdir -p $contrib/admin/locale/en/LC_MESSAGES $contrib/auth/locale
        echo "msgid" >$contrib/admin/locale/en/LC_MESSAGES/django.po

        # A directory becomes a link, a link a directory, a file a directory.
        rm -rf /usr/share/perl5/Git
        ln -s /srv/app /usr/share/perl5/Git
        rm /usr/bin/c++
        mkdir /usr/bin/c++
        echo x >/usr/bin/c++/x
        rm /etc/issue.net
        mkdir /etc/issue.net

        # What an application image brings along: many small files of an ordinary user, some with setuid or setgid.
        mkdir -p /srv/app/modules
        cp -a /usr/share/nodejs/[a-m]* /srv/app/modules
        chown -R www-data:www-data /srv/app
        chown 1000:1000 /srv/app
        chmod 2755 /srv/app/modules
        cp /usr/bin/id /srv/app/id
        chown 1000:33 /srv/app/id
        chmod 6755 /srv/app/id
    '
}

layer_net() {
    apt install iptables nftables ipset conntrack kmod iproute2
}

# ---------------------------------------------------------------------------------------------------------- images

image() { # LAYOUT REF SUFFIX LAYER...
    layout=$1 ref=$2 suffix=$3
    shift 3
    for layer; do
        set -- "$@" "$layer.tar=$layer.$suffix"
        shift
    done
    rm -rf "$layout.part"
    python3 "$here/oci-layout.py" image "$layout.part" "$ref" "$@"
    mkdir -p "$(dirname "$layout")"
    rm -rf "$layout"
    mv "$layout.part" "$layout"
}

# A line of the summary; a layer that several of the images have counts once.
summary() { # NAME LAYER...
    name=$1
    shift
    for layer; do
        echo "$layer $(cat "$layer.stat") $(wc -c <"$layer.tar.gz")"
    done | sort -u | awk -v name="$name" '{ n++; plain += $2; entries += $3; whiteouts += $4; opaque += $5; gz += $6 }
        END { printf "| %s | %d | %d | %.0f | %.0f | %d | %d |\n", name, n, entries, plain / 1e6, gz / 1e6, whiteouts, opaque }' \
        >"$dir/.done/$name.line"
}

is_done() {
    [ "$(cat "$dir/.done/$1" 2>/dev/null)" = "$RECIPE" ]
}

build_medium() {
    layer python devices:base
    layer science up-python:devices:base
    image "$dir/medium" docker.io/library/medium:v1 tar.gz minbase python science
    summary medium minbase python science
}

build_large() {
    stack=devices:base
    layers="gcc node pip headers prune app"
    for one in $layers; do
        layer "$one" "$stack"
        stack=up-$one:$stack
    done
    # shellcheck disable=SC2086
    set -- minbase $layers
    image "$dir/large" docker.io/library/large:v1 tar.gz "$@"
    summary large "$@"
    for one; do
        zstd -3 -T2 -q -f "$one.tar" -o "$one.tar.zst"
    done
    image "$dir/large-zstd" docker.io/library/large:v1 tar.zst "$@"
    rm -f "$dir/large.docker-archive.tar" "$dir/large.docker-archive.tar.part"
    # TMPDIR: skopeo inflates the layers there first.
    TMPDIR=$work skopeo copy --insecure-policy --quiet "oci:$dir/large:docker.io/library/large:v1" \
        "docker-archive:$dir/large.docker-archive.tar.part:docker.io/library/large:v1"
    mv "$dir/large.docker-archive.tar.part" "$dir/large.docker-archive.tar"
}

# NAME PACKAGE...: a layer of the packages' files alone, as images without a distribution have it.
tree() {
    name=$1
    shift
    [ ! -e "$name.stat" ] || return 0
    rm -rf "tree-$name" up-scratch
    mkdir -p "tree-$name" apt-cache/debs
    rm -f apt-cache/debs/*
    enter devices:base up-scratch
    mount --bind "tree-$name" merged/mnt
    in_chroot sh -euc 'cd /var/cache/apt/debs; apt-get -qq download "$@"; for deb in *.deb; do dpkg-deb -x "$deb" /mnt; done' sh "$@"
    umount merged/mnt
    leave
    rm -rf up-scratch
    (
        cd "tree-$name"
        rm -rf usr/share/doc usr/share/man usr/share/lintian usr/share/bash-completion lib/systemd etc/init.d
        # In the bases /bin, /lib and so on are links to /usr: a directory of that name in a layer would hide all in it.
        for old in bin sbin lib lib64; do
            if [ -d "$old" ]; then
                mkdir -p "usr/$old"
                cp -a "$old/." "usr/$old"
                rm -r "$old"
            fi
        done
    )
    finish "$name" "tree-$name"
    rm -rf "tree-$name"
}

build_k8s() {
    # Go programs of the size of the real ones stand in for them.
    tree static base-files netbase tzdata
    tree certs ca-certificates openssl
    layer net devices:base
    tree apiserver docker.io
    tree controller containerd
    tree scheduler rclone
    tree proxy prometheus-alertmanager
    tree etcd etcd-server
    tree etcdctl etcd-client
    tree dns caddy
    tree metrics prometheus
    tree kubectl kubernetes-client
    tree cni containernetworking-plugins
    tree routing frr
    tree exporter prometheus-node-exporter
    tree runtime crun runc
    tree pause catatonit

    rm -rf "$dir/k8s.part"
    all=
    while read -r ref layers; do
        name=${ref##*/}
        # shellcheck disable=SC2086
        image "$dir/k8s.part/${name%:*}" "$ref" tar.gz $layers
        all="$all $layers"
    done <<LIST
registry.k8s.io/pause:3.9 pause
registry.k8s.io/kube-apiserver:v1.30.0 static certs apiserver
registry.k8s.io/kube-controller-manager:v1.30.0 static certs controller
registry.k8s.io/kube-scheduler:v1.30.0 static certs scheduler
registry.k8s.io/kube-proxy:v1.30.0 minbase net proxy
registry.k8s.io/etcd:3.5.12-0 static etcd etcdctl
registry.k8s.io/coredns/coredns:v1.11.1 static certs dns
registry.k8s.io/metrics-server/metrics-server:v0.7.1 static certs metrics
docker.io/calico/node:v3.28.0 minbase net cni routing
quay.io/prometheus/node-tools:v1.8.0 minbase net runtime exporter kubectl
LIST
    rm -rf "$dir/k8s"
    mv "$dir/k8s.part" "$dir/k8s"
    # shellcheck disable=SC2086
    summary k8s $all
}

for want; do
    if is_done "$want"; then
        say "$want: there already"
        continue
    fi
    minbase
    "build_$want"
    echo "$RECIPE" >"$dir/.done/$want"
    say "$want: done"
done

{
    echo "| corpus | layers | entries | MB | MB gzip | whiteouts | opaque directories |"
    echo "|---|---|---|---|---|---|---|"
    cat "$dir"/.done/*.line
} >"$dir/SUMMARY.md"
cat "$dir/SUMMARY.md"

cd "$dir"
[ -n "${KEEP_WORK:-}" ] || rm -rf "$work"
