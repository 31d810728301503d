//! Other people's opinions on our images: every reader of squashfs has to find in them exactly what GNU tar and umoci
//! extract from the layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::TestEnvironment;
use cista_tests::error::{HarnessError, IoContext as _};
use cista_tests::extract::extract;
use cista_tests::image::{LayoutWriter, Packing, Recipe, RunConfig};
use cista_tests::listing::{Content, Entry, Listing, Xattrs, hash_of};
use cista_tests::program::Program;

/// What an import adds to an image: enroot's files, and our own record.
const ADDED: &[&str] = &[
    ".cista",
    "etc/rc",
    "etc/rc.local",
    "etc/fstab",
    "etc/environment",
];
/// The directories that it adds them to.
const TOUCHED: &[&str] = &["", "etc"];

/// What was found to be in images, since several tests ask for the same.
static EXPECTED: Mutex<BTreeMap<Recipe, Listing>> = Mutex::new(BTreeMap::new());

/// What has to be in the image of a recipe.
fn expected(environment: &TestEnvironment<'_>, recipe: Recipe) -> Result<Listing, HarnessError> {
    let mut known = EXPECTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(listing) = known.get(&recipe) {
        return Ok(listing.clone());
    }
    let image = environment.session().images().get(recipe)?;
    let extracted = extract(&image.layout, &environment.path("extracted"))?;
    let listing = comparable(extracted.listing()?.as_imported());
    known.insert(recipe, listing.clone());
    Ok(listing)
}

fn comparable(listing: Listing) -> Listing {
    listing.without(ADDED).without_times_of(TOUCHED)
}

#[track_caller]
fn assert_same(expected: &Listing, found: &Listing, who: &str) {
    assert!(
        expected.len() > 100,
        "too little to compare: {}",
        expected.len()
    );
    let differences = expected.differences(found);
    assert!(differences.is_empty(), "expected | {who}: {differences:#?}");
}

/// Two extractions that know nothing of each other have to agree, before either judges our images.
fn umoci_agrees_with_our_oracle(environment: &TestEnvironment<'_>) -> TestResult {
    let recipe = Recipe::Odd(Packing::Gzip);
    let image = environment.session().images().get(recipe)?;
    let root = environment.path("layout");
    let mut layout = LayoutWriter::create(&root)?;
    // The topmost layer holds what umoci does not know.
    let layers = &image.layout.manifest.layers;
    for layer in &layers[..layers.len() - 1] {
        layout.borrow(&image.layout, layer)?;
    }
    let layout = layout.finish("1", &RunConfig::default())?;
    let ours = extract(&layout, &environment.path("extracted"))?.listing()?;
    Program::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:1", root.display()))
        .arg(environment.path("bundle"))
        .check()?;
    let theirs = Listing::of_directory(&environment.path("bundle/rootfs"))?;
    // umoci leaves the times of directories as they fall.
    let without_directory_times = |listing: Listing| {
        listing.map(|_, entry| {
            if entry.content == Content::Directory {
                entry.mtime = None;
            }
        })
    };
    assert_same(
        &without_directory_times(ours),
        &without_directory_times(theirs),
        "umoci",
    );
    Ok(())
}

fn unsquashfs_reads(environment: &TestEnvironment<'_>, recipe: Recipe) -> TestResult {
    let expected = expected(environment, recipe)?;
    let image = environment.session().imported(recipe)?;
    let out = environment.path("out");
    Program::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-strict-errors", "-dest"])
        .arg(&out)
        .arg(image)
        .check()?;
    assert_same(
        &expected,
        &comparable(Listing::of_directory(&out)?),
        "unsquashfs",
    );
    Ok(())
}

fn unsquashfs_reads_odd_images(environment: &TestEnvironment<'_>) -> TestResult {
    unsquashfs_reads(environment, Recipe::Odd(Packing::Gzip))
}

fn unsquashfs_reads_odd_images_of_zstd_layers(environment: &TestEnvironment<'_>) -> TestResult {
    unsquashfs_reads(environment, Recipe::Odd(Packing::Zstd))
}

fn unsquashfs_reads_odd_images_of_mixed_layers(environment: &TestEnvironment<'_>) -> TestResult {
    unsquashfs_reads(environment, Recipe::Odd(Packing::Mixed))
}

fn unsquashfs_reads_python(environment: &TestEnvironment<'_>) -> TestResult {
    unsquashfs_reads(environment, Recipe::Python(Packing::Gzip))
}

/// A mount of a test, gone when this is dropped.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Program::new("umount").arg(self.0).check();
    }
}

