//! A few instructions in front of a program that give each packet a mark: the programs of exits take it off again.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::Result;

use super::test_run;
use super::vary::instruction;

pub struct Marked {
    front: OwnedFd,
    /// What the front refers to.
    _array: OwnedFd,
}

impl Marked {
    pub fn new(program: BorrowedFd<'_>, mark: u32) -> Result<Self> {
        let array = test_run::program_array()?;
        test_run::put_program(array.as_fd(), program)?;
        let front = test_run::load(&instructions(array.as_raw_fd(), mark))?;
        Ok(Self { front, _array: array })
    }

    pub fn program(&self) -> BorrowedFd<'_> {
        self.front.as_fd()
    }
}

fn instructions(array: i32, mark: u32) -> [u64; 8] {
    // Operations of the instruction set, by what they do (RFC 9669).
    const STORE_WORD: u8 = 0x63;
    const MOVE_NUMBER: u8 = 0xb7;
    const LOAD_WIDE: u8 = 0x18;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PSEUDO_MAP_FD: u8 = 1;
    const TAIL_CALL: i32 = 12;
    // Its place in `struct __sk_buff`.
    const MARK: i16 = 8;
    [
        instruction(MOVE_NUMBER, 2, 0, 0, mark.cast_signed()),
        instruction(STORE_WORD, 1, 2, MARK, 0),
        instruction(LOAD_WIDE, 2, PSEUDO_MAP_FD, 0, array),
        0,
        instruction(MOVE_NUMBER, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, TAIL_CALL),
        // Only where there was nothing to call: no verdict of ours is 0.
        instruction(MOVE_NUMBER, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
