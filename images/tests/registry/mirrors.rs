//! Mirrors: who is asked, in which order, with whose login, and what happens when one fails or lies.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cista_images::registry::{
    self, Access, Credential, Credentials, Location, Mirror, Observer, RegistryError, Routes, Rule,
    Serves, Wanted,
};

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{BASIC, Reply, Server, open, quick};

fn rule(prefix: &str, mirrors: &[&str]) -> Rule {
    Rule {
        prefix: prefix.parse().unwrap(),
        location: None,
        mirrors: mirrors
            .iter()
            .map(|location| Mirror {
                location: location.parse().unwrap(),
                access: Access::default(),
                serves: Serves::All,
            })
            .collect(),
        blocked: false,
        access: Access::default(),
    }
}

/// Remembers the mirrors that were given up.
#[derive(Debug, Default)]
struct Failures(Mutex<Vec<String>>);

impl Observer for Failures {
    fn mirror_failed(&self, mirror: &str, _: &RegistryError) {
        self.0.lock().unwrap().push(mirror.to_owned());
    }
}

fn with(rules: Vec<Rule>) -> (registry::Settings, Arc<Failures>) {
    let failures = Arc::new(Failures::default());
    let settings = registry::Settings {
        routes: Arc::new(Routes {
            groups: vec![rules],
        }),
        observer: Arc::<Failures>::clone(&failures),
        retry_delay: std::time::Duration::from_millis(1),
        ..quick()
    };
    (settings, failures)
}

