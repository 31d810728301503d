//! Blobs and images by digest on disk.
