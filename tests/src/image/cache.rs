//! Where built images are kept, and how they are built when they are not there.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::error::{HarnessError, IoContext as _};
use crate::extract;
use crate::listing::hex;
use crate::program::Program;
use crate::registry::Registry;

use super::debian::{self, Trees};
use super::layer::{Compression, LayerWriter};
use super::layout::{Descriptor, Layout, LayoutWriter, RunConfig};
use super::recipe::{Packing, Recipe};
use super::{mpi, odd, tiny};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A built image.
#[derive(Clone, Debug)]
pub struct Image {
    /// What it was built by.
    pub recipe: Recipe,
    /// Its OCI layout.
    pub layout: Layout,
}

impl Image {
    /// Its reference in a registry: `docker://HOST/REPOSITORY:TAG`.
    #[must_use]
    pub fn uri(&self, registry: &Registry) -> String {
        registry.uri(self.recipe.repository(), &self.recipe.tag())
    }

    /// Its reference as a layout on disk: `oci:DIR:TAG`.
    #[must_use]
    pub fn oci_uri(&self) -> String {
        format!("oci:{}:{}", self.layout.root().display(), self.recipe.tag())
    }
}

/// The built images.
#[derive(Debug)]
pub struct Images {
    root: PathBuf,
    say: fn(&str),
}

impl Images {
    /// The images under `CISTA_TEST_IMAGES`, else under the target directory. `say` is told what is built.
    pub fn open(target: &Path, say: fn(&str)) -> Result<Self, HarnessError> {
        let root = std::env::var_os("CISTA_TEST_IMAGES")
            .map_or_else(|| target.join("test-images"), PathBuf::from);
        std::fs::create_dir_all(&root).context("create", &root)?;
        let root = root.canonicalize().context("resolve", &root)?;
        Ok(Self { root, say })
    }

    /// The storage of the registry that holds the images.
    #[must_use]
    pub fn registry_storage(&self) -> PathBuf {
        self.root.join("registry")
    }

    /// An image, built unless it is there.
    pub fn get(&self, recipe: Recipe) -> Result<Image, HarnessError> {
        let _lock = self.lock()?;
        self.ensure(recipe)
    }

    fn ensure(&self, recipe: Recipe) -> Result<Image, HarnessError> {
        let root = self.artifact(&recipe.slug(), &recipe.text(), |root| {
            self.build(recipe, root)
        })?;
        Ok(Image {
            recipe,
            layout: Layout::open(&root)?,
        })
    }

    /// The merged root file system of the Python image as a directory, extracted by GNU tar.
    pub fn python_tree(&self) -> Result<PathBuf, HarnessError> {
        let _lock = self.lock()?;
        self.ensure_python_tree()
    }

    fn ensure_python_tree(&self) -> Result<PathBuf, HarnessError> {
        let recipe = Recipe::Python(Packing::Gzip);
        let image = self.ensure(recipe)?;
        self.artifact("python-tree", &recipe.text(), |root| {
            (self.say)("extracting the Python image");
            extract::extract(&image.layout, root).map(drop)
        })
    }

    /// The merged root file system of the Python image as one plain tar file.
    pub fn python_tar(&self) -> Result<PathBuf, HarnessError> {
        let _lock = self.lock()?;
        let recipe = Recipe::Python(Packing::Gzip);
        let tree = self.ensure_python_tree()?;
        let directory = self.artifact("python-tar", &recipe.text(), |root| {
            (self.say)("archiving the Python image");
            Program::new("tar")
                .args(["--create", "--sort=name", "--numeric-owner", "--file"])
                .arg(root.join("flat.tar"))
                .arg("--directory")
                .arg(&tree)
                .arg(".")
                .check()
                .map(drop)
        })?;
        Ok(directory.join("flat.tar"))
    }

    /// Puts an image into a registry that runs over [`Self::registry_storage`], unless it is there.
    pub fn push(&self, image: &Image, registry: &Registry) -> Result<(), HarnessError> {
        let (repository, tag) = (image.recipe.repository(), image.recipe.tag());
        let link = self.registry_storage().join(format!(
            "docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"
        ));
        let wanted = &image.layout.manifest_digest;
        if std::fs::read_to_string(&link).is_ok_and(|digest| digest == *wanted) {
            return Ok(());
        }
        let _lock = self.lock()?;
        (self.say)(&format!("pushing {repository}:{tag}"));
        push(image, registry)
    }

