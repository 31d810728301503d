//! A directory becomes an image.
