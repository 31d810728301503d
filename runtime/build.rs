//! What is made before the program is compiled: the pages of the manual, and the way to the unwinder.
//!
//! The unwinder is linked in, so that the dynamic linker need not look for libgcc_s in each start. The standard library asks for `-lgcc_s`; a linker
//! script of that name, found before the real one, names the static archive of the same code, where the compiler has it (GNU
//! toolchains do; others link an unwinder of their own or keep the shared library).

#[path = "src/manual/markdown.rs"]
mod markdown;
#[expect(dead_code, unreachable_pub, reason = "a part of the program as well")]
#[path = "src/manual/page.rs"]
mod page;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the pages are, from here.
const DOCS: &str = "../docs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/manual/markdown.rs");
    println!("cargo::rerun-if-changed=src/manual/page.rs");
    let directory = PathBuf::from(std::env::var("OUT_DIR")?);
    for part in ["", "reference"] {
        pages(
            &Path::new(DOCS).join(part),
            &directory.join("docs").join(part),
        )?;
    }
    link_unwinder(&directory);
    Ok(())
}

/// Makes a page of each Markdown file of a directory.
fn pages(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", from.display());
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "md")
            && let Some(name) = path.file_stem()
        {
            println!("cargo::rerun-if-changed={}", path.display());
            let blocks = markdown::parse(&std::fs::read_to_string(&path)?);
            let text = serde_json::to_string(&blocks)?;
            std::fs::write(to.join(name).with_extension("json"), text)?;
        }
    }
    Ok(())
}

fn link_unwinder(directory: &Path) {
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
    let script = format!("INPUT({})\n", archive.display());
    if archive.is_absolute() && std::fs::write(directory.join("libgcc_s.so"), script).is_ok() {
        println!("cargo::rustc-link-search=native={}", directory.display());
    }
}
