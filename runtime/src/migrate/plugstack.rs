//! The line of pyxis in Slurm's `plugstack.conf` (spank(7)) becomes one of our plugin.
//!
//! Slurm's files are the administrator's: what is written is a file of its own, to be included in place of the old line.

use std::path::Path;

use super::{Fate, MigrateError, NewFile, Plan, read};
use crate::config::sources::names;

/// Arguments of pyxis that our plugin takes with the same meaning.
const KNOWN: [&str; 5] = [
    "runtime_path",
    "execute_entrypoint",
    "container_scope",
    "sbatch_support",
    "importer",
];

/// Arguments that ask for what is always so.
const WITHOUT_EFFECT: [&str; 2] = ["use_enroot_load", "use_squashfuse"];

/// Where pyxis keeps the state of containers unless told otherwise.
const USUAL_RUNTIME_PATH: &str = "runtime_path=/run/pyxis";

/// Plans for `plugstack.conf` and `plugstack.conf.d/*.conf` of a directory of Slurm; `target` is the file that the line is written to.
///
/// # Errors
///
/// A file cannot be read.
pub fn plan(slurm: &Path, target: &Path, plan: &mut Plan) -> Result<(), MigrateError> {
    let mut files = vec![slurm.join("plugstack.conf")];
    files.extend(names(&slurm.join("plugstack.conf.d"), "conf")?);
    for file in files {
        let Some(content) = read(&file)? else {
            continue;
        };
        for (line, number) in String::from_utf8_lossy(&content).lines().zip(1..) {
            let line = line.trim();
            if line.starts_with('#') || !line.contains("spank_pyxis.so") {
                continue;
            }
            let place = format!("{}:{number}", file.display());
            let Some((new, left_out)) = translate(line) else {
                plan.step(Fate::Attention, place, line, "not a line of plugstack.conf");
                continue;
            };
            plan.step(
                Fate::Translated,
                &place,
                line,
                format!("in its place: include {}    ({new})", target.display()),
            );
            for word in left_out {
                plan.step(
                    Fate::Attention,
                    &place,
                    &word,
                    "the plugin does not know it; it is left out",
                );
            }
            plan.files.push(NewFile {
                path: target.to_owned(),
                content: format!("# From {place}, by `cista migrate`: to be included there, in place of that line.\n{new}\n").into_bytes(),
                mode: 0o644,
            });
            // pyxis refuses to be loaded twice.
            return Ok(());
        }
    }
    Ok(())
}

/// Our line for one of pyxis, and the arguments that have no place there.
fn translate(line: &str) -> Option<(String, Vec<String>)> {
    let mut words = line.split_ascii_whitespace();
    let how = words
        .next()
        .filter(|word| ["required", "optional"].contains(word))?;
    words
        .next()
        .filter(|path| path.ends_with("spank_pyxis.so"))?;
    let mut new = format!("{how} spank_cista.so");
    let mut left_out = Vec::new();
    for word in words.filter(|word| *word != USUAL_RUNTIME_PATH) {
        let name = word.split('=').next().unwrap_or_default();
        if KNOWN.contains(&name) {
            new.push(' ');
            new.push_str(word);
        } else if !WITHOUT_EFFECT.contains(&name) {
            left_out.push(word.to_owned());
        }
    }
    Some((new, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_pyxis_becomes_ours() {
        for (line, new, left_out) in [
            (
                "required /usr/local/lib/slurm/spank_pyxis.so",
                "required spank_cista.so",
                "",
            ),
            (
                "optional  spank_pyxis.so runtime_path=/run/pyxis execute_entrypoint=1 use_squashfuse=yes container_scope=job odd=1",
                "optional spank_cista.so execute_entrypoint=1 container_scope=job",
                "odd=1",
            ),
            (
                "required spank_pyxis.so runtime_path=/raid/pyxis importer=/usr/bin/get",
                "required spank_cista.so runtime_path=/raid/pyxis importer=/usr/bin/get",
                "",
            ),
        ] {
            let (made, out) = translate(line).unwrap();
            assert_eq!(
                (made.as_str(), out.join(",").as_str()),
                (new, left_out),
                "{line}"
            );
        }
        assert_eq!(translate("include /etc/spank_pyxis.so"), None);
    }
}
