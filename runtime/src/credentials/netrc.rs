//! enroot's `.credentials`: a netrc file (curl, "netrc") whose passwords may be made by a shell.
//!
//! Words are separated by white space: `machine HOST login USER password PASSWORD`, on one line or several. `#` where a name
//! is expected begins a comment, a word in double quotes may hold anything (`\"`, `\\`, `\n`, `\r`, `\t`). A password that begins with `$` is not
//! the password: it and the rest of its line are words for a shell, as in enroot. A user such as NVIDIA's `$oauthtoken` is what it says.
//!
//! `default` entries are skipped: they would show a password to every host that asks for one. `macdef` is of FTP, and skipped.

use cista_images::registry::Secret;

/// A login of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `HOST` or `HOST:PORT`, in lower case.
    pub(super) machine: String,
    pub(super) login: String,
    pub(super) password: Password,
}

/// How a password is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Password {
    Literal(Secret),
    /// Words of a shell that make it. They may hold secrets themselves.
    Shell(Secret),
}

/// What is wrong with a file, and in which line (the first is 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) problem: &'static str,
}

/// The first entry for a server (`HOST[:PORT]`) and, if one is given, a user. An entry with the port goes before one without.
pub(super) fn find<'a>(
    entries: &'a [Entry],
    is_server: impl Fn(&str) -> bool,
    is_host: impl Fn(&str) -> bool,
    user: Option<&str>,
) -> Option<&'a Entry> {
    let of_user = |entry: &&Entry| user.is_none_or(|user| user == entry.login);
    entries
        .iter()
        .filter(of_user)
        .find(|entry| is_server(&entry.machine))
        .or_else(|| {
            entries
                .iter()
                .filter(of_user)
                .find(|entry| is_host(&entry.machine))
        })
}

/// Reads a file. Entries without a user or a password are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    let mut words = Words {
        lines: text.lines().enumerate(),
        rest: "",
        line: 0,
    };
    let mut entries = Vec::new();
    let mut current: Option<Draft> = None;
    while let Some(word) = words.next_word(true)? {
        match word.as_str() {
            "machine" => {
                entries.extend(current.take().and_then(Draft::finish));
                current = Some(Draft {
                    machine: words.value()?.to_ascii_lowercase(),
                    ..Draft::default()
                });
            }
            "default" => {
                entries.extend(current.take().and_then(Draft::finish));
                // Collected and dropped.
                current = Some(Draft::default());
            }
            "login" => words.draft(&mut current)?.login = Some(words.value()?),
            "account" => drop(words.value()?),
            "password" => {
                let password = words.password()?;
                words.draft(&mut current)?.password = Some(password);
            }
            "macdef" => words.skip_macro(),
            _ => {
                return Err(words.error(
                    "expected `machine`, `login` or `password`; a word with spaces needs double quotes",
                ));
            }
        }
    }
    entries.extend(current.and_then(Draft::finish));
    Ok(entries)
}

#[derive(Default)]
struct Draft {
    /// Empty for `default`.
    machine: String,
    login: Option<String>,
    password: Option<Password>,
}

impl Draft {
    fn finish(self) -> Option<Entry> {
        Some(Entry {
            machine: Some(self.machine).filter(|machine| !machine.is_empty())?,
            login: self.login?,
            password: self.password?,
        })
    }
}

struct Words<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    /// What is left of the current line.
    rest: &'a str,
    line: usize,
}

impl<'a> Words<'a> {
    fn error(&self, problem: &'static str) -> SyntaxError {
        SyntaxError {
            line: self.line,
            problem,
        }
    }

