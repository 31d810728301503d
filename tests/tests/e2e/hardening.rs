//! What an attacker would try: other system call ABIs, the terminal, open files, the runtime's own file, images whose paths lead out, and images that
//! are no proper file system.

use std::path::Path;
use std::time::Duration;

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Compression, LayerWriter, LayoutWriter, Recipe, RunConfig};
use cista_tests::listing::Listing;
use cista_tests::probe::{Abi, POINTER, system_call};
use cista_tests::program::{Outcome, Program};
use cista_tests::pty::{ON_TERMINAL, Terminal};

use super::bad_input::assert_clear_error;
use super::start::{busybox, shell};

/// No start takes longer, whatever the image.
const LIMIT: Duration = Duration::from_secs(30);

/// A probe in the working directory.
fn probe(
    environment: &TestEnvironment<'_>,
    abi: Abi,
    number: u32,
    arguments: [u32; 3],
) -> Result<String, HarnessError> {
    let path = environment.write("probe", system_call(abi, number, arguments), 0o755)?;
    Ok(path.display().to_string())
}

fn run_probe(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    path: &str,
) -> Result<Outcome, HarnessError> {
    let mount = format!("{path}:/probe");
    let mut all = vec!["-m", &mount];
    all.extend(options);
    busybox(environment, &all, &["/probe"])?.run()
}

/// An ordinary user's programs are told that chown and the set-id calls succeeded, whichever way they call.
fn every_abi_is_faked(environment: &TestEnvironment<'_>) -> TestResult {
    // chown, setuid, setgroups, and setresuid as examples of each table.
    let calls = [
        (Abi::X86_64, [92, 105, 116, 117]),
        (Abi::X32, [92, 105, 116, 117]),
        (Abi::I386, [212, 213, 206, 208]),
    ];
    for (abi, numbers) in calls {
        for number in numbers {
            let path = probe(environment, abi, number, [POINTER, 1, 1])?;
            let bare = environment.program(&path).run()?;
            assert_ne!(bare.code(), Some(0), "{abi:?} {number} succeeds by itself");
            for options in [&[][..], &["-r"], &["--pid"]] {
                let outcome = run_probe(environment, options, &path)?;
                assert_eq!(outcome.code(), Some(0), "{abi:?} {number} {options:?}");
            }
        }
    }
    Ok(())
}

/// Typing into the terminal that a container was started from is refused, by whichever way it is called, in `start` and in `exec`.
fn the_terminal_cannot_be_typed_into(environment: &TestEnvironment<'_>) -> TestResult {
    const TIOCSTI: u32 = 0x5412;
    const TIOCLINUX: u32 = 0x541c;
    let image = environment.session().imported(Recipe::Busybox)?;
    let status = |program: Program| -> Result<Option<i32>, HarnessError> {
        Terminal::start(program, environment.user())?.wait()
    };
    let work = environment.path("").display().to_string();
    environment
        .cista(["create", "-n", "box"])
        .arg(&image)
        .check()?;
    let mount = format!("{work}:/probes");
    let mut container = environment
        .cista([
            "start",
            "-m",
            &mount,
            "box",
            "sh",
            "-c",
            "echo ready; exec cat",
        ])
        .stdin_pipe()
        .spawn()?;
    container.wait_for_stdout("ready", LIMIT)?;
    for (abi, number) in [(Abi::X86_64, 16), (Abi::X32, 514), (Abi::I386, 54)] {
        for request in [TIOCSTI, TIOCLINUX] {
            let path = probe(environment, abi, number, [0, request, POINTER])?;
            if request == TIOCSTI && abi == Abi::X86_64 {
                let bare = environment
                    .program(ON_TERMINAL[0])
                    .args(&ON_TERMINAL[1..])
                    .arg(&path);
                // Or EIO, where the kernel has been told that nobody may (dev.tty.legacy_tiocsti=0).
                assert!(matches!(status(bare)?, Some(0 | 5)), "the probe is wrong");
            }
            let mount = format!("{path}:/probe");
            let start = environment
                .cista_on_terminal(["start", "-m", &mount])
                .arg(&image)
                .arg("/probe");
            assert_eq!(status(start)?, Some(1), "{abi:?} {request:#x}: EPERM");
            let exec = environment.cista_on_terminal(["exec", "box", "/probes/probe"]);
            assert_eq!(status(exec)?, Some(1), "{abi:?} {request:#x} in exec");
        }
    }
    container.close_stdin();
    container.wait()?;
    Ok(())
}

