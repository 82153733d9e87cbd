//! The process that has the mount. It looks into nothing that it keeps, so there is nothing that it could die of.
//!
//! ```text
//!  front ──scene, files──▶ mount ▶ INIT ▶ worker ──▶ serves
//!                                   ▲       │ dies
//!                                   └───────┘          /dev/fuse stays open: to the kernel nothing has happened
//! ```
//!
//! INIT is answered here, once for all workers: what was agreed upon belongs to the mount.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Error;
use super::attach::{self, NotUnmounted};
use super::channel::{receive, send};
use super::wire::{Agreed, Operation, REQUEST_MAX, Request};
use super::worker::{Order, Said};
use crate::threads;

/// The hidden commands of `prepull` that are these processes.
pub const KEEPER: &str = "mount-keeper";
/// That of the worker.
pub const WORKER: &str = "mount-worker";

/// How often a worker may die within [`DEATHS_WITHIN`] before this is given up: then it dies of what it serves.
const DEATHS_MAX: usize = 30;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// How many messages of workers are remembered.
const TROUBLES_MAX: usize = 20;

/// How long a worker may take to begin: a million files, from a slow disk.
const START_MAX: Duration = Duration::from_secs(300);

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start<S> {
    /// Where: absolute, without links.
    pub mountpoint: PathBuf,
    /// Whether others than this user may look into it.
    pub others: bool,
    /// Whether it runs where it was started, and says what happens.
    pub foreground: bool,
    /// Whether the kernel is taken for one that does not send requests again (for tests).
    pub no_resend: bool,
    /// What is shown.
    pub scene: S,
}

/// What users ask of a mount.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask<S> {
    /// How it is.
    Status,
    /// What is shown, with its files.
    Get,
    /// To show this instead, with its files.
    Put {
        /// What.
        scene: S,
        /// What it takes the place of.
        generation: u64,
    },
    /// To unmount it.
    Unmount {
        /// Also if somebody uses it.
        lazily: bool,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer<S> {
    /// How it is.
    Status(Status),
    /// What is shown.
    Scene(S),
    /// It is done.
    Done,
    /// It is not, because.
    Failed(String),
    /// Somebody else has changed it meanwhile.
    Changed,
    /// Somebody uses it.
    Busy,
}

/// How a mount is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Where.
    pub mountpoint: PathBuf,
    /// The keeper's process.
    pub keeper: u32,
    /// The worker's.
    pub worker: u32,
    /// How many workers there have been before it.
    pub restarts: u64,
    /// Whether pods in user namespaces can use it.
    pub maps_ids: bool,
    /// Whether requests are sent again when a worker dies; else they fail.
    pub resends: bool,
    /// What was wrong lately.
    pub troubles: Vec<String>,
}

/// What is looked into of a scene.
#[derive(Deserialize)]
struct Generation {
    generation: u64,
}

enum Event {
    /// The worker number so-and-so has said something, or ended.
    Said(u64, Said),
    Ended(u64, Option<i32>),
    Asked(UnixStream),
    Signal(i32),
}

struct Keeper {
    start: Start<Box<RawValue>>,
    generation: u64,
    files: Vec<OwnedFd>,
    fuse: OwnedFd,
    agreed: Agreed,
    events: Receiver<Event>,
    sender: Sender<Event>,
    worker: Option<Worker>,
    workers: u64,
    deaths: VecDeque<Instant>,
    troubles: VecDeque<String>,
    socket: Option<PathBuf>,
    is_ending: bool,
}

