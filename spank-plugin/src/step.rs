//! The plugin in slurmstepd: a step that has a container, from its beginning to its end.
//!
//! Only [`prepare_task`] acts as root on behalf of the user, by starting the holder. Nothing here fails in a way that makes Slurm drain the
//! node: what is wrong is kept, and told by the tasks that end because of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::pipe::PipeFlags;

use crate::ffi::slurm::{self, Spank};
use crate::gpus::{self, Reports};
use crate::holder::{self, Files, Waiting, name_of};
use crate::{join, message, state, wire};

/// The step of a batch script.
pub(crate) const BATCH: u32 = 0xffff_fffb;
/// The step that only watches a job's foreign processes.
const EXTERN: u32 = 0xffff_fffc;

/// How long the last words of a holder that has failed are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the holder may take to end with the step.
const ENDS: Duration = Duration::from_secs(5);

/// A step with a container. Each task has a copy.
pub(crate) struct Step {
    /// Where the holder is asked.
    requests: OwnedFd,
    /// The holder's end of it, until it has it.
    holder_end: Option<OwnedFd>,
    /// The holder's messages.
    messages: Messages,
    /// The holder's end of them.
    messages_end: Option<OwnedFd>,
    /// Where the tasks say which GPUs they have.
    reports: Reports,
    /// A counter that all tasks have (eventfd(2)): how many of them have the container.
    joined: OwnedFd,
    /// Tasks on this node.
    tasks: u32,
    /// Those that have ended.
    ended: u32,
    /// Whether one of them was killed.
    was_killed: bool,
    /// The holder, in the process that gives it the word.
    waiting: Option<Waiting>,
    /// Why there will be no container.
    failure: Option<String>,
    /// Whether the holder has removed what it had put on disk for the step.
    is_finished: bool,
}

/// The options are known.
pub(crate) fn begin(spank: &Spank) {
    state::with(|state| {
        let environment = spank.environment().unwrap_or_default();
        let variable = |name: &str| {
            let of_name = environment
                .iter()
                .find(|assignment| name_of(assignment) == name)?;
            Some(OsString::from_vec(
                of_name.as_bytes()[name.len() + 1..].to_vec(),
            ))
        };
        if spank.step() == Some(EXTERN) {
            state.options = Default::default();
            return;
        }
        let supports_batch = match &state.arguments {
            Some(Ok(arguments)) => arguments.sbatch_support,
            _ => true,
        };
        if spank.step() == Some(BATCH) && !supports_batch {
            state.options = Default::default();
            return;
        }
        if let Err(problem) = state.options.take_variables(&variable) {
            state.refused.get_or_insert(problem);
        }
        if !state.options.wants_container() {
            return;
        }
        if let Some(Err(problem)) = &state.arguments {
            state.refused.get_or_insert(problem.clone());
        }
        match Step::new(spank.local_tasks().unwrap_or(1)) {
            Ok(step) => state.step = Some(step),
            Err(error) => {
                state
                    .refused
                    .get_or_insert(format!("cannot prepare the step: {error}"));
            }
        }
    });
}

/// In the process of a task, as root.
pub(crate) fn prepare_task(spank: &Spank) {
    state::with(|state| {
        let Some(step) = &mut state.step else {
            return;
        };
        let ends = (step.holder_end.take(), step.messages_end.take());
        let listener = step.reports.listener();
        if spank.task() != Some(0) || state.refused.is_some() {
            return;
        }
        let (Some(Ok(arguments)), (Some(requests), Some(messages)), Some(reports)) =
            (&state.arguments, &ends, &listener)
        else {
            return;
        };
        let files = Files {
            requests: requests.as_fd(),
            messages: messages.as_fd(),
            reports: reports.as_fd(),
        };
        let prepared = holder::prepare(spank, &state.options, arguments, &files);
        let started = prepared.and_then(|waiting| {
            if gpus::are_there() {
                Ok(Some(waiting))
            } else {
                waiting.go(spank.environment().unwrap_or_default(), spank.uid(), false)?;
                Ok(None)
            }
        });
        match started {
            Ok(waiting) => step.waiting = waiting,
            Err(problem) => step.failure = Some(problem),
        }
    });
}

