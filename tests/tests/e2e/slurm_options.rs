//! The options of srun, sbatch and salloc, the variables that stand for them, and what is wrong with them at once.

use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::{LayoutWriter, Recipe, RunConfig};
use cista_tests::process;
use cista_tests::slurm::GROUPS;
use cista_tests::slurm::login::Login;

use super::slurm::{busybox, contained};

/// What a shell script prints in the busybox image, on stdout. It has to succeed.
fn shell(
    login: &Login<'_>,
    environment: &TestEnvironment<'_>,
    options: &[&str],
    script: &str,
) -> Result<String, HarnessError> {
    let image = busybox(environment)?;
    login
        .srun([image.as_str()])
        .args(options)
        .args(["sh", "-c", script])
        .text()
}

fn images_of_every_kind(environment: &TestEnvironment<'_>) -> TestResult {
    let session = environment.session();
    let path = session.imported(Recipe::Busybox)?;
    let uri = session.uri(Recipe::Busybox)?;
    let layout = session.images().get(Recipe::Busybox)?.oci_uri();
    let host = session.registry()?.host();
    let relative = environment.path("relative.sqsh");
    std::os::unix::fs::symlink(&path, &relative).map_err(|source| HarnessError::Io {
        operation: "link",
        path: relative.clone(),
        source,
    })?;
    let login = Login::new(environment)?;
    for image in [
        path.display().to_string(),
        "./relative.sqsh".into(),
        uri,
        format!("{host}#tools/busybox:1"),
        format!("{host}/tools/busybox:1"),
        layout,
    ] {
        let text = login
            .srun([format!("--container-image={image}")])
            .args(["cat", "/etc/issue"])
            .text()?;
        assert_eq!(text, "a test image of cista", "{image}");
    }
    Ok(())
}

fn files_are_mounted(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let source = environment.directory("source")?.display().to_string();
    environment.write("source/file", "content", 0o644)?;
    let read_only = format!("--container-mounts={source}:/at:ro,tmpfs:/empty");
    let text = shell(
        &login,
        environment,
        &[&read_only],
        "cat /at/file; touch /at/new 2>/dev/null || echo read-only; ls /empty; touch /empty/x && echo writable",
    )?;
    assert_eq!(text, "contentread-only\nwritable");
    // On itself, twice, and written to.
    let itself = format!("--container-mounts={source},{source}/file:/file");
    let script = format!("cat /file; echo new >{source}/new");
    assert_eq!(shell(&login, environment, &[&itself], &script)?, "content");
    let new = environment.path("source/new");
    assert_eq!(std::fs::read_to_string(new).unwrap_or_default(), "new\n");
    let without = shell(
        &login,
        environment,
        &["--container-mounts=umount:/dev/shm"],
        "grep -c ' /dev/shm ' /proc/mounts || true",
    )?;
    assert_eq!(without, "0");
    Ok(())
}

fn the_working_directory_is_that_of_the_image_or_as_asked(
    environment: &TestEnvironment<'_>,
) -> TestResult {
    let login = Login::new(environment)?;
    assert_eq!(shell(&login, environment, &[], "pwd")?, "/");
    let asked = shell(
        &login,
        environment,
        &["--container-workdir=/usr/bin"],
        "pwd",
    )?;
    assert_eq!(asked, "/usr/bin");
    let image = busybox(environment)?;
    let missing = login
        .srun([image.as_str(), "--container-workdir=/no/such", "true"])
        .run()?;
    assert_ne!(missing.code(), Some(0));
    let said = missing.error_text();
    assert!(said.contains("/no/such"), "{said}");
    Ok(())
}

