//! A machine with NVIDIA GPUs and their driver: as a tree of files for `CISTA_HOST_ROOT`, and the real one where there is one.
//!
//! The tree has what a container's share of a driver is made of: `/proc/driver/nvidia`, real device nodes (copies of `/dev/zero` under other names), programs, and
//! libraries of this machine with other names. Programs find and load them, and there is no GPU behind them, but [`Cuda`] brings a `libcuda.so.1`
//! that makes up for one where a program wants to see a kernel run.

use std::path::{Path, PathBuf};

use crate::artifacts::workspace;
use crate::environment::{TestEnvironment, set_mode};
use crate::error::{HarnessError, IoContext as _};
use crate::program::Program;

/// The version of the tree's driver.
pub const VERSION: &str = "580.65.06";

/// What says that there is a driver in the kernel.
const SIGN: &str = "/proc/driver/nvidia/version";

/// A library of this machine that can stand for the driver's: its soname is long enough to be replaced.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libnss_compat.so.2";

/// Where libraries are in the tree.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What a container gets of release 580 without asking for more: for `compute` and `utility`.
const DRIVER_LIBRARIES: [(&str, &str); 10] = [
    ("libcuda", "libcuda.so.1"),
    ("libcudadebugger", "libcudadebugger.so.1"),
    ("libnvidia-ml", "libnvidia-ml.so.1"),
    ("libnvidia-cfg", "libnvidia-cfg.so.1"),
    ("libnvidia-opencl", "libnvidia-opencl.so.1"),
    ("libnvidia-gpucomp", "libnvidia-gpucomp.so.580.65.06"),
    ("libnvidia-ptxjitcompiler", "libnvidia-ptxjitcompiler.so.1"),
    ("libnvidia-allocator", "libnvidia-allocator.so.1"),
    ("libnvidia-nvvm", "libnvidia-nvvm.so.4"),
    ("libnvidia-sandboxutils", "libnvidia-sandboxutils.so.1"),
];

/// Why there is no real GPU to use; None where there is one.
#[must_use]
pub fn unmet() -> Option<String> {
    let is_there = Path::new(SIGN).exists() && Path::new("/dev/nvidiactl").exists();
    (!is_there).then(|| format!("no NVIDIA GPU: there is no `{SIGN}`"))
}

/// The tree of a machine, in the working directory of a test.
#[derive(Debug)]
pub struct Tree<'a> {
    environment: &'a TestEnvironment<'a>,
    root: PathBuf,
}

impl<'a> Tree<'a> {
    /// A machine with nothing.
    pub fn empty(environment: &'a TestEnvironment<'a>, name: &str) -> Result<Self, HarnessError> {
        let root = environment.path(name);
        std::fs::create_dir_all(&root).context("create", &root)?;
        environment.give(&root)?;
        Ok(Self { environment, root })
    }

    /// A machine with some GPUs, the nodes of which anybody may open, and the driver's two libraries without which nothing works.
    pub fn new(
        environment: &'a TestEnvironment<'a>,
        name: &str,
        gpus: usize,
    ) -> Result<Self, HarnessError> {
        let tree = Self::empty(environment, name)?;
        let driver = "proc/driver/nvidia";
        let version =
            format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Release\n");
        tree.file(&format!("{driver}/version"), version)?;
        tree.file(&format!("{driver}/params"), "ModifyDeviceFiles: 1\n")?;
        for minor in 0..gpus {
            let information =
                format!("Model: NVIDIA H100\nGPU UUID: GPU-{minor}\nDevice Minor: {minor}\n");
            tree.file(
                &format!("{driver}/gpus/0000:0{minor}:00.0/information"),
                information,
            )?;
            tree.node(&format!("dev/nvidia{minor}"))?;
        }
        tree.node("dev/nvidiactl")?;
        tree.node("dev/nvidia-uvm")?;
        let program = tree.file("usr/bin/nvidia-smi", "#!/bin/sh\necho of the driver\n")?;
        set_mode(&program, 0o755)?;
        tree.library("libcuda", "libcuda.so.1", None)?;
        tree.library("libnvidia-ml", "libnvidia-ml.so.1", None)?;
        Ok(tree)
    }

