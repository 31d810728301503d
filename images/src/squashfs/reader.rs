//! From an image file: inodes, directories, blocks.
