//! Logins at registries: where they are found, how they are stored, and that no password is ever seen.
//!
//! The registry is docker's own with Basic authentication. What credential helpers are told and what they could see of us is told by the
//! helpers themselves, which are small scripts; skopeo reads and writes the same files.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, names_in};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::{Outcome, Program};
use cista_tests::pty::Terminal;
use cista_tests::registry::{PASSWORD, Registry, USER};

use super::bad_input::assert_clear_error;

/// `me:s3cret-Passw0rd` in base64.
const AUTH: &str = "bWU6czNjcmV0LVBhc3N3MHJk";
/// `me:wrong-Passw0rd` in base64.
const WRONG_AUTH: &str = "bWU6d3JvbmctUGFzc3cwcmQ=";

/// A private registry with an image, and files of logins of the user.
struct Private<'a> {
    environment: &'a TestEnvironment<'a>,
    registry: Registry,
    uri: String,
}

impl<'a> Private<'a> {
    fn start(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        let session = environment.session();
        session.uri(Recipe::Busybox)?;
        let image = session.images().get(Recipe::Busybox)?;
        let work = environment.home().join("registry");
        let registry = Registry::start_private(&session.images().registry_storage(), &work)?;
        Ok(Self {
            environment,
            uri: image.uri(&registry),
            registry,
        })
    }

    fn host(&self) -> String {
        self.registry.host()
    }

    /// Writes a file of the user below the home directory.
    fn write(&self, name: &str, content: &str) -> Result<PathBuf, HarnessError> {
        self.write_as(name, content, 0o600)
    }

    fn write_as(&self, name: &str, content: &str, mode: u32) -> Result<PathBuf, HarnessError> {
        let path = self.environment.home().join(name);
        for directory in path.ancestors().skip(1) {
            if directory == self.environment.home() {
                break;
            }
            std::fs::create_dir_all(directory).context("create", directory)?;
            self.environment.give(directory)?;
        }
        std::fs::write(&path, content).context("write", &path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .context("set the mode of", &path)?;
        self.environment.give(&path)?;
        Ok(path)
    }

    /// Writes a program that is found by its name; see [`Self::cista`].
    fn program(&self, name: &str, script: &str) -> Result<PathBuf, HarnessError> {
        self.write_as(
            &format!("bin/{name}"),
            &format!("#!/bin/sh\n{script}"),
            0o755,
        )
    }

    /// `cista`, with docker's and enroot's usual places below the home directory.
    fn cista(&self, args: &[&str]) -> Program {
        self.dressed(self.environment.cista(args))
    }

    fn dressed(&self, program: Program) -> Program {
        let home = self.environment.home();
        program
            .env("PATH", format!("{}/bin:/usr/bin:/bin", home.display()))
            .env("XDG_CONFIG_HOME", home.join(".config"))
    }

    /// Asks for the digest, as loudly as can be.
    fn digest(&self, uri: &str) -> Result<Outcome, HarnessError> {
        let outcome = self.cista(&["--verbose", "digest", uri]).run()?;
        assert_unseen(&outcome);
        Ok(outcome)
    }

    #[track_caller]
    fn assert_let_in(&self, uri: &str) -> Result<Outcome, HarnessError> {
        let outcome = self.digest(uri)?;
        assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
        assert!(outcome.text().starts_with("sha256:"), "{}", outcome.text());
        Ok(outcome)
    }

    fn uri_of(&self, user: &str) -> String {
        self.uri.replace("docker://", &format!("docker://{user}@"))
    }

    /// How often the registry has let somebody in.
    fn entries(&self) -> Result<usize, HarnessError> {
        let log = self.registry.log()?;
        Ok(log.lines().filter(|line| line.contains("\" 200 ")).count())
    }
}

#[track_caller]
fn assert_unseen(outcome: &Outcome) {
    let told = format!("{}{}", outcome.text(), outcome.error_text());
    for secret in [PASSWORD, "wrong-Passw0rd", AUTH, WRONG_AUTH] {
        assert!(!told.contains(secret), "`{secret}` is in: {told}");
    }
}

fn files_in_enroots_format(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied without credentials", "cista login"]);
    let outcome = private.digest(&private.uri_of(USER))?;
    assert_clear_error(&outcome, 1, &["no password for `me`", "cista login -u me"]);

    // enroot names hosts without their port.
    let entry = format!("# mine\nmachine 127.0.0.1 login {USER} password {PASSWORD}\n");
    let file = private.write(".config/enroot/.credentials", &entry)?;
    private.assert_let_in(&private.uri)?;
    private.assert_let_in(&private.uri_of(USER))?;
    let outcome = private.digest(&private.uri_of("you"))?;
    assert_clear_error(&outcome, 1, &["no password for `you`"]);

    // Ours goes before enroot's, and a user chooses.
    let own = format!(
        "machine {} login you password wrong-Passw0rd\nmachine {0} login {USER} password \"{PASSWORD}\"\n",
        private.host()
    );
    private.write(".config/cista/.credentials", &own)?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied to user `you`"]);
    private.assert_let_in(&private.uri_of(USER))?;

    // Nothing of a malformed file is repeated but its name and the line.
    private.write(
        ".config/cista/.credentials",
        &format!("\nmachine h login {USER} password a {PASSWORD}\n"),
    )?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &[".config/cista/.credentials", "line 2"]);
    std::fs::remove_file(&file).context("remove", &file)?;
    Ok(())
}