    /// Adds what a whole driver has besides, and the linker cache that knows it.
    pub fn with_whole_driver(self) -> Result<Self, HarnessError> {
        let source = self.file(
            "tmp/library.c",
            "#include <stdio.h>\nvoid hello(void) { puts(\"hello\"); }\n",
        )?;
        for (stem, soname) in DRIVER_LIBRARIES {
            let path = self
                .root
                .join(LIBRARIES)
                .join(format!("{stem}.so.{VERSION}"));
            Program::new("cc")
                .args(["-shared", "-fPIC", &format!("-Wl,-soname,{soname}"), "-o"])
                .args([&path, &source])
                .check()?;
        }
        self.node("dev/nvidia-uvm-tools")?;
        self.node("dev/nvidia-modeset")?;
        for name in [
            "usr/bin/nvidia-debugdump",
            "usr/bin/nvidia-cuda-mps-control",
            "usr/bin/nvidia-cuda-mps-server",
            "etc/OpenCL/vendors/nvidia.icd",
            "run/nvidia-persistenced/socket",
            "etc/ld.so.conf",
        ] {
            self.file(name, "")?;
        }
        self.file(
            &format!("lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
            "firmware",
        )?;
        Program::new("ldconfig")
            .arg("-r")
            .arg(&self.root)
            .arg(Path::new("/").join(LIBRARIES))
            .check()?;
        Ok(self)
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file, and makes the directories above it.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<PathBuf, HarnessError> {
        let path = self.root.join(path);
        let above = path.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(above).context("create", above)?;
        std::fs::write(&path, content).context("write", &path)?;
        self.environment.give(&path)?;
        Ok(path)
    }

    /// Makes a device node: a copy of `/dev/zero`.
    pub fn node(&self, path: &str) -> Result<(), HarnessError> {
        let path = self.root.join(path);
        let above = path.parent().unwrap_or(&self.root);
        std::fs::create_dir_all(above).context("create", above)?;
        Program::new("mknod")
            .args(["-m", "0666"])
            .arg(path)
            .args(["c", "1", "5"])
            .check()?;
        Ok(())
    }

    /// Puts a library of the driver there, perhaps one that needs a later C library: a version of the C library, and the one in place of it.
    pub fn library(
        &self,
        stem: &str,
        soname: &str,
        glibc: Option<(&str, &str)>,
    ) -> Result<PathBuf, HarnessError> {
        let mut content = std::fs::read(LIBRARY).context("read", LIBRARY)?;
        let mut padded = soname.as_bytes().to_vec();
        let own = Path::new(LIBRARY).file_name().unwrap_or_default();
        padded.resize(own.len(), 0);
        replace(&mut content, own.as_encoded_bytes(), &padded);
        if let Some((old, new)) = glibc {
            replace(&mut content, old.as_bytes(), new.as_bytes());
        }
        self.file(&format!("{LIBRARIES}/{stem}.so.{VERSION}"), content)
    }
}

/// Replaces every occurrence of a text by one of the same length.
fn replace(content: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut found = 0;
    for at in 0..content.len().saturating_sub(old.len()) {
        if content[at..].starts_with(old) {
            content[at..at + new.len()].copy_from_slice(new);
            found += 1;
        }
    }
    assert!(
        found > 0,
        "`{}` is not in the library",
        String::from_utf8_lossy(old)
    );
}

/// A program that uses a GPU through nothing but the driver; see `tests/guest/cuda.rs`.
#[derive(Debug)]
pub struct Cuda {
    /// The program.
    pub program: PathBuf,
}

impl Cuda {
    /// Compiles it into the working directory of a test.
    pub fn compile(environment: &TestEnvironment<'_>) -> Result<Self, HarnessError> {
        let program = environment.path("cuda-program");
        rustc("cuda.rs", &["-o"], &program)?;
        set_mode(&program, 0o755)?;
        Ok(Self { program })
    }

    /// Puts a `libcuda.so.1` into a tree that does on the processor what the program's kernels do on a GPU; see `tests/guest/libcuda.rs`.
    pub fn pretend(tree: &Tree<'_>) -> Result<(), HarnessError> {
        let path = tree.file(&format!("{LIBRARIES}/libcuda.so.{VERSION}"), "")?;
        let options = [
            "--crate-type=cdylib",
            "-C",
            "link-arg=-Wl,-soname,libcuda.so.1",
            "-o",
        ];
        rustc("libcuda.rs", &options, &path)
    }
}

fn rustc(source: &str, options: &[&str], output: &Path) -> Result<(), HarnessError> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Program::new(rustc)
        .args(["--edition=2024", "-O", "-C", "strip=symbols"])
        .args(options)
        .arg(output)
        .arg(workspace().join("tests/guest").join(source))
        .check()?;
    Ok(())
}
