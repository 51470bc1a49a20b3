//! Commands that read the loaded state: pins for the numbers, the agent's catalog for their names.

mod drops;
mod endpoints;
pub mod filter;
mod flows;
mod live;
mod manual;
mod maps;
pub mod page;
mod status;
pub mod style;
pub mod table;

pub use drops::drops;
pub use endpoints::endpoints;
pub use flows::flows;
pub use manual::{completion, man};
pub use maps::maps;
pub use status::status;
