//! What the user asks for: the options of srun, sbatch and salloc, and the variables that stand for them.
//!
//! All that can be said about a value without the node it is for is said here, so that srun refuses it before anything is queued. Slurm calls
//! the plugin more than once with the same option (in srun, and in slurmstepd): a value that is repeated is no error, two values are, since Slurm
//! passes on the last alone. Steps inherit the options of their allocation, of which their own win.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use crate::arguments::switch;
use crate::values::{
    PASSWORD, check_device, check_gpus, check_image, check_length, check_mount, check_name,
    check_namespace, check_variable,
};

/// An option of the command line.
pub(crate) struct Description {
    /// Its name, without dashes.
    pub(crate) name: &'static std::ffi::CStr,
    /// What its argument is called; None where it has none.
    pub(crate) argument: Option<&'static std::ffi::CStr>,
    /// Its help.
    pub(crate) help: &'static std::ffi::CStr,
    /// What it means.
    meaning: Meaning,
}

/// What an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Text(Text),
    List(List),
    Switch(Switch, bool),
}

/// Options with one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Image,
    Workdir,
    Name,
    Save,
    Gpus,
}

/// Options with several values, which add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Mounts,
    Environment,
    Unshare,
    Devices,
}

/// Options without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    MountHome,
    RemapRoot,
    Entrypoint,
    EntrypointLog,
    Writable,
}

macro_rules! descriptions {
    ($($name:literal $argument:expr, $meaning:expr, $help:literal;)*) => {
        &[$(Description { name: $name, argument: $argument, help: $help, meaning: $meaning }),*]
    };
}

/// The options, in the order of `--help`.
pub(crate) static OPTIONS: &[Description] = descriptions! {
    c"container-image" Some(c"[USER@][REGISTRY#]IMAGE[:TAG]|PATH"), Meaning::Text(Text::Image),
        c"[cista] image of the container: in a registry, an image file (a path begins with / or .), or any URI of `cista import`";
    c"container-mounts" Some(c"SRC:DST[:FLAGS][,SRC:DST...]"), Meaning::List(List::Mounts),
        c"[cista] directories and files of the node to mount, flags joined by +, such as ro+nosuid; SRC alone stays where it is; tmpfs:DST mounts an empty one in memory, umount:DST unmounts";
    c"container-workdir" Some(c"PATH"), Meaning::Text(Text::Workdir),
        c"[cista] working directory in the container; the image's when left out";
    c"container-name" Some(c"NAME[:auto|create|exec|no_exec]"), Meaning::Text(Text::Name),
        c"[cista] name under which the container stays on the node; one that runs is joined, one that is there is started, otherwise it is made of the image. create: it must be new; exec: it must run; no_exec: do not join";
    c"container-save" Some(c"PATH"), Meaning::Text(Text::Save),
        c"[cista] image file into which the container is saved when its tasks have ended";
    c"container-mount-home" None, Meaning::Switch(Switch::MountHome, true),
        c"[cista] mount your home directory";
    c"no-container-mount-home" None, Meaning::Switch(Switch::MountHome, false),
        c"[cista] do not mount your home directory";
    c"container-remap-root" None, Meaning::Switch(Switch::RemapRoot, true),
        c"[cista] be root in the container, which gives no right outside it";
    c"no-container-remap-root" None, Meaning::Switch(Switch::RemapRoot, false),
        c"[cista] be yourself in the container";
    c"container-entrypoint" None, Meaning::Switch(Switch::Entrypoint, true),
        c"[cista] execute the image's entrypoint before the tasks";
    c"no-container-entrypoint" None, Meaning::Switch(Switch::Entrypoint, false),
        c"[cista] do not execute the image's entrypoint";
    c"container-entrypoint-log" None, Meaning::Switch(Switch::EntrypointLog, true),
        c"[cista] show what the entrypoint prints";
    c"container-writable" None, Meaning::Switch(Switch::Writable, true),
        c"[cista] make the container's root file system writable";
    c"container-readonly" None, Meaning::Switch(Switch::Writable, false),
        c"[cista] make the container's root file system read-only";
    c"container-env" Some(c"NAME[,NAME...]"), Meaning::List(List::Environment),
        c"[cista] variables of the job that win over those of the image, also for the entrypoint";
    c"container-unshare" Some(c"NAMESPACE[,NAMESPACE...]"), Meaning::List(List::Unshare),
        c"[cista] what the container does not share with the node: net, ipc, uts";
    c"container-gpus" Some(c"all|none|GPU[,GPU...]"), Meaning::Text(Text::Gpus),
        c"[cista] GPUs of the step that the container gets, by index or UUID; all of them when left out";
    c"container-device" Some(c"VENDOR/CLASS=NAME[,...]"), Meaning::List(List::Devices),
        c"[cista] other devices that the container gets, as specifications of CDI name them";
};

