//! `cista migrate`: the set-up of a user of enroot, with hooks, mounts, a login and an image of lzo, is moved and runs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::Recipe;
use cista_tests::program::Program;
use cista_tests::registry::{PASSWORD, Registry, USER};

use super::bad_input::assert_clear_error;

/// enroot's directories and ours, all of the test's own.
struct Places<'a> {
    environment: &'a TestEnvironment<'a>,
    enroot: PathBuf,
    cista: PathBuf,
    slurm: PathBuf,
}

impl<'a> Places<'a> {
    fn new(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        Ok(Self {
            environment,
            enroot: environment.directory("etc-enroot")?,
            cista: environment.path("etc-cista"),
            slurm: environment.directory("slurm")?,
        })
    }

    fn write(&self, path: &Path, content: &str, mode: u32) -> Result<(), HarnessError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).context("create", directory)?;
            self.environment.give(directory)?;
        }
        std::fs::write(path, content).context("write", path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .context("set the mode of", path)?;
        self.environment.give(path)
    }

    /// A file of the administrator of enroot.
    fn system(&self, name: &str, content: &str, mode: u32) -> Result<(), HarnessError> {
        self.write(&self.enroot.join(name), content, mode)
    }

    /// A file of the user of enroot.
    fn user(&self, name: &str, content: &str, mode: u32) -> Result<(), HarnessError> {
        self.environment
            .configure(&format!("enroot/{name}"), content)?;
        let path = self
            .environment
            .home()
            .with_file_name("config/enroot")
            .join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .context("set the mode of", &path)
    }

    fn cista(&self, words: &[&str]) -> Program {
        self.environment
            .cista(words)
            .env("ENROOT_SYSCONF_PATH", &self.enroot)
            .env("CISTA_SYSCONF_PATH", &self.cista)
    }
}

/// What enroot's users have: settings, two files of mounts, three hooks, a login, besides what enroot installs itself.
fn set_up(places: &Places<'_>, host: &str) -> TestResult {
    let environment = places.environment;
    let data = environment.directory("shared-data")?;
    environment.write("shared-data/set", "the data\n", 0o644)?;
    let raid = environment.directory("raid")?;
    places.system(
        "enroot.conf",
        &format!(
            "# site\n#ENROOT_LIBRARY_PATH /usr/lib/enroot\nENROOT_DATA_PATH {}/data-$(id -u)\nENROOT_RUNTIME_PATH ${{XDG_RUNTIME_DIR}}/enroot\n\
             ENROOT_SQUASH_OPTIONS -comp lzo -noD\nENROOT_ROOTFS_WRITABLE yes\nENROOT_MAX_PROCESSORS $(nproc)\nENROOT_TEMP_PATH $(mktemp -d)\n",
            raid.display()
        ),
        0o644,
    )?;
    places.system("enroot.conf.d/10.conf", "ENROOT_MAX_CONNECTIONS=4\n", 0o644)?;
    places.system("environ.d/10-site.env", "SITE=here\n", 0o644)?;
    places.system(
        "mounts.d/10-system.fstab",
        "/proc /proc none x-create=dir,rw,nosuid,noexec,nodev,rbind\n",
        0o644,
    )?;
    places.system(
        "mounts.d/50-site.fstab",
        &format!("{} /data none x-create=dir,bind,ro\n", data.display()),
        0o644,
    )?;
    places.user(
        "mounts.d/mine.fstab",
        "tmpfs /work tmpfs x-create=dir,mode=700\n",
        0o644,
    )?;
    places.system("hooks.d/10-shadow.sh", "#!/bin/bash\nexit 1\n", 0o755)?;
    places.system(
        "hooks.d/50-site.sh",
        "#!/bin/sh\nset -e\necho SITE_HOOK=ran >>\"$ENROOT_ENVIRON\"\n",
        0o755,
    )?;
    places.user(
        "hooks.d/60-a.sh",
        "#!/bin/sh\necho hooked >\"$ENROOT_ROOTFS/by-hook\"\n",
        0o755,
    )?;
    places.user(
        "hooks.d/70-b.sh",
        "#!/bin/sh\necho \"/etc/hostname /host-name none x-create=file,bind,ro\" >>\"$ENROOT_MOUNTS\"\n",
        0o755,
    )?;
    places.user(
        ".credentials",
        &format!("machine {host} login {USER} password {PASSWORD}\n"),
        0o600,
    )?;
    places.write(
        &places.slurm.join("plugstack.conf.d/pyxis.conf"),
        "required /usr/lib/slurm/spank_pyxis.so runtime_path=/run/pyxis execute_entrypoint=1\n",
        0o644,
    )
}

