//! The door: Kubernetes objects come in from a folder or an API server and leave as [`crate::facts`].
//!
//! Nothing behind it sees a Kubernetes type. What cannot be understood is reduced to its closed reading, with a
//! [`Fault`](crate::facts::Fault) that names object and field (SEMANTICS 15.2).

pub mod cluster;
pub mod folder;
pub mod reduce;
