//! Devices in the life of a start: who is asked, and when what is granted is put in its place. What there is to grant is the business of
//! [`devices`](crate::devices).

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::path::PathBuf;

use super::environment::Environment;
use super::facts;
use super::named::{Container, Content};
use super::plan::Plan;
use super::rootfs::Rootfs;
use super::start::{Root, Spec, StartError};
use super::unmounted::Unmounted;
use super::view::View;
use crate::config::{Config, host_variable};
use crate::devices::grant::{Hook, Numbering};
use crate::devices::install::{self, Target};
use crate::devices::place::Placed;
use crate::devices::{self, DeviceError, Grant, Host, Question};

/// Where other dynamic linkers than the GNU one search.
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

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
    unmounted: Option<&Unmounted<'_>>,
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
            let environment = of_image.get_or_init(|| environment(&spec.root, unmounted));
            environment.get(name).map(OsStr::to_owned)
        }
    };
    let prefixed = |prefix: &str| {
        let of_image = match early {
            Some(plan) => &plan.environment,
            None => of_image.get_or_init(|| environment(&spec.root, unmounted)),
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
fn environment(root: &Root, unmounted: Option<&Unmounted<'_>>) -> Environment {
    let container = match root {
        Root::Container(container) => Some(container),
        Root::Image(_) => None,
    };
    let adapted = container.is_some_and(Container::is_adapted);
    let read = |view: View<'_>| {
        facts::read(view, adapted, host_variable)
            .map_or_else(|_| Environment::default(), |facts| facts.environment)
    };
    match (unmounted, container.map(|container| &container.content)) {
        (Some(image), _) => read(View::Unmounted(image)),
        (None, Some(Content::Tree(tree))) => Rootfs::open_at(tree).map_or_else(
            |_| Environment::default(),
            |tree| read(View::Mounted(&tree)),
        ),
        (None, _) => Environment::default(),
    }
}

impl Granted {
    /// Finds a place in an image that is not mounted yet, and prepares its upper layer. Returns whether that has all there is to prepare.
    pub(super) fn plant(
        &mut self,
        config: &Config,
        plan: &mut Plan,
        image: &Unmounted<'_>,
    ) -> Result<bool, DeviceError> {
        let host = Host::open(config.host_root.as_deref())?;
        let placed = Placed::new(&self.grant, &host, View::Unmounted(image));
        let is_all = plan
            .seed
            .as_mut()
            .is_some_and(|seed| placed.plant(&self.grant, &host, seed, image));
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
