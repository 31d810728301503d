//! What the user typed to name an image.
