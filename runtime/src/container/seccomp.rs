//! The seccomp filter of a container: compatibility, not security.
//!
//! In a user namespace that maps one user, chown and the set*id calls can only fail, and package managers and many
//! entrypoints stop at that. Where asked for, the filter answers them with success and does nothing, as enroot does; it covers
//! every ABI that the kernel accepts (a 64-bit kernel runs 32-bit and x32 programs too).
//!
//! Always, it refuses the TIOCSTI and TIOCLINUX requests of ioctl(2), by which a program could type into the terminal that the
//! container was started from, after it ended (CVE-2017-5226 describes the attack).
//!
//! The filter language is the kernel's `Documentation/userspace-api/seccomp_filter.rst`; the numbers are those of the kernel's system
//! call tables. It is written out here since one filter must hold several architectures, each with arguments looked at.

use crate::sys::seccomp::Instruction;

/// Load a word of `struct seccomp_data` (`BPF_LD | BPF_W | BPF_ABS`).
const LOAD: u16 = 0x20;
/// Jump if equal (`BPF_JMP | BPF_JEQ | BPF_K`).
const JUMP_EQUAL: u16 = 0x15;
/// Return (`BPF_RET | BPF_K`).
const RETURN: u16 = 0x06;

/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`; the low bits are the error, and 0 is success with result 0.
const ERRNO: u32 = 0x0005_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The low word of an argument: both ABIs in use here are little-endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// ioctl requests that push input into a terminal.
const TERMINAL_INPUT: [u32; 2] = [0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */];

/// One system call ABI: its audit number and the numbers of its calls.
struct Abi {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    architecture: u32,
    /// ioctl.
    ioctl: &'static [u32],
    /// Answered with success.
    faked: &'static [u32],
    /// setfsuid and setfsgid: answered with success unless the argument is -1, which only asks.
    faked_unless_asking: &'static [u32],
}

/// x32 calls have the architecture of x86-64 and this bit in their number.
const X32: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi {
        architecture: 0xc000_003e,
        ioctl: &[16, X32 | 514, X32 | 16],
        // chown, fchown, lchown, setuid, setgid, setreuid, setregid, setgroups, setresuid, setresgid, fchownat; the same of x32.
        faked: &[
            92,
            93,
            94,
            105,
            106,
            113,
            114,
            116,
            117,
            119,
            260,
            X32 | 92,
            X32 | 93,
            X32 | 94,
            X32 | 105,
            X32 | 106,
            X32 | 113,
            X32 | 114,
            X32 | 116,
            X32 | 117,
            X32 | 119,
            X32 | 260,
        ],
        faked_unless_asking: &[122, 123, X32 | 122, X32 | 123],
    },
    // i386: calls with 16-bit ids first, then those with 32-bit ids.
    Abi {
        architecture: 0x4000_0003,
        ioctl: &[54],
        faked: &[
            16, 23, 46, 70, 71, 81, 95, 164, 170, 182, 198, 203, 204, 206, 207, 208, 210, 212, 213,
            214, 298,
        ],
        faked_unless_asking: &[138, 139, 215, 216],
    },
];

#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[
    Abi {
        architecture: 0xc000_00b7,
        ioctl: &[29],
        // fchownat, fchown, setregid, setgid, setreuid, setuid, setresuid, setresgid, setgroups.
        faked: &[54, 55, 143, 144, 145, 146, 147, 149, 159],
        faked_unless_asking: &[151, 152],
    },
    // 32-bit Arm (EABI): the numbers of i386 but for fchownat.
    Abi {
        architecture: 0x4000_0028,
        ioctl: &[54],
        faked: &[
            16, 23, 46, 70, 71, 81, 95, 164, 170, 182, 198, 203, 204, 206, 207, 208, 210, 212, 213,
            214, 325,
        ],
        faked_unless_asking: &[138, 139, 215, 216],
    },
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the seccomp filter has no system call table for this architecture");

/// Builds the filter; with `fake_ownership` it answers chown and the set*id calls with success.
#[must_use]
pub fn filter(fake_ownership: bool) -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for abi in ABIS {
        let block = block(abi, fake_ownership);
        // Not this ABI: on to the next one. The accumulator still holds the architecture there.
        program.push(jump_equal(abi.architecture, 0, offset(block.len())));
        program.extend(block);
    }
    program.push(give(ALLOW));
    program
}

/// What is done with the calls of one ABI; every path through it returns.
fn block(abi: &Abi, fake_ownership: bool) -> Vec<Instruction> {
    let (faked, asking) = if fake_ownership {
        (abi.faked, abi.faked_unless_asking)
    } else {
        (&[][..], &[][..])
    };
    // Layout: load number; tests; allow; [fake; asking: load, test -1 -> allow; fake]; ioctl: load, tests; allow; refuse.
    let tests = abi.ioctl.len() + faked.len() + asking.len();
    let allow = 1 + tests;
    let fake = allow + 1;
    let ask = fake + 1;
    let ioctl = ask + 4;
    let refuse = ioctl + 1 + TERMINAL_INPUT.len() + 1;

    let mut code = vec![load(NUMBER)];
    for (numbers, target) in [(abi.ioctl, ioctl), (faked, fake), (asking, ask)] {
        for &number in numbers {
            let next = code.len() + 1;
            code.push(jump_equal(number, offset(target - next), 0));
        }
    }
    code.push(give(ALLOW));
    code.push(give(ERRNO));
    code.extend([
        load(argument(0)),
        jump_equal(u32::MAX, 1, 0),
        give(ERRNO),
        give(ALLOW),
    ]);
    code.push(load(argument(1)));
    for request in TERMINAL_INPUT {
        let next = code.len() + 1;
        code.push(jump_equal(request, offset(refuse - next), 0));
    }
    code.push(give(ALLOW));
    code.push(give(ERRNO | libc::EPERM.unsigned_abs()));
    code
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

fn jump_equal(value: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: JUMP_EQUAL,
        jt,
        jf,
        k: value,
    }
}

fn give(action: u32) -> Instruction {
    Instruction {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: action,
    }
}

/// A jump's distance. The tables are constants, and a test builds every filter, so that none is too long.
fn offset(distance: usize) -> u8 {
    u8::try_from(distance).expect("the tables are short enough for one jump")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would: the architecture, the call's number and its arguments.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let at = (offset - argument(0)) as usize;
                assert_eq!(at % 8, 0);
                u32::try_from(arguments[at / 8] & 0xffff_ffff).unwrap()
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD => accumulator = word(k),
                JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn fakes_what_the_tables_say_and_nothing_else() {
        for fake in [false, true] {
            let program = filter(fake);
            assert!(program.len() <= 4096);
            for abi in ABIS {
                for base in [0, X32] {
                    for number in (0..1000).map(|number| base | number) {
                        let expected = fake && abi.faked.contains(&number);
                        let result = run(&program, abi.architecture, number, [0; 6]);
                        let asking = abi.faked_unless_asking.contains(&number);
                        assert_eq!(
                            result,
                            if expected || (fake && asking) {
                                ERRNO
                            } else {
                                ALLOW
                            },
                            "{number} of {:#x}",
                            abi.architecture
                        );
                        if asking {
                            let minus_one = run(&program, abi.architecture, number, [u64::MAX; 6]);
                            assert_eq!(minus_one, ALLOW);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refuses_terminal_input_even_with_high_bits_in_the_request() {
        for fake in [false, true] {
            let program = filter(fake);
            for abi in ABIS {
                for &ioctl in abi.ioctl {
                    for (request, expected) in [
                        (0x5412, ERRNO | 1),
                        (0x541c, ERRNO | 1),
                        (0x1_0000_5412, ERRNO | 1),
                        (0x5413, ALLOW),
                    ] {
                        let arguments = [0, request, 0, 0, 0, 0];
                        assert_eq!(run(&program, abi.architecture, ioctl, arguments), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn allows_an_unknown_architecture() {
        assert_eq!(run(&filter(true), 0x1234, 92, [0; 6]), ALLOW);
    }
}