struct Worker {
    number: u64,
    pid: u32,
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
    let result = Keeper::begin(&front, &mut is_foreground).and_then(|mut keeper| {
        keeper.listen();
        let _ = send(&front, &Answer::<()>::Status(keeper.status()), &[]);
        let ended = keeper.run();
        if let Some(socket) = &keeper.socket {
            let _ = fs_err::remove_file(socket);
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
    fn begin(front: &UnixStream, is_foreground: &mut bool) -> Result<Self, Error> {
        let lost = |error| Error::system("listening to prepull", error);
        let Some((start, files)) = receive::<Start<Box<RawValue>>>(front).map_err(lost)? else {
            return Err(Error::Other(format!("{KEEPER} is started by prepull mount")));
        };
        *is_foreground = start.foreground;
        if !start.foreground {
            // The terminal that it was started from may go.
            let _ = rustix::process::setsid();
        }
        let _ = rustix::process::chdir("/");
        let (sender, events) = channel();
        stop_on_signals(&sender)?;
        let fuse = attach::mount(&start.mountpoint, start.others)?;
        let mut keeper = Self {
            generation: generation(&start.scene)?,
            agreed: agree(&fuse, start.no_resend)?,
            start,
            files,
            fuse,
            events,
            sender,
            worker: None,
            workers: 0,
            deaths: VecDeque::new(),
            troubles: VecDeque::new(),
            socket: None,
            is_ending: false,
        };
        let served = keeper.employ(false);
        if served.is_err() {
            let _ = attach::unmount(&keeper.start.mountpoint, true);
        }
        served.map(|()| keeper)
    }

    /// Starts a worker, and waits until it serves.
    fn employ(&mut self, again: bool) -> Result<(), Error> {
        let failed = |error| Error::system("starting a worker", error);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // The file that this process was started from, even if there is another one in its place.
        let mut child = Command::new("/proc/self/exe")
            .arg(WORKER)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        self.workers += 1;
        let number = self.workers;
        let listening = ours.try_clone().map_err(failed)?;
        let (sender, pid) = (self.sender.clone(), child.id());
        threads::spawn(move || {
            while let Ok(Some((said, _))) = receive::<Said>(&listening) {
                let _ = sender.send(Event::Said(number, said));
            }
            let code = child.wait().ok().and_then(|status| status.code());
            let _ = sender.send(Event::Ended(number, code));
        })
        .map_err(failed)?;
        let resend = again && self.agreed.resends();
        let order = Order::Serve { scene: &self.start.scene, again, resend };
        let mut files = vec![self.fuse.as_fd()];
        files.extend(self.files.iter().map(OwnedFd::as_fd));
        // If it dies meanwhile, that is an event.
        let _ = send(&ours, &order, &files);
        self.worker = Some(Worker { number, pid, socket: ours });
        self.wait_for_worker(START_MAX)
    }

    /// Waits until the worker has done what it was told. Who asks something meanwhile is answered afterwards.
    fn wait_for_worker(&mut self, patience: Duration) -> Result<(), Error> {
        let number = self.worker.as_ref().map_or(0, |worker| worker.number);
        let deadline = Instant::now() + patience;
        let mut later = Vec::new();
        let result = loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Said(from, said)) if from == number => match said {
                    Said::Done => break Ok(()),
                    Said::Failed(error) => break Err(Error::Other(error)),
                    Said::Trouble(text) => self.trouble(text),
                },
                Ok(event @ Event::Ended(from, _)) if from == number => {
                    later.push(event);
                    break Err(Error::Other("the worker has died".to_owned()));
                }
                Ok(Event::Said(..)) => {}
                Ok(event) => later.push(event),
                Err(_) => break Err(Error::Other("the worker does not answer".to_owned())),
            }
        };
        for event in later {
            let _ = self.sender.send(event);
        }
        result
    }

