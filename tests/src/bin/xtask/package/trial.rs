//! The packages, tried as who installs them would: in a Debian root that has nothing else, as an ordinary user.
//!
//! The root is the layer of the `debian` test image, which is mmdebstrap's minbase, extracted by GNU tar. It becomes `/` of a mount
//! namespace by pivot_root(2): chroot(2) would not do, since the kernel makes no user namespaces for who is in one.
//!
//! - .deb: apt installs them with what they depend on; then the profile of AppArmor, where there seems to be one; then apt removes all
//! - .rpm: rpm installs them into a second root, whose C library is not RHEL's, so what they need of it is looked at by itself
//! - the plugin: the Slurm cluster of the tests runs steps with program and plugin as they are in the packages

use std::path::{Path, PathBuf};

use cista_tests::artifacts::{target, workspace};
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::extract;
use cista_tests::image::{Image, Images, Packing, Recipe};
use cista_tests::packages::{DEMO, SLURM, TESTS};
use cista_tests::program::Program;
use cista_tests::registry::Registry;
use cista_tests::user::{UNPRIVILEGED, we_are_root};

use super::portable;
use crate::{machine, say};

/// Makes the root `/`, and runs a script there.
const ENTER: &str = r#"
set -eu
root=$1 script=$2
shift 2
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mkdir -p .host
pivot_root . .host
umount --lazy /.host
# What goes wrong is told with all that was said before.
exec 1>&2
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
exec /bin/sh -eu -c "$script" trial "$@"
"#;

/// Runs a script of the administrator's guide, twice: a node may come up again.
const CLOUD: &str = r#"
mkdir -p /opt/slurm/etc /fsx/packages
cp /packages/*.deb /fsx/packages
for time in first second; do
    bash -c "$2" >/packages/apt.log 2>&1 || { cat /packages/apt.log; exit 1; }
done
line=$(cat /opt/slurm/etc/plugstack.conf)
[ -e "$(echo "$line" | sed -n 's/^required \([^ ]*\)$/\1/p')" ] || { echo "plugstack.conf has: $line"; exit 1; }
rm -r /fsx /opt/slurm
"#;

/// Installs the .deb packages.
const INSTALL: &str = r#"
apt() { apt-get --quiet --quiet --yes "$@" >/packages/apt.log 2>&1 || { cat /packages/apt.log; exit 1; }; }
apt install /packages/*.deb
[ ! -e /etc/apparmor.d/cista ] || { echo "the profile was installed where AppArmor cannot read it"; exit 1; }
"#;

/// What is there, and what an ordinary user does with it, whoever installed it.
const USE: &str = r#"
uri=$1
for file in /usr/bin/cista /usr/bin/enroot /etc/cista/cista.toml /usr/share/cista/apparmor/cista /usr/share/cista/grafana/cista.json \
    /usr/share/man/man1/cista-start.1.gz /usr/share/man/man7/cista-mounts.7.gz /usr/share/bash-completion/completions/cista \
    /usr/share/cista/slurm/epilog.sh "$(sed -n 's/^required \([^ ]*\).*/\1/p' /usr/share/cista/slurm/cista.conf)"; do
    [ -e "$file" ] || { echo "$file is not there"; exit 1; }
done
# Links of the pages lead to other pages.
cd /usr/share/doc/cista
for page in $(find . -name '*.md'); do
    for link in $(grep -o '](\([^):]*\))' "$page" | sed 's/](\([^)#]*\).*/\1/'); do
        [ -e "$(dirname "$page")/$link" ] || { echo "$page: $link leads nowhere"; exit 1; }
    done
done
cd /
useradd --create-home somebody
cat >/home/somebody/job <<'END'
set -eu
cd
[ "$(id -u)" -ne 0 ]
cista check
cista config >/dev/null
cista help mounts | grep -q 'MOUNTS OF A CONTAINER'
cista import -q -o image.sqsh "$1"
[ "$(cista start image.sqsh python3 -c 'print(6 * 7)')" = 42 ]
[ "$(cista run -q "$1" python3 -c 'import os; print(os.getuid())')" = "$(id -u)" ]
cista create -n py image.sqsh
cista start -w py sh -c 'echo kept >/opt/kept'
[ "$(enroot list)" = "" ]
[ "$(cista start py cat /opt/kept)" = kept ]
cista remove -f py
status=0
cista start image.sqsh python3 -c 'raise SystemExit(3)' || status=$?
[ "$status" = 3 ]
enroot version
END
su somebody -c "/bin/sh /home/somebody/job '$uri'"
"#;

/// Removes the .deb packages, and looks what is left of them.
const REMOVE: &str = r#"
nothing_left() {
    left=$(find /usr /etc -name '*cista*' -o -lname '*cista*')
    [ -z "$left" ] || { echo "left behind: $left"; exit 1; }
}
apt purge cista cista-slurm cista-enroot
nothing_left
"#;