    /// The directory of something that is built once: `NAME-HASH`.
    fn artifact(
        &self,
        name: &str,
        recipe: &str,
        build: impl FnOnce(&Path) -> Result<(), HarnessError>,
    ) -> Result<PathBuf, HarnessError> {
        let hash = &hex(&Sha256::digest(recipe.as_bytes()))[..12];
        let finished = self.root.join(format!("{name}-{hash}"));
        if finished.is_dir() {
            return Ok(finished);
        }
        let unfinished = self.root.join(format!("{name}-{hash}.part"));
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).context("remove", &unfinished)?;
        }
        std::fs::create_dir(&unfinished).context("create", &unfinished)?;
        build(&unfinished)?;
        self.remove_outdated(name)?;
        std::fs::rename(&unfinished, &finished).context("rename to", &finished)?;
        Ok(finished)
    }

    /// Removes what an older recipe of the same name built.
    fn remove_outdated(&self, name: &str) -> Result<(), HarnessError> {
        for entry in std::fs::read_dir(&self.root).context("read", &self.root)? {
            let path = entry.context("read", &self.root)?.path();
            let is_old = path
                .file_name()
                .and_then(|file| file.to_str()?.strip_prefix(name)?.strip_prefix('-'))
                .is_some_and(|hash| {
                    hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
                });
            if is_old {
                std::fs::remove_dir_all(&path).context("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Excludes all others who build or push. Ends when the file is dropped.
    fn lock(&self) -> Result<File, HarnessError> {
        let path = self.root.join(".lock");
        let file = File::create(&path).context("create", &path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .context("lock", &path)?;
        Ok(file)
    }

    fn build(&self, recipe: Recipe, root: &Path) -> Result<(), HarnessError> {
        (self.say)(&format!(
            "building the image {}:{}",
            recipe.repository(),
            recipe.tag()
        ));
        let mut layout = LayoutWriter::create(root)?;
        let mut config = RunConfig {
            env: vec![PATH.into()],
            cmd: vec!["sh".into()],
            ..RunConfig::default()
        };
        match recipe {
            Recipe::Busybox => layout.layer(Compression::Gzip, tiny::busybox)?,
            Recipe::Debian => {
                let base = self.trees()?.layers().swap_remove(0);
                layout.layer(Compression::Gzip, |layer| {
                    layer.tree(&base, &debian::is_of_the_build)
                })?;
                config.env.push("DEBIAN_FRONTEND=noninteractive".into());
            }
            Recipe::Odd(packing) => {
                let debian = self.ensure(Recipe::Debian)?;
                layout.borrow(&debian.layout, &debian.layout.manifest.layers[0])?;
                for (index, fill) in odd::LAYERS.iter().enumerate() {
                    layout.layer(packing.of_layer(index + 1), fill)?;
                }
                config.working_dir = "/odd".into();
                config
                    .env
                    .push("ODD=a value with spaces, 'quotes' and $signs".into());
            }
            Recipe::Python(packing) => {
                for layer in self.python_layers(packing, &layout.blobs())? {
                    layout.push(layer);
                }
                let above = |layer| packing.of_layer(debian::STEPS.len() + layer);
                layout.layer(above(1), without_headers_and_documentation)?;
                layout.layer(above(2), application)?;
                config
                    .env
                    .extend(["LANG=C.UTF-8".into(), "APPLICATION=/srv/app".into()]);
                config.cmd = vec!["python3".into()];
                config.working_dir = "/srv/app".into();
                config
                    .labels
                    .insert("org.opencontainers.image.title".into(), "python".into());
            }
            Recipe::Mpi => {
                let debian = self.ensure(Recipe::Debian)?;
                layout.borrow(&debian.layout, &debian.layout.manifest.layers[0])?;
                let tree = self.mpi_tree()?;
                layout.layer(Compression::Gzip, |layer| {
                    layer.tree(&tree, &debian::is_of_the_build)
                })?;
                layout.layer(Compression::Gzip, mpi::programs)?;
            }
            Recipe::Huge => huge(&mut layout)?,
        }
        layout.finish(&recipe.tag(), &config).map(drop)
    }

    fn trees(&self) -> Result<Trees, HarnessError> {
        let root = self.artifact("trees", &Recipe::Debian.text(), |root| {
            Trees::build(root, &self.root.join("packages"), &self.say)
        })?;
        Ok(Trees::open(&root))
    }

    fn mpi_tree(&self) -> Result<PathBuf, HarnessError> {
        let trees = self.trees()?;
        // Not of the image's own text: the program changes more often than the packages.
        let text = format!("{} {:?}", Recipe::Debian.text(), debian::MPI);
        let root = self.artifact("mpi-tree", &text, |root| {
            (self.say)(&format!("apt-get install {}", debian::MPI.join(" ")));
            trees.build_above_base(root, &self.root.join("packages"), debian::MPI)
        })?;
        Ok(root.join("tree"))
    }

    /// Writes the layers of Debian packages, two at a time.
    fn python_layers(
        &self,
        packing: Packing,
        blobs: &Path,
    ) -> Result<Vec<Descriptor>, HarnessError> {
        let trees = self.trees()?.layers();
        let write = |index: usize| {
            let mut layer = LayerWriter::create(blobs, packing.of_layer(index))?;
            layer.tree(&trees[index], &debian::is_of_the_build)?;
            layer.finish().map(|descriptor| (index, descriptor))
        };
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let work = || {
            let claim = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::iter::repeat_with(claim)
                .take_while(|index| *index < trees.len())
                .map(write)
                .collect::<Result<Vec<_>, HarnessError>>()
        };
        let mut layers = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect::<Result<Vec<_>, HarnessError>>()
        })?
        .concat();
        layers.sort_by_key(|(index, _)| *index);
        Ok(layers.into_iter().map(|(_, layer)| layer).collect())
    }
}

/// Puts an image into a registry.
pub fn push(image: &Image, registry: &Registry) -> Result<(), HarnessError> {
    Program::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
        .arg("--dest-tls-verify=false")
        .arg(image.oci_uri())
        .arg(image.uri(registry))
        .timeout(std::time::Duration::from_secs(300))
        .check()
        .map(drop)
}

/// What a `RUN rm -rf` line of a Dockerfile leaves: whiteouts, and an opaque directory for the one that was made anew.
fn without_headers_and_documentation(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("usr/include/")?;
    layer.whiteout("usr/include/boost")?;
    layer.directory("usr/share/doc/")?;
    layer.file("usr/share/doc/.wh..wh..opq", b"")?;
    layer.file(
        "usr/share/doc/README",
        b"The documentation was removed from this image.\n",
    )
}

/// What a `COPY` line brings: a small application, with hard links in the layer and to a program of a lower one.
fn application(layer: &mut LayerWriter) -> Result<(), HarnessError> {
    layer.directory("srv/")?;
    layer.directory("srv/app/")?;
    layer.file("srv/app/main.py", APPLICATION.as_bytes())?;
    layer.file("srv/app/model.bin", &[7; 300_000])?;
    layer.hard_link("srv/app/model-latest.bin", "srv/app/model.bin")?;
    layer.hard_link("srv/app/python", "usr/bin/python3.11")
}

/// The computation of the demo.
const APPLICATION: &str = "\
import numpy
from sklearn.linear_model import LinearRegression
generator = numpy.random.default_rng(0)
x = generator.normal(size=(20000, 8))
y = x @ numpy.arange(8) + generator.normal(scale=0.1, size=20000)
model = LinearRegression().fit(x, y)
print('fitted', ' '.join(f'{c:.2f}' for c in model.coef_))
";

/// 4 GiB: one file of 2.5 GiB, and 24 of 64 MiB. An eighth of each is random, the rest compresses well; no two blocks
/// are the same.
fn huge(layout: &mut LayoutWriter) -> Result<(), HarnessError> {
    let layers: [&[(&str, u64, u64)]; 2] = [&[("one", 1, 2560)], &[("many", 24, 64)]];
    for files in layers {
        layout.layer(Compression::ZstdFast, |layer| {
            for (name, count, mebibytes) in files {
                layer.directory(&format!("{name}/"))?;
                for number in 0..*count {
                    let content = HalfRandom::new(number + mebibytes * 1000);
                    let mut content = std::io::Read::take(content, mebibytes << 20);
                    let header =
                        super::layer::header(tar::EntryType::Regular, 0o644, mebibytes << 20);
                    let path = format!("{name}/{number:02}");
                    layer
                        .tar()
                        .append_data(&mut header.clone(), &path, &mut content)
                        .context("archive", &path)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// An endless stream of 64 KiB pieces: 8 KiB random, then text with a counter.
struct HalfRandom {
    state: u64,
    piece: Vec<u8>,
    used: usize,
}

impl HalfRandom {
    const PIECE: usize = 1 << 16;

    fn new(seed: u64) -> Self {
        Self {
            // Xorshift stays at zero for ever when it begins there.
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            piece: vec![0; Self::PIECE],
            used: Self::PIECE,
        }
    }

    fn refill(&mut self) {
        let (random, text) = self.piece.split_at_mut(Self::PIECE / 8);
        for word in random.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        for (line, place) in text.chunks_exact_mut(64).enumerate() {
            place.fill(b'.');
            place[..16].copy_from_slice(format!("{line:015}\n").as_bytes());
        }
        self.used = 0;
    }
}

impl std::io::Read for HalfRandom {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.used == self.piece.len() {
            self.refill();
        }
        let length = buffer.len().min(self.piece.len() - self.used);
        buffer[..length].copy_from_slice(&self.piece[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}
