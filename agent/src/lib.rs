//! The agent: API objects in, kernel tables out. One way through, see ARCHITECTURE.md.

pub mod facts;
pub mod node;
pub mod observe;
pub mod tables;
