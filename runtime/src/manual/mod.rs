//! The manual: pages about topics, which `cista help TOPIC` shows, and the reference that is made from the code.
//!
//! A topic is a page in `docs/`: what a terminal shows, what the repository shows and what the man page of section 7 says is
//! one text. The build makes a [`page`] of its Markdown, [`terminal`] lays it out. [`reference`] writes pages about commands and settings
//! from their descriptions in the code; a test compares them with `docs/reference`, so that they cannot be out of date.

#[cfg(test)]
mod markdown;
pub mod page;
pub mod reference;
pub mod terminal;

/// A page about something that concerns several commands.
#[derive(Debug)]
pub struct Topic {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it is about, in a few words.
    pub about: &'static str,
    /// The blocks, as JSON; see `build.rs`.
    text: &'static str,
}

impl Topic {
    /// The page.
    ///
    /// # Errors
    ///
    /// What the build wrote is not a page.
    pub fn blocks(&self) -> Result<Vec<page::Block>, serde_json::Error> {
        serde_json::from_str(self.text)
    }
}

/// A topic whose page is a file of `docs/`, without its ending.
macro_rules! topic {
    ($name:literal, $about:literal, $page:literal) => {
        Topic {
            name: $name,
            about: $about,
            text: include_str!(concat!(env!("OUT_DIR"), "/docs/", $page, ".json")),
        }
    };
}

/// The topics, in the order in which one would read them.
pub static TOPICS: &[Topic] = &[
    topic!(
        "images",
        "where images come from, and how they are fetched",
        "import"
    ),
    topic!(
        "registries",
        "logins, mirrors, certificates, and which images may be used",
        "registries"
    ),
    topic!("store", "what is kept, shared stores, making room", "cache"),
    topic!(
        "mounts",
        "what a container sees of the host's files",
        "mounts"
    ),
    topic!(
        "environment",
        "the variables of a container's program",
        "environment"
    ),
    topic!(
        "hooks",
        "programs and scripts that prepare containers",
        "hooks"
    ),
    topic!(
        "devices",
        "GPUs, fabrics, and devices that CDI describes",
        "devices"
    ),
    topic!(
        "namespaces",
        "process numbers, network, shared memory and host name",
        "namespaces"
    ),
    topic!("bundles", "one executable file of an image", "bundle"),
    topic!(
        "oci-bundles",
        "bundles of the OCI runtime specification",
        "oci"
    ),
    topic!("enroot", "what the name `enroot` changes", "enroot"),
    topic!("srun", "containers in Slurm", "slurm"),
    topic!("migrating", "moving from enroot and pyxis", "migrating"),
    topic!(
        "settings",
        "everything that can be set, and where",
        "reference/settings"
    ),
    topic!(
        "observability",
        "logs and metrics of starts and imports",
        "observability"
    ),
    topic!("json", "the fields that `--json` prints", "json"),
    topic!(
        "troubleshooting",
        "error messages, and what to do",
        "troubleshooting"
    ),
    topic!("exit-codes", "what the exit statuses say", "exit-codes"),
];

/// The topic of a name.
#[must_use]
pub fn topic(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    #[test]
    fn every_topic_can_be_asked_for_and_read() {
        let commands = cli::command();
        for topic in TOPICS {
            assert!(
                commands.find_subcommand(topic.name).is_none(),
                "`cista help {}` shows the command of that name",
                topic.name
            );
            assert_eq!(super::topic(topic.name).unwrap().about, topic.about);
            let blocks = topic.blocks().unwrap();
            assert!(
                matches!(blocks[0], page::Block::Heading(1, _)),
                "{}",
                topic.name
            );
            let text = terminal::layout(&blocks, 80);
            for line in text.lines().filter(|line| !line.starts_with("        ")) {
                assert!(line.chars().count() <= 80, "{}: {line}", topic.name);
            }
        }
    }
}
