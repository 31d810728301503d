//! What cista says when something is wrong, word for word: one file a topic in `messages/`, which people read when they review a change.
//!
//! Each message says what failed, where, and the cause; a hint says what to do where something can be done. The form is checked here, the sense by
//! whoever reads the files. `INSTA_UPDATE=always cargo test -p cista-tests --test e2e -- messages::` writes them anew.
//!
//! What differs from run to run is replaced: `[WORK]` and `[HOME]` are directories of the test, `[REGISTRY]` is a registry, `[IMAGE]` an image file.

use std::path::Path;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::IoContext as _;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::config::put;

/// Commands and what they say.
struct Transcript<'a> {
    environment: &'a TestEnvironment<'a>,
    /// What is written for what.
    names: Vec<(String, &'static str)>,
    text: String,
}

impl<'a> Transcript<'a> {
    fn new(environment: &'a TestEnvironment<'a>) -> Result<Self, cista_tests::error::HarnessError> {
        let session = environment.session();
        let image = session.imported(Recipe::Busybox)?;
        let below = |path: &Path| path.display().to_string();
        let work = below(&environment.path(""));
        let root = work.trim_end_matches("/work/").to_owned();
        // Those that are parts of others come later.
        let names = vec![
            (below(&image), "[IMAGE]"),
            (work.trim_end_matches('/').to_owned(), "[WORK]"),
            (below(&environment.home()), "[HOME]"),
            (root, "[TEST]"),
            (session.registry()?.host(), "[REGISTRY]"),
        ];
        Ok(Self {
            environment,
            names,
            text: String::new(),
        })
    }

    /// A command of cista, as one would type it: variables first, words in single quotes. It has to fail.
    #[track_caller]
    fn fails(&mut self, line: &str) -> TestResult {
        self.fails_with(line, |program| program)
    }

    #[track_caller]
    fn fails_with(&mut self, line: &str, change: impl FnOnce(Program) -> Program) -> TestResult {
        let mut full = line.to_owned();
        for (value, name) in &self.names {
            full = full.replace(name, value);
        }
        let mut program = self.environment.cista([""; 0]);
        for word in words(&full) {
            match word.split_once('=') {
                Some((name, value)) if is_variable(name) => program = program.env(name, value),
                _ => program = program.arg(word),
            }
        }
        let outcome = change(program).run()?;
        let told = outcome.error_text();
        assert_ne!(outcome.code(), Some(0), "{line} succeeds: {told}");
        assert_form(line, &told);
        let mut told = told;
        for (value, name) in &self.names {
            told = told.replace(value, name);
        }
        let status = outcome.code().unwrap_or_default();
        self.text
            .push_str(&format!("$ cista {line}\n{told}\n[{status}]\n\n"));
        Ok(())
    }

    /// Compares with the file of the topic.
    fn compare(self, topic: &str) {
        let mut settings = insta::Settings::new();
        settings.set_snapshot_path("messages");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(topic, self.text));
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// The words of a line; single quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// Nothing but messages, and these in the form of all.
#[track_caller]
fn assert_form(line: &str, told: &str) {
    // The parser of the command line has a form of its own.
    if !assert_form_of_error(told) {
        return;
    }
    let labels = ["error: ", "hint: ", "warning: ", "note: "];
    for text in told.lines() {
        let is_labelled = labels.iter().any(|label| text.starts_with(label));
        // A line of a file is quoted behind its number and a bar, and what is wrong in it is underlined.
        let is_quoted = text.split_once('|').is_some_and(|(number, _)| {
            number
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b' ')
        });
        assert!(is_labelled || is_quoted, "{line}: {told}");
    }
}

/// One error on one line, in the form of all messages; perhaps one hint. False for one of the parser of the command line, which is not ours.
#[track_caller]
pub(crate) fn assert_form_of_error(told: &str) -> bool {
    let of = |label: &str| -> Vec<&str> {
        told.lines()
            .filter_map(|line| line.strip_prefix(label))
            .collect()
    };
    let errors = of("error: ");
    assert_eq!(errors.len(), 1, "one error, please: {told}");
    let hints = of("hint: ");
    assert!(hints.len() <= 1, "one hint, please: {told}");
    if told.contains("\nUsage: ") || told.contains("For more information, try") {
        return false;
    }
    for text in errors.iter().chain(&hints) {
        assert!(!text.ends_with('.'), "a full stop: {told}");
        let first = text.chars().next().unwrap_or(' ');
        let is_name = text.starts_with("Docker ");
        assert!(!first.is_uppercase() || is_name, "a capital: {told}");
        let is_debug = text.contains("Os {") || text.contains("Error {");
        assert!(!is_debug, "for programmers: {told}");
    }
    true
}

