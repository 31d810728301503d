//! Content streams in, an image file comes out.