/// The image's variables win over the job's, but for those that the user names. Languages of the host are none of the container's.
fn variables_come_from_the_job_and_the_image(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let image = busybox(environment)?;
    let run = |options: &[&str]| {
        login
            .srun([image.as_str()])
            .args(options)
            .args([
                "sh",
                "-c",
                "echo $PATH $FROM_JOB ${LC_ALL-none} $SLURM_PROCID",
            ])
            .env("PATH", "/job/bin:/usr/bin:/bin")
            .env("FROM_JOB", "from the job")
            .text()
    };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(run(&[])?, format!("{path} from the job none 0"));
    assert_eq!(
        run(&["--container-env=PATH,LC_ALL,NOT_THERE"])?,
        "/job/bin:/usr/bin:/bin from the job C.UTF-8 0"
    );
    Ok(())
}

/// Variables that would change what the program does are the tasks' alone.
fn the_jobs_libraries_are_not_the_runtimes(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let values = [
        ("LD_PRELOAD", "/of/the/job.so"),
        ("LD_LIBRARY_PATH", "/of/the/job"),
        ("PATH", "/of/the/job:/usr/bin:/bin"),
        ("BASH_ENV", "/of/the/job.sh"),
    ];
    let script = "echo $LD_LIBRARY_PATH $BASH_ENV; read line";
    let step = values
        .iter()
        .fold(
            login.srun([image.as_str(), "sh", "-c", script]),
            |step, (name, value)| step.env(name, value),
        )
        .stdin_pipe();
    let mut step = step.spawn()?;
    let seen = step.wait_for_stdout("\n", Duration::from_secs(30))?;
    assert_eq!(seen.trim(), "/of/the/job /of/the/job.sh");
    let program = login.cluster().program_path();
    let own = login.processes();
    let of_runtime: Vec<u32> = process::executing(&program)
        .into_iter()
        .filter(|pid| own.contains(pid))
        .collect();
    assert!(!of_runtime.is_empty());
    for pid in of_runtime {
        for (name, value) in values {
            assert!(!process::has_variable(pid, name, value), "{pid}: {name}");
        }
    }
    step.write(b"\n")?;
    assert_eq!(step.wait()?.code(), Some(0));
    Ok(())
}

fn who_one_is_inside(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let uid = environment.user().uid.to_string();
    let id = |options: &[&str]| shell(&login, environment, options, "id -u");
    assert_eq!(id(&["--no-container-remap-root"])?, uid);
    assert_eq!(id(&["--container-remap-root"])?, "0");
    Ok(())
}

/// The groups of the user on the cluster, which alone a user namespace would not map.
fn all_groups_of_the_user_count(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let text = shell(&login, environment, &["--no-container-remap-root"], "id -G")?;
    let groups: Vec<&str> = text.split_whitespace().collect();
    for (name, id) in GROUPS {
        assert!(groups.contains(&id.to_string().as_str()), "{name}: {text}");
    }
    assert!(!groups.contains(&"65534"), "{text}");
    for option in ["--no-container-remap-root", "--container-remap-root"] {
        let names = shell(&login, environment, &[option], "id -Gn")?;
        for (name, _) in GROUPS {
            assert!(names.split(' ').any(|known| known == name), "{names}");
        }
    }
    Ok(())
}

fn the_home_directory_is_mounted_when_asked(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let mark = environment.home().join("mark");
    std::fs::write(&mark, "").map_err(|source| HarnessError::Io {
        operation: "write",
        path: mark.clone(),
        source,
    })?;
    let script = format!("[ -e {} ] && echo there || echo absent", mark.display());
    let look = |options: &[&str]| shell(&login, environment, options, &script);
    // Root's home directory on a node is not that of this test's root.
    if !environment.user().is_root() {
        assert_eq!(look(&["--container-mount-home"])?, "there");
    }
    assert_eq!(look(&["--no-container-mount-home"])?, "absent");
    Ok(())
}

fn the_root_is_writable_or_not(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let script = "touch /new 2>/dev/null && echo written || echo refused";
    let touch = |options: &[&str]| shell(&login, environment, options, script);
    assert_eq!(touch(&["--container-writable"])?, "written");
    assert_eq!(touch(&["--container-readonly"])?, "refused");
    Ok(())
}