fn command_lines(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    for line in [
        "strat",
        "start",
        "start --read-write [IMAGE]",
        "list --json --fancy",
        "import --json --quiet docker://[REGISTRY]/a",
        "run --offline --pull always docker://[REGISTRY]/a",
        "run --offline --no-cache docker://[REGISTRY]/a",
        "import --pull sometimes docker://[REGISTRY]/a",
        "import --compression lzo docker://[REGISTRY]/a",
        "import --compression zstd:99 docker://[REGISTRY]/a",
        "start --keep-fd 1 [IMAGE]",
        "start --keep-fd 77 [IMAGE]",
        "--log-format xml list",
        "cache prune --unused-for fortnight",
        "cache prune --size big",
        "exec box",
    ] {
        transcript.fails(line)?;
    }
    transcript.compare("command_lines");
    Ok(())
}

fn references(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    for uri in [
        "nonsense",
        "foo:bar",
        "docker://",
        "docker://[REGISTRY]/UPPER/case:1",
        "docker://[REGISTRY]/a:b:c",
        "docker://[REGISTRY]/a@sha256:123",
        "docker://[REGISTRY]/a@sha512:00",
        "docker://[REGISTRY]/../../etc:1",
        "docker://[REGISTRY]/a:..",
        "docker://127.0.0.1:99999/a",
        "docker://me:secret@[REGISTRY]/a",
        "'docker://[REGISTRY]/a b'",
        "dockerd://a?x=y",
        "dockerd://me@a",
        "podman://--all",
        "podman://",
        "oci:",
        "tar:",
    ] {
        transcript.fails(&format!("import {uri}"))?;
    }
    transcript.fails("run dir:/etc true")?;
    transcript.fails("digest tar:/etc/passwd")?;
    transcript.compare("references");
    Ok(())
}

fn sources(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    environment.directory("empty")?;
    environment.write("text", "no image at all\n", 0o644)?;
    environment.write("x.tar.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], 0o644)?;
    let layout = environment.session().images().get(Recipe::Busybox)?;
    environment.copy_of(&layout, "layout")?;
    environment.write("exists.sqsh", "", 0o644)?;
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o555)?;
    for line in [
        "import oci:none:1",
        "import oci:empty",
        "import oci:layout:none",
        "import --arch riscv64 oci:layout",
        "import oci-archive:none",
        "import oci-archive:text",
        "import oci-archive:x.tar.gz",
        "import docker-archive:none",
        "import docker-archive:text",
        "import tar:none",
        "import tar:text",
        "import dir:none",
        "import dir:text",
        "import -o exists.sqsh oci:layout",
        "import -o closed/x.sqsh oci:layout",
        "import -o none/x.sqsh oci:layout",
        "import -o empty oci:layout",
        "import -o /dev/null oci:layout",
        "import dockerd://box",
        "DOCKER_HOST=tcp://127.0.0.1:1 import dockerd://box",
    ] {
        transcript.fails(line)?;
    }
    transcript.fails_with("import -", |program| program.stdin_bytes("what is this?"))?;
    transcript.fails_with("import -o x.sqsh -", |program| {
        program.stdin_bytes("what is this?")
    })?;
    transcript.fails_with("import -o x.sqsh -", |program| program.stdin_bytes(""))?;
    set_mode(&closed, 0o755)?;
    transcript.compare("sources");
    Ok(())
}

fn registries(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    environment.session().uri(Recipe::Busybox)?;
    let zeros = "0".repeat(64);
    for line in [
        "import docker://[REGISTRY]/no/such:1",
        "import docker://[REGISTRY]/tools/busybox:none",
        &format!("import docker://[REGISTRY]/tools/busybox@sha256:{zeros}"),
        "digest docker://[REGISTRY]/no/such:1",
        "import --arch s390x docker://[REGISTRY]/tools/busybox:1",
        "CISTA_TRANSFER_RETRIES=0 import docker://127.0.0.1:1/a:1",
        "CISTA_TRANSFER_RETRIES=0 import docker://far.invalid/a:1",
        "run --offline docker://[REGISTRY]/not/stored:1 true",
        "login [REGISTRY]/team",
    ] {
        transcript.fails(line)?;
    }
    let configured = |text: &str| environment.configure("cista/cista.toml", text);
    configured("[registries.\"far.invalid\"]\nblocked = true\n")?;
    transcript.fails("import docker://far.invalid/a:1")?;
    configured("[registries.\"far.invalid\"]\nmirrors = [\"near.invalid\"]\n")?;
    transcript.fails("CISTA_TRANSFER_RETRIES=0 import docker://far.invalid/a:1")?;
    configured("[registries.\"far.invalid\"]\nca = \"/none.pem\"\n")?;
    transcript.fails("import docker://far.invalid/a:1")?;
    configured("[policy]\nregistries = [\"good.invalid\"]\n")?;
    transcript.fails("import docker://far.invalid/a:1")?;
    configured("[policy]\nrequire_digest = true\n")?;
    transcript.fails("import docker://far.invalid/a:1")?;
    configured("[[policy.signed]]\nkeys = [\"/none.pub\"]\n")?;
    transcript.fails("import docker://far.invalid/a:1")?;
    transcript.compare("registries");
    Ok(())
}

