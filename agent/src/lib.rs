//! The agent: API objects in, kernel tables out. One way through, see ARCHITECTURE.md.

pub mod compile;
pub mod facts;
pub mod index;
pub mod tables;
