//! The files that an import adds to an image: our own record, and what enroot wants.
//!
//! enroot starts every image through `/etc/rc`, with the environment of `/etc/environment` and the mounts of `/etc/fstab`;
//! it writes them over what the image has, and an `/etc/rc.local` that does nothing, since `/etc/rc` runs it and old
//! distributions have one of their own. The same is done here, so that enroot can start our images. A plain root file
//! system has no config to make these files from: it keeps its own, and only gets an `/etc/rc` when it has none.
//!
//! Everything in a config is hostile: a label cannot leave its comment, an argument is quoted for the shell, a volume
//! cannot name a path of the host.
//!
//! Paths are resolved within the tree: `/etc` may be a symbolic link of any kind.

use crate::layer::path::EntryPath;
use crate::merge::Sink;
use crate::squashfs::writer::WriteError;
use crate::tree::{Inode, InodeId, Kind, Metadata, Tree};

use super::record::{ImageConfig, Record};

/// Most symbolic links on the way to a directory, as in Linux.
const MAX_LINKS: usize = 40;

/// What enroot's users may edit to change how the container's program is run.
const RC_LOCAL: &str =
    "# Read by /etc/rc when the container starts, with the container's command as $@.\n";

/// Files to add to an image.
pub(super) struct Provision {
    /// In `/etc`: name, content, permissions, and whether the image's own file is replaced.
    etc: Vec<(&'static str, Vec<u8>, u16, bool)>,
    /// A directory that must exist.
    working_directory: Option<EntryPath>,
    /// Things in the config that could not be taken over.
    pub(super) warnings: Vec<String>,
}

impl Provision {
    /// The files that a config asks for; without one, what a plain root file system lacks.
    pub(super) fn new(config: Option<&ImageConfig>, record: &Record) -> Self {
        let Some(config) = config else {
            let rc = rc(&ImageConfig::default(), record);
            return Self {
                etc: vec![("rc", rc, 0o755, false)],
                working_directory: None,
                warnings: Vec::new(),
            };
        };
        let mut warnings = Vec::new();
        let environment = environment(config, &mut warnings);
        let fstab = fstab(config, &mut warnings);
        let working_directory = match EntryPath::parse(config.config.working_dir.as_bytes()) {
            Ok(path) => Some(path),
            Err(error) => {
                warnings.push(format!("the working directory is not made: {error}"));
                None
            }
        };
        Self {
            etc: vec![
                ("rc", rc(config, record), 0o755, true),
                ("rc.local", RC_LOCAL.as_bytes().to_vec(), 0o644, true),
                ("environment", environment, 0o644, true),
                ("fstab", fstab, 0o644, true),
            ],
            working_directory,
            warnings,
        }
    }

    /// Adds the files to a tree. `record` is the content of [`super::record::PATH`]; `mtime` is the time of all that is
    /// made.
    pub(super) fn apply<S: Sink>(
        self,
        tree: &mut Tree,
        record: &[u8],
        mtime: u32,
        sink: &mut S,
    ) -> Result<(), WriteError> {
        let metadata = |mode| Metadata {
            mode,
            uid: 0,
            gid: 0,
            mtime,
            xattrs: None,
        };
        let made = metadata(0o755);
        let etc = match directory(tree, &[b"etc"], &made)? {
            Some(etc) => etc,
            // Something that leads to no directory makes room, as it would below an overlay.
            None => {
                let etc = new_directory(tree, &made)?;
                tree.link(Tree::ROOT, b"etc", etc);
                etc
            }
        };
        for (name, content, mode, replace) in self.etc {
            if replace || tree.child(etc, name.as_bytes()).is_none() {
                add_file(tree, etc, name, &content, metadata(mode), sink)?;
            }
        }
        if let Some(path) = self.working_directory {
            let components: Vec<_> = path.components().collect();
            directory(tree, &components, &made)?;
        }
        // The image's own `/.cista` can only be a leftover of an earlier import, or an attack.
        let own = new_directory(tree, &made)?;
        tree.link(Tree::ROOT, b".cista", own);
        add_file(tree, own, "image.json", record, metadata(0o644), sink)
    }
}

fn add_file<S: Sink>(
    tree: &mut Tree,
    directory: InodeId,
    name: &str,
    content: &[u8],
    metadata: Metadata,
    sink: &mut S,
) -> Result<(), WriteError> {
    let content = sink.hold_file(content.to_vec())?;
    let file = tree
        .add(Inode {
            metadata,
            kind: Kind::File(content),
        })
        .ok_or(WriteError::TooManyFiles)?;
    tree.link(directory, name.as_bytes(), file);
    Ok(())
}

fn new_directory(tree: &mut Tree, metadata: &Metadata) -> Result<InodeId, WriteError> {
    tree.add(Inode {
        metadata: metadata.clone(),
        kind: Kind::Directory(std::collections::BTreeMap::new()),
    })
    .ok_or(WriteError::TooManyFiles)
}

/// A directory of the tree, through symbolic links and never out of the root; made if need be. None when something that
/// is no directory is in the way.
fn directory(
    tree: &mut Tree,
    path: &[&[u8]],
    made: &Metadata,
) -> Result<Option<InodeId>, WriteError> {
    let mut stack = vec![Tree::ROOT];
    // What is left to walk, the next component last.
    let mut left: Vec<Box<[u8]>> = path.iter().rev().map(|name| Box::from(*name)).collect();
    let mut links = 0;
    while let Some(name) = left.pop() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            _ => {}
        }
        let here = stack.last().copied().unwrap_or(Tree::ROOT);
        let Some(child) = tree.child(here, &name) else {
            let new = new_directory(tree, made)?;
            tree.link(here, &name, new);
            stack.push(new);
            continue;
        };
        match &tree.inode(child).kind {
            Kind::Directory(_) => stack.push(child),
            Kind::Symlink(target) if links < MAX_LINKS => {
                links += 1;
                let target = target.clone();
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                left.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
            }
            _ => return Ok(None),
        }
    }
    Ok(stack.last().copied())
}