fn a_mount_reads(
    environment: &TestEnvironment<'_>,
    recipe: Recipe,
    mount: &[&str],
    sees: fn(Listing) -> Listing,
) -> TestResult {
    let expected = sees(expected(environment, recipe)?);
    let image = environment.session().imported(recipe)?;
    let place = environment.directory("mounted")?;
    Program::new(mount[0])
        .args(&mount[1..])
        .arg(&image)
        .arg(&place)
        .check()?;
    let mounted = Mount(&place);
    let found = Listing::of_directory(&place)?;
    drop(mounted);
    assert_same(&expected, &sees(comparable(found)), mount[0]);
    Ok(())
}

const KERNEL_MOUNT: &[&str] = &["mount", "-t", "squashfs", "-o", "loop,ro"];

fn the_kernel_reads_odd_images(environment: &TestEnvironment<'_>) -> TestResult {
    a_mount_reads(
        environment,
        Recipe::Odd(Packing::Gzip),
        KERNEL_MOUNT,
        |all| all,
    )
}

fn the_kernel_reads_python(environment: &TestEnvironment<'_>) -> TestResult {
    a_mount_reads(
        environment,
        Recipe::Python(Packing::Gzip),
        KERNEL_MOUNT,
        |all| all,
    )
}

/// Squashfuse tells one link for every file, and takes `security.` attributes for `trusted.` ones.
fn squashfuse_reads_odd_images(environment: &TestEnvironment<'_>) -> TestResult {
    a_mount_reads(
        environment,
        Recipe::Odd(Packing::Gzip),
        &["squashfuse"],
        |all| {
            all.map(|_, entry| {
                entry.linked_to = None;
                entry.nlink = None;
                entry.xattrs.retain(|name, _| name.starts_with(b"user."));
            })
        },
    )
}

/// GNU tar in a container reads the image through our own FUSE server, and the overlayfs above it.
fn a_container_reads_odd_images(environment: &TestEnvironment<'_>) -> TestResult {
    container_reads(environment, "fuse")
}

fn an_unpacked_container_reads_odd_images(environment: &TestEnvironment<'_>) -> TestResult {
    container_reads(environment, "unpack")
}

fn container_reads(environment: &TestEnvironment<'_>, mount: &str) -> TestResult {
    let recipe = Recipe::Odd(Packing::Gzip);
    let image = environment.session().imported(recipe)?;
    // What a container is given: mounts, and files about users and the network.
    let given: &[&str] = &[
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "var/run",
        "var/lock",
        "etc/passwd",
        "etc/group",
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "etc/machine-id",
        "etc/localtime",
        // What /etc/localtime leads to.
        "usr/share/zoneinfo/Etc/UTC",
        "etc/apt",
        "home",
        "root",
    ];
    let outcome = environment
        .cista(["start", "-r"])
        .arg(&image)
        .args([
            "tar",
            "--create",
            "--sort=name",
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
        ])
        .args([
            "--anchored",
            "--exclude=./proc",
            "--exclude=./sys",
            "--exclude=./dev",
            "--exclude=./tmp",
        ])
        .args(["--directory=/", "."])
        .env("CISTA_MOUNT", mount)
        .check()?;
    let found = Listing::of_tar(outcome.stdout.as_slice(), "the tar stream of the container")?;
    let clean = |listing: Listing| {
        comparable(listing).without(given).map(|path, entry| {
            // Of a mount in a user namespace, only the attributes of users are seen.
            entry.xattrs.retain(|name, _| name.starts_with(b"user."));
            // Mount points were made in these.
            if matches!(path, b"var" | b"run") {
                entry.mtime = None;
            }
        })
    };
    // The oracle's tree comes from root's own extraction, which this test's user cannot make.
    let expected = clean(expected(environment, recipe)?);
    assert_same(&expected, &clean(found), "the container");
    Ok(())
}

/// backhand, an independent implementation in Rust. It reads no extended attributes, tells no hard links, and refuses symbolic
/// links to more than 255 bytes, which the odd image has.
fn backhand_reads_python(environment: &TestEnvironment<'_>) -> TestResult {
    let recipe = Recipe::Python(Packing::Gzip);
    let blind = |listing: Listing| {
        comparable(listing).map(|_, entry| {
            entry.xattrs = Xattrs::new();
            entry.linked_to = None;
            entry.nlink = None;
        })
    };
    let expected = blind(expected(environment, recipe)?);
    let image = environment.session().imported(recipe)?;
    let found = blind(through_backhand(&image)?);
    assert_same(&expected, &found, "backhand");
    Ok(())
}

