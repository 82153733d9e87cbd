//! Which proxy a request goes through: the rules of Go's `golang.org/x/net/http/httpproxy`, which skopeo and podman follow.

use std::net::IpAddr;

use base64::Engine as _;
use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::{Error, Secret};
use crate::config::ProxyVariables;

/// What is said of a SOCKS proxy, which skopeo and podman take (`socks5://` only).
const SOCKS: &str = " (SOCKS proxies are not supported: name an HTTP proxy, or add the registry to NO_PROXY)";

/// The proxies of the environment, parsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    pub(crate) https: Option<Proxy>,
    pub(crate) http: Option<Proxy>,
    none: Vec<Exception>,
}

impl Proxies {
    pub(crate) fn new(variables: &ProxyVariables) -> Result<Self, Error> {
        let parse = |value: &Option<String>, name| match value.as_deref().map(str::trim) {
            None | Some("") => Ok(None),
            Some(value) => {
                let value = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
                let is_http = |proxy: &Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
                let is_socks = value.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("socks"));
                let more = if is_socks { SOCKS } else { "" };
                Proxy::new(&value).ok().filter(is_http).map(Some).ok_or(Error::Proxy(name, more))
            }
        };
        let none = variables.none.as_deref().unwrap_or("").split(',').filter_map(Exception::parse).collect();
        Ok(Self { https: parse(&variables.https, "HTTPS_PROXY")?, http: parse(&variables.http, "HTTP_PROXY")?, none })
    }

    /// Whether `uri` is reached without a proxy: this machine always is.
    pub(crate) fn is_direct(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let address: Option<IpAddr> = host.parse().ok().map(|address: IpAddr| address.to_canonical());
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.none.iter().any(|exception| exception.matches(&host, port, address))
    }
}

/// Returns `Proxy-Authorization` for the user and password in the proxy's URL, if there are any.
pub(super) fn authorization(proxy: &Proxy) -> Option<Secret> {
    if proxy.username().is_none() && proxy.password().is_none() {
        return None;
    }
    let pair = format!("{}:{}", proxy.username().unwrap_or_default(), proxy.password().unwrap_or_default());
    Some(Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))))
}

/// One element of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network {
        address: IpAddr,
        bits: u8,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    /// `.example.com` means the hosts below, `example.com` also the host itself.
    Domain {
        suffix: String,
        also_itself: bool,
        port: Option<u16>,
    },
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= most).then_some(Self::Network { address, bits });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Some(Self::Address { address, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Some(Self::Address { address, port });
        }
        let host = if host.starts_with("*.") { &host[1..] } else { host };
        let also_itself = !host.starts_with('.');
        let suffix = format!(".{}", host.trim_start_matches('.'));
        (suffix.len() > 1).then_some(Self::Domain { suffix, also_itself, port })
    }

    fn matches(&self, host: &str, at: u16, from: Option<IpAddr>) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        match self {
            Self::All => true,
            Self::Network { address, bits: length } => from.is_some_and(|from| {
                let differing = (bits(from) ^ bits(*address)).leading_zeros();
                from.is_ipv4() == address.is_ipv4() && differing >= u32::from(*length)
            }),
            Self::Address { address, port } => from == Some(*address) && port.is_none_or(|port| port == at),
            Self::Domain { suffix, also_itself, port } => {
                let is_it = *also_itself && host == &suffix[1..];
                from.is_none() && (is_it || host.ends_with(suffix)) && port.is_none_or(|port| port == at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_follows_go() {
        let direct = |none: &str, uri: &str| {
            let variables = ProxyVariables { none: Some(none.to_owned()), ..ProxyVariables::default() };
            Proxies::new(&variables).unwrap().is_direct(&uri.parse().unwrap())
        };
        for (none, uri, expected) in [
            ("", "https://localhost:5000/", true),
            ("", "http://127.9.9.9/", true),
            ("", "http://[::1]:5000/", true),
            ("", "https://example.com/", false),
            ("*", "https://example.com/", true),
            ("example.com", "https://example.com/", true),
            ("example.com", "https://a.example.com/", true),
            ("example.com", "https://anexample.com/", false),
            (".example.com", "https://example.com/", false),
            (" x, .EXAMPLE.com ", "https://A.example.com/", true),
            ("*.example.com", "https://a.example.com/", true),
            ("example.com:5000", "https://example.com:5000/", true),
            ("example.com:5000", "https://example.com/", false),
            ("example.com:443", "https://example.com/", true),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("10.0.0.0/8", "https://[a00::]/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("10.0.0.0/99", "https://10.1.2.3/", false),
            ("10.1.2.3:80", "http://10.1.2.3/", true),
            ("10.1.2.3:80", "https://10.1.2.3/", false),
            ("fd00::/8", "https://[fd12::1]/", true),
            ("10.1.2.3", "https://[::ffff:10.1.2.3]/", true),
            ("2.3", "http://10.1.2.3/", false),
            ("*example.com", "https://example.com/", false),
            ("example.com:port", "https://example.com/", false),
            (",,example.com,", "https://example.com/", true),
        ] {
            assert_eq!(direct(none, uri), expected, "{none} {uri}");
        }
    }

    #[test]
    fn a_bad_proxy_is_named_but_not_shown() {
        for bad in ["ftp://user:word@x y", "socks5://user:word@host", "SOCKS5h://user:word@host"] {
            let variables = ProxyVariables { https: Some(bad.to_owned()), ..ProxyVariables::default() };
            let error = Proxies::new(&variables).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("word"), "{error}");
            assert_eq!(
                error.contains("SOCKS proxies are not supported"),
                bad.to_lowercase().starts_with("socks"),
                "{error}"
            );
            assert!(!format!("{variables:?}").contains("word"));
        }
    }
}
