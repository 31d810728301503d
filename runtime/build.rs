//! Keeps the program's start short: the unwinder is linked in, so that the dynamic linker need not look for libgcc_s.
//!
//! The standard library asks for `-lgcc_s`. A linker script of that name, found before the real one, names the static archive of the
//! same code, where the compiler has it (GNU toolchains do; others link an unwinder of their own or keep the shared library).

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| std::env::var(name).unwrap_or_default();
    let native = variable("TARGET") == variable("HOST");
    if variable("CARGO_CFG_TARGET_ENV") != "gnu" || !native {
        return;
    }
    let Ok(answer) = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output()
    else {
        return;
    };
    let archive = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    let directory = PathBuf::from(variable("OUT_DIR"));
    let script = format!("INPUT({})\n", archive.display());
    if archive.is_absolute() && std::fs::write(directory.join("libgcc_s.so"), script).is_ok() {
        println!("cargo::rustc-link-search=native={}", directory.display());
    }
}
