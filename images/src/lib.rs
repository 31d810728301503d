//! Everything about the content of container images, and nothing about running them.
//!
//! The rooms, in the order in which an import walks through them:
//!
//! - [`reference`]: what the user typed: `docker://…`, `oci:…`, `tar:…`
//! - [`source`]: where an image comes from; a manifest, a config and layer blobs
//! - [`registry`]: the client of the OCI distribution specification
//! - [`policy`]: which images of registries may be used
//! - [`store`]: blobs and images by digest on disk
//! - [`layer`]: a blob becomes tar entries: decompress, verify, parse
//! - [`merge`]: layers become one [`tree`], top-down
//! - [`squashfs`]: the tree becomes an image file, and an image file can be read
//! - [`start_files`]: which files stand together in an image, since every start reads them
//! - [`unpack`], [`pack`]: between an image and a directory
//! - [`import`]: all of it in one pass
//!
//! This crate never prints, exits or reads the process environment: callers pass typed settings in,
//! a [`progress::Progress`] to be told what happens, and a [`cancel::Cancel`] to stop it.

#![forbid(unsafe_code)]

pub mod cancel;
pub mod digest;
pub mod import;
pub mod layer;
pub mod merge;
pub mod output;
mod owner;
pub mod pack;
pub mod platform;
pub mod policy;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod source;
pub mod squashfs;
pub mod start_files;
pub mod store;
pub mod tree;
pub mod unpack;
