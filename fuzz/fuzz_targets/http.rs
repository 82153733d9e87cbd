//! A registry that answers anything: redirects, challenges, tokens, ranges, errors. Credentials go nowhere but to the
//! registry and the token server that it names, and no error shows them.
//!
//! All connections go through a proxy in this process, by whatever name; addresses that are reached without one are left out.
#![no_main]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prepull::config::{Environment, ProxyVariables};
use prepull::digest::Digest;
use prepull::registry::challenge;
use prepull::registry::foreign::absolute;
use prepull::registry::retry::Policy;
use prepull::registry::{Client, Credentials, Error, Options, Which};
use prepull_fuzz::{SEPARATOR, choice};

const REGISTRY: &str = "registry.test";

/// The password, and what it looks like in a header field with its user.
const PASSWORD: &str = "Zmk4eHJ0";
const ENCODED: &str = "dTpabWs0ZUhKMA==";

/// The most answers to one client.
const ANSWERS: usize = 12;

#[derive(Default)]
struct Server {
    answers: VecDeque<Vec<u8>>,
    requests: Vec<String>,
}

static SERVER: Mutex<Server> = Mutex::new(Server { answers: VecDeque::new(), requests: Vec::new() });

fn server() -> MutexGuard<'static, Server> {
    SERVER.lock().expect("whole")
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let text = String::from_utf8_lossy(rest).to_lowercase();
    if ["localhost", "127.", "["].iter().any(|direct| text.contains(direct)) {
        return;
    }
    let answers: VecDeque<Vec<u8>> = rest.split(|byte| *byte == SEPARATOR).map(<[u8]>::to_vec).take(ANSWERS).collect();
    *server() = Server { answers, requests: Vec::new() };
    let client = Client::new(REGISTRY, "a/b", &options(choice & 1 == 1)).expect("a client");
    let mut errors = Vec::new();
    let digest = Digest::of(b"blob");
    let which = if choice & 2 == 0 { Which::Tag("v1") } else { Which::Digest(&digest) };
    match client.manifest(which, 1000) {
        Ok(manifest) => assert!(manifest.bytes.len() <= 1000),
        Err(error) => errors.push(error),
    }
    match client.blob(&digest, 100) {
        Ok(mut blob) => {
            let mut bytes = Vec::new();
            // An inner error is the registry's.
            if let Err(error) = (&mut blob).take(10_000).read_to_end(&mut bytes) {
                errors.extend(error.into_inner().and_then(|inner| inner.downcast::<Error>().ok()).map(|inner| *inner));
            }
        }
        Err(error) => errors.push(error),
    }
    for error in errors {
        let error = error.to_string();
        assert!(!error.contains(PASSWORD) && !error.contains(ENCODED), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    let token_servers: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("www-authenticate:"))
        .flat_map(|field| challenge::parse([field]))
        .filter_map(|challenge| absolute(challenge.get("realm")?)?.host().map(str::to_owned))
        .collect();
    for request in &server().requests {
        let request = request.to_lowercase();
        let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        let name = host.split(':').next().unwrap_or_default();
        // User and password that a `Location` has for its target do go there.
        let mut authorizations = request.lines().filter(|line| line.starts_with("authorization:"));
        let has_own =
            authorizations.any(|line| [PASSWORD, ENCODED].iter().any(|secret| line.contains(&secret.to_lowercase())));
        assert!(!has_own || name == REGISTRY || token_servers.iter().any(|host| host == name), "{request}");
    }
});

fn options(has_credentials: bool) -> Options {
    let proxy = Some(format!("http://{}", address()));
    let environment = Environment {
        home: "/nowhere".into(),
        registry_auth_file: Some("/nowhere/auth.json".into()),
        path: Some("/nowhere".into()),
        proxy: ProxyVariables { https: proxy.clone(), http: proxy, none: None },
        ..Environment::default()
    };
    let mut options = Options::new(environment);
    options.tls_verify = false;
    options.retry = Policy { times: 0, delay: Some(Duration::ZERO), ..Default::default() };
    options.limits.timeout = Duration::from_secs(2);
    options.limits.silence = Duration::from_secs(2);
    options.credentials = has_credentials.then(|| Credentials::basic("u", PASSWORD));
    options
}

/// Where the proxy listens.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                // Who has heard enough hangs up.
                let _ = connection.and_then(answer);
            }
        });
        address
    })
}

/// Answers one request to the proxy. CONNECT, which is for HTTPS, fails, so that plain HTTP is tried: in absolute form.
fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    connection.set_nodelay(true)?;
    let request = head(&mut connection)?;
    if request.starts_with("CONNECT ") {
        return Ok(());
    }
    let answer = {
        let mut server = server();
        server.requests.push(request);
        server.answers.pop_front().unwrap_or_default()
    };
    connection.write_all(&answer)?;
    connection.shutdown(std::net::Shutdown::Write)
}

fn head(connection: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
