//! The `WWW-Authenticate` header: what a registry wants to see.
//!
//! RFC 9110, section 11.6.1: a list of challenges, each a scheme with parameters; the commas between challenges and between parameters are
//! the same, so a scheme is known by the space after it.

/// A challenge that we can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// RFC 7617.
    Basic,
    /// Token authentication of the Distribution project.
    Bearer {
        /// URL of the token service.
        realm: String,
        /// The name under which the service knows the registry.
        service: Option<String>,
        /// What the token should permit.
        scope: Option<String>,
    },
}

/// The challenges in the values of all `WWW-Authenticate` headers; those of unknown schemes are left out.
pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    headers.flat_map(parse_header).collect()
}

fn parse_header(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for item in split_items(header) {
        let item = item.trim();
        // `Bearer realm="x"`, `Basic`, or a further parameter `service="y"`.
        let before_value = item.split('=').next().unwrap_or(item).trim_end();
        let (scheme, parameter) = match before_value.split_once(char::is_whitespace) {
            Some((scheme, _)) => (Some(scheme), item[scheme.len()..].trim()),
            None if item.contains('=') => (None, item),
            None if item.is_empty() => continue,
            None => (Some(item), ""),
        };
        if let Some(scheme) = scheme {
            challenges.push((scheme.to_ascii_lowercase(), Vec::new()));
        }
        if let (Some((name, value)), Some((_, parameters))) =
            (parameter.split_once('='), challenges.last_mut())
        {
            parameters.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    challenges
        .into_iter()
        .filter_map(|(scheme, parameters)| {
            let parameter = |wanted: &str| {
                parameters
                    .iter()
                    .find(|(name, value)| name == wanted && !value.is_empty())
                    .map(|(_, value)| value.clone())
            };
            match scheme.as_str() {
                "basic" => Some(Challenge::Basic),
                "bearer" => Some(Challenge::Bearer {
                    realm: parameter("realm")?,
                    service: parameter("service"),
                    scope: parameter("scope"),
                }),
                _ => None,
            }
        })
        .collect()
}

/// Splits at commas outside quotes.
fn split_items(header: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (position, character) in header.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(&header[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    items.push(&header[start..]);
    items
}

fn unquote(value: &str) -> String {
    let Some(inner) = value
        .strip_prefix('"')
        .map(|value| value.strip_suffix('"').unwrap_or(value))
    else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_of_the_field() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/ubuntu:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/ubuntu:pull"),
                )],
            ),
            (
                r#"bearer realm="https://x/", scope="a,b""#,
                vec![bearer("https://x/", None, Some("a,b"))],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="x", Bearer realm="y""#,
                vec![Challenge::Basic, bearer("y", None, None)],
            ),
            (
                r#"Bearer realm=https://x/t,service=s"#,
                vec![bearer("https://x/t", Some("s"), None)],
            ),
            (r#"Bearer realm="a\"b""#, vec![bearer("a\"b", None, None)]),
            (
                r#"Bearer realm="https://x/t?a=b",service="s=1""#,
                vec![bearer("https://x/t?a=b", Some("s=1"), None)],
            ),
            (r#"Bearer service="s""#, vec![]),
            ("Digest nonce=x", vec![]),
            ("", vec![]),
            (",,", vec![]),
        ] {
            assert_eq!(parse([header].into_iter()), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(header in "\\PC{0,80}") {
            let _ = parse([header.as_str()].into_iter());
        }
    }
}
