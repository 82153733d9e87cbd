//! An HTTP/1.1 server that does what a test tells it to, right or wrong, and remembers what it was asked.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::docker_registry::Pki;

/// One request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Where `Range: bytes=N-` starts.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What goes wrong while the body is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The connection is reset (RST) after so many bytes of the body.
    ResetAfter(usize),
    /// The connection is closed in order (FIN) after so many bytes, less than Content-Length says.
    CutAfter(usize),
    /// Nothing more comes after so many bytes, and the connection stays open.
    StallAfter(usize),
    /// The connection is reset before the status line.
    ResetAtOnce,
    /// All is sent, and the connection is closed in order although nothing said so.
    CloseAfter,
    /// The status line and the header fields come byte by byte, with so long in between.
    DripHead(Duration),
    /// The body comes byte by byte, with so long in between.
    DripBody(Duration),
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) fault: Fault,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), fault: Fault::None }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// `blob`, or the part of it that the request's `Range` asks for.
    pub(crate) fn blob(blob: &[u8], seen: &Seen) -> Self {
        match seen.range_start() {
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
                Self::new(206, &blob[start..]).header("Content-Range", range)
            }
            None => Self::new(200, blob),
        }
    }
}

type Handler = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// The server.
pub(crate) struct FaultServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl FaultServer {
    /// Serves with `handler`, which gets each request and how many with the same path came before it.
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, handler)
    }

    /// [`Self::start`] over TLS.
    pub(crate) fn start_tls(pki: &Pki, handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_tls_with(&pki.path("server.pem"), &pki.path("server.key"), handler)
    }

    /// [`Self::start_tls`] with this certificate and key.
    pub(crate) fn start_tls_with(
        certificate: &Path,
        key: &Path,
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let pem = |path| fs_err::read(path).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&pem(certificate)).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&pem(key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self::start_with(Some(Arc::new(config)), handler)
    }

    fn start_with(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let (thread_log, thread_stop) = (Arc::clone(&log), Arc::clone(&stop));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if thread_stop.load(Ordering::SeqCst) {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (handler, log, stop) = (Arc::clone(&handler), Arc::clone(&thread_log), Arc::clone(&thread_stop));
                // Else a small body waits for its head to be acknowledged, and a reset drops it.
                stream.set_nodelay(true).unwrap();
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    None => serve(&stream, &stream, &*handler, &log, &stop),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let raw = stream.try_clone().unwrap();
                        serve(rustls::StreamOwned::new(connection, stream), &raw, &*handler, &log, &stop);
                    }
                });
            }
        });
        Self { address, log, stop, connections }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How many connections came.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// All requests whose path starts with `prefix`.
    pub(crate) fn seen(&self, prefix: &str) -> Vec<Seen> {
        self.log.lock().unwrap().iter().filter(|seen| seen.path.starts_with(prefix)).cloned().collect()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: impl Read + Write, raw: &TcpStream, handler: &Handler, log: &Mutex<Vec<Seen>>, stop: &AtomicBool) {
    let mut reader = BufReader::new(stream);
    let is_handshake = reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16));
    if is_handshake {
        // TLS where none is spoken: Go's servers say this.
        let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n";
        let _ = reader.get_mut().write_all(answer);
        return;
    }
    while let Some(seen) = read_request(&mut reader) {
        let before = {
            let mut log = log.lock().unwrap();
            let before = log.iter().filter(|other| other.path == seen.path).count();
            log.push(seen.clone());
            before
        };
        let reply = handler(&seen, before);
        if !answer(reader.get_mut(), raw, &reply, stop) {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<impl Read>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut seen = Seen { method, path, headers, body: String::new() };
    let length = seen.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut seen.body).ok()?;
    Some(seen)
}

/// Sends the reply; false when the connection is over.
fn answer(writer: &mut impl Write, raw: &TcpStream, reply: &Reply, stop: &AtomicBool) -> bool {
    let reset = || rustix::net::sockopt::set_socket_linger(raw, Some(Duration::ZERO)).unwrap();
    if matches!(reply.fault, Fault::ResetAtOnce) {
        reset();
        return false;
    }
    let mut head = format!("HTTP/1.1 {} Test\r\n", reply.status);
    let says_length =
        |name: &str| ["content-length", "transfer-encoding"].contains(&name.to_ascii_lowercase().as_str());
    if !reply.headers.iter().any(|(name, _)| says_length(name)) {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let end = match reply.fault {
        Fault::ResetAfter(end) | Fault::CutAfter(end) | Fault::StallAfter(end) => end.min(reply.body.len()),
        _ => reply.body.len(),
    };
    let (head_pause, body_pause) = match reply.fault {
        Fault::DripHead(pause) => (Some(pause), None),
        Fault::DripBody(pause) => (None, Some(pause)),
        _ => (None, None),
    };
    let mut send = |bytes: &[u8], pause: Option<Duration>| match pause {
        None => writer.write_all(bytes).is_ok(),
        Some(pause) => bytes.iter().all(|byte| {
            std::thread::sleep(pause);
            !stop.load(Ordering::SeqCst) && writer.write_all(&[*byte]).is_ok() && writer.flush().is_ok()
        }),
    };
    if !send(head.as_bytes(), head_pause) || !send(&reply.body[..end], body_pause) {
        return false;
    }
    match reply.fault {
        Fault::ResetAfter(_) => {
            // A reset drops what the peer has not read yet: give it a moment.
            std::thread::sleep(Duration::from_millis(30));
            reset();
            false
        }
        Fault::CutAfter(_) | Fault::CloseAfter => false,
        Fault::StallAfter(_) => {
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            false
        }
        _ => true,
    }
}
