//! Slurm's functions for plugins (`slurm/spank.h`), each looked for by name: a function that a Slurm does not have is an answer, where a linked one
//! would keep the plugin from being loaded and srun from running.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::OnceLock;

use crate::options::Description;

/// `ESPANK_SUCCESS`.
const SUCCESS: c_int = 0;

/// Most strings that are taken out of an array of Slurm's.
const MAX_STRINGS: usize = 1 << 20;

/// `struct spank_option`.
#[repr(C)]
pub(crate) struct SpankOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    cb: Option<unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int>,
}

// SAFETY: the pointers lead to strings of the program, which nobody changes.
unsafe impl Send for SpankOption {}
// SAFETY: as above.
unsafe impl Sync for SpankOption {}

impl SpankOption {
    /// An option whose callback gets `number`.
    pub(crate) fn new(option: &Description, number: c_int) -> Self {
        Self {
            name: option.name.as_ptr(),
            arginfo: option.argument.map_or(std::ptr::null(), CStr::as_ptr),
            usage: option.help.as_ptr(),
            has_arg: c_int::from(option.argument.is_some()),
            val: number,
            cb: Some(super::hooks::option_given),
        }
    }
}

/// A variable of the process that the plugin is loaded by.
pub(crate) fn host_variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The command line of that process.
pub(crate) fn host_arguments() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// Sets a variable of that process, which its steps get with its others. To be called by srun, sbatch or salloc before they have further threads.
pub(crate) fn set_host_variable(name: &str, value: &str) {
    // SAFETY: nobody reads or changes the environment at the same time, by the caller's promise.
    unsafe { std::env::set_var(name, value) };
}

/// What a plugin is loaded by: `enum spank_context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// srun.
    Local,
    /// slurmstepd.
    Remote,
    /// sbatch and salloc.
    Allocator,
    /// Something else, where there is nothing to do.
    Other,
}

/// Things to ask about: positions in `enum spank_item`.
#[derive(Clone, Copy)]
enum Item {
    Uid = 0,
    Gid = 1,
    JobId = 2,
    StepId = 3,
    LocalTasks = 6,
    TotalTasks = 7,
    Arguments = 9,
    Environment = 10,
    TaskId = 11,
    ExitStatus = 13,
    Groups = 19,
}

type Log = unsafe extern "C" fn(*const c_char, ...);

/// The functions that were found.
struct Functions {
    context: Option<unsafe extern "C" fn() -> c_int>,
    register: Option<unsafe extern "C" fn(*mut c_void, *const SpankOption) -> c_int>,
    get_item: Option<unsafe extern "C" fn(*mut c_void, c_int, ...) -> c_int>,
    setenv: Option<unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, c_int) -> c_int>,
    unsetenv: Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>,
    error: Option<Log>,
    tell: Option<Log>,
    verbose: Option<Log>,
}

/// Looks for a function of Slurm's. `F` is a function pointer.
///
/// # Safety
///
/// `F` is the type of the function in `slurm/spank.h`.
unsafe fn find<F>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name ends in NUL. A function's address has the size of `F`, which is its type by the caller's promise.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (!symbol.is_null()).then(|| std::mem::transmute_copy(&symbol))
    }
}

fn functions() -> &'static Functions {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    // SAFETY: the types are those of `slurm/spank.h`, which have been the same since 20.11.
    FUNCTIONS.get_or_init(|| unsafe {
        Functions {
            context: find(c"spank_context"),
            register: find(c"spank_option_register"),
            get_item: find(c"spank_get_item"),
            setenv: find(c"spank_setenv"),
            unsetenv: find(c"spank_unsetenv"),
            error: find(c"slurm_error"),
            tell: find(c"slurm_spank_log").or_else(|| find(c"slurm_info")),
            verbose: find(c"slurm_verbose"),
        }
    })
}

fn log(function: Option<Log>, text: &str) {
    // Nothing in a text can be taken for a conversion, and a NUL ends it.
    let text = text.replace('\0', " ");
    if let (Some(function), Ok(text)) = (function, CString::new(text)) {
        // SAFETY: both are strings that end in NUL, and "%s" takes one of them.
        unsafe { function(c"%s".as_ptr(), text.as_ptr()) };
    }
}

/// Tells an error, which a step's user always sees.
pub(crate) fn error(text: &str) {
    log(functions().error, text);
}

/// Tells something that a step's user always sees.
pub(crate) fn tell(text: &str) {
    log(functions().tell, text);
}

/// Tells something that is seen with `srun -v`.
pub(crate) fn verbose(text: &str) {
    log(functions().verbose, text);
}

/// What the plugin is loaded by.
pub(crate) fn context() -> Context {
    // SAFETY: a function without arguments.
    match functions().context.map(|context| unsafe { context() }) {
        Some(1) => Context::Local,
        Some(2) => Context::Remote,
        Some(3) => Context::Allocator,
        _ => Context::Other,
    }
}

/// What Slurm gives to a hook, valid until the hook returns.
pub(crate) struct Spank(*mut c_void);

impl Spank {
    /// # Safety
    ///
    /// `handle` is what Slurm gave to the hook that is running.
    pub(super) unsafe fn new(handle: *mut c_void) -> Self {
        Self(handle)
    }

