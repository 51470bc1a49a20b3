//! What stands out on a terminal. Words say the same: nothing is told by colour alone.

use anstyle::{AnsiColor, Style};

pub const HEADING: Style = Style::new().bold();
/// Enforced as it should be, allowed.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Refused, not enforced, not as it should be.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// What somebody should know of.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Beside the point.
pub const DIM: Style = Style::new().dimmed();
