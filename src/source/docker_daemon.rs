//! `docker-daemon:`: an image of the Docker daemon (or of podman's service), asked for over its socket.
//!
//! ```text
//! GET /images/NAME/get HTTP/1.0   ─▶   200, the archive of `docker save` until the connection closes
//! ```
//!
//! HTTP 1.0 keeps the answer free of chunks. The archive's table of contents comes last, so it is copied to a file first.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::archive::{Archive, Duplicates};
use super::docker_archive::{DockerArchive, DockerImage};
use super::{Error, Options};
use crate::json::Document;
use crate::reference::DaemonImage;

/// Where the daemon listens unless `DOCKER_HOST` says otherwise.
pub const DEFAULT_DOCKER_HOST: &str = "unix:///var/run/docker.sock";

/// The port of a `tcp://` host that names none (Docker's documentation of `dockerd -H`).
const DEFAULT_PORT: u16 = 2375;
/// The largest head of an answer, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// The most header fields of an answer.
const FIELDS_MAX: usize = 64;
/// The largest error message that is read, in bytes (containers/image `internal/iolimits`, `MaxErrorBodySize`).
const MESSAGE_MAX: u64 = 1 << 20;
/// How long the daemon may be silent. It says nothing while it packs a large image.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Asks the daemon for the image.
pub(super) fn open(image: &DaemonImage, options: &Options) -> Result<DockerImage, Error> {
    let (name, names) = match image {
        DaemonImage::Name(reference) => (reference.familiar(), vec![reference.clone()]),
        DaemonImage::Id(id) => (id.to_string(), Vec::new()),
    };
    let shown = format!("docker-daemon:{name}");
    let host = options.docker_host.as_deref().unwrap_or(DEFAULT_DOCKER_HOST);
    let connection = connect(&shown, host)?;
    let body = get(&shown, host, connection, &name)?;
    let archive = Archive::from_stream(shown, body, options, Duplicates::First)?;
    let archive = Arc::new(DockerArchive::new(archive, options.limit)?);
    match image {
        // An id can have any number of names, of which none was asked for: the archive's own.
        DaemonImage::Id(_) => archive.find(&crate::reference::ArchiveSelect::Only),
        DaemonImage::Name(_) => archive.only(names),
    }
}

trait Connection: Read + Write + Send {}
impl<C: Read + Write + Send> Connection for C {}

fn connect(shown: &str, host: &str) -> Result<Box<dyn Connection>, Error> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "may you use it? (group docker)",
            _ => "does the daemon run there? DOCKER_HOST chooses another place",
        };
        Error::Io { what: format!("{shown}: connect to the Docker daemon at {host} ({hint})"), error }
    };
    if let Some(path) = host.strip_prefix("unix://") {
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(failed)?;
        return Ok(Box::new(stream));
    }
    if let Some(address) = host.strip_prefix("tcp://").map(|address| address.trim_end_matches('/')) {
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let stream = if has_port { TcpStream::connect(address) } else { TcpStream::connect((address, DEFAULT_PORT)) };
        let stream = stream.map_err(failed)?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(failed)?;
        return Ok(Box::new(stream));
    }
    Err(Error::Invalid(format!(
        "{shown}: DOCKER_HOST is {host:?}; only unix:///PATH and plain tcp://HOST:PORT are supported \
         (use docker save and docker-archive:FILE)"
    )))
}

/// Sends the request and reads the head of the answer; gives what comes after it.
fn get(shown: &str, host: &str, mut connection: Box<dyn Connection>, name: &str) -> Result<Body, Error> {
    let io = |error| Error::Io { what: format!("{shown}: ask the Docker daemon at {host}"), error };
    let path = escape(name);
    let request = format!("GET /images/{path}/get HTTP/1.0\r\nHost: docker\r\nUser-Agent: prepull\r\n\r\n");
    connection.write_all(request.as_bytes()).and_then(|()| connection.flush()).map_err(io)?;

    let mut read = Vec::new();
    let mut buffer = [0; 8192];
    let head = loop {
        let count = match connection.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count.map_err(io)?,
        };
        read.extend_from_slice(&buffer[..count]);
        match parse_head(&read) {
            Ok(Some(head)) => break head,
            Ok(None) if count > 0 && read.len() < HEAD_MAX => {}
            Ok(None) => return Err(invalid(shown, host, "an HTTP head that does not end")),
            Err(why) => return Err(invalid(shown, host, &why)),
        }
    };
    let rest = read.split_off(head.length);
    let body = Body { first: io::Cursor::new(rest), connection, left: head.content_length };
    if head.status == 200 {
        return Ok(body);
    }
    let mut text = Vec::new();
    let _ = body.take(MESSAGE_MAX).read_to_end(&mut text); // it is only for the message
    let message = Document::parse(&text).ok().and_then(|document| {
        let message = document.top().get_text("message").ok()?.into_owned();
        Some(message).filter(|message| !message.is_empty())
    });
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned());
    let message = message.trim().escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if head.status == 404 {
        return Err(Error::NotFound(format!("{shown}: the Docker daemon says: {message} (docker pull it first)")));
    }
    Err(Error::Invalid(format!("{shown}: the Docker daemon at {host} says: {} {message}", head.status)))
}

fn invalid(shown: &str, host: &str, why: &str) -> Error {
    Error::Invalid(format!("{shown}: not a Docker daemon at {host}: {why}"))
}

struct Head {
    length: usize,
    status: u16,
    content_length: Option<u64>,
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its answer is not HTTP: {error}")),
    };
    let field = |name: &str| {
        response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    if field("transfer-encoding").is_some_and(|value| !value.eq_ignore_ascii_case(b"identity")) {
        return Err("it answers in chunks, which HTTP 1.0 does not have".to_owned());
    }
    let content_length = match field("content-length") {
        Some(value) => {
            let number = std::str::from_utf8(value).ok().and_then(|value| value.trim().parse().ok());
            Some(number.ok_or("its Content-Length is not a number")?)
        }
        None => None,
    };
    Ok(Some(Head { length, status: response.code.unwrap_or_default(), content_length }))
}

/// What comes after the head: until the connection closes, and exactly `Content-Length` bytes if there is one.
struct Body {
    first: io::Cursor<Vec<u8>>,
    connection: Box<dyn Connection>,
    left: Option<u64>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = match self.left {
            Some(left) => buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => buffer.len(),
        };
        if wanted == 0 {
            return Ok(0);
        }
        let mut read = self.first.read(&mut buffer[..wanted])?;
        if read == 0 {
            read = self.connection.read(&mut buffer[..wanted])?;
        }
        if let Some(left) = &mut self.left {
            if read == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{left} bytes of the answer are missing"),
                ));
            }
            *left -= read as u64;
        }
        Ok(read)
    }
}

/// Keeps what a path may have (RFC 3986 `pchar` and `/`); references have little else.
fn escape(name: &str) -> String {
    use std::fmt::Write as _;
    name.bytes().fold(String::new(), |mut path, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' => {
                path.push(char::from(byte));
            }
            _ => {
                let _ = write!(path, "%{byte:02X}");
            }
        }
        path
    })
}

#[cfg(test)]
mod tests;
