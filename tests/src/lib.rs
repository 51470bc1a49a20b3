//! Proof: the oracle, written and random cases, the lab of network namespaces.

pub mod case;
pub mod frame;
pub mod lab;
pub mod oracle;