    fn trouble(&mut self, text: String) {
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

    /// Lets users ask. Without it the mount is as good, but cannot be changed.
    fn listen(&mut self) {
        let listening = attach::device_of(&self.start.mountpoint)
            .ok_or_else(|| io::Error::other("the mount is not to be seen in /proc/self/mountinfo"))
            .and_then(|device| {
                let path = socket_of(&device, true)?;
                let _ = fs_err::remove_file(&path);
                let listener = UnixListener::bind(&path)?;
                Ok((path, listener))
            });
        let sender = self.sender.clone();
        let result = listening.and_then(|(path, listener)| {
            self.socket = Some(path);
            threads::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let _ = sender.send(Event::Asked(socket));
                }
            })
        });
        if let Err(error) = result {
            self.trouble(format!("prepull mount add, rm and status cannot reach this mount: {error}"));
        }
    }

    /// Until it is mounted nowhere any more.
    fn run(&mut self) -> Result<(), Error> {
        loop {
            let event = match self.events.recv_timeout(Duration::from_secs(3600)) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            match event {
                Event::Said(_, Said::Trouble(text)) => self.trouble(text),
                Event::Said(..) => {}
                Event::Ended(number, code) => {
                    if self.worker.as_ref().is_none_or(|worker| worker.number != number) {
                        continue;
                    }
                    self.worker = None;
                    if code == Some(0) {
                        // The file system is mounted nowhere any more.
                        return Ok(());
                    }
                    self.replace()?;
                }
                Event::Asked(socket) => self.answer(&socket),
                Event::Signal(signal) => {
                    if self.is_ending {
                        if let Some(worker) = &self.worker {
                            // It would serve as long as somebody uses it.
                            let pid = nix::unistd::Pid::from_raw(worker.pid as i32);
                            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                        }
                        return Err(Error::Other("stopped while it was in use".to_owned()));
                    }
                    self.is_ending = true;
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("signal");
                    match attach::unmount(&self.start.mountpoint, false) {
                        Err((NotUnmounted::Busy, _)) => {
                            let _ = attach::unmount(&self.start.mountpoint, true);
                            self.trouble(format!(
                                "{name}: somebody uses it: unmounted, and served until nobody does (again: at once)"
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
            let now = Instant::now();
            self.deaths.push_back(now);
            while self.deaths.front().is_some_and(|death| now.duration_since(*death) > DEATHS_WITHIN) {
                self.deaths.pop_front();
            }
            if self.deaths.len() > DEATHS_MAX {
                let _ = attach::unmount(&self.start.mountpoint, true);
                return Err(Error::Other(format!(
                    "{DEATHS_MAX} workers have died within a minute: {} is unmounted",
                    self.start.mountpoint.display()
                )));
            }
            match self.employ(true) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.worker = None;
                    self.trouble(format!("starting a worker: {error}"));
                    // What is lacking may come back.
                    std::thread::sleep(Duration::from_millis(100 * self.deaths.len() as u64));
                }
            }
        }
    }

    fn answer(&mut self, socket: &UnixStream) {
        let is_ours = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw());
        // Nobody waits for somebody who asks slowly.
        let _ = socket.set_read_timeout(Some(Duration::from_secs(60)));
        let _ = socket.set_write_timeout(Some(Duration::from_secs(60)));
        let Ok(Some((ask, files))) = receive::<Ask<Box<RawValue>>>(socket) else { return };
        if !is_ours {
            let _ = send(socket, &Answer::<()>::Failed("the mount is another user's".to_owned()), &[]);
            return;
        }
        let answer: Answer<&RawValue> = match ask {
            Ask::Status => Answer::Status(self.status()),
            Ask::Get => {
                let files: Vec<BorrowedFd<'_>> = self.files.iter().map(OwnedFd::as_fd).collect();
                let _ = send(socket, &Answer::Scene(&self.start.scene), &files);
                return;
            }
            Ask::Put { generation, .. } if generation != self.generation => Answer::Changed,
            Ask::Put { scene, .. } => match self.show(scene, files) {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Failed(error.to_string()),
            },
            Ask::Unmount { lazily } => match attach::unmount(&self.start.mountpoint, lazily) {
                Ok(()) => Answer::Done,
                Err((NotUnmounted::Busy, _)) => Answer::Busy,
                Err((NotUnmounted::Other, text)) => Answer::Failed(text),
            },
        };
        let _ = send(socket, &answer, &[]);
    }

    fn show(&mut self, scene: Box<RawValue>, files: Vec<OwnedFd>) -> Result<(), Error> {
        let generation = generation(&scene)?;
        let order = Order::Show { scene: &scene };
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
        let worker = self.worker.as_ref().ok_or_else(|| Error::Other("no worker".to_owned()))?;
        // If it dies meanwhile, that is an event.
        let _ = send(&worker.socket, &order, &borrowed);
        self.wait_for_worker(START_MAX)?;
        (self.start.scene, self.files, self.generation) = (scene, files, generation);
        Ok(())
    }
}

fn generation(scene: &RawValue) -> Result<u64, Error> {
    serde_json::from_str::<Generation>(scene.get()).map(|scene| scene.generation).map_err(|_| Error::Scene)
}

/// Answers INIT: the first request, which comes by itself.
fn agree(fuse: &OwnedFd, no_resend: bool) -> Result<Agreed, Error> {
    let mut buffer = vec![0; REQUEST_MAX];
    let count = retry_on_intr(|| rustix::io::read(fuse, &mut buffer[..]))
        .map_err(|error| Error::system("reading /dev/fuse", error))?;
    let too_old = || Error::Other("this kernel's FUSE is too old (Linux 4.18 is needed)".to_owned());
    let request = Request::parse(&buffer[..count]).map_err(|_| too_old())?;
    let Operation::Init(init) = request.operation else { return Err(too_old()) };
    let (reply, agreed) = init.answer(request.unique).ok_or_else(too_old)?;
    retry_on_intr(|| rustix::io::write(fuse, &reply)).map_err(|error| Error::system("writing /dev/fuse", error))?;
    Ok(if no_resend { agreed.without_resend() } else { agreed })
}

fn stop_on_signals(sender: &Sender<Event>) -> Result<(), Error> {
    let failed = |error| Error::system("handling signals", error);
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    let sender = sender.clone();
    threads::spawn(move || {
        for signal in signals.forever() {
            let _ = sender.send(Event::Signal(signal));
        }
    })
    .map_err(failed)?;
    Ok(())
}

/// Where the keeper of the mount with this device number listens: in a directory that only this user can enter. With `make`
/// that is made.
///
/// # Errors
/// When there is no such directory.
pub fn socket_of(device: &str, make: bool) -> io::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = match runtime {
        _ if user == 0 => PathBuf::from("/run/prepull"),
        Some(runtime) => runtime.join("prepull"),
        None => PathBuf::from(format!("/tmp/prepull-{user}")),
    };
    // The systemd unit's socket for the helper lies in the same one, which others may enter: each mount gets one of its own.
    let directory = directory.join("mounts");
    if make {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    }
    let found = fs_err::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("{} is not ours alone", directory.display())));
    }
    Ok(directory.join(device))
}

