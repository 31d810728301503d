//! NVIDIA GPUs: the nodes that a container has, its libraries, and what it is told. The host is a tree (`CISTA_HOST_ROOT`) with the files of a
//! driver, real device nodes (copies of `/dev/zero` under other names), and libraries of this machine with other names.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::driver::{Tree, VERSION};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::gpu::Trial;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;

/// Where the tree is.
const TREE: &str = "host";

/// Makes a machine with four GPUs.
fn machine<'a>(environment: &'a TestEnvironment<'a>) -> Result<Tree<'a>, HarnessError> {
    Tree::new(environment, TREE, 4)
}

/// `cista start OPTIONS image sh -c COMMAND` on the machine.
fn start(
    environment: &TestEnvironment<'_>,
    recipe: Recipe,
    options: &[&str],
    command: &str,
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(recipe)?;
    Ok(environment
        .cista(["start"])
        .args(options)
        .arg(image)
        .args(["sh", "-c", command])
        .env("CISTA_HOST_ROOT", environment.path(TREE)))
}

/// What of GPUs there is in `/dev`.
const LIST: &str = "cd /dev; echo $(ls -d nvidia* 2>/dev/null)";

/// A container has the nodes that it was granted. Others are not there: by their path, by making them, by the paths of processes.
fn other_gpus_are_not_there(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let busybox =
        |options: &[&str], command: &str| start(environment, Recipe::Busybox, options, command);
    let script = format!(
        "{LIST}; head -c 2 /dev/nvidia2 | od -An -tx1; cat /dev/nvidia1; cat /proc/self/root/dev/nvidia1; \
         for way in /proc/1 /proc/$PPID /proc/self/cwd/../..; do cat $way/root/dev/nvidia1 && echo got it by $way; done; \
         mknod /tmp/made c 1 5 && echo made; cat /dev/../dev/nvidia1; ls /proc/self/fd | wc -l"
    );
    for options in [&["--gpus", "2", "-w", "-r"][..], &["--gpus", "2"]] {
        let outcome = busybox(options, &script)?.run()?;
        let text = outcome.text();
        assert_eq!(
            text,
            "nvidia-uvm nvidia2 nvidiactl\n 00 00\n4",
            "{}",
            outcome.error_text()
        );
        let missing = outcome
            .error_text()
            .matches("/dev/nvidia1: No such file or directory")
            .count()
            + outcome
                .error_text()
                .matches("can't open '/dev/nvidia1': No such file")
                .count();
        assert!(missing >= 1, "{}", outcome.error_text());
    }
    // Who decides: nobody, the image's variable, the option.
    assert_eq!(busybox(&[], LIST)?.text()?, "");
    let all = "nvidia-uvm nvidia0 nvidia1 nvidia2 nvidia3 nvidiactl";
    assert_eq!(
        busybox(&["-e", "NVIDIA_VISIBLE_DEVICES=all"], LIST)?.text()?,
        all
    );
    assert_eq!(busybox(&["--gpus", "all"], LIST)?.text()?, all);
    assert_eq!(
        busybox(
            &["--gpus", "none", "-e", "NVIDIA_VISIBLE_DEVICES=all"],
            LIST
        )?
        .text()?,
        ""
    );
    Ok(())
}

