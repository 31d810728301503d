//! Writes what is made from the descriptions of commands and settings: the reference, manual pages, completions.
//!
//! `cargo xtask docs` and `cargo xtask package` run it. It is no part of the program: only who packages it needs it.

mod man;

use std::io;
use std::path::{Path, PathBuf};

use cista::cli;
use cista::manual::reference;
use clap::Parser;
use clap_complete::aot::{Generator as _, Shell};

/// Write what is made from the descriptions in the code
#[derive(Debug, Parser)]
enum Task {
    /// The pages of `docs/reference`
    Reference {
        /// Directory to write them to
        directory: PathBuf,
    },
    /// Manual pages, in `man1`, `man5` and `man7`
    Man {
        /// Directory to write them below
        directory: PathBuf,
    },
    /// Completions, as the shells call their files
    Completions {
        /// Directory to write them below, one directory a shell
        directory: PathBuf,
    },
}

fn main() -> io::Result<()> {
    match Task::parse() {
        Task::Reference { directory } => {
            write(&directory, "settings.md", reference::settings_file())?;
            write(
                &directory,
                "commands.md",
                reference::commands_file(cli::command()),
            )
        }
        Task::Man { directory } => man::write(&directory),
        Task::Completions { directory } => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut cli::command(), "cista", &mut script);
                // The name that bash-completion looks for is that of the program.
                let name = match shell {
                    Shell::Bash => "cista".to_owned(),
                    shell => shell.file_name("cista"),
                };
                write(&directory.join(shell.to_string()), &name, script)?;
            }
            Ok(())
        }
    }
}

/// Writes a file of a directory, which is made where it is missing.
fn write(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::write(directory.join(name), content)
}
