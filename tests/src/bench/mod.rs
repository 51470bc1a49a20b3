//! Benchmarks: what a packet costs in the kernel programs, what a pod gets through with and without an agent, how soon a policy
//! holds, and how soon an agent enforces and what it takes.
//!
//! Run by `cargo xtask bench`; figures and how to read them are in docs/benchmarks.md.

mod cluster;
pub mod commands;
pub mod events;
pub mod exits;
pub mod in_kernel;
pub mod load;
mod machine;
mod marked;
pub mod pods;
pub mod policy;
mod prober;
mod programs;
mod ranges;
pub mod restart;
pub mod scale;
mod scene;
pub mod service_traffic;
pub mod size;
pub mod start;
mod stats;
mod table;
mod test_run;
pub mod throughput;
mod traffic;
mod vary;
pub mod xdp;
