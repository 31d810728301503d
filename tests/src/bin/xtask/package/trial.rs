//! The packages, tried as who installs them would: in a Debian root that has nothing else, as an ordinary user.
//!
//! The root is the layer of the `debian` test image, which is mmdebstrap's minbase, extracted by GNU tar. It becomes `/` of a mount
//! namespace by pivot_root(2): chroot(2) would not do, since the kernel makes no user namespaces for who is in one.

use std::path::{Path, PathBuf};

use cista_tests::artifacts::target;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::extract;
use cista_tests::image::{Images, Packing, Recipe};
use cista_tests::packages::{DEMO, TESTS};
use cista_tests::program::Program;
use cista_tests::registry::Registry;
use cista_tests::user::we_are_root;

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
exec /bin/sh -eu -c "$script" trial "$@"
"#;

/// What is done there: the packages are installed, an ordinary user does the main job, and the packages are removed.
const SCRIPT: &str = r#"
uri=$1
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get install --quiet --quiet --yes /packages/*.deb >/packages/apt.log 2>&1 || { cat /packages/apt.log; exit 1; }
for file in /usr/bin/cista /usr/bin/enroot /etc/cista/cista.toml /usr/share/cista/apparmor/cista \
    /usr/share/man/man1/cista-start.1.gz /usr/share/man/man7/cista-mounts.7.gz /usr/share/bash-completion/completions/cista \
    /usr/share/cista/slurm/cista.conf "$(sed -n 's/^required \([^ ]*\).*/\1/p' /usr/share/cista/slurm/cista.conf)"; do
    [ -e "$file" ] || { echo "$file is not there"; exit 1; }
done
[ ! -e /etc/apparmor.d/cista ] || { echo "the profile was installed where AppArmor cannot read it"; exit 1; }
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
apt-get purge --quiet --quiet --yes cista cista-slurm cista-enroot >/packages/apt.log 2>&1 || { cat /packages/apt.log; exit 1; }
left=$(find /usr /etc -name '*cista*' -o -lname '*cista*')
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
"#;

/// Installs packages in a clean root, and does the main job.
pub(super) fn run(packages: &[PathBuf]) -> Result<(), HarnessError> {
    if !we_are_root() {
        return Err(HarnessError::Missing {
            what: "the right to make a root file system".into(),
            hint: "run `cargo xtask package --test` as root".into(),
        });
    }
    machine::prepare(&[DEMO, TESTS]);
    let images = Images::open(&target(), say)?;
    let work = std::env::temp_dir().join(format!("cista-package-{}", std::process::id()));
    let outcome = trial(packages, &images, &work);
    let _ = std::fs::remove_dir_all(&work);
    outcome
}

fn trial(packages: &[PathBuf], images: &Images, work: &Path) -> Result<(), HarnessError> {
    let root = work.join("root");
    std::fs::create_dir_all(&root).context("create", &root)?;
    extract::extract(&images.get(Recipe::Debian)?.layout, &root)?;
    let inside = root.join("packages");
    std::fs::create_dir(&inside).context("create", &inside)?;
    for package in packages {
        let name = package.file_name().unwrap_or_default();
        std::fs::copy(package, inside.join(name)).context("copy", package)?;
    }
    let registry = Registry::start(&images.registry_storage(), &work.join("registry"))?;
    let image = images.get(Recipe::Python(Packing::Gzip))?;
    images.push(&image, &registry)?;
    let outcome = Program::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER,
            "enter",
        ])
        .arg(&root)
        .arg(SCRIPT)
        .arg(image.uri(&registry))
        .env_only([("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())])
        .check()?;
    for line in outcome.error_text().lines() {
        println!("    {line}");
    }
    println!("installed, used by an ordinary user and removed: all of it works");
    Ok(())
}