/// As SECURITY.md says: an ordinary user inside has no capability in any set; root inside has all of them over the container, and none that
/// a program would inherit besides.
fn capabilities_are_as_documented(environment: &TestEnvironment<'_>) -> TestResult {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .context("read", "/proc/sys/kernel/cap_last_cap")?;
    let count: u32 = last.trim().parse().unwrap_or_default();
    let all = (1_u64 << (count + 1)) - 1;
    let none = [0; 5];
    // Inheritable, permitted, effective, bounding, ambient.
    let root = [0, all, all, all, 0];
    let is_root = environment.user().is_root();
    for (options, expected) in [
        (&[][..], if is_root { root } else { none }),
        (&["-r"][..], root),
        (&["-r", "--pid"][..], root),
    ] {
        let text = shell(environment, options, "grep ^Cap /proc/self/status")?;
        let sets: Vec<u64> = text
            .lines()
            .filter_map(|line| u64::from_str_radix(line.split_once(':')?.1.trim(), 16).ok())
            .collect();
        assert_eq!(sets, expected, "{options:?}: {text}");
    }
    Ok(())
}

/// A user namespace of one user maps none of the caller's further groups, and yet they count: for files of the host that are mounted, in
/// `start` and in `exec`, as root inside or not.
fn further_groups_still_count(environment: &TestEnvironment<'_>) -> TestResult {
    const GROUP: u32 = 54_321;
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "-n", "box"])
        .arg(image)
        .check()?;
    let shared = environment.write("shared", "for the group", 0o640)?;
    std::os::unix::fs::chown(&shared, Some(0), Some(GROUP)).context("give away", &shared)?;
    let user = environment.user();
    let with_groups = |groups: &str, args: &[&str]| {
        Program::new("setpriv")
            .env_only(environment.variables())
            .current_dir(environment.path(""))
            .args([
                "--reuid",
                &user.uid.to_string(),
                "--regid",
                &user.gid.to_string(),
            ])
            .args(groups.split(' '))
            .arg(environment.program_path())
            .args(args)
    };
    let member = format!("--groups {GROUP}");
    let mount = format!("{}:/shared", shared.display());
    for options in [&[][..], &["-r"], &["--pid"]] {
        let start = [
            &["start", "-m", &mount][..],
            options,
            &["box", "cat", "/shared"],
        ]
        .concat();
        assert_eq!(
            with_groups(&member, &start).text()?,
            "for the group",
            "{options:?}"
        );
        let outcome = with_groups("--clear-groups", &start).run()?;
        assert_eq!(
            outcome.code(),
            Some(1),
            "{options:?}: readable without the group"
        );
    }
    let start = [
        "start",
        "-m",
        &mount,
        "box",
        "sh",
        "-c",
        "echo ready; exec cat",
    ];
    let mut container = with_groups(&member, &start).stdin_pipe().spawn()?;
    container.wait_for_stdout("ready", LIMIT)?;
    let exec = ["exec", "box", "cat", "/shared"];
    assert_eq!(with_groups(&member, &exec).text()?, "for the group");
    container.close_stdin();
    container.wait()?;
    Ok(())
}

/// Files that the caller left open stay out, but for those that are asked for.
fn only_files_that_are_asked_for_get_in(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment.write("secret", "a secret", 0o600)?;
    let script = "exec 3<secret 7<secret 9<&0 250<secret; exec \"$@\"";
    let files = |options: &[&str], command: &str| {
        environment
            .program("bash")
            .args(["-c", script, "bash"])
            .arg(environment.program_path())
            .arg("start")
            .args(options)
            .arg(&image)
            .args(["sh", "-c", command])
            .run()
    };
    let list = "for f in /proc/self/fd/*; do echo ${f##*/}; done | sort -n";
    // The shell that lists has the directory open.
    for (options, expected) in [
        (&[][..], "0 1 2 3"),
        (&["--pid"][..], "0 1 2 3"),
        (&["--keep-fd", "7"][..], "0 1 2 3 7"),
        (
            &["--keep-fd", "7", "--keep-fd", "250", "--pid"][..],
            "0 1 2 3 7 250",
        ),
    ] {
        let outcome = files(options, list)?;
        let found: Vec<&str> = std::str::from_utf8(&outcome.stdout)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(
            found.join(" "),
            expected,
            "{options:?} {}",
            outcome.error_text()
        );
    }
    let kept = files(&["--keep-fd", "7"], "cat <&7")?;
    assert_eq!(kept.text(), "a secret");
    let closed = files(&["--keep-fd", "8"], "true")?;
    assert_clear_error(&closed, 2, &["--keep-fd", "8"]);
    Ok(())
}