/// The variables that stand for options. Of the two prefixes the first wins.
const PREFIXES: [&str; 2] = ["CISTA_CONTAINER_", "PYXIS_CONTAINER_"];
const VARIABLES: [(&str, Meaning); 15] = [
    ("IMAGE", Meaning::Text(Text::Image)),
    ("MOUNTS", Meaning::List(List::Mounts)),
    ("WORKDIR", Meaning::Text(Text::Workdir)),
    ("NAME", Meaning::Text(Text::Name)),
    ("SAVE", Meaning::Text(Text::Save)),
    ("MOUNT_HOME", Meaning::Switch(Switch::MountHome, true)),
    ("REMAP_ROOT", Meaning::Switch(Switch::RemapRoot, true)),
    ("ENTRYPOINT", Meaning::Switch(Switch::Entrypoint, true)),
    (
        "ENTRYPOINT_LOG",
        Meaning::Switch(Switch::EntrypointLog, true),
    ),
    ("WRITABLE", Meaning::Switch(Switch::Writable, true)),
    ("READONLY", Meaning::Switch(Switch::Writable, false)),
    ("ENV", Meaning::List(List::Environment)),
    ("UNSHARE", Meaning::List(List::Unshare)),
    ("GPUS", Meaning::Text(Text::Gpus)),
    ("DEVICE", Meaning::List(List::Devices)),
];

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The image, as it was given.
    pub(crate) image: Option<OsString>,
    /// The mounts, `SRC[:DST[:FLAGS]]`.
    pub(crate) mounts: Vec<OsString>,
    /// The working directory.
    pub(crate) workdir: Option<OsString>,
    /// The name, with its mode where that was given.
    pub(crate) name: Option<OsString>,
    /// Where to save.
    pub(crate) save: Option<OsString>,
    /// Whether the home directory is mounted.
    pub(crate) mount_home: Option<bool>,
    /// Whether the user is root inside.
    pub(crate) remap_root: Option<bool>,
    /// Whether the entrypoint is executed.
    pub(crate) entrypoint: Option<bool>,
    /// Whether its output is shown.
    pub(crate) entrypoint_log: Option<bool>,
    /// Whether the root can be written to.
    pub(crate) writable: Option<bool>,
    /// Names of variables.
    pub(crate) environment: BTreeSet<OsString>,
    /// Namespaces.
    pub(crate) unshare: BTreeSet<OsString>,
    /// GPUs.
    pub(crate) gpus: Option<OsString>,
    /// Devices by their names in CDI.
    pub(crate) devices: BTreeSet<OsString>,
    /// The lists as they were given, by their places in [`OPTIONS`].
    given: BTreeMap<usize, OsString>,
}

impl Options {
    /// Takes an option of the command line: its place in [`OPTIONS`] and its argument. `inherited` is the argument that the allocation gave it, which
    /// Slurm says first.
    ///
    /// # Errors
    ///
    /// A text for the user.
    pub(crate) fn take(
        &mut self,
        number: usize,
        argument: Option<&OsStr>,
        inherited: Option<&OsStr>,
    ) -> Result<(), String> {
        let option = OPTIONS.get(number).ok_or("unknown option")?;
        let shown = format!("--{}", option.name.to_string_lossy());
        let argument = argument.unwrap_or_default();
        match option.meaning {
            Meaning::Switch(which, value) => return self.turn(&shown, which, value),
            Meaning::Text(which) => {
                if inherited.is_some() && self.text(which).map(OsString::as_os_str) == inherited {
                    *self.text_mut(which) = None;
                }
                self.set(&shown, which, argument)?;
            }
            Meaning::List(which) => {
                let before = self.given.get(&number);
                if inherited.is_some() && before.map(OsString::as_os_str) == inherited {
                    self.clear(which);
                } else if let Some(before) = before.filter(|before| *before != argument) {
                    return Err(format!(
                        "{shown}: given twice, as `{}` and as `{}`: name all in one list, separated by commas",
                        before.display(),
                        argument.display()
                    ));
                }
                self.add(&shown, which, argument)?;
                self.given.insert(number, argument.to_owned());
            }
        }
        Ok(())
    }