/// In the parent of the tasks. Only the holder has its ends from now on, so that its death is noticed.
pub(crate) fn task_was_forked(spank: &Spank) {
    state::with(|state| {
        if let Some(step) = &mut state.step
            && spank.task().is_none_or(|task| task + 1 >= step.tasks)
        {
            step.holder_end = None;
            step.messages_end = None;
            step.reports.close();
        }
    });
}

/// In the process of a task, as the user: enters the container. False where the task must not run.
pub(crate) fn enter(spank: &Spank) -> bool {
    if state::has_panicked() {
        message::error("the plugin has failed: the task does not run");
        return false;
    }
    state::with(|state| {
        let is_first = spank.task() == Some(0);
        let environment = spank.environment().unwrap_or_default();
        if let Some(name) = environment
            .iter()
            .find_map(|text| text.as_bytes().strip_prefix(b"SLURMD_NODENAME="))
        {
            message::set_node(&String::from_utf8_lossy(name));
        }
        if environment
            .iter()
            .any(|text| name_of(text) == message::VERBOSE)
        {
            message::be_verbose();
            spank.remove_variable(OsStr::new(message::VERBOSE));
        }
        if let Some(problem) = &state.refused {
            if is_first {
                message::error(problem);
            }
            return false;
        }
        let Some(step) = &mut state.step else {
            return true;
        };
        step.reports.send(&environment);
        if let Some(problem) = &step.failure {
            message::error(problem);
            return false;
        }
        if let Some(waiting) = step.waiting.take()
            && let Err(problem) = waiting.go(environment.clone(), spank.uid(), true)
        {
            message::error(problem);
            return false;
        }
        let Some((_, files)) = step.ask(wire::JOIN, is_first) else {
            // Mostly the holder has said why.
            if is_first && !step.messages.had_error {
                message::error("the container could not be started: `cista` has ended");
            } else {
                slurm::verbose("cista: the container could not be started");
            }
            return false;
        };
        let _ = rustix::io::write(&step.joined, &1_u64.to_ne_bytes());
        match join::join(spank, files, &state.options, &environment) {
            Ok(()) => true,
            Err(problem) => {
                message::error(problem);
                false
            }
        }
    })
}

/// A task has ended. With the last one the holder finishes where that is some work: a little later Slurm kills what is left of the step.
///
/// A step that was killed is not saved: Slurm waits a minute for it to be gone, and drains the node then.
pub(crate) fn task_has_ended(spank: &Spank) {
    let is_last = state::with(|state| {
        let Some(step) = &mut state.step else {
            return false;
        };
        step.ended += 1;
        let is_last = step.ended == step.tasks;
        step.was_killed |= spank.was_killed();
        let has_importer = matches!(&state.arguments, Some(Ok(it)) if it.importer.is_some());
        let saves = state.options.save.is_some();
        if step.was_killed {
            if saves && is_last {
                message::error("the container was not saved, since the step was killed");
            }
            return is_last;
        }
        if is_last && (saves || has_importer) && step.was_joined() {
            let answer = step.ask(wire::FINISH, true);
            step.is_finished = answer.is_some();
            let is_saved = answer.is_some_and(|(byte, _)| byte == wire::YES);
            if saves && !is_saved {
                message::error("the container was not saved");
            }
        }
        is_last
    });
    if is_last {
        // Before Slurm removes the step's control groups, which it tries once: it cannot while the holder is in them.
        end(spank);
    }
}

