//! Parts in every order, without a network.

use super::*;
use crate::digest::Digest;

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 % 251) as u8).collect()
}

fn incoming(content: &[u8], store: Option<Arc<Store>>) -> Incoming {
    let blob = Blob {
        digest: Digest::of(content),
        size: content.len() as u64,
    };
    enter(Incoming::new(blob, 0, store))
}

/// With the blob claimed in the store, if it goes to one.
fn enter(incoming: Incoming) -> Incoming {
    if incoming.begin_entering() {
        incoming.enter().unwrap();
    }
    incoming
}

/// Brings parts in an order that `choose` picks, in small pieces; returns whether it was right.
fn bring(incoming: &Incoming, content: &[u8], choose: impl Fn(usize) -> usize) -> bool {
    let first = incoming.claim(4, 0).unwrap();
    incoming.answered(first, false);
    let mut open = vec![(first, first.from)];
    loop {
        while let Some(claim) = incoming.claim(4, 0) {
            open.push((claim, claim.from));
        }
        if open.is_empty() {
            return incoming.is_over();
        }
        let at = choose(open.len());
        let (claim, position) = &mut open[at];
        let end = claim.end.min(*position + 300_000);
        let bytes = &content[*position as usize..end as usize];
        if incoming.arrive(*claim, *position, bytes).is_err() {
            return false;
        }
        *position = end;
        if end == claim.end {
            let (claim, _) = open.remove(at);
            incoming.release(claim);
        }
        while incoming.is_in_memory()
            && let Ok(Some(Available::Bytes(_))) = incoming.wait(0, Duration::ZERO)
        {}
    }
}

#[test]
fn parts_in_any_order_make_the_blob() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let content = content(23_456_789);
    let orders: [fn(usize) -> usize; 3] = [|_| 0, |count| count - 1, |count| count / 2];
    for order in orders {
        for store in [None, Some(Arc::clone(&store))] {
            let incoming = incoming(&content, store.clone());
            assert!(bring(&incoming, &content, order));
            assert!(incoming.wait(u64::MAX, Duration::ZERO).is_ok());
            if let Some(store) = store {
                let digest = incoming.blob.digest;
                let file = store.blob(&digest).unwrap().unwrap();
                assert_eq!(file.metadata().unwrap().len(), incoming.blob.size);
                store.discard_blob(&digest).unwrap();
            }
        }
    }
}

#[test]
fn one_wrong_byte_is_found_whatever_the_order() {
    let content = content(9_000_000);
    let mut wrong = content.clone();
    wrong[5_000_000] ^= 1;
    for order in [|_| 0, |count: usize| count - 1] {
        let incoming = incoming(&content, None);
        assert!(!bring(&incoming, &wrong, order));
    }
}

#[test]
fn a_server_without_ranges_is_asked_once() {
    let content = content(9_000_000);
    let incoming = incoming(&content, None);
    let claim = incoming.claim(4, 0).unwrap();
    assert_eq!((claim.from, claim.end), (0, FIRST_PART));
    assert!(incoming.claim(4, 0).is_none());
    assert_eq!(incoming.answered(claim, true), incoming.blob.size);
    assert!(incoming.claim(4, 0).is_none());
    assert!(incoming.take_over(0).is_none());
    let end = incoming.arrive(claim, 0, &content).unwrap();
    assert_eq!(end, incoming.blob.size);
    assert!(incoming.is_over());
}

#[test]
fn memory_is_a_window_before_the_reader() {
    let content = content(40 << 20);
    let incoming = incoming(&content, None);
    let first = incoming.claim(4, 0).unwrap();
    incoming.answered(first, false);
    let mut end = first.end;
    while let Some(claim) = incoming.claim(4, 0) {
        assert_eq!(claim.from, end);
        end = claim.end;
    }
    assert!(end <= WINDOW && end > WINDOW - FIRST_PART, "{end}");
    incoming
        .arrive(first, 0, &content[..first.end as usize])
        .unwrap();
    assert!(matches!(
        incoming.wait(0, Duration::ZERO),
        Ok(Some(Available::Bytes(_)))
    ));
    assert!(incoming.claim(4, 0).is_some());
}

