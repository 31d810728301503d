use super::*;

const TERMS: Terms = Terms {
    timeout: Duration::from_secs(30),
};

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
    heartbeat: Arc<Heartbeat>,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    Place {
        path: directory.path().join(".x.lease"),
        _directory: directory,
        heartbeat: Arc::default(),
    }
}

impl Place {
    fn attempt_with(&self, terms: Terms, watch: &mut Watch) -> Attempt {
        attempt(&self.path, 100, terms, watch, &self.heartbeat, &|_| Ok(())).unwrap()
    }

    fn attempt(&self) -> Attempt {
        self.attempt_with(TERMS, &mut Watch::default())
    }

    fn hold(&self) -> Lease {
        match self.attempt() {
            Attempt::Held(lease) => lease,
            Attempt::Busy(holder) => panic!("{holder}"),
        }
    }

    fn names(&self) -> Vec<String> {
        std::fs::read_dir(self.path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// A lease of another process, with a heartbeat so long ago.
    fn leave(&self, owner: Owner, age: Duration) {
        let record = LeaseRecord::new(&owner, 100);
        std::fs::write(&self.path, record.to_bytes().unwrap()).unwrap();
        let file = File::options().write(true).open(&self.path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
    }
}

fn dead() -> Owner {
    let here = Owner::current();
    Owner {
        started: here.started - 1,
        ..here
    }
}

fn elsewhere() -> Owner {
    Owner {
        host: "node7".to_owned(),
        boot: "another".to_owned(),
        pid: 123,
        ..Owner::current()
    }
}

#[test]
fn one_holds_a_lease_until_it_gives_it_back() {
    let place = place();
    let lease = place.hold();
    assert_eq!(place.names(), [".x.lease"]);
    assert_eq!(std::fs::read(&place.path).unwrap().len(), SIZE);
    assert!(matches!(place.attempt(), Attempt::Busy(_)));
    assert!(lease.advance(41));
    assert!(lease.confirm());
    match place.attempt() {
        Attempt::Busy(holder) => assert_eq!((holder.done, holder.total), (41, 100)),
        Attempt::Held(_) => panic!(),
    }
    drop(lease);
    assert!(place.names().is_empty());
    drop(place.hold());
}

#[test]
fn of_many_that_find_a_dead_lease_one_gets_it() {
    for _ in 0..50 {
        let place = place();
        place.leave(dead(), Duration::ZERO);
        let deaths = AtomicU64::new(0);
        let start = std::sync::Barrier::new(8);
        let held: Vec<Option<Lease>> = std::thread::scope(|scope| {
            let contend = || {
                start.wait();
                let on_death = |_: &Seen| {
                    deaths.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                let mut watch = Watch::default();
                let (path, heartbeat) = (&place.path, &place.heartbeat);
                for _ in 0..3 {
                    match attempt(path, 100, TERMS, &mut watch, heartbeat, &on_death).unwrap() {
                        Attempt::Held(lease) => return Some(lease),
                        Attempt::Busy(_) => std::thread::sleep(watch.pause()),
                    }
                }
                None
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(contend)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect()
        });
        assert_eq!(held.iter().flatten().count(), 1);
        assert_eq!(deaths.into_inner(), 1);
        drop(held);
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
}

#[test]
fn a_lease_of_another_machine_dies_of_silence_by_the_clock_of_the_file_system() {
    let place = place();
    place.leave(elsewhere(), Duration::from_secs(20));
    match place.attempt() {
        Attempt::Busy(holder) => assert_eq!(holder.to_string(), "process 123 on node7"),
        Attempt::Held(_) => panic!("it was silent for 20 s only"),
    }
    place.leave(elsewhere(), Duration::from_secs(40));
    drop(place.hold());
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn a_lease_dies_of_silence_while_it_is_watched_whatever_the_clocks_say() {
    let place = place();
    let terms = Terms {
        timeout: Duration::from_millis(200),
    };
    // From the future, as by a machine whose clock is wrong.
    place.leave(elsewhere(), Duration::ZERO);
    let file = File::options().write(true).open(&place.path).unwrap();
    let future = std::time::SystemTime::now() + Duration::from_secs(3600);
    file.set_modified(future).unwrap();
    let mut watch = Watch::default();
    let start = Instant::now();
    while let Attempt::Busy(_) = place.attempt_with(terms, &mut watch) {
        std::thread::sleep(watch.pause());
    }
    assert!(start.elapsed() >= terms.timeout);
}

#[test]
fn a_heartbeat_keeps_a_lease_alive() {
    let place = place();
    let terms = Terms {
        timeout: Duration::from_millis(400),
    };
    let Attempt::Held(lease) = place.attempt_with(terms, &mut Watch::default()) else {
        panic!();
    };
    let mut watch = Watch::default();
    let start = Instant::now();
    while start.elapsed() < 4 * terms.timeout {
        let other = place.attempt_with(terms, &mut watch);
        assert!(matches!(other, Attempt::Busy(_)), "{:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lease.confirm());
}

#[test]
fn a_lease_that_is_another_s_is_lost_and_left_alone() {
    let place = place();
    let lease = place.hold();
    place.leave(elsewhere(), Duration::ZERO);
    assert!(!lease.confirm());
    assert!(!lease.advance(1));
    drop(lease);
    assert_eq!(place.names(), [".x.lease"]);
    std::fs::remove_file(&place.path).unwrap();
    let lease = place.hold();
    std::fs::remove_file(&place.path).unwrap();
    assert!(!lease.confirm());
}

#[test]
fn guards_whose_holders_died_are_broken_too() {
    let place = place();
    place.leave(dead(), Duration::ZERO);
    let seen = look(&place.path).unwrap().unwrap();
    let guard = place
        .path
        .with_file_name(format!(".x.lease.{}", seen.identity()));
    let record = LeaseRecord::new(&dead(), 0).to_bytes().unwrap();
    std::fs::write(&guard, &record).unwrap();
    drop(place.hold());
    assert!(place.names().is_empty(), "{:?}", place.names());
    // One that is held by the living is respected.
    place.leave(dead(), Duration::ZERO);
    let seen = look(&place.path).unwrap().unwrap();
    let guard = place
        .path
        .with_file_name(format!(".x.lease.{}", seen.identity()));
    let record = LeaseRecord::new(&Owner::current(), 0).to_bytes().unwrap();
    std::fs::write(&guard, &record).unwrap();
    assert!(matches!(place.attempt(), Attempt::Busy(_)));
    std::fs::remove_file(&guard).unwrap();
    drop(place.hold());
}

#[test]
fn what_is_no_lease_counts_as_one_that_was_just_begun() {
    for content in [&b""[..], b"{}", b"\xff", &[b' '; 5000]] {
        let place = place();
        std::fs::write(&place.path, content).unwrap();
        match place.attempt() {
            Attempt::Busy(holder) => assert_eq!(holder.to_string(), "another process"),
            Attempt::Held(_) => panic!("{content:?}"),
        }
        let file = File::options().write(true).open(&place.path).unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        file.set_modified(old).unwrap();
        drop(place.hold());
        assert!(place.names().is_empty());
    }
    let place = place();
    std::fs::create_dir(&place.path).unwrap();
    let mut watch = Watch::default();
    let refused = attempt(&place.path, 0, TERMS, &mut watch, &place.heartbeat, &|_| {
        Ok(())
    });
    assert!(refused.is_err());
}
