//! The file for node_exporter's textfile collector: `cista-UID.prom` in the directory of the setting `CISTA_METRICS_DIRECTORY`.
//!
//! Many processes count at the same time, and none of them has time to wait. So each appends a line to a journal, which is one system call that
//! the kernel keeps whole (O_APPEND), and then adds the journal to the totals if nobody else does so just now. Whoever does looks again after he
//! has let go of the lock: a line that came meanwhile is either seen by him, or its writer gets the lock. A process that is stopped
//! while it holds the lock delays the numbers, but no start.
//!
//! The totals say how far each journal is counted in the file itself, which is replaced by rename(2). So each line counts once, whoever is killed when, and
//! the collector never sees half a file. A journal that has grown is renamed and counted to its end; a late line in it still counts.
//!
//! Each user has files of his own, since nobody should be able to change the numbers of another. The directory is to be like `/tmp`: writable for all who
//! start containers, and sticky. Hence nothing in it is followed that is a symbolic link, nor used that belongs to somebody else.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::tally::{Count, Counted, Tally};

/// Size from which on a journal is put aside, in bytes.
const JOURNAL_LIMIT: u64 = 128 << 10;
/// Most that is read of a file, in bytes: what lines can come while one puts a journal aside.
const READ_LIMIT: u64 = 8 << 20;
/// How often a process counts what others have written meanwhile, before it leaves that to them.
const ROUNDS: usize = 16;

/// The open directory, and whose files are used there.
#[derive(Debug)]
pub(super) struct Textfile {
    directory: OwnedFd,
    /// The user as the host knows him: within a container he may have another number.
    uid: u32,
}

impl Textfile {
    /// Opens the directory.
    ///
    /// # Errors
    ///
    /// It is not there.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: rustix::fs::openat(CWD, directory, flags, Mode::empty())?,
            uid: rustix::process::geteuid().as_raw(),
        })
    }

    /// Counts things.
    ///
    /// # Errors
    ///
    /// What is in the way: a directory that cannot be written to, for instance.
    pub(super) fn count(&self, counts: &[Count]) -> io::Result<()> {
        let lines: String = counts.iter().map(Count::line).collect();
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let mut journal = self.file("events", flags, 0o600)?;
        journal.write_all(lines.as_bytes())?;
        let lock = self.file("lock", OFlags::WRONLY | OFlags::CREATE, 0o600)?;
        for _ in 0..ROUNDS {
            match rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // Whoever has it sees our line.
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let counted = self.add_up();
            rustix::fs::flock(lock.as_fd(), FlockOperation::Unlock)?;
            if self.size_of_journal() <= counted? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds the journals to the totals; returns how much of the present one is in them.
    fn add_up(&self) -> io::Result<u64> {
        let mut tally = match self.file("prom", OFlags::RDONLY, 0) {
            Ok(file) => Tally::parse(&text(file)?, self.uid),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Tally::parse("", self.uid),
            Err(error) => return Err(error),
        };
        let before = std::mem::take(&mut tally.journals);
        for name in ["events.old", "events"] {
            let file = match self.file(name, OFlags::RDONLY, 0) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let inode = file.metadata()?.ino();
            let known = before.iter().find(|counted| counted.inode == inode);
            let offset = known.map_or(0, |counted| counted.offset);
            let counted = self.add_journal(file, offset, &mut tally)?;
            tally.journals.push(Counted {
                inode,
                offset: counted,
            });
        }
        let current = tally.journals.last().map_or(0, |counted| counted.offset);
        if current > JOURNAL_LIMIT {
            // In this order: a number that names the removed journal may soon be that of a new file, and must not be in the totals any more.
            self.remove("events.old")?;
            tally.journals = tally.journals.pop().into_iter().collect();
            self.replace(&tally)?;
            rustix::fs::renameat(
                &self.directory,
                self.name("events"),
                &self.directory,
                self.name("events.old"),
            )?;
            return Ok(0);
        }
        self.replace(&tally)?;
        Ok(current)
    }

    /// Adds the whole lines of a journal from an offset on; returns the offset behind them.
    fn add_journal(&self, mut file: File, offset: u64, tally: &mut Tally) -> io::Result<u64> {
        file.seek(SeekFrom::Start(offset))?;
        let text = text(file)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        tally.add(&text[..whole]);
        Ok(offset + whole as u64)
    }

    /// Replaces the totals. The collector, another user, may read them.
    fn replace(&self, tally: &Tally) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = self.file("new", flags, 0o644)?;
        file.write_all(tally.render(self.uid).as_bytes())?;
        // Whatever umask the process has.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        Ok(rustix::fs::renameat(
            &self.directory,
            self.name("new"),
            &self.directory,
            self.name("prom"),
        )?)
    }

    fn size_of_journal(&self) -> u64 {
        let name = self.name("events");
        rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_or(0, |status| status.st_size.cast_unsigned())
    }

    fn remove(&self, what: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, self.name(what), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The collector takes what ends in `.prom`; the rest is hidden.
    fn name(&self, what: &str) -> String {
        let dot = if what == "prom" { "" } else { "." };
        format!("{dot}cista-{}.{what}", self.uid)
    }

    /// Opens a file of one's own.
    fn file(&self, what: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        // Somebody may have put a pipe there.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(
            &self.directory,
            self.name(what),
            flags,
            Mode::from_raw_mode(mode),
        )?;
        let status = rustix::fs::fstat(&fd)?;
        let is_file = status.st_mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || status.st_uid != rustix::process::geteuid().as_raw() {
            let text = format!("`{}` is not a file of the user", self.name(what));
            return Err(io::Error::other(text));
        }
        Ok(File::from(fd))
    }
}

