//! Layers become one tree, top-down.