fn pull_well(image: &Image, reference: &str, settings: registry::Settings) {
    let source = open(reference, settings, None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(image, &resolved, &layers);
    assert!(
        resolved.reference.contains("far.example/image:1"),
        "{}",
        resolved.reference
    );
}

/// A registry that nobody can reach, by a name that is not looked up.
const FAR: &str = "docker://far.example/image:1";

#[test]
fn a_mirror_serves_what_cannot_be_reached() {
    let image = Image::small();
    let mirror = Server::of(&image, |_, reply| reply);
    let (settings, failures) = with(vec![rule("far.example", &[&mirror.address])]);
    pull_well(&image, FAR, settings);
    assert_eq!(*failures.0.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn the_next_place_is_asked_when_a_mirror_fails() {
    let image = Image::small();
    let good = Server::of(&image, |_, reply| reply);
    for (status, asked_once) in [
        (404, false),
        (500, false),
        (401, true),
        (403, true),
        (429, false),
    ] {
        let bad = Server::of(&image, move |_, _| Reply::status(status));
        let (settings, failures) = with(vec![rule("far.example", &[&bad.address, &good.address])]);
        pull_well(&image, FAR, settings);
        let requests = bad.requests().len();
        assert!(requests > 0);
        assert_eq!(requests == 1, asked_once, "{status}: {requests}");
        let given_up = failures.0.lock().unwrap().len();
        let too_often = status != 404 && requests >= 5;
        assert_eq!(given_up, usize::from(asked_once || too_often), "{status}");
    }
    // A port where nobody listens: asked once, and told.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (settings, failures) = with(vec![rule("far.example", &[&closed, &good.address])]);
    pull_well(&image, FAR, settings);
    assert_eq!(*failures.0.lock().unwrap(), [format!("{closed}/image")]);
}

#[test]
fn what_a_mirror_lacks_comes_from_the_registry() {
    let image = Image::small();
    let layer = image.layers[0].to_string();
    let lacking = Server::of(&image, move |request, reply| {
        if request.path.contains(&layer) {
            Reply::status(404)
        } else {
            reply
        }
    });
    let server = Server::of(&image, |_, reply| reply);
    let (settings, _) = with(vec![rule(&server.address, &[&lacking.address])]);
    let source = server.source(settings, None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(server.requests().len(), 1, "{:?}", server.requests());
    assert!(resolved.reference.contains(&server.address));
}

#[test]
fn a_mirror_that_lies_is_found_out() {
    let image = Image::small();
    let lying = Server::of(&image, |request, reply| {
        if request.method == "GET" && request.path.contains("manifests/sha256") {
            Reply::body("{}").with("content-type", "application/json")
        } else {
            reply
        }
    });
    let server = Server::of(&image, |_, reply| reply);
    let (settings, failures) = with(vec![rule(&server.address, &[&lying.address])]);
    let digest = image.manifest;
    let reference = format!("docker://{}/image@{digest}", server.address);
    let resolved = resolve(open(&reference, settings, None).as_ref()).unwrap();
    assert_eq!(resolved.digest, Some(digest));
    assert_eq!(failures.0.lock().unwrap().len(), 1);
    assert!(lying.requests().len() == 1, "it is not asked again");
}

#[test]
fn a_mirror_that_cuts_is_left_in_the_end() {
    let image = Image::new("amd64", &[300_000]);
    let cutting = Server::of(&image, |request, mut reply| {
        if request.is_blob() && reply.body.len() > 10_000 {
            reply.cut = Some(0);
        }
        reply
    });
    let server = Server::of(&image, |_, reply| reply);
    let (settings, failures) = with(vec![rule(&server.address, &[&cutting.address])]);
    let source = server.source(settings, None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(failures.0.lock().unwrap().len(), 1);
}

/// A login for each of some servers.
#[derive(Debug)]
struct Logins(Vec<String>);

impl Credentials for Logins {
    fn lookup(
        &self,
        wanted: Wanted<'_>,
    ) -> Result<Option<Credential>, Box<dyn std::error::Error + Send + Sync>> {
        let known = self.0.iter().any(|server| server == wanted.server);
        // The user of a reference is one of the registry, not of its mirrors.
        assert_eq!(wanted.user.is_some(), wanted.server == "far.example");
        Ok(known.then(|| Credential::login("me", "hunter2")))
    }
}

#[test]
fn mirrors_get_their_own_logins_alone() {
    let image = Image::small();
    let basic = |_: &Image| {
        Server::of(&Image::small(), |request, reply| {
            if request.header("authorization") == Some(BASIC) {
                reply
            } else {
                Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
            }
        })
    };
    let (first, second) = (basic(&image), basic(&image));
    let (mut settings, _) = with(vec![rule(
        "far.example",
        &[&first.address, &second.address],
    )]);
    settings.credentials = Arc::new(Logins(vec![
        "far.example".to_owned(),
        second.address.clone(),
    ]));
    pull_well(&image, "docker://me@far.example/image:1", settings);
    assert!(
        first
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(second.requests().len() > 3);
}

#[test]
fn other_places_and_paths() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    // The whole of a registry is somewhere else, under another name.
    let mut moved = rule("far.example/team/x", &[]);
    moved.location = Some(
        format!("{}/image", server.address)
            .parse::<Location>()
            .unwrap(),
    );
    let (settings, _) = with(vec![moved]);
    resolve(open("docker://far.example/team/x:1", settings.clone(), None).as_ref()).unwrap();
    assert!(server.count("GET", "/v2/image/manifests/") > 0);

    let mut blocked = rule("far.example", &[&server.address]);
    blocked.blocked = true;
    let (settings, _) = with(vec![blocked]);
    let reference = FAR.parse().unwrap();
    let settings = cista_images::source::Settings {
        registry: settings,
        ..Default::default()
    };
    let error = cista_images::source::open(&reference, &settings)
        .err()
        .unwrap();
    assert!(error.to_string().contains("blocked"), "{error}");
}

#[test]
fn a_rate_is_kept() {
    let image = Image::new("amd64", &[400_000]);
    let server = Server::of(&image, |_, reply| reply);
    let mut slow = rule(&server.address, &[]);
    slow.access.max_rate = Some(1_000_000);
    let (settings, _) = with(vec![slow]);
    let started = Instant::now();
    let source = server.source(settings, None);
    pull(source.as_ref(), &Recorder::default()).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds > 0.35, "{seconds}");
}