/// `/etc/rc`: the command line comes as arguments; goes to the working directory and becomes the program.
fn rc(config: &ImageConfig, record: &Record) -> Vec<u8> {
    let execution = &config.config;
    let mut script = String::new();
    for (name, value) in &execution.labels {
        comment(&mut script, &format!("{name} {value}"));
    }
    if let Some(reference) = &record.reference {
        comment(&mut script, &format!("cista.reference {reference}"));
    }
    if let Some(digest) = &record.digest {
        comment(&mut script, &format!("cista.digest {digest}"));
    }
    let directory = match execution.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    let directory = quote(directory);
    let entrypoint: String = execution
        .entrypoint
        .iter()
        .map(|word| quote(word) + " ")
        .collect();
    let mut words: Vec<String> = execution
        .entrypoint
        .iter()
        .chain(&execution.cmd)
        .map(|word| quote(word))
        .collect();
    if words.is_empty() {
        words.push(quote("/bin/sh"));
    }
    script.push_str(&format!(
        "mkdir -p -- {directory} 2>/dev/null\n\
         cd -- {directory} || exit 1\n\
         unset OLDPWD\n\
         if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\
         if [ $# -gt 0 ]; then\n    exec {entrypoint}\"$@\"\nfi\n\
         exec {}\n",
        words.join(" ")
    ));
    script.into_bytes()
}

/// A comment of any text, every line of it.
fn comment(script: &mut String, text: &str) {
    for line in text.split(['\n', '\r']) {
        script.push_str("# ");
        script.push_str(line);
        script.push('\n');
    }
}

/// A word for the shell: between single quotes everything stands for itself. (A NUL cannot stand anywhere in a command
/// line, and is left out.)
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\0', "").replace('\'', r"'\''"))
}

/// `/etc/environment`: one variable a line. Values with line breaks have no place there; cista itself takes the
/// variables from the record, where they are whole.
fn environment(config: &ImageConfig, warnings: &mut Vec<String>) -> Vec<u8> {
    let mut text = String::new();
    for variable in &config.config.env {
        if variable.contains(['\n', '\0']) {
            let name = variable.split('=').next().unwrap_or_default();
            warnings.push(format!(
                "`/etc/environment` lacks the variable `{}`: its value has several lines",
                name.escape_debug()
            ));
            continue;
        }
        text.push_str(variable);
        text.push('\n');
    }
    text.into_bytes()
}