/// CVE-2019-5736: a program of the image that leads to the runtime's own file, which could then be overwritten.
fn the_runtime_is_not_handed_in(environment: &TestEnvironment<'_>) -> TestResult {
    // A program that its user may write to, as after a build of one's own.
    let own = environment.path("own");
    std::fs::copy(environment.program_path(), &own).context("copy", &own)?;
    set_mode(&own, 0o755)?;
    environment.give(&own)?;
    environment.write("script", "#!/proc/self/exe\n", 0o755)?;
    environment.write("second", "#!/script\n", 0o755)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let mounts =
        ["script", "second"].map(|name| format!("{}:/{name}", environment.path(name).display()));
    let start = |program: &Path, command: &str| {
        environment
            .program(program)
            .args(["start", "-m", &mounts[0], "-m", &mounts[1]])
            .arg(&image)
            .arg(command)
            .run()
    };
    for command in [
        "/script",
        "/second",
        "/proc/self/exe",
        "/proc/thread-self/exe",
    ] {
        let refused = start(&own, command)?;
        assert_clear_error(&refused, 126, &[command, "out of the container"]);
        if environment.user().is_root() {
            let refused = start(&environment.program_path(), command)?;
            assert_clear_error(&refused, 126, &[command, "out of the container"]);
        }
    }
    let mut container = environment
        .program(&own)
        .args(["start", "-m", &mounts[0]])
        .arg(&image)
        .args(["sh", "-c", "echo ready; exec cat"])
        .stdin_pipe()
        .spawn()?;
    container.wait_for_stdout("ready", LIMIT)?;
    let pid = container.pid().to_string();
    let refused = environment
        .program(&own)
        .args(["exec", &pid, "/script"])
        .run()?;
    assert_clear_error(&refused, 126, &["/script", "out of the container"]);
    container.close_stdin();
    container.wait()?;
    Ok(())
}

/// Programs that run in a container already could change a script after it was looked at: nothing leads to the runtime's file then.
fn the_runtime_has_no_file_where_others_run(environment: &TestEnvironment<'_>) -> TestResult {
    let own = environment.path("own");
    std::fs::copy(environment.program_path(), &own).context("copy", &own)?;
    set_mode(&own, 0o755)?;
    environment.give(&own)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    // What leads to the file of a process that is not the container's program yet: a command that waits for its standard input to be opened.
    environment.write(
        "hook.sh",
        "environ() { readlink /proc/$PPID/exe >&2; }\n",
        0o755,
    )?;
    let conf = environment.path("hook.sh");
    for (options, is_copied) in [(&["--conf"][..], true), (&[], false)] {
        let mut program = environment.program(&own).arg("start");
        if let [option] = options {
            program = program.arg(*option).arg(&conf);
        }
        let outcome = program.arg(&image).args(["cat", "/etc/issue"]).run()?;
        assert_eq!(outcome.code(), Some(0), "{}", outcome.error_text());
        assert_eq!(
            outcome.error_text().contains("/memfd:cista (deleted)"),
            is_copied,
            "{}",
            outcome.error_text()
        );
    }
    // Elsewhere, what others could change is not executed.
    let name = format!(
        "cista-test-{}-{}",
        std::process::id(),
        environment.user().uid
    );
    let shared = Path::new("/dev/shm").join(&name);
    std::fs::write(&shared, "#!/bin/sh\necho run\n").context("write", &shared)?;
    let checked = (|| {
        set_mode(&shared, 0o755)?;
        let direct = environment
            .program(&own)
            .arg("start")
            .arg(&image)
            .arg(&shared)
            .run()?;
        assert_eq!(direct.text(), "run", "{}", direct.error_text());
        let image = image_with(environment, "shared", "", &|layer| {
            layer.symlink("through", &shared.to_string_lossy())?;
            Ok(())
        })?;
        let refused = environment
            .program(&own)
            .args(["start", &image, "/through"])
            .run()?;
        assert_clear_error(&refused, 126, &["/through", "other containers"]);
        Ok(())
    })();
    std::fs::remove_file(&shared).context("remove", &shared)?;
    checked
}

type Fill<'a> = Box<dyn Fn(&mut LayerWriter) -> TestResult + 'a>;

