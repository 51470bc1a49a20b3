//! Proof: the oracle, written and random cases, the judges, the lab of network namespaces, clusters of whole nodes.

pub mod bench;
pub mod case;
pub mod cluster;
pub mod expand;
pub mod frame;
pub mod fuzz;
pub mod judges;
pub mod lab;
pub mod oracle;
pub mod prove;
pub mod random;