/// `/etc/fstab`: every volume is a mount of its own, as enroot writes it.
fn fstab(config: &ImageConfig, warnings: &mut Vec<String>) -> Vec<u8> {
    let mut text = String::new();
    for volume in config.config.volumes.keys() {
        // enroot expands variables in these lines, and joins the path to the host's path of the root.
        let usable = volume.starts_with('/')
            && !volume.contains('$')
            && EntryPath::parse(volume.as_bytes()).is_ok_and(|path| !path.as_bytes().is_empty());
        if !usable {
            warnings.push(format!("volume `{}` is ignored", volume.escape_debug()));
            continue;
        }
        let path: String = volume
            .chars()
            .map(|character| match character {
                ' ' | '\t' | '\n' | '\r' | '\\' | '#' => {
                    format!("\\{:03o}", u32::from(character))
                }
                other => other.to_string(),
            })
            .collect();
        text.push_str(&format!(
            "${{ENROOT_ROOTFS}}{path} {path} none x-create=dir,bind,rw,nosuid,nodev\n"
        ));
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;
    use crate::merge::FileSink;
    use crate::tree::ContentId;

    #[derive(Default)]
    struct Memory(Vec<Vec<u8>>);
    struct File<'a>(&'a mut Memory, Vec<u8>);

    impl Sink for Memory {
        type File<'a> = File<'a>;
        fn begin_file(&mut self, _: u64) -> Result<File<'_>, WriteError> {
            Ok(File(self, Vec::new()))
        }
    }

    impl FileSink for File<'_> {
        fn write(&mut self, piece: &[u8]) -> Result<(), WriteError> {
            self.1.extend_from_slice(piece);
            Ok(())
        }
        fn write_hole(&mut self, _: u64) -> Result<(), WriteError> {
            panic!("no hole is wanted");
        }
        fn finish(self) -> Result<ContentId, WriteError> {
            self.0.0.push(self.1);
            Ok(ContentId(self.0.0.len() as u32 - 1))
        }
    }

    fn config(json: &str) -> ImageConfig {
        ImageConfig::parse(json).unwrap()
    }

    fn record() -> Record {
        Record::new(Some("docker://x/y:1".to_owned()), None, None).unwrap()
    }

    /// Runs an `/etc/rc` with the shell and returns what it prints.
    fn run(script: &[u8], arguments: &[&str]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rc");
        std::fs::write(&path, script).unwrap();
        let output = Command::new("/bin/sh")
            .arg(&path)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn rc_runs_the_entrypoint_with_the_arguments_or_the_command() {
        let hostile = r#"{"config":{
            "Entrypoint":["/usr/bin/printf","[%s]"],
            "Cmd":["it's","$(id) `id` \"${HOME}\" \\","a\nb","","*"],
            "Labels":{"x\nexit 9":"y\rexit 8\n. /nowhere"}}}"#;
        let script = rc(&config(hostile), &record());
        assert_eq!(
            run(&script, &[]),
            "[it's][$(id) `id` \"${HOME}\" \\][a\nb][][*]"
        );
        assert_eq!(run(&script, &["a b", "-n"]), "[a b][-n]");
        let command = rc(
            &config(r#"{"config":{"Cmd":["echo","-n","hi"]}}"#),
            &record(),
        );
        assert_eq!(run(&command, &[]), "hi");
        assert_eq!(run(&command, &["echo", "there"]), "there\n");
        let nothing = rc(&ImageConfig::default(), &record());
        assert_eq!(run(&nothing, &["pwd"]), "/\n");
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("it's -- here");
        let json = format!(
            r#"{{"config":{{"WorkingDir":{}}}}}"#,
            serde_json::to_string(path.to_str().unwrap()).unwrap()
        );
        let directory = rc(&config(&json), &record());
        assert_eq!(run(&directory, &["pwd"]), format!("{}\n", path.display()));
    }

    #[test]
    fn environment_and_volumes_of_hostile_configs() {
        let config = config(
            r#"{"config":{
                "Env":["A=1 2","B=x\ny","C="],
                "Volumes":{"/data":{},"/with space":{},"/../../etc":{},"/${HOME}":{},"rel":{},"/":{},"/a\nb c none bind":{}}}}"#,
        );
        let mut warnings = Vec::new();
        assert_eq!(environment(&config, &mut warnings), b"A=1 2\nC=\n");
        assert_eq!(warnings.len(), 1);
        warnings.clear();
        let text = String::from_utf8(fstab(&config, &mut warnings)).unwrap();
        let options = "none x-create=dir,bind,rw,nosuid,nodev";
        assert_eq!(
            text,
            format!(
                "${{ENROOT_ROOTFS}}/a\\012b\\040c\\040none\\040bind /a\\012b\\040c\\040none\\040bind {options}\n\
                 ${{ENROOT_ROOTFS}}/data /data {options}\n\
                 ${{ENROOT_ROOTFS}}/with\\040space /with\\040space {options}\n"
            )
        );
        assert_eq!(warnings.len(), 4, "{warnings:?}");
    }

    fn metadata() -> Metadata {
        Metadata {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 1,
            xattrs: None,
        }
    }

    fn tree() -> Tree {
        Tree::new(metadata())
    }

    fn put(tree: &mut Tree, parent: InodeId, name: &[u8], kind: Kind) -> InodeId {
        let id = tree
            .add(Inode {
                metadata: metadata(),
                kind,
            })
            .unwrap();
        tree.link(parent, name, id);
        id
    }

    fn symlink(target: &[u8]) -> Kind {
        Kind::Symlink(target.into())
    }

    fn lookup(tree: &Tree, path: &str) -> Option<InodeId> {
        path.split('/')
            .try_fold(Tree::ROOT, |id, name| tree.child(id, name.as_bytes()))
    }

    #[test]
    fn etc_is_found_wherever_it_is() {
        for (target, place) in [
            (&b"usr/etc"[..], "usr/etc"),
            (b"/usr/etc", "usr/etc"),
            (b"../../../usr/./etc", "usr/etc"),
            (b"../../../outside", "outside"),
        ] {
            let mut tree = tree();
            put(&mut tree, Tree::ROOT, b"etc", symlink(target));
            let mut sink = Memory::default();
            Provision::new(Some(&ImageConfig::default()), &record())
                .apply(&mut tree, b"{}", 5, &mut sink)
                .unwrap();
            for name in ["rc", "rc.local", "environment", "fstab"] {
                assert!(
                    lookup(&tree, &format!("{place}/{name}")).is_some(),
                    "{place}"
                );
            }
        }
        // Links that lead nowhere, and files, make room.
        for kind in [
            symlink(b"etc"),
            symlink(b"/etc/etc"),
            Kind::Fifo,
            Kind::File(ContentId(0)),
        ] {
            let mut tree = tree();
            put(&mut tree, Tree::ROOT, b"etc", kind);
            let mut sink = Memory::default();
            Provision::new(Some(&ImageConfig::default()), &record())
                .apply(&mut tree, b"{}", 5, &mut sink)
                .unwrap();
            assert!(lookup(&tree, "etc/rc").is_some());
        }
    }

    #[test]
    fn files_of_the_image_are_replaced_but_not_those_of_a_plain_root() {
        let build = || {
            let mut tree = tree();
            let etc = put(
                &mut tree,
                Tree::ROOT,
                b"etc",
                Kind::Directory(BTreeMap::new()),
            );
            let own = put(&mut tree, etc, b"rc", Kind::Directory(BTreeMap::new()));
            put(&mut tree, etc, b"fstab", symlink(b"/outside"));
            put(&mut tree, Tree::ROOT, b".cista", symlink(b"/etc"));
            (tree, own)
        };
        let (mut image, own) = build();
        let mut sink = Memory::default();
        let config = config(r#"{"config":{"WorkingDir":"/work/here"}}"#);
        Provision::new(Some(&config), &record())
            .apply(&mut image, b"record", 5, &mut sink)
            .unwrap();
        assert_ne!(lookup(&image, "etc/rc"), Some(own));
        assert!(lookup(&image, "outside").is_none());
        assert!(lookup(&image, "work/here").is_some());
        let record_file = lookup(&image, ".cista/image.json").unwrap();
        let Kind::File(content) = image.inode(record_file).kind else {
            panic!();
        };
        assert_eq!(sink.0[content.0 as usize], b"record");
        assert_eq!(image.inode(record_file).metadata.mtime, 5);

        let (mut plain, own) = build();
        let before = lookup(&plain, "etc/fstab");
        Provision::new(None, &record())
            .apply(&mut plain, b"record", 5, &mut Memory::default())
            .unwrap();
        assert_eq!(lookup(&plain, "etc/rc"), Some(own));
        assert_eq!(lookup(&plain, "etc/fstab"), before);
        assert!(lookup(&plain, "etc/environment").is_none());
    }

    #[test]
    fn a_working_directory_that_is_a_file_stays() {
        let mut tree = tree();
        let file = put(&mut tree, Tree::ROOT, b"work", Kind::Fifo);
        let config = config(r#"{"config":{"WorkingDir":"/work/here"}}"#);
        Provision::new(Some(&config), &record())
            .apply(&mut tree, b"", 5, &mut Memory::default())
            .unwrap();
        assert_eq!(lookup(&tree, "work"), Some(file));
    }
}
