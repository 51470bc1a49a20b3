//! How a command ends. The numbers are part of its contract (docs/commands.md).

use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; of a question, the answer is yes.
    Done = 0,
    /// Could not be done, or could not be answered.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The answer is no: refused, not as expected, or not the same.
    No = 3,
}

/// For `--help` and the manual.
pub const CODES: &str =
    "Exit codes: 0 done, or the answer is yes; 1 failed; 2 wrong usage; 3 the answer is no (where a command says so).";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
