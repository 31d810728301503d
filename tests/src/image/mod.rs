//! The images that everything is tried on, made of Debian packages and kept under `target/test-images`.
//!
//! Each image is an OCI layout (image-spec, "OCI Image Layout Specification") that our own code writes, so that a test
//! knows every byte of it. Its directory carries a hash of the recipe: a changed recipe makes a new image, an unchanged
//! one is made once and then shared by tests, demo, benches and CI. `CISTA_TEST_IMAGES` names another place for them.

mod cache;
mod debian;
mod layer;
mod layout;
mod mpi;
mod odd;
mod recipe;
mod tiny;

pub use cache::{Image, Images, push};
pub use layer::{Compression, LayerWriter, header};
pub use layout::{Descriptor, Layout, LayoutWriter, Manifest, RunConfig};
pub use mpi::Mpi;
pub use recipe::{Packing, Recipe};
pub use tiny::Tiny;