#[test]
fn parts_follow_the_rate_and_shrink_towards_the_end() {
    let blob = Blob {
        digest: Digest::of(b""),
        size: 1 << 30,
    };
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let incoming = enter(Incoming::new(blob, 0, Some(store)));
    let first = incoming.claim(10, 0).unwrap();
    incoming.answered(first, false);
    let length = |rate| {
        let claim = incoming.claim(10, rate).unwrap();
        claim.end - claim.from
    };
    assert_eq!(length(0), FIRST_PART);
    assert_eq!(length(10 << 20), 5 << 20);
    assert_eq!(length(1), SMALLEST_PART);
    assert_eq!(length(u64::MAX), LARGEST_PART);
    let (mut last, mut count) = (LARGEST_PART, 0);
    let mut end = 0;
    while let Some(claim) = incoming.claim(10, u64::MAX) {
        let length = claim.end - claim.from;
        assert!(
            length <= last || claim.end == blob.size,
            "{length} after {last}"
        );
        (last, end, count) = (length, claim.end, count + 1);
    }
    assert_eq!(end, blob.size);
    assert!(count < 100, "{count} requests");
}

#[test]
fn an_empty_blob_is_verified_too() {
    let good = incoming(b"", None);
    good.complete_empty().unwrap();
    assert!(matches!(
        good.wait(0, Duration::ZERO),
        Ok(Some(Available::End))
    ));
    let blob = Blob {
        digest: Digest::of(b"x"),
        size: 0,
    };
    assert!(Incoming::new(blob, 0, None).complete_empty().is_err());
}

fn stopped() -> Result<(), SourceError> {
    Err(RegistryError::Stopped.into())
}

#[test]
fn what_another_fetches_is_waited_for_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let content = content(9_000_000);
    for is_damaged in [false, true] {
        let first = incoming(&content, Some(Arc::clone(&store)));
        let second = incoming(&content, Some(Arc::clone(&store)));
        assert!(second.claim(4, 0).is_none());
        assert!(second.entry_time().is_some());
        assert!(bring(&first, &content, |_| 0));
        let path = store.blob_path(&first.blob.digest);
        if is_damaged {
            let mut wrong = content.clone();
            wrong[8_000_000] ^= 1;
            std::fs::write(&path, wrong).unwrap();
        }
        while !second.begin_entering() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(second.enter().is_err(), is_damaged);
        assert_eq!(path.exists(), !is_damaged);
        if !is_damaged {
            assert!(second.is_over());
            assert!(matches!(
                second.wait(0, Duration::ZERO),
                Ok(Some(Available::UpTo(9_000_000, _)))
            ));
            store.discard_blob(&first.blob.digest).unwrap();
        }
    }
}

#[test]
fn what_was_interrupted_is_gone_on_with_and_verified() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let content = content(23_456_789);
    let interrupted = || {
        let incoming = incoming(&content, Some(Arc::clone(&store)));
        let first = incoming.claim(4, 0).unwrap();
        incoming.answered(first, false);
        let second = incoming.claim(4, 0).unwrap();
        let third = incoming.claim(4, 0).unwrap();
        // The third is there, the second is not: what counts is what has no gap before it.
        for claim in [first, third] {
            let bytes = &content[claim.from as usize..claim.end as usize];
            incoming.arrive(claim, claim.from, bytes).unwrap();
        }
        incoming.finish(stopped());
        second.from
    };
    let from = interrupted();
    let incoming_again = incoming(&content, Some(Arc::clone(&store)));
    let claim = incoming_again.claim(4, 0).unwrap();
    assert_eq!(claim.from, from);
    incoming_again.answered(claim, false);
    let rest = |claim: Claim| &content[claim.from as usize..claim.end as usize];
    incoming_again
        .arrive(claim, claim.from, rest(claim))
        .unwrap();
    while let Some(claim) = incoming_again.claim(4, 0) {
        incoming_again
            .arrive(claim, claim.from, rest(claim))
            .unwrap();
    }
    assert!(incoming_again.is_over());
    let digest = incoming_again.blob.digest;
    assert_eq!(std::fs::read(store.blob_path(&digest)).unwrap(), content);
    // A part that is damaged is found in the end, and not gone on with another time.
    store.discard_blob(&digest).unwrap();
    let from = interrupted();
    let part = directory
        .path()
        .join(format!("blobs/sha256/.{}.part", digest.hex()));
    let mut wrong = content[..from as usize].to_vec();
    wrong[1000] ^= 1;
    std::fs::write(&part, wrong).unwrap();
    let damaged = incoming(&content, Some(Arc::clone(&store)));
    assert!(!bring(&damaged, &content, |_| 0));
    drop(damaged);
    let fresh = incoming(&content, Some(Arc::clone(&store)));
    assert_eq!(fresh.claim(4, 0).unwrap().from, 0);
}
