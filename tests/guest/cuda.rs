//! A program for NVIDIA GPUs that needs nothing of CUDA but the driver: it loads `libcuda.so.1` by dlopen(3), gives it kernels as PTX text, and calls
//! the driver API. It is compiled by rustc alone, and runs in an image without any CUDA library.
//!
//! - `add N`: the sum of two vectors of N numbers, compared with what the processor makes of them
//! - `multiply N ROUNDS`: the product of two N by N matrices (N a multiple of 16), some elements of which are compared, ROUNDS times; prints
//!   the microseconds that all rounds took together, as the last word
//!
//! Functions and their types: "CUDA Driver API" of NVIDIA; the kernels' language: "Parallel Thread Execution ISA", version 6.0, which all drivers since
//! CUDA 9 understand.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::process::ExitCode;
use std::time::Instant;

/// Threads of a block, and the width of a tile of a matrix.
const BLOCK: u32 = 256;
const TILE: u32 = 16;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// `RTLD_NOW`.
const NOW: c_int = 2;

/// `CUdeviceptr`.
type Address = u64;
/// `CUresult`; 0 is success.
type Status = c_int;

/// Declares the functions of the driver that are used: looked up once, each with its type.
macro_rules! driver {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Driver {
            $($name: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Driver {
            fn load() -> Result<Self, String> {
                // SAFETY: the driver's own library, whose initialisation may be run at any time; the name is a C string.
                let library = unsafe { dlopen(c"libcuda.so.1".as_ptr(), NOW) };
                if library.is_null() {
                    // SAFETY: after a failure dlerror(3) gives a C string that lasts until the next call of its kind.
                    let why = unsafe { CStr::from_ptr(dlerror()) };
                    return Err(format!("cannot load libcuda.so.1: {}", why.to_string_lossy()));
                }
                Ok(Self {
                    $($name: {
                        let name = CString::new($symbol).map_err(|error| error.to_string())?;
                        // SAFETY: the library is loaded, and stays so.
                        let address = unsafe { dlsym(library, name.as_ptr()) };
                        if address.is_null() {
                            return Err(format!("libcuda.so.1 has no {}", $symbol));
                        }
                        // SAFETY: the documentation gives the function of this name this type.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> Status>(address) }
                    },)*
                })
            }
        }
    };
}

driver! {
    init = "cuInit"(c_uint);
    device_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut c_int, c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    retain = "cuDevicePrimaryCtxRetain"(*mut *mut c_void, c_int);
    set_current = "cuCtxSetCurrent"(*mut c_void);
    load_module = "cuModuleLoadData"(*mut *mut c_void, *const c_void);
    get_function = "cuModuleGetFunction"(*mut *mut c_void, *mut c_void, *const c_char);
    allocate = "cuMemAlloc_v2"(*mut Address, usize);
    to_device = "cuMemcpyHtoD_v2"(Address, *const c_void, usize);
    to_host = "cuMemcpyDtoH_v2"(*mut c_void, Address, usize);
    launch = "cuLaunchKernel"(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void);
    synchronize = "cuCtxSynchronize"();
    error_name = "cuGetErrorName"(Status, *mut *const c_char);
}

/// The first GPU, with the kernels.
struct Gpu {
    driver: Driver,
    module: *mut c_void,
    name: String,
    count: c_int,
}

impl Gpu {
    fn open() -> Result<Self, String> {
        let driver = Driver::load()?;
        let mut gpu = Self {
            driver,
            module: std::ptr::null_mut(),
            name: String::new(),
            count: 0,
        };
        let (mut device, mut context, mut count) = (0, std::ptr::null_mut(), 0);
        let mut name = [0 as c_char; 256];
        let text = CString::new(kernels()).map_err(|error| error.to_string())?;
        // SAFETY: all places outlive the calls that fill them, and are as long as told; handles are those that the driver gave.
        unsafe {
            gpu.check("cuInit", (gpu.driver.init)(0))?;
            gpu.check("cuDeviceGetCount", (gpu.driver.device_count)(&mut count))?;
            gpu.check("cuDeviceGet", (gpu.driver.device_get)(&mut device, 0))?;
            gpu.check(
                "cuDeviceGetName",
                (gpu.driver.device_name)(name.as_mut_ptr(), 255, device),
            )?;
            gpu.check(
                "cuDevicePrimaryCtxRetain",
                (gpu.driver.retain)(&mut context, device),
            )?;
            gpu.check("cuCtxSetCurrent", (gpu.driver.set_current)(context))?;
            let mut module = std::ptr::null_mut();
            let status = (gpu.driver.load_module)(&mut module, text.as_ptr().cast());
            gpu.check("cuModuleLoadData", status)?;
            (gpu.module, gpu.count) = (module, count);
            gpu.name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        }
        Ok(gpu)
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the place outlives the call; the driver gives a string of its own, or nothing.
        let name = unsafe {
            (self.driver.error_name)(status, &mut name);
            if name.is_null() {
                c"unknown"
            } else {
                CStr::from_ptr(name)
            }
        };
        Err(format!("{what}: {} ({status})", name.to_string_lossy()))
    }

    /// Memory of the GPU with a copy of numbers.
    fn copy(&self, numbers: &[f32]) -> Result<Address, String> {
        let mut address = 0;
        let size = size_of_val(numbers);
        // SAFETY: the source is as long as told, and the driver has allocated as much.
        unsafe {
            self.check("cuMemAlloc", (self.driver.allocate)(&mut address, size))?;
            let status = (self.driver.to_device)(address, numbers.as_ptr().cast(), size);
            self.check("cuMemcpyHtoD", status)?;
        }
        Ok(address)
    }

    /// Numbers from the memory of the GPU.
    fn fetch(&self, address: Address, count: usize) -> Result<Vec<f32>, String> {
        let mut numbers = vec![0.0_f32; count];
        // SAFETY: the destination is as long as told, and so is the memory, which `copy` has allocated.
        let status =
            unsafe { (self.driver.to_host)(numbers.as_mut_ptr().cast(), address, 4 * count) };
        self.check("cuMemcpyDtoH", status)?;
        Ok(numbers)
    }

    /// Runs a kernel of three addresses and a number, and does not wait for it.
    fn run(
        &self,
        kernel: &CStr,
        grid: [u32; 2],
        block: [u32; 2],
        addresses: [Address; 3],
        number: u32,
    ) -> Result<(), String> {
        let mut function = std::ptr::null_mut();
        let (mut addresses, mut number) = (addresses, number);
        let [a, b, c] = &mut addresses;
        let place = |value: *mut Address| value.cast::<c_void>();
        let mut arguments = [
            place(a),
            place(b),
            place(c),
            (&raw mut number).cast::<c_void>(),
        ];
        // SAFETY: the kernels have these four parameters; the driver copies them before the call returns.
        unsafe {
            let status = (self.driver.get_function)(&mut function, self.module, kernel.as_ptr());
            self.check("cuModuleGetFunction", status)?;
            let (stream, extra) = (std::ptr::null_mut(), std::ptr::null_mut());
            let status = (self.driver.launch)(
                function,
                grid[0],
                grid[1],
                1,
                block[0],
                block[1],
                1,
                0,
                stream,
                arguments.as_mut_ptr(),
                extra,
            );
            self.check("cuLaunchKernel", status)
        }
    }

    fn wait(&self) -> Result<(), String> {
        // SAFETY: no arguments.
        self.check("cuCtxSynchronize", unsafe { (self.driver.synchronize)() })
    }

    fn add(&self, count: u32) -> Result<String, String> {
        let numbers = |step: u32| -> Vec<f32> { (0..count).map(|at| (at % step) as f32).collect() };
        let (a, b) = (numbers(1021), numbers(769));
        let places = [
            self.copy(&a)?,
            self.copy(&b)?,
            self.copy(&vec![-1.0; a.len()])?,
        ];
        self.run(
            c"add",
            [count.div_ceil(BLOCK), 1],
            [BLOCK, 1],
            places,
            count,
        )?;
        self.wait()?;
        let sums = self.fetch(places[2], a.len())?;
        match (0..a.len()).find(|&at| sums[at] != a[at] + b[at]) {
            Some(at) => Err(format!(
                "element {at} is {}, and not {}",
                sums[at],
                a[at] + b[at]
            )),
            None => Ok(format!("{count} sums are right")),
        }
    }

    fn multiply(&self, size: u32, rounds: u32) -> Result<String, String> {
        if size == 0 || size % TILE != 0 {
            return Err(format!("{size} is no multiple of {TILE}"));
        }
        let n = size as usize;
        // Small whole numbers: sums of their products are exact.
        let a: Vec<f32> = (0..n * n)
            .map(|at| ((at / n + at % n) % 7) as f32)
            .collect();
        let b: Vec<f32> = (0..n * n)
            .map(|at| ((3 * (at / n) + at % n) % 5) as f32)
            .collect();
        let places = [
            self.copy(&a)?,
            self.copy(&b)?,
            self.copy(&vec![-1.0; n * n])?,
        ];
        let once = || self.run(c"multiply", [size / TILE; 2], [TILE; 2], places, size);
        // The first ones translate the kernel, and let the clocks rise.
        once()?;
        once()?;
        self.wait()?;
        let start = Instant::now();
        for _ in 0..rounds {
            once()?;
        }
        self.wait()?;
        let time = start.elapsed();
        let product = self.fetch(places[2], n * n)?;
        for at in (0..n * n).step_by((n * n / 499).max(1)) {
            let expected: f32 = (0..n).map(|k| a[at / n * n + k] * b[k * n + at % n]).sum();
            if product[at] != expected {
                return Err(format!(
                    "element {at} is {}, and not {expected}",
                    product[at]
                ));
            }
        }
        let operations = 2.0 * f64::from(size).powi(3) * f64::from(rounds);
        let rate = operations / time.as_secs_f64() / 1e9;
        Ok(format!(
            "{rate:.0} GFLOP/s, microseconds: {}",
            time.as_micros()
        ))
    }
}

/// The kernels.
fn kernels() -> String {
    let mut products = String::new();
    for k in 0..TILE {
        products.push_str(&format!(
            "    ld.shared.f32 %f2, [%r10+{}];\n    ld.shared.f32 %f3, [%r11+{}];\n    fma.rn.f32 %f1, %f2, %f3, %f1;\n",
            4 * k,
            4 * TILE * k
        ));
    }
    let head = ".version 6.0\n.target sm_60\n.address_size 64\n";
    let add = r"
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    mul.wide.u32 %rd4, %r5, 4;
    add.s64 %rd5, %rd1, %rd4;
    add.s64 %rd6, %rd2, %rd4;
    add.s64 %rd7, %rd3, %rd4;
    ld.global.f32 %f1, [%rd5];
    ld.global.f32 %f2, [%rd6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd7], %f3;
DONE:
    ret;
}
";
    // Each thread makes one element; the block goes along the row and the column in tiles that its threads share.
    let multiply_head = r"
.visible .entry multiply(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<18>;
    .reg .b64 %rd<10>;
    .shared .align 4 .b8 tile_a[1024];
    .shared .align 4 .b8 tile_b[1024];
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %tid.y;
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %ctaid.y;
    mad.lo.s32 %r6, %r4, 16, %r2;
    mad.lo.s32 %r7, %r5, 16, %r3;
    mad.lo.s32 %r8, %r7, %r1, %r2;
    mul.wide.u32 %rd4, %r8, 4;
    add.s64 %rd5, %rd1, %rd4;
    mad.lo.s32 %r8, %r3, %r1, %r6;
    mul.wide.u32 %rd4, %r8, 4;
    add.s64 %rd6, %rd2, %rd4;
    mul.wide.u32 %rd7, %r1, 64;
    mad.lo.s32 %r9, %r3, 16, %r2;
    shl.b32 %r9, %r9, 2;
    mov.u32 %r12, tile_a;
    mov.u32 %r13, tile_b;
    add.s32 %r14, %r12, %r9;
    add.s32 %r15, %r13, %r9;
    shl.b32 %r10, %r3, 6;
    add.s32 %r10, %r12, %r10;
    shl.b32 %r11, %r2, 2;
    add.s32 %r11, %r13, %r11;
    mov.f32 %f1, 0f00000000;
    mov.u32 %r16, 0;
NEXT:
    ld.global.f32 %f2, [%rd5];
    ld.global.f32 %f3, [%rd6];
    st.shared.f32 [%r14], %f2;
    st.shared.f32 [%r15], %f3;
    bar.sync 0;
";
    let multiply_tail = r"    bar.sync 0;
    add.s64 %rd5, %rd5, 64;
    add.s64 %rd6, %rd6, %rd7;
    add.s32 %r16, %r16, 16;
    setp.lt.u32 %p1, %r16, %r1;
    @%p1 bra NEXT;
    mad.lo.s32 %r17, %r7, %r1, %r6;
    mul.wide.u32 %rd8, %r17, 4;
    add.s64 %rd9, %rd3, %rd8;
    st.global.f32 [%rd9], %f1;
    ret;
}
";
    [head, add, multiply_head, &products, multiply_tail].concat()
}

fn run() -> Result<String, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|error| format!("{text}: {error}"))
    };
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words == ["kernels"] {
        return Ok(kernels());
    }
    let gpu = Gpu::open()?;
    let told = match words[..] {
        ["add", count] => gpu.add(number(count)?)?,
        ["multiply", size, rounds] => gpu.multiply(number(size)?, number(rounds)?)?,
        _ => return Err("expected `add N`, or `multiply N ROUNDS`".into()),
    };
    Ok(format!("{}, one of {}: {told}", gpu.name, gpu.count))
}

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}
