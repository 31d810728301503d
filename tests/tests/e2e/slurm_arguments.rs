//! What a site says in plugstack.conf behind the path of the plugin.

use std::time::Duration;

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::IoContext as _;
use cista_tests::image::{LayoutWriter, Recipe, RunConfig};
use cista_tests::slurm::login::Login;

use super::slurm::{busybox, contained};

const PATIENCE: Duration = Duration::from_secs(40);

/// `execute_entrypoint=yes` is what holds where no option says otherwise.
fn entrypoints_may_be_executed_by_default(environment: &TestEnvironment<'_>) -> TestResult {
    let root = environment.path("layout");
    let borrowed = environment.session().images().get(Recipe::Busybox)?;
    let mut layout = LayoutWriter::create(&root)?;
    layout.borrow(&borrowed.layout, &borrowed.layout.manifest.layers[0])?;
    let script = "export ENTERED=yes; exec \"$@\"";
    let config = RunConfig {
        env: vec!["PATH=/bin".into()],
        entrypoint: ["/bin/sh", "-c", script, "entrypoint"]
            .map(Into::into)
            .into(),
        ..RunConfig::default()
    };
    layout.finish("1", &config)?;
    let image = format!("--container-image=oci:{}:1", root.display());
    let login = Login::with_plugin(environment, &["execute_entrypoint=yes"])?;
    for (options, expected) in [
        (&[][..], "yes"),
        (&["--no-container-entrypoint"], "no"),
        (&["--container-entrypoint"], "yes"),
    ] {
        let look = ["sh", "-c", "echo ${ENTERED-no}"];
        let text = login.srun([&image]).args(options).args(look).text()?;
        assert_eq!(text, expected, "{options:?}");
    }
    Ok(())
}

/// `sbatch_support=no`: sbatch and salloc do not know the options, scripts stay outside, and their steps have containers all the same.
fn batch_scripts_may_stay_outside(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::with_plugin(environment, &["sbatch_support=no"])?;
    let refused = login.sbatch([&image], "#!/bin/sh\ntrue\n")?;
    assert_ne!(refused.status, Some(0));
    assert!(refused.said.contains("container-image"), "{}", refused.said);
    let help = login.command("sbatch", ["--help"]).text()?;
    assert!(!help.contains("container-image"), "{help}");
    let script = format!(
        "#!/bin/sh\n[ -e /etc/debian_version ] && echo outside\nsrun {image} cat /etc/issue\n"
    );
    let batch = login.sbatch::<&str>([], &script)?;
    assert_eq!(
        batch.printed, "outside\na test image of cista",
        "{}",
        batch.said
    );
    let name = image.trim_start_matches("--container-image=");
    let batch = login.sbatch(
        [format!("--export=ALL,CISTA_CONTAINER_IMAGE={name}")],
        "#!/bin/sh\n[ -e /etc/debian_version ] && echo outside\n",
    )?;
    assert_eq!(batch.printed, "outside", "{}", batch.said);
    Ok(())
}

/// `importer=PATH` gets the images, and is told when they are not needed any more. Its failures are those of the step.
fn a_program_of_the_site_gets_images(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    let log = environment.write("importer.log", "", 0o666)?;
    let importer = environment.write("importer", "", 0o755)?;
    let write = |get: &str| {
        let (log, image) = (log.display(), image.display());
        let get = get.replace("IMAGE", &image.to_string());
        let text = format!(
            "#!/bin/sh\necho \"$*\" $(id -u) >>{log}\ncase $1 in get) {get};; release) ;; esac\n"
        );
        std::fs::write(&importer, text).context("write", &importer)
    };
    let argument = format!("importer={}", importer.display());
    let login = Login::with_plugin(environment, &[argument])?;
    let uid = environment.user().uid;
    write("echo IMAGE")?;
    let srun = login.srun(["--container-image=some/image:1", "cat", "/etc/issue"]);
    assert_eq!(srun.text()?, "a test image of cista");
    let told = || std::fs::read_to_string(&log).context("read", &log);
    assert_eq!(
        told()?,
        format!("get docker://some/image:1 {uid}\nrelease {uid}\n")
    );
    // Images by path are none of its business.
    let path = format!("--container-image={}", image.display());
    login.srun([path.as_str(), "true"]).check()?;
    assert_eq!(told()?.lines().count(), 2);
    for (get, expected) in [
        (
            "echo no such image >&2; exit 3",
            &["no such image", "exit status: 3"][..],
        ),
        ("echo image.sqsh", &["absolute path"]),
        ("true", &["absolute path"]),
        ("echo /no/such/image.sqsh", &["/no/such/image.sqsh"]),
    ] {
        write(get)?;
        let outcome = login
            .srun(["--container-image=some/image:1", "echo", "ran"])
            .run()?;
        let said = outcome.error_text();
        assert_eq!(outcome.code(), Some(1), "{get}: {said}");
        assert_eq!(outcome.text(), "", "{get}: {said}");
        for text in expected {
            assert!(said.contains(text), "{get}: {said}");
        }
    }
    login.cluster().wait_until_idle(PATIENCE)
}

/// `runtime_path=DIR`: each user has a directory of the own there. One that others can write to is not used.
fn the_runtime_directory_is_the_sites(environment: &TestEnvironment<'_>) -> TestResult {
    let image = busybox(environment)?;
    let login = Login::with_plugin(environment, &["runtime_path=/run/cista-other"])?;
    let node = login.cluster().node("n1")?;
    login.srun(["-w", "n1", &image, "true"]).check()?;
    let own = format!("/run/cista-other/{}", environment.user().uid);
    let seen = node.program("stat").args(["-c", "%a %u", &own]).text()?;
    assert_eq!(seen, format!("700 {}", environment.user().uid));
    node.program("rm")
        .args(["-r", "/run/cista-other"])
        .check()?;
    node.program("mkdir")
        .args(["-m", "777", "/run/cista-other"])
        .check()?;
    login.srun(["-w", "n1", &image, "true"]).check()?;
    let listed = node.program("ls").arg("/run/cista-other").text()?;
    assert_eq!(listed, "");
    node.program("rm")
        .args(["-r", "/run/cista-other"])
        .check()?;
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained(
        "slurm_arguments::entrypoints_may_be_executed_by_default",
        Who::User,
        entrypoints_may_be_executed_by_default,
    ),
    contained(
        "slurm_arguments::batch_scripts_may_stay_outside",
        Who::User,
        batch_scripts_may_stay_outside,
    ),
    contained(
        "slurm_arguments::a_program_of_the_site_gets_images",
        Who::Both,
        a_program_of_the_site_gets_images,
    ),
    contained(
        "slurm_arguments::the_runtime_directory_is_the_sites",
        Who::User,
        the_runtime_directory_is_the_sites,
    ),
];
