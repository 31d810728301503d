//! Containers: from a specification to a running program, and the named ones on disk.
//!
//! A start walks through these rooms in this order; [`start`](mod@start) is the whole of it, to be read from top to bottom:
//!
//! - [`accounts`]: who the user is, outside and inside
//! - [`identity_map`]: the user namespace; [`namespaces`]: others that are asked for
//! - [`view`]: files of an image, mounted or [`unmounted`]; [`facts`]: what they say about how to run it;
//!   the [`plan`] of what is done then
//! - [`image`]: the lower layer, an image served by FUSE or a tree; [`handover`] of the device to the server,
//!   which decodes first what [`loading`] the program will read
//! - [`layers`]: the root file system above it, with its upper layer filled by a [`seed`]
//! - [`rootfs`]: paths below that root, resolved as the container will
//! - [`usual`], [`devices`], [`home`]: what is put into every root; [`granted`]: the devices that this one gets; [`fstab`], [`mounts`]: and how
//! - [`additions`]: what the administrator, the user and the image add to all that; [`hooks`] and the [`script`] that are run, with the `device_hooks` and the `companion` that runs those which come later; what is [`standard`], and what a bundle has [`carried`] here
//! - [`environment`], [`privileges`] with [`seccomp`], [`login`], [`program`]: the state and the execution of the program
//!
//! Besides: [`named`] containers and their [`export`], those [`running`] and how another program [`join`](mod@join)s them, [`temporary`] names on disk,
//! and [`userns_help`].

pub mod accounts;
pub mod additions;
pub mod carried;
pub(crate) mod companion;
pub(crate) mod device_hooks;
pub mod devices;
pub mod environment;
pub mod export;
pub mod facts;
pub mod fstab;
pub mod granted;
pub mod handover;
pub mod home;
pub mod hooks;
pub mod identity_map;
pub mod image;
pub mod join;
pub mod layers;
pub mod loading;
pub mod login;
pub mod mounts;
pub mod named;
pub mod namespaces;
pub mod plan;
pub mod privileges;
pub mod program;
pub mod rootfs;
pub mod running;
pub mod script;
pub mod seccomp;
pub mod seed;
pub mod standard;
pub mod start;
pub mod temporary;
pub mod unmounted;
pub mod userns_help;
pub mod usual;
pub mod view;

pub use start::{Ready, Root, Spec, StartError, prepare, start};
