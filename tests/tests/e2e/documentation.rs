//! What README and docs/ tell people to type is typed: each command line, page by page, in the order in which it stands, with a registry that has
//! the images that they name.
//!
//! `runtime/tests/docs.rs` looks whether such lines are understood; here they have to succeed. What is not run is listed with its reason,
//! and an entry of such a list that no line fits is an error.

use std::fs;

use cista_tests::artifacts::workspace;
use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::image::{Packing, Recipe};
use cista_tests::program::Program;
use cista_tests::slurm::login::Login;

use super::config::put;

/// Programs whose lines are commands; other lines of code are files, output, and the like.
const PROGRAMS: &[&str] = &["cista", "enroot", "umoci", "srun", "sbatch", "salloc"];

/// A page, and what its reader has.
struct Page {
    file: &'static str,
    /// What all names of images stand for.
    image: Recipe,
    /// Repositories that are named, and their tags.
    images: &'static [(&'static str, &'static [&'static str])],
    /// Done first.
    first: &'static str,
    /// Done before the line that begins so.
    before: &'static [(&'static str, &'static str)],
    /// What stands for what: places and programs of which the test has others.
    instead: &'static [(&'static str, &'static str)],
    /// Beginnings of lines that are not run, and why.
    without: &'static [(&'static str, &'static str)],
}

/// A page of nothing yet.
const fn page(file: &'static str) -> Page {
    Page {
        file,
        image: Recipe::Busybox,
        images: &[],
        first: "",
        before: &[],
        instead: &[],
        without: &[],
    }
}

const PYTHON: (&str, &[&str]) = ("docker.io/library/python", &["3.12-slim", "3.12", "3"]);
const PYTORCH: (&str, &[&str]) = ("nvcr.io/nvidia/pytorch", &["24.10-py3", "25.01-py3"]);
const EXAMPLE: (&str, &[&str]) = ("registry.example.com/ml/python", &["3"]);

/// An image file that pages suppose.
const IMAGE: &str = "cista import -q -o image.sqsh docker://registry.example.com/ml/python:3";

const SLURM: &str = "it takes a cluster: `documentation::steps_of_slurm`";

const README: Page = Page {
    image: Recipe::Python(Packing::Gzip),
    images: &[EXAMPLE],
    before: &[(
        "cista exec py",
        "cista start -w py sleep 100 & until cista exec py true 2>/dev/null; do sleep 0.05; done",
    )],
    instead: &[
        ("cista remove py", "kill $!; wait; echo y | cista remove py"),
        ("FILE [--json]", "ml+python+3.sqsh --json"),
        ("URI ", "docker://registry.example.com/ml/python:3 "),
    ],
    without: &[("srun -N4", SLURM)],
    ..page("README.md")
};

const QUICK_START: Page = Page {
    image: Recipe::Python(Packing::Gzip),
    images: &[PYTHON],
    instead: &[(
        // A module of that name, put where pip puts it: the index of Python's packages is far away.
        "pip install requests",
        "python3 -c 'import os, site; os.makedirs(site.getsitepackages()[0], exist_ok=True); open(site.getsitepackages()[0] + \"/requests.py\", \"w\")'",
    )],
    without: &[("srun", SLURM)],
    ..page("docs/quickstart.md")
};

const USER_GUIDE: Page = Page {
    images: &[PYTHON, PYTORCH, EXAMPLE],
    first: IMAGE,
    before: &[(
        "cista exec work",
        "cista start -w work sleep 100 & until cista exec work true 2>/dev/null; do sleep 0.05; done",
    )],
    instead: &[
        ("make -j8", "true"),
        ("cista export", "kill $!; wait; cista export"),
        ("cista remove work", "echo y | cista remove work"),
    ],
    ..page("docs/user-guide.md")
};

