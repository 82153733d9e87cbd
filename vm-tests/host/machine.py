"""Virtual machines: what they boot from, and how they run."""

import pathlib
import shutil
import subprocess
import tempfile
import time

from host import tools

GUEST = pathlib.Path(__file__).resolve().parent.parent / "guest"
QEMU = ["qemu-system-x86_64", "-machine", "pc", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]


def accelerator():
    """KVM when it does not only look as if it worked: a boot sector must reach its end in time."""
    with tempfile.TemporaryDirectory() as directory:
        sector = pathlib.Path(directory) / "sector"
        # mov al, 0x10; out 0xf4, al; hlt
        sector.write_bytes(bytes.fromhex("b010e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa")
        command = [*QEMU, "-accel", "kvm", "-m", "16", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        command += ["-drive", f"file={sector},format=raw,if=floppy", "-boot", "a"]
        try:
            status = subprocess.run(command, capture_output=True, timeout=3).returncode
        except subprocess.TimeoutExpired:
            return "tcg"
    return "kvm" if status == 0x10 << 1 | 1 else "tcg"


def cpio(entries):
    """A cpio archive as the kernel unpacks it: [(name, mode, device, bytes)]."""
    out = bytearray()
    for number, (name, mode, device, data) in enumerate([*entries, ("TRAILER!!!", 0, (0, 0), b"")], 1):
        name = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(busybox, modules):
    entries = [(name, 0o40755, (0, 0), b"") for name in ("bin", "dev", "modules")]
    entries += [
        ("dev/console", 0o20600, (5, 1), b""),
        ("bin/busybox", 0o100755, (0, 0), busybox.read_bytes()),
        ("init", 0o100755, (0, 0), (GUEST / "initramfs").read_bytes()),
        ("modules/order", 0o100644, (0, 0), "".join(name + "\n" for name in modules).encode()),
    ]
    entries += [(f"modules/{name}", 0o100644, (0, 0), data) for name, data in modules.items()]
    return cpio(entries)


def root_tree(target, busybox, base=None):
    """What a machine's root disk has before its first boot, over what is in `base`."""
    if base:
        tools.run("cp", "-a", "-l", f"{base}/.", target)
    files = {"bin/busybox": busybox, "init": GUEST / "init"}
    files |= {f"judge/{path.name}": path for path in GUEST.iterdir() if path.name not in ("init", "initramfs")}
    # The judges' own GNU tar, which is also --unpacker gnu; with libraries of its own, since the base's can be older.
    gnu = pathlib.Path(shutil.which("tar"))
    files["judge/lib/tar"] = gnu
    libraries = tools.libraries(gnu)
    files |= {f"judge/lib/{library.name}": library for library in libraries}
    loader = next(library.name for library in libraries if library.name.startswith("ld-"))
    for name, source in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(0o755)
    wrapper = target / "judge/tar"
    wrapper.write_text(f'#!/bin/busybox sh\nexec /judge/lib/{loader} --library-path /judge/lib /judge/lib/tar "$@"\n')
    wrapper.chmod(0o755)
    for name in ("dev", "etc/init.d", "proc", "sys", "tmp", "run", "mnt", "var"):
        (target / name).mkdir(parents=True, exist_ok=True)
    return target


def ext4(path, megabytes, tree=None):
    content = ["-d", tree] if tree else []
    options = "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"
    tools.run("mke2fs", "-q", "-F", "-t", "ext4", "-E", options, *content, path, f"{megabytes}M")
    return path


def sparse(path, megabytes):
    """An empty disk."""
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    return path


class Boot:
    """What a machine said."""

    def __init__(self, text, ended, seconds):
        self.text, self.ended, self.seconds = text, ended, seconds
        lines = [line[3:] for line in text.splitlines() if line.startswith("@@ ")]
        self.failures = [line[len("fail ") :] for line in lines if line.startswith("fail ")]
        self.times, self.up, self.said = {}, 0.0, {}
        for word, *rest in (line.split() for line in lines if line.strip()):
            if word == "time":
                self.times[rest[0]] = float(rest[2]) - float(rest[1])
            elif word == "boot":
                self.up = float(rest[1])
            else:
                self.said.setdefault(word, []).append(rest)

    def part(self, name):
        """What it said after "@@ part NAME", until the next part."""
        parts = self.text.split("@@ part ")[1:]
        return Boot("".join(part.partition("\n")[2] for part in parts if part.split("\n")[0] == name), self.ended, self.seconds)

    def all(self, word):
        """The lines that begin with `word`, each as the words after it."""
        return self.said.get(word, [])


class Machines:
    def __init__(self, kernel, initrd, accel):
        self.kernel, self.initrd, self.accel = kernel, initrd, accel

    def boot(self, way, judge, disks, console, limit):
        """Boots with `disks`, (path, read only) from /dev/vda on, until the machine is done; then its power is cut."""
        # No machine outlives a run that is killed.
        command = ["setpriv", "--pdeathsig", "KILL", *QEMU, "-accel", self.accel, "-smp", "1", "-m", "768", "-serial", f"file:{console}"]
        command += ["-kernel", self.kernel, "-initrd", self.initrd]
        quick = "quiet mitigations=off nokaslr random.trust_cpu=on"
        if self.accel == "tcg":
            # On a busy host the kernel's check of its timer can find none, and the clock whose speed it measures goes wrong.
            quick += " no_timer_check clocksource=acpi_pm"
        command += ["-append", f"console=ttyS0 panic=-1 {quick} vmtest={way} vmjudge={judge}"]
        for path, read_only in disks:
            more = ",readonly=on" if read_only else ",cache=unsafe"
            command += ["-drive", f"file={path},if=virtio,format=raw{more}"]
        begin = time.monotonic()
        console.write_bytes(b"")
        said = console.with_suffix(".qemu")
        with open(said, "wb") as output:
            qemu = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            try:
                while True:
                    over = qemu.poll() is not None or time.monotonic() - begin > limit
                    text = console.read_bytes().decode(errors="replace").replace("\r", "")
                    if "@@ end\n" in text or over:
                        break
                    time.sleep(0.1)
            finally:
                qemu.kill()
                qemu.wait()
        return Boot(text + said.read_text(errors="replace"), "@@ end\n" in text, time.monotonic() - begin)
