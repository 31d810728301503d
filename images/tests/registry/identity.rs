//! Identity tokens, redirects of token services, and when credentials are looked for at all.

use std::error::Error;
use std::sync::{Arc, Mutex};

use cista_images::cancel::Cancel;
use cista_images::registry::{
    self, Credential, Credentials, Fixed, Secret, Wanted, Welcome, check_login,
};
use cista_images::source;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{BASIC, Reply, Server, quick, with_credential};

const TOKEN: &str = "badge/1+2=&";
const TOKEN_ENCODED: &str = "refresh_token=badge%2F1%2B2%3D%26";

fn with_identity_token(registry: &str) -> registry::Settings {
    registry::Settings {
        credentials: Arc::new(Fixed {
            registry: registry.to_owned(),
            credential: Credential::IdentityToken(Secret::new(TOKEN)),
        }),
        ..quick()
    }
}

/// A registry that takes the token `good` of a realm.
fn registry_of(image: &Image, realm: &str) -> Server {
    let challenge = format!(r#"Bearer realm="{realm}",service="the registry""#);
    Server::of(image, move |request, reply| {
        if request.header("authorization") == Some("Bearer good") {
            reply
        } else {
            Reply::status(401).with("www-authenticate", challenge.clone())
        }
    })
}

fn good() -> Reply {
    Reply::body(r#"{"access_token":"good","expires_in":300}"#)
}

/// A server that answers all requests alike.
fn always(host: &str, reply: impl Fn() -> Reply + Send + Sync + 'static) -> Server {
    Server::start(host, move |_| reply(), |_, reply| reply)
}

fn realm_of(service: &Server) -> String {
    format!("http://{}/token", service.address)
}

#[test]
fn identity_tokens_are_posted_to_the_token_service_alone() {
    let image = Image::small();
    let service = Server::start(
        "127.0.0.1",
        |request| {
            let is_right = request.method == "POST"
                && request.header("content-type") == Some("application/x-www-form-urlencoded")
                && request.body.contains("grant_type=refresh_token&")
                && request.body.contains("service=the%20registry&")
                && request.body.contains("scope=repository%3Aimage%3Apull&")
                && request.body.contains(TOKEN_ENCODED);
            if is_right { good() } else { Reply::status(401) }
        },
        |_, reply| reply,
    );
    let server = registry_of(&image, &realm_of(&service));
    let settings = with_identity_token(&server.address);
    let (resolved, layers) =
        pull(server.source(settings, None).as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(service.requests().len(), 1);
    assert_eq!(service.requests()[0].path, "/token", "nothing in the URL");
    for request in server.requests() {
        assert!(!format!("{request:?}").contains("badge"), "{request:?}");
    }
}

#[test]
fn expired_identity_tokens_are_a_clear_refusal() {
    let image = Image::small();
    for status in [400, 401] {
        let service = always("127.0.0.1", move || Reply::status(status));
        let server = registry_of(&image, &realm_of(&service));
        let source = server.source(with_identity_token(&server.address), None);
        let error = resolve(source.as_ref()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("identity token of an earlier login"),
            "{text}"
        );
        assert!(!format!("{error:?}").contains("badge/1"), "{error:?}");
        assert!(source::hint(&error).unwrap().contains("cista login"));
    }
}

#[test]
fn identity_tokens_are_never_shown_to_others() {
    let image = Image::small();
    // A token service that is not the registry's own.
    let foreign = always("127.0.0.2", good);
    let server = registry_of(&image, &realm_of(&foreign));
    pull(
        server
            .source(with_identity_token(&server.address), None)
            .as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    // Its own that sends us on: the form stays here.
    let target = realm_of(&foreign);
    let own = always("127.0.0.1", move || {
        Reply::status(307).with("location", target.clone())
    });
    let server = registry_of(&image, &realm_of(&own));
    let source = server.source(with_identity_token(&server.address), None);
    resolve(source.as_ref()).unwrap_err();
    assert!(own.requests()[0].body.contains(TOKEN_ENCODED));
    // One that wants Basic, which knows no such tokens.
    let basic = Server::of(&image, |_, _| {
        Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
    });
    let source = basic.source(with_identity_token(&basic.address), None);
    resolve(source.as_ref()).unwrap_err();
    for request in foreign.requests().iter().chain(&basic.requests()) {
        assert!(!format!("{request:?}").contains("badge"), "{request:?}");
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn a_token_service_that_redirects_takes_the_password_no_further() {
    let image = Image::small();
    for (host, is_own) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        let behind = always(host, good);
        let target = realm_of(&behind);
        let front = always("127.0.0.1", move || {
            Reply::status(302).with("location", target.clone())
        });
        let server = registry_of(&image, &realm_of(&front));
        // The login of the registry alone, then one for where it leads.
        for (known, shown) in [(&server.address, false), (&behind.address, is_own)] {
            behind.forget_requests();
            let source = server.source(with_credential(known), None);
            pull(source.as_ref(), &Recorder::default()).unwrap();
            let header = behind.requests()[0]
                .header("authorization")
                .map(str::to_owned);
            assert_eq!(header, shown.then(|| BASIC.to_owned()), "{host} {known}");
        }
    }
    // In circles.
    let circle = always("127.0.0.1", || {
        Reply::status(302).with("location", "/token")
    });
    let server = registry_of(&image, &realm_of(&circle));
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("without end"), "{error}");
    assert!(circle.requests().len() < 10);
}

/// Remembers what it was asked.
#[derive(Debug, Default)]
struct Asked(Mutex<Vec<String>>);

impl Credentials for Asked {
    fn lookup(
        &self,
        wanted: Wanted<'_>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
        let kind = if wanted.token_service {
            "service"
        } else {
            "registry"
        };
        let port = wanted.server.rsplit(':').next().unwrap_or_default();
        self.0
            .lock()
            .unwrap()
            .push(format!("{kind} {port} {}", wanted.repository));
        Ok(None)
    }
}

#[test]
fn credentials_are_looked_for_when_a_registry_asks_and_once() {
    let image = Image::small();
    let port = |server: &Server| server.address.rsplit(':').next().unwrap().to_owned();
    let asked = Arc::new(Asked::default());
    let settings = registry::Settings {
        credentials: Arc::<Asked>::clone(&asked),
        ..quick()
    };
    let public = Server::of(&image, |_, reply| reply);
    pull(
        public.source(settings.clone(), None).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    assert_eq!(*asked.0.lock().unwrap(), Vec::<String>::new());

    let service = always("127.0.0.1", good);
    let server = registry_of(&image, &realm_of(&service));
    pull(server.source(settings, None).as_ref(), &Recorder::default()).unwrap();
    assert_eq!(
        *asked.0.lock().unwrap(),
        [
            format!("registry {} image", port(&server)),
            format!("service {} image", port(&service)),
        ]
    );
}

#[test]
fn logins_are_tried_without_a_repository() {
    let image = Image::small();
    let service = Server::start(
        "127.0.0.1",
        |request| {
            let is_right = request.header("authorization") == Some(BASIC)
                && request.path == "/token?service=the%20registry";
            if is_right { good() } else { Reply::status(401) }
        },
        |_, reply| reply,
    );
    let server = Server::start(
        "127.0.0.1",
        {
            let challenge = format!(
                r#"Bearer realm="{}",service="the registry""#,
                realm_of(&service)
            );
            move |request| match request.header("authorization") {
                Some("Bearer good") if request.path == "/v2/" => Reply::body("{}"),
                _ => Reply::status(401).with("www-authenticate", challenge.clone()),
            }
        },
        |_, reply| reply,
    );
    let cancel = Cancel::new();
    let right = with_credential(&server.address);
    let welcome = check_login(&server.address, Some("me"), right, &cancel).unwrap();
    assert_eq!(welcome, Welcome::Accepted);
    let wrong = registry::Settings {
        credentials: Arc::new(Fixed {
            registry: server.address.clone(),
            credential: Credential::login("me", "wrong"),
        }),
        ..quick()
    };
    let error = check_login(&server.address, Some("me"), wrong, &cancel).unwrap_err();
    assert!(error.to_string().contains("denied to user `me`"), "{error}");

    let open = Server::start("127.0.0.1", |_| Reply::body("{}"), |_, reply| reply);
    let settings = with_credential(&open.address);
    let welcome = check_login(&open.address, Some("me"), settings, &cancel).unwrap();
    assert_eq!(welcome, Welcome::NotAsked);

    let no_registry = Server::of(&image, |_, _| Reply::status(404));
    let settings = with_credential(&no_registry.address);
    let error = check_login(&no_registry.address, Some("me"), settings, &cancel).unwrap_err();
    assert!(
        error.to_string().contains("not a container registry"),
        "{error}"
    );
}