    fn draft<'d>(&self, current: &'d mut Option<Draft>) -> Result<&'d mut Draft, SyntaxError> {
        current
            .as_mut()
            .ok_or_else(|| self.error("`machine` has to come first"))
    }

    /// Goes to the next word, over white space and ends of lines, and comments where none of them can be a value; false at the end.
    fn skip_space(&mut self, comments: bool) -> bool {
        loop {
            self.rest = self.rest.trim_start();
            let is_over = self.rest.is_empty() || comments && self.rest.starts_with('#');
            if !is_over {
                return true;
            }
            match self.lines.next() {
                Some((number, line)) => (self.rest, self.line) = (line, number + 1),
                None => return false,
            }
        }
    }

    /// The next word; None at the end.
    fn next_word(&mut self, comments: bool) -> Result<Option<String>, SyntaxError> {
        if !self.skip_space(comments) {
            return Ok(None);
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return self.quoted(quoted).map(Some);
        }
        let end = self
            .rest
            .find(char::is_whitespace)
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Some(word.to_owned()))
    }

    fn quoted(&mut self, text: &'a str) -> Result<String, SyntaxError> {
        let mut word = String::new();
        let mut characters = text.char_indices();
        while let Some((position, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &text[position + 1..];
                    return Ok(word);
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => word.push('\n'),
                    Some((_, 'r')) => word.push('\r'),
                    Some((_, 't')) => word.push('\t'),
                    Some((_, other)) => word.push(other),
                    None => break,
                },
                other => word.push(other),
            }
        }
        Err(self.error("a double quote is not closed"))
    }

    fn value(&mut self) -> Result<String, SyntaxError> {
        let line = self.line;
        self.next_word(false)?.ok_or(SyntaxError {
            line,
            problem: "the last word lacks its value",
        })
    }

    fn password(&mut self) -> Result<Password, SyntaxError> {
        if self.skip_space(false) && self.rest.starts_with('$') {
            let command = std::mem::take(&mut self.rest);
            return Ok(Password::Shell(Secret::new(command.trim_end())));
        }
        Ok(Password::Literal(Secret::new(self.value()?)))
    }

    /// A macro goes on to an empty line.
    fn skip_macro(&mut self) {
        for (number, line) in self.lines.by_ref() {
            self.line = number + 1;
            if line.trim().is_empty() {
                break;
            }
        }
        self.rest = "";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Vec<String> {
        parse(text)
            .unwrap()
            .into_iter()
            .map(|entry| {
                let (kind, password) = match &entry.password {
                    Password::Literal(secret) => ("is", secret.expose()),
                    Password::Shell(secret) => ("from", secret.expose()),
                };
                format!("{} {} {kind} {password}", entry.machine, entry.login)
            })
            .collect()
    }

    #[test]
    fn files_of_the_field() {
        for (text, expected) in [
            ("", vec![]),
            (
                "# NGC\nmachine nvcr.io login $oauthtoken password abc==\nmachine auth.docker.io login me password x",
                vec!["nvcr.io $oauthtoken is abc==", "auth.docker.io me is x"],
            ),
            (
                "machine gcr.io login oauth2accesstoken password $(gcloud auth print-access-token)\nmachine h login a password $TOKEN # of today",
                vec![
                    "gcr.io oauth2accesstoken from $(gcloud auth print-access-token)",
                    "h a from $TOKEN # of today",
                ],
            ),
            (
                "machine H:5000\n  login me\n\tpassword \"a \\\"b\\\" $c\"\n\n",
                vec!["h:5000 me is a \"b\" $c"],
            ),
            (
                "default login x password y machine h login a account z password #b # c",
                vec!["h a is #b"],
            ),
            ("machine h login me", vec![]),
            ("machine h password $x", vec![]),
            (
                "macdef init\ncd /pub\nbin\n\nmachine h login a password b",
                vec!["h a is b"],
            ),
            (
                "machine h login machine password password machine i login b password c",
                vec!["h machine is password", "i b is c"],
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_point_at_the_line_and_hold_no_word_of_it() {
        for (text, line) in [
            ("login me", 1),
            ("\n\nmachine h login a password hunter2 secret", 3),
            ("machine h\nlogin", 2),
            ("machine h login a password \"hunter2", 1),
            ("machine", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(!error.problem.contains("hunter2") && !error.problem.contains("secret"));
        }
        let entries =
            parse("machine h login a password hunter2\nmachine h login b password $(echo hunter2)")
                .unwrap();
        assert!(!format!("{entries:?}").contains("hunter2"));
    }

    #[test]
    fn ports_and_users_choose() {
        let entries = parse(
            "machine h login host password 1\nmachine h:5000 login port password 2\nmachine h login other password 3",
        )
        .unwrap();
        let login = |server: &str, host: &str, user| {
            find(&entries, |m| m == server, |m| m == host, user).map(|entry| entry.login.as_str())
        };
        assert_eq!(login("h:5000", "h", None), Some("port"));
        assert_eq!(login("h:5001", "h", None), Some("host"));
        assert_eq!(login("h:5000", "h", Some("other")), Some("other"));
        assert_eq!(login("h:5000", "h", Some("nobody")), None);
        assert_eq!(login("i", "i", None), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(machine|login|password|default|macdef|[\"$#\\\\ \n]|\\PC){0,40}") {
            let _ = parse(&text);
        }
    }
}
