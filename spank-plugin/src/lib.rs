//! `spank_cista.so`: Slurm's way into cista.
//!
//! SPANK plugins (spank(7)) are loaded by srun, salloc and sbatch, where this one adds options and checks them, and by slurmstepd, where it puts the
//! tasks of a step into a container. What runs in slurmstepd is root, so it is little: the container is built by the `cista` program, which the plugin
//! executes as the job's user, and which stays as the *holder* of the container until the step ends.
//!
//! ```text
//! slurmstepd ── init_post_opt ─────────── task_post_fork ── task_exit ── exit
//!     │  a pair of sockets                                  (save)        │ closes its end:
//!     │                                                                   ▼ the holder ends
//!     ├─ task 0 ── task_init_privileged ── task_init ── exec in the container
//!     │             │ starts the holder      │ asks the holder for the container, enters it
//!     │             └─► cista slurm step ◄───┤
//!     └─ task n ─────────────────────────────┘
//! ```
//!
//! Tasks stay slurmstepd's own children, and slurmstepd executes them, so that signals, exit statuses, accounting and PMI are those of any step.
//! They enter the container as the user: nothing of the container is ever seen by root.
//!
//! - [`ffi`]: the only room with `unsafe`: Slurm's functions, the hooks it calls, fork
//! - [`arguments`]: what the administrator says in plugstack.conf
//! - [`options`]: what the user asks for, on the command line or by variables
//! - [`local`]: the plugin in srun, salloc and sbatch
//! - [`step`]: the plugin in slurmstepd; [`holder`]: starting the holder, and the [`helper`] that is root; [`join`]: entering the
//!   container
//! - [`trust`]: which images the kernel may mount, and the [`kernel`]'s mount of one
//! - [`wire`]: how plugin and holder talk
//!
//! **It fails closed.** A task whose container cannot be had ends before it is executed, whether plugstack.conf calls the plugin required or
//! optional. It never fails a hook that makes Slurm drain the node: a user's mistake is the user's.

mod arguments;
mod ffi;
mod gpus;
mod helper;
mod holder;
mod join;
mod kernel;
mod local;
mod message;
mod options;
mod state;
mod step;
mod trust;
mod values;
mod wire;
