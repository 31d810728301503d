//! All of an import in one pass.
