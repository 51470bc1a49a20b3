//! Benchmarks: what a packet costs in the kernel programs, and how many connections a pod takes with and without an agent.
//!
//! Run by `cargo xtask bench`; figures and how to read them are in docs/benchmarks.md.

pub mod connections;
pub mod in_kernel;
pub mod load;
mod machine;
mod scene;
mod stats;
mod table;
mod test_run;
mod vary;
