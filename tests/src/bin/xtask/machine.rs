//! Getting the machine ready: packages, `/dev/fuse`, an ordinary user, a built `cista`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use cista_tests::artifacts::{self, Profile, workspace};
use cista_tests::case::chain;
use cista_tests::environment::set_mode;
use cista_tests::error::HarnessError;
use cista_tests::packages::{self, Package};
use cista_tests::user::{User, we_are_root};

use crate::say;

/// Installs what is missing when we may; says what is missing when we may not. Returns whether all is there.
pub(crate) fn prepare(wanted: &[&[Package]]) -> bool {
    let mut complete = true;
    if let Err(error) = packages::install(&wanted.concat(), &mut |text| say(text)) {
        say(&chain(&error));
        complete = false;
    }
    if let Err(error) = open_fuse_device() {
        say(&chain(&error));
        complete = false;
    }
    if we_are_root()
        && let Err(error) = User::unprivileged()
    {
        say(&chain(&error));
        complete = false;
    }
    complete
}

/// Gives `/dev/fuse` the mode that udev gives it everywhere, where nobody has (containers, small virtual machines).
fn open_fuse_device() -> Result<(), HarnessError> {
    let device = Path::new("/dev/fuse");
    let is_closed = device
        .metadata()
        .is_ok_and(|metadata| metadata.mode() & 0o666 != 0o666);
    if is_closed && we_are_root() {
        say("setting the mode of /dev/fuse to 0666, as udev does");
        set_mode(device, 0o666)?;
    }
    Ok(())
}

/// Builds `cista`, and shows what cargo says. Nothing is built when `CISTA_BIN` names a built one.
pub(crate) fn build_program(profile: Profile) -> Result<(), HarnessError> {
    if artifacts::given().is_some() {
        return Ok(());
    }
    say("building cista");
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "cista"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    must_succeed("cargo build", &mut command)
}

/// Builds `cista` and the Slurm plugin, unless `CISTA_BIN` names a built program.
pub(crate) fn build(profile: Profile) -> Result<(), HarnessError> {
    build_program(profile)?;
    if artifacts::given().is_some() {
        return Ok(());
    }
    say("building the Slurm plugin");
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "spank-cista"]);
    if profile == Profile::Release {
        command.args(["--profile", "plugin"]);
    }
    must_succeed("cargo build", &mut command)
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace());
    command
}

/// Runs a program whose failure is ours; what it says is shown.
pub(crate) fn must_succeed(program: &str, command: &mut Command) -> Result<(), HarnessError> {
    let status = command.status().map_err(|source| HarnessError::Spawn {
        program: program.into(),
        source,
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(HarnessError::Status {
            program: program.into(),
            status,
            stderr: "see above".into(),
        })
    }
}