fn images(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    // One that no port of a registry is in, so that it has the same size in every run.
    let uri = environment.session().uri(Recipe::Busybox)?;
    let image = environment.cista(["cache", "add", "-q", &uri]).text()?;
    let whole = std::fs::read(&image).context("read", &image)?;
    environment.write("empty.sqsh", [], 0o644)?;
    environment.write("text.sqsh", "no image at all\n".repeat(100), 0o644)?;
    environment.write("short.sqsh", &whole[..whole.len() / 2], 0o644)?;
    let mut torn = whole;
    // The offset of the inode table, in the superblock (squashfs 4.0, at byte 64).
    torn[64..72].copy_from_slice(&u64::MAX.to_le_bytes());
    environment.write("torn.sqsh", &torn, 0o644)?;
    environment.write("secret.sqsh", &torn, 0)?;
    environment.directory("directory.sqsh")?;
    for name in [
        "empty",
        "text",
        "short",
        "torn",
        "secret",
        "directory",
        "missing",
    ] {
        transcript.fails(&format!("start ./{name}.sqsh true"))?;
        transcript.fails(&format!("inspect ./{name}.sqsh"))?;
        transcript.fails(&format!("create -n x ./{name}.sqsh"))?;
        transcript.fails(&format!("bundle -o x.run ./{name}.sqsh"))?;
    }
    transcript.compare("images");
    Ok(())
}

fn containers(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(&image)
        .check()?;
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o500)?;
    environment.write("x.sqsh", "", 0o644)?;
    for line in [
        "start none",
        "start none/at/all",
        "create -n box [IMAGE]",
        "create -n a/b [IMAGE]",
        "create -n .. [IMAGE]",
        "create -n '' [IMAGE]",
        "load -n box docker://[REGISTRY]/a:1",
        "remove none",
        "export none",
        "export -o x.sqsh box",
        "exec none true",
        "exec 1 true",
        "exec 4194304 true",
        "CISTA_DATA_PATH=[WORK]/closed/below create -n y [IMAGE]",
    ] {
        transcript.fails(line)?;
    }
    transcript.fails("exec box true")?;
    let running = environment
        .cista(["start", "-w", "box", "sh", "-c", "echo up; cat"])
        .stdin_pipe()
        .spawn()?;
    running.wait_for_stdout("up", std::time::Duration::from_secs(20))?;
    transcript.fails("start -w box true")?;
    transcript.fails("remove -f box")?;
    transcript.fails("create -f -n box [IMAGE]")?;
    let mut running = running;
    running.close_stdin();
    running.wait()?;
    set_mode(&closed, 0o755)?;
    transcript.compare("containers");
    Ok(())
}