/// The pages whose commands an ordinary user can run.
const TOPICS: &[Page] = &[
    Page {
        images: &[EXAMPLE],
        without: &[("docker save", "it takes a Docker daemon: `sources::`")],
        ..page("docs/import.md")
    },
    Page {
        images: &[PYTHON, PYTORCH],
        instead: &[("/apps/cista", "\"$PWD\"/apps")],
        ..page("docs/cache.md")
    },
    Page {
        images: &[EXAMPLE],
        first: "cista import -q -o solver.sqsh docker://registry.example.com/ml/python:3; mkdir scratch",
        instead: &[
            ("-- --input case.dat", "-- sh -c true"),
            ("-m /scratch:/scratch", "-m \"$PWD\"/scratch:/scratch"),
        ],
        without: &[(
            "target/x86_64-unknown-linux-gnu",
            "a build: `bundle::` makes bundles of the program that there is",
        )],
        ..page("docs/bundle.md")
    },
    Page {
        images: &[EXAMPLE],
        first: "cista import -q -o image.sqsh docker://registry.example.com/ml/python:3; mkdir -p scratch data/set1",
        instead: &[
            ("-m /scratch", "-m \"$PWD\"/scratch"),
            ("-m /data/set1", "-m \"$PWD\"/data/set1"),
        ],
        ..page("docs/mounts.md")
    },
    Page {
        images: &[EXAMPLE],
        first: "HF_TOKEN=secret; export HF_TOKEN; cista import -q -o image.sqsh docker://registry.example.com/ml/python:3",
        ..page("docs/environment.md")
    },
    Page {
        images: &[EXAMPLE],
        first: "cista import -q -o ubuntu.sqsh docker://registry.example.com/ml/python:3",
        ..page("docs/observability.md")
    },
    Page {
        images: &[EXAMPLE],
        first: "cista create -n NAME \"$(cista cache add -q docker://registry.example.com/ml/python:3)\"; echo 'environ() { echo A=b; }' >SCRIPT",
        ..page("docs/hooks.md")
    },
    Page {
        // Without a terminal its shell ends at once, and could not be killed.
        before: &[(
            "cista oci create",
            "sed -i 's/\"sh\"/\"sleep\", \"100\"/' bundle/config.json",
        )],
        instead: &[
            ("layout:tag", "layout:1"),
            ("kill [-a] NAME [SIGNAL]", "kill -a NAME KILL"),
            ("delete [-f]", "delete -f"),
        ],
        ..page("docs/oci.md")
    },
    Page {
        ..page("docs/migrating.md")
    },
    Page {
        images: &[EXAMPLE],
        without: &[("cista login", "it takes a registry with logins: `logins::`")],
        instead: &[("me@registry", "registry")],
        ..page("docs/registries.md")
    },
    Page {
        images: &[PYTORCH],
        instead: &[("/apps/cista", "\"$PWD\"/apps")],
        ..page("docs/administrator-guide.md")
    },
];

/// The lines of code of a page, in blocks.
fn blocks(text: &str) -> Vec<Vec<&str>> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut is_inside = false;
    let mut was_blank = true;
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(code) if is_inside || was_blank => {
                if !is_inside {
                    blocks.push(Vec::new());
                }
                is_inside = true;
                if let Some(block) = blocks.last_mut() {
                    block.push(code);
                }
            }
            // A blank line does not end a block.
            _ if line.trim().is_empty() && is_inside => {
                if let Some(block) = blocks.last_mut() {
                    block.push("");
                }
            }
            _ => is_inside = false,
        }
        was_blank = line.trim().is_empty();
    }
    blocks
}

fn text_of(file: &str) -> Result<String, HarnessError> {
    let path = workspace().join(file);
    fs::read_to_string(&path).context("read", &path)
}

/// Whether a line of code runs one of the programs.
fn is_command(line: &str) -> bool {
    let first = line.trim_start_matches("$ ").split_whitespace().next();
    first.is_some_and(|word| PROGRAMS.contains(&word) || word.starts_with("./"))
        || PROGRAMS
            .iter()
            .any(|program| line.contains(&format!("| {program} ")))
        || line.contains("/release/cista ")
}