/// In a job of Slurm a container has the GPUs of the step, and `CUDA_VISIBLE_DEVICES` has the container's numbers.
fn a_job_has_its_own_gpus(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let script = format!("{LIST}; echo $CUDA_VISIBLE_DEVICES");
    let job = |options: &[&str], step: &str, cuda: &str| -> Result<Program, HarnessError> {
        Ok(start(environment, Recipe::Busybox, options, &script)?
            .env("SLURM_JOB_ID", "7")
            .env("SLURM_STEP_GPUS", step)
            .env("CUDA_VISIBLE_DEVICES", cuda))
    };
    let pass = [
        "-e",
        "CUDA_VISIBLE_DEVICES",
        "-e",
        "NVIDIA_VISIBLE_DEVICES=all",
    ];
    assert_eq!(
        job(&pass, "1", "1")?.text()?,
        "nvidia-uvm nvidia1 nvidiactl\n0"
    );
    assert_eq!(
        job(&pass, "3", "3")?.text()?,
        "nvidia-uvm nvidia3 nvidiactl\n0"
    );
    assert_eq!(
        job(&pass, "0,2-3", "3")?.text()?,
        "nvidia-uvm nvidia0 nvidia2 nvidia3 nvidiactl\n2"
    );
    // Not passed on unless asked for.
    assert_eq!(job(&[], "1", "1")?.text()?, "nvidia-uvm nvidia1 nvidiactl");
    let other = job(&["--gpus", "2"], "1", "1")?.run()?;
    assert_clear_error(
        &other,
        125,
        &["GPU `2`", "not of this job", "SLURM_STEP_GPUS"],
    );
    Ok(())
}

/// The dynamic linker finds the driver's libraries, also where the image has neither ldconfig nor a linker cache, and the image stays as it is.
fn libraries_are_found(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let seen = "LD_PRELOAD='libcuda.so.1 libnvidia-ml.so.1' cat /proc/self/maps | grep -oE '/.*(libcuda|libnvidia-ml)[.]so' | sort -u; nvidia-smi";
    let found = "/usr/lib/x86_64-linux-gnu/libcuda.so\n/usr/lib/x86_64-linux-gnu/libnvidia-ml.so\nof the driver";
    for options in [&["--gpus", "0"][..], &["--gpus", "0", "-w", "-r"]] {
        let outcome = start(environment, Recipe::Debian, options, seen)?.check()?;
        assert_eq!(
            (outcome.text(), outcome.error_text()),
            (found.to_owned(), String::new())
        );
    }
    let debian = environment.session().imported(Recipe::Debian)?;
    environment
        .cista(["create", "-n", "named"])
        .arg(debian)
        .check()?;
    let named = |options: &[&str], command: &str| {
        environment
            .cista(["start"])
            .args(options)
            .args(["named", "sh", "-c", command])
            .env("CISTA_HOST_ROOT", environment.path(TREE))
    };
    named(&["-w", "-r"], "rm /etc/ld.so.cache /sbin/ldconfig").check()?;
    for options in [&["--gpus", "0"][..], &["--gpus", "0", "-w"]] {
        assert_eq!(named(options, seen).text()?, found, "{options:?}");
    }
    // No link to a driver that may be another one tomorrow is left in it.
    let left = "find / -xdev -lname '*libcuda*' -o -xdev -lname '*libnvidia*'; find / -xdev -name 'libcuda*' -size +0; find /dev -name 'nvidia*'";
    assert_eq!(named(&[], left).text()?, "");
    // What is not found by the GNU dynamic linker's cache is searched for.
    let path = start(
        environment,
        Recipe::Busybox,
        &["--gpus", "0"],
        "echo $LD_LIBRARY_PATH; ls $LD_LIBRARY_PATH",
    )?
    .text()?;
    assert!(
        path.starts_with("/usr/lib\n") && path.contains("libcuda.so.1"),
        "{path}"
    );
    Ok(())
}

/// A program loads the driver's library by its name, and works with the GPUs that it was granted: see `tests/guest` for both.
fn cuda_programs_work(environment: &TestEnvironment<'_>) -> TestResult {
    let tree = machine(environment)?;
    let trial = Trial::pretending(environment, &tree)?;
    assert_eq!(trial.smi_inside()?, "of the driver");
    let sums = |gpus: usize| format!("no GPU, one of {gpus}: 10000000 sums are right");
    assert_eq!(trial.add()?, sums(4));
    assert_eq!(trial.add_on("1,3")?, sums(2));
    let product = trial.multiply_on("0")?;
    assert!(
        product.starts_with("no GPU, one of 1: ") && product.contains("GFLOP/s"),
        "{product}"
    );
    let without = trial.inside("none", &["cuda", "add", "1"])?.run()?;
    assert_eq!(without.code(), Some(1));
    let told = without.error_text();
    assert!(told.contains("cannot load libcuda.so.1"), "{told}");
    Ok(())
}

