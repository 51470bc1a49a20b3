//! The agent: API objects in, kernel tables out. One way through, see ARCHITECTURE.md.

pub mod agent;
mod alone;
pub mod api;
pub mod capabilities;
pub mod check;
pub mod cni;
pub mod compile;
pub mod config;
pub mod drift;
pub mod exit;
pub mod explain;
pub mod facts;
pub mod index;
pub mod kernel;
pub mod last_known;
mod memory;
pub mod node;
pub mod observe;
pub mod pause;
pub mod plugin;
pub mod root_socket;
pub mod run;
pub mod show;
pub mod tables;
pub mod uninstall;

/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PALISADE_COMMIT"), ")");