/// The rest of a file, as far as it is UTF-8 and of a bearable size.
fn text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(READ_LIMIT).read_to_end(&mut bytes)?;
    let valid = match std::str::from_utf8(&bytes) {
        Ok(_) => bytes.len(),
        Err(error) => error.valid_up_to(),
    };
    bytes.truncate(valid);
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Barrier;

    use super::*;

    fn sample(directory: &Path, uid: u32, name: &str) -> f64 {
        let text = std::fs::read_to_string(directory.join(format!("cista-{uid}.prom"))).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    #[test]
    fn nothing_is_lost_or_counted_twice() {
        let directory = tempfile::tempdir().unwrap();
        let (threads, each) = (8, 300);
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let textfile = Textfile::open(directory.path()).unwrap();
                    barrier.wait();
                    for _ in 0..each {
                        let hit = Count::Image { was_there: true };
                        let import = Count::Imported {
                            fetched: 3,
                            written: 2,
                            layers_fetched: 1,
                            layers_cached: 0,
                        };
                        textfile.count(&[hit, import]).unwrap();
                    }
                });
            }
        });
        let textfile = Textfile::open(directory.path()).unwrap();
        textfile.count(&[]).unwrap();
        let total = (threads * each) as f64;
        let count = |name: &str| sample(directory.path(), textfile.uid, name);
        assert_eq!(count("cista_imports_total"), total);
        assert_eq!(count("cista_import_fetched_bytes_total"), 3.0 * total);
        // It is long enough to have been put aside, and not kept for ever.
        let journal = directory
            .path()
            .join(format!(".cista-{}.events.old", textfile.uid));
        assert!(std::fs::metadata(journal).unwrap().len() < 4 * JOURNAL_LIMIT);
    }

    #[test]
    fn a_lock_that_is_held_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let textfile = Textfile::open(directory.path()).unwrap();
        let hit = [Count::Image { was_there: true }];
        let lock = textfile
            .file("lock", OFlags::WRONLY | OFlags::CREATE, 0o600)
            .unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        textfile.count(&hit).unwrap();
        let name = "cista_cache_hits_total{uid=";
        assert!(
            !directory
                .path()
                .join(format!("cista-{}.prom", textfile.uid))
                .exists()
        );
        drop(lock);
        textfile.count(&hit).unwrap();
        assert_eq!(sample(directory.path(), textfile.uid, name), 2.0);
    }

    #[test]
    fn half_a_line_waits_for_its_other_half() {
        let directory = tempfile::tempdir().unwrap();
        let textfile = Textfile::open(directory.path()).unwrap();
        let journal = directory
            .path()
            .join(format!(".cista-{}.events", textfile.uid));
        std::fs::write(&journal, "cista_starts_total 1;\ncista_starts").unwrap();
        textfile.count(&[]).unwrap();
        assert_eq!(
            sample(directory.path(), textfile.uid, "cista_starts_total"),
            1.0
        );
    }

    #[test]
    fn what_is_not_ones_own_file_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let textfile = Textfile::open(directory.path()).unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        for what in ["events", "lock", "new"] {
            let link = directory.path().join(textfile.name(what));
            let _ = std::fs::remove_file(&link);
            symlink(&target, &link).unwrap();
            let hit = [Count::Image { was_there: true }];
            textfile.count(&hit).unwrap_err();
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
        Textfile::open(&directory.path().join("missing")).unwrap_err();
    }
}