impl Page {
    /// The script that does what the page says.
    fn script(&self, wanted: fn(&str) -> bool) -> Result<String, HarnessError> {
        let text = text_of(self.file)?;
        let mut script = format!("set -eu\n{}\n", self.first);
        let mut used: Vec<&str> = Vec::new();
        let mut count = 0;
        for line in blocks(&text).into_iter().flatten() {
            if !is_command(line) || !wanted(line) {
                continue;
            }
            let line = line.trim_start_matches("$ ");
            if let Some((beginning, _)) =
                self.without.iter().find(|(with, _)| line.starts_with(with))
            {
                used.push(beginning);
                continue;
            }
            count += 1;
            for (beginning, action) in self.before {
                if line.starts_with(beginning) {
                    used.push(beginning);
                    script.push_str(&format!("{action}\n"));
                }
            }
            let mut line = line.to_owned();
            for (from, to) in self.instead {
                if line.contains(from) {
                    used.push(from);
                    line = line.replace(from, to);
                }
            }
            // `a && b` does not end the shell when `a` fails.
            script.push_str(&format!(
                "cat >&2 <<'END'\n+ {line}\nEND\n{line}\n[ $? -eq 0 ] || exit 1\n"
            ));
        }
        assert!(count > 0 || !used.is_empty(), "{}: no commands", self.file);
        for (name, _) in self.before.iter().chain(self.instead).chain(self.without) {
            assert!(used.contains(name), "{}: nothing has `{name}`", self.file);
        }
        Ok(script)
    }

    /// Gives the registry the images that the page names, and tells cista that it is theirs.
    fn prepare(&self, environment: &TestEnvironment<'_>) -> TestResult {
        let session = environment.session();
        let uri = session.uri(self.image)?;
        let repository = self.image.repository();
        let registry = session.registry()?;
        let host = registry.host();
        let mut settings = String::new();
        for (name, tags) in self.images {
            for tag in *tags {
                Program::new("skopeo")
                    .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
                    .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
                    .arg(&uri)
                    .arg(registry.uri(repository, tag))
                    .check()?;
            }
            settings.push_str(&format!(
                "[registries.\"{name}\"]\nlocation = \"{host}/{repository}\"\ninsecure = true\n"
            ));
        }
        environment.configure("cista/cista.toml", &settings)?;
        let layout = session.images().get(Recipe::Busybox)?;
        environment.copy_of(&layout, "layout")?;
        Ok(())
    }

    /// Does what the page says.
    fn follow(&self, environment: &TestEnvironment<'_>) -> TestResult {
        self.prepare(environment)?;
        let script = self.script(|_| true)?;
        let outcome = with_cista(environment, environment.program("sh"))
            .args(["-c", &script])
            .timeout(std::time::Duration::from_secs(180))
            .run()?;
        assert_eq!(
            outcome.code(),
            Some(0),
            "{}: {}\n{}",
            self.file,
            outcome.error_text(),
            outcome.text()
        );
        Ok(())
    }
}

/// A program that finds the `cista` of the test.
fn with_cista(environment: &TestEnvironment<'_>, program: Program) -> Program {
    let program_path = environment.program_path();
    let own = program_path.parent().unwrap_or(&program_path);
    program.env(
        "PATH",
        format!(
            "{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            own.display()
        ),
    )
}

fn the_readme(environment: &TestEnvironment<'_>) -> TestResult {
    README.follow(environment)
}

fn the_quick_start(environment: &TestEnvironment<'_>) -> TestResult {
    QUICK_START.follow(environment)
}

fn the_user_guide(environment: &TestEnvironment<'_>) -> TestResult {
    USER_GUIDE.follow(environment)
}

/// Each topic has a home of its own: what one makes is not there for the next.
fn the_topics(environment: &TestEnvironment<'_>) -> TestResult {
    for topic in TOPICS {
        let name = topic.file.rsplit('/').next().unwrap_or_default();
        let own = environment
            .session()
            .environment(&format!("documentation-{name}"), false)?;
        topic.follow(&own)?;
        let left = own.leftovers()?;
        assert!(left.is_empty(), "{}: left behind: {left:?}", topic.file);
    }
    Ok(())
}

