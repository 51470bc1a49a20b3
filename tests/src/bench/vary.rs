//! Makes every run of a test run another flow. A test run repeats one frame, so a new flow would be new only once.
//!
//! A few instructions in front of the measured program change an address and the ports in the frame, which the next run sees, as the frame
//! is the same memory; then they call the program in their place (a tail call). Their own cost is measured with the empty program
//! behind them and taken off.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;

use super::test_run;

/// The instructions in front, with one program behind them.
pub struct Varied {
    front: OwnedFd,
    _array: OwnedFd,
}

/// What the varied word's first byte always is: IPv4 addresses stay in 10.0.0.0/8.
pub const FIRST_BYTE: u8 = 10;

/// How one run's frame follows from the one before.
#[derive(Clone, Copy, Debug)]
pub struct Cycle {
    /// Of the address's last word in the frame (bytes).
    pub offset: i16,
    /// The word is one of these many from `first` on; host order, below 2^31.
    pub first: u32,
    pub count: u32,
    /// Raises the word, around at the end; less than `count`.
    pub step: u32,
    /// Of the TCP ports in the frame (bytes).
    pub ports_offset: i16,
    /// Raises the source port, around at 2^16.
    pub port_step: u16,
}

impl Varied {
    pub fn new(program: BorrowedFd<'_>, cycle: Cycle) -> Result<Self> {
        let array = test_run::program_array()?;
        test_run::put_program(array.as_fd(), program)?;
        let front = test_run::load(&instructions(array.as_raw_fd(), cycle))?;
        Ok(Self { front, _array: array })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.front.as_fd()
    }
}

/// `struct bpf_insn`: operation, destination and source register, offset, number.
pub(super) const fn instruction(operation: u8, destination: u8, source: u8, offset: i16, number: i32) -> u64 {
    let registers = destination | (source << 4);
    (operation as u64)
        | ((registers as u64) << 8)
        | ((offset.cast_unsigned() as u64) << 16)
        | ((number.cast_unsigned() as u64) << 32)
}

fn instructions(array: i32, cycle: Cycle) -> [u64; 24] {
    // Operations of the instruction set, by what they do (RFC 9669).
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x63;
    const MOVE: u8 = 0xbf;
    const MOVE_NUMBER: u8 = 0xb7;
    const ADD_NUMBER: u8 = 0x07;
    const ADD_NUMBER_32: u8 = 0x04;
    const SUBTRACT_NUMBER_32: u8 = 0x14;
    const JUMP_IF_AT_MOST_32: u8 = 0xb6;
    const TO_BIG_ENDIAN: u8 = 0xdc;
    const LOAD_WIDE: u8 = 0x18;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PSEUDO_MAP_FD: u8 = 1;
    const TAIL_CALL: i32 = 12;
    // Fields of `struct __sk_buff`.
    const DATA: i16 = 76;
    const DATA_END: i16 = 80;
    let Cycle { offset, first, count, step, ports_offset, port_step } = cycle;
    let last = first + (count - 1);
    let source_port_step = u32::from(port_step) << 16;
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 2, 1, DATA, 0),
        instruction(LOAD_WORD, 3, 1, DATA_END, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_NUMBER, 4, 0, 0, i32::from(offset.max(ports_offset)) + 4),
        instruction(JUMP_IF_GREATER, 4, 3, 16, 0),
        instruction(LOAD_WORD, 5, 2, offset, 0),
        instruction(TO_BIG_ENDIAN, 5, 0, 0, 32),
        instruction(ADD_NUMBER_32, 5, 0, 0, step.cast_signed()),
        instruction(JUMP_IF_AT_MOST_32, 5, 0, 1, last.cast_signed()),
        instruction(SUBTRACT_NUMBER_32, 5, 0, 0, count.cast_signed()),
        instruction(TO_BIG_ENDIAN, 5, 0, 0, 32),
        instruction(STORE_WORD, 2, 5, offset, 0),
        instruction(LOAD_WORD, 5, 2, ports_offset, 0),
        instruction(TO_BIG_ENDIAN, 5, 0, 0, 32),
        instruction(ADD_NUMBER_32, 5, 0, 0, source_port_step.cast_signed()),
        instruction(TO_BIG_ENDIAN, 5, 0, 0, 32),
        instruction(STORE_WORD, 2, 5, ports_offset, 0),
        instruction(LOAD_WIDE, 2, PSEUDO_MAP_FD, 0, array),
        0,
        instruction(MOVE_NUMBER, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),
        // Only where there was nothing to call: no verdict of ours is 0.
        instruction(MOVE_NUMBER, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