    /// Takes the variables for what the command line left out.
    ///
    /// # Errors
    ///
    /// A text for the user.
    pub(crate) fn take_variables(
        &mut self,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(), String> {
        let given = self.clone();
        // Whether the root can be written to may be said by two variables, which must agree.
        for (suffix, meaning) in VARIABLES {
            let found = PREFIXES.iter().find_map(|prefix| {
                let name = format!("{prefix}{suffix}");
                variable(&name).map(|value| (name, value))
            });
            let Some((name, value)) = found else {
                continue;
            };
            match meaning {
                Meaning::Text(which) if given.text(which).is_none() => {
                    self.set(&name, which, &value)?;
                }
                Meaning::List(which) if given.is_empty_list(which) => {
                    self.add(&name, which, &value)?;
                }
                Meaning::Switch(which, on) if given.switch(which).is_none() => {
                    let yes = switch(&value).ok_or_else(|| {
                        format!("{name}: `{}` is neither yes nor no", value.display())
                    })?;
                    self.turn(&name, which, yes == on)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a container is asked for.
    pub(crate) fn wants_container(&self) -> bool {
        self.image.is_some() || self.name.is_some()
    }

    /// The options that mean nothing without a container, of those that were given.
    pub(crate) fn without_meaning(&self) -> Vec<&'static str> {
        [
            ("--container-mounts", !self.mounts.is_empty()),
            ("--container-workdir", self.workdir.is_some()),
            ("--container-save", self.save.is_some()),
            ("--[no-]container-mount-home", self.mount_home.is_some()),
            ("--[no-]container-remap-root", self.remap_root.is_some()),
            ("--[no-]container-entrypoint", self.entrypoint.is_some()),
            ("--container-entrypoint-log", self.entrypoint_log.is_some()),
            ("--container-writable", self.writable == Some(true)),
            ("--container-readonly", self.writable == Some(false)),
            ("--container-env", !self.environment.is_empty()),
            ("--container-unshare", !self.unshare.is_empty()),
            ("--container-gpus", self.gpus.is_some()),
            ("--container-device", !self.devices.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }

    fn text(&self, which: Text) -> Option<&OsString> {
        match which {
            Text::Image => self.image.as_ref(),
            Text::Workdir => self.workdir.as_ref(),
            Text::Name => self.name.as_ref(),
            Text::Save => self.save.as_ref(),
            Text::Gpus => self.gpus.as_ref(),
        }
    }

    fn switch(&self, which: Switch) -> Option<bool> {
        match which {
            Switch::MountHome => self.mount_home,
            Switch::RemapRoot => self.remap_root,
            Switch::Entrypoint => self.entrypoint,
            Switch::EntrypointLog => self.entrypoint_log,
            Switch::Writable => self.writable,
        }
    }

    fn is_empty_list(&self, which: List) -> bool {
        match which {
            List::Mounts => self.mounts.is_empty(),
            List::Environment => self.environment.is_empty(),
            List::Unshare => self.unshare.is_empty(),
            List::Devices => self.devices.is_empty(),
        }
    }

    fn turn(&mut self, shown: &str, which: Switch, value: bool) -> Result<(), String> {
        let (place, both) = match which {
            Switch::MountHome => (
                &mut self.mount_home,
                "--container-mount-home and --no-container-mount-home",
            ),
            Switch::RemapRoot => (
                &mut self.remap_root,
                "--container-remap-root and --no-container-remap-root",
            ),
            Switch::Entrypoint => (
                &mut self.entrypoint,
                "--container-entrypoint and --no-container-entrypoint",
            ),
            Switch::EntrypointLog => (&mut self.entrypoint_log, ""),
            Switch::Writable => (
                &mut self.writable,
                "--container-writable and --container-readonly",
            ),
        };
        if place.is_some_and(|before| before != value) {
            return Err(format!("{shown}: {both} exclude each other"));
        }
        *place = Some(value);
        Ok(())
    }

    fn set(&mut self, shown: &str, which: Text, value: &OsStr) -> Result<(), String> {
        check_length(shown, value)?;
        let checked = match which {
            Text::Image => check_image(value),
            Text::Name => check_name(value),
            Text::Gpus => check_gpus(value),
            Text::Save if value.as_bytes().ends_with(b"/") => {
                Err("names a directory: a file is to be written".into())
            }
            Text::Workdir | Text::Save => Ok(()),
        };
        checked.map_err(|problem| match problem.as_str() {
            // The value is not repeated, since it is a secret.
            PASSWORD => format!("{shown}: {PASSWORD}"),
            _ => format!("{shown}: `{}` {problem}", value.display()),
        })?;
        match self.text_mut(which) {
            Some(before) if before != value => Err(format!(
                "{shown}: given twice, as `{}` and as `{}`",
                before.display(),
                value.display()
            )),
            place => {
                *place = Some(value.to_owned());
                Ok(())
            }
        }
    }

    fn text_mut(&mut self, which: Text) -> &mut Option<OsString> {
        match which {
            Text::Image => &mut self.image,
            Text::Workdir => &mut self.workdir,
            Text::Name => &mut self.name,
            Text::Save => &mut self.save,
            Text::Gpus => &mut self.gpus,
        }
    }

    fn clear(&mut self, which: List) {
        match which {
            List::Mounts => self.mounts.clear(),
            List::Environment => self.environment.clear(),
            List::Unshare => self.unshare.clear(),
            List::Devices => self.devices.clear(),
        }
    }

    fn add(&mut self, shown: &str, which: List, value: &OsStr) -> Result<(), String> {
        check_length(shown, value)?;
        for item in value.as_bytes().split(|&byte| byte == b',') {
            let item = OsStr::from_bytes(item);
            if item.is_empty() {
                return Err(format!("{shown}: `{}` has an empty part", value.display()));
            }
            let checked = match which {
                List::Mounts => check_mount(item),
                List::Environment => check_variable(item),
                List::Unshare => check_namespace(item),
                List::Devices => check_device(item),
            };
            checked.map_err(|problem| format!("{shown}: `{}` {problem}", item.display()))?;
            match which {
                List::Mounts => {
                    if !self.mounts.iter().any(|mount| mount == item) {
                        self.mounts.push(item.to_owned());
                    }
                }
                List::Environment => {
                    self.environment.insert(item.to_owned());
                }
                List::Unshare => {
                    self.unshare.insert(item.to_owned());
                }
                List::Devices => {
                    self.devices.insert(item.to_owned());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> usize {
        OPTIONS
            .iter()
            .position(|option| option.name.to_str() == Ok(name))
            .unwrap_or_else(|| panic!("no option {name}"))
    }

    fn parse(given: &[(&str, &str)]) -> Result<Options, String> {
        let mut options = Options::default();
        for (name, argument) in given {
            let has_argument = OPTIONS[number(name)].argument.is_some();
            let argument = has_argument.then(|| OsStr::new(*argument));
            options.take(number(name), argument, None)?;
        }
        Ok(options)
    }

    #[test]
    fn good_values() {
        for given in [
            ("container-image", "debian"),
            ("container-image", "nvcr.io#nvidia/pytorch:24.01-py3"),
            ("container-image", "docker://user@registry:5000/x@sha256:00"),
            ("container-image", "image:tag@sha256:00"),
            ("container-image", "dockerd://image:tag"),
            ("container-image", "oci-archive:/images/x.tar:tag"),
            ("container-image", "./x.sqsh"),
            (
                "container-mounts",
                "/data:/data:ro+nosuid,tmpfs:/x:size=1g+mode=700,umount:/y",
            ),
            ("container-mounts", "/data,./here"),
            ("container-name", "a:exec"),
            ("container-name", "a"),
            ("container-name", "a:"),
            ("container-env", "A,B_1"),
            ("container-unshare", "net,ipc,uts"),
            ("container-save", "x.sqsh"),
            ("container-workdir", "/w"),
            ("container-gpus", "0,GPU-1a2b"),
            ("container-gpus", "none"),
            ("container-device", "nvidia.com/gpu=0,host/tun=all"),
        ] {
            // Slurm may say it twice.
            parse(&[given, given]).unwrap_or_else(|error| panic!("{given:?}: {error}"));
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for (name, value) in [
            ("container-image", ""),
            ("container-image", "a b"),
            ("container-image", "docker://"),
            ("container-image", "debian:"),
            ("container-image", "/images/"),
            ("container-image", "-"),
            ("container-image", ":tag"),
            ("container-image", "ftp://x/y"),
            ("container-image", "user:secret@registry#image"),
            ("container-image", "docker://user:secret@registry/image"),
            ("container-mounts", ""),
            ("container-mounts", "/a,"),
            ("container-mounts", "/a:"),
            ("container-mounts", ":/a"),
            ("container-mounts", "a:/b"),
            ("container-mounts", "tmpfs"),
            ("container-mounts", "/a:b"),
            ("container-mounts", "/a:/b:read-only"),
            ("container-workdir", ""),
            ("container-name", ""),
            ("container-name", ":exec"),
            ("container-name", "a/b"),
            ("container-name", ".a"),
            ("container-name", "a:run"),
            ("container-save", ""),
            ("container-save", "/x/"),
            ("container-env", "A,,B"),
            ("container-env", "A=1"),
            ("container-env", "1A"),
            ("container-unshare", "pid"),
            ("container-unshare", ""),
            ("container-gpus", ""),
            ("container-gpus", "0,,1"),
            ("container-gpus", "0, 1"),
            ("container-device", ""),
            ("container-device", "nvidia.com/gpu"),
            ("container-device", "gpu=0"),
            ("container-device", "nvidia.com/=0"),
            ("container-device", "nvidia.com/gpu="),
            ("container-device", "/dev/fuse"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("--{name}: ")), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused_and_repetitions_are_not() {
        for (one, other) in [
            (("container-image", "a"), ("container-image", "b")),
            (("container-name", "a"), ("container-name", "a:exec")),
            (("container-workdir", "/a"), ("container-workdir", "/b")),
            (
                ("container-mount-home", ""),
                ("no-container-mount-home", ""),
            ),
            (
                ("no-container-remap-root", ""),
                ("container-remap-root", ""),
            ),
            (
                ("container-entrypoint", ""),
                ("no-container-entrypoint", ""),
            ),
            (("container-writable", ""), ("container-readonly", "")),
            (("container-gpus", "0"), ("container-gpus", "1")),
            (("container-mounts", "/a"), ("container-mounts", "/b")),
            (("container-env", "A"), ("container-env", "B")),
        ] {
            parse(&[one, one]).unwrap();
            parse(&[one, other]).unwrap_err();
        }
    }

    #[test]
    fn steps_win_over_their_allocation() {
        for (name, of_allocation, of_step) in [
            ("container-image", "/a", "/b"),
            ("container-mounts", "/a,/b", "/c"),
        ] {
            let mut options = Options::default();
            let inherited = Some(OsStr::new(of_allocation));
            let mut take = |value| options.take(number(name), Some(OsStr::new(value)), inherited);
            take(of_allocation).unwrap();
            take(of_step).unwrap();
            take("/third").unwrap_err();
            let expected = parse(&[(name, of_step)]).unwrap();
            assert_eq!(options, expected);
        }
    }

    #[test]
    fn variables_fill_in_what_was_left_out() {
        let variables = |list: &'static [(&str, &str)]| {
            move |name: &str| {
                let found = list.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| OsString::from(*value))
            }
        };
        let mut options = parse(&[("container-image", "a"), ("container-readonly", "")]).unwrap();
        options
            .take_variables(&variables(&[
                ("PYXIS_CONTAINER_IMAGE", "b"),
                ("PYXIS_CONTAINER_NAME", "n"),
                ("CISTA_CONTAINER_NAME", "m"),
                ("PYXIS_CONTAINER_WRITABLE", "yes"),
                ("PYXIS_CONTAINER_MOUNT_HOME", "0"),
            ]))
            .unwrap();
        assert_eq!(options.image.as_deref(), Some(OsStr::new("a")));
        assert_eq!(options.name.as_deref(), Some(OsStr::new("m")));
        assert_eq!(options.writable, Some(false));
        assert_eq!(options.mount_home, Some(false));
        for list in [
            &[("PYXIS_CONTAINER_IMAGE", "")][..],
            &[("PYXIS_CONTAINER_ENTRYPOINT", "perhaps")],
            &[
                ("PYXIS_CONTAINER_WRITABLE", "1"),
                ("PYXIS_CONTAINER_READONLY", "1"),
            ],
        ] {
            let error = Options::default()
                .take_variables(&variables(list))
                .unwrap_err();
            assert!(error.contains("_CONTAINER_"), "{error}");
        }
    }

    #[test]
    fn what_means_nothing_alone() {
        let options = parse(&[("container-env", "A"), ("container-readonly", "")]).unwrap();
        assert!(!options.wants_container());
        assert_eq!(
            options.without_meaning(),
            ["--container-readonly", "--container-env"]
        );
    }
}