/// The step has ended: so does the holder. A container that is to be saved is on disk until then; a holder that was killed with the step could not remove it.
pub(crate) fn end(spank: &Spank) {
    let step = state::with(|state| state.step.take());
    let is_finished = step.as_ref().is_none_or(|step| step.is_finished);
    if let Some(step) = step {
        let Step {
            requests,
            mut messages,
            holder_end,
            messages_end,
            ..
        } = step;
        // Without its own end of the socket, nobody would ever take this.
        drop((holder_end, messages_end));
        let _ = wire::send(&requests, wire::OVER, None);
        drop(requests);
        messages.pass_on_until_closed(ENDS);
    }
    if is_finished {
        return;
    }
    let program = state::with(|state| match &state.arguments {
        Some(Ok(arguments)) if state.options.save.is_some() && state.options.name.is_none() => {
            Some(arguments.program.clone())
        }
        _ => None,
    });
    if let Some(program) = program {
        holder::remove_leftovers(spank, &program);
    }
}

impl Step {
    fn new(tasks: u32) -> std::io::Result<Self> {
        let (requests, holder_end) = wire::pair()?;
        let (messages, messages_end) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The holder's end is an ordinary one.
        rustix::fs::fcntl_setfl(&messages_end, rustix::fs::OFlags::empty())?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            joined: rustix::event::eventfd(0, flags)?,
            requests,
            reports: Reports::new()?,
            holder_end: Some(holder_end),
            messages: Messages {
                pipe: messages.into(),
                rest: Vec::new(),
                had_error: false,
            },
            messages_end: Some(messages_end),
            tasks,
            ended: 0,
            was_killed: false,
            waiting: None,
            failure: None,
            is_finished: false,
        })
    }

    /// Whether a task has got the container. Before, the holder may be busy for long, and has nothing to finish.
    fn was_joined(&self) -> bool {
        matches!(rustix::io::read(&self.joined, &mut [0; 8]), Ok(8))
    }

    /// Asks the holder, and waits for its answer as long as it lives. `tells` where its messages are passed on meanwhile.
    fn ask(&mut self, letter: u8, tells: bool) -> Option<(u8, Vec<OwnedFd>)> {
        let (answer, theirs) = wire::pair().ok()?;
        let asked = wire::send(&self.requests, letter, Some(theirs.as_fd()));
        drop(theirs);
        let mut received = None;
        if asked.is_ok() {
            self.messages.pass_on_until(&answer, tells);
            received = wire::receive(&answer);
        }
        if received.is_none() && tells {
            self.messages.pass_on_until_closed(LAST_WORDS);
        }
        received
    }
}

/// What the holder tells, line by line.
struct Messages {
    pipe: File,
    rest: Vec<u8>,
    /// Whether there was an error among them.
    had_error: bool,
}

impl Messages {
    /// Passes messages on until something comes from `socket`.
    fn pass_on_until(&mut self, socket: &OwnedFd, tells: bool) {
        let mut is_open = tells;
        loop {
            let mut events = vec![PollFd::new(socket, PollFlags::IN)];
            if is_open {
                events.push(PollFd::new(&self.pipe, PollFlags::IN));
            }
            match rustix::event::poll(&mut events, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let is_answered = !events[0].revents().is_empty();
            let is_told = events
                .get(1)
                .is_some_and(|event| !event.revents().is_empty());
            drop(events);
            if is_told {
                is_open = self.pass_on();
            }
            if is_answered {
                return;
            }
        }
    }

    /// Passes messages on until the holder has closed them, which it does by ending.
    fn pass_on_until_closed(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.pass_on() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else {
                return;
            };
            let mut events = [PollFd::new(&self.pipe, PollFlags::IN)];
            match rustix::event::poll(&mut events, Some(&timeout)) {
                Ok(0) => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Passes on what is there; false when there will be no more.
    fn pass_on(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    let rest = std::mem::take(&mut self.rest);
                    self.had_error |= message::pass_on(&String::from_utf8_lossy(&rest));
                    return false;
                }
                Ok(length) => {
                    self.rest.extend_from_slice(&buffer[..length]);
                    while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                        let line: Vec<u8> = self.rest.drain(..=end).collect();
                        self.had_error |= message::pass_on(&String::from_utf8_lossy(&line));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }
}
