//! The harness of the end-to-end tests: real registries, real images, an unprivileged user.