/// Asks the keeper of what is mounted at `mountpoint`.
///
/// # Errors
/// When nobody answers.
pub fn ask<S: for<'de> Deserialize<'de>>(
    mountpoint: &Path,
    ask: &Ask<impl Serialize>,
    files: &[BorrowedFd<'_>],
) -> Result<(Answer<S>, Vec<OwnedFd>), Error> {
    let shown = mountpoint.display();
    let nothing = || Error::Other(format!("{shown}: prepull has mounted nothing there"));
    let device = attach::device_of(mountpoint).ok_or_else(nothing)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Error::Other(format!("{shown}: nobody serves it any more, or another user does (prepull umount {shown})"))
        }
        _ => Error::system(format!("{shown}: asking its keeper"), error),
    };
    let socket = socket_of(&device, false).and_then(UnixStream::connect).map_err(failed)?;
    send(&socket, ask, files).map_err(failed)?;
    match receive(&socket).map_err(failed)? {
        Some(answer) => Ok(answer),
        None => Err(Error::Other(format!("{shown}: its keeper has not answered"))),
    }
}

/// The keeper that signals to this process are for; 0 for none.
static PASSED_ON: AtomicU32 = AtomicU32::new(0);

/// Passes a signal on, if there is a keeper in the foreground.
#[must_use]
pub fn pass_on(signal: i32) -> bool {
    let keeper = PASSED_ON.load(Ordering::Acquire);
    let signal = nix::sys::signal::Signal::try_from(signal).ok();
    // One that has ended is waited for: its number is nobody else's.
    keeper != 0 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper as i32), signal).is_ok()
}

/// A keeper that serves.
#[derive(Debug)]
pub struct Kept {
    /// How it is.
    pub status: Status,
    child: Child,
}

impl Kept {
    /// Waits, in the foreground, until it is mounted nowhere any more. Gives whether that was as it should be.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> io::Result<bool> {
        self.child.wait().map(|status| status.success())
    }
}

/// Starts a keeper.
///
/// # Errors
/// When it does not serve.
pub fn start(start: &Start<impl Serialize>, files: &[OwnedFd]) -> Result<Kept, Error> {
    let failed = |error| Error::system("starting a keeper", error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
    let mut command = Command::new("/proc/self/exe");
    // Signals of the terminal come here, and are passed on.
    command.arg(KEEPER).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).process_group(0);
    if !start.foreground {
        command.stderr(Stdio::null());
    }
    let child = command.spawn().map_err(failed)?;
    if start.foreground {
        PASSED_ON.store(child.id(), Ordering::Release);
    }
    send(&ours, start, &borrowed).map_err(failed)?;
    match receive::<Answer<()>>(&ours).map_err(failed)? {
        Some((Answer::Status(status), _)) => Ok(Kept { status, child }),
        Some((Answer::Failed(error), _)) => Err(Error::Other(error)),
        _ => Err(Error::Other("the keeper has died".to_owned())),
    }
}
