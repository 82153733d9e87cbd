//! The little that is needed of URLs (RFC 3986) on top of [`Uri`]: resolving a `Location`, comparing origins, and
//! writing one into a message without what may be secret in it.
//!
//! Registries are tested with clients in Go, so that a `Location` means here what Go's `net/url` and `net/http` make of it.

use base64::Engine as _;
use ureq::http::Uri;

use super::Secret;

/// What may be shown of a URL: no user, no password, and no query, since a signed URL is a credential.
#[must_use]
pub fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{}{}", uri.scheme_str().unwrap_or("http"), host, uri.path())
}

/// Scheme, host and port: what must be equal for credentials to go along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    is_https: bool,
    host: String,
    port: u16,
}

impl Origin {
    pub(crate) fn of(uri: &Uri) -> Self {
        let is_https = uri.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Self { is_https, host: uri.host().unwrap_or("").to_ascii_lowercase(), port }
    }

    pub(crate) fn is_https(&self) -> bool {
        self.is_https
    }
}

/// Parses an absolute `http` or `https` URL; a user and password in it are dropped.
///
/// Returns `None` for anything else.
#[must_use]
pub fn absolute(text: &str) -> Option<Uri> {
    Some(target(text)?.uri)
}

/// Parses an absolute `http` or `https` URL, with the user and password in it.
pub(crate) fn target(text: &str) -> Option<Target> {
    Reference::parse(text.as_bytes())?.against(None)
}

/// The place that a `Location` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address, without user, password and fragment.
    pub uri: Uri,
    /// User and password in the address, as an `Authorization` for this target: Go's `net/http.send` does the same.
    pub authorization: Option<Secret>,
}

/// Resolves `location` in an answer to a request for `base` (RFC 3986, section 5.2), with the bytes that must not stand in a
/// request line escaped as Go's `net/url` does.
///
/// Returns `None` when the result is not an `http` or `https` URL with a host, or when Go refuses it: a control character, a
/// broken percent escape in the path, a port that is not a number.
#[must_use]
pub fn resolve(base: &Uri, location: &[u8]) -> Option<Target> {
    Reference::parse(location)?.against(Some(base))
}

/// A reference to a URL, in the parts that Go's `url.parse` makes of it.
struct Reference {
    scheme: Option<String>,
    /// User information and host; `None` without `//`.
    authority: Option<(Option<Vec<u8>>, String)>,
    /// As it goes into a request line.
    path: String,
    /// As it goes into a request line, without `?`.
    query: Option<String>,
}

