"""A plain model of file trees, of image layers stacked to one, and of how two trees differ."""

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile

XATTR = "SCHILY.xattr."
KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


@dataclasses.dataclass(eq=False)
class Inode:
    """All that a file has but its names."""

    kind: str
    mode: int
    owner: str
    seconds: float
    device: str
    target: str
    content: str
    xattrs: dict

    @classmethod
    def of(cls, info, tar):
        kind = KINDS[info.type]
        content = hashlib.sha256(tar.extractfile(info).read()).hexdigest() if kind == "file" else ""
        xattrs = {
            key[len(XATTR) :]: value.encode("utf-8", "surrogateescape")
            for key, value in info.pax_headers.items()
            if key.startswith(XATTR)
        }
        return cls(
            kind=kind,
            mode=info.mode & 0o7777 if kind != "symlink" else 0,
            owner=f"{info.uid}:{info.gid}",
            seconds=info.mtime,
            device=f"{info.devmajor}:{info.devminor}" if kind in ("char", "block") else "",
            target=info.linkname if kind == "symlink" else "",
            content=content,
            xattrs=xattrs,
        )


def clean(name):
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def read(file, prefix=""):
    """The tree in a tar archive, below `prefix`: {path: Inode}."""
    tree = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            path = clean(info.name)
            tree[path] = tree[clean(info.linkname)] if info.islnk() else Inode.of(info, tar)
    if not prefix:
        return tree
    below = {path[len(prefix) + 1 :]: inode for path, inode in tree.items() if path.startswith(prefix + "/")}
    return {**below, "": tree[prefix]} if prefix in tree else below


def remove(tree, path, keep=()):
    """Removes `path` and all below it but what is in `keep`."""
    for name in [name for name in tree if (name == path or name.startswith(path + "/")) and name not in keep]:
        del tree[name]


def stack(tree, layer):
    """Applies a layer (a tar archive's bytes) to a tree, as the OCI image specification says."""
    new = {}
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as tar:
        for info in tar:
            path = clean(info.name)
            parent, _, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                for lower in [lower for lower in tree if lower.startswith(parent + "/") and lower not in new]:
                    del tree[lower]
                continue
            if name.startswith(".wh."):
                remove(tree, clean(f"{parent}/{name[4:]}"), new)
                continue
            inode = new[clean(info.linkname)] if info.islnk() else Inode.of(info, tar)
            old = tree.get(path)
            if old and not (old.kind == inode.kind == "directory"):
                remove(tree, path)
            tree[path] = new[path] = inode


def images(layout):
    """The images in an OCI layout: {name: (id, diff_ids, merged tree)}."""
    blob = lambda descriptor: (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    found = {}
    for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
        manifest = json.loads(blob(entry))
        tree = {}
        for layer in manifest["layers"]:
            data = blob(layer)
            stack(tree, gzip.decompress(data) if layer["mediaType"].endswith("+gzip") else data)
        # containers/storage makes a layer's root so, and skips an entry "./" (archive.go, Unpack).
        tree[""] = Inode("directory", 0o555, "0:0", 0, "", "", "", {})
        diff_ids = json.loads(blob(manifest["config"]))["rootfs"]["diff_ids"]
        identity = manifest["config"]["digest"].removeprefix("sha256:")
        found[entry["annotations"]["org.opencontainers.image.ref.name"]] = (identity, diff_ids, tree)
    return found


def layer_id(diff_ids):
    """The id that containers/image gives to the top layer (storage_dest.go): of more than one, a hash over the chain."""
    top, *rest = (diff_id.removeprefix("sha256:") for diff_id in diff_ids)
    for diff_id in rest:
        top = hashlib.sha256(f"{top}+{diff_id}".encode()).hexdigest()
    return top


def hard_links(tree):
    groups = {}
    for path, inode in tree.items():
        groups.setdefault(id(inode), []).append(path)
    return {path: sorted(group) for group in groups.values() if len(group) > 1 for path in group}


def dated_late(tree):
    """Directories whose time busybox tar does not keep: it makes hard links, and symbolic links that are absolute or have ".."
    in them, last of all (libarchive/unsafe_symlink_target.c), long after the directory's header."""
    late = lambda inode: inode.kind == "symlink" and (inode.target.startswith("/") or ".." in inode.target)
    linked = hard_links(tree)
    return {path.rpartition("/")[0] for path, inode in tree.items() if late(inode) or path in linked}


def differences(truth, seen, busybox=False, xattrs=True, mksquashfs=False, made=frozenset()):
    """One line for everything in which `seen` is not `truth`, but for what these programs cannot do:
    `busybox`: keep certain times; `mksquashfs`: keep fractions of a second, and the / in front of a symbolic link's long
    target (version 4.5 -tar).
    `made`: paths that may have been made, and touched."""
    lines = [f"{path!r}: is missing" for path in truth if path not in seen]
    lines += [f"{path!r}: must not be there" for path in seen if path not in truth and path not in made]
    links, seen_links = hard_links(truth), hard_links(seen)
    undated = (dated_late(truth) if busybox else set()) | made
    for path in sorted(truth.keys() & seen.keys()):
        want, got = truth[path], seen[path]
        fields = ["kind", "mode", "owner", "device", "target", "content"]
        if path and path not in undated and not (busybox and want.kind == "symlink"):
            fields.append("seconds")
        if xattrs:
            fields.append("xattrs")
        for field in fields:
            a, b = getattr(want, field), getattr(got, field)
            if (busybox or mksquashfs) and field == "seconds":
                a, b = int(a), int(b)
            if mksquashfs and field == "target" and len(a) > 100:
                a, b = a.lstrip("/"), b.lstrip("/")
            if a != b:
                show = oct if field == "mode" else repr
                lines.append(f"{path!r}: {field} is {show(b)}, not {show(a)}")
        if links.get(path) != seen_links.get(path):
            lines.append(f"{path!r}: linked with {seen_links.get(path)}, not {links.get(path)}")
    return lines
