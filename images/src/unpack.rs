//! An image becomes a directory.
