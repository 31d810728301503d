//! The plugin in srun, sbatch and salloc, and what is the same in slurmstepd: options are registered, taken and checked.

use std::ffi::{OsStr, OsString, c_int};
use std::sync::OnceLock;

use crate::arguments::Arguments;
use crate::ffi::slurm::{self, Context, Spank, SpankOption};
use crate::options::OPTIONS;
use crate::{message, state};

/// The options as Slurm takes them.
struct Table(Vec<SpankOption>);

/// The plugin was loaded.
pub(crate) fn init(spank: &Spank, arguments: &[OsString]) -> Result<(), ()> {
    let context = slurm::context();
    if context == Context::Other {
        return Ok(());
    }
    let arguments = Arguments::parse(arguments);
    if let (Err(problem), Context::Local | Context::Allocator) = (&arguments, context) {
        slurm::error(&format!("cista: {problem}"));
    }
    let has_options = context != Context::Allocator
        || arguments
            .as_ref()
            .is_ok_and(|arguments| arguments.sbatch_support);
    state::with(|state| state.arguments = Some(arguments));
    if !has_options {
        return Ok(());
    }
    for option in table() {
        if !spank.register(option) {
            slurm::error("cista: Slurm does not take the options of the plugin");
            // Without options nobody asks for a container.
            return if context == Context::Remote {
                Ok(())
            } else {
                Err(())
            };
        }
    }
    Ok(())
}

fn table() -> &'static [SpankOption] {
    static TABLE: OnceLock<Table> = OnceLock::new();
    &TABLE
        .get_or_init(|| {
            let options = OPTIONS.iter().zip(0..);
            Table(
                options
                    .map(|(option, number)| SpankOption::new(option, number))
                    .collect(),
            )
        })
        .0
}

/// An option was given on the command line; in slurmstepd, it comes with the step.
pub(crate) fn option_given(number: c_int, argument: Option<&OsStr>) -> Result<(), ()> {
    let number = usize::try_from(number).map_err(|_| ())?;
    // In slurmstepd, the step's options are those that have won.
    let is_remote = slurm::context() == Context::Remote;
    let inherited = (!is_remote).then(|| inherited(number)).flatten();
    state::with(|state| {
        let taken = state.options.take(number, argument, inherited.as_deref());
        match taken {
            Ok(()) => Ok(()),
            Err(problem) if is_remote => {
                state.refused.get_or_insert(problem);
                Ok(())
            }
            Err(problem) => {
                slurm::error(&format!("cista: {problem}"));
                Err(())
            }
        }
    })
}

/// The argument that salloc or sbatch got for an option, which Slurm keeps in a variable for the steps.
fn inherited(number: usize) -> Option<OsString> {
    let name = OPTIONS.get(number)?.name.to_str().ok()?;
    let suffix = name.replace('-', "_");
    slurm::host_variable(&format!("_SLURM_SPANK_OPTION_cista_{suffix}"))
}

/// All options were given: the variables count for what they left out.
pub(crate) fn check() -> Result<(), ()> {
    state::with(|state| {
        if let Err(problem) = state.options.take_variables(&slurm::host_variable) {
            slurm::error(&format!("cista: {problem}"));
            return Err(());
        }
        if state.options.wants_container() {
            if is_verbose(&slurm::host_arguments()) {
                slurm::set_host_variable(message::VERBOSE, "1");
            }
            // With wrong settings no container can be had, and the tasks would only say so later.
            return match &state.arguments {
                Some(Ok(_)) => Ok(()),
                _ => Err(()),
            };
        }
        let is_allocator = slurm::context() == Context::Allocator;
        for option in state.options.without_meaning() {
            slurm::error(&if is_allocator {
                format!(
                    "cista: {option} is for steps with --container-image or --container-name alone, of which neither is given"
                )
            } else {
                format!(
                    "cista: {option} is ignored, since neither --container-image nor --container-name is given"
                )
            });
        }
        Ok(())
    })
}

/// Whether srun was called with `-v`: slurmstepd, whose messages the user sees, is not told. The options are over at the first word that is none
/// and no option's value.
fn is_verbose(arguments: &[OsString]) -> bool {
    if slurm::host_variable("SLURM_DEBUG").is_some_and(|level| level != "0" && !level.is_empty()) {
        return true;
    }
    let mut may_be_value = false;
    for word in arguments.iter().skip(1) {
        let word = word.as_encoded_bytes();
        match word {
            b"--verbose" => return true,
            b"--" => return false,
            [b'-', b'v', rest @ ..] if rest.iter().all(|&byte| byte == b'v') => return true,
            [b'-', ..] => may_be_value = !word.contains(&b'='),
            _ if may_be_value => may_be_value = false,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbose_is_an_option_before_the_command() {
        for (line, expected) in [
            ("srun -v true", true),
            ("srun -n 2 -vv true", true),
            ("srun --mpi=pmix --verbose x", true),
            ("srun -n 2 true -v", false),
            ("srun -n2 -- -v", false),
            ("srun -x=1 true -v", false),
            ("srun", false),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(is_verbose(&words), expected, "{line}");
        }
    }
}