/// Installs where AppArmor restricts user namespaces, as on Ubuntu 24.04: in the eyes of the packages, since the kernel may have none.
const APPARMOR: &str = r#"
mount -t tmpfs tmpfs /sys/kernel
mkdir -p /sys/kernel/security/apparmor /etc/apparmor.d/abi
touch /sys/kernel/security/apparmor/profiles /etc/apparmor.d/abi/4.0
printf '#!/bin/sh\necho "$@" >>/packages/parser.log\n' >/usr/sbin/apparmor_parser
chmod 755 /usr/sbin/apparmor_parser
told() {
    [ "$(tail -n 1 /packages/parser.log)" = "$1" ] || { echo "apparmor_parser was told:"; cat /packages/parser.log; exit 1; }
}
apt install /packages/cista_*.deb
cmp /etc/apparmor.d/cista /usr/share/cista/apparmor/cista
[ "$(stat -c %a-%u /etc/apparmor.d/cista)" = 644-0 ]
told '--replace --write-cache /etc/apparmor.d/cista'
# What the administrator has written is left alone by another installation.
echo '# of this site' >>/etc/apparmor.d/cista
apt install --reinstall /packages/cista_*.deb
grep -q '# of this site' /etc/apparmor.d/cista
apt remove cista
told '--remove /etc/apparmor.d/cista'
[ -e /etc/apparmor.d/cista ]
apt purge cista
nothing_left
"#;

/// Steps on the cluster of the tests. Arguments: a directory of the user, the user, an image file.
const STEPS: &str = r#"
set -eu
work=$1 user=$2 image=$3
cd "$work"
as_user() { runuser -u "$user" -- env HOME="$work" "$@"; }
said=$(as_user srun -N2 --ntasks-per-node=2 --container-image="$image" cat /etc/issue)
[ "$said" = "$(for task in 1 2 3 4; do echo 'a test image of cista'; done)" ] || { echo "the tasks said: $said" >&2; exit 1; }
said=$(as_user srun --container-image="$image" --container-remap-root id -u)
[ "$said" = 0 ] || { echo "id said: $said" >&2; exit 1; }
status=0
as_user srun --container-image="$image" sh -c 'exit 7' 2>/dev/null || status=$?
[ "$status" = 7 ]
status=0
as_user srun --container-image="$work/none.sqsh" true 2>error || status=$?
[ "$status" != 0 ] && grep -q 'cista: ' error || { cat error >&2; exit 1; }
"#;

/// Installs packages in clean roots, and does the main job.
pub(super) fn run(debs: &[PathBuf], rpms: &[PathBuf]) -> Result<(), HarnessError> {
    if !we_are_root() {
        return Err(HarnessError::Missing {
            what: "the right to make a root file system".into(),
            hint: "run `cargo xtask package --test` as root".into(),
        });
    }
    machine::prepare(&[DEMO, TESTS, SLURM]);
    let images = Images::open(&target(), say)?;
    let work = std::env::temp_dir().join(format!("cista-package-{}", std::process::id()));
    let outcome = Trial {
        images: &images,
        work: &work,
    }
    .run(debs, rpms);
    let _ = std::fs::remove_dir_all(&work);
    outcome
}

struct Trial<'a> {
    images: &'a Images,
    work: &'a Path,
}

