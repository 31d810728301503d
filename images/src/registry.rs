//! The client of the OCI distribution specification.