fn a_set_up_of_enroot_is_moved_and_runs(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    session.uri(Recipe::Busybox)?;
    let image = session.images().get(Recipe::Busybox)?;
    let registry = Registry::start_private(
        &session.images().registry_storage(),
        &environment.home().join("registry"),
    )?;
    let places = Places::new(environment)?;
    set_up(&places, &registry.host())?;
    let slurm = places.slurm.display().to_string();

    let before = environment.files()?;
    let told = places
        .cista(&["migrate", "--system", "--dry-run", "--slurm", &slurm])
        .check()?;
    assert_eq!(environment.files()?, before, "a dry run writes nothing");
    let text = told.text();
    for (line, fate) in [
        ("ENROOT_DATA_PATH", "translated"),
        ("ENROOT_RUNTIME_PATH", "not needed"),
        ("ENROOT_SQUASH_OPTIONS", "not needed"),
        ("ENROOT_ROOTFS_WRITABLE", "translated"),
        ("ENROOT_MAX_PROCESSORS", "not needed"),
        ("ENROOT_TEMP_PATH", "look at"),
        ("ENROOT_MAX_CONNECTIONS", "translated"),
        ("SITE=here", "kept"),
        ("/proc /proc", "not needed"),
        (" /data none", "kept"),
        ("10-shadow.sh", "not needed"),
        ("50-site.sh", "kept"),
        ("spank_pyxis.so", "translated"),
    ] {
        let found = text.lines().find(|shown| shown.contains(line));
        let found = found.unwrap_or_else(|| panic!("{line} is not told: {text}"));
        assert!(found.starts_with(fate), "{found}");
    }
    assert!(
        told.error_text().contains("would write"),
        "{}",
        told.error_text()
    );

    let moved = places
        .cista(&["migrate", "--system", "--slurm", &slurm])
        .check()?;
    let last = moved.error_text();
    assert!(
        last.trim_end()
            .ends_with("3 kept, 4 translated, 6 not needed, 1 look at"),
        "{last}"
    );
    let own = places.cista(&["migrate"]).check()?;
    assert!(!own.text().contains(PASSWORD) && !own.error_text().contains(PASSWORD));
    let line = std::fs::read_to_string(places.cista.join("plugstack.conf"))
        .context("read", &places.cista)?;
    assert!(
        line.ends_with("\nrequired spank_cista.so execute_entrypoint=1\n"),
        "{line}"
    );

    // An image as enroot makes it.
    let from = session.imported(Recipe::Busybox)?;
    environment
        .program("unsquashfs")
        .args(["-quiet", "-no-progress", "-dest", "tree"])
        .arg(&from)
        .check()?;
    environment
        .program("mksquashfs")
        .args([
            "tree",
            "old.sqsh",
            "-comp",
            "lzo",
            "-noD",
            "-quiet",
            "-no-progress",
            "-all-root",
        ])
        .check()?;
    places.cista(&["create", "-n", "old", "old.sqsh"]).check()?;
    let script = "echo $SITE $SITE_HOOK; cat /data/set /by-hook; cmp /host-name /etc/hostname && grep -c ' /work tmpfs' /proc/mounts; echo x >/new && echo writable";
    let ran = places
        .cista(&["start", "old", "sh", "-c", script])
        .check()?
        .text();
    assert_eq!(
        ran.lines().collect::<Vec<_>>(),
        ["here ran", "the data", "hooked", "1", "writable"]
    );
    // The path with the user's number is the one that enroot had.
    let data = environment.path(format!("raid/data-{}", environment.user().uid));
    assert!(data.join("old").is_dir(), "{}", data.display());
    // The login is found where enroot has it.
    let uri = image.uri(&registry);
    places
        .cista(&["import", "-q", "-o", "private.sqsh", &uri])
        .check()?;

    // Again nothing changes; what somebody has changed is left alone.
    let again = places
        .cista(&["migrate", "--system", "--slurm", &slurm])
        .check()?;
    assert!(
        !again.error_text().contains("wrote"),
        "{}",
        again.error_text()
    );
    let settings = places.cista.join("conf.d/50-enroot.toml");
    places.write(&settings, "[start]\nwritable = false\n", 0o644)?;
    let left = places
        .cista(&["migrate", "--system", "--slurm", &slurm])
        .check()?;
    assert!(
        left.error_text().contains("was left alone"),
        "{}",
        left.error_text()
    );
    places
        .cista(&["migrate", "--system", "-f", "--slurm", &slurm])
        .check()?;
    let replaced = std::fs::read_to_string(&settings).context("read", &settings)?;
    assert!(replaced.contains("data = "), "{replaced}");
    Ok(())
}

fn where_there_is_no_enroot_it_says_so(environment: &TestEnvironment<'_>) -> TestResult {
    let nothing = environment
        .cista(["migrate", "--system", "--slurm", "/nonexistent"])
        .env("ENROOT_SYSCONF_PATH", "/nonexistent")
        .check()?;
    assert_eq!(nothing.error_text().trim(), "nothing of enroot was found");
    let both = environment.cista(["migrate", "--system", "--user"]).run()?;
    assert_eq!(both.code(), Some(2));
    let enroot = environment.directory("bin")?.join("enroot");
    std::os::unix::fs::symlink(environment.program_path(), &enroot).context("create", &enroot)?;
    let called = environment.program(&enroot).arg("migrate").run()?;
    assert_clear_error(&called, 1, &["where they are", "hint:"]);
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "migrate::a_set_up_of_enroot_is_moved_and_runs",
        tier: Tier::Userns,
        who: Who::User,
        needs: &[
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
            Need::Program("mksquashfs"),
            Need::Program("unsquashfs"),
        ],
        run: a_set_up_of_enroot_is_moved_and_runs,
    },
    Case {
        name: "migrate::where_there_is_no_enroot_it_says_so",
        tier: Tier::Cli,
        who: Who::User,
        needs: &[],
        run: where_there_is_no_enroot_it_says_so,
    },
];
