//! Everything that can go wrong on the way, at once and at random: a hundred pulls, each from a seed.
//!
//! Every answer may be cut at any byte, be late, fall silent, or be a refusal that passes; tokens are good for a few requests. All pulls
//! succeed, and what had come is not asked for again. Where a byte is wrong, the pull fails, and says which blob it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cista_images::digest::Digest;
use cista_images::registry;
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, noise, pull};
use crate::server::{Reply, Request, Server, quick};

const SEEDS: u64 = 100;

/// Repeatable chance, as far as the order of requests is.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        let bytes = noise(self.0, 8);
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        let number = bytes
            .iter()
            .fold(0, |number: usize, byte| number << 7 ^ usize::from(*byte));
        number % sides
    }
}

/// What a seed decides for a whole pull.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Requests that a token is good for; None where no token is wanted.
    token_uses: Option<usize>,
    /// The layer that has a wrong byte.
    wrong: Option<usize>,
    connections: usize,
    with_store: bool,
}

impl Plan {
    fn of(seed: u64, layers: usize) -> (Self, Dice) {
        let mut dice = Dice(seed + 1);
        let plan = Self {
            token_uses: (dice.roll(2) == 0).then(|| 2 + dice.roll(20)),
            wrong: (dice.roll(8) == 0).then(|| dice.roll(layers)),
            connections: 1 + dice.roll(10),
            with_store: dice.roll(2) == 0,
        };
        (plan, dice)
    }
}

/// A registry in which everything happens, and the bytes of blobs that it has sent.
fn hostile_registry(
    image: &Image,
    plan: Plan,
    dice: Dice,
    realm: &str,
) -> (Server, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, dice) = (Arc::clone(&sent), Mutex::new(dice));
    let uses = Mutex::new(HashMap::<String, usize>::new());
    let challenge = format!(r#"Bearer realm="http://{realm}/token""#);
    let (layers, config) = (image.layers.clone(), image.config);
    let server = Server::of(image, move |request, mut reply| {
        if let Some(most) = plan.token_uses {
            let token = request.header("authorization").unwrap_or_default();
            let mut uses = uses.lock().unwrap();
            let used = uses.entry(token.to_owned()).or_default();
            *used += 1;
            if token.is_empty() || *used > most {
                return Reply::status(401).with("www-authenticate", challenge.clone());
            }
        }
        let mut dice = dice.lock().unwrap();
        match dice.roll(24) {
            0 | 1 => return Reply::status([500, 502, 503, 504, 408][dice.roll(5)]),
            2 => return Reply::status(429).with("retry-after", "0"),
            3..=9 if !reply.body.is_empty() => reply.cut = Some(dice.roll(reply.body.len())),
            10..=12 => reply.drip = Some(Duration::from_micros(500)),
            13..=15 if reply.body.len() < 1 << 20 => reply.endless = true,
            16 if dice.roll(4) == 0 => reply.hang = Some(dice.roll(reply.body.len().max(1))),
            _ => {}
        }
        let digest = blob_of(request);
        if let (Some(wrong), Some(digest)) = (plan.wrong, digest)
            && layers[wrong] == digest
        {
            // The same byte, in whichever part it comes.
            let (first, at) = (request.from(), 60_usize);
            if let Some(byte) = at.checked_sub(first).and_then(|at| reply.body.get_mut(at)) {
                *byte ^= 1;
            }
        }
        // Configs are begun anew, which costs a few hundred bytes.
        if digest.is_some_and(|digest| digest != config) {
            let bytes = reply.cut.or(reply.hang).unwrap_or(reply.body.len());
            counted.fetch_add(bytes, Ordering::SeqCst);
        }
        reply
    });
    (server, sent)
}

fn blob_of(request: &Request) -> Option<Digest> {
    request.path.rsplit_once("/blobs/")?.1.parse().ok()
}

fn pull_from_seed(image: &Image, seed: u64, realm: &str) -> Result<(), String> {
    let size: usize = image
        .layers
        .iter()
        .map(|layer| image.blob(*layer).len())
        .sum();
    let (plan, dice) = Plan::of(seed, image.layers.len());
    let (server, sent) = hostile_registry(image, plan, dice, realm);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let settings = registry::Settings {
        retries: 20,
        retry_delay: Duration::from_millis(1),
        idle_timeout: Duration::from_millis(300),
        max_connections: plan.connections,
        ..quick()
    };
    let source = server.source(settings, plan.with_store.then_some(&store));
    let outcome = pull(source.as_ref(), &Recorder::default());
    let told = |what: String| Err(format!("{plan:?}: {what}"));
    match (outcome, plan.wrong) {
        (Ok((resolved, layers)), None) => check(image, &resolved, &layers),
        (Ok(_), Some(_)) => return told("a wrong byte was not found".to_owned()),
        (Err(error), None) => return told(error),
        (Err(error), Some(wrong)) => {
            let digest = image.layers[wrong];
            let is_right = error.contains("corrupt") && error.contains(&digest.to_string());
            if !is_right {
                return told(format!("the wrong error: {error}"));
            }
            if store.blob(&digest).unwrap().is_some() {
                return told("a wrong blob was kept".to_owned());
            }
        }
    }
    let sent = sent.load(Ordering::SeqCst);
    if sent > size + size / 20 {
        return told(format!("{sent} bytes were sent for {size}"));
    }
    Ok(())
}

#[test]
fn a_hundred_pulls_survive_whatever_passes() {
    let image = Image::new("amd64", &[3 << 20, 300_000, 1, 40_000, 7 << 20]);
    let count = AtomicUsize::new(0);
    let service = Server::start(
        "127.0.0.1",
        move |_| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            Reply::body(format!(r#"{{"token":"token-{number}"}}"#))
        },
        |_, reply| reply,
    );
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst) as u64;
                    if seed >= SEEDS {
                        return;
                    }
                    if let Err(error) = pull_from_seed(&image, seed, &service.address) {
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("seed {seed}: {error}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
