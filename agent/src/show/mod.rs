//! Commands that read the loaded state: pins for the numbers, the agent's catalog for their names.

mod endpoints;
mod maps;
mod status;
mod table;

pub use endpoints::endpoints;
pub use maps::maps;
pub use status::status;
