//! Commands that read the loaded state: pins for the numbers, the agent's catalog for their names.

mod endpoints;
mod manual;
mod maps;
pub mod page;
mod status;
pub mod style;
pub mod table;

pub use endpoints::endpoints;
pub use manual::{completion, man};
pub use maps::maps;
pub use status::status;
