"""What the tests need from the machine they run on, and how to get it."""

import lzma
import os
import pathlib
import shutil
import subprocess
import sys

# Programs, and the Debian packages that have them.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "genisoimage": "genisoimage",
    "mksquashfs": "squashfs-tools",
    "mke2fs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "setpriv": "util-linux",
    "tar": "tar",
    "ldd": "libc-bin",
}
# Drivers, each after those it needs; what the kernel has built in is left out.
MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "isofs", "squashfs", "overlay", "fuse"]


class Missing(Exception):
    """Something that is not there and cannot be had."""


def run(*command, **keys):
    """Runs a command that must succeed."""
    result = subprocess.run([str(word) for word in command], capture_output=True, **keys)
    if result.returncode:
        output = (result.stderr or result.stdout).decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(str(word) for word in command)}: status {result.returncode}\n{output}")
    return result.stdout


def ensure_programs():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = lambda: {program: package for program, package in PROGRAMS.items() if not shutil.which(program)}
    packages = sorted(set(missing().values()))
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    may = not sudo or shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True).returncode == 0
    if packages and may and shutil.which("apt-get"):
        print("installing", *packages, file=sys.stderr)
        apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        subprocess.run([*apt, "update"], stdout=sys.stderr)
        subprocess.run([*apt, "install", "-y", "--no-install-recommends", *packages], stdout=sys.stderr)
    if missing():
        programs, packages = " ".join(missing()), " ".join(sorted(set(missing().values())))
        raise Missing(f"missing: {programs}\ninstall first, on Debian and Ubuntu: apt-get install {packages}")


def unpacked(cache, package, options=()):
    """The contents of a Debian package, fetched once with these options of apt-get; nothing is installed."""
    target = cache / package
    if target.is_dir():
        return target
    partial = cache / f"{package}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fetch = lambda: subprocess.run(["apt-get", "-q", *options, "download", package], cwd=partial, capture_output=True, text=True)
    result = fetch()
    if result.returncode and os.geteuid() == 0:
        subprocess.run(["apt-get", "-qq", "update"], stdout=sys.stderr)
        result = fetch()
    files = list(partial.glob("*.deb"))
    if result.returncode or len(files) != 1:
        shutil.rmtree(partial)
        raise Missing(f"missing: Debian package {package}\napt-get download {package}: {result.stderr.strip()}")
    run("dpkg-deb", "-x", files[0], partial)
    files[0].unlink()
    partial.rename(target)
    return target


def kernel(cache, options=()):
    """Newest packaged kernel: (image, directory of its modules)."""
    for meta in ("linux-image-amd64", "linux-image-virtual"):
        show = subprocess.run(["apt-cache", *options, "depends", meta], capture_output=True, text=True).stdout
        names = [line.split()[-1] for line in show.splitlines() if line.strip().startswith("Depends: linux-image-")]
        if names:
            root = unpacked(cache, names[0], options)
            image = next((root / "boot").glob("vmlinuz-*"))
            modules = root
            if not list(root.glob("**/lib/modules/*/kernel")):
                # Ubuntu has them in a package of their own.
                modules = unpacked(cache, names[0].replace("linux-image-", "linux-modules-"), options)
            return image, next(path.parent for path in modules.glob("**/lib/modules/*/kernel"))
    # Without package lists, what an earlier run has fetched.
    for image in cache.glob("linux-image-*/boot/vmlinuz-*"):
        for path in cache.glob("linux-*/**/lib/modules/*/kernel"):
            return image, path.parent
    raise Missing("missing: a kernel\napt-cache knows neither linux-image-amd64 nor linux-image-virtual: apt-get update")


def busybox(cache):
    return next(path for path in unpacked(cache, "busybox-static").glob("**/bin/busybox") if path.is_file())


def module_data(path):
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return run("zstd", "-dcq", path)
    return path.read_bytes()


def modules(directory):
    """The drivers' files in the order in which the kernel takes them: {file name: bytes}."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in directory.glob("kernel/**/*.ko*")}
    built_in = {
        pathlib.PurePath(line).stem.replace("-", "_") for line in (directory / "modules.builtin").read_text().splitlines()
    }
    wanted = {}

    def add(name):
        name = name.replace("-", "_")
        if name in built_in or f"{name}.ko" in wanted:
            return
        if name not in files:
            raise Missing(f"missing: driver {name} in {directory}")
        data = module_data(files[name])
        for record in data.split(b"\0"):
            if record.startswith(b"depends="):
                for other in record[len(b"depends=") :].decode().split(","):
                    if other:
                        add(other)
        wanted[f"{name}.ko"] = data

    for name in MODULES:
        add(name)
    return wanted


def libraries(program):
    """The shared libraries of a program, at the paths where it looks for them."""
    words = run("ldd", program).decode().split()
    return [pathlib.Path(word) for word in words if word.startswith("/")]
