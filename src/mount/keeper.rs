//! The process that has the mount. It looks into nothing that it keeps, so there is nothing that it could die of.
//!
//! ```text
//!  front ──what was typed; then scene, files──▶ mount ▶ INIT ▶ worker ──▶ serves
//!                                   ▲       │ dies
//!                                   └───────┘          /dev/fuse stays open: to the kernel nothing has happened
//! ```
//!
//! INIT is answered here, once for all workers: what was agreed upon belongs to the mount.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;
use super::attach::{self, NotUnmounted};
use super::control::{Answer, Ask, Begin, FETCHER, Fetched, KEEPER, Start, Status, WORKER, Wanted, directory};
use super::kept;
use super::scene::{are_allowed, sources_in};
use super::serve::{journal, overdue};
use super::wire::{Agreed, Operation, REQUEST_MAX, Reply, Request};
use super::worker::{Order, Said};
use crate::channel::{receive, receive_little, send, send_within};
use crate::signals;
use crate::threads;

/// How often a worker may die within [`DEATHS_WITHIN`] before this is given up: then it dies of what it serves.
const DEATHS_MAX: usize = 30;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// How many messages of workers are remembered.
const TROUBLES_MAX: usize = 20;

/// How long a worker may take to begin: a million files, from a slow disk.
const START_MAX: Duration = Duration::from_secs(300);

/// Time limit for a client to read its reply.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Time limit for each piece of a client's request to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Maximum number of clients whose requests are read at the same time. Further ones wait to be accepted.
const CLIENTS_MAX: usize = 8;

/// How often something is shown by another worker when one has died of it, or while it was at it.
const SHOWN_MAX: u32 = 5;

/// How long a worker may take to read what it is told. It may have been stopped, or it may be a stranger's by now.
const ORDER_MAX: Duration = Duration::from_secs(30);

/// How many layers wait to be fetched, at most: as many as a message has files for.
const FETCHING_MAX: usize = 20_000;

/// How many events wait, at most. Who has more waits.
const EVENTS_MAX: usize = 1000;

/// What is looked into of a scene.
#[derive(Deserialize)]
struct Facts {
    generation: u64,
    lazy: Option<IgnoredAny>,
}

enum Event {
    /// The worker number so-and-so has said something, or ended.
    Said(u64, Said),
    Ended(u64, Option<i32>),
    /// A client asks something, with files.
    Asked(Client, UnixStream, Ask<Box<RawValue>>, Vec<OwnedFd>),
    Signal(i32),
    /// A layer has been fetched, or not.
    Fetched(String, Fetched),
}

/// A process that asks something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    /// One of the user's, or a relay of root's, which has checked what it passes on.
    User,
    /// A fetcher, which has parsed what a registry sent.
    Fetcher,
}

struct Keeper {
    start: Start<Box<RawValue>>,
    generation: u64,
    /// Whether there may be layers that are to be fetched.
    is_lazy: bool,
    files: Vec<OwnedFd>,
    fuse: OwnedFd,
    agreed: Agreed,
    /// Where workers note what they are at, if the kernel does not send it again.
    journal: Option<File>,
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    /// Events that came while a worker was waited for.
    later: VecDeque<Event>,
    worker: Option<Worker>,
    workers: u64,
    /// The last one that died while it was waited for.
    dead: u64,
    /// Whether it is mounted nowhere any more.
    is_gone: bool,
    /// Whether no worker can serve it.
    has_given_up: bool,
    deaths: VecDeque<Instant>,
    troubles: VecDeque<String>,
    /// Where it listens, and the socket's inode.
    socket: Option<(PathBuf, u64)>,
    /// The device number of the mount.
    device: Option<String>,
    is_ending: bool,
    /// Layers that are to be fetched: the first is being.
    fetching: VecDeque<String>,
}

struct Worker {
    number: u64,
    pid: u32,
    /// The process itself: a number may be another's by the time that it is heard that this one has ended.
    process: OwnedFd,
    socket: UnixStream,
}

