//! The tier of a real NVIDIA GPU: what its driver's programs and a program of our own do in a container of an image that knows nothing of CUDA. `cargo xtask gpu`
//! does the same and keeps a report of it.

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::gpu::{Trial, WITHIN};
use cista_tests::image::Recipe;

/// nvidia-smi runs, and lists what it lists without a container.
fn nvidia_smi_runs(environment: &TestEnvironment<'_>) -> TestResult {
    let trial = Trial::new(environment)?;
    assert_eq!(trial.smi_inside()?, trial.smi_bare()?);
    Ok(())
}

/// A kernel adds vectors, through nothing but the driver.
fn vectors_are_added(environment: &TestEnvironment<'_>) -> TestResult {
    let told = Trial::new(environment)?.add()?;
    assert!(told.ends_with("sums are right"), "{told}");
    Ok(())
}

/// One GPU is granted, and the other ones are not there for CUDA.
fn one_gpu_is_one(environment: &TestEnvironment<'_>) -> TestResult {
    let told = Trial::new(environment)?.add_on("0")?;
    assert!(told.contains("one of 1: "), "{told}");
    Ok(())
}

/// A matrix product is as fast in a container as without one.
fn a_matrix_product_is_as_fast_as_bare(environment: &TestEnvironment<'_>) -> TestResult {
    let (bare, inside) = Trial::new(environment)?.products()?;
    let ratio = inside.as_secs_f64() / bare.as_secs_f64();
    assert!(ratio < WITHIN, "{inside:?} in a container, {bare:?} bare");
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Gpu,
        who: Who::User,
        needs: &[
            Need::Gpu,
            Need::Image(Recipe::Debian),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case("gpu::nvidia_smi_runs", nvidia_smi_runs),
    case("gpu::vectors_are_added", vectors_are_added),
    case("gpu::one_gpu_is_one", one_gpu_is_one),
    case(
        "gpu::a_matrix_product_is_as_fast_as_bare",
        a_matrix_product_is_as_fast_as_bare,
    ),
];
