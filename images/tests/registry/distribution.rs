//! Against a real registry: Debian's `docker-registry`, filled by skopeo.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cista_images::registry;
use cista_images::source;
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, index, pull, resolve, write_layout};
use crate::server::{open, quick, with_credential};
use crate::tools::{have, skopeo_copy, text};

/// `me` with the password `hunter2`.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

struct Registry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Registry {
    fn start(with_password: bool) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), with_password, "")
    }

    /// Starts with more settings of `http`, whose files are in the directory.
    fn start_in(directory: tempfile::TempDir, with_password: bool, http: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: \"{address}\"{http}}}\n",
            directory.path().display()
        );
        if with_password {
            std::fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: tests, path: {}/htpasswd}}}}\n",
                directory.path().display()
            ));
        }
        let path = directory.path().join("config.yml");
        std::fs::File::create(&path)
            .unwrap()
            .write_all(config.as_bytes())
            .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "docker-registry does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            address,
            directory,
        }
    }

    /// Puts an image there as `team/image:1`.
    fn fill(&self, images: &[&Image], layout_index: &[u8], options: &[&str]) {
        let layout = self.directory.path().join("layout");
        write_layout(&layout, images, layout_index);
        skopeo_copy(
            &format!("oci:{}", text(&layout)),
            &format!("docker://{}/team/image:1", self.address),
            options,
        );
    }

    fn reference(&self) -> String {
        format!("docker://{}/team/image:1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TOOLS: [&str; 2] = ["docker-registry", "skopeo"];

#[test]
fn an_image_without_password() {
    if !have("an_image_without_password", &TOOLS) {
        return;
    }
    let image = Image::small();
    let registry = Registry::start(false);
    registry.fill(&[&image], &index(&[image.entry(None, None)]), &[]);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    for store in [None, Some(&store), Some(&store)] {
        let source = open(&registry.reference(), quick(), store);
        let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
        check(&image, &resolved, &layers);
    }
    let missing = format!("docker://{}/team/image:2", registry.address);
    let error = resolve(open(&missing, quick(), Some(&store)).as_ref()).unwrap_err();
    assert!(error.to_string().contains("no image `2`"), "{error}");
    let missing = format!("docker://{}/other", registry.address);
    let error = resolve(open(&missing, quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("no image `latest`"), "{error}");
}

#[test]
fn an_image_with_password() {
    if !have("an_image_with_password", &TOOLS) {
        return;
    }
    let image = Image::small();
    let registry = Registry::start(true);
    let entries = index(&[image.entry(None, None)]);
    registry.fill(&[&image], &entries, &["--dest-creds=me:hunter2"]);
    let settings = with_credential(&registry.address);
    let source = open(&registry.reference(), settings, None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);

    let error = resolve(open(&registry.reference(), quick(), None).as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("denied without credentials"),
        "{error}"
    );
    assert!(source::hint(&error).is_some());
}

#[test]
fn an_image_with_password_over_tls() {
    let test = "an_image_with_password_over_tls";
    if !have(test, &["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    crate::tls::make_certificate(directory.path());
    let tls = format!(
        ", tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}",
        directory.path().display()
    );
    let registry = Registry::start_in(directory, true, &tls);
    let image = Image::small();
    let entries = index(&[image.entry(None, None)]);
    registry.fill(&[&image], &entries, &["--dest-creds=me:hunter2"]);
    let settings = registry::Settings {
        ca_file: Some(registry.directory.path().join("cert.pem")),
        ..with_credential(&registry.address)
    };
    let source = open(&registry.reference(), settings, None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    // A certificate that is not trusted is no reason to do without TLS.
    let settings = registry::Settings {
        allow_http: true,
        ..with_credential(&registry.address)
    };
    let error = resolve(open(&registry.reference(), settings, None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("secure connection"), "{error}");
}

#[test]
fn an_index_of_two_platforms() {
    if !have("an_index_of_two_platforms", &TOOLS) {
        return;
    }
    let (amd, arm) = (Image::small(), Image::new("arm64", &[500]));
    let registry = Registry::start(false);
    let nested = index(&[
        arm.entry(Some("arm64"), None),
        amd.entry(Some("amd64"), None),
    ]);
    let mut both = amd.clone();
    let digest = cista_images::digest::Digest::of(&nested);
    let top = index(&[serde_json::json!({
        "mediaType": crate::image::OCI_INDEX,
        "digest": digest.to_string(),
        "size": nested.len(),
    })]);
    both.blobs.insert(digest, nested);
    registry.fill(&[&both, &arm], &top, &["--all"]);
    let source = open(&registry.reference(), quick(), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&amd, &resolved, &layers);
}

#[test]
fn an_image_in_dockers_format() {
    if !have("an_image_in_dockers_format", &TOOLS) {
        return;
    }
    let image = Image::small();
    let registry = Registry::start(false);
    registry.fill(
        &[&image],
        &index(&[image.entry(None, None)]),
        &["--format=v2s2"],
    );
    let source = open(&registry.reference(), quick(), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    let digests: Vec<_> = layers
        .iter()
        .map(|layer| cista_images::digest::Digest::of(layer))
        .collect();
    assert_eq!(digests, image.layers);
    assert_eq!(resolved.layers[0].diff_id, Some(image.diff_ids[0]));
}
