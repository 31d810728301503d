//! Devices in the life of a start: who is asked, and when what is granted is put in its place. What there is to grant is the business of
//! [`devices`](crate::devices).

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::Reader;
use rustix::fs::{Mode, OFlags};

use super::environment::Environment;
use super::facts;
use super::image;
use super::named::{Content, UPPER};
use super::plan::Plan;
use super::rootfs::Rootfs;
use super::start::{Root, Spec, StartError};
use super::view::View;
use crate::config::{Config, host_variable};
use crate::devices::grant::{Hook, Numbering};
use crate::devices::install::{self, Target};
use crate::devices::place::Placed;
use crate::devices::{self, DeviceError, Grant, Host, Question};

/// Where other dynamic linkers than the GNU one search.
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

/// The container's own variables of a named container, in its upper layer.
const ENVIRONMENT: &str = "etc/environment";

/// What a container is granted.
#[derive(Debug)]
pub struct Granted {
    grant: Grant,
    /// Where it goes, when that is known.
    placed: Option<Placed>,
}

/// Asks for devices, before the namespaces. None where nothing is granted.
///
/// # Errors
///
/// What an option asks for cannot be granted.
pub(super) fn decide(
    spec: &Spec,
    config: &Config,
    source: &image::Source,
    early: Option<&Plan>,
) -> Result<Option<Granted>, DeviceError> {
    let host = Host::open(config.host_root.as_deref())?;
    let request = &spec.devices;
    if request.is_empty() && !devices::VENDORS.iter().any(|vendor| vendor.is_there(&host)) {
        return Ok(None);
    }
    let own = OnceCell::new();
    let user = |name: &str| {
        let mut option = spec.environment.iter().rev();
        let value = option.find(|(known, _)| known == name);
        value.map(|(_, value)| value.clone()).or_else(|| {
            let own = own.get_or_init(|| {
                let mut environment = Environment::default();
                for file in &spec.additions.environment {
                    environment.set_lines(file, host_variable);
                }
                environment
            });
            own.get(name).map(OsStr::to_owned)
        })
    };
    let of_image = OnceCell::new();
    let image = |name: &str| match early {
        Some(plan) => plan.environment.get(name).map(OsStr::to_owned),
        None => {
            let environment = of_image.get_or_init(|| environment(&spec.root, source));
            environment.get(name).map(OsStr::to_owned)
        }
    };
    let prefixed = |prefix: &str| {
        let of_image = match early {
            Some(plan) => &plan.environment,
            None => of_image.get_or_init(|| environment(&spec.root, source)),
        };
        let own = spec.environment.iter().map(|(name, _)| name.as_os_str());
        let mut names: Vec<String> = of_image
            .iter()
            .map(|(name, _)| name)
            .chain(own)
            .filter_map(|name| name.to_str().filter(|name| name.starts_with(prefix)))
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let question = Question {
        request,
        user: &user,
        image: &image,
        prefixed: &prefixed,
        caller: &|name| host_variable(OsStr::new(name)),
    };
    let grant = devices::decide(&host, &question)?;
    Ok(grant.map(|grant| Granted {
        grant,
        placed: None,
    }))
}

/// The variables of a container, read without mounting it. What cannot be read here is told when the root is mounted.
fn environment(root: &Root, source: &image::Source) -> Environment {
    let below = |directory: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::empty()).map(Rootfs::new)
    };
    fn read(view: View<'_>, adapted: bool) -> Environment {
        facts::read(view, adapted, host_variable)
            .map_or_else(|_| Environment::default(), |facts| facts.environment)
    }
    match source {
        image::Source::Tree(tree) => {
            let adapted = matches!(root, Root::Container(container) if container.is_adapted());
            below(tree).map_or_else(
                |_| Environment::default(),
                |tree| read(View::Mounted(&tree), adapted),
            )
        }
        image::Source::Image(image) => {
            if let Root::Container(container) = root
                && matches!(container.content, Content::Image(_))
                && let Ok(upper) = below(&container.directory.join(UPPER))
                && let Ok(Some(lines)) =
                    upper.read(Path::new(ENVIRONMENT), super::additions::MAX_FILE)
            {
                let mut environment = Environment::default();
                environment.set_lines(&lines, host_variable);
                return environment;
            }
            read(View::Image(image.reader()), false)
        }
    }
}

impl Granted {
    /// Finds a place in an image that is not mounted yet, and prepares its upper layer. Returns whether that has all there is to prepare.
    pub(super) fn plant(
        &mut self,
        config: &Config,
        plan: &mut Plan,
        reader: &Reader,
    ) -> Result<bool, DeviceError> {
        let host = Host::open(config.host_root.as_deref())?;
        let placed = Placed::new(&self.grant, &host, View::Image(reader));
        let is_all = plan
            .seed
            .as_mut()
            .is_some_and(|seed| placed.plant(&self.grant, &host, seed, reader));
        self.placed = Some(placed);
        Ok(is_all)
    }

    /// Sets the variables that come with it. To be done when [`Self::install`] has found out what the image's dynamic linker needs.
    pub(super) fn set_variables(&self, environment: &mut Environment) {
        for (name, value) in &self.grant.edits.environment {
            environment.set(name, value);
        }
        let search = self.placed.iter().flat_map(|placed| &placed.search);
        let mut directories: Vec<PathBuf> = environment
            .get(SEARCH_PATH)
            .map(|value| std::env::split_paths(value).collect())
            .unwrap_or_default();
        let own = directories.len();
        for directory in search {
            if !directories.contains(directory) {
                directories.push(directory.clone());
            }
        }
        if directories.len() > own
            && let Ok(value) = std::env::join_paths(directories)
        {
            environment.set(SEARCH_PATH, value);
        }
    }

    /// Translates variables of the job that mean something else in the container.
    pub(super) fn translate(&self, environment: &mut Environment) {
        for translation in &self.grant.translations {
            if environment.get(translation.name) == Some(OsStr::new(&translation.from)) {
                environment.set(translation.name, &translation.to);
            }
        }
    }

    /// What the host's GPUs are called in the container, where that differs.
    pub(super) fn into_numberings(self) -> Vec<Numbering> {
        self.grant.numberings
    }

    /// The programs that have to be run for it.
    pub(super) fn hooks(&self) -> &[Hook] {
        &self.grant.edits.hooks
    }

    /// Puts everything in its place. Who asked for an explanation gets it before.
    pub(super) fn install(
        &mut self,
        spec: &Spec,
        config: &Config,
        target: &Target<'_>,
        warn: &dyn Fn(&str),
    ) -> Result<(), StartError> {
        let host = Host::open(config.host_root.as_deref())?;
        let placed = self.placed.get_or_insert_with(|| {
            Placed::new(&self.grant, &host, View::Mounted(target.mounter.rootfs))
        });
        if let Some(explain) = spec.devices.explain {
            for decision in self.grant.decisions.iter().chain(&placed.decisions) {
                explain(&decision.to_string());
            }
        }
        for warning in &self.grant.warnings {
            warn(warning);
        }
        if let Some(warning) = placed.c_library_warning(target.mounter.rootfs) {
            warn(&warning);
        }
        Ok(install::install(&self.grant, placed, &host, target)?)
    }
}
