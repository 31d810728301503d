//! Adapters of a fabric: a container that has one of them sees one, in `/dev` and in `/sys`. The host is a tree (`CISTA_HOST_ROOT`), which also lies over the machine's
//! `/sys/class`, since what a container sees of `/sys` is the kernel's.

use cista_tests::case::{CONTAINER, Case, Need, TestResult, Tier, Who};
use cista_tests::driver::Tree;
use cista_tests::environment::TestEnvironment;
use cista_tests::image::Recipe;

use super::bad_input::assert_clear_error;

/// Makes a machine with two adapters.
fn machine<'a>(
    environment: &'a TestEnvironment<'a>,
) -> Result<Tree<'a>, cista_tests::error::HarnessError> {
    let tree = Tree::empty(environment, "host")?;
    for (number, name) in ["mlx5_0", "mlx5_1"].into_iter().enumerate() {
        tree.file(&format!("sys/class/infiniband/{name}/node_type"), "1: CA\n")?;
        for (class, node) in [("verbs", "uverbs"), ("mad", "umad"), ("mad", "issm")] {
            tree.file(
                &format!("sys/class/infiniband_{class}/{node}{number}/ibdev"),
                format!("{name}\n"),
            )?;
            tree.node(&format!("dev/infiniband/{node}{number}"))?;
        }
    }
    tree.file("sys/class/infiniband_verbs/abi_version", "6\n")?;
    tree.node("dev/infiniband/rdma_cm")?;
    Ok(tree)
}

/// What of the fabric there is.
const LOOK: &str = "echo $(ls /dev/infiniband); for class in '' _verbs _mad; do echo $(ls /sys/class/infiniband$class); done; \
                    cat /sys/class/infiniband_verbs/abi_version; touch /sys/class/infiniband/x 2>/dev/null || echo read-only";

fn what_is_not_granted_is_not_seen(environment: &TestEnvironment<'_>) -> TestResult {
    let tree = machine(environment)?;
    let image = environment.session().imported(Recipe::Busybox)?;
    let root = tree.root().display();
    let look = |options: &str| {
        let start = format!(
            "env CISTA_HOST_ROOT={root} {cista} start {options} {image} sh -c \"$LOOK\"",
            cista = environment.program_path().display(),
            image = image.display(),
        );
        let over = format!("mount --rbind {root}/sys/class /sys/class");
        if environment.user().is_root() {
            let script = format!("{over} && exec {start}");
            return environment
                .program("unshare")
                .args(["--mount", "sh", "-c", &script])
                .env("LOOK", LOOK)
                .text();
        }
        // Who may mount is root of a namespace; in the next one it is the user again.
        let user = format!(
            "unshare --user --map-user={} --map-group={}",
            environment.user().uid,
            environment.user().gid
        );
        let script = format!("{over} && exec {user} {start}");
        environment
            .program("unshare")
            .env("LOOK", LOOK)
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .text()
    };
    let both = "issm0 issm1 rdma_cm umad0 umad1 uverbs0 uverbs1\nmlx5_0 mlx5_1\nabi_version uverbs0 uverbs1\nissm0 issm1 umad0 umad1\n6\nread-only";
    let second =
        "issm1 rdma_cm umad1 uverbs1\nmlx5_1\nabi_version uverbs1\nissm1 umad1\n6\nread-only";
    assert_eq!(look("")?, both);
    assert_eq!(look("--device host/infiniband=mlx5_1")?, second);
    assert_eq!(look("-e MELLANOX_VISIBLE_DEVICES=1")?, second);
    assert_eq!(look("-w --device host/infiniband=mlx5_1")?, second);
    let unknown = environment
        .cista(["start", "--device", "host/infiniband=mlx5_7"])
        .arg(&image)
        .arg("true")
        .env("CISTA_HOST_ROOT", tree.root())
        .run()?;
    assert_clear_error(&unknown, 125, &["host/infiniband=mlx5_7", "mlx5_0, mlx5_1"]);
    Ok(())
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "fabrics::what_is_not_granted_is_not_seen",
    tier: Tier::Userns,
    who: Who::Both,
    needs: &[Need::Root, CONTAINER[0], CONTAINER[1], CONTAINER[2]],
    run: what_is_not_granted_is_not_seen,
}];
