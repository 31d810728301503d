//! A `libcuda.so.1` for machines without a GPU: it has the functions that `cuda.rs` calls, and the processor does what the two kernels of that
//! program would. It shows that a container's programs find and load the library that they are granted, and that the program calls it
//! as documented. It is no test of the kernels: PTX is looked at for their names alone.

#![allow(non_snake_case, reason = "the names of the driver API")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

/// `CUDA_SUCCESS`, `CUDA_ERROR_INVALID_VALUE`, `CUDA_ERROR_NO_DEVICE`, `CUDA_ERROR_NOT_FOUND`.
const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const NO_DEVICE: c_int = 100;
const NOT_FOUND: c_int = 500;

/// Handles: anything but null.
const CONTEXT: usize = 0x10;
const MODULE: usize = 0x20;
const KERNELS: [&CStr; 2] = [c"add", c"multiply"];

/// GPUs that may be opened, as the driver counts them.
fn count() -> c_int {
    let nodes = (0..64).filter(|minor| {
        let node = format!("/dev/nvidia{minor}");
        Path::new(&node).exists() && std::fs::File::open(node).is_ok()
    });
    nodes.count() as c_int
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> c_int {
    let is_there = Path::new("/dev/nvidiactl").exists() && Path::new("/dev/nvidia-uvm").exists();
    if is_there && count() > 0 {
        SUCCESS
    } else {
        NO_DEVICE
    }
}

/// # Safety
///
/// A place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(place: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { *place = count() };
    SUCCESS
}

/// # Safety
///
/// A place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(place: *mut c_int, number: c_int) -> c_int {
    if number >= count() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    unsafe { *place = number };
    SUCCESS
}

/// # Safety
///
/// A place of the given length.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(place: *mut c_char, length: c_int, _device: c_int) -> c_int {
    for (at, byte) in c"no GPU"
        .to_bytes_with_nul()
        .iter()
        .enumerate()
        .take(length.max(0) as usize)
    {
        // SAFETY: within the length that the caller promises.
        unsafe { *place.add(at) = *byte as c_char };
    }
    SUCCESS
}

/// # Safety
///
/// A place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(place: *mut *mut c_void, _device: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { *place = CONTEXT as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    if context as usize == CONTEXT {
        SUCCESS
    } else {
        INVALID_VALUE
    }
}

/// # Safety
///
/// A place for a handle, and a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(place: *mut *mut c_void, text: *const c_void) -> c_int {
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text.cast()) }
        .to_string_lossy()
        .into_owned();
    let is_ptx = text.starts_with(".version 6.0\n.target sm_60\n.address_size 64\n");
    if !is_ptx
        || KERNELS
            .iter()
            .any(|name| !text.contains(&format!(".entry {}(", name.to_string_lossy())))
    {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    unsafe { *place = MODULE as *mut c_void };
    SUCCESS
}

/// # Safety
///
/// A place for a handle, and a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    place: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    match KERNELS.iter().position(|known| *known == name) {
        Some(at) if module as usize == MODULE => {
            // SAFETY: the caller's promise.
            unsafe { *place = (at + 1) as *mut c_void };
            SUCCESS
        }
        _ => NOT_FOUND,
    }
}

/// # Safety
///
/// A place for an address. Memory is never given back: the program ends soon.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(place: *mut u64, size: usize) -> c_int {
    let memory = vec![0_u64; size.div_ceil(8)].leak();
    // SAFETY: the caller's promise.
    unsafe { *place = memory.as_mut_ptr() as u64 };
    SUCCESS
}

/// # Safety
///
/// Memory of [`cuMemAlloc_v2`] and of the caller, each of the given size.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, size: usize) -> c_int {
    // SAFETY: the caller's promise; the two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to as *mut u8, size) };
    SUCCESS
}

/// # Safety
///
/// As [`cuMemcpyHtoD_v2`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, size: usize) -> c_int {
    // SAFETY: the caller's promise; the two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.cast::<u8>(), size) };
    SUCCESS
}

/// # Safety
///
/// A function of [`cuModuleGetFunction`] with its four parameters: three addresses of as many numbers as the fourth says, or its square.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    _grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    _block_z: c_uint,
    _shared: c_uint,
    _stream: *mut c_void,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise: four parameters, the last of 32 bits.
    let (a, b, c, n) = unsafe {
        let address = |at: usize| *(*parameters.add(at)).cast::<u64>();
        let n = *(*parameters.add(3)).cast::<u32>();
        (address(0), address(1), address(2), n as usize)
    };
    let is_product = function as usize == 2;
    let count = if is_product { n * n } else { n };
    // SAFETY: the caller's promise; the three are allocations of their own.
    let (a, b, c) = unsafe {
        let numbers = |address: u64| std::slice::from_raw_parts(address as *const f32, count);
        (
            numbers(a),
            numbers(b),
            std::slice::from_raw_parts_mut(c as *mut f32, count),
        )
    };
    let (width, height) = ((grid_x * block_x) as usize, (grid_y * block_y) as usize);
    if is_product {
        for row in 0..n.min(height) {
            for column in 0..n.min(width) {
                c[row * n + column] = (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum();
            }
        }
    } else {
        for at in 0..n.min(width) {
            c[at] = a[at] + b[at];
        }
    }
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    SUCCESS
}

/// # Safety
///
/// A place for a string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(status: c_int, place: *mut *const c_char) -> c_int {
    let name = match status {
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        _ => c"CUDA_SUCCESS",
    };
    // SAFETY: the caller's promise.
    unsafe { *place = name.as_ptr() };
    SUCCESS
}