    /// Adds an option to the command line.
    pub(crate) fn register(&self, option: &'static SpankOption) -> bool {
        // SAFETY: the handle is valid, the option and its strings live as long as the program.
        functions()
            .register
            .is_some_and(|register| unsafe { register(self.0, option) } == SUCCESS)
    }

    /// Asks for something that is one number of 32 bits.
    fn number(&self, item: Item) -> Option<u32> {
        let mut value = 0_u32;
        // SAFETY: these items take a pointer to an integer of 32 bits.
        let result = unsafe { functions().get_item?(self.0, item as c_int, &raw mut value) };
        (result == SUCCESS).then_some(value)
    }

    /// The job's user.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.number(Item::Uid)
    }

    /// The job's group.
    pub(crate) fn gid(&self) -> Option<u32> {
        self.number(Item::Gid)
    }

    /// The job.
    pub(crate) fn job(&self) -> Option<u32> {
        self.number(Item::JobId)
    }

    /// The step.
    pub(crate) fn step(&self) -> Option<u32> {
        self.number(Item::StepId)
    }

    /// How many tasks the step has on this node.
    pub(crate) fn local_tasks(&self) -> Option<u32> {
        self.number(Item::LocalTasks)
    }

    /// How many tasks the step has.
    pub(crate) fn total_tasks(&self) -> Option<u32> {
        self.number(Item::TotalTasks)
    }

    /// The number of the task among those of this node.
    pub(crate) fn task(&self) -> Option<u32> {
        self.number(Item::TaskId)
    }

    /// Whether the task was ended by SIGKILL, as Slurm does in the end with what it cancels.
    pub(crate) fn was_killed(&self) -> bool {
        self.number(Item::ExitStatus).is_some_and(|status| {
            let status = status.cast_signed();
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL
        })
    }

    /// The groups of the job's user.
    pub(crate) fn groups(&self) -> Option<Vec<u32>> {
        let mut groups: *const libc::gid_t = std::ptr::null();
        let mut count: c_int = 0;
        // SAFETY: this item takes a pointer to an array of groups and one to its length; the array stays Slurm's.
        unsafe {
            let result = functions().get_item?(
                self.0,
                Item::Groups as c_int,
                &raw mut groups,
                &raw mut count,
            );
            if result != SUCCESS || (groups.is_null() && count > 0) {
                return None;
            }
            let count = usize::try_from(count).ok()?;
            Some((0..count).map(|at| *groups.add(at)).collect())
        }
    }

    /// The command line of the step.
    pub(crate) fn arguments(&self) -> Option<Vec<OsString>> {
        let mut count: c_int = 0;
        let mut strings: *const *const c_char = std::ptr::null();
        // SAFETY: this item takes a pointer to a number and one to an array of so many strings, which stays Slurm's.
        unsafe {
            let result = functions().get_item?(
                self.0,
                Item::Arguments as c_int,
                &raw mut count,
                &raw mut strings,
            );
            (result == SUCCESS).then(|| copy_strings(strings, usize::try_from(count).unwrap_or(0)))
        }
    }

    /// The environment of the step, `NAME=VALUE`.
    pub(crate) fn environment(&self) -> Option<Vec<OsString>> {
        let mut strings: *const *const c_char = std::ptr::null();
        // SAFETY: this item takes a pointer to an array of strings that ends in a null pointer and stays Slurm's.
        unsafe {
            let result =
                functions().get_item?(self.0, Item::Environment as c_int, &raw mut strings);
            (result == SUCCESS).then(|| copy_strings(strings, MAX_STRINGS))
        }
    }

    /// Sets a variable of the step, in place of another value.
    pub(crate) fn set_variable(&self, name: &OsStr, value: &OsStr) -> bool {
        let (Ok(name), Ok(value)) = (
            CString::new(name.as_bytes()),
            CString::new(value.as_bytes()),
        ) else {
            return false;
        };
        // SAFETY: the handle is valid, and both strings end in NUL and are copied.
        functions().setenv.is_some_and(
            |setenv| unsafe { setenv(self.0, name.as_ptr(), value.as_ptr(), 1) } == SUCCESS,
        )
    }

    /// Removes a variable of the step. One that is not there is no error.
    pub(crate) fn remove_variable(&self, name: &OsStr) {
        if let (Some(unsetenv), Ok(name)) = (functions().unsetenv, CString::new(name.as_bytes())) {
            // SAFETY: the handle is valid, and the string ends in NUL.
            unsafe { unsetenv(self.0, name.as_ptr()) };
        }
    }
}

/// Copies strings of an array, up to its end or `limit`.
///
/// # Safety
///
/// `strings` is null, or an array of strings that end in NUL, with `limit` entries or a null pointer at its end.
pub(super) unsafe fn copy_strings(strings: *const *const c_char, limit: usize) -> Vec<OsString> {
    if strings.is_null() {
        return Vec::new();
    }
    (0..limit)
        // SAFETY: by the caller's promise, up to the first null pointer.
        .map(|at| unsafe { *strings.add(at) })
        .take_while(|string| !string.is_null())
        .map(|string| {
            // SAFETY: not null, and ends in NUL by the caller's promise.
            let bytes = unsafe { CStr::from_ptr(string) }.to_bytes();
            OsString::from_vec(bytes.to_vec())
        })
        .collect()
}
