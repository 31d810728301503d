//! What users of srun are told when something is wrong, word for word: `messages/slurm_at_submission.snap` and `messages/slurm_on_the_node.snap`, which
//! people read when they review a change (see [`super::messages`]). No step of these runs its command, and the nodes take the next job.

use cista_tests::case::{Case, TestResult, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::slurm::login::Login;

use super::slurm::contained;

/// Commands and what is said.
struct Transcript<'a> {
    login: &'a Login<'a>,
    names: Vec<(String, &'static str)>,
    text: String,
}

impl<'a> Transcript<'a> {
    fn new(login: &'a Login<'a>, environment: &TestEnvironment<'_>) -> Result<Self, HarnessError> {
        let session = environment.session();
        let image = session.imported(Recipe::Busybox)?.display().to_string();
        session.uri(Recipe::Busybox)?;
        let work = environment.path("").display().to_string();
        let work = work.trim_end_matches('/').to_owned();
        let names = vec![
            (image, "[IMAGE]"),
            (work.clone(), "[WORK]"),
            (work.trim_end_matches("/work").to_owned(), "[TEST]"),
            (session.registry()?.host(), "[REGISTRY]"),
            (login.cluster().root().display().to_string(), "[CLUSTER]"),
        ];
        Ok(Self {
            login,
            names,
            text: String::new(),
        })
    }

    /// A command that has to fail without having run what it is for. Variables come first; a word has no blank in it.
    #[track_caller]
    fn fails(&mut self, line: &str) -> TestResult {
        let mut full = line.to_owned();
        for (value, name) in &self.names {
            full = full.replace(name, value);
        }
        let (variables, words): (Vec<&str>, Vec<&str>) = full
            .split(' ')
            .partition(|word| word.starts_with("CISTA_") || word.starts_with("PYXIS_"));
        let mut command = self.login.command(words[0], &words[1..]);
        for (name, value) in variables.iter().filter_map(|word| word.split_once('=')) {
            command = command.env(name, value);
        }
        let outcome = command.args(["echo", "RAN"]).run()?;
        assert_ne!(outcome.code(), Some(0), "{line} succeeds");
        assert!(
            !outcome.text().contains("RAN"),
            "{line}: {}",
            outcome.text()
        );
        let mut told = outcome.error_text();
        for (value, name) in &self.names {
            told = told.replace(value, name);
        }
        // Lines of the node and of srun come in any order, and srun counts its jobs.
        let (mut of_node, of_command): (Vec<&str>, Vec<&str>) = told
            .lines()
            .filter(|line| !line.contains("queued and") && !line.contains("been allocated"))
            .partition(|line| line.starts_with("slurmstepd") || line.starts_with("cista"));
        of_node.extend(of_command);
        let told = of_node.join("\n");
        assert!(told.contains("cista"), "{line}: {told}");
        self.text.push_str(&format!("$ {line}\n{told}\n\n"));
        Ok(())
    }

    fn compare(self, topic: &str) {
        let mut settings = insta::Settings::new();
        settings.set_snapshot_path("messages");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(topic, self.text));
    }
}

