//! The version that Slurm checks before it uses a plugin.
//!
//! Slurm compares the variable `plugin_version` of a SPANK plugin, but for its last byte, with its own version. One file for every Slurm therefore
//! sets it when it is loaded, before anybody looks: by an ELF constructor. The exact value stands in every plugin of Slurm's own that is loaded
//! already; where there is none, libslurm tells its number, which grows by one with each release.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

/// The name in messages of Slurm.
#[unsafe(no_mangle)]
pub(super) static plugin_name: [u8; 6] = *b"cista\0";

/// The kind of plugin.
#[unsafe(no_mangle)]
pub(super) static plugin_type: [u8; 6] = *b"spank\0";

/// The version of Slurm that the plugin is for: an `unsigned int` in writable memory.
#[unsafe(no_mangle)]
pub(super) static plugin_version: AtomicU32 = AtomicU32::new(0);

/// The version of the plugin.
#[unsafe(no_mangle)]
pub(super) static spank_plugin_version: u32 = 1;

/// What a failing `init` fails (Slurm 25.05 and later): the job (`ESPANK_JOB_FAILURE`), not the node.
#[unsafe(no_mangle)]
pub(super) static slurm_spank_init_failure_mode: c_int = 3012;

/// Runs when the file is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn constructor() {
        let version = of_loaded_plugin().or_else(of_library);
        plugin_version.store(version.unwrap_or(0), Ordering::Relaxed);
    }
    constructor
};

/// The version of a plugin that Slurm has loaded before.
fn of_loaded_plugin() -> Option<u32> {
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: dl_iterate_phdr passes a valid structure, whose name is null or a string that ends in NUL, and passes on the pointer to `found`
        // below.
        unsafe {
            let name = (*info).dlpi_name;
            if name.is_null() || !is_plugin(CStr::from_ptr(name)) {
                return 0;
            }
            *found.cast::<u32>() = version_of(name).unwrap_or(0);
            c_int::from(*found.cast::<u32>() != 0)
        }
    }
    let mut found = 0_u32;
    // SAFETY: `look` has the type that is asked for, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    (found != 0).then_some(found)
}

/// Whether a loaded file may be a plugin of Slurm's own: `…/slurm…/select_cons_tres.so`. Libraries have a version behind `.so` or begin with `lib`.
fn is_plugin(path: &CStr) -> bool {
    let path = path.to_bytes();
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let directory = &path[..path.len() - name.len()];
    name.ends_with(b".so")
        && !name.starts_with(b"lib")
        && !name.starts_with(b"spank")
        && directory.windows(5).any(|part| part == b"slurm")
}

/// `plugin_version` of a loaded file.
///
/// # Safety
///
/// `path` is a string that ends in NUL.
unsafe fn version_of(path: *const c_char) -> Option<u32> {
    // SAFETY: RTLD_NOLOAD loads nothing, so no foreign constructor runs. Where the symbol is there, it is an `unsigned int`; the file stays loaded
    // until our handle is closed.
    unsafe {
        let handle = libc::dlopen(path, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if handle.is_null() {
            return None;
        }
        let symbol = libc::dlsym(handle, c"plugin_version".as_ptr()).cast::<u32>();
        let version = (!symbol.is_null()).then(|| symbol.read());
        libc::dlclose(handle);
        version.filter(|version| *version != 0)
    }
}

/// The version by the number of libslurm.
fn of_library() -> Option<u32> {
    // SAFETY: where the symbol is there, it is Slurm's function `long slurm_api_version(void)`.
    let number = unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"slurm_api_version".as_ptr());
        if symbol.is_null() {
            return None;
        }
        let function: unsafe extern "C" fn() -> libc::c_long = std::mem::transmute(symbol);
        function()
    };
    release(u32::try_from(number >> 16).ok()?)
}

/// The version with a number of libslurm. From 23.11 on there is a release every six months.
fn release(number: u32) -> Option<u32> {
    let (year, month) = match number {
        36 => (20, 11),
        37 => (21, 8),
        38 => (22, 5),
        39 => (23, 2),
        40..=100 => {
            let halves = number - 40;
            (
                23 + halves.div_ceil(2),
                if halves.is_multiple_of(2) { 11 } else { 5 },
            )
        }
        _ => return None,
    };
    Some(year << 16 | month << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_by_number() {
        for (number, expected) in [
            (35, None),
            (36, Some((20, 11))),
            (38, Some((22, 5))),
            (40, Some((23, 11))),
            (41, Some((24, 5))),
            (42, Some((24, 11))),
            (43, Some((25, 5))),
            (44, Some((25, 11))),
            (45, Some((26, 5))),
            (46, Some((26, 11))),
            (0, None),
        ] {
            let expected = expected.map(|(year, month): (u32, u32)| year << 16 | month << 8);
            assert_eq!(release(number), expected, "{number}");
        }
    }

    #[test]
    fn plugins_by_path() {
        for (path, expected) in [
            (c"/usr/lib/x86_64-linux-gnu/slurm-wlm/mpi_pmi2.so", true),
            (c"/usr/lib64/slurm/auth_munge.so", true),
            (c"/usr/lib64/slurm/libslurmfull.so", false),
            (c"/usr/lib64/slurm/spank_cista.so", false),
            (c"/usr/lib64/libc.so.6", false),
            (c"", false),
        ] {
            assert_eq!(is_plugin(path), expected, "{path:?}");
        }
    }
}
