//! What URLs say about hosts: origins, loopback, redirect targets, and who may be told a secret.

use std::net::IpAddr;

use ureq::http::Uri;

use crate::reference::DOCKER_HUB;

/// Scheme, host and port: what the `Authorization` header is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) https: bool,
    /// In lower case, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// The origin of an absolute http or https URL; None for anything else, and for URLs that carry a user or password.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        Some(Self {
            https,
            host: bare(authority.host()).to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }

    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }

    /// `HOST[:PORT]` for messages, as a reference names it.
    pub(super) fn server(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.https, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// The host of `HOST[:PORT]` as in a reference.
pub(super) fn host_of(registry: &str) -> &str {
    if registry.starts_with('[') {
        return bare(registry.split_inclusive(']').next().unwrap_or(registry));
    }
    registry.split(':').next().unwrap_or(registry)
}

/// Whether a host is this machine: `localhost` or a loopback address.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The URL that a `Location` header names, seen from the URL that answered (RFC 3986, section 5.2); None when it is malformed.
pub(super) fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return location.parse().ok();
    }
    let scheme = base.scheme_str()?;
    if location.starts_with("//") {
        return format!("{scheme}:{location}").parse().ok();
    }
    let authority = base.authority()?;
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    if location.is_empty() || location.contains("://") {
        return None;
    }
    let directory = base.path().rsplit_once('/').map_or("", |(front, _)| front);
    format!("{scheme}://{authority}{directory}/{location}")
        .parse()
        .ok()
}

/// Why a redirect is not followed; None when it may be. A redirect never leaves https, and stays with http only where http was allowed.
pub(super) fn redirect_problem(from: &Origin, to: &Uri, allow_http: bool) -> Option<&'static str> {
    let Some(to) = Origin::of(to) else {
        return Some("its target is no plain http or https address");
    };
    if to.https {
        return None;
    }
    if from.https {
        return Some("it leads from https to http");
    }
    if to != *from && !allow_http && !to.is_loopback() {
        return Some("it leads to another host by http");
    }
    None
}

/// Whether a token service may be told the credentials of a registry.
///
/// It must be the registry's own: the same host, a host under the same parent domain (`registry.gitlab.com` and `gitlab.com`), or Docker
/// Hub's or NVIDIA's. And it must be reached as safely as the registry is.
pub(super) fn is_own_realm(registry: &Origin, realm: &Origin) -> bool {
    if registry.https && !realm.https {
        return false;
    }
    if registry.host == realm.host {
        return true;
    }
    match registry.host.as_str() {
        DOCKER_HUB => return realm.host == "auth.docker.io",
        "nvcr.io" if realm.host == "authn.nvidia.com" => return true,
        _ => {}
    }
    let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
    if is_address(&registry.host) || is_address(&realm.host) {
        return false;
    }
    let parent = |host: &str| {
        let labels: Vec<&str> = host.rsplit('.').collect();
        // The last two labels, or three where the second is that of a country's registry (`co.uk`).
        let count = match labels.as_slice() {
            [country, second, ..] if country.len() == 2 && second.len() <= 3 => 3,
            _ => 2,
        };
        (labels.len() >= count).then(|| labels[..count].join("."))
    };
    matches!((parent(&registry.host), parent(&realm.host)), (Some(a), Some(b)) if a == b)
}

/// Whether a host is reached without the proxy: by name, by a domain above it, by address or network, as Go's and curl's `no_proxy`.
pub(super) fn is_direct(host: &str, no_proxy: &str) -> bool {
    if is_loopback(host) {
        return true;
    }
    let address = host.parse::<IpAddr>().ok();
    no_proxy
        .split(',')
        .map(|entry| entry.trim().to_ascii_lowercase())
        .filter(|entry| !entry.is_empty())
        .any(|entry| {
            if entry == "*" {
                return true;
            }
            if let (Some(address), Some((network, length))) = (address, entry.split_once('/')) {
                return in_network(address, network, length);
            }
            let name = entry
                .strip_prefix("*.")
                .or_else(|| entry.strip_prefix('.'))
                .unwrap_or(&entry);
            let name = bare(name);
            host == name
                || address.is_none()
                    && host
                        .strip_suffix(name)
                        .is_some_and(|front| front.ends_with('.'))
        })
}

fn in_network(address: IpAddr, network: &str, length: &str) -> bool {
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => (
            u128::from(address.to_bits()),
            u128::from(network.to_bits()),
            32,
        ),
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    if length > width {
        return false;
    }
    let differing = address ^ network;
    differing.checked_shr(width - length).unwrap_or(0) == 0
}

