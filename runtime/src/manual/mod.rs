//! The manual: pages about topics, which `cista help TOPIC` shows, and the reference that is made from the code.
//!
//! A topic is a page in `docs/`: what a terminal shows, what the repository shows and what the man page of section 7 says is
//! one text. [`page`] reads its Markdown, [`terminal`] lays it out. [`reference`] writes pages about commands and settings
//! from their descriptions in the code; a test compares them with `docs/reference`, so that they cannot be out of date.

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
    text: Text,
}

/// Where a page comes from.
#[derive(Debug)]
enum Text {
    /// A file of `docs/`.
    File(&'static str),
    /// The code.
    Made(fn() -> String),
}

impl Topic {
    /// The page, in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        match self.text {
            Text::File(text) => text.to_owned(),
            Text::Made(make) => make(),
        }
    }
}

const fn file(name: &'static str, about: &'static str, text: &'static str) -> Topic {
    Topic {
        name,
        about,
        text: Text::File(text),
    }
}

/// The topics, in the order in which one would read them.
pub static TOPICS: &[Topic] = &[
    file(
        "images",
        "where images come from, and how they are fetched",
        include_str!("../../../docs/import.md"),
    ),
    file(
        "registries",
        "logins, mirrors, certificates, and which images may be used",
        include_str!("../../../docs/registries.md"),
    ),
    file(
        "store",
        "what is kept, shared stores, making room",
        include_str!("../../../docs/cache.md"),
    ),
    file(
        "mounts",
        "what a container sees of the host's files",
        include_str!("../../../docs/mounts.md"),
    ),
    file(
        "environment",
        "the variables of a container's program",
        include_str!("../../../docs/environment.md"),
    ),
    file(
        "hooks",
        "programs and scripts that prepare containers",
        include_str!("../../../docs/hooks.md"),
    ),
    file(
        "devices",
        "GPUs, fabrics, and devices that CDI describes",
        include_str!("../../../docs/devices.md"),
    ),
    file(
        "namespaces",
        "process numbers, network, shared memory and host name",
        include_str!("../../../docs/namespaces.md"),
    ),
    file(
        "bundles",
        "one executable file of an image",
        include_str!("../../../docs/bundle.md"),
    ),
    file(
        "oci-bundles",
        "bundles of the OCI runtime specification",
        include_str!("../../../docs/oci.md"),
    ),
    file(
        "enroot",
        "what the name `enroot` changes",
        include_str!("../../../docs/enroot.md"),
    ),
    file(
        "srun",
        "containers in Slurm",
        include_str!("../../../docs/slurm.md"),
    ),
    file(
        "migrating",
        "moving from enroot and pyxis",
        include_str!("../../../docs/migrating.md"),
    ),
    Topic {
        name: "settings",
        about: "everything that can be set, and where",
        text: Text::Made(reference::settings),
    },
    file(
        "observability",
        "logs and metrics of starts and imports",
        include_str!("../../../docs/observability.md"),
    ),
    file(
        "json",
        "the fields that `--json` prints",
        include_str!("../../../docs/json.md"),
    ),
    file(
        "troubleshooting",
        "error messages, and what to do",
        include_str!("../../../docs/troubleshooting.md"),
    ),
    file(
        "exit-codes",
        "what the exit statuses say",
        include_str!("../../../docs/exit-codes.md"),
    ),
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
            let markdown = topic.markdown();
            assert!(markdown.starts_with("# "), "{}", topic.name);
            let text = terminal::layout(&page::parse(&markdown), 80);
            for line in text.lines().filter(|line| !line.starts_with("        ")) {
                assert!(line.chars().count() <= 80, "{}: {line}", topic.name);
            }
        }
    }
}
