//! Which operating system and processor an image is for.
//!
//! OCI image specification, "Image Index", property `platform`; values are those of Go's GOOS and GOARCH, variants those of its section
//! "Platform Variants". A processor runs the variants below its own too, so an index may offer several that fit: the best is taken.

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

impl Platform {
    /// The best of several offers for this platform, as a position in `offers`; None when none fits.
    ///
    /// System and architecture must be equal. Of the variants that are not above the wanted one, the highest is taken, the first of equals.
    /// A platform without a variant stands for the architecture's baseline (amd64 v1, arm64 v8, arm v7); when it was not the user who named
    /// the variant, and only higher ones are offered, the lowest of those is taken, since it may well run.
    #[must_use]
    pub fn choose(&self, offers: &[Self]) -> Option<usize> {
        let fitting = || {
            offers
                .iter()
                .enumerate()
                .filter(|(_, offer)| offer.os == self.os && offer.architecture == self.architecture)
        };
        if let Some((position, _)) =
            fitting().find(|(_, offer)| !self.variant.is_empty() && offer.variant == self.variant)
        {
            return Some(position);
        }
        let wanted = self.level()?;
        let levels = || fitting().filter_map(|(position, offer)| Some((offer.level()?, position)));
        levels()
            .filter(|(level, _)| *level <= wanted)
            .max_by_key(|(level, position)| (*level, std::cmp::Reverse(*position)))
            .or_else(|| self.variant.is_empty().then(|| levels().min()).flatten())
            .map(|(_, position)| position)
    }

    /// The variant as a number to compare, `v8.1` being (8, 1); None for variants of no known form.
    fn level(&self) -> Option<(u32, u32)> {
        let variant = match (self.variant.as_str(), self.architecture.as_str()) {
            ("", "amd64") => "v1",
            ("", "arm64") => "v8",
            ("", "arm") => "v7",
            ("", _) => "v0",
            (variant, _) => variant,
        };
        let number = variant.strip_prefix('v').unwrap_or(variant);
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        Some((major.parse().ok()?, minor.parse().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_architectures() {
        for (spelling, shown) in [
            ("x86_64", "linux/amd64"),
            ("amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("aarch64", "linux/arm64"),
            ("ppc64el", "linux/ppc64le"),
        ] {
            assert_eq!(Platform::linux(spelling).to_string(), shown);
        }
    }

    #[test]
    fn the_best_offer_is_chosen() {
        let index = |offers: &[&str]| {
            offers
                .iter()
                .map(|offer| {
                    let mut platform = Platform::linux(offer);
                    if let Some(os) = offer.strip_prefix("other/") {
                        platform = Platform::linux(os);
                        "other".clone_into(&mut platform.os);
                    }
                    platform
                })
                .collect::<Vec<_>>()
        };
        for (wanted, offers, chosen) in [
            ("amd64", &["arm64", "amd64"][..], Some(1)),
            ("amd64", &["other/amd64", "amd64"], Some(1)),
            ("amd64", &["amd64", "amd64"], Some(0)),
            ("amd64", &["amd64/v3", "amd64/v2", "amd64"], Some(2)),
            ("amd64", &["amd64/v3", "amd64/v2"], Some(1)),
            ("amd64/v1", &["amd64/v3", "amd64/v2"], None),
            ("amd64/v3", &["amd64", "amd64/v2", "amd64/v4"], Some(1)),
            ("arm64", &["arm64/v8"], Some(0)),
            ("arm64/v8", &["arm64"], Some(0)),
            ("arm64/v9", &["arm64/v8", "arm64/v8.2"], Some(1)),
            ("arm", &["arm/v5", "arm/v7", "arm/v6"], Some(1)),
            ("arm/v6", &["arm/v5", "arm/v7", "arm/v6"], Some(2)),
            ("riscv64", &["amd64", "riscv64"], Some(1)),
            ("s390x", &["amd64"], None),
            ("mips64le/strange", &["mips64le/strange"], Some(0)),
            ("amd64", &[], None),
        ] {
            assert_eq!(
                Platform::linux(wanted).choose(&index(offers)),
                chosen,
                "{wanted} among {offers:?}"
            );
        }
    }
}
