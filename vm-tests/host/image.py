"""Makes an OCI layout of images that share layers and have of everything that an unpacker can get wrong."""

import gzip
import hashlib
import io
import json
import struct
import tarfile

TIME = 1704164645  # 2024-01-02T03:04:05Z
CREATED = "2024-01-02T03:04:05Z"
FILES = 4000
# struct vfs_cap_data: revision 2, effective; permitted: CAP_NET_BIND_SERVICE.
CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
TYPES = {"l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "p": tarfile.FIFOTYPE}


def program(text):
    """A static ELF file that writes `text` and ends; with an argument it waits for its death instead."""
    code = bytes.fromhex("b801000000 bf01000000 488d352a000000") + b"\xba" + struct.pack("<I", len(text))
    # syscall; cmp qword [rsp], 1; jne wait; exit(0); wait: pause(); jmp wait
    code += bytes.fromhex("0f05 48833c2401 7509 b83c000000 31ff 0f05 b822000000 0f05 ebf7")
    code = code.ljust(59, b"\x90")
    base, head = 0x400000, 64 + 56
    size = head + len(code) + len(text)
    elf = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code + text


class Layer:
    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=tarfile.PAX_FORMAT)
        self.count = 0
        self.times = {}

    def add(self, name, mode=None, owner=(0, 0), data=b"", kind="", link="", device=(0, 0), xattrs=None, fraction=0):
        info = tarfile.TarInfo(name)
        directory = name.endswith("/")
        info.type = tarfile.DIRTYPE if directory else TYPES.get(kind, tarfile.REGTYPE)
        # Linux has no symbolic link of another mode.
        info.mode = mode if mode is not None else 0o755 if directory else 0o777 if kind == "l" else 0o644
        info.uid, info.gid = owner
        info.mtime = self.times.get(link, TIME + self.count % 1000) if kind == "h" else TIME + self.count % 1000
        info.mtime += fraction
        self.times[name] = info.mtime
        info.size, info.linkname = len(data), link
        info.devmajor, info.devminor = device
        info.pax_headers = {"SCHILY.xattr." + key: value.decode() for key, value in (xattrs or {}).items()}
        self.tar.addfile(info, io.BytesIO(data))
        self.count += 1
        return self

    def done(self):
        self.tar.close()
        return self.bytes.getvalue()


def many():
    """Thousands of files of many users: what the restore script must be quick at."""
    layer = Layer()
    add = layer.add
    add("home/")
    for user in range(8):
        add(f"home/{user}/", 0o750, (1000 + user, 1000))
    for number in range(FILES):
        user, group = 1000 + number % 8, 1000 + number % 3
        add(f"home/{number % 8}/file{number}", 0o640, (user, group), b"%d\n" % number)
    return layer.done()


def odd(devices=True):
    """Of everything a little, and what the layers above change."""
    layer = Layer()
    add = layer.add
    add("./", 0o755)
    # Special bits, owners that are not root, owners that octal cannot hold.
    add("bin/")
    for mode in (0o4755, 0o2755, 0o6755, 0o6711, 0o1755, 0o4000):
        add(f"bin/root-{mode:o}", mode, (0, 0), b"root's\n")
        add(f"bin/other-{mode:o}", mode, (1000, 8), b"another's\n")
        add(f"bin/group-{mode:o}", mode, (0, 8), b"a group's\n")
    add("shared/", 0o2775, (0, 50)).add("tmp/", 0o1777).add("drop/", 0o3730, (1000, 50))
    for owner in ((0o7777777, 1), (0o10000000, 1), (1, 4000000000), (4294967294, 65534)):
        add(f"bin/owner-{owner[0]}-{owner[1]}", 0o4755, owner, b"far\n")
    add("private/", 0, (77, 77)).add("private/file", 0, (77, 78), b"none may\n")
    # Links and devices.
    add("links/", 0o755, (5, 5))
    add("links/a", 0o4755, (1000, 1000), b"linked\n").add("links/b", 0o4755, (1000, 1000), kind="h", link="links/a")
    add("links/c", 0o4755, (1000, 1000), kind="h", link="links/a")
    add("links/relative", 0o777, (1000, 1000), kind="l", link="../bin/root-4755")
    add("links/absolute", 0o777, (1, 2), kind="l", link="/home/0/file0").add("links/dangling", kind="l", link="nowhere")
    add("links/up", kind="l", link="../../../../../../etc/init.d")
    add("links/l1", 0o777, (9, 9), kind="l", link="relative").add("links/l2", 0o777, (9, 9), kind="h", link="links/l1")
    add("dev/").add("dev/pipe", 0o600, (3, 3), kind="p")
    if devices:
        add("dev/null", 0o666, (0, 0), kind="c", device=(1, 3)).add("dev/tty", 0o620, (5, 5), kind="c", device=(4, 300))
        add("dev/loop", 0o660, (0, 6), kind="b", device=(7, 1))
    # Names.
    long = "names/" + "d" * 120 + "/"
    add("names/").add(long).add(long + "e" * 120 + "/").add(long + "e" * 120 + "/" + "f" * 200, 0o644, (6, 6), b"long\n")
    for name in ("with space", "new\nline", "-dash", "back\\slash", "quo'te\"s", "$(reboot)", "*", "größe", "tab\t", "# file: x"):
        add(f"names/{name}", 0o4750, (1234, 4321), name.encode())
    add("names/to-long", 0o777, (1, 1), kind="l", link="/" + "t" * 150)
    add("names/" + "l" * 110, kind="l", link=long + "e" * 120)
    # Attributes.
    add("bin/capable", 0o755, (0, 0), b"may bind\n", xattrs={"security.capability": CAPABILITY})
    add("bin/capable-other", 0o755, (7, 7), b"may bind\n", xattrs={"security.capability": CAPABILITY, "user.note": b"hi"})
    # Fractions of a second that a float can hold, on what has none of busybox tar's other troubles, and on what has.
    add("exact/", fraction=0.5).add("exact/file", data=b"dated\n", fraction=0.25)
    add("exact/link", kind="l", link="/exact/file", fraction=0.125).add("bin/exact", kind="h", link="exact/file")
    add("able/", 0o750, (7, 7), xattrs={"user.note": b"of a directory"})
    add("able/set", 0o4755, (7, 7), b"may bind\n", xattrs={"security.capability": CAPABILITY})
    # For the layers above.
    add("gone/").add("gone/file", data=b"1").add("gone/dir/").add("gone/dir/file", data=b"2").add("gone/link", kind="l", link="file")
    for name in ("opaque", "nested", "again", "twice"):
        add(f"{name}/").add(f"{name}/old", 0o644, (1, 1), b"old").add(f"{name}/both", data=b"old")
        add(f"{name}/sub/").add(f"{name}/sub/old", data=b"old").add(f"{name}/sub/deep/").add(f"{name}/sub/deep/old", data=b"old")
    add("swap/").add("swap/file", data=b"f").add("swap/dir/").add("swap/dir/inside", data=b"d").add("swap/link", kind="l", link="dir")
    add("chowned/", 0o755).add("chowned/inside", data=b"stays\n")
    # A directory that comes after what is in it.
    add("late/file", 0o600, (8, 8), b"early\n").add("late/", 0o750, (8, 8))
    add("big", 0o600, (10, 10), bytes(range(256)) * 8192).add("empty")
    return layer.done()


