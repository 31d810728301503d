//! Debian's `docker-registry` (the reference implementation of the distribution protocol) on a free port of loopback.
//!
//! It dies with us, whatever happens: it is stopped when the handle is dropped, and the kernel kills it when the thread
//! that started it ends (`PR_SET_PDEATHSIG`, set by setpriv(1)), which a panic, a Ctrl-C or a kill -9 of ours causes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{HarnessError, IoContext as _};
use crate::packages::find_program;
use crate::program::Program;

/// How long the registry may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often it is asked whether it answers.
const START_INTERVAL: Duration = Duration::from_millis(10);

/// Who is let in by a registry of [`Registry::start_private`].
pub const USER: &str = "me";
/// The password of [`USER`].
pub const PASSWORD: &str = "s3cret-Passw0rd";
/// The same as bcrypt hashes it (crypt(5)), the only form that the registry takes.
const PASSWORD_HASH: &str = "$2b$05$wUnaC1S662KH4iRA9OY1C..MYOhUFzrqey0F83nqd7WjHEJEzVckW";

/// A registry that runs until this is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    log: PathBuf,
    /// Closing it tells the keeper to stop the registry.
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Registry {
    /// Starts a registry over a storage directory. Its configuration and its log are written to `work`.
    pub fn start(storage: &Path, work: &Path) -> Result<Self, HarnessError> {
        Self::start_with(storage, work, &[])
    }

    /// Starts a registry that lets nobody in but [`USER`] with [`PASSWORD`] (Basic authentication).
    pub fn start_private(storage: &Path, work: &Path) -> Result<Self, HarnessError> {
        let file = work.join("htpasswd");
        std::fs::create_dir_all(work).context("create", work)?;
        std::fs::write(&file, format!("{USER}:{PASSWORD_HASH}\n")).context("write", &file)?;
        let auth = serde_json::json!({ "realm": "tests", "path": file });
        Self::start_with(storage, work, &[(&["auth", "htpasswd"], auth)])
    }

    /// Starts a registry that speaks https alone, with a certificate for 127.0.0.1 that is signed by itself and is returned as its PEM file.
    pub fn start_encrypted(storage: &Path, work: &Path) -> Result<(Self, PathBuf), HarnessError> {
        std::fs::create_dir_all(work).context("create", work)?;
        let (certificate, key) = (work.join("certificate.pem"), work.join("key.pem"));
        Program::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args(["-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .check()?;
        let tls = serde_json::json!({ "certificate": certificate, "key": key });
        let registry = Self::start_with(storage, work, &[(&["http", "tls"], tls)])?;
        Ok((registry, certificate))
    }

    fn start_with(
        storage: &Path,
        work: &Path,
        more: &[(&[&str; 2], serde_json::Value)],
    ) -> Result<Self, HarnessError> {
        std::fs::create_dir_all(storage).context("create", storage)?;
        std::fs::create_dir_all(work).context("create", work)?;
        let mut log = String::new();
        // The port is free when we look and may be taken when the registry does: then another one is tried.
        for _ in 0..5 {
            match Self::start_once(storage, work, more)? {
                Ok(registry) => return Ok(registry),
                Err(text) => log = text,
            }
        }
        Err(HarnessError::Registry { log })
    }

    fn start_once(
        storage: &Path,
        work: &Path,
        more: &[(&[&str; 2], serde_json::Value)],
    ) -> Result<Result<Self, String>, HarnessError> {
        let program = find_program("docker-registry").ok_or_else(|| HarnessError::Missing {
            what: "`docker-registry`".into(),
            hint: "apt-get install docker-registry".into(),
        })?;
        let address = free_port()?;
        let config = work.join(format!("registry-{}.yml", address.port()));
        let log = work.join(format!("registry-{}.log", address.port()));
        std::fs::write(&config, configuration(storage, address, more)).context("write", &config)?;
        let output = File::create(&log).context("create", &log)?;
        let error_output = output.try_clone().context("duplicate", &log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(error_output);
        let (stop, stopped) = mpsc::channel();
        let (report, started) = mpsc::channel();
        // The death signal follows the thread that starts the registry, so that thread has to live as long.
        let keeper = std::thread::spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(report.send(Err(error))),
            };
            let deadline = Instant::now() + START_LIMIT;
            let ready = loop {
                if answers(address) {
                    break true;
                }
                if Instant::now() > deadline || !matches!(child.try_wait(), Ok(None)) {
                    break false;
                }
                std::thread::sleep(START_INTERVAL);
            };
            let receiver_lives = report.send(Ok(ready)).is_ok();
            if ready && receiver_lives {
                // Returns when the handle is dropped.
                let _ = stopped.recv();
            }
            let _ = child.kill();
            let _ = child.wait();
        });
        match started.recv() {
            Ok(Ok(true)) => Ok(Ok(Self {
                address,
                log,
                stop: Some(stop),
                keeper: Some(keeper),
            })),
            Ok(Err(source)) => Err(HarnessError::Spawn {
                program: "setpriv docker-registry".into(),
                source,
            }),
            Ok(Ok(false)) | Err(_) => {
                let _ = keeper.join();
                Ok(Err(std::fs::read_to_string(&log).unwrap_or_default()))
            }
        }
    }

    /// Host and port, as they stand in a reference: `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The reference of an image: `docker://127.0.0.1:PORT/NAME:TAG`.
    #[must_use]
    pub fn uri(&self, name: &str, tag: &str) -> String {
        format!("docker://{}/{name}:{tag}", self.address)
    }

    /// What it has logged: one line a request.
    pub fn log(&self) -> Result<String, HarnessError> {
        std::fs::read_to_string(&self.log).context("read", &self.log)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            // A panic of the keeper leaves nothing to do: the registry dies with its thread.
            let _ = keeper.join();
        }
    }
}

fn configuration(
    storage: &Path,
    address: SocketAddr,
    more: &[(&[&str; 2], serde_json::Value)],
) -> String {
    // JSON is YAML; it needs no thought about quoting.
    let mut configuration = serde_json::json!({
        "version": "0.1",
        "log": { "level": "error", "accesslog": { "disabled": false } },
        "storage": {
            "filesystem": { "rootdirectory": storage, "maxthreads": 100 },
            "maintenance": { "uploadpurging": { "enabled": false } },
            "redirect": { "disable": true },
        },
        "http": { "addr": address.to_string(), "relativeurls": true },
    });
    for ([section, key], value) in more {
        configuration[section][key] = value.clone();
    }
    configuration.to_string()
}

fn free_port() -> Result<SocketAddr, HarnessError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("bind a port of", "127.0.0.1")
}

/// Whether the server at the address answers the protocol's version check, if only with a wish for a login or for TLS.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let limit = Some(Duration::from_secs(2));
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(limit)?;
        stream.write_all(b"GET /v2/ HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok([b" 200", b" 401", b" 400"]
            .iter()
            .any(|end| status.ends_with(*end)))
    };
    ask().unwrap_or(false)
}