/// Imports the busybox image with one more layer and a working directory.
fn image_with(
    environment: &TestEnvironment<'_>,
    name: &str,
    working_directory: &str,
    fill: &dyn Fn(&mut LayerWriter) -> TestResult,
) -> Result<String, HarnessError> {
    let busybox = environment.session().images().get(Recipe::Busybox)?;
    let root = environment.directory(&format!("layout-{name}"))?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&busybox.layout, &busybox.layout.manifest.layers[0])?;
    layout.layer(Compression::None, fill)?;
    layout.finish(
        "1",
        &RunConfig {
            env: vec!["PATH=/bin".into()],
            working_dir: working_directory.into(),
            ..RunConfig::default()
        },
    )?;
    let image = format!("./{name}.sqsh");
    environment
        .cista(["import", "-q", "-o", &image])
        .arg(format!("oci:{}:1", root.display()))
        .check()?;
    Ok(image)
}

/// Every place that a start touches, as a link of every kind, started in every way: nothing changes on the host.
fn links_never_lead_to_the_host(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    for below in ["run", "lock", "etc", "work"] {
        environment.directory(&format!("outside/{below}"))?;
    }
    environment.write("outside/etc/passwd", "of the host\n", 0o644)?;
    let before = Listing::of_directory(&outside)?;
    let target = outside.display().to_string();
    let deep = "../".repeat(30);
    let place = |name: &'static str, link: String| -> (String, &'static str, Fill<'_>) {
        let title = format!("{} to {link}", name.replace('/', "-"));
        let fill: Fill<'_> = Box::new(move |layer| {
            layer.whiteout(name)?;
            layer.symlink(name, &link)
        });
        (title, name, fill)
    };
    let mut traps = Vec::new();
    for name in [
        "etc", "proc", "dev", "tmp", "work", "var", "var/run", "home", "root",
    ] {
        traps.push(place(name, target.clone()));
        traps.push(place(name, format!("{deep}{target}")));
        traps.push(place(
            name,
            name.rsplit('/').next().unwrap_or(name).to_owned(),
        ));
    }
    for (index, (title, name, fill)) in traps.iter().enumerate() {
        let working_directory = if *name == "work" { "/work" } else { "/" };
        let image = image_with(environment, &index.to_string(), working_directory, fill)?;
        let container = format!("c{index}");
        let tree = format!("t{index}");
        environment
            .cista(["create", "-n", &container, &image])
            .check()?;
        environment
            .cista(["create", "--unpack", "-n", &tree, &image])
            .check()?;
        for (options, root) in [
            (&[][..], image.as_str()),
            (&["-w", "-r"][..], container.as_str()),
            (&["--pid", "--net"][..], container.as_str()),
            (&["-w"][..], tree.as_str()),
        ] {
            let outcome = environment
                .cista(["start"])
                .args(options)
                .args([root, "/bin/busybox", "echo", "alive"])
                .timeout(LIMIT)
                .run()?;
            match outcome.code() {
                Some(0) => assert_eq!(outcome.text(), "alive", "{title} {options:?}"),
                _ => assert_clear_error(&outcome, 125, &[]),
            }
        }
        environment
            .cista(["remove", "-f", &container, &tree])
            .check()?;
        let changes = before.differences(&Listing::of_directory(&outside)?);
        assert!(changes.is_empty(), "{title}: {changes:?}");
    }
    Ok(())
}

/// Directories become links and directories again while others start the same tree.
fn racing_links_never_lead_to_the_host(environment: &TestEnvironment<'_>) -> TestResult {
    let outside = environment.directory("outside")?;
    for below in ["run", "lock"] {
        environment.directory(&format!("outside/{below}"))?;
    }
    let before = Listing::of_directory(&outside)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .cista(["create", "--unpack", "-n", "tree"])
        .arg(image)
        .check()?;
    let target = outside.display();
    let race = format!(
        "mkdir -p /etc.new /var.new/run /var.new/lock; echo ready; while [ ! -e /stop ]; do
            for d in etc var; do mv /$d /$d.old; ln -s {target} /$d; rm /$d; mv /$d.new /$d; mv /$d.old /$d.new; done; done"
    );
    let attacker = environment
        .cista(["start", "-w", "tree", "sh", "-c", &race])
        .spawn()?;
    attacker.wait_for_stdout("ready", LIMIT)?;
    let mut alive = 0;
    for _ in 0..60 {
        let outcome = environment
            .cista(["start", "-w", "tree", "/bin/busybox", "echo", "alive"])
            .timeout(LIMIT)
            .run()?;
        match outcome.code() {
            Some(0) => alive += 1,
            _ => assert_clear_error(&outcome, 125, &[]),
        }
        let changes = before.differences(&Listing::of_directory(&outside)?);
        assert!(changes.is_empty(), "{changes:?}");
    }
    environment
        .cista(["exec", "tree", "/bin/busybox", "touch", "/stop"])
        .check()?;
    attacker.wait()?;
    assert!(alive > 0, "no start came through: nothing was tested");
    Ok(())
}

