"""Container programs for a machine's root: podman out of Debian's packages, CRI-O out of a directory."""

import os
import pathlib
import shutil
import subprocess
import sys

from host import tools

PODMAN = ["podman", "crun"]
# What makes a machine with systemd, its users and sudo of it.
SYSTEMD = ["base-passwd", "libpam-modules", "sudo", "systemd"]
# apt takes these for installed, and leaves out what only they need.
WITHOUT = """adduser containernetworking-plugins debconf dmsetup dpkg gnupg gpg gpgv init-system-helpers iptables libpam-modules
    nftables passwd perl pinentry-curses systemd tar uidmap""".split()
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What is large, and no program here reads.
UNREAD = ["lib/*/gconv", "libexec/podman/podman-testing", "share/bash-completion", "share/doc", "share/locale", "share/man"]
# What CRIO_DIR must have; of the runtimes one is enough.
CRIO = ["crio", "conmon", "crictl", "pinns"]
RUNTIMES = ["crun", "runc"]


def mirror():
    """Where this machine has Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [line.split()[2] for line in lines if line.startswith("Debian Debian ")]
    if not found:
        raise tools.Missing("missing: a source of Debian's packages; apt-get indextargets names none")
    return found[0]


class Apt:
    """apt as on a machine that has nothing but WITHOUT, and of that nothing that is `wanted`. `release`: of Debian, instead of
    the one this machine uses."""

    def __init__(self, cache, release=None, wanted=()):
        directory = cache / f"apt-{release or 'own'}"
        directory.mkdir(parents=True, exist_ok=True)
        self.release = release
        self.without = [name for name in WITHOUT if name not in wanted]
        installed = directory / "status"
        fields = "Status: install ok installed\nVersion: 9:999\nArchitecture: amd64\nMulti-Arch: allowed\nDescription: none\n"
        installed.write_text("".join(f"Package: {name}\n{fields}\n" for name in self.without))
        self.options = ["-q", "-o", f"Dir::State::status={installed}", "-o", "APT::Install-Recommends=false"]
        self.options += ["-o", "Debug::NoLocking=true", "-o", "Acquire::Languages=none"]
        if release:
            source = directory / "sources.list"
            source.write_text(f"deb [arch=amd64 signed-by={KEYS}] {mirror()} {release} main\n")
            for name in ("lists/partial", "cache/archives/partial"):
                (directory / name).mkdir(parents=True, exist_ok=True)
            self.options += ["-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=/dev/null"]
            self.options += ["-o", f"Dir::State::lists={directory}/lists", "-o", f"Dir::Cache={directory}/cache"]

    def get(self, *command, cwd=None):
        return subprocess.run(["apt-get", *self.options, *command], capture_output=True, text=True, cwd=cwd)

    def update(self):
        if self.release or os.geteuid() == 0:
            options = self.options if self.release else ["-qq"]
            subprocess.run(["apt-get", *options, "update"], stdout=sys.stderr)

    def kernel(self, cache):
        """The newest kernel of the release, as `tools.kernel`."""
        target = cache / f"kernel-{self.release}"
        try:
            return tools.kernel(target, self.options)
        except tools.Missing:
            # No lists yet.
            self.update()
            return tools.kernel(target, self.options)

    def closure(self, packages):
        result = self.get("--simulate", "install", *packages)
        names = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("Inst ")]
        return [name for name in names if name not in self.without], result.stderr

    def unpack(self, packages, target):
        """Packages and all they need, into `target`, whose bin, lib and sbin are those of usr."""
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        for attempt in range(2):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            names, said = self.closure(packages)
            if names:
                result = self.get("download", *names, cwd=partial)
                said = result.stderr
                files = sorted(partial.glob("*.deb"))
                if not result.returncode and len(files) == len(names):
                    break
            if not attempt:
                # No lists yet, or lists of a time before the packages' newest versions.
                self.update()
        else:
            shutil.rmtree(partial)
            raise tools.Missing(f"missing: Debian packages of {' '.join(packages)} {self.release or ''}\n{said.strip()}")
        for name in ("bin", "lib", "lib64", "sbin"):
            (partial / "usr" / name).mkdir(parents=True)
            (partial / name).symlink_to(f"usr/{name}")
        for file in files:
            # dpkg-deb -x would make directories of the links.
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as archive:
                owner = ["--no-same-owner", "--keep-directory-symlink"]
                tools.run("tar", "-C", partial, *owner, "-xf", "-", stdin=archive.stdout)
            if archive.returncode:
                raise RuntimeError(f"{file}: dpkg-deb: status {archive.returncode}")
            file.unlink()
        for path in [path for pattern in UNREAD for path in (partial / "usr").glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        partial.rename(target)


def base(cache, work, name):
    """What a root has besides busybox: for "podman-RELEASE" and "systemd-RELEASE" (of Debian; "own": this machine's) made
    once, in `cache`; for "crio" in `work`."""
    if name == "busybox":
        return None
    if name == "crio":
        if "CRIO_DIR" not in os.environ:
            raise tools.Missing("missing: CRI-O, since CRIO_DIR is not set")
        return crio(os.environ["CRIO_DIR"], work / "base-crio")
    target, (kind, _, release) = cache / name, name.partition("-")
    wanted = PODMAN + SYSTEMD * (kind == "systemd")
    if not target.is_dir():
        Apt(cache, None if release == "own" else release, wanted).unpack(wanted, target)
    return target


def crio(directory, target):
    """A root with the CRI-O that is in `directory`."""
    directory = pathlib.Path(directory)
    runtime = next((name for name in RUNTIMES if (directory / name).is_file()), None)
    missing = [name for name in CRIO if not (directory / name).is_file()] + ([] if runtime else [" or ".join(RUNTIMES)])
    if missing:
        raise tools.Missing(f"missing: {', '.join(missing)} in CRIO_DIR, which is {directory}")
    programs = [*CRIO, runtime]
    for name in ("bin", "lib", "sbin"):
        (target / "usr" / name).mkdir(parents=True)
        (target / name).symlink_to(f"usr/{name}")
    # One directory for all libraries: distributions' loaders look for them in different ones.
    (target / "lib64").symlink_to("usr/lib")
    for name in programs:
        shutil.copy(directory / name, target / "usr/bin" / name)
        (target / "usr/bin" / name).chmod(0o755)
    if (directory / "lib").is_dir():
        for library in (directory / "lib").iterdir():
            shutil.copy(library, target / "usr/lib" / library.name)
    else:
        for library in {library for name in programs for library in tools.libraries(directory / name)}:
            copy = target / str(library).lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    # Not all versions know all settings, and some end when they see one they do not know.
    known = (directory / "crio").read_bytes()
    runtime_lines = [f"[crio.runtime.runtimes.{runtime}]", f'runtime_path = "/usr/bin/{runtime}"', 'runtime_type = "oci"']
    runtime_lines += [f'runtime_root = "/run/{runtime}"']
    lines = ["[crio.api]", 'listen = "/run/crio/crio.sock"', "[crio.runtime]", f'default_runtime = "{runtime}"']
    lines += ['cgroup_manager = "cgroupfs"', 'conmon_cgroup = "pod"', 'conmon = "/usr/bin/conmon"', 'pinns_path = "/usr/bin/pinns"']
    lines += ['seccomp_profile = ""', 'apparmor_profile = ""', "hooks_dir = []", 'log_level = "info"']
    if b"disable_hostport_mapping" in known:
        # There are no iptables.
        lines.append("disable_hostport_mapping = true")
    if b"monitor_path" in known:
        runtime_lines += ['monitor_path = "/usr/bin/conmon"', 'monitor_cgroup = "pod"']
    config = target / "etc/crio/crio.conf"
    config.parent.mkdir(parents=True)
    config.write_text("\n".join([*lines, *runtime_lines, ""]))
    return target


def pins(directory):
    """Does this CRI-O know of pinned images?"""
    return b"pinned_images" in (pathlib.Path(directory) / "crio").read_bytes()
