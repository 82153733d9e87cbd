//! The little that is needed of URLs (RFC 3986) on top of [`Uri`]: resolving a `Location`, comparing origins, and
//! writing one into a message without what may be secret in it.

use ureq::http::Uri;

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

/// An absolute `http` or `https` URL, without the user and password that it may carry.
#[must_use]
pub fn absolute(text: &str) -> Option<Uri> {
    let (scheme, rest) = text.split_once("://")?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let rest = rest.split('#').next().unwrap_or("");
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let uri: Uri = format!("{}://{host}{slash}{rest}", scheme.to_ascii_lowercase()).parse().ok()?;
    (!uri.host()?.is_empty()).then_some(uri)
}

/// What `location` means in an answer to a request for `base` (RFC 3986, section 5.2); `None` when it is no `http` or
/// `https` URL.
#[must_use]
pub fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.trim();
    let scheme = base.scheme_str().unwrap_or("http");
    let authority = base.authority()?.as_str();
    let is_absolute = location.split(['/', '?', '#']).next().is_some_and(|start| start.contains(':'));
    if is_absolute {
        return absolute(location);
    }
    if let Some(rest) = location.strip_prefix("//") {
        return absolute(&format!("{scheme}://{rest}"));
    }
    let (path, query) = match location.split('#').next().unwrap_or("") {
        "" => (base.path().to_owned(), base.query().map(str::to_owned)),
        reference => match reference.split_once('?') {
            Some(("", query)) => (base.path().to_owned(), Some(query.to_owned())),
            Some((path, query)) => (merged(base.path(), path), Some(query.to_owned())),
            None => (merged(base.path(), reference), None),
        },
    };
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    absolute(&format!("{scheme}://{authority}{path}{query}"))
}

fn merged(base: &str, path: &str) -> String {
    let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    let mut segments: Vec<&str> = Vec::new();
    let ends_in_directory = whole.ends_with('/') || whole.ends_with("/.") || whole.ends_with("/..");
    for segment in whole.split('/') {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let joined = segments.join("/");
    let start = if joined.starts_with('/') { "" } else { "/" };
    let end = if ends_in_directory && !joined.ends_with('/') { "/" } else { "" };
    format!("{start}{joined}{end}")
}

/// `text` as a value in a query (everything but RFC 3986 "unreserved" is escaped).
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_against_the_request() {
        let base: Uri = "https://host:5000/v2/app/blobs/x?a=b".parse().unwrap();
        for (location, expected) in [
            ("https://cdn/y?sig=1#f", Some("https://cdn/y?sig=1")),
            ("HTTP://cdn", Some("http://cdn/")),
            ("//cdn/y", Some("https://cdn/y")),
            ("/y", Some("https://host:5000/y")),
            ("y", Some("https://host:5000/v2/app/blobs/y")),
            ("../manifests/y?c", Some("https://host:5000/v2/app/manifests/y?c")),
            ("../../../../../../y/.", Some("https://host:5000/y/")),
            ("?c=d", Some("https://host:5000/v2/app/blobs/x?c=d")),
            ("", Some("https://host:5000/v2/app/blobs/x?a=b")),
            ("https://user:word@cdn/y", Some("https://cdn/y")),
            ("ftp://cdn/y", None),
            ("file:///etc/passwd", None),
            ("https://", None),
            ("https:///x", None),
            ("https://exa mple/", None),
        ] {
            let resolved = resolve(&base, location).map(|uri| uri.to_string());
            assert_eq!(resolved.as_deref(), expected, "{location}");
        }
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
