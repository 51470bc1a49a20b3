//! The agent: API objects in, kernel tables out. One way through, see ARCHITECTURE.md.

pub mod facts;
pub mod kernel;
pub mod node;
pub mod tables;
