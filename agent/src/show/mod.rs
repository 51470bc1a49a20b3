//! Commands that read the loaded state: pins for the numbers, the agent's catalog for their names.

mod capture;
mod check;
mod diff;
mod drops;
mod endpoints;
mod explain;
pub mod filter;
mod flows;
mod live;
mod manual;
mod maps;
pub mod page;
mod pcap;
mod policies;
mod rows;
mod status;
pub mod style;
pub mod table;

pub use capture::capture;
pub use check::check;
pub use diff::maps_diff;
pub use drops::drops;
pub use endpoints::endpoints;
pub use explain::{explain, find};
pub use flows::flows;
pub use manual::{completion, man};
pub use maps::maps;
pub use policies::policies;
pub use status::status;
