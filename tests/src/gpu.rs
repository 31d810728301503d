//! What a real NVIDIA GPU is asked to do, in a container and without one.

use std::time::Duration;

use crate::driver::{Cuda, Tree};
use crate::environment::TestEnvironment;
use crate::error::HarnessError;
use crate::image::Recipe;
use crate::program::Program;

/// How many times as long as without a container a matrix product may take in one.
pub const WITHIN: f64 = 1.01;

/// Size of the matrices, products in a round, and rounds.
const SIZE: &str = "4096";
const PRODUCTS: &str = "20";
const ROUNDS: usize = 7;

/// A program that uses the GPU, and an image without any library of CUDA.
#[derive(Debug)]
pub struct Trial<'a> {
    environment: &'a TestEnvironment<'a>,
    cuda: Cuda,
    /// A tree that stands for the machine.
    tree: Option<&'a Tree<'a>>,
}

impl<'a> Trial<'a> {
    /// Compiles the program.
    pub fn new(environment: &'a TestEnvironment<'a>) -> Result<Self, HarnessError> {
        Ok(Self {
            environment,
            cuda: Cuda::compile(environment)?,
            tree: None,
        })
    }

    /// The same with a tree in place of the machine, whose library of CUDA needs no GPU: it shows that all this works but for the GPU.
    pub fn pretending(
        environment: &'a TestEnvironment<'a>,
        tree: &'a Tree<'a>,
    ) -> Result<Self, HarnessError> {
        Cuda::pretend(tree)?;
        let real = Self::new(environment)?;
        Ok(Self {
            tree: Some(tree),
            ..real
        })
    }

    /// `cista run --gpus GPUS` of the image, with the program at `/usr/bin/cuda`.
    pub fn inside(&self, gpus: &str, words: &[&str]) -> Result<Program, HarnessError> {
        let program = self.cuda.program.display();
        let mount = format!("{program}:/usr/bin/cuda:none:x-create=auto,rbind");
        let uri = self.environment.session().uri(Recipe::Debian)?;
        let mut program = self
            .environment
            .cista(["run", "--quiet", "--gpus", gpus, "-m", &mount, &uri])
            .args(words);
        if let Some(tree) = self.tree {
            program = program.env("CISTA_HOST_ROOT", tree.root());
        }
        Ok(program)
    }

    /// The GPUs as `nvidia-smi` lists them in a container.
    pub fn smi_inside(&self) -> Result<String, HarnessError> {
        self.inside("all", &["nvidia-smi", "--list-gpus"])?.text()
    }

    /// The GPUs as `nvidia-smi` lists them without one.
    pub fn smi_bare(&self) -> Result<String, HarnessError> {
        self.environment
            .program("nvidia-smi")
            .arg("--list-gpus")
            .text()
    }

    /// What `nvidia-smi` shows of driver and GPUs in a container.
    pub fn smi_overview(&self) -> Result<String, HarnessError> {
        self.inside("all", &["nvidia-smi"])?.text()
    }

    /// Adds two vectors with all GPUs granted, and says how that went.
    pub fn add(&self) -> Result<String, HarnessError> {
        self.add_on("all")
    }

    /// The same with some GPUs granted.
    pub fn add_on(&self, gpus: &str) -> Result<String, HarnessError> {
        self.inside(gpus, &["cuda", "add", "10000000"])?.text()
    }

    /// The product of two small matrices with some GPUs granted, and how that went.
    pub fn multiply_on(&self, gpus: &str) -> Result<String, HarnessError> {
        self.inside(gpus, &["cuda", "multiply", "96", "2"])?.text()
    }

    /// How long products of matrices take without and with a container: the shortest of some rounds, taken in turns.
    pub fn products(&self) -> Result<(Duration, Duration), HarnessError> {
        let words = ["multiply", SIZE, PRODUCTS];
        let mut shortest = (Duration::MAX, Duration::MAX);
        for round in 0..=ROUNDS {
            let bare = time(self.environment.program(&self.cuda.program).args(words))?;
            let inside = time(self.inside("all", &["cuda"])?.args(words))?;
            // The first one warms up.
            if round > 0 {
                shortest = (shortest.0.min(bare), shortest.1.min(inside));
            }
        }
        Ok(shortest)
    }
}

/// The time that the program says its products took.
fn time(program: Program) -> Result<Duration, HarnessError> {
    let text = program.text()?;
    let last = text.rsplit(' ').next().and_then(|word| word.parse().ok());
    last.map(Duration::from_micros)
        .ok_or_else(|| HarnessError::Malformed {
            what: "what the program says of its products".into(),
            why: text,
        })
}
