#!/usr/bin/env python3
"""Layer tars and OCI layouts for the benchmark, with nothing but the standard library.

  oci-layout.py layer TREE OUT.tar [LOWER...]   tar the upper directory of an overlay mount as an image layer
  oci-layout.py image LAYOUT REF TAR=BLOB...    write an image of these layers (bottom first) into an OCI layout
  oci-layout.py archive-layers ARCHIVE          print FILE@OFFSET+LENGTH of every layer in a docker-archive
  oci-layout.py item LAYOUT...                  print oci:LAYOUT:REF, as prepull and skopeo take it
  oci-layout.py blobs LAYOUT...                 print the path of every layer, each digest once

`layer` writes what image builders write: entries in directory order, whole seconds, a plain ustar header when every
field fits and else one PAX header, hard links, SCHILY.xattr.* and whiteouts in their `.wh.` form (the overlay driver's
0:0 character devices and its trusted.overlay.opaque never leave the machine). No entry is newer than SOURCE_DATE_EPOCH.
"""

import datetime
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import tarfile

BLOCK = 512
OPAQUE = "trusted.overlay.opaque"


def pad(length):
    return b"\0" * (-length % BLOCK)


def ustar(name, prefix, kind, st, size, mtime, link, dev):
    """One header block. The caller made sure that every field fits."""
    head = struct.pack(
        "100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x",
        name,
        b"%07o\0" % stat.S_IMODE(st.st_mode),
        b"%07o\0" % st.st_uid,
        b"%07o\0" % st.st_gid,
        b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        link,
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"%07o\0" % dev[0],
        b"%07o\0" % dev[1],
        prefix,
    )
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def pax_record(key, value):
    length = len(key) + len(value) + 3
    total = length + len(str(length))
    while len(str(total)) + length != total:
        total = len(str(total)) + length
    return b"%d %s=%s\n" % (total, key, value)


def is_ascii(text):
    return all(byte < 128 for byte in text)


