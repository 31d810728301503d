//! A blob becomes tar entries.
