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
/// Jump (`BPF_JMP | BPF_JA`).
const JUMP: u16 = 0x05;
/// Jump if equal (`BPF_JMP | BPF_JEQ | BPF_K`).
const JUMP_EQUAL: u16 = 0x15;
/// Jump if not less, without sign (`BPF_JMP | BPF_JGE | BPF_K`).
const JUMP_AT_LEAST: u16 = 0x35;
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
    let others = vec![give(ALLOW)];
    let any = ABIS.iter().rfold(others, |others, abi| {
        branch(
            JUMP_EQUAL,
            abi.architecture,
            block(abi, fake_ownership),
            others,
        )
    });
    [vec![load(ARCHITECTURE)], any].concat()
}

/// What is done with the calls of one ABI; every path through it returns.
fn block(abi: &Abi, fake_ownership: bool) -> Vec<Instruction> {
    let refuse = give(ERRNO | libc::EPERM.unsigned_abs());
    let ask_ioctl = TERMINAL_INPUT
        .iter()
        .fold(vec![give(ALLOW)], |others, &request| {
            branch(JUMP_EQUAL, request, vec![refuse], others)
        });
    let ask_ioctl = [vec![load(argument(1))], ask_ioctl].concat();
    let fake = vec![give(ERRNO)];
    let ask_id = branch(JUMP_EQUAL, u32::MAX, vec![give(ALLOW)], fake.clone());
    let ask_id = [vec![load(argument(0))], ask_id].concat();

    let special = |numbers: &[u32], code: &Vec<Instruction>| -> Vec<(u32, Vec<Instruction>)> {
        numbers
            .iter()
            .map(|&number| (number, code.clone()))
            .collect()
    };
    let mut calls = special(abi.ioctl, &ask_ioctl);
    if fake_ownership {
        calls.extend(special(abi.faked, &fake));
        calls.extend(special(abi.faked_unless_asking, &ask_id));
    }
    calls.sort_by_key(|(number, _)| *number);

    // Where something else begins: at each call, and behind it, unless the next one goes on.
    let allow = vec![give(ALLOW)];
    let mut ranges = vec![(0, allow.clone())];
    for (number, code) in calls {
        if ranges.last().is_some_and(|(start, _)| *start == number) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != code) {
            ranges.push((number, code));
        }
        ranges.push((number + 1, allow.clone()));
    }
    [vec![load(NUMBER)], search(&ranges)].concat()
}

/// Finds by halves the range that the loaded number is in. Each range begins at its number; the first one at 0.
///
/// When a filter is installed, the kernel runs it for each call of each ABI to learn which are always allowed: a way of thirty instructions
/// takes it 0.1 ms, a twentieth of a start.
fn search(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![give(ALLOW)],
        [(_, code)] => code.clone(),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            branch(JUMP_AT_LEAST, upper[0].0, search(upper), search(lower))
        }
    }
}

/// Goes on with `then` where the test of what is loaded against `value` holds.
fn branch(
    test: u16,
    value: u32,
    then: Vec<Instruction>,
    otherwise: Vec<Instruction>,
) -> Vec<Instruction> {
    let instruction = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let start = match u8::try_from(otherwise.len()) {
        Ok(distance) => vec![instruction(test, distance, 0, value)],
        // Too far for a test: over a jump.
        Err(_) => vec![
            instruction(test, 0, 1, value),
            instruction(
                JUMP,
                0,
                0,
                u32::try_from(otherwise.len()).unwrap_or(u32::MAX),
            ),
        ],
    };
    [start, otherwise, then].concat()
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: offset,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would: the architecture, the call's number and its arguments.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        walk(program, architecture, number, arguments).0
    }

    fn steps(program: &[Instruction], architecture: u32, number: u32) -> usize {
        walk(program, architecture, number, [0; 6]).1
    }

    /// The result, and the instructions on the way.
    fn walk(
        program: &[Instruction],
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    ) -> (u32, usize) {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let at = (offset - argument(0)) as usize;
                assert_eq!(at % 8, 0);
                u32::try_from(arguments[at / 8] & 0xffff_ffff).unwrap()
            }
        };
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            steps += 1;
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD => accumulator = word(k),
                JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                JUMP_AT_LEAST => at += usize::from(if accumulator >= k { jt } else { jf }),
                JUMP => at += k as usize,
                RETURN => return (k, steps),
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
    fn long_ways_are_jumped() {
        let program = [
            vec![load(NUMBER)],
            branch(JUMP_EQUAL, 7, vec![give(1)], vec![give(2); 300]),
        ]
        .concat();
        assert_eq!(run(&program, 0, 7, [0; 6]), 1);
        assert_eq!(run(&program, 0, 8, [0; 6]), 2);
    }

    #[test]
    fn the_way_of_an_ordinary_call_is_short() {
        let program = filter(true);
        for abi in ABIS {
            for number in 0..1000 {
                let steps = steps(&program, abi.architecture, number);
                assert!(steps <= 14, "{steps} for {number}");
            }
        }
    }

    #[test]
    fn allows_an_unknown_architecture() {
        assert_eq!(run(&filter(true), 0x1234, 92, [0; 6]), ALLOW);
    }
}
