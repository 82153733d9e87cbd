"""A service manager, as far as `prepull mount` needs one: keeps descriptors (FDSTORE=1) and starts the program again with them.

service_manager.py PREPULL MOUNTPOINT CACHE ITEM: mounts, kills front, keeper and worker while a file is read, starts again; what is read
must be the same, also of files that nobody had looked at before. Then they are killed while they start again. At the end it is
unmounted as a manager would.
"""
import ctypes, hashlib, os, select, signal, socket, subprocess, sys, threading, time

prepull, mountpoint, cache, *items = sys.argv[1:]
store = {}
polled = set()
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path = cache + ".notify"
manager.bind(path)
ready = threading.Event()


def listen():
    while True:
        text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
        fields = dict(line.split("=", 1) for line in text.decode().split("\n"))
        if fields.get("FDSTOREREMOVE") == "1":
            for fd in store.pop(fields["FDNAME"], []):
                polled.discard(fd)
                os.close(fd)
        if fields.get("FDSTORE") == "1":
            polled.update(fds if fields.get("FDPOLL") != "0" else [])
            store.setdefault(fields["FDNAME"], []).extend(fds)
        if fields.get("READY") == "1":
            ready.set()


threading.Thread(target=listen, daemon=True).start()


def begin():
    """As systemd does it: descriptors from 3 on, their names, and the process they are for."""
    ready.clear()
    # What hangs up is dropped, unless nobody looks.
    poll = select.poll()
    for fd in polled:
        poll.register(fd, 0)
    gone = {fd for fd, _ in poll.poll(0)}
    for name, fds in list(store.items()):
        store[name] = [fd for fd in fds if fd not in gone]
    held = [(name, fd) for name, fds in store.items() for fd in fds]
    child = os.fork()
    if child == 0:
        high = [(name, os.dup2(fd, 100 + at)) for at, (name, fd) in enumerate(held)]
        for at, (_, fd) in enumerate(high):
            os.dup2(fd, 3 + at)
        os.closerange(3 + len(high), 200)
        env = dict(os.environ, NOTIFY_SOCKET=path)
        if high:
            env.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=":".join(name for name, _ in high))
        os.execve(prepull, [prepull, "mount", "--foreground", "--cache-dir", cache, mountpoint, *items], env)
    return child


def start():
    child = begin()
    assert ready.wait(60), "it does not get ready"
    return child


def kill_all():
    """Whoever has lost its parent is this process's child."""
    while True:
        left = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        if not left:
            return
        for pid in map(int, left):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def status(what):
    out = subprocess.run([prepull, "mount", "status", "--json", mountpoint], capture_output=True, text=True, check=True).stdout
    import json
    return json.loads(out)[what]


def tree():
    found = {}
    for directory, _, files in os.walk(mountpoint):
        for name in files:
            file = os.path.join(directory, name)
            if os.path.isfile(file) and not os.path.islink(file):
                found[file] = hashlib.sha256(open(file, "rb").read()).hexdigest()
    return found


# PR_SET_CHILD_SUBREAPER
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
front = start()
assert len(store) == 1, store
first = tree()
assert first, "nothing is there"
identity = os.stat(mountpoint).st_dev
reader = open(max(first, key=os.path.getsize), "rb")
reader.read(10)
for again in range(3):
    pids = [front, status("keeper"), status("worker")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(front, 0)
    for pid in pids[1:]:
        while os.path.exists(f"/proc/{pid}/root"):
            time.sleep(0.01)
    # Nobody serves it: this waits until somebody does.
    late = threading.Thread(target=lambda: os.listdir(mountpoint + "/overlay"))
    late.start()
    front = start()
    late.join(60)
    assert not late.is_alive(), "who has waited meanwhile still does"
    assert os.stat(mountpoint).st_dev == identity, "it is another mount"
    assert tree() == first, "it has other files"
reader.seek(0)
assert hashlib.sha256(reader.read()).hexdigest() == first[reader.name]
reader.close()
delays, same = [0, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.02, 0.03, 0.05, 0.1], 0
for delay in delays:
    kill_all()
    begin()
    time.sleep(delay)
    kill_all()
    # What they have said is heard first.
    time.sleep(0.1)
    front = start()
    assert tree() == first, "it has other files"
    same += os.stat(mountpoint).st_dev == identity
    identity = os.stat(mountpoint).st_dev
# Only who dies in the moment between taking it and having it kept again takes the mount along.
assert same > len(delays) * 2 / 3, f"{same} of {len(delays)} went on"
os.kill(front, signal.SIGTERM)
_, code = os.waitpid(front, 0)
assert code == 0, code
assert not os.path.ismount(mountpoint), "still mounted"
time.sleep(0.2)
assert not store, store
print("kept")
