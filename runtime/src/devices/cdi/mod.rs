//! CDI, the Container Device Interface: devices that somebody else describes.
//!
//! A driver or an administrator writes documents that say what a container needs for each device: nodes, libraries, variables, programs
//! to run. Who starts a container only names devices (`--device vendor.com/gpu=0`). This follows version 1.1 of the specification
//! (`SPEC.md` of cncf-tags/container-device-interface) and reads documents of all earlier ones.
//!
//! - [`name`]: what devices are called
//! - [`document`] and its [`version`]: one file, checked
//! - [`registry`]: the files of this machine
//! - [`hooks`]: the programs that documents want run, and which of them are native here
//! - [`grant`]: what a container gets of it

pub mod document;
pub mod grant;
pub mod hooks;
pub mod name;
pub mod registry;
pub mod version;

#[cfg(test)]
mod tests;