impl Reference {
    fn parse(text: &[u8]) -> Option<Self> {
        // Spaces around the value of a field are not part of it (RFC 9110, section 5.5).
        let text = text.trim_ascii();
        if text.len() > URL_MAX || text.iter().any(u8::is_ascii_control) {
            return None;
        }
        let text = text.split(|byte| *byte == b'#').next()?;
        let (scheme, rest) = Self::scheme(text);
        let (rest, query) = match rest.iter().position(|byte| *byte == b'?') {
            Some(at) => (&rest[..at], Some(escape_bytes(&rest[at + 1..], is_query))),
            None => (rest, None),
        };
        // `scheme:path` without a slash is opaque, and a relative path must not have a colon in its first segment.
        if !rest.starts_with(b"/") && (scheme.is_some() || rest.split(|byte| *byte == b'/').next()?.contains(&b':')) {
            return None;
        }
        let is_network = rest.starts_with(b"//") && (scheme.is_some() || !rest.starts_with(b"///"));
        let (authority, path) = if is_network {
            let rest = &rest[2..];
            let (authority, path) = rest.split_at(rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
            (Some(Self::authority(authority)?), path)
        } else {
            (None, rest)
        };
        Some(Self { scheme, authority, path: escaped_path(path)?, query })
    }

    /// Go's `getScheme`.
    fn scheme(text: &[u8]) -> (Option<String>, &[u8]) {
        let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let end = text.iter().position(|byte| !is_scheme(byte)).unwrap_or(text.len());
        match text.get(end) {
            Some(b':') if text[0].is_ascii_alphabetic() => {
                (Some(String::from_utf8_lossy(&text[..end]).to_ascii_lowercase()), &text[end + 1..])
            }
            _ => (None, text),
        }
    }

    /// Splits the authority at its last `@`, and drops an empty port.
    fn authority(text: &[u8]) -> Option<(Option<Vec<u8>>, String)> {
        let (user, host) = match text.iter().rposition(|byte| *byte == b'@') {
            Some(at) => (Some(text[..at].to_vec()), &text[at + 1..]),
            None => (None, text),
        };
        let host = std::str::from_utf8(host).ok()?;
        Some((user, host.strip_suffix(':').unwrap_or(host).to_owned()))
    }

    fn against(self, base: Option<&Uri>) -> Option<Target> {
        let scheme = self.scheme.as_deref().or(base.and_then(Uri::scheme_str))?;
        if !matches!(scheme, "http" | "https") {
            return None;
        }
        let (user, host, path, query) = match self.authority {
            Some((user, host)) => (user, host, without_dots("", &self.path), self.query),
            // `http:/path`: Go has no host to ask then.
            None if self.scheme.is_some() => return None,
            None => {
                let base = base?;
                let keeps_query = self.path.is_empty() && self.query.is_none();
                let query = if keeps_query { base.query().map(str::to_owned) } else { self.query };
                (None, base.authority()?.as_str().to_owned(), without_dots(base.path(), &self.path), query)
            }
        };
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        let uri: Uri = format!("{scheme}://{host}{path}{query}").parse().ok()?;
        let has_host = uri.host().is_some_and(|host| !host.is_empty() && !host.contains('@'));
        // A port that is there must be one: `Uri` takes any text for it.
        let has_port = uri.authority()?.as_str().len() > uri.host()?.len();
        if !has_host || (has_port && uri.port_u16().is_none()) {
            return None;
        }
        let authorization = match user {
            Some(user) => Some(basic(&user)?),
            None => None,
        };
        Some(Target { uri, authorization })
    }
}

/// Longest URL that is parsed, in bytes: `http::Uri` has the same limit.
const URL_MAX: usize = u16::MAX as usize - 1;

/// `Authorization: Basic` of user information in a URL, which is `USER[:PASSWORD]` with percent escapes.
fn basic(user: &[u8]) -> Option<Secret> {
    let (name, password) = match user.iter().position(|byte| *byte == b':') {
        Some(at) => (&user[..at], &user[at + 1..]),
        None => (user, &b""[..]),
    };
    let pair = [unescaped(name)?, b":".to_vec(), unescaped(password)?].concat();
    Some(Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))))
}

/// Go's `URL.EscapedPath`: a path in which everything may stand as it is stays so, any other is decoded and encoded anew.
fn escaped_path(path: &[u8]) -> Option<String> {
    let decoded = unescaped(path)?;
    // `validEncoded` of net/url: unreserved, reserved but `?`, and percent escapes.
    let is_valid = |byte: u8| is_path(byte) || b"!'()*[]%".contains(&byte);
    if path.iter().all(|byte| is_valid(*byte)) {
        return String::from_utf8(path.to_vec()).ok();
    }
    Some(escape_bytes(&decoded, is_path))
}

/// Bytes that Go's `shouldEscape` leaves alone in a path.
fn is_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