/// A text as a component of a query (RFC 3986, section 2.1).
pub(super) fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        assert_eq!(origin("https://X.org/a"), origin("https://x.org:443/b"));
        assert_ne!(origin("https://x.org"), origin("http://x.org"));
        assert_ne!(origin("https://x.org"), origin("https://x.org:444"));
        assert_ne!(origin("https://x.org"), origin("https://y.x.org"));
        assert_eq!(origin("http://[::1]:5000/").host, "::1");
        for url in ["ftp://x.org/", "https://me:pw@x.org/", "/path"] {
            assert_eq!(Origin::of(&url.parse().unwrap()), None, "{url}");
        }
    }

    #[test]
    fn locations_are_resolved() {
        let base: Uri = "https://x.org:5000/v2/a/blobs/1?q=2".parse().unwrap();
        for (location, expected) in [
            ("https://y.org/z?s=1", Some("https://y.org/z?s=1")),
            ("//y.org/z", Some("https://y.org/z")),
            ("/z?s=1", Some("https://x.org:5000/z?s=1")),
            ("z", Some("https://x.org:5000/v2/a/blobs/z")),
            ("", None),
            ("file:///etc/passwd", None),
            ("http://[broken", None),
        ] {
            let resolved = resolve_location(&base, location).map(|uri| uri.to_string());
            assert_eq!(resolved.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn redirects_never_become_less_safe() {
        for (from, to, allow_http, allowed) in [
            ("https://x.org", "https://y.org/", false, true),
            ("https://x.org", "http://x.org/", true, false),
            ("http://x.org", "http://x.org/b", false, true),
            ("http://x.org", "http://y.org/", false, false),
            ("http://x.org", "http://y.org/", true, true),
            ("http://x.org", "https://y.org/", false, true),
            ("http://127.0.0.1:1", "http://127.0.0.1:2/", false, true),
            ("https://x.org", "https://me:pw@y.org/", false, false),
            ("https://x.org", "gopher://y.org/", true, false),
        ] {
            let problem = redirect_problem(&origin(from), &to.parse().unwrap(), allow_http);
            assert_eq!(problem.is_none(), allowed, "{from} {to} {problem:?}");
        }
    }

    #[test]
    fn credentials_go_to_the_registrys_own_token_service() {
        for (registry, realm, own) in [
            ("https://ghcr.io", "https://ghcr.io/token", true),
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                true,
            ),
            (
                "https://registry-1.docker.io",
                "https://evil.docker.io/token",
                false,
            ),
            (
                "https://registry.gitlab.com",
                "https://gitlab.com/jwt/auth",
                true,
            ),
            ("https://nvcr.io", "https://authn.nvidia.com/token", true),
            ("https://evil.io", "https://authn.nvidia.com/token", false),
            ("https://x.org", "http://x.org/token", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            (
                "http://127.0.0.1:5000",
                "http://127.0.0.2:5001/token",
                false,
            ),
            ("https://x.org", "https://y.org/token", false),
            ("https://a.co.uk", "https://b.co.uk/token", false),
            ("https://r.a.co.uk", "https://auth.a.co.uk/token", true),
            ("https://registry", "https://token/", false),
        ] {
            assert_eq!(
                is_own_realm(&origin(registry), &origin(realm)),
                own,
                "{registry} {realm}"
            );
        }
    }

    #[test]
    fn no_proxy_knows_names_domains_addresses_and_networks() {
        for (host, list, direct) in [
            ("localhost", "", true),
            ("127.0.0.1", "", true),
            ("::1", "", true),
            ("x.org", "", false),
            ("x.org", "y.org, x.org", true),
            ("a.x.org", "x.org", true),
            ("a.x.org", ".x.org", true),
            ("a.x.org", "*.X.org", true),
            ("bax.org", "x.org", false),
            ("x.org", "*", true),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "2.3", false),
            ("10.1.2.3", "10.0.0.0/99", false),
            ("fd00::1", "fd00::/8", true),
            ("fd00::1", "10.0.0.0/8", false),
        ] {
            assert_eq!(is_direct(host, list), direct, "{host} in `{list}`");
        }
    }

    #[test]
    fn hosts_of_registries() {
        assert_eq!(host_of("[::1]:5000"), "::1");
        assert_eq!(host_of("[::1]"), "::1");
        assert_eq!(host_of("x.org:5000"), "x.org");
        assert_eq!(host_of("x.org"), "x.org");
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            percent_encode("repository:a/b:pull &=é"),
            "repository%3Aa%2Fb%3Apull%20%26%3D%C3%A9"
        );
    }
}