class LayerWriter:
    def __init__(self, tree, out, lowers, epoch):
        self.tree, self.out, self.lowers, self.epoch = tree, out, lowers, epoch
        self.links = {}
        self.entries = self.whiteouts = self.opaques = 0

    def header(self, path, kind, st, size=0, link=b"", xattrs=()):
        mtime = min(int(st.st_mtime), self.epoch)
        dev = (0, 0)
        if kind in b"34":
            dev = (os.major(st.st_rdev), os.minor(st.st_rdev))
        name, prefix, records = path, b"", []
        if len(path) > 100 or not is_ascii(path):
            # A slash with at most 155 bytes before it and at most 100 after it saves the PAX header.
            cut = path.rfind(b"/", 0, 156)
            if is_ascii(path) and 0 < cut and 0 < len(path) - cut - 1 <= 100:
                prefix, name = path[:cut], path[cut + 1 :]
            else:
                records.append(pax_record(b"path", path))
                name = path[:100]
        if len(link) > 100 or not is_ascii(link):
            records.append(pax_record(b"linkpath", link))
            link = link[:100]
        for key, value in xattrs:
            records.append(pax_record(b"SCHILY.xattr." + key.encode(), value))
        if size >= 8**11 or max(st.st_uid, st.st_gid) >= 8**7:
            sys.exit(f"oci-layout.py: {os.fsdecode(path)}: a number that does not fit the header")
        if records:
            body = b"".join(sorted(records))
            folder, _, base = path.rstrip(b"/").rpartition(b"/")
            plain = os.stat_result((0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
            xname = (folder + b"/PaxHeaders.0/" + base)[-100:].lstrip(b"/")
            self.out.write(ustar(xname, b"", b"x", plain, len(body), 0, b"", (0, 0)))
            self.out.write(body + pad(len(body)))
        self.out.write(ustar(name, prefix, kind, st, size, mtime, link, dev))
        self.entries += 1

    def marker(self, path, st):
        """An empty regular file: a whiteout or an opaque marker, owned by root as builders write it."""
        fields = list(st)
        fields[stat.ST_MODE], fields[stat.ST_UID], fields[stat.ST_GID] = stat.S_IFREG, 0, 0
        self.header(path, b"0", os.stat_result(fields))

    def hides_something(self, path):
        """The overlay driver marks every directory that is new in a merged one; only these hide anything."""
        for lower in self.lowers:
            try:
                st = os.lstat(os.path.join(lower, path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            return stat.S_ISDIR(st.st_mode)
        return False

    def walk(self, relative):
        absolute = os.path.join(self.tree, relative)
        for entry in sorted(os.scandir(absolute), key=lambda e: e.name):
            path = os.path.join(relative, entry.name)
            full = os.path.join(absolute, entry.name)
            st = entry.stat(follow_symlinks=False)
            mode = st.st_mode
            if stat.S_ISSOCK(mode):
                continue
            if stat.S_ISCHR(mode) and st.st_rdev == 0:
                self.marker(os.path.join(relative, b".wh." + entry.name), st)
                self.whiteouts += 1
                continue
            names = os.listxattr(full, follow_symlinks=False)
            xattrs = [
                (key, os.getxattr(full, key, follow_symlinks=False))
                for key in sorted(names)
                if key == "security.capability" or key.startswith("user.")
            ]
            if stat.S_ISDIR(mode):
                self.header(path + b"/", b"5", st, xattrs=xattrs)
                opaque = OPAQUE in names and os.getxattr(full, OPAQUE) == b"y"
                if opaque and self.hides_something(path):
                    self.marker(os.path.join(path, b".wh..wh..opq"), st)
                    self.opaques += 1
                self.walk(path)
            elif st.st_nlink > 1 and st.st_ino in self.links:
                self.header(path, b"1", st, link=self.links[st.st_ino])
            elif stat.S_ISREG(mode):
                if st.st_nlink > 1:
                    self.links[st.st_ino] = path
                self.header(path, b"0", st, st.st_size, xattrs=xattrs)
                with open(full, "rb") as source:
                    shutil.copyfileobj(source, self.out, 1 << 20)
                self.out.write(pad(st.st_size))
            elif stat.S_ISLNK(mode):
                self.header(path, b"2", st, link=os.readlink(full))
            elif stat.S_ISFIFO(mode):
                self.header(path, b"6", st)
            else:
                self.header(path, b"3" if stat.S_ISCHR(mode) else b"4", st)


def layer(tree, target, *lowers):
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    with open(target + ".part", "wb", 1 << 20) as out:
        writer = LayerWriter(os.fsencode(tree), out, [os.fsencode(lower) for lower in lowers], epoch)
        writer.walk(b"")
        out.write(b"\0" * 2 * BLOCK)
    os.rename(target + ".part", target)
    size = os.path.getsize(target)
    print(f"{size}\t{writer.entries}\t{writer.whiteouts}\t{writer.opaques}")


def digest(path):
    state = hashlib.sha256()
    with open(path, "rb") as source:
        while chunk := source.read(1 << 20):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def write_blob(layout, data):
    name = hashlib.sha256(data).hexdigest()
    with open(os.path.join(layout, "blobs/sha256", name), "wb") as out:
        out.write(data)
    return {"digest": "sha256:" + name, "size": len(data)}


def media_type(path):
    with open(path, "rb") as source:
        magic = source.read(4)
    kind = "application/vnd.oci.image.layer.v1.tar"
    if magic[:2] == b"\x1f\x8b":
        return kind + "+gzip"
    return kind + "+zstd" if magic == b"\x28\xb5\x2f\xfd" else kind


def image(layout, ref, *pairs):
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    blobs = os.path.join(layout, "blobs/sha256")
    os.makedirs(blobs, exist_ok=True)
    layers, diff_ids, history = [], [], []
    for pair in pairs:
        tar, _, blob = pair.partition("=")
        name = digest(blob)
        target = os.path.join(blobs, name[7:])
        if not os.path.exists(target):
            # A link: layers that images share are one file, in the page cache as on the disk.
            os.link(blob, target)
        layers.append({"mediaType": media_type(blob), "digest": name, "size": os.path.getsize(blob)})
        diff_ids.append(digest(tar))
        what = os.path.basename(tar).removesuffix(".tar")
        history.append({"created": created, "created_by": f"COPY {what} / # benchmark"})
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "created": created,
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }
    # A comment in the config keeps images of the same layers apart.
    config["history"][-1]["comment"] = ref
    described = write_blob(layout, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
        "layers": layers,
    }
    described = write_blob(layout, json.dumps(manifest).encode())
    entry = {
        "mediaType": manifest["mediaType"],
        **described,
        "annotations": {"org.opencontainers.image.ref.name": ref},
    }
    with open(os.path.join(layout, "index.json"), "w", encoding="utf-8") as out:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, out)
    with open(os.path.join(layout, "oci-layout"), "w", encoding="utf-8") as out:
        json.dump({"imageLayoutVersion": "1.0.0"}, out)


def read_json(path):
    with open(path, encoding="utf-8") as source:
        return json.load(source)


def item(*layouts):
    for layout in layouts:
        for entry in read_json(os.path.join(layout, "index.json"))["manifests"]:
            print(f"oci:{layout}:{entry['annotations']['org.opencontainers.image.ref.name']}")


def blobs(*layouts):
    seen = set()
    for layout in layouts:
        for entry in read_json(os.path.join(layout, "index.json"))["manifests"]:
            path = os.path.join(layout, "blobs", *entry["digest"].split(":"))
            for one in read_json(path)["layers"]:
                if one["digest"] not in seen:
                    seen.add(one["digest"])
                    print(os.path.join(layout, "blobs", *one["digest"].split(":")))


def archive_layers(path):
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive}
        manifest = json.load(archive.extractfile("manifest.json"))
        for name in dict.fromkeys(name for item in manifest for name in item["Layers"]):
            member = members[name]
            if member.issym():
                member = members[os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))]
            print(f"{path}@{member.offset_data}+{member.size}")


def main():
    commands = {"layer": layer, "image": image, "item": item, "blobs": blobs, "archive-layers": archive_layers}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])


main()
