//! MPI in containers, on four nodes and on one: Open MPI finds its ranks by PMIx, MPICH by PMI2, both through Slurm's own plugins.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::HarnessError;
use cista_tests::image::{Mpi, Recipe};
use cista_tests::program::Outcome;
use cista_tests::slurm::login::Login;

/// Runs the program on so many nodes with so many tasks, in a container or bare.
fn run(
    login: &Login<'_>,
    mpi: Mpi,
    [nodes, tasks]: [u32; 2],
    container: &[String],
    program: &str,
) -> Result<Outcome, HarnessError> {
    let mut srun = login
        .srun([
            format!(
                "--nodelist={}",
                ["n1", "n2", "n3", "n4"][..nodes as usize].join(",")
            ),
            format!("--ntasks={tasks}"),
            format!("--ntasks-per-node={}", tasks / nodes),
            format!("--mpi={}", mpi.interface()),
        ])
        .args(container)
        .arg(program)
        // Several nodes are one machine: without a network of its own, TCP goes over loopback.
        .env("OMPI_MCA_btl_tcp_if_include", "lo")
        .env("OMPI_MCA_btl", "self,vader,tcp")
        .env("OMPI_MCA_pml", "ob1")
        .env("UCX_TLS", "tcp,self,sysv,posix")
        .env("UCX_NET_DEVICES", "lo");
    if mpi == Mpi::Mpich && nodes > 1 {
        srun = srun.env("MPI_WITHOUT_FINALIZE", "1");
    }
    srun.run()
}

fn check(outcome: &Outcome, [nodes, tasks]: [u32; 2], what: &str) {
    let sum = tasks * (tasks + 1) / 2;
    let hosts: Vec<String> = (0..tasks)
        .map(|task| format!("n{}", 1 + task * nodes / tasks))
        .collect();
    let expected = format!(
        "size {tasks} sum {sum} ring {} hosts {}",
        tasks * (tasks - 1) / 2,
        hosts.join(" ")
    );
    assert_eq!(outcome.text(), expected, "{what}: {}", outcome.error_text());
    assert_eq!(outcome.code(), Some(0), "{what}: {}", outcome.error_text());
}

const SHAPES: [[u32; 2]; 3] = [[1, 4], [2, 4], [4, 4]];

/// What the cluster itself can do.
fn without_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    let login = Login::new(environment)?;
    for mpi in Mpi::ALL {
        // As root: the ordinary user may not get at the sources.
        let directory = environment.session().scratch().join(mpi.name());
        std::fs::create_dir_all(&directory).ok();
        let program = mpi.compile(&directory)?.display().to_string();
        for shape in SHAPES {
            let outcome = run(&login, mpi, shape, &[], &program)?;
            check(&outcome, shape, &format!("{mpi:?} on {shape:?}"));
        }
    }
    Ok(())
}

fn in_a_container(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Mpi)?;
    let login = Login::new(environment)?;
    let container = [format!("--container-image={}", image.display())];
    for mpi in Mpi::ALL {
        for shape in SHAPES {
            let outcome = run(&login, mpi, shape, &container, &mpi.program())?;
            check(&outcome, shape, &format!("{mpi:?} on {shape:?}"));
        }
    }
    Ok(())
}

/// A message between two ranks of a node goes through shared memory, a large one by one copy from process to process. Who can do that
/// is as quick as without a container; how quick is for `cargo xtask bench srun` to say.
fn ranks_of_a_node_share_memory(environment: &TestEnvironment<'_>) -> TestResult {
    let image = environment.session().imported(Recipe::Mpi)?;
    let login = Login::new(environment)?;
    let outcome = login
        .srun(["-n2", "-N1", "--mpi=pmix"])
        .arg(format!("--container-image={}", image.display()))
        .args([Mpi::OpenMpi.program().as_str(), "pingpong", "200"])
        // Nothing but shared memory, and an error where the kernel refuses to copy from process to process.
        .env("OMPI_MCA_pml", "ob1")
        .env("OMPI_MCA_btl", "self,vader")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "cma")
        .run()?;
    let said = outcome.error_text();
    assert_eq!(outcome.code(), Some(0), "{said}");
    assert!(!said.contains("CMA"), "{said}");
    assert_eq!(outcome.text().split(' ').count(), 2, "{}", outcome.text());
    Ok(())
}

const fn case(
    name: &'static str,
    who: Who,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier: Tier::Slurm,
        who,
        needs,
        run,
    }
}

const COMPILERS: &[Need] = &[
    Need::Slurm,
    Need::Program("mpicc.openmpi"),
    Need::Program("mpicc.mpich"),
];

const CONTAINER: &[Need] = &[
    Need::Slurm,
    Need::Image(Recipe::Mpi),
    Need::UserNamespaces,
    Need::Fuse,
];

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "slurm_mpi::without_a_container",
        Who::User,
        COMPILERS,
        without_a_container,
    ),
    case(
        "slurm_mpi::in_a_container",
        Who::User,
        CONTAINER,
        in_a_container,
    ),
    case(
        "slurm_mpi::ranks_of_a_node_share_memory",
        Who::User,
        CONTAINER,
        ranks_of_a_node_share_memory,
    ),
];