fn starts(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    environment.write("file", "no program", 0o755)?;
    environment.write(
        "wrong.sh",
        "hooks() { exit 3; }\nmounts() { echo /a; }\n",
        0o755,
    )?;
    environment.write("failing.sh", "environ() { return 3; }\n", 0o755)?;
    environment.write("nothing.sh", "#! /bin/sh\n", 0o755)?;
    for line in [
        "start [IMAGE] no-such-program",
        "start [IMAGE] /no/such/program",
        "start [IMAGE] /etc",
        "start [IMAGE] /etc/issue",
        "start -m [WORK]/file:/file [IMAGE] /file",
        "start -m /no/such:/mnt [IMAGE] true",
        "start -m etc [IMAGE] true",
        "start -m '' [IMAGE] true",
        "start -m /etc:/mnt:none:x-create=door [IMAGE] true",
        "start -m /etc:/mnt:none:wobbly [IMAGE] true",
        "start -m tmpfs:/mnt:tmpfs:size=some [IMAGE] true",
        "start -m x:/mnt:nofs [IMAGE] true",
        "start -e =x [IMAGE] true",
        "start -e A-B=x [IMAGE] true",
        "start --rc none [IMAGE] true",
        "start --conf none [IMAGE] true",
        "start --conf wrong.sh [IMAGE] true",
        "start --conf failing.sh [IMAGE] true",
        "batch nothing.sh",
        "batch none",
    ] {
        transcript.fails(line)?;
    }
    let sysconf = "CISTA_SYSCONF_PATH=[WORK]/etc start [IMAGE] true";
    for fstab in [
        "/etc\n",
        "/etc /mnt none bind,x-create=door 0 0\n",
        "/etc /mnt none bind 0 many\n",
        "/no/such /mnt none bind 0 0\n",
    ] {
        put(environment, "etc/mounts.d/10-bad.fstab", fstab)?;
        transcript.text.push_str(&format!("mounts.d: {fstab}"));
        transcript.fails(sysconf)?;
    }
    put(environment, "etc/mounts.d/10-bad.fstab", "")?;
    for hook in ["#!/bin/sh\nexit 4\n", "#!/no/such/shell\n"] {
        put(environment, "etc/hooks.d/10-bad.sh", hook)?;
        set_mode(&environment.path("etc/hooks.d/10-bad.sh"), 0o755)?;
        transcript.fails(sysconf)?;
    }
    transcript.compare("starts");
    Ok(())
}

fn settings(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    for line in [
        "CISTA_MAX_PROCESSORS=many config",
        "CISTA_MAX_PROCESSORS=0 start [IMAGE] true",
        "CISTA_MOUNT=kernel start [IMAGE] true",
        "CISTA_ROOTFS_WRITABLE=perhaps start [IMAGE] true",
        "CISTA_IMAGE_CACHE_SIZE=1.5G start [IMAGE] true",
        "CISTA_LOG_FORMAT=xml list",
        "CISTA_COMPRESSION=lzo import oci:x",
        "CISTA_TRANSFER_TIMEOUT=0 import oci:x",
        "CISTA_CACHE_SIZE=lots cache prune",
        "config no.such",
    ] {
        transcript.fails(line)?;
    }
    for text in [
        "[limits]\nmax_processors = \"many\"\n",
        "[limits]\nmax_processor = 3\n",
        "[limit]\n",
        "[limits\n",
        "[start]\nmount_home = 7\n",
        "[transfer]\npassword = \"secret\"\n",
        "[registries.\"a b\"]\n",
        "[registries.\"a.b\"]\nmirror = []\n",
        "[policy]\nregistries = [\"a b\"]\n",
    ] {
        environment.configure("cista/cista.toml", text)?;
        transcript.text.push_str(text);
        let command = match text.starts_with("[registries") || text.starts_with("[policy") {
            true => "import docker://a.b/x",
            false => "config",
        };
        transcript.fails(command)?;
    }
    transcript.compare("settings");
    Ok(())
}

fn stores_and_bundles(environment: &TestEnvironment<'_>) -> TestResult {
    let mut transcript = Transcript::new(environment)?;
    let uri = environment.session().uri(Recipe::Busybox)?;
    environment.write("x.run", "", 0o644)?;
    let closed = environment.directory("closed")?;
    set_mode(&closed, 0o555)?;
    for line in [
        "CISTA_CACHE_PATH=[WORK]/closed/below cache list",
        "CISTA_CACHE_PATH=[WORK]/closed/below import docker://[REGISTRY]/tools/busybox:1",
        "CISTA_CACHE_PATH=[WORK]/closed/below run docker://[REGISTRY]/tools/busybox:1 true",
        "bundle -o x.run [IMAGE]",
        "bundle -o none/x.run [IMAGE]",
        "oci state none",
        "oci kill none",
        "oci run -b none x",
    ] {
        transcript.fails(line)?;
    }
    let image = environment.cista(["cache", "add", "-q", &uri]).text()?;
    std::fs::write(&image, "damaged").context("write", &image)?;
    let damaged = environment.cista(["cache", "verify"]).run()?;
    assert_eq!(damaged.code(), Some(1));
    set_mode(&closed, 0o755)?;
    transcript.compare("stores_and_bundles");
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case::container(name, Who::User, run)
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("messages::command_lines", command_lines),
    case("messages::references", references),
    case("messages::sources", sources),
    case("messages::registries", registries),
    case("messages::images", images),
    case("messages::containers", containers),
    case("messages::starts", starts),
    case("messages::settings", settings),
    case("messages::stores_and_bundles", stores_and_bundles),
];