/// A squashfs of busybox whose tables are not compressed, so that a test can change them.
fn plain_squashfs(environment: &TestEnvironment<'_>) -> Result<Vec<u8>, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-dest", "tree"])
        .arg(&image)
        .check()?;
    for directory in ["aaa", "aaa/inner", "aaa/inner/looping"] {
        environment.directory(&format!("tree/{directory}"))?;
    }
    environment
        .program("mksquashfs")
        .args([
            "tree",
            "plain.sqsh",
            "-quiet",
            "-no-progress",
            "-noappend",
            "-all-root",
        ])
        .args(["-noI", "-noD", "-noF", "-noX"])
        .check()?;
    let path = environment.path("plain.sqsh");
    std::fs::read(&path).context("read", &path)
}

/// Starts an image that is not what it should be: it works, or there is one clear error, in a bounded time.
fn start_hostile(environment: &TestEnvironment<'_>, what: &str, image: &[u8]) -> TestResult {
    environment.write("hostile.sqsh", image, 0o644)?;
    for (mount, name) in [("fuse", "served"), ("unpack", "unpacked")] {
        let outcome = environment
            .cista(["start", "hostile.sqsh", "/bin/busybox", "echo", "alive"])
            .env("CISTA_MOUNT", mount)
            .timeout(LIMIT)
            .run()?;
        match outcome.code() {
            Some(0) => assert_eq!(outcome.text(), "alive", "{what} {name}"),
            Some(status @ 125..=127) => assert_clear_error(&outcome, status, &[]),
            _ => panic!(
                "{what} {name}: {:?} {}",
                outcome.status,
                outcome.error_text()
            ),
        }
    }
    Ok(())
}

fn tables_that_lie_are_refused(environment: &TestEnvironment<'_>) -> TestResult {
    let plain = plain_squashfs(environment)?;
    start_hostile(environment, "unchanged", &plain)?;
    let long = |at: usize| u64::from_le_bytes(plain[at..at + 8].try_into().unwrap_or_default());
    let (inodes, directories) = (long(64), long(72));
    // Offset in the superblock and what is written there; squashfs 4.0.
    let mut lies: Vec<(String, usize, Vec<u8>)> = Vec::new();
    for (name, at) in [("inodes", 4), ("block size", 12), ("fragments", 16)] {
        for value in [0_u32, 1, 0x7fff_ffff, u32::MAX] {
            lies.push((
                format!("{name} = {value}"),
                at,
                value.to_le_bytes().to_vec(),
            ));
        }
    }
    for (name, at) in [
        ("compressor", 20),
        ("block log", 22),
        ("flags", 24),
        ("ids", 26),
    ] {
        for value in [0_u16, 63, u16::MAX] {
            lies.push((
                format!("{name} = {value}"),
                at,
                value.to_le_bytes().to_vec(),
            ));
        }
    }
    for (name, at) in [
        ("root", 32),
        ("size", 40),
        ("id table", 48),
        ("xattr table", 56),
        ("inode table", 64),
        ("directory table", 72),
        ("fragment table", 80),
        ("export table", 88),
    ] {
        // Nothing, inside the superblock, another table, past the end, and where additions overflow.
        let values = [
            0,
            1,
            95,
            inodes,
            directories,
            plain.len() as u64,
            1 << 40,
            u64::MAX - 7,
        ];
        for value in values {
            lies.push((
                format!("{name} = {value:#x}"),
                at,
                value.to_le_bytes().to_vec(),
            ));
        }
    }
    for (name, at, bytes) in lies {
        let mut image = plain.clone();
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        start_hostile(environment, &name, &image)?;
    }
    for length in [0, 1, 95, 96, plain.len() / 2, plain.len() - 4096] {
        start_hostile(environment, &format!("{length} bytes"), &plain[..length])?;
    }
    Ok(())
}

