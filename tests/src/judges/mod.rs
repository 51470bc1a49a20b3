//! The second and third judge: the decision function over compiled tables, and the loaded program.
//!
//! Both go the agent's own way from objects to writes: `api::reduce`, `index`, `compile`, `tables`.

mod bpffs;
pub mod compiled;
pub mod early;
pub mod loaded;
mod memory;
pub mod pipeline;

pub use bpffs::{Bpffs, bpffs};
pub use compiled::Compiled;
pub use loaded::{Loaded, Machine, can_be_run};
pub use memory::Memory;
pub use pipeline::Pipeline;
