//! Tiny static programs that make one system call of a chosen ABI and end with its error as exit status.
//!
//! A 64-bit x86 kernel takes calls of three ABIs: its own, that of 32-bit programs (`int 0x80`) and x32. A filter that forgets one is no
//! filter, and no ordinary program of an image makes such calls on purpose. The format is that of elf(5).

/// How a system call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `syscall`.
    X86_64,
    /// `syscall` with the bit of x32 in the number.
    X32,
    /// `int 0x80`.
    I386,
}

/// Where the program is loaded: low enough for a pointer of 32 bits.
const BASE: u64 = 0x40_0000;

/// Length of the file's and the segment's headers.
const HEADERS: usize = 64 + 56;

/// Address of a readable byte in every probe, to be passed as a pointer to text: `\x7fELF…`.
pub const POINTER: u32 = 0x40_0000;

/// A program that makes a call and ends with its error number, 0 for success.
#[must_use]
pub fn system_call(abi: Abi, number: u32, arguments: [u32; 3]) -> Vec<u8> {
    let number = match abi {
        Abi::X32 => number | 0x4000_0000,
        Abi::X86_64 | Abi::I386 => number,
    };
    // mov eax, number; then the arguments into ebx, ecx, edx or edi, esi, edx.
    let registers: [u8; 3] = match abi {
        Abi::I386 => [0xbb, 0xb9, 0xba],
        Abi::X86_64 | Abi::X32 => [0xbf, 0xbe, 0xba],
    };
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    for (register, argument) in registers.into_iter().zip(arguments) {
        code.push(register);
        code.extend(argument.to_le_bytes());
    }
    code.extend(match abi {
        Abi::I386 => [0xcd, 0x80],
        Abi::X86_64 | Abi::X32 => [0x0f, 0x05],
    });
    // neg eax; mov edi, eax; mov eax, 60 (exit); syscall
    code.extend([0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    program(&code)
}

fn program(code: &[u8]) -> Vec<u8> {
    let size = (HEADERS + code.len()) as u64;
    let entry = BASE + HEADERS as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Executable, x86-64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 12]);
    // Sizes: this header, one program header, no section headers.
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // Loadable, readable and executable: all of the file.
    for word in [1_u32, 5] {
        file.extend(word.to_le_bytes());
    }
    for long in [0, BASE, BASE, size, size, 4096] {
        file.extend(long.to_le_bytes());
    }
    file.extend(code);
    file
}
