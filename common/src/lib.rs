//! What the agent and its kernel programs agree on: the packet parser, the flow key, the table layouts and the decision
//! function, generic over how bytes are read and how tables are asked.
//!
//! The kernel binds it to skbs and maps (`ebpf`), the agent to ordered maps (`agent/src/tables`), tests to both.

#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

pub mod decide;
pub mod flow;
pub mod layout;
mod neighbour;
pub mod parse;
pub mod pause;
pub mod verdict;

pub use verdict::{Hook, Reason, Verdict};
