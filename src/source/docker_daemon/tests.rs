//! A daemon of our own on a private socket, which answers once.

use std::os::unix::net::UnixListener;
use std::thread;

use super::*;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::source::ImageSource as _;

fn image(name: &str) -> DaemonImage {
    DaemonImage::Name(Reference::parse(name).unwrap())
}

/// What `open` makes of `answer`, and the request that it sent.
fn ask(image: &DaemonImage, answer: Vec<u8>) -> (Result<DockerImage, Error>, String) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let _ = stream.write_all(&answer);
        String::from_utf8(request).unwrap()
    });
    let options = Options { docker_host: Some(format!("unix://{}", socket.display())), ..Options::default() };
    let result = open(image, &options);
    (result, server.join().unwrap())
}

fn archive() -> Vec<u8> {
    let config = br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = br#"[{"Config":"c.json","RepoTags":["x:1","y:2"],"Layers":null}]"#;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in [("c.json", &config[..]), ("manifest.json", manifest)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("{head}\r\n\r\n").as_bytes(), body].concat()
}

#[test]
fn the_archive_is_asked_for_and_read() {
    let (source, request) = ask(&image("localhost:5000/a/b:1"), answer("HTTP/1.0 200 OK", &archive()));
    assert_eq!(source.unwrap().names(), [Reference::parse("localhost:5000/a/b:1").unwrap()]);
    assert!(request.starts_with("GET /images/localhost:5000/a/b:1/get HTTP/1.0\r\n"), "{request}");
    assert!(ask(&image("alpine:3"), answer("HTTP/1.0 200 OK", &archive())).1.starts_with("GET /images/alpine:3/get "));
    let id = DaemonImage::Id(Digest::of(b""));
    let tar = archive();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", tar.len());
    let (source, request) = ask(&id, answer(&head, &tar));
    assert_eq!(source.unwrap().names().len(), 2);
    assert!(request.starts_with(&format!("GET /images/{}/get ", Digest::of(b""))), "{request}");
}

#[test]
fn its_errors_are_passed_on_in_one_line() {
    let long_head = format!("HTTP/1.0 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
    let table = [
        (
            answer("HTTP/1.0 404 Not Found", br#"{"message":"No such image: a:1"}"#),
            "says: No such image: a:1 (docker pull",
        ),
        (answer("HTTP/1.0 500 Oops", b"two\nlines"), "says: 500 two\\nlines"),
        (answer("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", b""), "chunks"),
        (answer("HTTP/1.0 200 OK\r\nContent-Length: x", b""), "Content-Length"),
        (answer("HTTP/1.0 200 OK\r\nContent-Length: 999999", &archive()), "are missing"),
        (answer("HTTP/1.0 200 OK", &archive()[..540]), "truncated"),
        (answer("HTTP/1.0 200 OK", b""), "no manifest.json"),
        (answer("SSH-2.0-OpenSSH", b""), "not HTTP"),
        (answer(&long_head, b""), "head that does not end"),
        (Vec::new(), "does not end"),
    ];
    for (bytes, part) in table {
        let error = ask(&image("a:1"), bytes).0.expect_err(part).to_string();
        assert!(error.contains(part) && error.contains("docker-daemon:a:1") && !error.contains('\n'), "{error}");
    }
    assert!(matches!(ask(&image("a:1"), answer("HTTP/1.0 404 X", b"{}")).0, Err(Error::NotFound(_))));
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    for (host, part) in [
        ("unix:///nonexistent/docker.sock", "does the daemon run there?"),
        ("tcp://127.0.0.1:1", "does the daemon run there?"),
        ("ssh://host", "only unix:///PATH"),
        ("", "only unix:///PATH"),
    ] {
        let options = Options { docker_host: Some(host.to_owned()), ..Options::default() };
        let error = open(&image("a:1"), &options).unwrap_err().to_string();
        assert!(error.contains(part), "{host}: {error}");
    }
}

#[test]
fn names_are_escaped_in_the_request() {
    assert_eq!(escape("[::1]:5000/a:1"), "%5B::1%5D:5000/a:1");
    assert_eq!(escape("a b\r\n?#%"), "a%20b%0D%0A%3F%23%25");
}