/// Damage in every table, at places that a fixed sequence of numbers chooses.
fn damaged_tables_are_survived(environment: &TestEnvironment<'_>) -> TestResult {
    let plain = plain_squashfs(environment)?;
    let start = u64::from_le_bytes(plain[64..72].try_into().unwrap_or_default());
    let start = usize::try_from(start).unwrap_or(96);
    let mut number = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..60 {
        let mut image = plain.clone();
        for _ in 0..=round % 4 {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            let room = image.len() - start;
            let at = start + usize::try_from(number).unwrap_or_default() % room;
            image[at] = number.to_le_bytes()[7];
        }
        start_hostile(environment, &format!("damage {round}"), &image)?;
    }
    Ok(())
}

/// A directory that is in itself: what walks it ends, with an error or without.
fn a_directory_in_itself_is_no_trap(environment: &TestEnvironment<'_>) -> TestResult {
    let plain = plain_squashfs(environment)?;
    let find = |name: &[u8]| {
        plain
            .windows(name.len())
            .rposition(|window| window == name)
            .unwrap_or_else(|| panic!("no directory entry {}", String::from_utf8_lossy(name)))
    };
    // An entry of the directory table: offset in the block of inodes, difference of numbers, type, length of the name less one, name.
    let (looping, inner, outer) = (find(b"looping"), find(b"inner"), find(b"aaa"));
    for (target, name) in [(inner, "inner"), (outer, "aaa")] {
        let mut image = plain.clone();
        let offset: [u8; 2] = plain[target - 8..target - 6].try_into().unwrap_or_default();
        image[looping - 8..looping - 6].copy_from_slice(&offset);
        start_hostile(environment, &format!("in {name}"), &image)?;
        let walk = environment
            .cista(["start", "hostile.sqsh", "/bin/busybox", "sh", "-c"])
            .arg("find /aaa >/dev/null 2>&1; ls /aaa/inner/looping/inner/looping >/dev/null 2>&1; echo walked")
            .env("CISTA_MOUNT", "fuse")
            .timeout(LIMIT)
            .run()?;
        match walk.code() {
            Some(0) => assert_eq!(walk.text(), "walked"),
            Some(status @ 125..=127) => assert_clear_error(&walk, status, &[]),
            _ => panic!("{:?} {}", walk.status, walk.error_text()),
        }
        let created = environment
            .cista(["create", "--unpack", "-n", "loop", "hostile.sqsh"])
            .timeout(LIMIT)
            .run()?;
        assert_clear_error(&created, 1, &["hostile.sqsh"]);
    }
    Ok(())
}

const SQUASHFS: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
    Need::Program("mksquashfs"),
    Need::Program("unsquashfs"),
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
        "hardening::every_abi_is_faked",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Machine("x86_64"),
        ],
        every_abi_is_faked,
    ),
    case(
        "hardening::the_terminal_cannot_be_typed_into",
        Who::Both,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Machine("x86_64"),
        ],
        the_terminal_cannot_be_typed_into,
    ),
    case(
        "hardening::capabilities_are_as_documented",
        Who::Both,
        CONTAINER,
        capabilities_are_as_documented,
    ),
    case(
        "hardening::further_groups_still_count",
        Who::User,
        &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Root,
            Need::Program("setpriv"),
        ],
        further_groups_still_count,
    ),
    case(
        "hardening::only_files_that_are_asked_for_get_in",
        Who::Both,
        CONTAINER,
        only_files_that_are_asked_for_get_in,
    ),
    case(
        "hardening::the_runtime_is_not_handed_in",
        Who::Both,
        CONTAINER,
        the_runtime_is_not_handed_in,
    ),
    case(
        "hardening::the_runtime_has_no_file_where_others_run",
        Who::Both,
        CONTAINER,
        the_runtime_has_no_file_where_others_run,
    ),
    case(
        "hardening::links_never_lead_to_the_host",
        Who::Both,
        CONTAINER,
        links_never_lead_to_the_host,
    ),
    case(
        "hardening::racing_links_never_lead_to_the_host",
        Who::Both,
        CONTAINER,
        racing_links_never_lead_to_the_host,
    ),
    case(
        "hardening::tables_that_lie_are_refused",
        Who::User,
        SQUASHFS,
        tables_that_lie_are_refused,
    ),
    case(
        "hardening::damaged_tables_are_survived",
        Who::User,
        SQUASHFS,
        damaged_tables_are_survived,
    ),
    case(
        "hardening::a_directory_in_itself_is_no_trap",
        Who::User,
        SQUASHFS,
        a_directory_in_itself_is_no_trap,
    ),
];