fn through_backhand(image: &Path) -> Result<Listing, HarnessError> {
    use backhand::{FilesystemReader, InnerNode};
    use std::os::unix::ffi::OsStrExt as _;
    let file = std::fs::File::open(image).context("open", image)?;
    let malformed = |error: backhand::BackhandError| HarnessError::Malformed {
        what: image.display().to_string(),
        why: format!("{error:?}"),
    };
    let reader = FilesystemReader::from_reader(std::io::BufReader::new(file)).map_err(malformed)?;
    let mut entries = BTreeMap::new();
    for node in reader.files() {
        let content = match &node.inner {
            InnerNode::Dir(_) => Content::Directory,
            InnerNode::File(file) => {
                let mut stream = reader.file(file).reader();
                let (size, hash) = hash_of(&mut stream).context("read", &node.fullpath)?;
                Content::File(size, hash)
            }
            InnerNode::Symlink(link) => Content::Symlink(link.link.as_os_str().as_bytes().to_vec()),
            InnerNode::NamedPipe => Content::Fifo,
            InnerNode::Socket => Content::Socket,
            InnerNode::CharacterDevice(_) | InnerNode::BlockDevice(_) => Content::Device,
        };
        let path = node.fullpath.strip_prefix("/").unwrap_or(&node.fullpath);
        entries.insert(
            path.as_os_str().as_bytes().to_vec(),
            Entry {
                content,
                mode: u32::from(node.header.permissions) & 0o7777,
                mtime: Some(i64::from(node.header.mtime)),
                xattrs: Xattrs::new(),
                linked_to: None,
                nlink: None,
            },
        );
    }
    Ok(Listing { entries })
}

/// The oracle itself needs root: devices, owners and attributes of the image are only root's to make.
const ODD_MIXED: &[Need] = &[
    Need::Root,
    Need::Image(Recipe::Odd(Packing::Mixed)),
    Need::Program("unsquashfs"),
];
const ODD_ZSTD: &[Need] = &[
    Need::Root,
    Need::Image(Recipe::Odd(Packing::Zstd)),
    Need::Program("unsquashfs"),
];
const ODD_UNSQUASHFS: &[Need] = &[
    Need::Root,
    Need::Image(Recipe::Odd(Packing::Gzip)),
    Need::Program("unsquashfs"),
];
const PYTHON: &[Need] = &[
    Need::Root,
    Need::Image(Recipe::Python(Packing::Gzip)),
    Need::Program("unsquashfs"),
];
const ODD_CONTAINER: &[Need] = &[
    Need::Root,
    Need::Image(Recipe::Odd(Packing::Gzip)),
    Need::UserNamespaces,
    Need::Fuse,
];

const fn case(
    name: &'static str,
    tier: Tier,
    needs: &'static [Need],
    run: fn(&TestEnvironment<'_>) -> TestResult,
) -> Case {
    Case {
        name,
        tier,
        who: Who::User,
        needs,
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "oracle::umoci_agrees_with_our_oracle",
        Tier::Registry,
        &[
            Need::Root,
            Need::Image(Recipe::Odd(Packing::Gzip)),
            Need::Program("umoci"),
        ],
        umoci_agrees_with_our_oracle,
    ),
    case(
        "oracle::unsquashfs_reads_odd_images",
        Tier::Registry,
        ODD_UNSQUASHFS,
        unsquashfs_reads_odd_images,
    ),
    case(
        "oracle::unsquashfs_reads_odd_images_of_zstd_layers",
        Tier::Registry,
        ODD_ZSTD,
        unsquashfs_reads_odd_images_of_zstd_layers,
    ),
    case(
        "oracle::unsquashfs_reads_odd_images_of_mixed_layers",
        Tier::Registry,
        ODD_MIXED,
        unsquashfs_reads_odd_images_of_mixed_layers,
    ),
    case(
        "oracle::unsquashfs_reads_python",
        Tier::Registry,
        PYTHON,
        unsquashfs_reads_python,
    ),
    case(
        "oracle::the_kernel_reads_odd_images",
        Tier::Registry,
        &[
            Need::Root,
            Need::Image(Recipe::Odd(Packing::Gzip)),
            Need::KernelSquashfs,
        ],
        the_kernel_reads_odd_images,
    ),
    case(
        "oracle::the_kernel_reads_python",
        Tier::Registry,
        &[
            Need::Root,
            Need::Image(Recipe::Python(Packing::Gzip)),
            Need::KernelSquashfs,
        ],
        the_kernel_reads_python,
    ),
    case(
        "oracle::squashfuse_reads_odd_images",
        Tier::Registry,
        &[
            Need::Root,
            Need::Image(Recipe::Odd(Packing::Gzip)),
            Need::Program("squashfuse"),
            Need::Fuse,
        ],
        squashfuse_reads_odd_images,
    ),
    case(
        "oracle::backhand_reads_python",
        Tier::Registry,
        PYTHON,
        backhand_reads_python,
    ),
    case(
        "oracle::a_container_reads_odd_images",
        Tier::Userns,
        ODD_CONTAINER,
        a_container_reads_odd_images,
    ),
    case(
        "oracle::an_unpacked_container_reads_odd_images",
        Tier::Userns,
        ODD_CONTAINER,
        an_unpacked_container_reads_odd_images,
    ),
];
