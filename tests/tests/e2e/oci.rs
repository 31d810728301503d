//! `cista oci`: bundles that umoci makes, by the command line that Slurm's oci.conf uses.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::process;
use cista_tests::program::Program;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::bad_input::assert_clear_error;

const PATIENCE: Duration = Duration::from_secs(20);

/// A bundle that umoci makes of the busybox image, with changes to its configuration.
fn bundle(
    environment: &TestEnvironment<'_>,
    name: &str,
    change: impl FnOnce(&mut Value),
) -> Result<PathBuf, HarnessError> {
    let image = environment.session().images().get(Recipe::Busybox)?;
    let layout = environment.copy_of(&image, &format!("layout-{name}"))?;
    let rootless: &[&str] = if environment.user().is_root() {
        &[]
    } else {
        &["--rootless"]
    };
    environment
        .program("umoci")
        .args(["--log", "error", "unpack"])
        .args(rootless)
        .args(["--image", &format!("{}:1", layout.display())])
        .arg(name)
        .check()?;
    let directory = environment.path(name);
    let path = directory.join("config.json");
    let text = std::fs::read(&path).context("read", &path)?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|source| HarnessError::Json {
        what: "the configuration".into(),
        source,
    })?;
    config["process"]["terminal"] = json!(false);
    change(&mut config);
    std::fs::write(&path, config.to_string()).context("write", &path)?;
    Ok(directory)
}

fn oci(environment: &TestEnvironment<'_>, args: &[&str]) -> Program {
    let root = environment.path("state").display().to_string();
    environment
        .cista(["oci", "--rootless=true", "--root", &root])
        .args(args)
}

fn run_in(
    environment: &TestEnvironment<'_>,
    bundle: &Path,
    id: &str,
    script: &str,
) -> Result<String, HarnessError> {
    set_command(bundle, &["sh", "-c", script])?;
    let bundle = bundle.display().to_string();
    let text = oci(environment, &["run", "-b", &bundle, id]).text()?;
    oci(environment, &["delete", id]).check()?;
    Ok(text)
}

fn set_command(bundle: &Path, words: &[&str]) -> TestResult {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).context("read", &path)?;
    let mut config: Value = serde_json::from_slice(&text).unwrap_or_default();
    config["process"]["args"] = json!(words);
    std::fs::write(&path, config.to_string()).context("write", &path)
}

fn status(environment: &TestEnvironment<'_>, id: &str) -> Result<Value, HarnessError> {
    let text = oci(environment, &["state", id]).text()?;
    serde_json::from_str(&text).map_err(|source| HarnessError::Json {
        what: "the state".into(),
        source,
    })
}

fn a_bundle_of_umoci_runs(environment: &TestEnvironment<'_>) -> TestResult {
    let bundle = bundle(environment, "b", |config| {
        config["process"]["env"] = json!(["PATH=/bin", "A=a b", "BASH_FUNC_f%%=() { :; }"]);
        config["process"]["cwd"] = json!("/made/for/it");
    })?;
    let text = run_in(
        environment,
        &bundle,
        "c",
        "id -u; pwd; echo $A; hostname; ulimit -n; cat /proc/1/comm; env | wc -l; echo in >/home/written; for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; readlink /dev/fd; ls /dev/pts",
    )?;
    // The shell drops what is no name of a variable, and adds PWD and SHLVL.
    assert_eq!(
        text,
        "0\n/made/for/it\na b\numoci-default\n1024\ncista-init\n4\n/proc/self/fd\nptmx"
    );
    let written = bundle.join("rootfs/home/written");
    assert_eq!(
        std::fs::read_to_string(&written).context("read", &written)?,
        "in\n"
    );
    let state = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
    let text = run_in(environment, &bundle, "c", state)?;
    // CAP_AUDIT_WRITE, CAP_KILL and CAP_NET_BIND_SERVICE, in every set.
    let sets: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(
        sets,
        ["0000000020000420"; 5]
            .into_iter()
            .chain(["1"])
            .collect::<Vec<_>>()
    );
    let hidden = "cat /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware | wc -l; echo 1 2>/dev/null >/proc/sys/kernel/printk && echo changed; echo end";
    assert_eq!(run_in(environment, &bundle, "c", hidden)?, "0\n0\nend");
    Ok(())
}