/// Runs the keeper: its standard input is who started it.
#[must_use]
pub fn run() -> ExitCode {
    let front = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(front) => UnixStream::from(front),
        Err(_) => return ExitCode::FAILURE,
    };
    let mut is_foreground = false;
    let result = Keeper::begin(&front, &mut is_foreground).and_then(|begun| {
        // The front has failed, and said why.
        let Some(mut keeper) = begun else { return Ok(()) };
        keeper.listen();
        keeper.keep();
        if send(&front, &Answer::<()>::Status(keeper.status()), &[]).is_err() {
            // Who has asked for it has been stopped.
            keeper.is_ending = keeper.unmount(true).is_ok();
        } else if keeper.start.foreground {
            keeper.take_signals(front.try_clone());
        }
        let ended = keeper.run();
        kept::forget();
        if let Some((socket, inode)) = &keeper.socket {
            // The number of the device may be another mount's by now, and so the socket.
            if fs_err::symlink_metadata(socket).is_ok_and(|found| found.ino() == *inode) {
                let _ = fs_err::remove_file(socket);
            }
        }
        ended
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let told = send(&front, &Answer::<()>::Failed(error.to_string()), &[]);
            if is_foreground && told.is_err() {
                let _ = writeln!(io::stderr(), "prepull: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

impl Keeper {
    /// Begins with what the front says. Returns `None` if the front has gone before it has said what to show.
    fn begin(front: &UnixStream, is_foreground: &mut bool) -> Result<Option<Self>, Error> {
        let lost = |error| Error::system("listening to prepull", error);
        let Some((Begin { start, allowed, storage_conf }, _)) = receive::<Begin>(front).map_err(lost)? else {
            return Err(Error::Other(format!("{KEEPER} is started by prepull mount")));
        };
        *is_foreground = start.foreground;
        if !start.foreground {
            // The terminal that it was started from may go.
            let _ = rustix::process::setsid();
        }
        let _ = rustix::process::chdir("/");
        let (sender, events) = sync_channel(EVENTS_MAX);
        stop_on_signals(&sender)?;
        // What follows comes from a process that has parsed images.
        let Some((scene, files)) = receive::<Box<RawValue>>(front).map_err(lost)? else { return Ok(None) };
        let Start { mountpoint, others, foreground, no_resend, mounted, turn, scene: () } = start;
        let at = mounted.is_some().then(|| mountpoint.clone());
        if mounted.is_none() {
            are_allowed(&scene, &allowed)?;
        }
        let start = Start { mountpoint, others, foreground, no_resend, mounted, turn, scene };
        let keeper = Self::of(start, files, sender, events).inspect_err(|_| {
            // Nobody else serves it.
            if let Some(at) = &at {
                let _ = attach::unmount(at, true);
            }
        })?;
        if let Some(Err(error)) = storage_conf.map(|file| file.write()) {
            // All of what was asked for, or nothing.
            let _ = keeper.unmount(true);
            return Err(Error::Other(format!("{}: unmounted again: {error}", keeper.start.mountpoint.display())));
        }
        Ok(Some(keeper))
    }

    /// Takes signals that the front in the foreground passes on.
    fn take_signals(&mut self, front: io::Result<UnixStream>) {
        let sender = self.sender.clone();
        let listening = front.and_then(|front| {
            threads::spawn(move || {
                while let Ok(Some(signal)) = receive_little::<i32>(&front) {
                    let _ = sender.send(Event::Signal(signal));
                }
            })
        });
        if let Err(error) = listening {
            self.trouble(format!("signals to the process in the foreground are lost: {error}"));
        }
    }

    fn of(
        start: Start<Box<RawValue>>,
        files: Vec<OwnedFd>,
        sender: SyncSender<Event>,
        events: Receiver<Event>,
    ) -> Result<Self, Error> {
        let mounted = start.mounted;
        let Facts { generation, lazy } = facts(&start.scene)?;
        let mut files = files.into_iter();
        let (fuse, agreed, journal) = match mounted {
            Some(agreed) => {
                let fuse = files.next().ok_or(Error::Scene)?;
                let journal = if agreed.resends() { None } else { Some(files.next().ok_or(Error::Scene)?.into()) };
                (fuse, agreed, journal)
            }
            None => {
                let fuse = attach::mount(&start.mountpoint, start.others)?;
                let agreed = agree(&fuse, start.no_resend).and_then(|agreed| {
                    let journal = if agreed.resends() { None } else { Some(journal()?) };
                    Ok((agreed, journal))
                });
                match agreed {
                    Ok((agreed, journal)) => (fuse, agreed, journal),
                    Err(error) => {
                        let _ = attach::unmount(&start.mountpoint, true);
                        return Err(error);
                    }
                }
            }
        };
        let device = attach::device_of(&start.mountpoint);
        let mut keeper = Self {
            generation,
            is_lazy: lazy.is_some(),
            agreed,
            journal,
            start,
            files: files.collect(),
            fuse,
            events,
            sender,
            later: VecDeque::new(),
            worker: None,
            workers: 0,
            dead: 0,
            is_gone: false,
            has_given_up: false,
            deaths: VecDeque::new(),
            troubles: VecDeque::new(),
            socket: None,
            device,
            is_ending: false,
            fetching: VecDeque::new(),
        };
        if mounted.is_some() {
            keeper.fail_overdue();
        }
        let served = keeper.employ(mounted.is_some());
        if served.is_err() {
            let _ = keeper.unmount(true);
        }
        served.map(|()| keeper)
    }

    /// Unmounts it, if it is still what is mounted there.
    fn unmount(&self, lazily: bool) -> Result<(), (NotUnmounted, String)> {
        if self.device.is_none() || attach::device_of(&self.start.mountpoint) != self.device {
            return Err((NotUnmounted::Other, "it is not mounted there any more".to_owned()));
        }
        attach::unmount(&self.start.mountpoint, lazily)
    }

    /// Starts a worker, and waits until it serves.
    fn employ(&mut self, again: bool) -> Result<(), Error> {
        let failed = |error| Error::system("starting a worker", error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // The file that this process was started from, even if there is another one in its place.
        let mut child = Command::new("/proc/self/exe")
            .arg0("prepull")
            .arg(WORKER)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            // What it has to say comes the other way.
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let process = process.map_err(|error| failed(error.into()))?;
        self.workers += 1;
        let number = self.workers;
        let listening = ours.try_clone().map_err(failed)?;
        let (sender, pid) = (self.sender.clone(), child.id());
        threads::spawn(move || {
            while let Ok(Some(said)) = receive_little::<Said>(&listening) {
                let _ = sender.send(Event::Said(number, said));
            }
            let code = child.wait().ok().and_then(|status| status.code());
            let _ = sender.send(Event::Ended(number, code));
        })
        .map_err(failed)?;
        let resend = again && self.agreed.resends();
        let scene = for_worker(&self.start.scene)?;
        let order = Order::Serve { scene: &scene, again, resend, journal: self.journal.is_some() };
        let mut files = vec![self.fuse.as_fd()];
        files.extend(self.journal.iter().map(File::as_fd));
        files.extend(self.files.iter().map(OwnedFd::as_fd));
        let told = send_within(&ours, &order, &files, ORDER_MAX);
        self.worker = Some(Worker { number, pid, process, socket: ours });
        self.tell(|_| told);
        self.wait_for_worker(START_MAX)
    }

    /// Tells the worker something. If it dies meanwhile, that is an event; if it does not listen, it dies.
    fn tell(&self, told: impl FnOnce(&UnixStream) -> io::Result<()>) {
        if self.worker.as_ref().is_some_and(|worker| told(&worker.socket).is_err()) {
            self.kill_worker();
        }
    }

    /// Waits until the worker has done what it was told. Who asks something meanwhile is answered afterwards.
    fn wait_for_worker(&mut self, patience: Duration) -> Result<(), Error> {
        let number = self.worker.as_ref().map_or(0, |worker| worker.number);
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Also when there is always something.
            let event = if left.is_zero() { Err(RecvTimeoutError::Timeout) } else { self.events.recv_timeout(left) };
            match event {
                Ok(Event::Said(from, said)) if from == number => match said {
                    Said::Done => return Ok(()),
                    Said::Failed(error) => return Err(Error::Other(error)),
                    Said::Trouble(text) => self.trouble(text),
                    Said::Wanted(layer) => self.fetch(layer),
                },
                Ok(Event::Ended(from, code)) if from == number => {
                    // With 0 it is mounted nowhere any more.
                    self.is_gone = code == Some(0);
                    self.dead = number;
                    self.worker = None;
                    return Err(Error::Other("the worker has died".to_owned()));
                }
                Ok(Event::Said(..)) => {}
                Ok(event) => self.later.push_back(event),
                Err(_) => {
                    self.kill_worker();
                    return Err(Error::Other("the worker does not answer".to_owned()));
                }
            }
        }
    }

    /// Whether the worker so-and-so has died, and another is to take its place.
    fn has_died(&self, number: u64) -> bool {
        self.dead == number && !self.is_gone
    }

    fn kill_worker(&self) {
        if let Some(worker) = &self.worker {
            let _ = rustix::process::pidfd_send_signal(&worker.process, rustix::process::Signal::KILL);
        }
    }

    fn trouble(&mut self, text: String) {
        // It may be what a stranger has packed, or what a stranger's worker says.
        let text = text.replace(char::is_control, "?");
        if self.start.foreground {
            let _ = writeln!(io::stderr(), "prepull: {text}");
        }
        if self.troubles.len() == TROUBLES_MAX {
            self.troubles.pop_front();
        }
        self.troubles.push_back(text);
    }

    fn status(&self) -> Status {
        Status {
            mountpoint: self.start.mountpoint.clone(),
            keeper: std::process::id(),
            worker: self.worker.as_ref().map_or(0, |worker| worker.pid),
            restarts: self.workers.saturating_sub(1),
            maps_ids: self.agreed.maps_ids(),
            resends: self.agreed.resends(),
            troubles: self.troubles.iter().cloned().collect(),
        }
    }

    /// Has systemd keep what another keeper would need.
    fn keep(&mut self) {
        self.start.turn += 1;
        let Start { mountpoint, others, foreground, no_resend, turn, scene, .. } = &self.start;
        let message = Start {
            mountpoint: mountpoint.clone(),
            others: *others,
            foreground: *foreground,
            no_resend: *no_resend,
            mounted: Some(self.agreed),
            turn: *turn,
            scene,
        };
        let mut files = vec![self.fuse.as_fd()];
        files.extend(self.journal.iter().map(File::as_fd));
        files.extend(self.files.iter().map(OwnedFd::as_fd));
        if let Err(error) = kept::keep(*turn, &message, &files) {
            self.trouble(format!("systemd keeps nothing: {error}"));
        }
    }

    /// Lets users ask. Without it the mount is as good, but cannot be changed.
    fn listen(&mut self) {
        let listening = self
            .device
            .clone()
            .ok_or_else(|| io::Error::other("the mount is not to be seen in /proc/self/mountinfo"))
            .and_then(|device| {
                let path = directory()?.join(device);
                let _ = fs_err::remove_file(&path);
                let listener = UnixListener::bind(&path)?;
                let inode = fs_err::symlink_metadata(&path)?.ino();
                Ok((path, inode, listener))
            });
        let sender = self.sender.clone();
        let result = listening.and_then(|(path, inode, listener)| {
            self.socket = Some((path, inode));
            threads::spawn(move || accept(&listener, &sender))
        });
        if let Err(error) = result {
            self.trouble(format!("prepull mount add, rm and status cannot reach this mount: {error}"));
        }
    }

    /// Until it is mounted nowhere any more.
    fn run(&mut self) -> Result<(), Error> {
        loop {
            if self.is_gone {
                // Or somebody has aborted it.
                let _ = self.unmount(true);
                return Ok(());
            }
            let event = match self.later.pop_front() {
                Some(event) => event,
                // There is a sender here, too.
                None => match self.events.recv() {
                    Ok(event) => event,
                    Err(_) => return Ok(()),
                },
            };
            match event {
                Event::Said(_, Said::Trouble(text)) => self.trouble(text),
                Event::Said(_, Said::Wanted(layer)) => self.fetch(layer),
                Event::Fetched(layer, Fetched { notes, failed }) => {
                    self.fetching.retain(|other| *other != layer);
                    self.fetch_next();
                    for note in notes {
                        // Each fetcher says the same.
                        if !self.troubles.contains(&note) {
                            self.trouble(note);
                        }
                    }
                    if let Some(why) = failed {
                        self.trouble(format!("layer {layer}: {why}"));
                        let order: Order<()> = Order::Refuse { layers: vec![layer] };
                        self.tell(|socket| send_within(socket, &order, &[], ORDER_MAX));
                    }
                }
                Event::Said(..) => {}
                Event::Ended(number, code) => {
                    if self.worker.as_ref().is_none_or(|worker| worker.number != number) {
                        continue;
                    }
                    self.worker = None;
                    self.is_gone = code == Some(0);
                    if !self.is_gone {
                        self.replace()?;
                    }
                }
                Event::Asked(client, socket, ask, files) => {
                    self.answer(client, &socket, ask, files);
                    if self.has_given_up {
                        return Err(Error::Other("no worker can serve it: it is unmounted".to_owned()));
                    }
                }
                Event::Signal(signal) => {
                    if self.is_ending {
                        // It would serve as long as somebody uses it.
                        self.kill_worker();
                        return Err(Error::Other("stopped while it was in use".to_owned()));
                    }
                    self.is_ending = true;
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    match self.unmount(false) {
                        Err((NotUnmounted::Busy, _)) => {
                            let _ = self.unmount(true);
                            self.trouble(format!(
                                "{name}: in use: unmounted, and served until it is not (a second signal ends it at once)"
                            ));
                        }
                        Err((NotUnmounted::Other, text)) => self.trouble(format!("{name}: unmounting: {text}")),
                        Ok(()) => {}
                    }
                }
            }
        }
    }

    /// Puts another worker in the place of one that has died.
    fn replace(&mut self) -> Result<(), Error> {
        loop {
            self.fail_overdue();
            let now = Instant::now();
            self.deaths.push_back(now);
            while self.deaths.front().is_some_and(|death| now.duration_since(*death) > DEATHS_WITHIN) {
                self.deaths.pop_front();
            }
            if self.deaths.len() > DEATHS_MAX {
                let _ = self.unmount(true);
                self.has_given_up = true;
                return Err(Error::Other(format!(
                    "{DEATHS_MAX} workers have died within a minute: {} is unmounted",
                    self.start.mountpoint.display()
                )));
            }
            match self.employ(true) {
                Ok(()) => return Ok(()),
                Err(_) if self.is_gone => return Ok(()),
                Err(error) => {
                    self.kill_worker();
                    self.worker = None;
                    self.trouble(format!("starting a worker: {error}"));
                    // What is lacking may come back.
                    std::thread::sleep(Duration::from_millis(100 * self.deaths.len() as u64));
                }
            }
        }
    }

    /// Has a layer fetched: by another process, since there is a network, a registry and a stranger's archive to it. It comes back
    /// as any other change of what is shown.
    fn fetch(&mut self, layer: String) {
        let is_id = layer.len() == 64 && layer.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !self.is_lazy || !is_id || self.fetching.len() == FETCHING_MAX || self.fetching.contains(&layer) {
            return;
        }
        self.fetching.push_back(layer);
        if self.fetching.len() == 1 {
            self.fetch_next();
        }
    }

    /// One at a time: each takes those below it along, and the processors are busy with one.
    fn fetch_next(&mut self) {
        let Some(layer) = self.fetching.front().cloned() else { return };
        let (sender, wanted) = (self.sender.clone(), layer.clone());
        let spawned = threads::spawn(move || {
            let fetched = fetch(&Wanted { layer: wanted.clone() }, &sender);
            let fetched = fetched.unwrap_or_else(|why| Fetched { failed: Some(why), ..Fetched::default() });
            let _ = sender.send(Event::Fetched(wanted, fetched));
        });
        if let Err(error) = spawned {
            let fetched = Fetched { failed: Some(error.to_string()), ..Fetched::default() };
            self.later.push_back(Event::Fetched(layer, fetched));
        }
    }

    /// Answers, with an error, what a worker that has died was at: on a kernel that does not send it again nobody else will.
    fn fail_overdue(&self) {
        // While nobody else has read one.
        for unique in self.journal.iter().flat_map(overdue) {
            let reply = Reply::error(unique, Errno::IO);
            let _ = retry_on_intr(|| rustix::io::write(&self.fuse, &reply));
        }
    }

    fn answer(&mut self, client: Client, socket: &UnixStream, ask: Ask<Box<RawValue>>, files: Vec<OwnedFd>) {
        let answer: Answer<&RawValue> = match ask {
            Ask::Status => Answer::Status(self.status()),
            Ask::Get => {
                let files: Vec<BorrowedFd<'_>> = self.files.iter().map(OwnedFd::as_fd).collect();
                tell_asker(socket, &Answer::Scene(&self.start.scene), &files);
                return;
            }
            Ask::Put { generation, .. } if generation != self.generation => Answer::Changed,
            Ask::Put { scene, .. } => match self.check(client, &scene).and_then(|()| self.show(scene, files)) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Failed(error.to_string()),
            },
        };
        tell_asker(socket, &answer, &[]);
    }

    /// Checks that a fetcher does not change where layers come from.
    fn check(&self, client: Client, scene: &RawValue) -> Result<(), Error> {
        match client {
            Client::User => Ok(()),
            Client::Fetcher => {
                let sources = sources_in(&self.start.scene)?;
                are_allowed(scene, &sources.map(|sources| sources.allowed()).unwrap_or_default())
            }
        }
    }

    fn show(&mut self, scene: Box<RawValue>, files: Vec<OwnedFd>) -> Result<(), Error> {
        let Facts { generation, lazy } = facts(&scene)?;
        let shown = for_worker(&scene)?;
        let order = Order::Show { scene: &shown };
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
        for attempt in 1.. {
            let worker = self.worker.as_ref().ok_or_else(|| Error::Other("no worker".to_owned()))?;
            let number = worker.number;
            self.tell(|socket| send_within(socket, &order, &borrowed, ORDER_MAX));
            match self.wait_for_worker(START_MAX) {
                Ok(()) => break,
                // It may have shown the new one to somebody before it died, and the kernel believes that. What it dies of each time
                // nobody has seen.
                Err(error) if self.has_died(number) => {
                    self.replace()?;
                    if attempt == SHOWN_MAX || self.is_gone {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        (self.start.scene, self.files) = (scene, files);
        (self.generation, self.is_lazy) = (generation, lazy.is_some());
        self.keep();
        Ok(())
    }
}

/// Accepts clients and reads their requests, each in a thread of its own, so that a slow client delays no other one. A client of
/// another user is refused before anything that it has sent is read.
fn accept(listener: &UnixListener, sender: &SyncSender<Event>) {
    let (free, places) = sync_channel(CLIENTS_MAX);
    for _ in 0..CLIENTS_MAX {
        let _ = free.send(());
    }
    for socket in listener.incoming().flatten() {
        if !is_ours(&socket) {
            tell_asker(&socket, &Answer::<()>::Failed("the mount is another user's".to_owned()), &[]);
            continue;
        }
        if places.recv().is_err() {
            return;
        }
        let (sender, place) = (sender.clone(), Place(free.clone()));
        // A client that cannot be read from sees the end of its connection.
        let _ = threads::spawn(move || {
            let request = socket.set_read_timeout(Some(REQUEST_TIME_MAX)).and_then(|()| receive(&socket));
            drop(place);
            if let Ok(Some((ask, files))) = request {
                let _ = sender.send(Event::Asked(Client::User, socket, ask, files));
            }
        });
    }
}

/// One of the places for clients, which is free again when this is dropped.
struct Place(SyncSender<()>);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Returns whether the process at the other end is this user's, or root's.
fn is_ours(socket: &UnixStream) -> bool {
    nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

/// Answers. Who has not got all of it in time gets nothing more: others have the socket, too, and it would be waited for.
fn tell_asker(socket: &UnixStream, answer: &impl Serialize, files: &[BorrowedFd<'_>]) {
    if send_within(socket, answer, files, ANSWER_MAX).is_err() {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Runs a fetcher to its end. What it asks meanwhile is asked as by users; but it need not find the mount, which may have been
/// unmounted while somebody uses it.
fn fetch(wanted: &Wanted, sender: &SyncSender<Event>) -> Result<Fetched, String> {
    let text = |error: io::Error| format!("starting a fetcher: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    let (asked, asks) = UnixStream::pair().map_err(text)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("prepull")
        .arg(FETCHER)
        .stdin(OwnedFd::from(theirs))
        .stdout(OwnedFd::from(asks))
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    let sender = sender.clone();
    let listening = threads::spawn(move || {
        while let Ok(Some((ask, files))) = receive(&asked) {
            let Ok(socket) = asked.try_clone() else { break };
            let _ = sender.send(Event::Asked(Client::Fetcher, socket, ask, files));
        }
    });
    let answer = listening.and_then(|_| send(&ours, wanted, &[])).and_then(|()| receive_little::<Fetched>(&ours));
    // Nobody answers it any more.
    drop(ours);
    let _ = child.wait();
    match answer {
        Ok(Some(fetched)) => Ok(fetched),
        _ => Err("the fetcher has died".to_owned()),
    }
}

/// A scene without what workers need not know.
fn for_worker(scene: &RawValue) -> Result<Box<RawValue>, Error> {
    let parts = serde_json::from_str::<BTreeMap<&str, &RawValue>>(scene.get());
    let mut parts = parts.map_err(|_| Error::Scene)?;
    // There may be a password in it.
    parts.remove("lazy");
    serde_json::value::to_raw_value(&parts).map_err(|_| Error::Scene)
}

fn facts(scene: &RawValue) -> Result<Facts, Error> {
    serde_json::from_str(scene.get()).map_err(|_| Error::Scene)
}

/// Answers INIT: the first request, which comes by itself.
fn agree(fuse: &OwnedFd, no_resend: bool) -> Result<Agreed, Error> {
    let mut buffer = vec![0; REQUEST_MAX];
    let count = retry_on_intr(|| rustix::io::read(fuse, &mut buffer[..]))
        .map_err(|error| Error::system("reading /dev/fuse", error))?;
    let too_old = || Error::Other("this kernel's FUSE is too old (Linux 5.3 is needed)".to_owned());
    let request = Request::parse(&buffer[..count]).map_err(|_| too_old())?;
    let Operation::Init(init) = request.operation else { return Err(too_old()) };
    let (reply, agreed) = init.answer(request.unique).ok_or_else(too_old)?;
    retry_on_intr(|| rustix::io::write(fuse, &reply)).map_err(|error| Error::system("writing /dev/fuse", error))?;
    Ok(if no_resend { agreed.without_resend() } else { agreed })
}

/// Has signals that ask for the end sent to `sender`. A mount that was started with `nohup`, or in the background of a script, outlives
/// the terminal.
fn stop_on_signals(sender: &SyncSender<Event>) -> Result<(), Error> {
    let failed = |error| Error::system("handling signals", error);
    let mut signals = signal_hook::iterator::Signals::new(signals::ending()).map_err(failed)?;
    let sender = sender.clone();
    threads::spawn(move || {
        for signal in signals.forever() {
            let _ = sender.send(Event::Signal(signal));
        }
    })
    .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_not_told_where_layers_come_from() {
        let scene =
            |lazy: &str| RawValue::from_string(format!(r#"{{"generation":1{lazy},"x":"{{\"a\":1}}"}}"#)).unwrap();
        for lazy in [r#","lazy":{"a":1}"#, r#","lazy":null"#, ""] {
            assert_eq!(for_worker(&scene(lazy)).unwrap().get(), scene("").get());
        }
    }
}
