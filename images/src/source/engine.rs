//! Engines of this machine that hold images: the Docker daemon over its socket, and podman.
//!
//! Docker Engine API, "Export an image" (`GET /images/{name}/get`): the answer is what `docker save` writes. It is asked for in HTTP/1.0, so that
//! the answer is neither chunked nor followed by anything: it ends with the connection.
//!
//! podman has no daemon, and files of its storage belong to users that only podman can become (user_namespaces(7), subuid(5)), so podman
//! itself is run, and writes the archive into a pipe.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// The daemon's socket, unless another one is named.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Most bytes of the head of an answer, and of what an engine says when it fails.
const MAX_TEXT: usize = 64 << 10;

/// Why an engine does not give an image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The daemon's socket cannot be connected to.
    #[error("cannot connect to the Docker daemon at `{socket}`")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection to the daemon broke.
    #[error("the Docker daemon at `{socket}` does not answer")]
    Talk {
        /// The socket.
        socket: PathBuf,
        /// What was seen.
        source: io::Error,
    },
    /// The engine does not have the image, or gives another answer than the image.
    #[error("{engine} does not give `{image}`: {problem}")]
    Refused {
        /// `Docker` or `podman`.
        engine: &'static str,
        /// The image.
        image: String,
        /// What it says.
        problem: String,
    },
    /// podman cannot be run.
    #[error("cannot run `podman`")]
    Run(#[source] io::Error),
}

impl EngineError {
    /// What the user can do about it.
    pub(super) fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "the daemon's socket is for root and the group `docker`; or pipe the image: `docker save IMAGE | cista import -`"
                }
                _ => "is the daemon running? `DOCKER_HOST=unix://SOCKET` names another socket",
            },
            Self::Refused { .. } => "`docker images` or `podman images` lists what there is",
            Self::Run(_) => "is podman installed?",
            Self::Talk { .. } => return None,
        };
        Some(text.to_owned())
    }
}

/// An image archive on its way from an engine.
#[derive(Debug)]
pub(super) struct Export {
    /// Where it can be read.
    pub(super) stream: File,
    /// Bytes that were read already.
    pub(super) start: Vec<u8>,
    program: Option<Podman>,
}

/// Asks the Docker daemon for an image.
pub(super) fn from_docker(socket: Option<&Path>, image: &str) -> Result<Export, EngineError> {
    let socket = socket.unwrap_or(Path::new(DOCKER_SOCKET)).to_owned();
    let mut connection = UnixStream::connect(&socket).map_err(|source| EngineError::Connect {
        socket: socket.clone(),
        source,
    })?;
    let broken = |source| EngineError::Talk {
        socket: socket.clone(),
        source,
    };
    // The name was checked when it was parsed: it holds nothing that a URL or a header could take for its own.
    let request = format!("GET /images/{image}/get HTTP/1.0\r\nHost: docker\r\n\r\n");
    connection.write_all(request.as_bytes()).map_err(broken)?;
    let (head, start) = read_head(&mut connection).map_err(broken)?;
    let refused = |problem: String| EngineError::Refused {
        engine: "Docker",
        image: image.to_owned(),
        problem,
    };
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        let mut body = start;
        // What came says more than why nothing else did.
        let _ = connection.take(MAX_TEXT as u64).read_to_end(&mut body);
        let said = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
        return Err(refused(printable(
            &said.unwrap_or_else(|| format!("it answers {status}")),
        )));
    }
    if head.to_ascii_lowercase().contains("\ntransfer-encoding:") {
        return Err(refused("it answers in chunks, unasked".to_owned()));
    }
    Ok(Export {
        stream: File::from(OwnedFd::from(connection)),
        start,
        program: None,
    })
}

/// Reads the head of an HTTP answer; also returns what came behind it.
fn read_head(connection: &mut UnixStream) -> io::Result<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = all.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&all).into_owned(), rest));
        }
        if all.len() > MAX_TEXT {
            return Err(io::Error::other("it sends no HTTP"));
        }
        match connection.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => all.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A running podman; killed when it is dropped before its end.
#[derive(Debug)]
struct Podman {
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
    image: String,
}

/// Runs podman, which writes the archive of an image into a pipe.
pub(super) fn from_podman(image: &str) -> Result<Export, EngineError> {
    let mut child = Command::new("podman")
        .args(["image", "save", "--quiet", "--format", "docker-archive"])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(EngineError::Run)?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(EngineError::Run(io::ErrorKind::BrokenPipe.into()));
    };
    // Read aside, so that podman never waits for it.
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.by_ref().take(MAX_TEXT as u64).read_to_end(&mut text);
        let _ = io::copy(&mut stderr, &mut io::sink());
        text
    });
    Ok(Export {
        stream: File::from(OwnedFd::from(stdout)),
        start: Vec::new(),
        program: Some(Podman {
            child,
            said: Some(said),
            image: image.to_owned(),
        }),
    })
}

impl Export {
    /// After the last byte: whether the engine says that it was.
    pub(super) fn finish(mut self) -> Result<(), EngineError> {
        let Some(podman) = &mut self.program else {
            return Ok(());
        };
        let status = podman.child.wait().map_err(EngineError::Run)?;
        if status.success() {
            return Ok(());
        }
        let said = podman.said.take().and_then(|said| said.join().ok());
        let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        Err(EngineError::Refused {
            engine: "podman",
            image: podman.image.clone(),
            problem: last.map_or_else(
                || format!("it ended with {status}"),
                |line| printable(line.trim_start_matches("Error: ")),
            ),
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an engine says, fit to be shown.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A daemon that gives one answer; what it was asked for.
    fn daemon(directory: &Path, answer: &'static [u8]) -> (PathBuf, JoinHandle<String>) {
        let socket = directory.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let read = client.read(&mut request).unwrap();
            client.write_all(answer).unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (socket, asked)
    }

    #[test]
    fn the_daemon_is_asked_in_a_way_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, asked) = daemon(
            directory.path(),
            b"HTTP/1.0 200 OK\r\nContent-Type: application/x-tar\r\n\r\nthe archive",
        );
        let mut export = from_docker(Some(&socket), "a/b:1").unwrap();
        let mut body = export.start.clone();
        export.stream.read_to_end(&mut body).unwrap();
        assert_eq!(body, b"the archive");
        export.finish().unwrap();
        assert!(
            asked
                .join()
                .unwrap()
                .starts_with("GET /images/a/b:1/get HTTP/1.0\r\n")
        );
    }

    #[test]
    fn what_is_no_archive_is_told() {
        for (answer, expected) in [
            (
                &b"HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"No such image: x\"}"[..],
                "No such image: x",
            ),
            (b"HTTP/1.0 500 Oh\r\n\r\n", "it answers 500"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "in chunks",
            ),
            (b"hello", "does not answer"),
            (&[b'x'; 100_000], "does not answer"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let (socket, _asked) = daemon(directory.path(), answer);
            let error = from_docker(Some(&socket), "x").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let error = from_docker(Some(Path::new("/nonexistent")), "x").unwrap_err();
        assert!(error.hint().unwrap().contains("DOCKER_HOST"), "{error}");
    }
}