fn passwords_that_a_command_gives(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    private.write("password", PASSWORD)?;
    let home = environment.home();
    private.program(
        "give-password",
        &format!(
            "env | sort >'{0}/environment'\n\
             for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done >'{0}/commands' 2>&1\n\
             echo 'told in vain: {PASSWORD}' >&2\n\
             cat '{0}/password'; echo\n",
            home.display()
        ),
    )?;
    // The text of a command is as secret as what it gives: this one holds a password of its own.
    private.write(
        ".config/enroot/.credentials",
        &format!(
            "machine 127.0.0.1 login {USER} password $(KEY=in-the-text-Passw0rd; unset KEY; give-password \"$GIVEN\")\n"
        ),
    )?;
    let outcome = private
        .cista(&["--verbose", "import", "-o", "x.sqsh", &private.uri])
        .env("GIVEN", "given")
        .env("NOT_NAMED", "x")
        .env("CISTA_PASSWORD", "other-Passw0rd")
        .check()?;
    assert_unseen(&outcome);
    let told = outcome.error_text();
    let notes: Vec<_> = told
        .lines()
        .filter(|line| line.starts_with("note: "))
        .collect();
    assert_eq!(notes.len(), 1, "{told}");
    for part in [
        ".config/enroot/.credentials",
        "`me`",
        "127.0.0.1",
        "command",
    ] {
        assert!(notes[0].contains(part), "{told}");
    }
    let read = |name: &str| {
        let path = home.join(name);
        std::fs::read_to_string(&path).context("read", &path)
    };
    let seen = read("environment")?;
    assert!(
        seen.contains("GIVEN=given\n") && seen.contains("HOME="),
        "{seen}"
    );
    assert!(
        !seen.contains("NOT_NAMED") && !seen.contains("CISTA"),
        "{seen}"
    );
    let commands = read("commands")?;
    assert!(commands.contains("cista --verbose import"), "{commands}");
    assert!(!commands.contains("Passw0rd"), "{commands}");

    // A variable as it is, and commands that fail.
    private.write(
        ".config/enroot/.credentials",
        &format!("machine 127.0.0.1 login {USER} password $TOKEN\n"),
    )?;
    let outcome = private
        .cista(&["digest", &private.uri])
        .env("TOKEN", PASSWORD)
        .check()?;
    assert_unseen(&outcome);
    // It is said that a command is run, unless nothing but warnings and errors is wanted.
    for (option, notes) in [("--verbose", 1), ("--quiet", 0)] {
        let outcome = private
            .cista(&["import", option, "-f", "-o", "x.sqsh", &private.uri])
            .env("TOKEN", PASSWORD)
            .check()?;
        let told = outcome.error_text();
        let found = told.lines().filter(|line| line.starts_with("note: "));
        assert_eq!(found.count(), notes, "{told}");
    }
    for text in ["$TOKEN", "$(exit 3)", "$(no-such-command)", "$(echo x"] {
        private.write(
            ".config/enroot/.credentials",
            &format!("machine 127.0.0.1 login {USER} password {text}\n"),
        )?;
        let outcome = private.digest(&private.uri)?;
        assert_clear_error(&outcome, 1, &[".credentials", "gives no password"]);
    }
    Ok(())
}