/// Bytes that may stand in the query of a request line (RFC 3986, and what `http::Uri` takes besides). Go sends a query as it
/// is, also with a space in it; the escape means the same.
fn is_query(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>`#".contains(&byte)
}

fn escape_bytes(bytes: &[u8], stays: fn(u8) -> bool) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut escaped, byte| {
        if stays(*byte) {
            escaped.push(char::from(*byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

/// Decodes percent escapes; `None` when one is broken.
fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let mut byte = *first;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
            rest = after;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

/// Go's `resolvePath`: `path` below the directory of `base`, without `.` and `..`.
fn without_dots(base: &str, path: &str) -> String {
    let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
    let whole = match path {
        "" => base.to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{directory}/{path}"),
    };
    let mut segments: Vec<&str> = Vec::new();
    let ends_in_directory = whole.ends_with("/.") || whole.ends_with("/..");
    for segment in whole.strip_prefix('/').unwrap_or(&whole).split('/') {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let end = if ends_in_directory && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// Escapes `text` as a value in a query: everything but RFC 3986 "unreserved".
pub(crate) fn escape(text: &str) -> String {
    escape_bytes(text.as_bytes(), |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go 1.19's `base.Parse(location)` and `RequestURI` give, but for the query (see [`is_query`]).
    #[test]
    fn locations_are_resolved_as_go_does() {
        let base: Uri = "https://host:5000/v2/app/blobs/x?a=b".parse().unwrap();
        for (location, expected) in [
            ("https://cdn/y?sig=1#f", Some("https://cdn/y?sig=1")),
            ("HTTP://cdn", Some("http://cdn/")),
            ("https://cdn?x", Some("https://cdn/?x")),
            ("//cdn/y", Some("https://cdn/y")),
            ("/y", Some("https://host:5000/y")),
            ("y", Some("https://host:5000/v2/app/blobs/y")),
            ("./y", Some("https://host:5000/v2/app/blobs/y")),
            ("../manifests/y?c", Some("https://host:5000/v2/app/manifests/y?c")),
            ("../../../../../../y/.", Some("https://host:5000/y/")),
            ("https://cdn/a/../b/./c", Some("https://cdn/b/c")),
            ("https://cdn/a//b/", Some("https://cdn/a//b/")),
            ("..", Some("https://host:5000/v2/app/")),
            ("?c=d", Some("https://host:5000/v2/app/blobs/x?c=d")),
            ("?", Some("https://host:5000/v2/app/blobs/x?")),
            ("#f", Some("https://host:5000/v2/app/blobs/x?a=b")),
            ("", Some("https://host:5000/v2/app/blobs/x?a=b")),
            (" /y ", Some("https://host:5000/y")),
            ("https://user:word@cdn/y", Some("https://cdn/y")),
            ("https://cdn:/y", Some("https://cdn/y")),
            ("https://cdn:443/y", Some("https://cdn:443/y")),
            ("https://[fd00::1]:5000/y", Some("https://[fd00::1]:5000/y")),
            ("/a\"b<c>d`e|f{g}h^i\\j", Some("https://host:5000/a%22b%3Cc%3Ed%60e%7Cf%7Bg%7Dh%5Ei%5Cj")),
            ("/a b", Some("https://host:5000/a%20b")),
            ("/ä/€", Some("https://host:5000/%C3%A4/%E2%82%AC")),
            ("/a%2Fb", Some("https://host:5000/a%2Fb")),
            ("/a%2Fb!'()*[]", Some("https://host:5000/a%2Fb!'()*[]")),
            ("/a%2Fb\"", Some("https://host:5000/a/b%22")),
            ("/?q=\"<>`|{} ä%zz", Some("https://host:5000/?q=%22%3C%3E%60|{}%20%C3%A4%zz")),
            ("/?u=https://x/y?z", Some("https://host:5000/?u=https://x/y?z")),
            ("///y", Some("https://host:5000///y")),
            ("/%zz", None),
            ("/%a", None),
            ("a:b/c", None),
            ("1:b/c", None),
            ("https:y", None),
            ("https:/y", None),
            ("ftp://cdn/y", None),
            ("file:///etc/passwd", None),
            ("https://", None),
            ("https:///x", None),
            ("https://exa mple/", None),
            ("https://cdn:port/", None),
            ("https://cdn:99999/", None),
            ("https://a:1:2/", None),
            ("/a\u{7f}", None),
            ("/a\tb", None),
        ] {
            let resolved = resolve(&base, location.as_bytes()).map(|target| target.uri.to_string());
            assert_eq!(resolved.as_deref(), expected, "{location}");
        }
        let latin1 = resolve(&base, b"/a\xe4").unwrap();
        assert_eq!(latin1.uri.to_string(), "https://host:5000/a%E4");
    }

    #[test]
    fn user_information_is_an_authorization_for_the_target() {
        let base: Uri = "https://host/x".parse().unwrap();
        for (location, expected) in [
            ("https://user:word@cdn/y", Some("Basic dXNlcjp3b3Jk")),
            ("//us%65r:wo%72d@cdn/y", Some("Basic dXNlcjp3b3Jk")),
            ("https://user@cdn/y", Some("Basic dXNlcjo=")),
            ("https://cdn/y@z", None),
        ] {
            let target = resolve(&base, location.as_bytes()).unwrap();
            assert_eq!(target.authorization.as_ref().map(Secret::expose), expected, "{location}");
            assert!(!target.uri.authority().unwrap().as_str().contains('@') && !format!("{target:?}").contains("dXNl"));
        }
        assert_eq!(resolve(&base, b"https://us%zr@cdn/"), None);
    }

    #[test]
    fn origins_know_default_ports_and_case() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap());
        assert_eq!(origin("https://Host/x"), origin("https://host:443/y"));
        assert_ne!(origin("https://host/"), origin("http://host/"));
        assert_ne!(origin("http://host/"), origin("http://host:5000/"));
        assert_ne!(origin("http://host/"), origin("http://sub.host/"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let uri: Uri = "https://user:word@host:1/p?X-Amz-Signature=abc".parse().unwrap();
        assert_eq!(shown(&uri), "https://host:1/p");
        assert_eq!(escape("a b&repository:x/y:pull"), "a%20b%26repository%3Ax%2Fy%3Apull");
    }
}
