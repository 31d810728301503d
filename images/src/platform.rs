//! Which operating system and processor an image is for.
//!
//! OCI image specification, "Image Index", property `platform`; values are those of Go's GOOS and GOARCH.

use std::fmt;

/// A platform in the terms of the image index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// GOOS, always `linux` for images that we can run.
    pub os: String,
    /// GOARCH: `amd64`, `arm64`, …
    pub architecture: String,
    /// CPU variant: `v8` for arm64, `v7` for arm, `v3` for amd64; empty when any will do.
    pub variant: String,
}

impl Platform {
    /// The platform of the machine that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH)
    }

    /// Linux on an architecture in any usual spelling: `amd64`, `x86_64`, `arm64`, `aarch64`, `arm64/v8`, `linux/amd64`.
    #[must_use]
    pub fn linux(spelling: &str) -> Self {
        let spelling = spelling.strip_prefix("linux/").unwrap_or(spelling);
        let (architecture, variant) = spelling.split_once('/').unwrap_or((spelling, ""));
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" | "i686" | "x86" => "386",
            "armhf" | "armv7l" => "arm",
            "ppc64el" | "powerpc64le" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}