/// What pages show as settings is understood, all of it.
fn the_settings(environment: &TestEnvironment<'_>) -> TestResult {
    let mut count = 0;
    let docs = workspace().join("docs");
    for file in ["README.md", "docs/reference/settings.md"]
        .map(str::to_owned)
        .into_iter()
        .chain(
            cista_tests::environment::names_in(&docs)?
                .into_iter()
                .filter(|name| name.ends_with(".md"))
                .map(|name| format!("docs/{name}")),
        )
    {
        let text = text_of(&file)?;
        for block in blocks(&text) {
            let code = block.join("\n");
            let is_of_devices = code.contains("[[nodes]]");
            let begins = block
                .iter()
                .find(|line| !line.is_empty() && !line.starts_with('#'));
            if is_of_devices || !begins.is_some_and(|line| line.starts_with('[')) {
                continue;
            }
            count += 1;
            let code = code.replace("/etc/cista/keys/ml.pub", &key(environment)?);
            let code = code.replace("/etc/pki/example.pem", "/etc/ssl/certs/ca-certificates.crt");
            environment.configure("cista/cista.toml", &code)?;
            let shown = environment.cista(["config"]).env("USER", "me").run()?;
            assert_eq!(
                shown.code(),
                Some(0),
                "{file}: {code}: {}",
                shown.error_text()
            );
            // Registries and policies are read when one is needed.
            let outcome = environment
                .cista(["import", "--pull", "never", "docker://nobody.invalid/a"])
                .run()?;
            let told = outcome.error_text();
            assert!(!told.contains("cista.toml:"), "{file}: {code}: {told}");
        }
    }
    assert!(count >= 6, "{count}");
    Ok(())
}

/// Files that pages show (of mounts, variables, a hook, a script) do what the pages say.
fn the_files(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Busybox)?;
    environment.directory("scratch")?;
    environment.directory("tools")?;
    let work = environment.path("").display().to_string();
    let work = work.trim_end_matches('/');
    let example = |file: &str, begins: &str| -> Result<String, HarnessError> {
        let text = text_of(file)?;
        let block = blocks(&text)
            .into_iter()
            .find(|block| block.iter().any(|line| line.starts_with(begins)));
        block
            .map(|block| format!("{}\n", block.join("\n").trim_end()))
            .ok_or_else(|| HarnessError::Missing {
                what: format!("the example `{begins}`"),
                hint: format!("it stood in {file}"),
            })
    };
    let fstab = example("docs/mounts.md", "# source")?
        .replace("/scratch    /scratch", &format!("{work}/scratch /scratch"));
    put(environment, "etc/mounts.d/10-example.fstab", &fstab)?;
    let variables = example("docs/environment.md", "# /etc/cista/environ.d")?;
    put(environment, "etc/environ.d/20-site.env", &variables)?;
    let hook = example("docs/hooks.md", "# /etc/cista/hooks.d")?
        .replace("/opt/tools /opt/tools", &format!("{work}/tools /opt/tools"));
    put(environment, "etc/hooks.d/50-licence.sh", &hook)?;
    set_mode(&environment.path("etc/hooks.d/50-licence.sh"), 0o755)?;
    let home = environment.home().join("ml");
    fs::create_dir(&home).context("create", &home)?;
    environment.give(&home)?;
    let look = "test -d /opt/tools && test -d /scratch && test -d /workspace && mount | grep ' /work ' | grep size=4194304k \
                && echo $NCCL_SOCKET_IFNAME $SCRATCH $LICENCE_SERVER";
    let said = environment
        .cista(["start"])
        .arg(&image)
        .args(["sh", "-c", look])
        .env("CISTA_SYSCONF_PATH", environment.path("etc"))
        .text()?;
    let user = &environment.user().name;
    let last = said.lines().last();
    assert_eq!(
        last,
        Some(format!("eth0 /scratch/{user} 27000@lic1").as_str())
    );
    let script = example("docs/hooks.md", "#! /usr/bin/cista batch")?.replace(
        "/usr/bin/cista",
        &environment.program_path().display().to_string(),
    );
    environment
        .cista(["create", "-n", "ubuntu"])
        .arg(&image)
        .check()?;
    let script = environment.write("script", script, 0o755)?;
    let said = environment.program(&script).args(["ls", "/mnt"]).text()?;
    assert!(said.contains("scratch\nscript\ntools"), "{said}");
    Ok(())
}

