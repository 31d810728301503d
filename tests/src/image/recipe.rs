//! The list of images: what each is called, and what it is for.

use super::layer::Compression;

/// The time that everything has which we make ourselves: 2024-01-01.
pub(super) const TIME: u64 = 1_704_067_200;

/// Changes whenever the code that builds the images changes what comes out.
const REVISION: u32 = 1;

/// An image that the harness can build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recipe {
    /// One layer: a static busybox, its applets as symbolic links, and not even a `/proc` to mount on.
    Busybox,
    /// Debian's minbase, one layer.
    Debian,
    /// Debian with layers on top that hold everything odd: see `odd.rs`.
    Odd(Packing),
    /// Python with numpy, scipy, pandas and scikit-learn: nine layers with whiteouts, an opaque directory and hard links.
    Python(Packing),
    /// Debian with the libraries of Open MPI and MPICH, and a program compiled with each: `/usr/bin/mpi-openmpi`, `/usr/bin/mpi-mpich`.
    Mpi,
    /// 4 GiB that are partly random, with one file of more than 2 GiB.
    Huge,
}

/// How the layers of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packing {
    /// gzip, as most images are.
    Gzip,
    /// zstd.
    Zstd,
    /// gzip, zstd and plain in turn.
    Mixed,
}

impl Packing {
    /// Compression of a layer by its position, 0 being the lowest.
    pub(super) fn of_layer(self, layer: usize) -> Compression {
        match (self, layer % 3) {
            (Self::Gzip, _) | (Self::Mixed, 0) => Compression::Gzip,
            (Self::Zstd, _) | (Self::Mixed, 1) => Compression::Zstd,
            (Self::Mixed, _) => Compression::None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gzip => "",
            Self::Zstd => "-zstd",
            Self::Mixed => "-mixed",
        }
    }
}

impl Recipe {
    /// Every image.
    pub const ALL: &[Self] = &[
        Self::Busybox,
        Self::Debian,
        Self::Odd(Packing::Gzip),
        Self::Odd(Packing::Zstd),
        Self::Odd(Packing::Mixed),
        Self::Python(Packing::Gzip),
        Self::Python(Packing::Zstd),
        Self::Mpi,
        Self::Huge,
    ];

    /// Its repository in the registry.
    #[must_use]
    pub fn repository(self) -> &'static str {
        match self {
            Self::Busybox => "tools/busybox",
            Self::Debian => "debian",
            Self::Odd(_) => "tests/odd",
            Self::Python(_) => "ml/python",
            Self::Mpi => "hpc/mpi",
            Self::Huge => "tests/huge",
        }
    }

    /// Its tag in the registry.
    #[must_use]
    pub fn tag(self) -> String {
        match self {
            Self::Busybox | Self::Mpi | Self::Huge => "1".into(),
            Self::Debian => "12".into(),
            Self::Odd(packing) => format!("1{}", packing.suffix()),
            Self::Python(packing) => format!("3{}", packing.suffix()),
        }
    }

    /// Its name as a file name.
    #[must_use]
    pub fn slug(self) -> String {
        let packing = match self {
            Self::Odd(packing) | Self::Python(packing) => packing.suffix(),
            _ => "",
        };
        let name = self.repository().rsplit('/').next().unwrap_or_default();
        format!("{name}{packing}")
    }

    /// All that decides what comes out, but for the versions of the Debian packages of the day.
    pub(super) fn text(self) -> String {
        format!(
            "{REVISION} {TIME} {self:?} {:?} {}",
            super::debian::STEPS,
            match self {
                // What it contains is written in code: a change there counts like a change of the recipe.
                Self::Odd(_) => include_str!("odd.rs").to_owned(),
                Self::Mpi => format!("{:?} {}", super::debian::MPI, super::mpi::SOURCE),
                _ => String::new(),
            }
        )
    }
}
