//! What policies would do, before they are applied: objects from manifests, judged as the programs would judge them.
//!
//! Pure: text in, answers out. Every pod is taken for one of a single node's, as what is decided does not depend on where pods are; what
//! nodes let through without asking (their own processes) is no part of it.

pub mod compare;
#[cfg(test)]
mod examples;
pub mod expect;
pub mod manifests;
pub mod peers;
#[cfg(test)]
mod tests;
pub mod world;