/// A public key, as `cosign generate-key-pair` makes one.
fn key(environment: &TestEnvironment<'_>) -> Result<String, HarnessError> {
    let path = environment.path("ml.pub");
    if !path.exists() {
        let pair = environment
            .program("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout"])
            .check()?;
        environment
            .program("openssl")
            .args(["ec", "-pubout", "-out"])
            .arg(&path)
            .stdin_bytes(pair.stdout)
            .check()?;
    }
    Ok(path.display().to_string())
}

/// Lines of `srun` and `sbatch`, on the cluster.
fn steps_of_slurm(environment: &TestEnvironment<'_>) -> TestResult {
    let is_slurm = |line: &str| line.starts_with("srun ") || line.starts_with("sbatch ");
    let first = "cista import -q -o image.sqsh docker://python:3.12-slim; mkdir -p scratch; printf '#!/bin/sh\\ntest ! -e /etc/debian_version\\n' >train.sh";
    let pages = [
        Page {
            images: &[PYTHON],
            first,
            instead: &[
                ("/images/app.sqsh", "\"$PWD\"/image.sqsh"),
                ("=/scratch", "=\"$PWD\"/scratch"),
                ("./app", "true"),
            ],
            ..page("README.md")
        },
        Page {
            images: &[PYTHON],
            first,
            instead: &[("python3 -V", "true")],
            ..page("docs/quickstart.md")
        },
        Page {
            images: &[PYTHON, PYTORCH, ("docker.io/library/ubuntu", &["24.04"])],
            first,
            instead: &[
                ("/images/app.sqsh", "\"$PWD\"/image.sqsh"),
                ("=/scratch", "=\"$PWD\"/scratch"),
                ("./app", "true"),
                ("/etc/os-release", "/etc/issue"),
                ("sbatch ", "sbatch --wait "),
            ],
            ..page("docs/slurm.md")
        },
    ];
    let login = Login::new(environment)?;
    for page in pages {
        page.prepare_again(environment)?;
        let script = page.script(is_slurm)?;
        let outcome = with_cista(environment, login.command("sh", ["-c", &script])).run()?;
        assert_eq!(
            outcome.code(),
            Some(0),
            "{}: {}",
            page.file,
            outcome.error_text()
        );
    }
    Ok(())
}

impl Page {
    /// The same in a directory that another page was followed in.
    fn prepare_again(&self, environment: &TestEnvironment<'_>) -> TestResult {
        for name in ["layout", "image.sqsh"] {
            let path = environment.path(name);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        self.prepare(environment)
    }
}

const fn case(
    name: &'static str,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case::container(name, Who::User, run).needing(needs)
}

/// What pages need whose image has Python.
const WITH_PYTHON: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::Image(Recipe::Python(Packing::Gzip)),
    Need::UserNamespaces,
    Need::Fuse,
];

/// What the pages of topics need.
const WITH_TOOLS: &[Need] = &[
    Need::Image(Recipe::Busybox),
    Need::UserNamespaces,
    Need::Fuse,
    Need::Program("umoci"),
    Need::Program("jq"),
];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("documentation::the_readme", WITH_PYTHON, the_readme),
    case(
        "documentation::the_quick_start",
        WITH_PYTHON,
        the_quick_start,
    ),
    case("documentation::the_user_guide", CONTAINER, the_user_guide),
    case("documentation::the_topics", WITH_TOOLS, the_topics),
    case("documentation::the_settings", CONTAINER, the_settings),
    case("documentation::the_files", CONTAINER, the_files),
    Case {
        tier: Tier::Slurm,
        ..case(
            "documentation::steps_of_slurm",
            super::slurm::CONTAINER,
            steps_of_slurm,
        )
    },
];
