//! The program's part of a step of Slurm: the *holder* of the step's container.
//!
//! The plugin `spank_cista.so` executes `cista slurm step` as the job's user, with nothing as input, messages as output and error, and three files
//! more: number 3 says what is asked for ([`request`]), on number 4 tasks ask for the container ([`channel`]), and on number 5 root is asked for what
//! only root can do ([`helper`]).
//!
//! The holder gets the image, has a child make the container, and keeps the container's namespaces by their descriptors. It stays outside, where the
//! container can neither see nor trace it, and needs no process inside. Each task gets copies of the descriptors and a text that says what goes
//! with them ([`answer`]). When the last end of the socket on the other side is closed, the step is over, and so is the holder; what it kept goes
//! with it, also when it is killed.

pub mod answer;
pub mod build;
pub mod channel;
pub mod entrypoint;
pub mod helper;
pub mod request;
