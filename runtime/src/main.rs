//! The `cista` program.

#![no_main]

cista::program!(cista::cli::main);
