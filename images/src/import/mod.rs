//! From a source to an image file, in one pass.

pub mod record;