/// Said by srun, salloc and sbatch themselves.
fn at_submission(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let mut transcript = Transcript::new(&login, environment)?;
    for options in [
        "--container-image=",
        "--container-image=/images/",
        "--container-image=debian:",
        "--container-image=:tag",
        "--container-image=ftp://host/image",
        "--container-image=/a --container-image=/b",
        "--container-image=[IMAGE] --container-mounts=",
        "--container-image=[IMAGE] --container-mounts=/a,",
        "--container-image=[IMAGE] --container-mounts=a:/b",
        "--container-image=[IMAGE] --container-mounts=/a:b",
        "--container-image=[IMAGE] --container-mounts=/a:/b:sometimes",
        "--container-image=[IMAGE] --container-mounts=/a --container-mounts=/b",
        "--container-image=[IMAGE] --container-workdir=",
        "--container-image=[IMAGE] --container-name=",
        "--container-image=[IMAGE] --container-name=a/b",
        "--container-image=[IMAGE] --container-name=a:run",
        "--container-image=[IMAGE] --container-name=a --container-name=b",
        "--container-image=[IMAGE] --container-save=",
        "--container-image=[IMAGE] --container-save=/x/",
        "--container-image=[IMAGE] --container-env=A=B",
        "--container-image=[IMAGE] --container-unshare=pid",
        "--container-image=[IMAGE] --container-gpus=",
        "--container-image=[IMAGE] --container-gpus=0,,1",
        "--container-image=[IMAGE] --container-device=/dev/fuse",
        "--container-image=[IMAGE] --container-writable --container-readonly",
        "--container-image=[IMAGE] --container-mount-home --no-container-mount-home",
        "--container-image=[IMAGE] --container-remap-root --no-container-remap-root",
        "--container-image=[IMAGE] --container-entrypoint --no-container-entrypoint",
    ] {
        transcript.fails(&format!("srun {options}"))?;
    }
    for line in [
        "CISTA_CONTAINER_IMAGE= srun",
        "PYXIS_CONTAINER_WRITABLE=perhaps srun --container-image=[IMAGE]",
        "PYXIS_CONTAINER_WRITABLE=1 PYXIS_CONTAINER_READONLY=1 srun --container-image=[IMAGE]",
        "PYXIS_CONTAINER_NAME=a/b srun --container-image=[IMAGE]",
        "salloc --container-image=",
    ] {
        transcript.fails(line)?;
    }
    transcript.compare("slurm_at_submission");
    Ok(())
}

/// Said by the node, and shown by srun.
fn on_the_node(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    let mut transcript = Transcript::new(&login, environment)?;
    environment.write("garbage.sqsh", "no image at all", 0o644)?;
    let closed = environment.write("closed.sqsh", "", 0o000)?;
    environment.directory("directory")?;
    for options in [
        "--container-image=/no/such.sqsh",
        "--container-image=[WORK]/directory",
        "--container-image=[WORK]/garbage.sqsh",
        "--container-image=[WORK]/closed.sqsh",
        "--container-image=[REGISTRY]#tools/no-such:1",
        "--container-image=[REGISTRY]#tools/busybox:none",
        "--container-image=127.0.0.1:1#a/b:1",
        "--container-image=UPPER/case",
        "--container-image=oci:/no/such:1",
        "--container-image=[IMAGE] --container-mounts=/no/such",
        "--container-image=[IMAGE] --container-mounts=/etc/hostname:/etc",
        "--container-image=[IMAGE] --container-mounts=/etc:/etc/issue",
        "--container-image=[IMAGE] --container-mounts=tmpfs:/x:bad=1",
        "--container-image=[IMAGE] --container-workdir=/no/such",
        "--container-image=[IMAGE] --container-workdir=/etc/issue",
        "--container-image=[IMAGE] --container-save=/no/such/x.sqsh",
        "--container-image=[IMAGE] --container-save=[WORK]/directory",
        "--container-image=[IMAGE] --container-save=/proc/x.sqsh",
        "--container-image=[IMAGE] --container-name=none:exec",
        "--container-name=none",
        "--container-image=[IMAGE] --container-gpus=3",
        "--container-image=[IMAGE] --container-device=vendor.com/board=one",
    ] {
        transcript.fails(&format!("srun -w n2 {options}"))?;
    }
    for line in [
        "srun -w n5 -p lacking --container-image=[IMAGE]",
        "srun -w n6 -p lacking --container-image=[IMAGE]",
    ] {
        transcript.fails(line)?;
    }
    transcript.compare("slurm_on_the_node");
    set_mode(&closed, 0o600)?;
    // Nobody's mistake takes a node away from others.
    let states = login.cluster().states()?;
    let is_ready = |state: &String| {
        state.ends_with("idle")
            || state.ends_with("mix")
            || state.ends_with("comp")
            || state.ends_with("alloc")
    };
    assert!(states.iter().all(is_ready), "{states:?}");
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    contained("slurm_messages::at_submission", Who::User, at_submission),
    contained("slurm_messages::on_the_node", Who::User, on_the_node),
];