impl Trial<'_> {
    fn run(&self, debs: &[PathBuf], rpms: &[PathBuf]) -> Result<(), HarnessError> {
        std::fs::create_dir_all(self.work).context("create", self.work)?;
        let registry =
            Registry::start(&self.images.registry_storage(), &self.work.join("registry"))?;
        let image = self.images.get(Recipe::Python(Packing::Gzip))?;
        self.images.push(&image, &registry)?;
        let uri = image.uri(&registry);
        say("installing the .deb packages in a clean Debian root");
        let root = self.root("debian", debs)?;
        let scripts = [CLOUD, INSTALL, USE, REMOVE, APPARMOR];
        let said = enter(&root, &scripts, &[&uri, &script_of_guide()?])?;
        for line in said.lines() {
            println!("    {line}");
        }
        println!(
            ".deb: installed, used by an ordinary user and removed, with AppArmor and without"
        );
        say("installing the .rpm packages in another one");
        for package in rpms {
            needs_nothing_else(package)?;
        }
        let root = self.root("redhat", &[])?;
        rpm(&root)
            .args(["--install", "--nodeps"])
            .args(rpms)
            .check()?;
        enter(&root, &[USE], &[&uri])?;
        let names = ["cista", "cista-slurm", "cista-enroot"];
        let changed = rpm(&root)
            .args(["--verify", "--nodeps"])
            .args(names)
            .run()?;
        expect(&changed.text(), "", "what `rpm --verify` says")?;
        rpm(&root)
            .args(["--erase", "--nodeps"])
            .args(names)
            .check()?;
        let left = Program::new("find")
            .args([root.join("usr"), root.join("etc")])
            .args(["-name", "*cista*", "-o", "-lname", "*cista*"])
            .text()?;
        expect(&left, "", "what is left of the packages")?;
        println!(
            ".rpm: the same; they need nothing but glibc {}",
            portable::GLIBC
        );
        self.steps(debs)?;
        println!("Slurm: the plugin and the program of the packages run steps on two nodes");
        Ok(())
    }

    /// A clean root, with packages in `/packages`.
    fn root(&self, name: &str, packages: &[PathBuf]) -> Result<PathBuf, HarnessError> {
        let root = self.work.join(name);
        std::fs::create_dir(&root).context("create", &root)?;
        extract::extract(&self.images.get(Recipe::Debian)?.layout, &root)?;
        let inside = root.join("packages");
        std::fs::create_dir(&inside).context("create", &inside)?;
        for package in packages {
            let name = package.file_name().unwrap_or_default();
            std::fs::copy(package, inside.join(name)).context("copy", package)?;
        }
        Ok(root)
    }

    /// Runs steps of Slurm with what is in the packages.
    fn steps(&self, debs: &[PathBuf]) -> Result<(), HarnessError> {
        say("running steps of Slurm with program and plugin of the packages");
        let unpacked = self.work.join("unpacked");
        for package in debs {
            Program::new("dpkg-deb")
                .arg("--extract")
                .arg(package)
                .arg(&unpacked)
                .check()?;
        }
        let program = unpacked.join("usr/bin/cista");
        let plugin = unpacked.join(format!(
            "usr/lib/{}-linux-gnu/slurm/spank_cista.so",
            std::env::consts::ARCH
        ));
        let home = self.work.join("home");
        std::fs::create_dir(&home).context("create", &home)?;
        let image: Image = self.images.get(Recipe::Busybox)?;
        let file = home.join("image.sqsh");
        Program::new(&program)
            .args(["import", "--quiet", "--output"])
            .arg(&file)
            .arg(image.oci_uri())
            .env("HOME", &home)
            .check()?;
        Program::new("chown")
            .args(["--recursive", UNPRIVILEGED])
            .arg(&home)
            .check()?;
        let this = std::env::current_exe().context("find", "this program")?;
        Program::new(this)
            .args(["cluster", "--", "sh", "-c", STEPS, "steps"])
            .arg(&home)
            .arg(UNPRIVILEGED)
            .arg(&file)
            .env("CISTA_BIN", &program)
            .env("CISTA_PLUGIN", &plugin)
            .check()
            .map(drop)
    }
}

/// The script for nodes of a cloud, as it stands in the administrator's guide.
fn script_of_guide() -> Result<String, HarnessError> {
    let path = workspace().join("docs/administrator-guide.md");
    let text = std::fs::read_to_string(&path).context("read", &path)?;
    let lines: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "    #!/bin/bash")
        .map_while(|line| line.strip_prefix("    "))
        .collect();
    if lines.is_empty() {
        return Err(HarnessError::Malformed {
            what: format!("`{}`", path.display()),
            why: "it has no script any more".into(),
        });
    }
    Ok(lines.join("\n"))
}

/// Runs scripts, one after the other, with a directory as `/`; returns what they said.
fn enter(root: &Path, scripts: &[&str], arguments: &[&str]) -> Result<String, HarnessError> {
    let outcome = Program::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", ENTER])
        .arg("enter")
        .arg(root)
        .arg(scripts.concat())
        .args(arguments)
        .env_only([("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())])
        .check()?;
    Ok(outcome.error_text())
}

/// rpm with a root and a database of its own.
fn rpm(root: &Path) -> Program {
    Program::new("rpm")
        .arg("--root")
        .arg(root)
        .args(["--dbpath", "/var/lib/rpm"])
}

/// Looks whether a package needs anything that a RHEL from glibc 2.28 on may lack.
fn needs_nothing_else(package: &Path) -> Result<(), HarnessError> {
    let needs = Program::new("rpm")
        .args(["--query", "--package", "--requires"])
        .arg(package)
        .text()?;
    for need in needs.lines() {
        let is_ours = ["cista ", "config(", "rpmlib(", "/bin/sh"]
            .iter()
            .any(|begin| need.starts_with(begin));
        let is_glibc = [
            "libc.so.",
            "libm.so.",
            "libpthread.so.",
            "libdl.so.",
            "ld-linux",
        ]
        .iter()
        .any(|begin| need.starts_with(begin))
            && portable::is_old_enough(need);
        if !is_ours && !is_glibc {
            return Err(HarnessError::Malformed {
                what: format!("`{}`", package.display()),
                why: format!("it needs `{need}`"),
            });
        }
    }
    Ok(())
}

fn expect(found: &str, wanted: &str, what: &str) -> Result<(), HarnessError> {
    if found == wanted {
        return Ok(());
    }
    Err(HarnessError::Malformed {
        what: what.into(),
        why: found.into(),
    })
}