fn the_entrypoint_is_executed_when_asked(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.path("layout");
    let borrowed = environment.session().images().get(Recipe::Busybox)?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&borrowed.layout, &borrowed.layout.manifest.layers[0])?;
    let config = RunConfig {
        env: vec!["PATH=/bin".into()],
        entrypoint: vec![
            "/bin/sh".into(),
            "-c".into(),
            "echo entered; export ENTERED=yes; exec \"$@\"".into(),
            "entrypoint".into(),
        ],
        ..RunConfig::default()
    };
    layout.finish("1", &config)?;
    let image = format!("--container-image=oci:{}:1", root.display());
    let login = Login::new(environment)?;
    let run = |options: &[&str]| {
        login
            .srun([image.as_str()])
            .args(options)
            .args(["sh", "-c", "echo task ${ENTERED-no}"])
            .check()
    };
    let without = run(&[])?;
    assert_eq!(without.text(), "task no", "{}", without.error_text());
    let with = run(&["--container-entrypoint"])?;
    assert_eq!(with.text(), "task yes", "{}", with.error_text());
    assert!(!with.error_text().contains("entered"));
    let shown = run(&["--container-entrypoint", "--container-entrypoint-log"])?;
    let all = format!("{} {}", shown.text(), shown.error_text());
    assert!(all.contains("entered") && all.contains("task yes"), "{all}");
    Ok(())
}

fn namespaces_are_shared_unless_asked(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let links = "for n in net ipc uts; do readlink /proc/self/ns/$n; done";
    let host = login.srun(["-w", "n1", "sh", "-c", links]).text()?;
    let shared = shell(&login, environment, &["-w", "n1"], links)?;
    assert_eq!(shared, host);
    let own = shell(
        &login,
        environment,
        &["-w", "n1", "--container-unshare=net,uts"],
        links,
    )?;
    let differ: Vec<bool> = own
        .lines()
        .zip(host.lines())
        .map(|(own, host)| own != host)
        .collect();
    assert_eq!(differ, [true, false, true], "{own} {host}");
    Ok(())
}

/// Both prefixes; ours wins over that of pyxis, and the command line over both.
fn variables_stand_for_options(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let image = image.display().to_string();
    let login = Login::new(environment)?;
    let script = "pwd; touch /new 2>/dev/null && echo writable || echo read-only";
    let run = |variables: &[(&str, &str)], options: &[&str]| {
        let srun = login.srun(options).args(["sh", "-c", script]);
        let with = |srun: cista_tests::program::Program, (name, value): &(&str, &str)| {
            srun.env(name, value)
        };
        variables.iter().fold(srun, with).text()
    };
    let text = run(
        &[
            ("PYXIS_CONTAINER_IMAGE", &image),
            ("PYXIS_CONTAINER_WORKDIR", "/etc"),
            ("PYXIS_CONTAINER_READONLY", "1"),
        ],
        &[],
    )?;
    assert_eq!(text, "/etc\nread-only");
    let variables = [
        ("PYXIS_CONTAINER_IMAGE", "/no/such"),
        ("CISTA_CONTAINER_IMAGE", &image),
        ("PYXIS_CONTAINER_WORKDIR", "/etc"),
        ("CISTA_CONTAINER_WORKDIR", "/usr"),
        ("CISTA_CONTAINER_WRITABLE", "yes"),
    ];
    assert_eq!(run(&variables, &[])?, "/usr\nwritable");
    let text = run(
        &variables,
        &["--container-workdir=/bin", "--container-readonly"],
    )?;
    assert_eq!(text, "/bin\nread-only");
    // In a batch job they count for its steps, and for the script.
    let batch = login.sbatch(
        [format!("--export=ALL,CISTA_CONTAINER_IMAGE={image}")],
        "#!/bin/sh\ncat /etc/issue\n",
    )?;
    assert_eq!(batch.status, Some(0), "{} {}", batch.said, batch.printed);
    Ok(())
}