/// Another user than root inside, a read-only root, further mounts, an open file.
fn what_the_configuration_says_is_done(environment: &TestEnvironment<'_>) -> TestResult {
    environment.directory("source")?;
    environment.write("source/file", "mounted", 0o644)?;
    let user = environment.user().clone();
    let bundle = bundle(environment, "b", |config| {
        config["root"]["readonly"] = json!(true);
        if !user.is_root() {
            config["linux"]["uidMappings"][0]["containerID"] = json!(1234);
            config["linux"]["gidMappings"][0]["containerID"] = json!(1235);
        } else {
            config["process"]["user"]["additionalGids"] = json!([77]);
        }
        config["process"]["user"]["uid"] = json!(1234);
        config["process"]["user"]["gid"] = json!(1235);
        config["process"]["user"]["umask"] = json!(0o077);
        config["hostname"] = json!("named");
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
        let mounts = config["mounts"].as_array_mut();
        if let Some(mounts) = mounts {
            mounts.push(json!({"destination": "/mnt/a", "type": "bind", "source": "../source", "options": ["rbind", "ro"]}));
            mounts.push(json!({"destination": "/mnt/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}));
        }
    })?;
    let text = run_in(
        environment,
        &bundle,
        "c",
        "id -u; id -g; hostname; ulimit -c; cat /mnt/a/file; touch /mnt/a/x /x 2>/dev/null && echo written; touch /dev/shm/y && stat -c %a /dev/shm/y; grep ^Groups: /proc/self/status",
    )?;
    let groups = if environment.user().is_root() {
        "Groups:\t77"
    } else {
        "Groups:"
    };
    assert_eq!(text, format!("1234\n1235\nnamed\n0\nmounted600\n{groups}"));
    Ok(())
}

fn the_program_is_the_task(environment: &TestEnvironment<'_>) -> TestResult {
    let without_pid = bundle(environment, "b", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        if let Some(namespaces) = namespaces {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    })?;
    set_command(&without_pid, &["sh", "-c", "echo $$ $PPID; exec sleep 60"])?;
    let bundle = without_pid.display().to_string();
    let program = oci(environment, &["run", "--bundle", &bundle, "task"]).spawn()?;
    let told = program.wait_for_stdout("\n", PATIENCE)?;
    assert_eq!(
        told.trim(),
        format!("{} {}", program.pid(), std::process::id())
    );
    let state = status(environment, "task")?;
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"], program.pid());
    assert_eq!(state["id"], "task");
    assert_eq!(state["bundle"], bundle);
    let again = oci(environment, &["run", "-b", &bundle, "task"]).run()?;
    assert_clear_error(&again, 125, &["task", "already"]);
    let delete = oci(environment, &["delete", "task"]).run()?;
    assert_clear_error(&delete, 1, &["task", "running"]);
    oci(environment, &["kill", "task", "SIGTERM"]).check()?;
    assert_eq!(program.wait()?.signal(), Some(Signal::TERM.as_raw()));
    assert_eq!(status(environment, "task")?["status"], "stopped");
    let kill = oci(environment, &["kill", "task"]).run()?;
    assert_clear_error(&kill, 1, &["task", "stopped"]);
    // A name whose container has ended can be used again.
    set_command(&without_pid, &["sh", "-c", "exit 7"])?;
    let again = oci(environment, &["run", "-b", &bundle, "task"]).run()?;
    assert_eq!(again.code(), Some(7), "{}", again.error_text());
    oci(environment, &["delete", "task"]).check()?;
    set_command(&without_pid, &["no-such-program"])?;
    let missing = oci(environment, &["run", "-b", &bundle, "task"]).run()?;
    assert_clear_error(&missing, 127, &["no-such-program"]);
    let state = oci(environment, &["state", "task"]).run()?;
    assert_clear_error(&state, 1, &["no container `task`"]);
    Ok(())
}

fn create_waits_for_start(environment: &TestEnvironment<'_>) -> TestResult {
    let directory = bundle(environment, "b", |_| ())?;
    let script = "(trap '' TERM; sleep 61) & touch /home/started; exec sleep 62";
    set_command(&directory, &["sh", "-c", script])?;
    let bundle = directory.display().to_string();
    let started = directory.join("rootfs/home/started");
    let log = environment.path("log");
    let create = || {
        let file = std::fs::File::create(&log).context("create", &log)?;
        oci(
            environment,
            &["create", "-b", &bundle, "--pid-file", "pid", "c"],
        )
        .stdout_file(file.try_clone().context("duplicate", &log)?)
        .stderr_file(file)
        .check()
        .map(drop)
    };
    create()?;
    let state = status(environment, "c")?;
    assert_eq!(state["status"], "created");
    let path = environment.path("pid");
    let pid = std::fs::read_to_string(&path).context("read", &path)?;
    assert_eq!(state["pid"].to_string(), pid);
    assert!(!started.exists(), "it was started without being asked");
    oci(environment, &["start", "c"]).check()?;
    let begin = Instant::now();
    while !started.exists() {
        assert!(begin.elapsed() < PATIENCE, "it was not started");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(status(environment, "c")?["status"], "running");
    let again = oci(environment, &["start", "c"]).run()?;
    assert_clear_error(&again, 1, &["running"]);
    oci(environment, &["kill", "--all", "c", "KILL"]).check()?;
    wait_for_end(environment, "c")?;
    oci(environment, &["delete", "c"]).check()?;
    // Deleted by force: before it was started, and while it runs.
    create()?;
    oci(environment, &["delete", "--force", "c"]).check()?;
    create()?;
    oci(environment, &["start", "c"]).check()?;
    oci(environment, &["delete", "-f", "c"]).check()?;
    oci(environment, &["delete", "-f", "c"]).check()?;
    let gone = oci(environment, &["delete", "c"]).run()?;
    assert_clear_error(&gone, 1, &["no container"]);
    // What cannot be created leaves nothing.
    let refused = oci(environment, &["create", "-b", "none", "c"]).run()?;
    assert_clear_error(&refused, 1, &["none"]);
    set_command(&directory, &[])?;
    let refused = oci(environment, &["create", "-b", &bundle, "c"]).run()?;
    assert_clear_error(&refused, 1, &["process.args"]);
    assert_eq!(
        process::executing(&environment.program_path()),
        Vec::<u32>::new()
    );
    Ok(())
}

fn wait_for_end(environment: &TestEnvironment<'_>, id: &str) -> TestResult {
    let begin = Instant::now();
    while status(environment, id)?["status"] != "stopped" {
        assert!(begin.elapsed() < PATIENCE, "it has not ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What is not supported is told by name: an error where the program would miss it, else a warning.
fn what_is_not_done_is_told(environment: &TestEnvironment<'_>) -> TestResult {
    type Change = fn(&mut Value);
    let refused: [(&str, Change); 5] = [
        ("hooks.prestart", |config| {
            config["hooks"] = json!({"prestart": [{"path": "/bin/true"}]});
        }),
        ("linux.sysctl", |config| {
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        }),
        ("linux.namespaces[].path", |config| {
            config["linux"]["namespaces"] = json!([{"type": "network", "path": "/proc/1/ns/net"}]);
        }),
        ("uidMappings", |config| {
            config["linux"]["uidMappings"] =
                json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        }),
        ("version", |config| config["ociVersion"] = json!("3.0.0")),
    ];
    for (index, (word, change)) in refused.into_iter().enumerate() {
        let directory = bundle(environment, &format!("refused-{index}"), change)?;
        let bundle = directory.display().to_string();
        let outcome = oci(environment, &["run", "-b", &bundle, "c"]).run()?;
        assert_clear_error(&outcome, 125, &[word]);
    }
    let directory = bundle(environment, "warned", |config| {
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        config["linux"]["resources"] = json!({"memory": {"limit": 1 << 30}});
        config["process"]["args"] = json!(["echo", "done"]);
    })?;
    let bundle = directory.display().to_string();
    let outcome = oci(environment, &["run", "-b", &bundle, "c"]).check()?;
    assert_eq!(outcome.text(), "done");
    for word in ["linux.seccomp", "linux.resources.memory"] {
        assert!(
            outcome.error_text().contains(word),
            "{}",
            outcome.error_text()
        );
    }
    oci(environment, &["delete", "c"]).check()?;
    for id in ["../up", "", "a/b", ".hidden"] {
        let outcome = oci(environment, &["run", "-b", &bundle, "--", id]).run()?;
        assert_eq!(outcome.stdout, b"");
        assert!(
            matches!(outcome.code(), Some(1 | 2)),
            "{id}: {:?}",
            outcome.status
        );
    }
    Ok(())
}

/// A hostile bundle: mount points that are links out of it.
fn links_in_a_bundle_lead_nowhere(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    let directory = bundle(environment, "b", |_| ())?;
    for name in ["proc", "dev", "sys", "etc"] {
        let path = directory.join("rootfs").join(name);
        if path.exists() {
            Program::new("rm").args(["-rf"]).arg(&path).check()?;
        }
        std::os::unix::fs::symlink(&outside, &path).context("link", &path)?;
        set_command(&directory, &["/bin/busybox", "echo", "alive"])?;
        let bundle = directory.display().to_string();
        let outcome = oci(environment, &["run", "-b", &bundle, "c"]).run()?;
        match outcome.code() {
            Some(0) => assert_eq!(outcome.text(), "alive"),
            _ => assert_clear_error(&outcome, 125, &[]),
        }
        oci(environment, &["delete", "-f", "c"]).check()?;
        let found = std::fs::read_dir(&outside)
            .context("read", &outside)?
            .count();
        assert_eq!(found, 0, "{name}");
    }
    Ok(())
}

/// The same bundle under runc, where this machine lets it run: the program sees the same.
fn runc_agrees(environment: &TestEnvironment<'_>) -> TestResult {
    // runc makes /dev/core only where there is a /proc/kcore; it makes device nodes where we bind them.
    let script = "id; pwd; env | sort; hostname; ulimit -n; ulimit -c; ls -A /; ls -A /dev | grep -v ^core; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(sys|proc)/|^/dev/(null|zero|full|u?random|tty)$' | sort -u; ls /sys/class/net; exit 9";
    let directory = bundle(environment, "b", |config| {
        config["process"]["args"] = json!(["sh", "-c", script]);
    })?;
    let bundle = directory.display().to_string();
    let ours = oci(environment, &["run", "-b", &bundle, "ours"]).run()?;
    oci(environment, &["delete", "ours"]).check()?;
    let state = environment.path("runc").display().to_string();
    let theirs = environment
        .program("runc")
        .args(["--root", &state, "run", "-b", &bundle, "theirs"])
        .run()?;
    assert_eq!(theirs.code(), Some(9), "runc: {}", theirs.error_text());
    assert_eq!(ours.code(), theirs.code(), "{}", ours.error_text());
    assert_eq!(ours.text(), theirs.text());
    Ok(())
}

const BUNDLES: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Program("umoci"),
];

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "oci::a_bundle_of_umoci_runs",
        Who::Both,
        BUNDLES,
        a_bundle_of_umoci_runs,
    ),
    case(
        "oci::what_the_configuration_says_is_done",
        Who::Both,
        BUNDLES,
        what_the_configuration_says_is_done,
    ),
    case(
        "oci::the_program_is_the_task",
        Who::Both,
        BUNDLES,
        the_program_is_the_task,
    ),
    case(
        "oci::create_waits_for_start",
        Who::Both,
        BUNDLES,
        create_waits_for_start,
    ),
    case(
        "oci::what_is_not_done_is_told",
        Who::Both,
        BUNDLES,
        what_is_not_done_is_told,
    ),
    case(
        "oci::links_in_a_bundle_lead_nowhere",
        Who::Both,
        BUNDLES,
        links_in_a_bundle_lead_nowhere,
    ),
    case(
        "oci::runc_agrees",
        Who::Root,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Program("umoci"),
            Need::Program("runc"),
        ],
        runc_agrees,
    ),
];