fn files_of_docker_and_podman(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    let host = private.host();
    let entry = |key: &str, auth: &str| format!(r#""{key}": {{"auth": "{auth}"}}"#);
    let file = |entries: &[String]| format!(r#"{{"auths": {{{}}}}}"#, entries.join(","));

    let docker = private.write(".docker/config.json", &file(&[entry(&host, WRONG_AUTH)]))?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied to user `me`", "cista login"]);
    private.write(
        ".docker/config.json",
        &file(&[entry(&format!("https://{host}/v1/"), AUTH)]),
    )?;
    private.assert_let_in(&private.uri)?;
    std::fs::remove_file(&docker).context("remove", &docker)?;

    // A login for a part of the registry goes before that for all of it.
    let scoped = file(&[
        entry(&host, WRONG_AUTH),
        entry(&format!("{host}/tools"), AUTH),
        entry(&format!("{host}/tools/busy"), WRONG_AUTH),
    ]);
    private.write(".config/containers/auth.json", &scoped)?;
    private.assert_let_in(&private.uri)?;
    // The session's own place goes before that, and what a variable names before all.
    let runtime = private
        .cista(&["digest", &private.uri])
        .env("XDG_RUNTIME_DIR", environment.home().join("run"));
    private.write(
        "run/containers/auth.json",
        &file(&[entry(&host, WRONG_AUTH)]),
    )?;
    assert_clear_error(&runtime.run()?, 1, &["denied to user `me`"]);
    let named = private.write("elsewhere.json", &file(&[entry(&host, AUTH)]))?;
    private
        .cista(&["digest", &private.uri])
        .env("XDG_RUNTIME_DIR", environment.home().join("run"))
        .env("REGISTRY_AUTH_FILE", &named)
        .check()?;

    private.write(
        "elsewhere.json",
        &format!("{{\n\"auths\": {{\"{host}\": \"{AUTH}\"}}}}"),
    )?;
    let outcome = private
        .cista(&["--verbose", "digest", &private.uri])
        .env("REGISTRY_AUTH_FILE", &named)
        .run()?;
    assert_clear_error(&outcome, 1, &["elsewhere.json", "line 2"]);
    assert_unseen(&outcome);

    // A file of somebody else's, as sudo leaves them, keeps nobody from a public image.
    private.write_as(".docker/config.json", "{}", 0o000)?;
    let outcome = private
        .cista(&["digest", &private.uri])
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        .check()?;
    if !environment.user().is_root() {
        assert!(
            outcome.error_text().contains("warning: "),
            "{}",
            outcome.error_text()
        );
    }
    Ok(())
}

/// A credential helper that keeps logins in files, and notes what it is asked.
fn helper(private: &Private<'_>) -> Result<(), HarnessError> {
    let home = private.environment.home();
    private.program(
        "docker-credential-files",
        &format!(
            "cd '{}' || exit 1\n\
             echo \"$1\" >>asked\n\
             read -r input\n\
             case $1 in\n\
             store) echo \"$input\" >kept;;\n\
             get) test -s kept && cat kept || {{ echo 'credentials not found in native keychain'; exit 1; }};;\n\
             erase) test \"$input\" = \"$(cat key)\" && rm kept;;\n\
             esac\n",
            home.display()
        ),
    )?;
    private.write("key", &private.host())?;
    Ok(())
}

fn credential_helpers(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    helper(&private)?;
    let host = private.host();
    let asked = environment.home().join("asked");
    private.write(
        ".docker/config.json",
        &format!(r#"{{"credHelpers": {{"{host}": "files"}}, "auths": {{"{host}": {{"auth": "{WRONG_AUTH}"}}}}}}"#),
    )?;
    // A registry that lets everybody in is no reason to ask a helper.
    private.assert_let_in(&environment.session().uri(Recipe::Busybox)?)?;
    assert!(!asked.exists());
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied without credentials"]);
    assert!(asked.exists());

    private.write(
        "kept",
        &format!(r#"{{"Username": "{USER}", "Secret": "{PASSWORD}"}}"#),
    )?;
    private.assert_let_in(&private.uri)?;
    private.assert_let_in(&private.uri_of(USER))?;
    let outcome = private.digest(&private.uri_of("you"))?;
    assert_clear_error(&outcome, 1, &["no password for `you`"]);

    // A token in place of a password is of no use to Basic authentication.
    private.write(
        "kept",
        &format!(r#"{{"Username": "<token>", "Secret": "{PASSWORD}"}}"#),
    )?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["identity token"]);

    // One that fails is an error where it is named for the registry, and a warning where it is named for all.
    private.program(
        "docker-credential-broken",
        &format!("echo 'failed with {PASSWORD}'; echo {PASSWORD} >&2; exit 1"),
    )?;
    for name in ["broken", "missing"] {
        let word = format!("docker-credential-{name}");
        private.write(
            ".docker/config.json",
            &format!(r#"{{"credHelpers": {{"{host}": "{name}"}}}}"#),
        )?;
        let outcome = private.digest(&private.uri)?;
        assert_clear_error(&outcome, 1, &[&word]);
        private.write(
            ".docker/config.json",
            &format!(r#"{{"credsStore": "{name}"}}"#),
        )?;
        let outcome = private.digest(&private.uri)?;
        assert_clear_error(&outcome, 1, &["denied without credentials"]);
        assert!(
            outcome
                .error_text()
                .contains(&format!("warning: the credential helper `{word}`"))
        );
    }
    private.write("kept", "Passw0rd?")?;
    private.write(
        ".docker/config.json",
        &format!(r#"{{"credHelpers": {{"{host}": "files"}}}}"#),
    )?;
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["docker-credential-files", "answers without"]);
    assert!(!outcome.error_text().contains("Passw0rd?"));
    Ok(())
}

fn login_stores_what_docker_reads(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    let host = private.host();
    let config = environment.home().join(".docker/config.json");
    let login = |password: &str| {
        private
            .cista(&["--verbose", "login", "-u", USER, "--password-stdin", &host])
            .stdin_bytes(format!("{password}\n"))
            .run()
    };
    let outcome = login("wrong-Passw0rd")?;
    assert_clear_error(&outcome, 1, &["denied to user `me`"]);
    assert_unseen(&outcome);
    assert!(!config.exists(), "a wrong password is not stored");

    let outcome = login(PASSWORD)?;
    assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
    assert_unseen(&outcome);
    let mode = |path: &Path| {
        let metadata = std::fs::metadata(path).context("look at", path)?;
        Ok::<_, HarnessError>(metadata.permissions().mode() & 0o777)
    };
    assert_eq!(mode(&config)?, 0o600);
    private.assert_let_in(&private.uri)?;

    // Others read it, and what others wrote stays.
    let skopeo = |args: &[&str]| {
        environment
            .program("skopeo")
            .args(args)
            .arg("--authfile")
            .arg(&config)
            .arg("--tls-verify=false")
    };
    skopeo(&["inspect", &private.uri]).check()?;
    private.write(
        ".docker/config.json",
        r#"{"psFormat": "x  y", "auths": {"quay.io": {"auth": "Yjpi"}}}"#,
    )?;
    login(PASSWORD)?;
    let text = std::fs::read_to_string(&config).context("read", &config)?;
    for part in ["\"x  y\"", "\"Yjpi\"", AUTH] {
        assert!(text.contains(part), "{text}");
    }
    let names = names_in(&environment.home().join(".docker"))?;
    assert_eq!(names, ["config.json"]);

    let outcome = private.cista(&["logout", &host]).check()?;
    assert!(outcome.error_text().contains("removed the login"));
    let text = std::fs::read_to_string(&config).context("read", &config)?;
    assert!(text.contains("Yjpi") && !text.contains(AUTH), "{text}");
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied without credentials"]);
    let outcome = private.cista(&["logout", &host]).check()?;
    assert!(outcome.error_text().contains("no stored login"));

    // And the other way round.
    skopeo(&["login", "-u", USER, "--password-stdin", &host])
        .stdin_bytes(PASSWORD)
        .check()?;
    private.assert_let_in(&private.uri)?;
    assert!(private.entries()? > 0);
    Ok(())
}

fn login_uses_the_helper(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    helper(&private)?;
    let host = private.host();
    let config = private.write(".docker/config.json", r#"{"credsStore": "files"}"#)?;
    let outcome = private
        .cista(&["login", "-u", USER, "--password-stdin", &host])
        .stdin_bytes(PASSWORD)
        .check()?;
    assert_unseen(&outcome);
    assert!(outcome.error_text().contains("docker-credential-files"));
    let text = std::fs::read_to_string(&config).context("read", &config)?;
    assert!(text.contains(&host) && !text.contains("auth\":"), "{text}");
    private.assert_let_in(&private.uri)?;
    private.cista(&["logout", &host]).check()?;
    assert!(!environment.home().join("kept").exists());
    let outcome = private.digest(&private.uri)?;
    assert_clear_error(&outcome, 1, &["denied without credentials"]);
    Ok(())
}

fn a_password_is_typed_unseen(environment: &TestEnvironment<'_>) -> TestResult {
    let private = Private::start(environment)?;
    let host = private.host();
    let program = private.dressed(environment.cista_on_terminal(["login", &host]));
    let limit = Duration::from_secs(20);
    let mut terminal = Terminal::start(program, environment.user())?;
    let mut shown = terminal.expect("User for", limit)?;
    terminal.send("me\n")?;
    shown += &terminal.expect("Password for", limit)?;
    shown += &terminal.expect(": ", limit)?;
    terminal.send(&format!("{PASSWORD}\n"))?;
    shown += &terminal.expect("logged in to", limit)?;
    assert!(!shown.contains(PASSWORD), "{shown}");
    assert!(shown.contains("me\r\n"), "the user is seen: {shown}");
    assert_eq!(terminal.wait()?, Some(0));
    private.assert_let_in(&private.uri)?;

    // Ctrl-C leaves a terminal that shows what is typed.
    let program = environment
        .program("setsid")
        .args(["--ctty", "sh", "-c"])
        .arg(format!(
            "trap : INT; {} login -u you {host}; echo status $?; stty -a | grep -o -- '-*echo '; echo end",
            environment.program_path().display()
        ));
    let mut terminal = Terminal::start(private.dressed(program), environment.user())?;
    terminal.expect("Password for", limit)?;
    terminal.expect(": ", limit)?;
    terminal.send("\u{3}")?;
    let shown = terminal.expect("end", limit)?;
    assert!(shown.contains("status 130"), "{shown}");
    assert!(
        shown.contains("echo ") && !shown.contains("-echo "),
        "{shown}"
    );
    terminal.wait()?;
    Ok(())
}

fn logins_that_make_no_sense(environment: &TestEnvironment<'_>) -> TestResult {
    for (args, words) in [
        (&["login", "-u", "a"][..], &["registry"][..]),
        (&["login", "127.0.0.1:1"], &["no user"]),
        (
            &["login", "-u", "a", "127.0.0.1:1"],
            &["no terminal", "--password-stdin"],
        ),
        (
            &["login", "-u", "a", "--password-stdin", "127.0.0.1:1"],
            &["password is empty"],
        ),
        (&["login", "-u", "a", "x y"], &["x y"]),
        (&["login", "-u", "a", "quay.io/team"], &["quay.io/team"]),
        (&["logout", "me:hidden@quay.io"], &["no `@`"]),
    ] {
        let outcome = environment.cista(args).run()?;
        let status = if args.len() == 3 { 2 } else { 1 };
        if status == 1 {
            assert_clear_error(&outcome, status, words);
        }
        assert_eq!(outcome.code(), Some(status), "{}", outcome.error_text());
        assert!(!outcome.error_text().contains("hidden"));
    }
    let outcome = environment
        .cista(["login", "-u", "a", "--password-stdin", "127.0.0.1:1"])
        .stdin_bytes("x")
        .run()?;
    assert_clear_error(&outcome, 1, &["cannot connect to `127.0.0.1:1`"]);
    Ok(())
}

const IMAGE: &[Need] = &[Need::Image(Recipe::Busybox)];

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Registry,
        who: Who::User,
        needs: IMAGE,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("logins::files_in_enroots_format", files_in_enroots_format),
    Case {
        who: Who::Both,
        ..case(
            "logins::passwords_that_a_command_gives",
            passwords_that_a_command_gives,
        )
    },
    case(
        "logins::files_of_docker_and_podman",
        files_of_docker_and_podman,
    ),
    case("logins::credential_helpers", credential_helpers),
    Case {
        who: Who::Both,
        ..case(
            "logins::login_stores_what_docker_reads",
            login_stores_what_docker_reads,
        )
    },
    case("logins::login_uses_the_helper", login_uses_the_helper),
    case(
        "logins::a_password_is_typed_unseen",
        a_password_is_typed_unseen,
    ),
    Case {
        tier: Tier::Cli,
        needs: &[],
        ..case(
            "logins::logins_that_make_no_sense",
            logins_that_make_no_sense,
        )
    },
];