/// The image must have the C library that the driver's libraries need; the warning names both versions.
fn an_old_c_library_is_told(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?.library(
        "libcuda",
        "libcuda.so.1",
        Some(("GLIBC_2.2.5", "GLIBC_9.2.5")),
    )?;
    let outcome = start(
        environment,
        Recipe::Debian,
        &["--gpus", "0"],
        "echo started",
    )?
    .check()?;
    assert_eq!(outcome.text(), "started");
    let told = outcome.error_text();
    let words = [
        "warning: ",
        &format!("libcuda.so.{VERSION}"),
        "needs version 9.2 of the GNU C library",
        "the image has 2.",
    ];
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
    Ok(())
}

fn what_cannot_be_had_is_an_error(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let run =
        |options: &[&str]| start(environment, Recipe::Busybox, options, "echo started")?.run();
    for (options, words) in [
        (&["--gpus", "9"][..], &["no GPU `9`", "0, 1, 2, 3"][..]),
        (&["--gpus", "GPU-9"], &["no GPU `GPU-9`"]),
        (&["--device", "nvidia.com/gpu=8"], &["`8`"]),
        (
            &["--gpus", "0", "-e", "NVIDIA_DRIVER_CAPABILITIES=compute,x"],
            &["`x`", "NVIDIA_DRIVER_CAPABILITIES"],
        ),
        (
            &["--gpus", "0", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=99"],
            &["`cuda>=99`", "NVIDIA_REQUIRE_CUDA", VERSION],
        ),
    ] {
        assert_clear_error(&run(options)?, 125, words);
    }
    let off = [
        "--gpus",
        "0",
        "-e",
        "NVIDIA_REQUIRE_CUDA=cuda>=99",
        "-e",
        "NVIDIA_DISABLE_REQUIRE=1",
    ];
    assert_eq!(run(&off)?.text(), "started");
    std::fs::remove_dir_all(environment.path("host/proc")).context("remove", "host/proc")?;
    assert_clear_error(&run(&["--gpus", "all"])?, 125, &["no GPU `all`"]);
    assert_eq!(
        run(&["-e", "NVIDIA_VISIBLE_DEVICES=all"])?.text(),
        "started"
    );
    Ok(())
}

/// Every decision is told with its reason, before the program runs.
fn decisions_are_explained(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let outcome = start(
        environment,
        Recipe::Debian,
        &["--gpus", "1", "--explain-devices"],
        "echo started",
    )?
    .check()?;
    assert_eq!(outcome.text(), "started");
    let told = outcome.error_text();
    for line in [
        "granted      GPU 1 (NVIDIA H100, 0000:01:00.0): `--gpus`",
        "not granted  GPU 0 (NVIDIA H100, 0000:00:00.0): `--gpus` does not have it",
        "granted      /dev/nvidia1: GPU 1",
        &format!(
            "granted      /usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}: a library of the driver, for `compute`"
        ),
        "granted      /usr/bin/nvidia-smi: a program of the driver, for `utility`",
    ] {
        assert!(told.lines().any(|it| it == line), "{line}\n{told}");
    }
    let check = environment
        .cista(["check", "gpu"])
        .env("CISTA_HOST_ROOT", environment.path(TREE))
        .text()?;
    for part in [
        "driver 580.65.06, CUDA 13.0",
        "GPU 3: NVIDIA H100, GPU-3, 0000:03:00.0, /dev/nvidia3 may be used",
    ] {
        assert!(check.contains(part), "{part}\n{check}");
    }
    Ok(())
}

/// Eight GPUs with all that a driver has are granted without a program being run for it: the only one that is executed is the container's.
fn no_program_is_run(environment: &TestEnvironment<'_>) -> TestResult {
    let tree = Tree::new(environment, TREE, 8)?.with_whole_driver()?;
    let image = environment.session().imported(Recipe::Debian)?;
    let trace = environment.path("trace");
    environment
        .program("strace")
        .args(["--follow-forks", "--trace=execve,execveat", "--output"])
        .arg(&trace)
        .arg(environment.program_path())
        .args(["start", "--gpus", "all"])
        .arg(&image)
        .arg("/bin/true")
        .env("CISTA_HOST_ROOT", tree.root())
        .check()?;
    let text = std::fs::read_to_string(&trace).context("read", &trace)?;
    let executed: Vec<&str> = text.lines().filter(|line| line.contains("exec")).collect();
    assert_eq!(executed.len(), 2, "{text}");
    assert!(executed[1].contains("bin/true"), "{text}");
    let libraries = start(
        environment,
        Recipe::Debian,
        &["--gpus", "all"],
        "/sbin/ldconfig -p | grep -c 580.65.06; ls /usr/lib/x86_64-linux-gnu | grep -c 580.65.06; ls /dev | grep -c 'nvidia[0-7]'",
    )?
    .text()?;
    // One of the ten is known by its whole name.
    assert_eq!(libraries, "1\n10\n8");
    Ok(())
}

/// `/proc/driver/nvidia` shows the granted GPUs alone. The kernel of this machine has no such directory: the test puts one over its `/proc/driver`.
fn the_driver_shows_granted_gpus_alone(environment: &TestEnvironment<'_>) -> TestResult {
    machine(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let tree = environment.path(TREE);
    let script = format!(
        "mount --bind {tree}/proc/driver /proc/driver && exec env CISTA_HOST_ROOT={tree} {cista} start --gpus 1,3 {image} sh -c \
         'cd /proc/driver/nvidia; ls; ls gpus; cat params; cat gpus/*/information | grep UUID; touch x 2>/dev/null || echo read-only'",
        tree = tree.display(),
        cista = environment.program_path().display(),
        image = image.display(),
    );
    let text = environment
        .program("unshare")
        .args(["--mount", "sh", "-c", &script])
        .text()?;
    assert_eq!(
        text,
        "gpus\nparams\nversion\n0000:01:00.0\n0000:03:00.0\nModifyDeviceFiles: 0\nGPU UUID: GPU-1\nGPU UUID: GPU-3\nread-only"
    );
    Ok(())
}

const fn case(name: &'static str, who: Who, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who,
        needs: &[
            Need::Root,
            Need::Machine("x86_64"),
            Need::Image(Recipe::Busybox),
            Need::Image(Recipe::Debian),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "gpus::other_gpus_are_not_there",
        Who::Both,
        other_gpus_are_not_there,
    ),
    case(
        "gpus::a_job_has_its_own_gpus",
        Who::Both,
        a_job_has_its_own_gpus,
    ),
    case("gpus::libraries_are_found", Who::Both, libraries_are_found),
    case("gpus::cuda_programs_work", Who::Both, cuda_programs_work),
    case(
        "gpus::an_old_c_library_is_told",
        Who::User,
        an_old_c_library_is_told,
    ),
    case(
        "gpus::what_cannot_be_had_is_an_error",
        Who::Both,
        what_cannot_be_had_is_an_error,
    ),
    case(
        "gpus::decisions_are_explained",
        Who::User,
        decisions_are_explained,
    ),
    case("gpus::no_program_is_run", Who::User, no_program_is_run).needing(&[
        Need::Root,
        Need::Machine("x86_64"),
        Need::Program("strace"),
        Need::Program("cc"),
        Need::Image(Recipe::Debian),
        Need::UserNamespaces,
        Need::Fuse,
    ]),
    case(
        "gpus::the_driver_shows_granted_gpus_alone",
        Who::Root,
        the_driver_shows_granted_gpus_alone,
    ),
];
