//! `cargo xtask demo`: the main job, shown: an image comes out of a registry and runs.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cista_tests::artifacts::{Profile, target};
use cista_tests::case::chain;
use cista_tests::environment::{Session, TestEnvironment};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Images, Packing, Recipe, Tiny};
use cista_tests::packages::DEMO;
use cista_tests::process;
use rustix::process::Signal;

use crate::{Outcome, machine, picture, say};

/// Import a Python image from a registry on loopback, compute something in it, and show how it runs
///
/// Installs missing Debian packages when it may. Without them or without root it says what is missing, and uses an
/// image that it makes itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also write what is shown into an SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Shows the demo, and draws what it has shown.
fn draw(file: &Path) -> Outcome {
    let program = std::env::current_exe().context("find", "this program")?;
    let output = Command::new(&program)
        .arg("demo")
        .stderr(Stdio::inherit())
        .output()
        .context("execute", &program)?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if !output.status.success() {
        return Ok(ExitCode::FAILURE);
    }
    std::fs::write(file, picture::terminal("cargo xtask demo", &text)).context("write", file)?;
    Ok(ExitCode::SUCCESS)
}

/// The image that is shown.
const PYTHON: Recipe = Recipe::Python(Packing::Gzip);

/// What is shown: where the image comes from, and command lines for it.
struct Subject {
    uri: String,
    layers: u64,
    compute: Vec<String>,
    exit: Vec<String>,
    wait: Vec<String>,
    nothing: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if let Some(file) = &args.picture {
        return draw(file);
    }
    let complete = machine::prepare(&[DEMO]);
    // The image is made meanwhile: the longest part of the build has one thread.
    std::thread::scope(|scope| {
        if complete {
            scope.spawn(|| {
                // What goes wrong is told when the image is asked for.
                let _ = Images::open(&target(), say).and_then(|images| images.get(PYTHON));
            });
        }
        machine::build_program(Profile::Release)
    })?;
    let session = Session::start(Profile::Release, say)?;
    let environment = session.environment("demo", false)?;
    let subject = if complete {
        match python(&session) {
            Ok(subject) => subject,
            Err(error) => {
                say(&chain(&error));
                tiny(&environment)?
            }
        }
    } else {
        tiny(&environment)?
    };
    let begin = Instant::now();
    println!(
        "\nas user `{}`, without any privilege",
        environment.user().name
    );
    let image = import(&environment, &subject)?;
    compute(&environment, &subject, &image)?;
    plain_child(&environment, &subject, &image)?;
    start_times(&environment, &subject, &image)?;
    let left = environment.leftovers()?;
    if !left.is_empty() {
        return Err(HarnessError::Malformed {
            what: "what is left when all has ended".into(),
            why: left.join(", "),
        });
    }
    println!("\nleft behind: no process, no mount, no temporary file");
    println!("the demo took {:.1} s", begin.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// The Python image in a registry.
fn python(session: &Session) -> Result<Subject, HarnessError> {
    let recipe = PYTHON;
    let words = |line: &[&str]| line.iter().map(ToString::to_string).collect();
    let wait =
        "import os, time; print(os.getpid(), os.getppid(), 'ready', flush=True); time.sleep(60)";
    Ok(Subject {
        uri: session.uri(recipe)?,
        layers: session.images().get(recipe)?.layout.layer_bytes(),
        compute: words(&["python3", "main.py"]),
        exit: words(&["python3", "-c", "raise SystemExit(3)"]),
        wait: words(&["python3", "-c", wait]),
        nothing: words(&["true"]),
    })
}

/// An image that needs no registry, no package and no privilege.
fn tiny(environment: &TestEnvironment<'_>) -> Result<Subject, HarnessError> {
    say("using an `oci:` image made on the spot instead");
    let root = environment.directory("image")?;
    let tiny = Tiny::build(&root)?;
    Ok(Subject {
        uri: format!("oci:{}:demo", root.display()),
        layers: tiny.layout.layer_bytes(),
        compute: tiny.compute,
        exit: tiny.exit,
        wait: tiny.wait,
        nothing: tiny.nothing,
    })
}

fn import(environment: &TestEnvironment<'_>, subject: &Subject) -> Result<PathBuf, HarnessError> {
    println!("\n$ cista import {}", subject.uri);
    let image = environment.path("image.sqsh");
    let run = || {
        environment
            .cista(["import", "-f", "-o"])
            .arg(&image)
            .arg(&subject.uri)
    };
    let cold = run().shown().check()?.wall;
    let warm = run().check()?.wall;
    let size = image.metadata().context("look at", &image)?.len();
    println!(
        "  {:.1} MB of layers became an image of {:.1} MB in {:.2} s; again, from the store: {:.2} s",
        subject.layers as f64 / 1e6,
        size as f64 / 1e6,
        cold.as_secs_f64(),
        warm.as_secs_f64(),
    );
    Ok(image)
}

fn compute(
    environment: &TestEnvironment<'_>,
    subject: &Subject,
    image: &PathBuf,
) -> Result<(), HarnessError> {
    println!("\n$ cista start image.sqsh {}", subject.compute.join(" "));
    let start = || {
        environment
            .cista(["start"])
            .arg(image)
            .args(&subject.compute)
    };
    let outcome = start().check()?;
    let again = start().check()?;
    println!("  {}", outcome.text());
    println!(
        "  {:.2} s; once more, as the next step of a job: {:.2} s",
        outcome.wall.as_secs_f64(),
        again.wall.as_secs_f64()
    );
    Ok(())
}

/// The container is the process that was started: nothing stands between it and its caller.
fn plain_child(
    environment: &TestEnvironment<'_>,
    subject: &Subject,
    image: &PathBuf,
) -> Result<(), HarnessError> {
    println!(
        "\na plain child of its caller (pid {}):",
        std::process::id()
    );
    let running = environment
        .cista(["start"])
        .arg(image)
        .args(&subject.wait)
        .spawn()?;
    let pid = running.pid();
    let told = running.wait_for_stdout("ready", Duration::from_secs(20))?;
    let mut numbers = told.split_whitespace();
    let inside = (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""));
    println!(
        "  started as pid {pid}; inside it is pid {} with parent {}",
        inside.0, inside.1
    );
    expect(inside.0 == pid.to_string(), "the pid inside is another one")?;
    expect(
        inside.1 == std::process::id().to_string(),
        "the parent inside is another one",
    )?;
    running.signal(Signal::TERM)?;
    let ended = running.wait()?;
    let gone =
        process::wait_until_none_executes(&environment.program_path(), Duration::from_secs(2));
    println!(
        "  SIGTERM arrives: ended by signal {}; {}",
        ended.signal().unwrap_or(0),
        match gone {
            Some(after) => format!(
                "its file server was gone {:.0} ms later",
                after.as_secs_f64() * 1e3
            ),
            None => "its file server is still there".into(),
        }
    );
    expect(
        ended.signal() == Some(Signal::TERM.as_raw()) && gone.is_some(),
        "SIGTERM did not end it all",
    )?;
    let exit = environment
        .cista(["start"])
        .arg(image)
        .args(&subject.exit)
        .run()?;
    println!("  exit status 3 arrives: {}", exit.code().unwrap_or(-1));
    expect(exit.code() == Some(3), "the exit status is another one")
}

fn start_times(
    environment: &TestEnvironment<'_>,
    subject: &Subject,
    image: &PathBuf,
) -> Result<(), HarnessError> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let start = environment
            .cista(["start"])
            .arg(image)
            .args(&subject.nothing);
        times.push(start.check()?.wall);
    }
    times.sort();
    println!(
        "\n$ cista start image.sqsh {}\n  {:.1} ms, the median of {} starts",
        subject.nothing.join(" "),
        times[times.len() / 2].as_secs_f64() * 1e3,
        times.len()
    );
    Ok(())
}

fn expect(holds: bool, otherwise: &str) -> Result<(), HarnessError> {
    if holds {
        return Ok(());
    }
    Err(HarnessError::Malformed {
        what: "the demo".into(),
        why: otherwise.into(),
    })
}
