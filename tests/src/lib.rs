//! Proof: the oracle, written and random cases, the lab of network namespaces.

pub mod case;
pub mod expand;
pub mod frame;
<<<<<<< HEAD
pub mod judges;
=======
pub mod lab;
>>>>>>> lab
pub mod oracle;
pub mod random;