def middle():
    layer = Layer()
    add = layer.add
    add("gone/").add("gone/.wh.file").add("gone/.wh.dir").add("gone/.wh.link")
    add("opaque/", 0o750, (20, 20)).add("opaque/.wh..wh..opq").add("opaque/new", 0o4755, (21, 21), b"new")
    # The directory in an opaque one must not let its namesake below shine through.
    add("nested/").add("nested/.wh..wh..opq").add("nested/both", data=b"new").add("nested/sub/").add("nested/sub/new", data=b"n")
    add("nested/sub/deep/", 0o700, (22, 22))
    add("again/.wh..wh..opq").add("again/", 0o711)
    add("twice/").add("twice/sub/").add("twice/sub/.wh..wh..opq").add("twice/sub/middle", data=b"m")
    add("swap/").add("swap/file/").add("swap/file/now", data=b"a directory").add("swap/dir", 0o6755, (30, 31), b"a file")
    add("swap/link/").add("swap/link/inside", data=b"no link")
    add("chowned/", 0o2770, (40, 41))
    add("home/").add("home/0/", 0o700, (1000, 1000))
    for number in range(0, FILES, 80):
        add(f"home/0/.wh.file{number}")
    return layer.done()


def single():
    layer = Layer().add("only/", 0o751, (1, 2)).add("only/file", 0o2755, (3, 4), b"one layer\n")
    return layer.add("only/top", 0o755, (3, 4), program(said("single").encode() + b"\n")).done()


def said(name):
    """What an image's own program says."""
    return f"{name} has run"


def top(name):
    layer = Layer()
    add = layer.add
    add("gone/", 0o755, (3, 3)).add("gone/file", 0o600, (1000, 1000), b"back\n")
    add("again/").add("again/old", data=b"back").add("again/sub/").add("again/sub/back", data=b"b")
    add("twice/").add("twice/.wh..wh..opq").add("twice/sub/").add("twice/sub/top", data=b"t")
    add("bin/").add("bin/.wh.capable").add("bin/top", 0o4755, (1000, 0), program(said(name).encode() + b"\n"))
    return layer.done()


def write(layout, devices=True):
    """`devices`: whether any image has some."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(data)}

    def image(name, layers, program="/bin/top"):
        config = {
            "created": CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [program]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest() for data in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", json.dumps(config).encode()),
            "layers": [blob("layer.v1.tar+gzip", gzip.compress(data, 1, mtime=0)) for data in layers],
        }
        entry = blob("manifest.v1+json", json.dumps(manifest).encode())
        return {**entry, "annotations": {"org.opencontainers.image.ref.name": name}}

    entries = [
        image("all", [odd(devices), many(), middle(), top("all")]),
        image("other", [odd(devices), top("other")]),
        image("single", [single()], "/only/top"),
    ]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layout