fn every_command_tells_its_options(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    for command in ["srun", "sbatch", "salloc"] {
        let help = login.command(command, ["--help"]).text()?;
        for option in [
            "image",
            "mounts",
            "workdir",
            "name",
            "save",
            "mount-home",
            "remap-root",
            "entrypoint",
            "entrypoint-log",
            "writable",
            "readonly",
            "env",
            "unshare",
            "gpus",
            "device",
        ] {
            let option = format!("--container-{option}");
            assert!(help.contains(&option), "{command}: {option}: {help}");
        }
    }
    Ok(())
}

/// Said by srun, before anything is queued.
fn wrong_options_are_refused_at_once(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::new(environment)?;
    let long = format!("--container-name={}", "x".repeat(300));
    let cases: &[(&[&str], &str)] = &[
        (&["--container-image="], "--container-image"),
        (&["--container-image=a b"], "a b"),
        (&["--container-image=busybox:"], "busybox:"),
        (&["--container-image=/a", "--container-image=/b"], "/b"),
        (&[&image, "--container-mounts="], "--container-mounts"),
        (&[&image, "--container-mounts=relative:/x"], "relative"),
        (
            &[&image, "--container-mounts=/a:/b:nosuchflag=:x:y"],
            "/a:/b",
        ),
        (
            &[&image, "--container-mounts=/etc:/x,,"],
            "--container-mounts",
        ),
        (&[&image, "--container-workdir="], "--container-workdir"),
        (&[&image, "--container-name="], "--container-name"),
        (&[&image, "--container-name=a/b"], "a/b"),
        (&[&image, "--container-name=a:nonsense"], "nonsense"),
        (&[&image, &long], "--container-name"),
        (&[&image, "--container-save="], "--container-save"),
        (
            &[
                &image,
                "--container-mount-home",
                "--no-container-mount-home",
            ],
            "exclude",
        ),
        (
            &[
                &image,
                "--container-remap-root",
                "--no-container-remap-root",
            ],
            "exclude",
        ),
        (
            &[&image, "--container-writable", "--container-readonly"],
            "exclude",
        ),
        (
            &[
                &image,
                "--container-entrypoint",
                "--no-container-entrypoint",
            ],
            "exclude",
        ),
        (&[&image, "--container-env=A=B"], "A=B"),
        (&[&image, "--container-unshare=pid"], "pid"),
        (&[&image, "--container-unshare="], "--container-unshare"),
        (
            &[&image, "--container-mounts=/a", "--container-mounts=/b"],
            "given twice",
        ),
        (
            &[&image, "--container-env=A", "--container-env=B"],
            "given twice",
        ),
        (&[&image, "--container-gpus="], "--container-gpus"),
        (&[&image, "--container-gpus=0,,1"], "0,,1"),
        (
            &[&image, "--container-gpus=0", "--container-gpus=1"],
            "given twice",
        ),
        (&[&image, "--container-device="], "--container-device"),
        (&[&image, "--container-device=/dev/fuse"], "/dev/fuse"),
    ];
    for command in ["srun", "salloc"] {
        for (options, expected) in cases {
            let outcome = login
                .command(command, options.iter())
                .arg("true")
                .timeout(Duration::from_secs(20))
                .run()?;
            let said = outcome.error_text();
            assert_ne!(outcome.code(), Some(0), "{command} {options:?}: {said}");
            assert!(said.contains(expected), "{command} {options:?}: {said}");
            assert!(said.contains("cista"), "{command} {options:?}: {said}");
            assert!(
                !said.contains("queued") && !said.contains("Granted"),
                "{command} {options:?}: {said}"
            );
        }
    }
    let variable = login
        .srun([image.as_str(), "true"])
        .env("CISTA_CONTAINER_WRITABLE", "perhaps")
        .run()?;
    assert_ne!(variable.code(), Some(0));
    let said = variable.error_text();
    assert!(said.contains("CISTA_CONTAINER_WRITABLE"), "{said}");
    Ok(())
}

fn options_without_an_image_are_ignored_aloud(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let outcome = login
        .srun(["--container-workdir=/etc", "--container-writable", "pwd"])
        .check()?;
    let said = outcome.error_text();
    assert!(said.contains("--container-workdir"), "{said}");
    assert!(said.contains("ignored"), "{said}");
    assert_eq!(
        format!("{}/", outcome.text()),
        environment.path("").display().to_string()
    );
    Ok(())
}

