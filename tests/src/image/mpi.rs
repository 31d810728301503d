//! Programs that use MPI, of one source: compiled on this machine with the compilers of Open MPI and MPICH.

use std::path::{Path, PathBuf};

use crate::artifacts;
use crate::error::{HarnessError, IoContext as _};
use crate::program::Program;

use super::layer::{LayerWriter, header};

/// Where the source is, for the compilers, and what it says, for whoever asks whether an image is outdated.
const PATH: &str = "tests/guest/mpi.c";
pub(super) const SOURCE: &str = include_str!("../../guest/mpi.c");

/// An implementation of MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mpi {
    /// Open MPI, which speaks PMIx with Slurm.
    OpenMpi,
    /// MPICH, which speaks PMI2.
    Mpich,
}

impl Mpi {
    /// Both.
    pub const ALL: [Self; 2] = [Self::OpenMpi, Self::Mpich];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
        }
    }

    /// The program in the image.
    #[must_use]
    pub fn program(self) -> String {
        format!("/usr/bin/mpi-{}", self.name())
    }

    /// Slurm's plugin that serves it.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::OpenMpi => "pmix",
            Self::Mpich => "pmi2",
        }
    }

    /// Compiles the program into a directory.
    pub fn compile(self, directory: &Path) -> Result<PathBuf, HarnessError> {
        let program = directory.join(format!("mpi-{}", self.name()));
        Program::new(format!("mpicc.{}", self.name()))
            .args(["-O2", "-o"])
            .arg(&program)
            .arg(artifacts::workspace().join(PATH))
            .check()?;
        Ok(program)
    }
}

/// Fills a layer with the programs.
pub(super) fn programs(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    let directory = std::env::temp_dir().join(format!("cista-mpi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).context("create", &directory)?;
    for mpi in Mpi::ALL {
        let program = mpi.compile(&directory)?;
        let content = std::fs::read(&program).context("read", &program)?;
        let executable = header(tar::EntryType::Regular, 0o755, content.len() as u64);
        let path = mpi.program();
        layer.entry(
            path.trim_start_matches('/').as_bytes(),
            executable,
            &content,
        )?;
    }
    std::fs::remove_dir_all(&directory).context("remove", &directory)
}
