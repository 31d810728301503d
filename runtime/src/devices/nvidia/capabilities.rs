//! `NVIDIA_DRIVER_CAPABILITIES`: what of the driver a container wants.

use super::super::DeviceError;

/// Its name.
pub(super) const VARIABLE: &str = "NVIDIA_DRIVER_CAPABILITIES";

/// A part of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    /// CUDA and OpenCL.
    Compute,
    /// Libraries for 32-bit programs.
    Compat32,
    /// OpenGL and Vulkan.
    Graphics,
    /// `nvidia-smi` and NVML.
    Utility,
    /// The video codecs.
    Video,
    /// X11 and other displays.
    Display,
    /// Neural graphics.
    Ngx,
}

const ALL: [Capability; 7] = [
    Capability::Compute,
    Capability::Compat32,
    Capability::Graphics,
    Capability::Utility,
    Capability::Video,
    Capability::Display,
    Capability::Ngx,
];

impl Capability {
    /// Its name in the variable.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Compat32 => "compat32",
            Self::Graphics => "graphics",
            Self::Utility => "utility",
            Self::Video => "video",
            Self::Display => "display",
            Self::Ngx => "ngx",
        }
    }
}

/// A set of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// Reads the variable. Without it a container gets what a program that computes needs, and `nvidia-smi`.
    pub(super) fn parse(value: Option<&str>) -> Result<Self, DeviceError> {
        let value = value.unwrap_or_default();
        let mut found = Vec::new();
        for word in value.split([',', ' ']).filter(|word| !word.is_empty()) {
            if word == "all" {
                return Ok(Self(ALL.to_vec()));
            }
            let known = ALL.iter().find(|capability| capability.name() == word);
            let known = known.ok_or_else(|| DeviceError::Option {
                option: VARIABLE.into(),
                value: word.into(),
                expected: "expected `all`, or some of `compute`, `compat32`, `graphics`, `utility`, `video`, `display`, `ngx`",
            })?;
            found.push(*known);
        }
        if found.is_empty() {
            found = vec![Capability::Compute, Capability::Utility];
        }
        Ok(Self(found))
    }

    /// Whether one is among them.
    pub(super) fn has(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        use Capability::{Compute, Utility, Video};
        for (value, expected) in [
            (None, Some(vec![Compute, Utility])),
            (Some(""), Some(vec![Compute, Utility])),
            (Some("video,compute"), Some(vec![Video, Compute])),
            (Some("utility,all"), Some(ALL.to_vec())),
            (Some("computer"), None),
        ] {
            assert_eq!(
                Capabilities::parse(value).ok().map(|it| it.0),
                expected,
                "{value:?}"
            );
        }
    }
}