/// What salloc was given holds for the steps, and what a step says itself wins.
fn steps_inherit_the_options_of_their_allocation(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let first = environment.directory("first")?.display().to_string();
    let second = environment.directory("second")?.display().to_string();
    let login = Login::new(environment)?;
    let allocate = |options: &[&str], step: &str| {
        login
            .command("salloc", ["--quiet", "-N1"])
            .args(options)
            .args(["sh", "-c", step])
            .run()
    };
    let mounts = format!("--container-mounts={first}:/first");
    let look = "ls -d /first /second 2>/dev/null; pwd";
    let inherited = allocate(
        &[&image, &mounts, "--container-workdir=/etc"],
        &format!("srun sh -c '{look}'"),
    )?;
    assert_eq!(inherited.text(), "/first\n/etc");
    let own = allocate(
        &[&image, &mounts, "--container-workdir=/etc"],
        &format!(
            "srun --container-workdir=/bin --container-mounts={second}:/second sh -c '{look}'"
        ),
    )?;
    assert_eq!(own.text(), "/second\n/bin", "{}", own.error_text());
    let later = allocate(&[&mounts], &format!("srun {image} sh -c '{look}'"))?;
    assert_eq!(later.text(), "/first\n/", "{}", later.error_text());
    let said = later.error_text();
    assert!(said.contains("--container-mounts is for steps"), "{said}");
    let wrong = allocate(
        &["--container-image=/no/such"],
        &format!("srun {image} pwd"),
    )?;
    assert_eq!(wrong.text(), "/", "{}", wrong.error_text());
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_options::images_of_every_kind",
        Who::Both,
        images_of_every_kind,
    ),
    contained(
        "slurm_options::files_are_mounted",
        Who::Both,
        files_are_mounted,
    ),
    contained(
        "slurm_options::the_working_directory_is_that_of_the_image_or_as_asked",
        Who::User,
        the_working_directory_is_that_of_the_image_or_as_asked,
    ),
    contained(
        "slurm_options::variables_come_from_the_job_and_the_image",
        Who::User,
        variables_come_from_the_job_and_the_image,
    ),
    contained(
        "slurm_options::the_jobs_libraries_are_not_the_runtimes",
        Who::User,
        the_jobs_libraries_are_not_the_runtimes,
    ),
    contained(
        "slurm_options::who_one_is_inside",
        Who::Both,
        who_one_is_inside,
    ),
    contained(
        "slurm_options::all_groups_of_the_user_count",
        Who::User,
        all_groups_of_the_user_count,
    ),
    contained(
        "slurm_options::the_home_directory_is_mounted_when_asked",
        Who::Both,
        the_home_directory_is_mounted_when_asked,
    ),
    contained(
        "slurm_options::the_root_is_writable_or_not",
        Who::Both,
        the_root_is_writable_or_not,
    ),
    contained(
        "slurm_options::the_entrypoint_is_executed_when_asked",
        Who::User,
        the_entrypoint_is_executed_when_asked,
    ),
    contained(
        "slurm_options::namespaces_are_shared_unless_asked",
        Who::User,
        namespaces_are_shared_unless_asked,
    ),
    contained(
        "slurm_options::variables_stand_for_options",
        Who::User,
        variables_stand_for_options,
    ),
    contained(
        "slurm_options::every_command_tells_its_options",
        Who::User,
        every_command_tells_its_options,
    ),
    contained(
        "slurm_options::wrong_options_are_refused_at_once",
        Who::User,
        wrong_options_are_refused_at_once,
    ),
    contained(
        "slurm_options::steps_inherit_the_options_of_their_allocation",
        Who::User,
        steps_inherit_the_options_of_their_allocation,
    ),
    contained(
        "slurm_options::options_without_an_image_are_ignored_aloud",
        Who::User,
        options_without_an_image_are_ignored_aloud,
    ),
];
