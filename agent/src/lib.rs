//! The agent: API objects in, kernel tables out. One way through, see ARCHITECTURE.md.

pub mod api;
pub mod facts;
pub mod tables;
